/** Arrays of voxels: their types on the wire, and copies of boxes. */
import type { Index } from './geometry';
import type { DType } from './messages';

/** Arrays whose voxels can be sent. Doubles and integers of 64 bits travel as float32. */
export type Voxels =
  | Int8Array
  | Uint8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | Float32Array
  | Float64Array
  | BigInt64Array
  | BigUint64Array;

/** Arrays in a type of the wire. */
export type WireVoxels =
  | Int8Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>
  | Int16Array<ArrayBuffer>
  | Uint16Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>
  | Float32Array<ArrayBuffer>;

/** The arrays of the types of the wire. */
export const WIRE_ARRAYS = {
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  float32: Float32Array,
};

/** Return the type in which voxels travel. */
export function wireType(voxels: Voxels): DType {
  if (voxels instanceof Int8Array) return 'int8';
  if (voxels instanceof Uint8Array || voxels instanceof Uint8ClampedArray) return 'uint8';
  if (voxels instanceof Int16Array) return 'int16';
  if (voxels instanceof Uint16Array) return 'uint16';
  if (voxels instanceof Int32Array) return 'int32';
  if (voxels instanceof Uint32Array) return 'uint32';
  return 'float32';
}

/** Return the bytes of a voxel on the wire. */
export function bytesPerVoxel(dtype: DType): number {
  return WIRE_ARRAYS[dtype].BYTES_PER_ELEMENT;
}

/** Return a view of bytes, or a new array, in a type of the wire. */
export function wireArray(dtype: DType, from: number | ArrayBuffer): WireVoxels {
  const Type = WIRE_ARRAYS[dtype];
  return typeof from === 'number' ? new Type(from) : new Type(from);
}

/** Three loops from the slowest to the fastest axis: counts, and the distances between neighbors. */
export interface Loops {
  readonly start: number;
  readonly counts: Index;
  /** Distances in the array that is read, and in the copy. */
  readonly strides: Index;
  readonly outStrides: Index;
}

/** Copy voxels into `out`, in its type. */
export function copyVoxels(voxels: Voxels, { start, counts, strides, outStrides }: Loops, out: WireVoxels): void {
  const isRow = strides[2] === 1 && outStrides[2] === 1;
  for (let a = 0; a < counts[0]; a++) {
    for (let b = 0; b < counts[1]; b++) {
      const from = start + a * strides[0] + b * strides[1];
      const to = a * outStrides[0] + b * outStrides[1];
      if (voxels instanceof BigInt64Array || voxels instanceof BigUint64Array) {
        for (let c = 0; c < counts[2]; c++) out[to + c * outStrides[2]] = Number(voxels[from + c * strides[2]]);
      } else if (isRow) {
        out.set(voxels.subarray(from, from + counts[2]), to);
      } else {
        for (let c = 0; c < counts[2]; c++) out[to + c * outStrides[2]] = voxels[from + c * strides[2]];
      }
    }
  }
}
