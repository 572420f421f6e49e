/** Estimates from acknowledgements: the throughput of the link, and the encoding faster on it. */
import { describe, expect, it } from 'vitest';
import { Link } from '../../src/client/link';
import type { Encoding } from '../../src/client/messages';

const BRICKS = 8;
const DEFLATED_BYTES = 200_000;
const RAW_BYTES = 2 * DEFLATED_BYTES;

/** Seconds that a message takes: to pack it, and as part of a sequence of messages. */
interface Costs {
  /** Of a deflated message. Packing a raw one takes none. */
  readonly packing: number;
  readonly deflate: number;
  readonly raw: number;
}

/** Seconds of a slow link and of a fast one. A message is packed in 10 ms. */
const SLOW: Costs = { packing: 0.01, deflate: 0.5, raw: 1 };
const FAST: Costs = { packing: 0.01, deflate: 0.01, raw: 0.005 };

/** A link whose messages follow one another. */
class Sender {
  private now = 100;

  constructor(readonly link = new Link('deflate')) {}

  /** Send messages. Return the encoding of each. */
  run(messages: number, costs: Costs): Encoding[] {
    return Array.from({ length: messages }, () => {
      const { encoding } = this.link;
      const sent = this.now;
      this.now += costs[encoding];
      const [bytes, packing] = encoding === 'raw' ? [RAW_BYTES, 0] : [DEFLATED_BYTES, costs.packing];
      this.link.acknowledge({ size: BRICKS, bytes, encoding, sent, packing }, this.now);
      return encoding;
    });
  }
}

function count(used: readonly Encoding[], encoding: Encoding): number {
  return used.filter((one) => one === encoding).length;
}

describe('the throughput of a link', () => {
  it('is that of the last messages', () => {
    const sender = new Sender();
    expect(sender.link.throughput).toBeNull();
    sender.run(5, { ...SLOW, deflate: 0.1 });
    expect(sender.link.throughput).toBeCloseTo(2e6, -1);
    sender.run(100, { ...SLOW, deflate: 0.2 });
    expect(sender.link.throughput).toBeCloseTo(1e6, -3);
  });

  it('counts neither idle time nor the round trip after it', () => {
    const link = new Link('deflate');
    const message = { size: BRICKS, bytes: 1000, encoding: 'deflate', packing: 0 } as const;
    link.acknowledge({ ...message, sent: 100 }, 101);
    expect(link.throughput).toBeNull();
    link.acknowledge({ ...message, sent: 100 }, 101.5);
    link.acknowledge({ ...message, sent: 900 }, 901);
    expect(link.throughput).toBeCloseTo(2000);
    expect(link.bricksPerSecond).toBeCloseTo(2 * BRICKS);
  });
});

describe('bricks', () => {
  it('are always deflated on a slow link', () => {
    expect(count(new Sender().run(400, SLOW), 'raw')).toBe(0);
    // Even if raw ones were fast when they were last tried.
    const sender = new Sender();
    sender.run(100, FAST);
    expect(count(sender.run(400, SLOW), 'raw')).toBeLessThanOrEqual(8);
  });

  it('are raw on a fast link, after they were deflated', () => {
    const used = new Sender().run(100, FAST);
    expect(count(used.slice(0, 8), 'deflate')).toBe(8);
    expect(count(used, 'raw')).toBe(91); // the first message does not count
  });

  it('are raw if deflating is slow, whatever the throughput', () => {
    expect(new Sender().run(100, { packing: 0.1, deflate: 0.1, raw: 0.05 }).at(-1)).toBe('raw');
  });

  it('are tried raw, but seldom, if that is slower', () => {
    const tried = count(new Sender().run(400, { packing: 0.01, deflate: 0.012, raw: 0.02 }), 'raw');
    expect(tried).toBeGreaterThan(0);
    expect(tried).toBeLessThanOrEqual(32);
  });

  it('are encoded as the link changes', () => {
    const sender = new Sender();
    expect(sender.run(100, FAST).at(-1)).toBe('raw');
    expect(sender.run(40, SLOW).at(-1)).toBe('deflate');
    expect(sender.run(200, FAST)).toContain('raw');
  });

  it('that begin raw are not deflated on a fast link', () => {
    expect(count(new Sender(new Link('raw')).run(400, FAST), 'deflate')).toBe(0);
  });

  it('that begin raw are deflated on a slow link', () => {
    // The first message does not count, and the second one ends the trial.
    expect(count(new Sender(new Link('raw')).run(100, SLOW), 'raw')).toBe(2);
  });

  it('in layers are no trial of an encoding', () => {
    const link = new Link('raw');
    const message = { size: BRICKS, bytes: 1e5, encoding: null, packing: 0 };
    for (let n = 1; n <= 100; n++) link.acknowledge({ ...message, sent: n - 1 }, n);
    expect(link.encoding).toBe('raw');
    expect(link.throughput).toBeCloseTo(1e5);
  });
});
