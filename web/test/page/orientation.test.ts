import { expect, test } from 'vitest';
import { affineOf } from '../../src/files/geometry';
import { letterBetween } from '../../src/page/orientation';

const CENTER = [10, 10, 10] as const;

test.each([
  [[11, 10, 10], 'R'],
  [[9, 10, 10], 'L'],
  [[10, 12, 10], 'A'],
  [[10, 8, 10], 'P'],
  [[10, 10, 13], 'S'],
  [[10, 10, 7], 'I'],
] as const)('voxels in RAS order: the direction to %j is %s', (to, letter) => {
  const affine = affineOf(
    [
      [1, 0, 0],
      [0, 1, 0],
      [0, 0, 1],
    ],
    [-80, 30, 5],
  );
  expect(letterBetween(affine, CENTER, to)).toBe(letter);
});

test('oblique voxels in another order have the letter of the nearest direction', () => {
  // i to the left and a little downwards, j from bottom to top, k from front to back.
  const affine = affineOf(
    [
      [-0.9, 0, -0.4],
      [-0.4, 0, 0.9],
      [0, -3, 0],
    ],
    [0, 0, 0],
  );
  expect(letterBetween(affine, CENTER, [11, 10, 10])).toBe('L');
  expect(letterBetween(affine, CENTER, [10, 11, 10])).toBe('S');
  expect(letterBetween(affine, CENTER, [10, 10, 11])).toBe('P');
  expect(letterBetween(affine, CENTER, [10, 10, 9])).toBe('A');
  // A voxel along k is three times as long as one along i.
  expect(letterBetween(affine, CENTER, [12, 10, 9])).toBe('A');
});
