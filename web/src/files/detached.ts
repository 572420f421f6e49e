// Images in NRRD and MetaImage files: a header as text, and voxels after it or in other files.
import { countVoxels } from '../client/geometry';
import { wireType } from '../client/voxels';
import { isGzip, latin1, noteOnSurplus, type OnProgress, readBytes, readExactly, type Source } from './bytes';
import { betweenRasAndLps, straightened } from './geometry';
import { type Affine, ImageFileError, shapeOf, type Volume } from './volume';
import { bytesOf, decode, replaceNonFinite, rescaled, type Stored, type StoredType } from './voxels';

/** A header ends within so many bytes, also if it lists the files of a thousand slices. */
const MAX_HEADER_BYTES = 1 << 20;
/** No image has more slices. */
const MAX_NUMBERED = 100_000;
/** No file has a longer name with its folders. */
const MAX_NAME = 4096;
const PATTERN = /^(.*)%(0?)(\d*)d(\S*)\s+(\d+)\s+(\d+)(?:\s+(\d+))?/;
/** Numbers as text have no more characters, with the space between them. */
const MAX_TEXT_CHARACTERS = 32;

/** An image as its header describes it. */
export interface Described {
  readonly file: File;
  readonly source: 'nrrd' | 'mha';
  readonly sizes: readonly number[];
  readonly type: StoredType | undefined;
  /** Name of the type in the header, for an error. */
  readonly typeName: string;
  readonly littleEndian: boolean;
  /** From voxels to LPS millimeters. */
  readonly lps: Affine;
  /** The voxels. */
  readonly data: Blob;
  readonly packing: 'none' | 'packed' | 'text';
  /** Bytes before the voxels, after unpacking. Negative if the voxels are the last bytes. */
  readonly skipped: number;
}

/** Return the start of a file as text with one character for each byte. */
export async function readHeader(file: File): Promise<string> {
  return latin1(await readBytes(file.slice(0, MAX_HEADER_BYTES), file.name));
}

/** Return text without blanks at its ends. A regular expression would take a time that grows with its square. */
export function trimmed(text: string): string {
  const isBlank = (at: number) => text[at] === ' ' || text[at] === '\t';
  let [start, end] = [0, text.length];
  while (start < end && isBlank(start)) start++;
  while (start < end && isBlank(end - 1)) end--;
  return text.slice(start, end);
}

/** Return the files that a header names, one after the other: a single one, numbered ones, or a list. */
export function namedFiles(header: string, names: readonly string[], files: readonly File[]): Blob {
  const found: File[] = [];
  // The first file that is missing ends it, however many names a pattern makes.
  for (const name of names) for (const one of expand(name)) found.push(fileOf(header, one, files));
  if (found.length === 0) throw new ImageFileError(`${header} is damaged: it names no file with voxels.`);
  return new Blob(found);
}

function fileOf(header: string, path: string, files: readonly File[]): File {
  const name = path.split(/[\\/]/).at(-1) ?? path;
  const found =
    files.find((file) => file.name === name) ?? files.find((f) => f.name.toLowerCase() === name.toLowerCase());
  if (found === undefined) {
    throw new ImageFileError(`The file ${name} with voxels of ${header} is missing. Choose both files together.`);
  }
  return found;
}

/** Return the names of a pattern of numbered files, such as slice%03d.raw 1 100 1, or the name itself. */
function* expand(name: string): Generator<string> {
  const pattern = name.length > MAX_NAME ? null : PATTERN.exec(name);
  if (pattern === null) {
    yield utf8(name);
    return;
  }
  const [, before, zero, width, after] = pattern;
  const [first, last, step] = pattern.slice(5).map((number: string | undefined) => Number(number ?? 1));
  for (let number = first; number <= Math.min(last, first + MAX_NUMBERED); number += Math.max(step, 1)) {
    yield utf8(before + String(number).padStart(Math.min(Number(width), MAX_NAME), zero === '' ? ' ' : '0') + after);
  }
}

/** Decode text that was read with one character for each byte. */
function utf8(text: string): string {
  return new TextDecoder().decode(Uint8Array.from(text, (character) => character.charCodeAt(0)));
}

/** Read the voxels of an image. Rejects with an ImageFileError. */
export async function readDescribed(image: Described, onProgress: OnProgress): Promise<Volume> {
  const { name } = image.file;
  const shape = shapeOf(name, image.sizes);
  if (image.type === undefined) {
    throw new ImageFileError(`${name} has voxels of the type ${image.typeName}. Expected integers or real numbers.`);
  }
  if (!Number.isInteger(image.skipped)) {
    throw new ImageFileError(`${name} is damaged: its header skips ${image.skipped} bytes. Copy or export it again.`);
  }
  const affine = straightened(betweenRasAndLps(image.lps), shape, name);
  const { stored, surplus } = await readStored(image, image.type, countVoxels(shape), onProgress);
  const voxels = rescaled(stored, 1, 0);
  return {
    name,
    shape,
    voxels,
    dtype: wireType(voxels),
    affine,
    source: image.source,
    notes: [...noteOnSurplus(surplus), ...replaceNonFinite(voxels, name)],
  };
}

/** An image whose voxels have several components. */
export function severalComponents(name: string, count: number): ImageFileError {
  return new ImageFileError(
    `${name} has ${count} components per voxel, like a color image, a vector field or time points. Expected one. Save ` +
      'the one to segment in a file of its own.',
  );
}

async function readStored(
  image: Described,
  type: StoredType,
  count: number,
  onProgress: OnProgress,
): Promise<{ stored: Stored; surplus: number }> {
  const { name } = image.file;
  if (image.packing === 'text') {
    return { stored: fromText(name, await readText(name, image.data, count), type, count), surplus: 0 };
  }
  const size = count * bytesOf(type);
  const packing = image.packing === 'none' ? 'none' : await packingOf(image.data, name);
  const skipped = image.skipped < 0 ? Math.max(0, image.data.size - size) : image.skipped;
  if (image.skipped < 0 && packing !== 'none') {
    throw new ImageFileError(`${name} skips bytes from the end of compressed data. Export it again.`);
  }
  const source: Source = { name, blob: image.data, packing, skipped };
  const { content, surplus } = await readExactly(source, size, onProgress);
  return { stored: decode(content, type, image.littleEndian), surplus };
}

async function packingOf(data: Blob, name: string): Promise<'gzip' | 'deflate'> {
  return isGzip(await readBytes(data.slice(0, 2), name)) ? 'gzip' : 'deflate';
}

async function readText(name: string, data: Blob, count: number): Promise<string> {
  return latin1(await readBytes(data.slice(0, count * MAX_TEXT_CHARACTERS), name));
}

/** Return numbers that are written as text, as whole or real numbers. */
function fromText(name: string, text: string, type: StoredType, count: number): Stored {
  const numbers = text.trim().split(/[\s,]+/, count);
  const values = Float64Array.from(numbers, Number);
  if (numbers.length < count || values.some(Number.isNaN)) {
    throw new ImageFileError(
      `${name} is incomplete: its header announces ${count} numbers as text, found ${numbers.length} or something ` +
        'else. Copy or export it again.',
    );
  }
  const stored = decode(new Uint8Array(count * bytesOf(type)), type, true);
  if (stored instanceof BigInt64Array || stored instanceof BigUint64Array) return values;
  stored.set(values);
  return stored;
}
