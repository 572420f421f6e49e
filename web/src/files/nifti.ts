// NIfTI-1 and NIfTI-2 files, and pairs of .hdr and .img, as nibabel reads them.
import { countVoxels } from '../client/geometry';
import { wireType } from '../client/voxels';
import { noteOnSurplus, type OnProgress, readExactly, readStart, type Source } from './bytes';
import { affineOf, type Axes, betweenRasAndLps, gridDistance, scaled, straightened } from './geometry';
import { type Affine, ImageFileError, type NiftiForms, type Shape, shapeOf, type Vector, type Volume } from './volume';
import { bytesOf, decode, NIFTI_CODES, replaceNonFinite, rescaled, type StoredType } from './voxels';

/** The size of a NIfTI-2 header, which is the larger one. */
export const NIFTI_HEADER_BYTES = 540;
/** Distance between the positions of qform and sform, in voxels, from which a viewer shows a different place. */
const FORM_TOLERANCE = 0.5;
/** The sum of the squares of a quaternion may exceed 1 by so much, because it is stored in single precision. */
const QUATERNION_TOLERANCE = 3 * 2 ** -23;

/** The types of voxels by their codes. */
const TYPES = new Map(Object.entries(NIFTI_CODES).map(([type, code]) => [code, type as StoredType]));
const OTHER_TYPES: Readonly<Partial<Record<number, string>>> = {
  1: 'single bits',
  32: 'complex numbers',
  128: 'colors (RGB)',
  1536: '128-bit numbers',
  1792: 'complex numbers',
  2048: 'complex numbers',
  2304: 'colors (RGBA)',
};
const MM_PER_UNIT: Readonly<Partial<Record<number, number>>> = { 1: 1000, 3: 0.001 }; // meters and micrometers

interface Header {
  readonly littleEndian: boolean;
  /** Whether the voxels are in another file (.img). */
  readonly isPair: boolean;
  readonly dimensions: readonly number[];
  readonly type: number;
  readonly offset: number;
  readonly slope: number;
  readonly intercept: number;
  readonly forms: NiftiForms;
}

/** Whether the first bytes of a file are a NIfTI header. */
export function isNifti(start: Uint8Array): boolean {
  return version(start) !== undefined;
}

/** Whether the voxels of a NIfTI header are in another file. */
export function isNiftiPair(start: Uint8Array): boolean {
  return magic(start, version(start) ?? 1).startsWith('ni');
}

function version(start: Uint8Array): 1 | 2 | undefined {
  if (/^n[+i]1\0/.test(magic(start, 1))) return 1;
  return /^n[+i]2\0/.test(magic(start, 2)) ? 2 : undefined;
}

function magic(start: Uint8Array, of: 1 | 2): string {
  return String.fromCharCode(...(of === 1 ? start.subarray(344, 348) : start.subarray(4, 8)));
}

/** Read a NIfTI image. `voxelFile`: the .img of a .hdr. Rejects with an ImageFileError. */
export async function readNifti(file: File, voxelFile: File | undefined, onProgress: OnProgress): Promise<Volume> {
  const { start, gzip } = await readStart(file, NIFTI_HEADER_BYTES);
  const header = parse(start, file.name);
  const shape = shapeOf(file.name, header.dimensions);
  const type = TYPES.get(header.type);
  if (type === undefined) throw unusable(file.name, header.type);
  const source: Source = header.isPair
    ? await voxelSource(file.name, voxelFile, header.offset)
    : { name: file.name, blob: file, packing: gzip ? 'gzip' : 'none', skipped: header.offset };
  const size = countVoxels(shape) * bytesOf(type);
  const { content, surplus } = await readExactly(source, size, onProgress);
  const { affine, notes } = place(header.forms, shape, file.name);
  const voxels = rescaled(decode(content, type, header.littleEndian), header.slope, header.intercept);
  return {
    name: file.name,
    shape,
    voxels,
    dtype: wireType(voxels),
    affine,
    source: 'nifti',
    notes: [...notes, ...noteOnSurplus(surplus), ...replaceNonFinite(voxels, file.name)],
    nifti: header.forms,
  };
}

function unusable(name: string, type: number): ImageFileError {
  const what = OTHER_TYPES[type] ?? `the unknown type ${type}`;
  return new ImageFileError(`${name} has voxels of ${what}. Expected real numbers. Convert it, or export it again.`);
}

async function voxelSource(name: string, file: File | undefined, skipped: number): Promise<Source> {
  if (file === undefined) {
    throw new ImageFileError(`${name} has no voxels: its .img file is missing. Choose both files.`);
  }
  const { gzip } = await readStart(file, 2);
  return { name: file.name, blob: file, packing: gzip ? 'gzip' : 'none', skipped };
}

function parse(start: Uint8Array, name: string): Header {
  const second = version(start) === 2;
  if (start.length < (second ? 540 : 348)) {
    throw new ImageFileError(`${name} is incomplete: it ends within its header. Copy or export it again.`);
  }
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength);
  const littleEndian = [348, 540].includes(view.getInt32(0, true));
  const int16 = (at: number) => view.getInt16(at, littleEndian);
  const int32 = (at: number) => view.getInt32(at, littleEndian);
  const int64 = (at: number) => Number(view.getBigInt64(at, littleEndian));
  const real = (at: number) => (second ? view.getFloat64(at, littleEndian) : view.getFloat32(at, littleEndian));
  const reals = (at: number, count: number) =>
    Array.from({ length: count }, (_, index) => real(at + index * (second ? 8 : 4)));
  const count = second ? int64(16) : int16(40);
  if (count < 1 || count > 7) {
    throw new ImageFileError(`${name} is damaged: it has ${count} dimensions. Copy or export it again.`);
  }
  const [slope, intercept] = scaling(second ? reals(176, 2) : reals(112, 2), name);
  const isPair = isNiftiPair(start);
  const offset = second ? int64(168) : real(108);
  return {
    littleEndian,
    isPair,
    dimensions: Array.from({ length: count }, (_, n) => (second ? int64(24 + 8 * n) : int16(42 + 2 * n))),
    type: int16(second ? 12 : 70),
    offset: isPair || offset > 0 ? Math.trunc(offset) : second ? 544 : 352,
    slope,
    intercept,
    forms: {
      qformCode: second ? int32(344) : int16(252),
      sformCode: second ? int32(348) : int16(254),
      qform: reals(second ? 352 : 256, 6),
      sform: reals(second ? 400 : 280, 12),
      pixdim: reals(second ? 104 : 76, 4),
      units: second ? int32(500) : view.getUint8(123),
    },
  };
}

/** Return slope and intercept: 1 and 0 unless the file has a slope. */
function scaling([slope, intercept]: readonly number[], name: string): [number, number] {
  if (slope === 0 || !Number.isFinite(slope)) return [1, 0];
  if (!Number.isFinite(intercept)) {
    throw new ImageFileError(`${name} is damaged: its scl_inter is ${intercept}. Copy or export it again.`);
  }
  return [slope, intercept];
}

/** Return the affine to RAS millimeters: that of the sform, or without one of the qform, as nibabel; and notes. */
function place(forms: NiftiForms, shape: Shape, name: string): { affine: Affine; notes: string[] } {
  const perUnit = MM_PER_UNIT[forms.units & 7] ?? 1;
  const inMillimeters = (affine: Affine): Affine =>
    affine.map((row, n) =>
      n < 3 ? ([row[0] * perUnit, row[1] * perUnit, row[2] * perUnit, row[3] * perUnit] as const) : row,
    );
  const qform = forms.qformCode !== 0 ? inMillimeters(affineOfQform(forms, name)) : undefined;
  const sform = forms.sformCode !== 0 ? inMillimeters(affineOfSform(forms)) : undefined;
  const given = sform ?? qform;
  if (given === undefined) {
    const [i, j, k] = distances(forms);
    const unplaced = betweenRasAndLps(
      affineOf(
        [
          [i, 0, 0],
          [0, j, 0],
          [0, 0, k],
        ],
        [0, 0, 0],
      ),
    ); // as ITK and 3D Slicer
    const note =
      'The file does not say how the image is oriented (qform and sform are not set). Left and right, and positions ' +
      'in millimeters, are a guess.';
    return { affine: straightened(inMillimeters(unplaced), shape, name), notes: [note] };
  }
  const affine = straightened(given, shape, name);
  const apart = qform !== undefined && sform !== undefined ? gridDistance(sform, qform, shape) : 0;
  if (apart <= FORM_TOLERANCE) return { affine, notes: [] };
  const note =
    `The file has two orientations, up to ${apart.toFixed(0)} voxels apart (qform and sform). The sform is used; ` +
    'other programs may show the image elsewhere.';
  return { affine, notes: [note] };
}

function affineOfSform({ sform }: NiftiForms): Affine {
  const row = (n: number) => [sform[n], sform[n + 1], sform[n + 2], sform[n + 3]] as const;
  return [row(0), row(4), row(8), [0, 0, 0, 1]];
}

function affineOfQform(forms: NiftiForms, name: string): Affine {
  const [b, c, d, x, y, z] = forms.qform;
  const rest = 1 - (b * b + c * c + d * d);
  if (!(rest >= -QUATERNION_TOLERANCE)) {
    throw new ImageFileError(
      `${name} is damaged: its quaternion (${b}, ${c}, ${d}) is no rotation. Copy or export it again.`,
    );
  }
  const a = Math.sqrt(rest < QUATERNION_TOLERANCE ? 0 : rest);
  const n = 2 / (a * a + b * b + c * c + d * d);
  const axes: Axes = [
    [1 - n * (c * c + d * d), n * (b * c + a * d), n * (b * d - a * c)],
    [n * (b * c - a * d), 1 - n * (b * b + d * d), n * (c * d + a * b)],
    [n * (b * d + a * c), n * (c * d - a * b), 1 - n * (b * b + c * c)],
  ];
  const [di, dj, dk] = distances(forms);
  const sign = forms.pixdim[0] === -1 ? -1 : 1;
  return affineOf([scaled(axes[0], di), scaled(axes[1], dj), scaled(axes[2], dk * sign)], [x, y, z]);
}

/** Return the distances of voxels, in the unit of the file. Zero stands for 1, and a sign means nothing. */
function distances({ pixdim }: NiftiForms): Vector {
  return [Math.abs(pixdim[1]) || 1, Math.abs(pixdim[2]) || 1, Math.abs(pixdim[3]) || 1];
}
