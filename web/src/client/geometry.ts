/** Voxels and boxes. All lengths are in voxels, along the axes (i, j, k) of the array. */
import { ClientError } from './errors';

/** Voxel or extent along (i, j, k). */
export type Index = readonly [number, number, number];
/** End-exclusive range of one axis. */
export type Range = readonly [number, number];
/** End-exclusive box [[i0, i1], [j0, j1], [k0, k1]]. */
export type Box = readonly [Range, Range, Range];

/** Return the box of all voxels of a volume. */
export function wholeBox(shape: Index): Box {
  return [
    [0, shape[0]],
    [0, shape[1]],
    [0, shape[2]],
  ];
}

/** Return the number of voxels of a shape. */
export function countVoxels(shape: Index): number {
  return shape[0] * shape[1] * shape[2];
}

/** Return the extent of a box. */
export function boxShape([i, j, k]: Box): Index {
  return [i[1] - i[0], j[1] - j[0], k[1] - k[0]];
}

/** Return whether a box is not empty, has whole numbers and is inside a volume. */
export function isInside(box: Box, shape: Index): boolean {
  return box.every(
    ([start, stop], axis) =>
      Number.isInteger(start) && Number.isInteger(stop) && 0 <= start && start < stop && stop <= shape[axis],
  );
}

/** Return the part of a box inside a volume, or null if there is none. */
export function clip(box: Box, shape: Index): Box | null {
  const range = (axis: 0 | 1 | 2): Range => [Math.max(0, box[axis][0]), Math.min(shape[axis], box[axis][1])];
  const clipped: Box = [range(0), range(1), range(2)];
  return clipped.every(([start, stop]) => start < stop) ? clipped : null;
}

/** Return the voxel in the middle of a box. */
export function middle([i, j, k]: Box): Index {
  const half = ([start, stop]: Range): number => Math.floor((start + stop - 1) / 2);
  return [half(i), half(j), half(k)];
}

/** Return the box of a size with a voxel in its middle, which may exceed the volume. */
export function boxAround(voxel: Index, size: Index): Box {
  const side = (axis: 0 | 1 | 2): Range => {
    const start = voxel[axis] - Math.floor(size[axis] / 2);
    return [start, start + size[axis]];
  };
  return [side(0), side(1), side(2)];
}

/** Throw a ClientError `out_of_bounds` unless a box is inside a volume. */
export function checkBox(box: Box, shape: Index): void {
  if (!isInside(box, shape)) {
    throw new ClientError(
      'out_of_bounds',
      `The box ${JSON.stringify(box)} is not inside the volume of ${shape.join(' × ')} voxels, or is empty. ` +
        'Draw it inside the image.',
    );
  }
}

/** Return whether a voxel is inside a volume. */
export function isVoxelInside(voxel: Index, shape: Index): boolean {
  return voxel.every((at, axis) => 0 <= at && at < shape[axis]);
}

/** Return the voxel nearest to a point. Throws a ClientError `out_of_bounds` if it is outside of the volume. */
export function voxelInside(point: Index, shape: Index): Index {
  const voxel: Index = [Math.round(point[0]), Math.round(point[1]), Math.round(point[2])];
  if (!isVoxelInside(voxel, shape)) {
    throw new ClientError(
      'out_of_bounds',
      `The point (${point.join(', ')}) is outside the volume of ${shape.join(' × ')} voxels. Click inside the image.`,
    );
  }
  return voxel;
}
