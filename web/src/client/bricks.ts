/** The bricks of an image: cubes of 32^3 voxels, smaller at the far borders, numbered in C order of their grid. */
import { ClientError } from './errors';
import { clip, countVoxels, type Box, type Index, type Range } from './geometry';

/** Edge of a brick in voxels. */
export const BRICK = 32;
/** Limit of an image's voxels. */
export const MAX_VOXELS = 2 ** 30;
/** Limit of an image's bricks. */
export const MAX_BRICKS = 2 ** 20;
/** Limit of an image's bricks of which the server has the base layer, but not the enhancement layer. */
export const MAX_BASE_LAYERS = 1024;

/** The bricks of a volume, or cubes of another edge. */
export class Grid {
  /** Bricks along each axis. */
  readonly counts: Index;
  /** Number of bricks. */
  readonly length: number;

  constructor(
    readonly shape: Index,
    readonly edge: number = BRICK,
  ) {
    const count = (n: number): number => Math.ceil(n / edge);
    this.counts = [count(shape[0]), count(shape[1]), count(shape[2])];
    this.length = countVoxels(this.counts);
  }

  /** Return the box of a brick. */
  box(index: number): Box {
    const [, nj, nk] = this.counts;
    const range = (at: number, n: number): Range => [this.edge * at, Math.min(this.edge * (at + 1), n)];
    return [
      range(Math.floor(index / (nj * nk)), this.shape[0]),
      range(Math.floor(index / nk) % nj, this.shape[1]),
      range(index % nk, this.shape[2]),
    ];
  }

  /** Return the bricks that intersect a box. Parts of the box outside of the volume are ignored. */
  within(box: Box): number[] {
    const clipped = clip(box, this.shape);
    if (clipped === null) return [];
    const [, nj, nk] = this.counts;
    const [i, j, k] = clipped.map(([start, stop]) => range(Math.floor(start / this.edge), Math.ceil(stop / this.edge)));
    return i.flatMap((a) => j.flatMap((b) => k.map((c) => (a * nj + b) * nk + c)));
  }

  /** Return the distance of a brick's closest voxel from `focus`, in voxels. */
  distance(index: number, focus: Index): number {
    const box = this.box(index);
    return Math.hypot(...box.map(([start, stop], axis) => Math.max(0, start - focus[axis], focus[axis] - stop + 1)));
  }

  /**
   * Sort all bricks by the distance of their closest voxel to `focus`, and equal ones in grid order. Those of `before`
   * come before all others.
   */
  nearestFirst(focus: Index, before: readonly number[]): Uint32Array {
    const [di, dj, dk] = [this.distances(focus, 0), this.distances(focus, 1), this.distances(focus, 2)];
    // One number holds the sort key and the index, because typed arrays sort numbers fastest. Distances in 1/8 voxel
    // are below 2^30 even in the thinnest image, indices below 2^20.
    const keys = new Float64Array(this.length);
    let index = 0;
    for (const a of di) {
      for (const b of dj) {
        for (const c of dk) {
          keys[index] = Math.round(8 * Math.sqrt(a + b + c)) * MAX_BRICKS + index;
          index++;
        }
      }
    }
    for (const first of before) keys[first] -= 2 ** 51;
    return Uint32Array.from(keys.sort(), (key) => ((key % MAX_BRICKS) + MAX_BRICKS) % MAX_BRICKS);
  }

  /** Squared distances of the bricks to `focus` along one axis. */
  private distances(focus: Index, axis: 0 | 1 | 2): number[] {
    return range(0, this.counts[axis]).map((at) => {
      const low = at * this.edge;
      const high = Math.min(low + this.edge, this.shape[axis]) - 1;
      return Math.max(0, low - focus[axis], focus[axis] - high) ** 2;
    });
  }
}

function range(start: number, stop: number): number[] {
  return Array.from({ length: stop - start }, (_, n) => start + n);
}

/**
 * Return the bricks that bits name: one bit per brick, the first in the lowest bit of the first byte.
 *
 * @throws ClientError - `bad_message` for the bits of another grid.
 */
export function bricksOfBits(bits: Uint8Array, grid: Grid): number[] {
  if (bits.length !== Math.ceil(grid.length / 8)) {
    throw new ClientError(
      'bad_message',
      `The server named the bricks of another image: ${bits.length} bytes for ${grid.length} bricks.`,
    );
  }
  return range(0, grid.length).filter((index) => (bits[index >> 3] >> (index & 7)) & 1);
}

/** Throw a ClientError `too_large` for a shape with too many voxels or bricks. */
export function checkSize(shape: Index): void {
  const size = shape.join(' × ');
  if (countVoxels(shape) > MAX_VOXELS) {
    throw new ClientError(
      'too_large',
      `The image of ${size} voxels is too large: at most ${MAX_VOXELS} voxels are accepted. Use a crop around the object.`,
    );
  }
  const { length } = new Grid(shape);
  if (length > MAX_BRICKS) {
    throw new ClientError(
      'too_large',
      `The image of ${size} voxels is too thin: it has ${length} bricks of ${BRICK}³ voxels, and at most ${MAX_BRICKS} ` +
        'are accepted. Use a crop around the object.',
    );
  }
}
