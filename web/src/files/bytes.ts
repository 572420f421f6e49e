// Reading the bytes of files, packed by gzip or zlib or not, piece by piece.
import { Gunzip } from 'fflate';
import { ImageFileError } from './volume';

/** Compression of data. */
export type Packing = 'none' | 'gzip' | 'deflate';
/** Called with the share that was read, from 0 to 1. */
export type OnProgress = (share: number) => void;

/** Deflate packs no more bytes than these into one. */
const MAX_DEFLATE_RATIO = 1032;
/** More bytes than these after the announced ones are not read, because the header is wrong then. */
const MAX_SURPLUS_BYTES = 1 << 26;

/** Whether bytes start with others. */
export function startsWith(bytes: Uint8Array, ...expected: number[]): boolean {
  return expected.every((byte, index) => bytes[index] === byte);
}

/** Return bytes as text with one character for each. */
export function latin1(bytes: Uint8Array): string {
  return new TextDecoder('latin1').decode(bytes);
}

/** Whether a file starts as DICOM files do: with 128 bytes of any content, and DICM. */
export function hasDicomPreamble(bytes: Uint8Array): boolean {
  return latin1(bytes.subarray(128, 132)) === 'DICM';
}

/** Whether the first bytes of a file are those of gzip. */
export function isGzip(bytes: Uint8Array): boolean {
  return startsWith(bytes, 0x1f, 0x8b);
}

/** Return the first bytes of a file, unpacked if it is a gzip file, and whether it is. */
export async function readStart(file: File, size: number): Promise<{ start: Uint8Array; gzip: boolean }> {
  const start = await readBytes(file.slice(0, size), file.name);
  if (!isGzip(start)) return { start, gzip: false };
  const unpacked = new Uint8Array(size);
  let filled = 0;
  for await (const piece of unpack(file, 'gzip', file.name)) {
    const part = piece.subarray(0, size - filled);
    unpacked.set(part, filled);
    filled += part.length;
    if (filled === size) break;
  }
  return { start: unpacked.subarray(0, filled), gzip: true };
}

/** Return the bytes of a part of the file `name`. Rejects with an ImageFileError if it cannot be read. */
export async function readBytes(blob: Blob, name: string): Promise<Uint8Array> {
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch (e) {
    throw unreadable(name, e);
  }
}

/** Data to read from a file: `blob` without its first `skipped` bytes, counted after unpacking. */
export interface Source {
  readonly name: string;
  readonly blob: Blob;
  readonly packing: Packing;
  readonly skipped: number;
}

/**
 * Return `size` bytes of a source, and the number of bytes after them. Gzip's checksum is verified. Rejects with an
 * ImageFileError if there are fewer bytes.
 */
export async function readExactly(
  source: Source,
  size: number,
  onProgress: OnProgress,
): Promise<{ content: Uint8Array<ArrayBuffer>; surplus: number }> {
  const { name, blob, packing, skipped } = source;
  const maxBytes = packing === 'none' ? blob.size : blob.size * MAX_DEFLATE_RATIO;
  if (skipped + size > maxBytes) throw incomplete(name, size, Math.max(0, maxBytes - skipped), packing !== 'none');
  const content = allocate(name, size);
  let position = -skipped;
  const pieces = packing === 'none' ? piecesOf(blob, name) : unpack(blob, packing, name);
  for await (const piece of pieces) {
    const from = Math.max(0, -position);
    const to = Math.min(piece.length, size - position);
    if (from < to) content.set(piece.subarray(from, to), position + from);
    position += piece.length;
    onProgress(Math.min(1, Math.max(0, position / size)));
    if (position > size + MAX_SURPLUS_BYTES) break;
  }
  if (position < size) throw incomplete(name, size, Math.max(0, position), false);
  return { content, surplus: position - size };
}

/** Return a note if there are more bytes than the header announces. */
export function noteOnSurplus(surplus: number): string[] {
  if (surplus <= 0) return [];
  const count = surplus > MAX_SURPLUS_BYTES ? `over ${grouped(MAX_SURPLUS_BYTES)}` : grouped(surplus);
  return [`The file has ${count} bytes more than its header announces. If the header is wrong, so is the image.`];
}

/** Write a number with commas between thousands. */
export function grouped(count: number): string {
  return count.toLocaleString('en-US');
}

function allocate(name: string, size: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(size);
  } catch {
    throw new ImageFileError(
      `${name} is too large for the memory of the browser (${grouped(size)} bytes). Crop or resample it.`,
    );
  }
}

async function* piecesOf(blob: Blob, name: string): AsyncGenerator<Uint8Array> {
  const reader = blob.stream().getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (e) {
    throw unreadable(name, e);
  } finally {
    await reader.cancel().catch(() => undefined); // of a stream that has failed already
  }
}

/** Yield the unpacked bytes. Several gzip files in a row, as bgzip writes them, count as one. */
async function* unpack(blob: Blob, packing: 'gzip' | 'deflate', name: string): AsyncGenerator<Uint8Array> {
  let yielded = 0;
  try {
    for await (const piece of inflate(blob, packing)) {
      yield piece;
      yielded += piece.length;
    }
    return;
  } catch (e) {
    const parts = packing === 'gzip' ? await membersOf(blob, name) : [];
    if (parts.length < 2) throw damaged(name, e);
    for (const part of parts) {
      for await (const piece of inflate(part, 'gzip')) {
        const repeated = Math.min(yielded, piece.length);
        yielded -= repeated;
        yield piece.subarray(repeated);
      }
    }
  }
}

async function* inflate(blob: Blob, packing: 'gzip' | 'deflate'): AsyncGenerator<Uint8Array> {
  const reader = blob.stream().pipeThrough(new DecompressionStream(packing)).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader.cancel().catch(() => undefined); // of a stream that has failed already
  }
}

/** Return the parts of a file that are gzip files in a row, which browsers refuse to unpack at once. */
export async function membersOf(blob: Blob, name: string): Promise<Blob[]> {
  const starts = [0];
  const finder = new Gunzip();
  finder.onmember = (offset) => starts.push(offset);
  finder.ondata = () => undefined;
  try {
    for await (const piece of piecesOf(blob, name)) finder.push(piece);
  } catch (e) {
    if (e instanceof ImageFileError) throw e;
    return []; // the data is damaged, which the caller reports
  }
  return [...new Set(starts)].map((start, index, all) => blob.slice(start, all[index + 1]));
}

function incomplete(name: string, announced: number, found: number, isUpperBound: boolean): ImageFileError {
  return new ImageFileError(
    `${name} is incomplete: its header announces ${grouped(announced)} bytes of voxels, found ` +
      `${isUpperBound ? 'at most ' : ''}${grouped(found)}. Copy or export it again.`,
  );
}

function damaged(name: string, error: unknown): ImageFileError {
  return new ImageFileError(
    `${name} is damaged: it cannot be decompressed (${reason(error)}). Copy or export it again.`,
  );
}

function unreadable(name: string, error: unknown): ImageFileError {
  return new ImageFileError(`${name} cannot be read (${reason(error)}). Check its permissions, and choose it again.`);
}

/** Return the text of an error, short, on one line and without a full stop at its end. */
export function reason(error: unknown): string {
  const text = error instanceof Error ? error.message || error.name : String(error);
  return text
    .replace(/\s+/g, ' ')
    .replace(/[. ]+$/, '')
    .slice(0, 300);
}
