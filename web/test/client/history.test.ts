/** Random histories of a segment against a model that keeps a whole mask for every step. */
import { describe, expect, it } from 'vitest';
import { wholeBox, type Index } from '../../src/client/geometry';
import { Segment } from '../../src/client/history';
import { makeJournal, segmentsOf } from '../../src/client/journal';
import { compose, NO_CHANGE, runsOf, type Runs } from '../../src/client/masks';
import type { StepRequest } from '../../src/client/messages';
import { Random } from './random';

const SEEDS = Array.from({ length: 60 }, (_, seed) => seed);
const POINT: StepRequest = {
  type: 'add_point',
  id: 1,
  segment: 'liver',
  point: [0, 0, 0],
  positive: true,
  run: true,
};
const LATER: StepRequest = { ...POINT, run: false };
const RUN: StepRequest = { type: 'run', id: 1, segment: 'liver' };
const RESET: StepRequest = { type: 'reset', id: 1, segment: 'liver' };

/** Masks after each step, and after each undone step, as texts. */
class Model {
  before: Uint8Array[] = [];
  after: Uint8Array[] = [];

  constructor(public mask: Uint8Array) {}

  append(mask: Uint8Array): void {
    this.before.push(this.mask);
    this.after = [];
    this.mask = mask;
  }

  undo(): boolean {
    const mask = this.before.pop();
    if (mask === undefined) return false;
    this.after.push(this.mask);
    this.mask = mask;
    return true;
  }

  redo(): boolean {
    const mask = this.after.pop();
    if (mask === undefined) return false;
    this.before.push(this.mask);
    this.mask = mask;
    return true;
  }
}

function runs(mask: Uint8Array, shape: Index): Runs {
  return runsOf(mask, wholeBox(shape), shape);
}

describe.each(SEEDS)('a random history, seed %i', (seed) => {
  const random = new Random(seed);
  const shape = random.shape();
  const segment = new Segment('liver', shape);
  const model = new Model(segment.mask.slice());

  /** Let the server change the mask, and return the change. */
  function change(to: Uint8Array): Runs {
    const flipped = compose(runs(segment.mask, shape), runs(to, shape));
    segment.flip(flipped);
    return flipped;
  }

  for (let n = 0; n < 20; n++) {
    const kind = random.pick(['append', 'append', 'undo', 'redo'] as const);
    if (kind === 'append') {
      const mask = random.mask(shape);
      segment.append(random.pick([POINT, LATER, RUN, RESET]), change(mask), 'deflate');
      model.append(mask);
    } else if (kind === 'undo' ? model.undo() : model.redo()) {
      segment.creditMove(kind === 'undo', change(model.mask), true, 'deflate');
    }
  }

  it('has the mask and the steps of the model', () => {
    expect(segment.mask).toEqual(model.mask);
    expect(segment.voxels).toBe(model.mask.reduce((sum, set) => sum + set, 0));
    expect([segment.steps.length, segment.undone.length]).toEqual([model.before.length, model.after.length]);
    expect(segment.composed()).toEqual(runs(model.mask, shape));
  });

  it('is the same from its journal', () => {
    const journal = structuredClone(makeJournal('image', shape, [segment]));
    expect(segmentsOf(journal, 'image', shape)).toEqual([segment]);
  });

  it('is one set_mask step, or none, when it is flattened', () => {
    const [flat] = segmentsOf(makeJournal('image', shape, [segment]), 'image', shape);
    flat.flatten('raw');
    expect(flat.isFlat).toBe(true);
    flat.replaceMask(flat.composed());
    expect(flat.mask).toEqual(segment.mask);
  });

  it('credits the last step with changes that were missed', () => {
    const [copy] = segmentsOf(makeJournal('image', shape, [segment]), 'image', shape);
    const mask = random.mask(shape);
    copy.replaceMask(runs(mask, shape));
    copy.reconcile('raw');
    if (copy.steps.length > 0) expect(copy.composed()).toEqual(runs(mask, shape));
    else expect(copy.composed()).toEqual(NO_CHANGE);
  });
});

describe('prompts that wait for a prediction', () => {
  it.each([
    [[LATER], true],
    [[LATER, POINT], false],
    [[LATER, RUN], false],
    [[LATER, RESET], false],
    [[POINT, LATER], true],
    [[], false],
  ])('%#', (requests, expected) => {
    const segment = new Segment('liver', [1, 1, 1]);
    for (const request of requests) segment.append(request, NO_CHANGE, 'raw');
    expect(segment.hasPendingPrompts).toBe(expected);
  });
});

describe('a journal', () => {
  const segment = new Segment('liver', [2, 2, 2]);
  segment.append(POINT, Uint32Array.of(0, 3), 'raw');
  const journal = makeJournal('image', [2, 2, 2], [segment]);
  const bad = expect.objectContaining({ code: 'bad_journal' }) as Error;

  it('is refused for another image', () => {
    expect(() => segmentsOf(journal, 'other', [2, 2, 2])).toThrow(bad);
    expect(() => segmentsOf(journal, 'image', [2, 2, 3])).toThrow(bad);
  });

  it('is refused if it is damaged', () => {
    const damaged = structuredClone(journal);
    damaged.segments[0].steps[0].change?.data.fill(9);
    expect(() => segmentsOf(damaged, 'image', [2, 2, 2])).toThrow(bad);
  });
});
