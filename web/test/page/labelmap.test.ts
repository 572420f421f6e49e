// Orders of voxels, compared with the directions of the axes.
import { describe, expect, test } from 'vitest';
import { Labelmap } from '../../src/page/labelmap';

const SHAPE = [4, 3, 2] as const;
const WHOLE = [
  [0, 4],
  [0, 3],
  [0, 2],
] as const;

/** All 48 orientations, as NiiVue numbers them. */
const ORIENTATIONS = [
  [1, 2, 3],
  [1, 3, 2],
  [2, 1, 3],
  [2, 3, 1],
  [3, 1, 2],
  [3, 2, 1],
].flatMap((order) => [...Array(8).keys()].map((bits) => order.map((axis, n) => (bits & (1 << n) ? -axis : axis))));

describe.each(ORIENTATIONS.map((each) => [each]))('orientation %j', (permRas) => {
  const labelmap = () => new Labelmap(SHAPE, permRas, new Uint8Array(24));

  test('each voxel of the file has its place in the bitmap', () => {
    const map = labelmap();
    const [nx, ny] = map.size;
    for (let i = 0; i < 4; i++)
      for (let j = 0; j < 3; j++)
        for (let k = 0; k < 2; k++) {
          const mask = new Uint8Array(24);
          mask[(i * 3 + j) * 2 + k] = 1;
          map.compose(WHOLE, [{ mask, label: 7 }]);
          const at = map.bitmap.indexOf(7);
          const ras = [at % nx, Math.floor(at / nx) % ny, Math.floor(at / (nx * ny))] as const;
          // By the definition of NiiVue's permRAS.
          const file = [i, j, k];
          expect(ras).toEqual(
            permRas.map((axis) => (axis > 0 ? file[axis - 1] : SHAPE[-axis - 1] - 1 - file[-axis - 1])),
          );
          expect(map.toRas([i, j, k])).toEqual([...ras]);
          expect(map.toFile(ras)).toEqual(file);
        }
  });

  test('the box to upload holds the voxels that were written, and no others', () => {
    const map = labelmap();
    const box = [
      [1, 3],
      [0, 2],
      [1, 2],
    ] as const;
    const uploaded = map.compose(box, [{ mask: new Uint8Array(24).fill(1), label: 1 }]);
    const [nx, ny] = map.size;
    const written = [...map.bitmap.keys()].filter((at) => map.bitmap[at] === 1);
    expect(written).toHaveLength(4);
    const inside = [...map.bitmap.keys()].filter((at) =>
      [at % nx, Math.floor(at / nx) % ny, Math.floor(at / (nx * ny))].every(
        (x, n) => uploaded[n][0] <= x && x < uploaded[n][1],
      ),
    );
    expect(written).toEqual(inside);
  });

  test('axes of the views are those of the file', () => {
    const map = labelmap();
    for (const n of [0, 1, 2]) expect(map.rasAxis(map.fileAxis(n))).toBe(n);
  });
});

test('the first layer is on top, and voxels of no layer are cleared', () => {
  const map = new Labelmap([3, 1, 1], [1, 2, 3], new Uint8Array(3).fill(9));
  map.compose(
    [
      [0, 3],
      [0, 1],
      [0, 1],
    ],
    [
      { mask: Uint8Array.of(1, 0, 0), label: 2 },
      { mask: Uint8Array.of(1, 1, 0), label: 1 },
    ],
  );
  expect([...map.bitmap]).toEqual([2, 1, 0]);
});
