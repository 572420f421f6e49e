import type { DType, Index } from './messages';
import type { Packer } from './packing';

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

/** Mean and standard deviation (n - 1) of the bounding box of the nonzero voxels. */
export interface Statistics {
  readonly mean: number;
  readonly std: number;
}

/** A volume of the user. Its voxels are read while they are sent, so the array must not change meanwhile. */
export class ImageSource {
  /** Type in which the voxels travel. */
  readonly dtype: DType = 'int16';

  /**
   * @param label - Name of the image for the user, such as that of its file. It is not sent.
   * @param shape - Voxels along i, j, k.
   * @param voxels - All voxels.
   * @param strides - Distance in `voxels` between neighbors along i, j, k. A NIfTI file has [1, I, I * J].
   * @throws ClientError - `bad_image` or `too_large`.
   */
  constructor(
    readonly label: string,
    readonly shape: Index,
    readonly voxels: Voxels,
    readonly strides: Index,
  ) {}

  /**
   * Compute statistics and name, in slabs of a few milliseconds on this thread. `setImage` needs them.
   *
   * @throws ClientError - `bad_image` for voxels that are not finite, or all (almost) equal.
   */
  async prepare(packer: Packer, onProgress?: (fraction: number) => void): Promise<void> {
    await Promise.reject(new Error(`not yet: ${String(packer)} ${String(onProgress)}`));
  }

  /** Name on the wire: a fingerprint of the content, the same after a reload. Throws before `prepare`. */
  get name(): string {
    throw new Error('not yet');
  }

  /** Statistics of the voxels. Throws before `prepare`. */
  get statistics(): Statistics {
    throw new Error('not yet');
  }
}
