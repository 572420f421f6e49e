/** Letters of the patient's directions at the edges of the slices, as in radiology: R for right, and so on. */

import { axesOf } from '../files/geometry';
import type { Affine } from '../files/volume';
import type { Point } from './rasterize';
import type { SliceView } from './viewer';

/** Letters of the positive and the negative direction of each axis in millimeters: right, anterior, superior. */
const LETTERS = [
  ['R', 'L'],
  ['A', 'P'],
  ['S', 'I'],
] as const;
/** Distance between a letter and its edge in pixels. */
const MARGIN = 10;

/** Return the letter of the direction from one position to another, both in voxels. */
export function letterBetween(affine: Affine, from: Point, to: Point): string {
  const millimeters = [0, 1, 2].map((row) =>
    axesOf(affine).reduce((sum, axis, n) => sum + axis[row] * (to[n] - from[n]), 0),
  );
  const sizes = millimeters.map(Math.abs);
  const largest = sizes.indexOf(Math.max(...sizes));
  return LETTERS[largest][millimeters[largest] > 0 ? 0 : 1];
}

/** Draw the letters of the four directions into a slice view. */
export function drawLetters(context: CanvasRenderingContext2D, view: SliceView, affine: Affine): void {
  const [left, top, width, height] = view.frame;
  const [x, y] = [left + width / 2, top + height / 2];
  const edges = [
    [left + MARGIN, y],
    [left + width - MARGIN, y],
    [x, top + MARGIN],
    [x, top + height - MARGIN],
  ] as const;
  context.save();
  Object.assign(context, { font: '600 13px system-ui, sans-serif', textAlign: 'center', textBaseline: 'middle' });
  // A dark outline separates the letter from bright voxels, and from the crosshair below it.
  Object.assign(context, { lineWidth: 5, lineJoin: 'round', strokeStyle: 'rgb(0 0 0 / 85%)', fillStyle: '#c9d0d9' });
  for (const [letterX, letterY] of edges) {
    const letter = letterBetween(affine, view.toVoxel(x, y), view.toVoxel(letterX, letterY));
    context.strokeText(letter, letterX, letterY);
    context.fillText(letter, letterX, letterY);
  }
  context.restore();
}
