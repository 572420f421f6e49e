/** Layers of bricks: their bits, and their union. The conformance suite has values. */
import { describe, expect, it } from 'vitest';
import { keepLayer, maxLowBits } from '../../src/client/layers';
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
