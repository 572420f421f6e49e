/** Random masks against computations on whole arrays. */
import { zlibSync } from 'fflate';
import { crc32 as zlibCrc32 } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { ClientError } from '../../src/client/errors';
import { boxShape, countVoxels, wholeBox, type Box, type Index } from '../../src/client/geometry';
import {
  boundingBox,
  checksum,
  compose,
  countRuns,
  flip,
  makeEmptyMask,
  makeMask,
  NO_CHANGE,
  readMask,
  runsOf,
} from '../../src/client/masks';
import { Random } from './random';

const SEEDS = Array.from({ length: 200 }, (_, seed) => seed);

/** Voxels of a volume, in C order. */
function voxelsOf(shape: Index): Index[] {
  const voxels: Index[] = [];
  for (let i = 0; i < shape[0]; i++) {
    for (let j = 0; j < shape[1]; j++) for (let k = 0; k < shape[2]; k++) voxels.push([i, j, k]);
  }
  return voxels;
}

function isIn(voxel: Index, box: Box): boolean {
  return voxel.every((at, axis) => box[axis][0] <= at && at < box[axis][1]);
}

/** The mask of a volume, empty outside of a box. */
function placed(inBox: Uint8Array, box: Box, shape: Index): Uint8Array {
  let at = 0;
  return Uint8Array.from(voxelsOf(shape), (voxel) => (isIn(voxel, box) ? inBox[at++] : 0));
}

function xor(a: Uint8Array, b: Uint8Array): Uint8Array {
  return a.map((set, at) => set ^ b[at]);
}

describe.each(SEEDS)('random masks, seed %i', (seed) => {
  const random = new Random(seed);
  const shape = random.shape();
  const [boxA, boxB] = [random.box(shape), random.box(shape)];
  const [maskA, maskB] = [random.mask(boxShape(boxA)), random.mask(boxShape(boxB))];
  const [a, b] = [runsOf(maskA, boxA, shape), runsOf(maskB, boxB, shape)];
  const [wholeA, wholeB] = [placed(maskA, boxA, shape), placed(maskB, boxB, shape)];

  it('are runs with gaps between them', () => {
    expect(a.every((at, n) => n === 0 || a[n - 1] < at)).toBe(true);
    expect(countRuns(a)).toBe(maskA.reduce((sum, set) => sum + set, 0));
  });

  it('are flipped in place, and counted', () => {
    const mask = wholeB.slice();
    const growth = flip(mask, a);
    expect(mask).toEqual(xor(wholeA, wholeB));
    expect(growth).toBe(countRuns(runsOf(mask, wholeBox(shape), shape)) - countRuns(b));
  });

  it('are composed to the exclusive or', () => {
    const expected = runsOf(xor(wholeA, wholeB), wholeBox(shape), shape);
    expect(compose(a, b)).toEqual(expected);
    expect(compose(b, a)).toEqual(expected);
    expect(compose(a, a)).toEqual(NO_CHANGE);
  });

  it('have a bounding box', () => {
    const set = voxelsOf(shape).filter((_, at) => wholeA[at] === 1);
    const expected =
      set.length === 0
        ? null
        : [0, 1, 2].map((axis) => {
            const positions = set.map((voxel) => voxel[axis]);
            return [Math.min(...positions), Math.max(...positions) + 1];
          });
    expect(boundingBox(a, shape)).toEqual(expected);
  });

  it('are read as they were packed', () => {
    if (a.length === 0) {
      expect(() => makeMask(a, shape, 'raw')).toThrow(RangeError);
      return;
    }
    for (const encoding of ['raw', 'deflate'] as const) {
      const packed = makeMask(a, shape, encoding);
      expect(packed.box).toEqual(boundingBox(a, shape));
      expect(readMask(packed, shape)).toEqual(a);
    }
  });

  it('have the checksum of their bits', () => {
    const inBox = wholeA.filter((_, at) => isIn(voxelsOf(shape)[at], boxB));
    const bytes = new Uint8Array(Math.ceil(inBox.length / 8));
    inBox.forEach((set, at) => (bytes[at >> 3] |= set << (at & 7)));
    expect(checksum(wholeA, boxB, shape)).toBe(zlibCrc32(bytes));
  });
});

describe('a mask from the wire', () => {
  const shape: Index = [4, 4, 4];
  const box: Box = [
    [1, 3],
    [0, 2],
    [2, 4],
  ];
  const mask = (runs: number[], changes = {}) => {
    const data = new Uint8Array(new Uint32Array(runs).buffer);
    return { box, runs: runs.length, encoding: 'raw' as const, data, ...changes };
  };

  it('may have runs of no voxel', () => {
    expect([...readMask(mask([0, 1, 0, 2, 5]), shape)]).toEqual([18, 20, 22, 23]);
  });

  it('may be empty', () => {
    expect(readMask(makeEmptyMask('deflate'), shape)).toEqual(NO_CHANGE);
  });

  it.each([
    ['too few voxels', mask([0, 1])],
    ['too many voxels', mask([0, 9])],
    ['a sum beyond 32 bits', mask([8, 2 ** 32 - 1, 1])],
    ['more runs than voxels', mask([0, 1, 1, 1, 1, 1, 1, 1, 1, 0])],
    ['another number of runs', mask([0, 8], { runs: 3 })],
    ['a box outside', mask([0, 8], { box: [...box.slice(0, 2), [3, 5]] })],
    ['a damaged stream', mask([0, 8], { encoding: 'deflate', data: zlibSync(new Uint8Array(8)).fill(7, 4, 8) })],
  ])('is refused with %s', (_, packed) => {
    expect(() => readMask(packed, shape)).toThrow(expect.objectContaining({ code: 'bad_message' }) as ClientError);
  });

  it('is as large as its box', () => {
    expect(countVoxels(boxShape(box))).toBe(8);
  });
});
