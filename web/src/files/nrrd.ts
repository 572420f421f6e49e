// NRRD files, attached (.nrrd) and detached (.nhdr), placed in space as ITK does.
import type { OnProgress } from './bytes';
import { type Described, namedFiles, readDescribed, readHeader, severalComponents, trimmed } from './detached';
import { affineOf, type Axes } from './geometry';
import { ImageFileError, type Vector, type Volume } from './volume';
import type { StoredType } from './voxels';

const TYPES: Readonly<Record<string, StoredType | undefined>> = Object.fromEntries(
  (
    [
      ['int8', 'signed char|int8|int8_t'],
      ['uint8', 'uchar|unsigned char|uint8|uint8_t'],
      ['int16', 'short|short int|signed short|signed short int|int16|int16_t'],
      ['uint16', 'ushort|unsigned short|unsigned short int|uint16|uint16_t'],
      ['int32', 'int|signed int|int32|int32_t'],
      ['uint32', 'uint|unsigned int|uint32|uint32_t'],
      ['int64', 'longlong|long long|long long int|signed long long|signed long long int|int64|int64_t'],
      ['uint64', 'ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t'],
      ['float32', 'float'],
      ['float64', 'double'],
    ] as const
  ).flatMap(([type, names]) => names.split('|').map((name) => [name, type] as const)),
);

/** Factors from the directions of a space to LPS. ITK takes every other space for LPS. */
const FLIPS: readonly (readonly [RegExp, Vector])[] = [
  [/^(right-anterior-superior|ras)/, [-1, -1, 1]],
  [/^(left-anterior-superior|las)/, [1, -1, 1]],
];

/** Read a NRRD image. `files`: those among which a detached header finds its voxels. Rejects with an ImageFileError. */
export async function readNrrd(file: File, files: readonly File[], onProgress: OnProgress): Promise<Volume> {
  return readDescribed(describe(file, await readHeader(file), files), onProgress);
}

function describe(file: File, text: string, files: readonly File[]): Described {
  const end = /\r?\n\r?\n/.exec(text);
  const header = end === null ? text : text.slice(0, end.index);
  const field = (name: string) => fieldOf(header, name);
  const sizes = numbers(field('sizes'));
  const spatial = spatialAxes(file.name, field('kinds'), field('space directions'), sizes);
  const detached = field('data ?file');
  if (detached === '' && end === null) {
    throw new ImageFileError(`${file.name} is incomplete: it ends within its header. Copy or export it again.`);
  }
  const typeName = field('type').toLowerCase().replace(/\s+/g, ' ');
  const type = TYPES[typeName];
  const packing = packingOf(file.name, field('encoding').toLowerCase());
  const endian = field('endian').toLowerCase();
  if (packing !== 'text' && endian === '' && type !== 'int8' && type !== 'uint8') {
    throw new ImageFileError(`${file.name} is damaged: its header does not give the byte order. Export it again.`);
  }
  if (Number(field('line ?skip')) > 0) {
    throw new ImageFileError(`${file.name} skips lines before its voxels. Convert it, for example with 3D Slicer.`);
  }
  return {
    file,
    source: 'nrrd',
    sizes: spatial.map((axis) => sizes[axis]),
    type,
    typeName,
    littleEndian: endian !== 'big',
    lps: placeOf(file.name, field, spatial),
    data:
      detached === ''
        ? file.slice((end?.index ?? 0) + (end?.[0].length ?? 0))
        : namedFiles(file.name, dataFiles(detached, header), files),
    packing,
    skipped: Number(field('byte ?skip')),
  };
}

/** Return the value of a field, or nothing. */
function fieldOf(header: string, name: string): string {
  return trimmed(new RegExp(`^[ \\t]*${name}[ \\t]*:(?!=)([^\\r\\n]*)`, 'im').exec(header)?.[1] ?? '');
}

function numbers(text: string): number[] {
  return text.split(/\s+/).filter(Boolean).map(Number);
}

function packingOf(name: string, encoding: string): Described['packing'] {
  if (encoding === 'raw') return 'none';
  if (['gz', 'gzip'].includes(encoding)) return 'packed';
  if (['txt', 'text', 'ascii'].includes(encoding)) return 'text';
  throw new ImageFileError(
    `${name} has voxels with the encoding "${encoding}". Expected raw, gzip or text. Convert it, for example with 3D ` +
      'Slicer.',
  );
}

function dataFiles(value: string, header: string): string[] {
  if (!value.toUpperCase().startsWith('LIST')) return [value];
  return header
    .slice(header.toUpperCase().indexOf(value.toUpperCase()) + value.length)
    .split(/\r?\n/)
    .filter(Boolean);
}

/** Return the axes of space. Those of components and lists are left out, if they have one element. */
function spatialAxes(name: string, kinds: string, directions: string, sizes: readonly number[]): number[] {
  const kind = kinds.toLowerCase().split(/\s+/);
  const vectors = directions.match(/none|\([^)]*\)/gi) ?? [];
  const isSpatial = (axis: number) =>
    vectors.length > 0
      ? vectors.at(axis)?.startsWith('(') === true
      : kinds === '' || ['domain', 'space', '???', 'none'].includes(kind[axis]);
  const others = sizes.filter((size, axis) => !isSpatial(axis) && size > 1);
  if (others.length > 0)
    throw severalComponents(
      name,
      others.reduce((product, size) => product * size),
    );
  return [...sizes.keys()].filter(isSpatial);
}

function placeOf(name: string, field: (name: string) => string, spatial: readonly number[]): Described['lps'] {
  const vectors = (field('space directions').match(/none|\([^)]*\)/gi) ?? []).filter((v) => v.startsWith('('));
  if (vectors.length > 0) {
    const flips = FLIPS.find(([pattern]) => pattern.test(field('space').toLowerCase()))?.[1] ?? [1, 1, 1];
    const [i, j, k] = vectors.map((text) => vectorOf(name, text, flips));
    const origin = field('space origin');
    return affineOf([i, j, k], origin === '' ? [0, 0, 0] : vectorOf(name, origin, flips));
  }
  if (numbers(field('axis ?mins')).some(Number.isFinite)) {
    throw new ImageFileError(`${name} is placed by "axis mins". Convert it, for example with 3D Slicer.`);
  }
  const spacings = numbers(field('spacings'));
  const [di, dj, dk] = spatial.map((axis) => (Number.isFinite(spacings[axis]) ? spacings[axis] : 1));
  const axes: Axes = [
    [di, 0, 0],
    [0, dj, 0],
    [0, 0, dk],
  ];
  return affineOf(axes, [0, 0, 0]);
}

function vectorOf(name: string, text: string, flips: Vector): Vector {
  const values = text
    .replace(/[()\s]/g, '')
    .split(',')
    .map(Number);
  if (values.length !== 3 || !values.every(Number.isFinite)) {
    throw new ImageFileError(`${name} has the vector ${text}. Expected three numbers. Correct the header.`);
  }
  return [values[0] * flips[0], values[1] * flips[1], values[2] * flips[2]];
}
