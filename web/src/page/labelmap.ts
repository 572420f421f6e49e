/** The bitmap of labels that NiiVue draws, in its order of voxels. */

import type { Box, Index, Range } from '../client/geometry';
import type { Axis, Point } from './rasterize';

/** A visible segment: `mask` has 1 at (i * nj + j) * nk + k for a voxel (i, j, k) of the segment. */
export interface Layer {
  mask: Uint8Array;
  label: number;
}

/**
 * A label for each voxel, with the first of NiiVue's axes (right, anterior, superior) changing fastest.
 *
 * @param shape - of the volume, along (i, j, k)
 * @param permRas - for each of NiiVue's axes the number of the file's axis, from 1, negative if it is flipped
 * @param bitmap - the labels, 0 for voxels of no segment
 */
export class Labelmap {
  /** Number of voxels along NiiVue's axes. */
  readonly size: readonly [number, number, number];
  private readonly strides: [number, number, number] = [0, 0, 0];
  private readonly first: number;

  constructor(
    readonly shape: Index,
    private readonly permRas: readonly number[],
    readonly bitmap: Uint8Array,
  ) {
    const length = (n: number) => shape[Math.abs(permRas[n]) - 1];
    this.size = [length(0), length(1), length(2)];
    const strides = [1, this.size[0], this.size[0] * this.size[1]];
    let first = 0;
    permRas.forEach((axis, n) => {
      this.strides[Math.abs(axis) - 1] = Math.sign(axis) * strides[n];
      if (axis < 0) first += (this.size[n] - 1) * strides[n];
    });
    this.first = first;
  }

  /** The file's axis that is NiiVue's axis n. */
  fileAxis(n: number): Axis {
    return (Math.abs(this.permRas[n]) - 1) as Axis;
  }

  /** NiiVue's axis that is the file's axis. */
  rasAxis(axis: Axis): Axis {
    return this.permRas.findIndex((file) => Math.abs(file) === axis + 1) as Axis;
  }

  /** Convert a position in NiiVue's voxels to one in the file's. */
  toFile(ras: Point): Point {
    const file: [number, number, number] = [0, 0, 0];
    this.permRas.forEach((axis, n) => {
      file[Math.abs(axis) - 1] = axis > 0 ? ras[n] : this.size[n] - 1 - ras[n];
    });
    return file;
  }

  /** Convert a position in the file's voxels to one in NiiVue's. */
  toRas(file: Point): Point {
    return this.permRas.map((axis, n) => {
      const at = file[Math.abs(axis) - 1];
      return axis > 0 ? at : this.size[n] - 1 - at;
    }) as unknown as Point;
  }

  /** Write the labels of a box: that of the first layer that has the voxel. Return the box along NiiVue's axes. */
  compose(box: Box, layers: readonly Layer[]): [Range, Range, Range] {
    const [, nj, nk] = this.shape;
    const [si, sj, sk] = this.strides;
    for (let i = box[0][0]; i < box[0][1]; i++) {
      for (let j = box[1][0]; j < box[1][1]; j++) {
        let at = (i * nj + j) * nk + box[2][0];
        let to = this.first + i * si + j * sj + box[2][0] * sk;
        for (const end = at + box[2][1] - box[2][0]; at < end; at++, to += sk) {
          let label = 0;
          for (const layer of layers) {
            if (layer.mask[at] === 1) {
              label = layer.label;
              break;
            }
          }
          this.bitmap[to] = label;
        }
      }
    }
    return this.toRasBox(box);
  }

  private toRasBox(box: Box): [Range, Range, Range] {
    const a = this.toRas([box[0][0], box[1][0], box[2][0]]);
    const b = this.toRas([box[0][1] - 1, box[1][1] - 1, box[2][1] - 1]);
    return a.map((at, n): Range => [Math.min(at, b[n]), Math.max(at, b[n]) + 1]) as [Range, Range, Range];
  }
}
