/** Random numbers and masks with a seed, so that a failure can be repeated. */
import { countVoxels, type Box, type Index } from '../../src/client/geometry';

/** A generator of random numbers (mulberry32). */
export class Random {
  constructor(private seed: number) {}

  /** A number from 0 to 1, without 1. */
  next(): number {
    this.seed = (this.seed + 0x6d2b79f5) | 0;
    let t = Math.imul(this.seed ^ (this.seed >>> 15), this.seed | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** A whole number from `low` to `high`, both included. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1));
  }

  pick<T>(items: readonly T[]): T {
    return items[this.integer(0, items.length - 1)];
  }

  shape(): Index {
    return [this.integer(1, 9), this.integer(1, 9), this.integer(1, 19)];
  }

  /** A box inside a volume. */
  box(shape: Index): Box {
    const range = (n: number): [number, number] => {
      const start = this.integer(0, n - 1);
      return [start, this.integer(start + 1, n)];
    };
    return [range(shape[0]), range(shape[1]), range(shape[2])];
  }

  /** A mask of a share of set voxels, which is sometimes 0 or 1. */
  mask(shape: Index): Uint8Array {
    const share = this.pick([0, 0.02, 0.5, 0.9, 1]);
    return Uint8Array.from({ length: countVoxels(shape) }, () => Number(this.next() < share));
  }
}
