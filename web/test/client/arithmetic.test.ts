/** The arithmetic of the conformance suite: values that others computed. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { pack, unpack } from '../../src/client/arrays';
import { bricksOfBits, Grid } from '../../src/client/bricks';
import { wholeBox, type Box, type Index } from '../../src/client/geometry';
import { ImageSource, type Voxels } from '../../src/client/imageSource';
import { chooseLowBits, keepLayer } from '../../src/client/layers';
import { checksum, compose, countRuns, flip, makeMask, NO_CHANGE, readMask, runsOf } from '../../src/client/masks';
import type { DType, Encoding } from '../../src/client/messages';
import { createPacker } from '../../src/client/packing';
import { wireArray } from '../../src/client/voxels';
import { FOLDER } from './conformance';

interface Mask {
  readonly box: Box;
  readonly runs: number[];
}

interface Cases {
  readonly bricks: { shape: Index; boxes: Box[] }[];
  readonly run_lengths: { voxels: string; runs: number[] }[];
  readonly checksums: { voxels: string; checksum: number }[];
  readonly changes: { shape: Index; before: string; change: Mask; after: string; checksum: number; voxels: number }[];
  readonly compositions: { shape: Index; first: Mask; second: Mask; composed: Mask | null }[];
  readonly presence: { bricks: number; present: number[]; present_bricks: string }[];
  readonly statistics: {
    dtype: string;
    sent_as: DType;
    shape: Index;
    voxels: (number | string)[];
    mean?: number;
    std?: number;
    error?: string;
  }[];
  readonly arrays: { dtype: DType; elements: number[]; encoding: Encoding; data: string }[];
  readonly invalid_arrays: { dtype: DType; count: number; encoding: string; data: string; error: string }[];
  readonly layers: { dtype: DType; low_bits: number; voxels: number[]; base: number[]; enhancement: number[] }[];
  readonly low_bits: { dtype: DType; std: number; largest: number; low_bits: number }[];
}

const cases = JSON.parse(readFileSync(join(FOLDER, 'arithmetic.json'), 'utf8')) as Cases;

const WIDER: Partial<Record<string, (values: number[]) => Voxels>> = {
  bool: (values) => Uint8Array.from(values),
  int64: (values) => BigInt64Array.from(values, BigInt),
  float64: (values) => Float64Array.from(values),
};

function bits(text: string): Uint8Array {
  return Uint8Array.from(text, Number);
}

function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, 'hex'));
}

/** A row as a volume. */
function row(text: string): Index {
  return [1, 1, text.length];
}

function wireArrayOf(dtype: DType, values: number[]) {
  const array = wireArray(dtype, values.length);
  array.set(values);
  return array;
}

function read(mask: Mask | null, shape: Index) {
  if (mask === null) return NO_CHANGE;
  const data = new Uint8Array(Uint32Array.from(mask.runs).buffer);
  return readMask({ box: mask.box, runs: mask.runs.length, encoding: 'raw', data }, shape);
}

describe('the arithmetic', () => {
  it.each(cases.bricks)('of the bricks of $shape', ({ shape, boxes }) => {
    const grid = new Grid(shape);
    expect(Array.from({ length: grid.length }, (_, index) => grid.box(index))).toEqual(boxes);
  });

  it.each(cases.run_lengths)('of the run lengths of $voxels', ({ voxels, runs }) => {
    const shape = row(voxels);
    const expected = runsOf(bits(voxels), wholeBox(shape), shape);
    expect(read({ box: wholeBox(shape), runs }, shape)).toEqual(expected);
    // What is sent is cropped, so that it begins and ends with a set voxel.
    if (voxels.startsWith('1') && voxels.endsWith('1')) {
      expect([...new Uint32Array(makeMask(expected, shape, 'raw').data.slice().buffer)]).toEqual(runs);
    }
  });

  it.each(cases.checksums)('of the checksum $checksum', ({ voxels, checksum: expected }) => {
    expect(checksum(bits(voxels), wholeBox(row(voxels)), row(voxels))).toBe(expected);
  });

  it.each(cases.changes)('of the change to $after', ({ shape, before, change, after, checksum: expected, voxels }) => {
    const mask = bits(before);
    const growth = flip(mask, read(change, shape));
    expect(mask).toEqual(bits(after));
    expect(checksum(mask, change.box, shape)).toBe(expected);
    expect(countRuns(runsOf(bits(before), wholeBox(shape), shape)) + growth).toBe(voxels);
  });

  it.each(cases.compositions)('of a composition in $shape', ({ shape, first, second, composed }) => {
    expect(compose(read(first, shape), read(second, shape))).toEqual(read(composed, shape));
  });

  it.each(cases.presence)('of the presence of $present', ({ bricks, present, present_bricks }) => {
    const grid = new Grid([1, 1, 32 * bricks]);
    expect(bricksOfBits(hex(present_bricks), grid)).toEqual(present);
  });

  it.each(cases.statistics)('of the statistics of $dtype $voxels', async (one) => {
    const { dtype, sent_as, shape, voxels, mean = NaN, std = NaN, error } = one;
    const numbers = voxels.map(Number);
    const array = WIDER[dtype]?.(numbers) ?? wireArrayOf(dtype as DType, numbers);
    const source = new ImageSource('case', shape, array, [shape[1] * shape[2], shape[2], 1]);
    expect(source.dtype).toBe(sent_as);
    if (error !== undefined) {
      await expect(source.prepare(createPacker())).rejects.toMatchObject({ code: error });
      return;
    }
    await source.prepare(createPacker());
    expect(source.statistics.mean).toBeCloseTo(mean, 9 - Math.ceil(Math.log10(Math.abs(mean) + 1)));
    expect(source.statistics.std / std).toBeCloseTo(1, 9);
  });

  it.each(cases.arrays)('of $encoding arrays of $dtype', ({ dtype, elements, encoding, data }) => {
    const plain = new Uint8Array(wireArrayOf(dtype, elements).buffer);
    expect(unpack(hex(data), encoding, plain.length)).toEqual(plain);
    expect(unpack(pack(plain, encoding), encoding, plain.length)).toEqual(plain);
  });

  it.each(cases.layers)('of $low_bits low bits of $dtype', ({ dtype, low_bits, voxels, ...layers }) => {
    for (const layer of ['base', 'enhancement'] as const) {
      const array = wireArrayOf(dtype, voxels);
      keepLayer(array.buffer, { layer, lowBits: low_bits, dtype });
      expect(new Uint8Array(array.buffer)).toEqual(new Uint8Array(wireArrayOf(dtype, layers[layer]).buffer));
    }
  });

  it.each(cases.low_bits)('of the low bits of $dtype, $std and $largest', ({ dtype, std, largest, low_bits }) => {
    expect(chooseLowBits(dtype, std, largest)).toBe(low_bits);
  });

  // Other encodings are refused when the message is read.
  it.each(cases.invalid_arrays.filter(({ encoding }) => ['raw', 'deflate'].includes(encoding)))(
    'of the invalid $encoding array $data',
    ({ dtype, count, encoding, data, error }) => {
      const bytes = count * wireArray(dtype, 1).BYTES_PER_ELEMENT;
      expect(() => unpack(hex(data), encoding as Encoding, bytes)).toThrow(
        expect.objectContaining({ code: error }) as Error,
      );
    },
  );
});
