// Strokes and outlines, compared with definitions that test each voxel on its own.
import { describe, expect, test } from 'vitest';
import { boxBetween, brushStroke, filledOutline, voxelAt } from '../../src/page/rasterize';
import type { Axis, MarkedVoxels, Point } from '../../src/page/rasterize';

const SHAPE = [30, 26, 22] as const;

/** Indices of the marked voxels in the volume. */
function voxelsOf(marked: MarkedVoxels | null): string[] {
  if (marked === null) return [];
  const { box, mask } = marked;
  const voxels: string[] = [];
  let at = 0;
  for (let i = box[0][0]; i < box[0][1]; i++)
    for (let j = box[1][0]; j < box[1][1]; j++)
      for (let k = box[2][0]; k < box[2][1]; k++) if (mask[at++] === 1) voxels.push([i, j, k].join());
  expect(at).toBe(mask.length);
  return voxels;
}

function where(isMarked: (voxel: [number, number, number]) => boolean): string[] {
  const voxels: string[] = [];
  for (let i = 0; i < SHAPE[0]; i++)
    for (let j = 0; j < SHAPE[1]; j++)
      for (let k = 0; k < SHAPE[2]; k++) if (isMarked([i, j, k])) voxels.push([i, j, k].join());
  return voxels;
}

/** Place in-plane coordinates in a slice. */
function inSlice(axis: Axis, slice: number, path: readonly (readonly [number, number])[]): Point[] {
  return path.map(([u, v]) => (axis === 0 ? [slice, u, v] : axis === 1 ? [u, slice, v] : [u, v, slice]));
}

const random = (() => {
  let state = 1;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
})();

function randomPath(points: number): [number, number][] {
  return Array.from({ length: points }, () => [random() * 20, random() * 20]);
}

describe('strokes', () => {
  test.each([1, 3, 5])('a stroke along a row is exactly %i voxels wide', (width) => {
    const marked = brushStroke(
      SHAPE,
      2,
      inSlice(2, 7, [
        [10, 12],
        [18, 12],
      ]),
      [width, width, 1],
    );
    const rows = new Set(voxelsOf(marked).map((voxel) => voxel.split(',')[1]));
    expect(rows.size).toBe(width);
    expect(voxelsOf(marked).every((voxel) => voxel.endsWith(',7'))).toBe(true);
  });

  test('a stroke of even width covers the voxels on both sides of the pointer', () => {
    const marked = brushStroke(
      SHAPE,
      2,
      inSlice(2, 0, [
        [10, 12.4],
        [18, 12.4],
      ]),
      [2, 2, 2],
    );
    expect(new Set(voxelsOf(marked).map((voxel) => voxel.split(',')[1]))).toEqual(new Set(['12', '13']));
  });

  test.each([0, 1, 2] as const)('voxels nearer to the path than the radius are set, across axis %i', (axis) => {
    const thickness: Point = [5, 3, 7];
    const [u, v] = [0, 1, 2].filter((n) => n !== axis);
    const path = randomPath(6).map(([a, b]): [number, number] => [Math.round(a), Math.round(b)]);
    const distance = (voxel: number[], a: readonly number[], b: readonly number[]): number => {
      // In units of the radii, the stroke is a circle.
      const to = (p: readonly number[]) => [p[0] / (thickness[u] / 2), p[1] / (thickness[v] / 2)];
      const [p, q, r] = [to([voxel[u], voxel[v]]), to(a), to(b)];
      let nearest = Infinity;
      for (let n = 0; n <= 400; n++) {
        const t = n / 400;
        nearest = Math.min(nearest, Math.hypot(q[0] + t * (r[0] - q[0]) - p[0], q[1] + t * (r[1] - q[1]) - p[1]));
      }
      return nearest;
    };
    const away = (voxel: number[]) => Math.min(...path.slice(1).map((b, n) => distance(voxel, path[n], b)));
    const voxels = new Set(voxelsOf(brushStroke(SHAPE, axis, inSlice(axis, 9, path), thickness)));
    const border = 1e-3; // the distance is sampled
    const inside = where((at) => at[axis] === 9 && away(at) < 1 - border);
    const outside = where((at) => at[axis] !== 9 || away(at) > 1 + border);
    expect(inside.length).toBeGreaterThan(50);
    expect(inside.filter((voxel) => !voxels.has(voxel))).toEqual([]);
    expect(outside.filter((voxel) => voxels.has(voxel))).toEqual([]);
  });

  test('a click with the brush marks a disk, and one outside the volume nothing', () => {
    expect(voxelsOf(brushStroke(SHAPE, 0, [[4, 10, 10]], [3, 3, 3]))).toHaveLength(9);
    expect(brushStroke(SHAPE, 0, [[4, 60, 10]], [3, 3, 3])).toBeNull();
    expect(brushStroke(SHAPE, 0, [[40, 10, 10]], [3, 3, 3])).toBeNull();
  });

  test('the part of a stroke outside the volume is left out', () => {
    const voxels = voxelsOf(
      brushStroke(
        SHAPE,
        2,
        inSlice(2, 3, [
          [-5, 0],
          [2, 0],
        ]),
        [3, 3, 1],
      ),
    );
    expect(voxels).toEqual(where(([i, j, k]) => k === 3 && j <= 1 && i <= 3));
  });
});

describe('outlines', () => {
  /** Winding number by the sum of angles. */
  function winding(path: readonly (readonly number[])[], u: number, v: number): number {
    let angle = 0;
    path.forEach(([u0, v0], n) => {
      const [u1, v1] = path[(n + 1) % path.length];
      const turn = Math.atan2(v1 - v, u1 - u) - Math.atan2(v0 - v, u0 - u);
      angle += turn - 2 * Math.PI * Math.round(turn / (2 * Math.PI));
    });
    return Math.round(angle / (2 * Math.PI));
  }

  test.each([0, 1, 2] as const)('voxels that the outline winds around are inside, across axis %i', (axis) => {
    for (let round = 0; round < 10; round++) {
      const path = randomPath(7);
      const [u, v] = [0, 1, 2].filter((n) => n !== axis);
      const expected = where((at) => at[axis] === 5 && winding(path, at[u], at[v]) !== 0);
      expect(voxelsOf(filledOutline(SHAPE, axis, inSlice(axis, 5, path)))).toEqual(expected);
    }
  });

  test('an outline without a voxel center inside is nothing', () => {
    const path = inSlice(1, 5, [
      [3.1, 3.1],
      [3.9, 3.1],
      [3.9, 3.9],
    ]);
    expect(filledOutline(SHAPE, 1, path)).toBeNull();
  });
});

describe('boxes', () => {
  test('hold both corners, in any order, and are one voxel thick in a slice', () => {
    expect(boxBetween(SHAPE, [9.6, 2.4, 5], [3.2, 8.5, 5])).toEqual([
      [3, 11],
      [2, 10],
      [5, 6],
    ]);
  });

  test('are clipped to the volume', () => {
    expect(boxBetween(SHAPE, [-4, 2, 5], [3, 200, 5])).toEqual([
      [0, 4],
      [2, 26],
      [5, 6],
    ]);
    expect(boxBetween(SHAPE, [-4, 2, 5], [-1, 9, 5])).toBeNull();
  });
});

test('a position belongs to the voxel whose center is nearest', () => {
  expect(voxelAt([2.49, 2.5, -0.5])).toEqual([2, 3, 0]);
});
