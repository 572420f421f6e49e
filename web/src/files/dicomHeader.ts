// The headers of DICOM files.
import { type DataSet, type Element, parseDicom } from 'dicom-parser';
import { Inflate } from 'fflate';
import { ATTRIBUTES, type Keyword } from './dicomAttributes';
import { grouped, hasDicomPreamble, latin1, readBytes, reason } from './bytes';
import { EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN } from './transferSyntaxes';
import { ImageFileError } from './volume';

/** Tag of pixels that are integers. */
export const PIXEL_DATA = 'x7fe00010';
const FLOAT_PIXEL_DATA = 'x7fe00008';
const DOUBLE_PIXEL_DATA = 'x7fe00009';
const DICOMDIR = '1.2.840.10008.1.3.10';

/** Numbers of first bytes that are read for a header, in turn, until one contains it. */
const HEADER_BYTES = [1 << 16, 1 << 20, 1 << 24];

/** No attribute that is read as text is longer in a valid file. */
const MAX_TEXT_BYTES = 4096;
/**
 * Limits of the content of a file in a deflated transfer syntax: times its size, or bytes if those are more. Deflate can
 * pack a thousand bytes into one, but not those of an image.
 */
const MAX_INFLATION = 100;
const MAX_INFLATED_BYTES = 2 ** 26;
/** Compressed bytes that are unpacked at once, to at most a thousand times as many. */
const INFLATE_BYTES = 2 ** 16;

/** Names for text decoders of DICOM's character sets, other than the default one. */
const ENCODINGS: readonly (readonly [RegExp, string])[] = [
  [/192/, 'utf-8'],
  [/GB18030|GBK/, 'gb18030'],
  [/ IR 58$/, 'gbk'],
  [/ IR (87|159)$/, 'iso-2022-jp'],
  [/IR 13$/, 'shift_jis'],
  [/ IR 149$/, 'euc-kr'],
  [/IR 101$/, 'iso-8859-2'],
  [/IR 109$/, 'iso-8859-3'],
  [/IR 110$/, 'iso-8859-4'],
  [/IR 126$/, 'iso-8859-7'],
  [/IR 127$/, 'iso-8859-6'],
  [/IR 138$/, 'iso-8859-8'],
  [/IR 144$/, 'iso-8859-5'],
  [/IR 148$/, 'iso-8859-9'],
  [/IR 166$/, 'windows-874'],
];

/** The attributes of a DICOM file, or of an item of a sequence. */
export class Attributes {
  constructor(
    private readonly dataSet: DataSet,
    private readonly encoding: string,
  ) {}

  /** Return a value as text, an empty one if there is none. Several values are separated by backslashes. */
  text(keyword: Keyword): string {
    const element = this.element(keyword);
    const vr = ATTRIBUTES[keyword][1];
    if (element === undefined || element.length <= 0) return '';
    if (vr === 'US' || vr === 'UL' || vr === 'FD') return String(this.number(keyword) ?? '');
    const { byteArray } = this.dataSet;
    const length = Math.min(element.length, MAX_TEXT_BYTES);
    const bytes = byteArray.subarray(element.dataOffset, element.dataOffset + length);
    return new TextDecoder(this.encoding)
      .decode(bytes)
      .replace(/[\0 ]+$/, '')
      .trimStart();
  }

  /** Return the values of an attribute as text. */
  texts(keyword: Keyword): string[] {
    const text = this.text(keyword);
    return text === '' ? [] : text.split('\\').map((value) => value.trim());
  }

  /** Return the numbers of an attribute. They are NaN if they are none. */
  numbers(keyword: Keyword): number[] {
    return this.texts(keyword).map((value) => (value === '' ? NaN : Number(value)));
  }

  /** Return the first number of an attribute, or undefined if it is missing or empty. */
  number(keyword: Keyword): number | undefined {
    const [tag, vr] = ATTRIBUTES[keyword];
    if (vr === 'US') return this.dataSet.uint16(tag);
    if (vr === 'UL') return this.dataSet.uint32(tag);
    if (vr === 'FD') return this.dataSet.double(tag);
    const value = this.texts(keyword).at(0) ?? '';
    return value === '' ? undefined : Number(value);
  }

  has(keyword: Keyword): boolean {
    return this.element(keyword) !== undefined;
  }

  /** Return the items of a sequence, or undefined if it is missing. */
  items(keyword: Keyword): Attributes[] | undefined {
    const items = this.element(keyword)?.items;
    return items?.flatMap(({ dataSet }) => (dataSet === undefined ? [] : [new Attributes(dataSet, this.encoding)]));
  }

  /** Return the first item of each sequence. */
  groups(): Attributes[] {
    return Object.values(this.dataSet.elements).flatMap(({ items }) => {
      const first = items?.[0]?.dataSet;
      return first === undefined ? [] : [new Attributes(first, this.encoding)];
    });
  }

  private element(keyword: Keyword): Element | undefined {
    return this.dataSet.elements[ATTRIBUTES[keyword][0]];
  }
}

/** The header of a DICOM file. `pixels`: the element of its pixels. */
export interface DicomHeader {
  readonly file: File;
  readonly attributes: Attributes;
  readonly transferSyntax: string;
  readonly pixels: Element | undefined;
}

/** A file that is no DICOM file, or a DICOMDIR. */
export const NOT_DICOM = Symbol();

/** Read the header of a file. Returns NOT_DICOM for other files. Rejects with an ImageFileError if it is damaged. */
export async function readDicomHeader(file: File): Promise<DicomHeader | typeof NOT_DICOM> {
  for (const size of HEADER_BYTES.filter((bytes) => bytes < file.size)) {
    const bytes = await readBytes(file.slice(0, size), file.name);
    try {
      const dataSet = parseDicomFile(bytes, PIXEL_DATA);
      if (pixelsOf(dataSet) !== undefined) return headerOf(file, dataSet);
    } catch {
      // The header may be longer than this part of the file.
    }
  }
  const bytes = await readBytes(file, file.name);
  const hasPreamble = hasDicomPreamble(bytes);
  try {
    const header = headerOf(file, parseDicomFile(bytes, PIXEL_DATA));
    if (header.attributes.text('MediaStorageSOPClassUID') === DICOMDIR) return NOT_DICOM;
    if (header.attributes.has('SOPClassUID')) return header;
  } catch (e) {
    if (hasPreamble) throw new ImageFileError(`${file.name} is damaged (${errorOf(e)}). Copy or export it again.`);
  }
  if (!hasPreamble) return NOT_DICOM;
  throw new ImageFileError(`${file.name} is damaged: it ends within its header. Copy or export it again.`);
}

/** dicom-parser throws strings, errors, and objects with either. */
function errorOf(error: unknown): string {
  return reason(typeof error === 'object' && error !== null && 'exception' in error ? error.exception : error);
}

function headerOf(file: File, dataSet: DataSet): DicomHeader {
  const plain = new Attributes(dataSet, 'latin1');
  return {
    file,
    attributes: new Attributes(dataSet, encodingOf(plain.text('SpecificCharacterSet'))),
    transferSyntax: plain.text('TransferSyntaxUID') || IMPLICIT_LITTLE_ENDIAN,
    pixels: pixelsOf(dataSet),
  };
}

/** Return the element with the pixels, or undefined. */
export function pixelsOf({ elements }: DataSet): Element | undefined {
  const found = [PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA].map((tag) => elements[tag] as Element | undefined);
  return found.find((element) => element !== undefined);
}

/** Parse a DICOM file, up to a tag if it is given. Old files have no preamble, and no name of their transfer syntax. */
export function parseDicomFile(bytes: Uint8Array, untilTag?: string): DataSet {
  const options = { untilTag, inflater: inflated };
  if (hasDicomPreamble(bytes)) return parseDicom(bytes, options);
  const isExplicit = /^[A-Z]{2}$/.test(latin1(bytes.subarray(4, 6)));
  const syntax = isExplicit ? EXPLICIT_LITTLE_ENDIAN : IMPLICIT_LITTLE_ENDIAN;
  return parseDicom(bytes, { ...options, TransferSyntaxUID: syntax });
}

/** Inflate all of a file after its meta information, which ends at a position. */
function inflated(bytes: Uint8Array, position: number): Uint8Array {
  const parts = [bytes.subarray(0, position)];
  const most = Math.max(MAX_INFLATION * bytes.length, MAX_INFLATED_BYTES);
  let length = position;
  const inflater = new Inflate((part) => {
    length += part.length;
    if (length > most) throw new Error(`it unpacks to more than ${grouped(most)} bytes`);
    parts.push(part);
  });
  for (let start = position; start < bytes.length; start += INFLATE_BYTES) {
    inflater.push(bytes.subarray(start, start + INFLATE_BYTES), start + INFLATE_BYTES >= bytes.length);
  }
  const result = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

function encodingOf(characterSets: string): string {
  const names = characterSets
    .split('\\')
    .map((name) => name.trim())
    .filter(Boolean);
  return ENCODINGS.find(([pattern]) => names.some((name) => pattern.test(name)))?.[1] ?? 'latin1';
}
