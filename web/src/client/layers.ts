/**
 * Layers of bricks: a base layer, from which a preview can be computed, and an enhancement layer that makes it exact.
 *
 * The base layer has a brick's voxels without their lowest bits, which are mostly noise and take most of the bytes. The
 * enhancement layer has these bits. As unsigned integers of the same size, the voxels are the bitwise or of both layers.
 */
import type { DType, Layer } from './messages';
import { bytesPerVoxel } from './voxels';

/** Precision of most base layers in standard deviations of the image, about the noise of a CT. */
const STEP_OF_STD = 1 / 16;
/**
 * Precision matters most near the prompt, where there are few bricks. A base layer has `FINER_BITS` more than the above
 * at the prompt, and one less from each of these distances on, in voxels.
 */
const FINER_BITS = 3;
const COARSER_FROM = [8, 16, 32, 64];
/** Fewer bits are not worth a layer of their own. */
const MIN_BITS = 2;
/** Bits of the mantissa of a float32. */
const MANTISSA_BITS = 23;

/** Unsigned integers of the size of a voxel. */
const UNSIGNED = {
  int8: Uint8Array,
  uint8: Uint8Array,
  int16: Uint16Array,
  uint16: Uint16Array,
  int32: Uint32Array,
  uint32: Uint32Array,
  float32: Uint32Array,
};

/** A layer of voxels of `dtype`. `lowBits`: the number of bits in the enhancement layer. */
export interface Split {
  readonly layer: Exclude<Layer, 'whole'>;
  readonly lowBits: number;
  readonly dtype: DType;
}

/**
 * Return how many bits of a voxel an enhancement layer may have: of an integer all but one, of a float those of the
 * mantissa.
 */
export function maxLowBits(dtype: DType): number {
  return dtype === 'float32' ? MANTISSA_BITS : 8 * bytesPerVoxel(dtype) - 1;
}

/**
 * Return how many bits the enhancement layer of an image should have; 0: the image is better sent without layers.
 *
 * `dtype`: of the voxels on the wire. `std`: their standard deviation, which must be positive. `largest`: their largest
 * absolute value, which must be positive.
 */
export function chooseLowBits(dtype: DType, std: number, largest: number): number {
  let bits = Math.round(Math.log2(std * STEP_OF_STD));
  // The lowest bit of a float counts in proportion to the float.
  if (dtype === 'float32') bits -= Math.floor(Math.log2(largest)) - MANTISSA_BITS;
  return bits < MIN_BITS ? 0 : Math.min(bits, maxLowBits(dtype));
}

/**
 * Return how many bits the enhancement layer of a brick should have.
 *
 * `imageBits`: from `chooseLowBits`. `distance`: of the brick from the prompt, in voxels.
 */
export function lowBitsOfBrick(imageBits: number, distance: number, dtype: DType): number {
  const bits = imageBits - FINER_BITS + COARSER_FROM.filter((from) => distance >= from).length;
  return Math.min(Math.max(1, bits), maxLowBits(dtype));
}

/** Clear all bits of voxels that are not in the layer. */
export function keepLayer(voxels: ArrayBuffer, { layer, lowBits, dtype }: Split): void {
  const low = 2 ** lowBits - 1;
  const mask = layer === 'enhancement' ? low : ~low;
  const bits = new UNSIGNED[dtype](voxels);
  for (let at = 0; at < bits.length; at++) bits[at] &= mask;
}
