// Marks of prompts, which follow the history of a segment.
import { describe, expect, test } from 'vitest';
import type { Step, StepRequest } from '../../src/client/messages';
import { marksOf, outlinesOf } from '../../src/page/marks';
import type { MarkedVoxels } from '../../src/page/rasterize';

const step = (request: StepRequest): Step => ({ request, change: null });
const about = { id: 1, segment: 'segment-1' };
const point = (i: number, positive = true): Step =>
  step({ ...about, type: 'add_point', point: [i, 0, 0], positive, run: true });
const STROKES: MarkedVoxels = {
  box: [
    [4, 6],
    [5, 8],
    [9, 10],
  ],
  mask: Uint8Array.of(1, 1, 1, 0, 0, 1),
};
const mask = { box: STROKES.box, runs: 2, encoding: 'raw', data: new Uint8Array(8) } as const;
const unpack = (): MarkedVoxels => STROKES;

describe('marks', () => {
  test('show each prompt where it was given', () => {
    const box = [
      [1, 2],
      [3, 6],
      [4, 8],
    ] as const;
    const steps = [
      point(1, false),
      step({ ...about, type: 'add_bbox', box, positive: true, run: true }),
      step({ ...about, type: 'add_lasso', mask, positive: true, run: false }),
      step({ ...about, type: 'run' }),
    ];
    expect(marksOf(steps, unpack)).toEqual([
      { kind: 'point', positive: false, point: [1, 0, 0] },
      { kind: 'box', positive: true, box },
      { kind: 'strokes', positive: true, strokes: STROKES },
    ]);
  });

  test('of prompts that no longer count are gone', () => {
    const reset = step({ ...about, type: 'reset' });
    const replaced = step({ ...about, type: 'set_mask', mask, flip: false, run: false });
    expect(marksOf([point(1), reset], unpack)).toEqual([]);
    expect(marksOf([point(1), replaced, point(2)], unpack)).toHaveLength(1);
  });

  test('unpack each prompt once', () => {
    let unpacked = 0;
    const count = (): MarkedVoxels => {
      unpacked += 1;
      return STROKES;
    };
    const steps = [step({ ...about, type: 'add_scribble', mask, positive: true, run: true })];
    marksOf(steps, count);
    marksOf([...steps, point(3)], count);
    expect(unpacked).toBe(1);
  });
});

describe('outlines of strokes', () => {
  test('go once around the marked voxels', () => {
    const outlines = outlinesOf(STROKES, 2);
    // A row of three voxels and one more beside it: a perimeter of ten edges.
    expect(outlines.flat()).toHaveLength(10);
    const edges = new Set<string>();
    for (const outline of outlines) {
      outline.forEach((corner, n) => {
        const next = outline[(n + 1) % outline.length];
        expect(Math.abs(corner[0] - next[0]) + Math.abs(corner[1] - next[1])).toBe(1);
        expect(corner[2]).toBe(9);
        edges.add([corner, next].map(String).sort().join(' '));
      });
    }
    expect(edges.size).toBe(10);
  });

  test('surround holes, too', () => {
    const ring = Uint8Array.of(1, 1, 1, 1, 0, 1, 1, 1, 1);
    const box = [
      [7, 8],
      [0, 3],
      [0, 3],
    ] as const;
    expect(outlinesOf({ box, mask: ring }, 0).map((outline) => outline.length)).toEqual([12, 4]);
  });
});
