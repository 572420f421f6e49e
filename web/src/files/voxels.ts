// Voxels as they are stored in files, and as the protocol sends them.
import { grouped } from './bytes';
import type { DType } from '../client/messages';
import { WIRE_ARRAYS } from '../client/voxels';
import { ImageFileError, type Voxels } from './volume';

/** The types of voxels in files. The protocol has no 64-bit types, so these become float32. */
export type StoredType = DType | 'float64' | 'int64' | 'uint64';

const ARRAYS = {
  ...WIRE_ARRAYS,
  float64: Float64Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
};

/** NIfTI's codes of the types. */
export const NIFTI_CODES: Readonly<Record<StoredType, number>> = {
  uint8: 2,
  int16: 4,
  int32: 8,
  float32: 16,
  float64: 64,
  int8: 256,
  uint16: 512,
  uint32: 768,
  int64: 1024,
  uint64: 1280,
};

/** Return the bytes of a voxel in a file. */
export function bytesOf(type: StoredType): number {
  return ARRAYS[type].BYTES_PER_ELEMENT;
}

/** Interpret bytes as voxels. Big-endian bytes are swapped in place. */
export function decode(content: Uint8Array<ArrayBuffer>, type: StoredType, littleEndian: boolean): Stored {
  if (!littleEndian) swap(content, bytesOf(type));
  return new ARRAYS[type](content.buffer, content.byteOffset, content.byteLength / bytesOf(type));
}

/** Voxels as a file has them. */
export type Stored = Voxels | Float64Array | BigInt64Array | BigUint64Array;

function swap(content: Uint8Array, size: number): void {
  if (size === 1) return;
  for (let start = 0; start < content.length; start += size) {
    for (let low = start, high = start + size - 1; low < high; low++, high--) {
      [content[low], content[high]] = [content[high], content[low]];
    }
  }
}

/** Return voxels in a type of the protocol, times a slope plus an intercept, computed in double precision. */
export function rescaled(stored: Stored, slope: number, intercept: number): Voxels {
  const plain = slope === 1 && intercept === 0;
  const isLong = stored instanceof BigInt64Array || stored instanceof BigUint64Array;
  if (plain && !isLong) return stored instanceof Float64Array ? new Float32Array(stored) : stored;
  const result = new Float32Array(stored.length);
  for (let index = 0; index < stored.length; index++) result[index] = Number(stored[index]) * slope + intercept;
  return result;
}

/**
 * Replace voxels that are NaN or infinite, in place, by the lowest finite value, and return a note with their number.
 * Throws an ImageFileError if no voxel is finite. `name`: of the image.
 */
export function replaceNonFinite(voxels: Voxels, name: string): string[] {
  if (!(voxels instanceof Float32Array)) return [];
  let lowest = Infinity;
  let count = 0;
  for (let index = 0; index < voxels.length; index++) {
    if (Number.isFinite(voxels[index])) lowest = Math.min(lowest, voxels[index]);
    else count++;
  }
  if (count === 0) return [];
  if (count === voxels.length) {
    throw new ImageFileError(`${name} has no finite voxel: all are NaN or infinite. Export it again.`);
  }
  for (let index = 0; index < voxels.length; index++) if (!Number.isFinite(voxels[index])) voxels[index] = lowest;
  return [`${grouped(count)} voxels are NaN or infinite. They were set to ${lowest}.`];
}
