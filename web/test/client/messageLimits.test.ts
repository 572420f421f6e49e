/** Messages that would take much more memory than bytes. Encoded by the library whose decoder they protect. */
import { encode } from '@msgpack/msgpack';
import { describe, expect, it } from 'vitest';
import { MAX_BRICKS } from '../../src/client/bricks';
import { ClientError } from '../../src/client/errors';
import { checkStructure } from '../../src/client/messageLimits';
import { decode } from '../../src/client/protocol';

const MANY = 1000;

/** Arrays of 2^20 announced items, each inside of the one before. */
function announced(arrays: number): Uint8Array {
  return Uint8Array.from({ length: 5 * arrays }, (_, n) => [0xdd, 0, 0x10, 0, 0][n % 5]);
}

function nested(levels: number): unknown {
  return levels === 0 ? [] : [nested(levels - 1)];
}

/** Return the code of the error that a message causes. */
function codeOf(frame: Uint8Array): unknown {
  try {
    return decode(frame);
  } catch (error) {
    return error instanceof ClientError ? error.code : error;
  }
}

describe('messages', () => {
  it.each([
    ['arrays with more items than the message has bytes', announced(MANY)],
    ['a map with more items than the message has bytes', Uint8Array.of(0xdf, 0xff, 0xff, 0xff, 0xff)],
    ['arrays inside of each other', encode(nested(50))],
    ['many empty arrays', encode(Array.from({ length: 3 }, () => Array.from({ length: MAX_BRICKS }, () => [])))],
  ])('are refused before they are decoded: %s', (_, frame) => {
    expect(codeOf(frame)).toBe('too_large');
  });

  it('may list all bricks', () => {
    const received = Array.from({ length: MAX_BRICKS }, (_, index) => index);
    const message = { type: 'image_progress', image: 'a', received, received_base: [], present: 1, total: MAX_BRICKS };
    expect(decode(encode(message))).toEqual(message);
  });

  it('may have values of every type and size', () => {
    const lengths = [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536];
    const numbers = [
      0,
      127,
      128,
      255,
      256,
      65535,
      65536,
      2 ** 32,
      -1,
      -32,
      -33,
      -128,
      -129,
      -32769,
      -(2 ** 31) - 1,
      0.5,
    ];
    const values = [
      ...lengths.flatMap((n) => ['x'.repeat(n), new Uint8Array(n), Array.from({ length: n }, () => null)]),
      ...lengths.map((n) => Object.fromEntries(Array.from({ length: n }, (_, key) => [`${key}`, true]))),
      ...numbers,
      new Date(0),
      new Date(2 ** 33 * 1000),
      new Date(2 ** 35 * 1000),
    ];
    for (const value of values) {
      // If a size were wrong, the arrays at the end would be read as something else.
      const many = encode([value, ...Array.from({ length: 3 }, () => nested(20))]);
      expect(() => {
        checkStructure(many);
      }).toThrow(/levels/);
      expect(() => {
        checkStructure(encode([value, [[]], 1]));
      }).not.toThrow();
    }
  });

  it('that are incomplete are left to the decoder', () => {
    const whole = encode({
      type: 'done',
      id: 1,
      segment: 'a',
      changed: [
        [0, 1],
        [0, 1],
        [0, 1],
      ],
      voxels: 70000,
    });
    for (let end = 0; end < whole.length; end++) {
      expect(codeOf(whole.subarray(0, end))).toBe('bad_message');
    }
  });
});

describe('the thickness of scribbles', () => {
  const welcome = {
    ...{ type: 'welcome', version: 1, server_version: 's', features: [], encoding: 'raw', session_id: 'i' },
    ...{ session_secret: 's', resumed: false, device: 'cpu' },
    limits: { message_bytes: 1, image_voxels: 1, segments: 1, unacknowledged_bricks: 1 },
  };
  const model = { name: 'm', license: 'l', patch_size: [1, 1, 1], prompts: [] };
  const withThickness = (thickness: number): Uint8Array =>
    encode({ ...welcome, model: { ...model, scribble_thickness: [1, thickness, 1] } });

  it.each([NaN, -1, 1e9, Infinity])('cannot be %s', (thickness) => {
    expect(() => decode(withThickness(thickness))).toThrow(/scribble_thickness/);
  });

  it('can be 2.5 voxels', () => {
    expect(decode(withThickness(2.5))).toMatchObject({ model: { scribble_thickness: [1, 2.5, 1] } });
  });
});
