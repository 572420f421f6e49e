// The pixels of DICOM files.
import {
  createJPEGBasicOffsetTable,
  type DataSet,
  type Element,
  readEncapsulatedImageFrame,
  readEncapsulatedPixelDataFromFragments,
} from 'dicom-parser';
import { readBytes, reason } from './bytes';
import { loadDecoder } from './codecs';
import { type DicomHeader, parseDicomFile, PIXEL_DATA, pixelsOf } from './dicomHeader';
import { framesOf } from './dicomSeries';
import { BIG_ENDIAN, DEFLATED, NATIVE } from './transferSyntaxes';
import { ImageFileError } from './volume';
import { decode, type StoredType } from './voxels';

/** The pixels of a frame, row after row. */
export type Pixels = Int32Array | Uint32Array | Float32Array | Float64Array;

/** Returns the pixels of a frame of a file, from 0, as they are stored: without slope and intercept. */
export type ReadFrame = (index: number) => Promise<Pixels>;

/** Open the pixels of a file. Rejects with an ImageFileError, and so does the function that is returned. */
export async function openPixels(header: DicomHeader): Promise<ReadFrame> {
  const { file, pixels } = header;
  if (pixels === undefined) throw unreadable(file.name, 'there are none');
  const read = NATIVE.includes(header.transferSyntax)
    ? await openNative(header, pixels)
    : await openEncapsulated(header);
  return async (index) => {
    try {
      return await read(index);
    } catch (e) {
      throw e instanceof ImageFileError ? e : unreadable(file.name, e);
    }
  };
}

function unreadable(name: string, error: unknown): ImageFileError {
  return new ImageFileError(`The pixels of ${name} cannot be read (${reason(error)}). Copy or export it again.`);
}

async function openNative(header: DicomHeader, element: Element): Promise<ReadFrame> {
  const { file, transferSyntax } = header;
  const count = pixelsPerFrame(header);
  const type = storedType(header, element);
  const size = count * (type === 'float64' ? 8 : bitsAllocated(header) / 8);
  if (element.length < size * framesOf(header)) throw unreadable(file.name, 'there are too few bytes');
  // Offsets in a deflated file are those of the inflated one.
  const content: Blob =
    transferSyntax === DEFLATED
      ? new Blob([parseDicomFile(await readBytes(file, file.name)).byteArray as Uint8Array<ArrayBuffer>])
      : file;
  return async (index) => {
    const start = element.dataOffset + index * size;
    const bytes = await readBytes(content.slice(start, start + size), file.name);
    if (bytes.length < size) throw unreadable(file.name, 'the file ends too early');
    return widened(bytes as Uint8Array<ArrayBuffer>, type, transferSyntax !== BIG_ENDIAN, header);
  };
}

async function openEncapsulated(header: DicomHeader): Promise<ReadFrame> {
  const { file, transferSyntax } = header;
  const size = { pixels: pixelsPerFrame(header), bitsAllocated: bitsAllocated(header) };
  const decodeFrame = await loadDecoder(transferSyntax, size, file.name);
  const { dataSet, element } = await parseWhole(file);
  // The parser's errors are not those of a file that cannot be read.
  return (index) => {
    const decoded = decodeFrame(encodedFrame(dataSet, element, index, framesOf(header)));
    const bytes = decoded.length / size.pixels;
    if (bytes !== 1 && bytes !== 2 && bytes !== 4) throw unreadable(file.name, `${bytes} bytes per pixel`);
    const type = bytes === 1 ? 'uint8' : bytes === 2 ? 'uint16' : 'uint32';
    return Promise.resolve(widened(decoded as Uint8Array<ArrayBuffer>, type, true, header));
  };
}

async function parseWhole(file: File): Promise<{ dataSet: DataSet; element: Element }> {
  const bytes = await readBytes(file, file.name);
  try {
    const dataSet = parseDicomFile(bytes);
    const element = pixelsOf(dataSet);
    if (element?.fragments === undefined) throw new Error('they are not in fragments');
    return { dataSet, element };
  } catch (e) {
    throw unreadable(file.name, e);
  }
}

/** Return the bytes of a frame, which can be in several fragments. */
function encodedFrame(dataSet: DataSet, element: Element, index: number, frames: number): Uint8Array {
  const fragments = element.fragments ?? [];
  if (frames === 1) return readEncapsulatedPixelDataFromFragments(dataSet, element, 0, fragments.length);
  if (fragments.length === frames) return readEncapsulatedPixelDataFromFragments(dataSet, element, index, 1);
  const offsets = element.basicOffsetTable?.length
    ? element.basicOffsetTable
    : createJPEGBasicOffsetTable(dataSet, element);
  return readEncapsulatedImageFrame(dataSet, element, index, offsets);
}

function pixelsPerFrame({ attributes }: DicomHeader): number {
  return (attributes.number('Rows') ?? 0) * (attributes.number('Columns') ?? 0);
}

function bitsAllocated({ attributes, file }: DicomHeader): number {
  const bits = attributes.number('BitsAllocated') ?? 0;
  if (![8, 16, 32, 64].includes(bits)) throw unreadable(file.name, `${bits} bits allocated`);
  return bits;
}

function storedType(header: DicomHeader, element: Element): StoredType {
  if (element.tag !== PIXEL_DATA) return bitsAllocated(header) === 64 ? 'float64' : 'float32';
  return `uint${bitsAllocated(header)}` as StoredType;
}

/** Return stored pixels as 32-bit integers or real numbers, without the bits that are not used. */
function widened(
  bytes: Uint8Array<ArrayBuffer>,
  type: StoredType,
  littleEndian: boolean,
  { attributes, file }: DicomHeader,
): Pixels {
  const stored = decode(bytes, type, littleEndian);
  if (stored instanceof Float32Array || stored instanceof Float64Array) return stored;
  if (stored instanceof BigInt64Array || stored instanceof BigUint64Array) {
    throw unreadable(file.name, '64 bits for an integer');
  }
  const unused = 32 - Math.min(32, attributes.number('BitsStored') ?? 32, 8 * stored.BYTES_PER_ELEMENT);
  const isSigned = attributes.number('PixelRepresentation') === 1;
  const result = isSigned ? new Int32Array(stored.length) : new Uint32Array(stored.length);
  for (let index = 0; index < stored.length; index++) {
    const shifted = stored[index] << unused;
    result[index] = isSigned ? shifted >> unused : shifted >>> unused;
  }
  return result;
}
