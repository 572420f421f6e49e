/**
 * Mean and standard deviation of an image, from sums of its slabs.
 *
 * As nnInteractive 2.6 normalizes: over the bounding box of the nonzero voxels, the deviation with n - 1. Voxels outside
 * of that box are zero and add nothing to a sum, so that one pass is enough.
 */
import { crc32 } from './crc32';
import { ClientError } from './errors';
import type { WireVoxels } from './voxels';

/** Mean and standard deviation (n - 1) of the bounding box of the nonzero voxels. */
export interface Statistics {
  readonly mean: number;
  readonly std: number;
}

/** Sums of one slab. Axes are those of the slab's array, the slowest first. */
export interface SlabSums {
  /** Sums of the voxels and of their squares; each is the sum of its two numbers, without a rounding error of its own. */
  readonly total: readonly [number, number];
  readonly squares: readonly [number, number];
  readonly low: number;
  readonly high: number;
  /** For each axis, the first and the last plane with a nonzero voxel; null: all voxels are zero. */
  readonly nonzero: readonly (readonly [number, number])[] | null;
  /** Index of the first voxel that is not finite, or null. */
  readonly notFinite: number | null;
  /** CRC-32 of the voxels. */
  readonly crc: number;
}

/** Return the sums of a slab of `counts` voxels along its axes, the slowest first. */
export function sumSlab(voxels: WireVoxels, counts: readonly [number, number, number]): SlabSums {
  const [planes, rows, length] = counts;
  const first = [planes, rows, length];
  const last = [-1, -1, -1];
  let [total, totalRest, squares, squaresRest] = [0, 0, 0, 0];
  let low = Infinity;
  let high = -Infinity;
  let at = 0;
  for (let a = 0; a < planes; a++) {
    for (let b = 0; b < rows; b++) {
      let firstNonzero = length;
      let lastNonzero = -1;
      for (let c = 0; c < length; c++) {
        const value = voxels[at++];
        if (value < low) low = value;
        if (value > high) high = value;
        if (value === 0) continue;
        if (lastNonzero < 0) firstNonzero = c;
        lastNonzero = c;
        // Knuth's sum of two numbers: the rest is the exact rounding error.
        const sum = total + value;
        const part = sum - total;
        totalRest += total - (sum - part) + (value - part);
        total = sum;
        const square = value * value;
        const sumOfSquares = squares + square;
        const squarePart = sumOfSquares - squares;
        squaresRest += squares - (sumOfSquares - squarePart) + (square - squarePart);
        squares = sumOfSquares;
      }
      if (lastNonzero < 0) continue;
      first[0] = Math.min(first[0], a);
      first[1] = Math.min(first[1], b);
      first[2] = Math.min(first[2], firstNonzero);
      last[0] = a;
      last[1] = Math.max(last[1], b);
      last[2] = Math.max(last[2], lastNonzero);
    }
  }
  return {
    total: [total, totalRest],
    squares: [squares, squaresRest],
    low,
    high,
    nonzero: last[0] < 0 ? null : first.map((start, axis) => [start, last[axis]] as const),
    notFinite: Number.isFinite(squares) ? null : voxels.findIndex((value) => !Number.isFinite(value)),
    crc: crc32(new Uint8Array(voxels.buffer, voxels.byteOffset, voxels.byteLength)),
  };
}

/** The largest whole number up to which float32 holds all. */
const MAX_EXACT = 2 ** 24;
/**
 * An image that float32 rounds must have more steps than these from its minimum to its maximum, and in a standard
 * deviation. With fewer, the rounding would show as bands.
 */
const MIN_STEPS = 64;
const MIN_STEPS_OF_STD = 4;
/** Range of the standard deviation on the wire: normal numbers of float32. */
const SMALLEST_STD = 2 ** -126;
const LARGEST_STD = (2 - 2 ** -23) * 2 ** 127;

/**
 * Return the statistics of an image from the sums of all its slabs, which follow each other along their slowest axis.
 *
 * `slabPlanes`: planes of each slab, except perhaps the last. `isWide`: whether the voxels were converted from doubles
 * or integers of 64 bits.
 *
 * @throws ClientError - `bad_image` for an image of (almost) one value.
 */
export function combine(slabs: readonly SlabSums[], slabPlanes: number, isWide: boolean): Statistics {
  const low = Math.min(...slabs.map((slab) => slab.low));
  const high = Math.max(...slabs.map((slab) => slab.high));
  const isRounded = isWide || Math.max(Math.abs(low), Math.abs(high)) > MAX_EXACT;
  const advice = isRounded ? ' If they differ by less than float32 can hold, subtract their mean first.' : '';
  if (low === high) {
    throw new ClientError(
      'bad_image',
      `Every voxel of the image is ${low}. There is nothing to segment in it. Open another image.${advice}`,
    );
  }
  const { mean, std } = exactStatistics(slabs, BigInt(countNonzeroBox(slabs, slabPlanes)));
  if (isRounded && isCoarse(low, high, std)) {
    throw new ClientError(
      'bad_image',
      `The voxels of the image go from ${low} to ${high}. In float32, in which the network computes, they would be ` +
        `rounded to steps of ${float32Step(low, high)}. Subtract their mean first.`,
    );
  }
  if (std < SMALLEST_STD || std > LARGEST_STD) {
    throw new ClientError(
      'bad_image',
      `The image cannot be normalized: inside the bounding box of its nonzero voxels, the standard deviation is ${std} ` +
        `(its voxels go from ${low} to ${high}). Open another image.${advice}`,
    );
  }
  return { mean, std };
}

function isCoarse(low: number, high: number, std: number): boolean {
  const step = float32Step(low, high);
  return high - low < MIN_STEPS * step || (0 < std && std < MIN_STEPS_OF_STD * step);
}

/** Distance of the numbers of float32 at the largest voxel. */
function float32Step(low: number, high: number): number {
  return 2 ** (Math.floor(Math.log2(Math.max(Math.abs(low), Math.abs(high)))) - 23);
}

/** Number of voxels of the bounding box of the nonzero voxels. */
function countNonzeroBox(slabs: readonly SlabSums[], slabPlanes: number): number {
  const first = [Infinity, Infinity, Infinity];
  const last = [-Infinity, -Infinity, -Infinity];
  slabs.forEach(({ nonzero }, n) => {
    nonzero?.forEach(([start, stop], axis) => {
      const offset = axis === 0 ? n * slabPlanes : 0;
      first[axis] = Math.min(first[axis], start + offset);
      last[axis] = Math.max(last[axis], stop + offset);
    });
  });
  return first.reduce((product, start, axis) => product * (last[axis] - start + 1), 1);
}

/** Mean and deviation of n voxels, computed with whole numbers, so that no digit is lost if the mean is large. */
function exactStatistics(slabs: readonly SlabSums[], n: bigint): Statistics {
  const sum = (numbers: readonly number[]): bigint => numbers.reduce((total, x) => total + toFixedPoint(x), 0n);
  const total = sum(slabs.flatMap((slab) => slab.total));
  const squares = sum(slabs.flatMap((slab) => slab.squares));
  // Of two factors in fixed point, a product has twice the places.
  const numerator = ((squares * n) << FIXED_POINT_PLACES) - total * total;
  const divisor = (n * (n > 1n ? n - 1n : 1n)) << (2n * FIXED_POINT_PLACES);
  const variance = numerator > 0n ? quotient(numerator, divisor) : 0;
  return { mean: quotient(total, n << FIXED_POINT_PLACES), std: Math.sqrt(variance) };
}

/** Binary places of a fixed point number that holds every double exactly. */
const FIXED_POINT_PLACES = 1074n;

function toFixedPoint(x: number): bigint {
  const bits = new DataView(new Float64Array([x]).buffer).getBigUint64(0, true);
  const exponent = (bits >> 52n) & 0x7ffn;
  const fraction = bits & 0xfffffffffffffn;
  const magnitude = exponent === 0n ? fraction : (fraction | (1n << 52n)) << (exponent - 1n);
  return x < 0 ? -magnitude : magnitude;
}

/** Return the quotient of two whole numbers, rounded to the nearest double. */
function quotient(numerator: bigint, divisor: bigint): number {
  const sign = numerator < 0n ? -1 : 1;
  const magnitude = numerator < 0n ? -numerator : numerator;
  // Eighty bits of the quotient, more than a double has.
  const places = 80 + bitLength(divisor) - bitLength(magnitude);
  const scaled = places >= 0 ? (magnitude << BigInt(places)) / divisor : magnitude / (divisor << BigInt(-places));
  return sign * Number(scaled) * 2 ** -places;
}

function bitLength(value: bigint): number {
  return value.toString(2).length;
}
