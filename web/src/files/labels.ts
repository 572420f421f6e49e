// Label maps of segments, in the order of files: i is the fastest axis.
import { pauses } from './pauses';
import type { Shape } from './volume';

type Range = readonly [number, number];

/** Smallest box around a segment: the first and the last index along i, j and k. The last is -1 if it is empty. */
export type Extent = readonly [Range, Range, Range];

/** The label of each voxel: the voxel (i, j, k) is at i + ni * (j + nj * k). */
export type Labels = Uint8Array<ArrayBuffer> | Uint16Array<ArrayBuffer>;

/** Return the smallest box around a mask (in C order, of 0 and 1). */
export async function extentOf(mask: Uint8Array | undefined, [ni, nj, nk]: Shape): Promise<Extent> {
  const pause = pauses();
  let [i0, i1, j0, j1, k0, k1] = [ni, -1, nj, -1, nk, -1];
  for (let i = 0; mask !== undefined && i < ni; i++) {
    for (let j = 0; j < nj; j++) {
      const start = (i * nj + j) * nk;
      const row = mask.subarray(start, start + nk);
      const first = row.indexOf(1);
      if (first < 0) continue;
      [i0, i1] = [Math.min(i0, i), i];
      [j0, j1] = [Math.min(j0, j), Math.max(j1, j)];
      [k0, k1] = [Math.min(k0, first), Math.max(k1, row.lastIndexOf(1))];
    }
    await pause();
  }
  if (i1 < 0) [i0, j0, k0] = [0, 0, 0];
  return [
    [i0, i1],
    [j0, j1],
    [k0, k1],
  ];
}

/** Whether none of a mask's voxels has a label. */
export function isFree(labels: Labels, mask: Uint8Array | undefined, shape: Shape, extent: Extent): Promise<boolean> {
  return everyVoxel(mask, shape, extent, (index) => labels[index] === 0);
}

/** Set the labels of a mask's voxels. */
export async function paint(
  labels: Labels,
  mask: Uint8Array | undefined,
  shape: Shape,
  extent: Extent,
  label: number,
): Promise<void> {
  await everyVoxel(mask, shape, extent, (index) => {
    labels[index] = label;
    return true;
  });
}

/** Whether a test is true for all voxels of a mask. It gets their indices in the order of files. */
export async function everyVoxel(
  mask: Uint8Array | undefined,
  [ni, nj, nk]: Shape,
  [[i0, i1], [j0, j1], [k0, k1]]: Extent,
  test: (index: number) => boolean,
): Promise<boolean> {
  const pause = pauses();
  for (let i = i0; mask !== undefined && i <= i1; i++) {
    for (let j = j0; j <= j1; j++) {
      const start = (i * nj + j) * nk;
      for (let k = k0; k <= k1; k++) {
        if (mask[start + k] !== 0 && !test(i + ni * (j + nj * k))) return false;
      }
    }
    await pause();
  }
  return true;
}
