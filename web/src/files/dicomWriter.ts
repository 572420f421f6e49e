// DICOM files in explicit VR little endian.
import { pauses } from './pauses';
import { EXPLICIT_LITTLE_ENDIAN } from './transferSyntaxes';

/** A value: text (several values separated by backslashes), numbers, bytes, or the items of a sequence. */
export type Value = string | readonly number[] | Uint8Array<ArrayBuffer> | readonly Dataset[] | EncodedItems;
/** Tag, such as 0x00100010, value representation and value of each attribute. */
export type Dataset = readonly (readonly [tag: number, vr: string, value: Value])[];

/** Value representations whose length has 4 bytes, after 2 bytes of zero. */
const LONG = ['OB', 'OW', 'SQ', 'UN', 'UT'];
/** Bytes of a number. An attribute tag is two of two bytes. */
const NUMBER_BYTES: Readonly<Partial<Record<string, 2 | 4>>> = { US: 2, UL: 4, AT: 2 };
const ITEM = 0xfffee000;
/** Browsers copy a piece without a pause. One of this size takes a few milliseconds. */
const PIECE_BYTES = 2 ** 22;

/** Items of a sequence, as bytes. */
export class EncodedItems {
  private constructor(readonly bytes: Uint8Array<ArrayBuffer>) {}

  /** Encode the items of a long sequence. Pauses, so that the page stays responsive. */
  static async of(items: Iterable<Dataset>): Promise<EncodedItems> {
    const pause = pauses();
    const parts: Uint8Array<ArrayBuffer>[] = [];
    for (const item of items) {
      parts.push(joined(encodeItem(item)));
      await pause();
    }
    return new EncodedItems(joined(parts));
  }
}

/** Return a DICOM file with a data set. Texts are written in UTF-8. Pauses, so that the page stays responsive. */
export function writeDicom(
  sopClassUid: string,
  sopInstanceUid: string,
  implementationUid: string,
  dataset: Dataset,
): Promise<Blob> {
  const meta = encode([
    [0x00020001, 'OB', new Uint8Array([0, 1])],
    [0x00020002, 'UI', sopClassUid],
    [0x00020003, 'UI', sopInstanceUid],
    [0x00020010, 'UI', EXPLICIT_LITTLE_ENDIAN],
    [0x00020012, 'UI', implementationUid],
  ]);
  const size = sizeOf(meta);
  const start = [new Uint8Array(128), new TextEncoder().encode('DICM'), ...encode([[0x00020000, 'UL', [size]]])];
  return fileOf([...start, ...meta, ...encode(dataset)]);
}

async function fileOf(parts: readonly Uint8Array<ArrayBuffer>[]): Promise<Blob> {
  const pause = pauses();
  const pieces: BlobPart[] = [];
  for (const part of parts) {
    if (part.length <= PIECE_BYTES) pieces.push(part);
    else {
      for (let start = 0; start < part.length; start += PIECE_BYTES) {
        pieces.push(new Blob([part.subarray(start, start + PIECE_BYTES)]));
        await pause();
      }
    }
  }
  return new Blob(pieces);
}

/** Return the bytes of a data set, in parts. */
function encode(dataset: Dataset): Uint8Array<ArrayBuffer>[] {
  return [...dataset].sort(([a], [b]) => a - b).flatMap(([tag, vr, value]) => encodeAttribute(tag, vr, value));
}

function encodeAttribute(tag: number, vr: string, value: Value): Uint8Array<ArrayBuffer>[] {
  const parts = vr === 'SQ' ? partsOf(value as readonly Dataset[] | EncodedItems) : [encodeValue(vr, value)];
  return [header(tag, vr, sizeOf(parts)), ...parts];
}

function partsOf(items: readonly Dataset[] | EncodedItems): readonly Uint8Array<ArrayBuffer>[] {
  return items instanceof EncodedItems ? [items.bytes] : items.flatMap(encodeItem);
}

function encodeItem(dataset: Dataset): Uint8Array<ArrayBuffer>[] {
  const parts = encode(dataset);
  const start = new DataView(new ArrayBuffer(8));
  writeTag(start, 0, ITEM);
  start.setUint32(4, sizeOf(parts), true);
  return [new Uint8Array(start.buffer), ...parts];
}

function header(tag: number, vr: string, size: number): Uint8Array<ArrayBuffer> {
  const isLong = LONG.includes(vr);
  const view = new DataView(new ArrayBuffer(isLong ? 12 : 8));
  writeTag(view, 0, tag);
  view.setUint8(4, vr.charCodeAt(0));
  view.setUint8(5, vr.charCodeAt(1));
  if (isLong) view.setUint32(8, size, true);
  else view.setUint16(6, size, true);
  return new Uint8Array(view.buffer);
}

function writeTag(view: DataView, at: number, tag: number): void {
  view.setUint16(at, tag >>> 16, true);
  view.setUint16(at + 2, tag & 0xffff, true);
}

/** Return the bytes of a value. Their number is even. */
function encodeValue(vr: string, value: Value): Uint8Array<ArrayBuffer> {
  if (value instanceof Uint8Array) return padded(value, 0);
  if (typeof value === 'string') return padded(new TextEncoder().encode(value), vr === 'UI' ? 0 : 0x20);
  const size = NUMBER_BYTES[vr];
  if (size === undefined) throw new Error(`numbers for the value representation ${vr}`);
  const numbers = (value as readonly number[]).flatMap((n) => (vr === 'AT' ? [n >>> 16, n & 0xffff] : [n]));
  return new Uint8Array((size === 2 ? Uint16Array.from(numbers) : Uint32Array.from(numbers)).buffer);
}

function padded(bytes: Uint8Array<ArrayBuffer>, padding: number): Uint8Array<ArrayBuffer> {
  if (bytes.length % 2 === 0) return bytes;
  const result = new Uint8Array(bytes.length + 1).fill(padding, bytes.length);
  result.set(bytes);
  return result;
}

function sizeOf(parts: readonly Uint8Array[]): number {
  return parts.reduce((sum, part) => sum + part.length, 0);
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const result = new Uint8Array(sizeOf(parts));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

/** Return a new unique identifier: a random UUID as a decimal number (ITU-T X.667). */
export function newUid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID needs HTTPS
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return `2.25.${bytes.reduce((number, byte) => number * 256n + BigInt(byte), 0n)}`;
}

/** Write a number as a decimal string (DS), with as many digits as fit. */
export function decimal(value: number): string {
  for (let digits = 16; digits > 0; digits--) {
    const text = String(Number(value.toPrecision(digits)));
    if (text.length <= 16) return text;
  }
  throw new Error(`${value} is not a decimal string`);
}
