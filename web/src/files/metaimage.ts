// MetaImage files, attached (.mha) and detached (.mhd), placed in space as ITK does.
import type { OnProgress } from './bytes';
import { type Described, namedFiles, readDescribed, readHeader, severalComponents, trimmed } from './detached';
import { affineOf, scaled } from './geometry';
import { ImageFileError, type Vector, type Volume } from './volume';
import type { StoredType } from './voxels';

const TYPES: Readonly<Record<string, StoredType | undefined>> = {
  MET_CHAR: 'int8',
  MET_UCHAR: 'uint8',
  MET_SHORT: 'int16',
  MET_USHORT: 'uint16',
  MET_INT: 'int32',
  MET_UINT: 'uint32',
  MET_LONG: 'int32',
  MET_ULONG: 'uint32',
  MET_LONG_LONG: 'int64',
  MET_ULONG_LONG: 'uint64',
  MET_FLOAT: 'float32',
  MET_DOUBLE: 'float64',
};

/** Read a MetaImage. `files`: those among which a detached header finds its voxels. Rejects with an ImageFileError. */
export async function readMetaImage(file: File, files: readonly File[], onProgress: OnProgress): Promise<Volume> {
  return readDescribed(describe(file, await readHeader(file), files), onProgress);
}

function describe(file: File, text: string, files: readonly File[]): Described {
  const last = /^[ \t]*ElementDataFile[ \t]*=([^\r\n]*)(\r?\n|$)/m.exec(text);
  if (last === null) {
    throw new ImageFileError(`${file.name} is damaged: its header does not end with ElementDataFile. Export it again.`);
  }
  const header = text.slice(0, last.index);
  const field = (...names: string[]) => names.map((name) => fieldOf(header, name)).find(Boolean) ?? '';
  const isTrue = (...names: string[]) => field(...names).toLowerCase() === 'true';
  const channels = Number(field('ElementNumberOfChannels') || 1);
  if (channels > 1) throw severalComponents(file.name, channels);
  const dimensions = Number(field('NDims'));
  const end = last.index + last[0].length;
  const dataFile = trimmed(last[1]);
  const isLocal = dataFile.toUpperCase() === 'LOCAL';
  return {
    file,
    source: 'mha',
    sizes: numbers(field('DimSize')).slice(0, dimensions),
    type: TYPES[field('ElementType')],
    typeName: field('ElementType'),
    littleEndian: !isTrue('BinaryDataByteOrderMSB', 'ElementByteOrderMSB'),
    lps: placeOf(file.name, field, dimensions),
    data: isLocal ? file.slice(end) : namedFiles(file.name, dataFiles(dataFile, text.slice(end)), files),
    packing: isTrue('CompressedData') ? 'packed' : field('BinaryData').toLowerCase() === 'false' ? 'text' : 'none',
    skipped: Number(field('HeaderSize')),
  };
}

/** Return the value of a field, or nothing. */
function fieldOf(header: string, name: string): string {
  return trimmed(new RegExp(`^[ \\t]*${name}[ \\t]*=([^\\r\\n]*)`, 'm').exec(header)?.[1] ?? '');
}

function numbers(text: string): number[] {
  return text.split(/\s+/).filter(Boolean).map(Number);
}

function dataFiles(value: string, following: string): string[] {
  return value.toUpperCase().startsWith('LIST') ? following.split(/\r?\n/).filter(Boolean) : [value];
}

function placeOf(name: string, field: (...names: string[]) => string, dimensions: number): Described['lps'] {
  const spacing = numbers(field('ElementSpacing', 'ElementSize') || '1 '.repeat(dimensions));
  const offset = numbers(field('Offset', 'Position', 'Origin') || '0 '.repeat(dimensions));
  const matrix = numbers(field('TransformMatrix', 'Rotation', 'Orientation') || identity(dimensions));
  if (spacing.length < dimensions || offset.length < dimensions || matrix.length < dimensions ** 2) {
    throw new ImageFileError(`${name} is damaged: its header places only some of its axes. Export it again.`);
  }
  const axis = (n: number): Vector => {
    const at = n * dimensions;
    return scaled([matrix[at], matrix[at + 1], matrix[at + 2]], spacing[n]);
  };
  return affineOf([axis(0), axis(1), axis(2)], [offset[0], offset[1], offset[2]]);
}

function identity(dimensions: number): string {
  return Array.from({ length: dimensions ** 2 }, (_, n) => (n % (dimensions + 1) === 0 ? '1' : '0')).join(' ');
}
