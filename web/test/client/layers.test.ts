/** Layers of bricks: their bits, their union, and how many bits the enhancement layer has. */
import { describe, expect, it } from 'vitest';
import { chooseLowBits, keepLayer, maxLowBits } from '../../src/client/layers';
import type { DType } from '../../src/client/messages';
import { WIRE_ARRAYS } from '../../src/client/voxels';
import { Random } from './random';

const DTYPES = Object.keys(WIRE_ARRAYS) as DType[];

function keep(bytes: Uint8Array<ArrayBuffer>, dtype: DType, layer: 'base' | 'enhancement', lowBits: number) {
  const kept = bytes.slice();
  keepLayer(kept.buffer, { layer, lowBits, dtype });
  return kept;
}

/** Voxels as unsigned integers. */
function bitsOf(bytes: Uint8Array<ArrayBuffer>, dtype: DType): number[] {
  const size = WIRE_ARRAYS[dtype].BYTES_PER_ELEMENT;
  const view = new DataView(bytes.buffer);
  return Array.from({ length: bytes.length / size }, (_, at) =>
    size === 1 ? view.getUint8(at) : size === 2 ? view.getUint16(2 * at, true) : view.getUint32(4 * at, true),
  );
}

describe.each(DTYPES)('the layers of %s', (dtype) => {
  const lowBits = Array.from({ length: maxLowBits(dtype) }, (_, n) => n + 1);

  it.each(lowBits)('with %i low bits are the voxels together', (low) => {
    const random = new Random(low);
    const bytes = Uint8Array.from({ length: 96 }, () => random.integer(0, 255));
    const [base, enhancement] = [keep(bytes, dtype, 'base', low), keep(bytes, dtype, 'enhancement', low)];
    expect(base.map((byte, at) => byte | enhancement[at])).toEqual(bytes);
    expect(bitsOf(enhancement, dtype).filter((bits) => bits >= 2 ** low)).toEqual([]);
    expect(bitsOf(base, dtype).filter((bits) => bits % 2 ** low !== 0)).toEqual([]);
  });
});

describe('the number of low bits', () => {
  it.each<[DType, number, number, number]>([
    ['int16', 480, 3000, 5], // a CT: intervals of 32 Hounsfield units
    ['int16', 240, 3000, 4],
    ['int32', 480, 3000, 5],
    ['uint8', 40, 255, 0], // intervals of 2 save too little
    ['uint8', 127, 255, 3],
    ['int8', 1e9, 127, 7],
    ['float32', 480, 1500, 18], // a float32 from 1024 to 2048 has steps of 2^-13, so intervals are of 32, too
    ['float32', 4.8e-3, 15e-3, 18],
    ['float32', 1e-6, 1000, 0],
    ['float32', 1e30, 1, 23],
  ])('of %s with a deviation of %d and at most %d is %i', (dtype, std, largest, expected) => {
    expect(chooseLowBits(dtype, std, largest)).toBe(expected);
  });
});
