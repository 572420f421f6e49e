/** What acknowledgements tell about the link: its throughput, and the encoding that is faster on it. */
import { describe, expect, it } from 'vitest';
import { Link } from '../../src/client/link';
import type { Encoding } from '../../src/client/messages';

const BRICKS = 8;
const DEFLATED_BYTES = 200_000;
const RAW_BYTES = 2 * DEFLATED_BYTES;

/** A link whose messages follow one another. */
class Sender {
  private now = 100;

  constructor(readonly link = new Link('deflate')) {}

  /** Send messages that take some seconds each. Return the encoding of each. */
  run(messages: number, deflated: number, raw: number): Encoding[] {
    return Array.from({ length: messages }, () => {
      const { encoding } = this.link;
      const sent = this.now;
      this.now += encoding === 'raw' ? raw : deflated;
      const bytes = encoding === 'raw' ? RAW_BYTES : DEFLATED_BYTES;
      this.link.acknowledge({ bricks: BRICKS, bytes, encoding, sent }, this.now);
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
    sender.run(5, 0.1, 0.1);
    expect(sender.link.throughput).toBeCloseTo(2e6, -1);
    sender.run(100, 0.2, 0.2);
    expect(sender.link.throughput).toBeCloseTo(1e6, -3);
  });

  it('counts the wait for the first acknowledgement, and no idle time', () => {
    const link = new Link('deflate');
    link.acknowledge({ bricks: BRICKS, bytes: 1000, encoding: 'deflate', sent: 100 }, 101);
    link.acknowledge({ bricks: BRICKS, bytes: 1000, encoding: 'deflate', sent: 900 }, 901);
    expect(link.throughput).toBeCloseTo(1000);
  });
});

describe('bricks', () => {
  it('are always deflated on a slow link', () => {
    expect(count(new Sender().run(400, 0.05, 0.02), 'raw')).toBe(0);
  });

  it('are raw on a fast link, after they were deflated', () => {
    const used = new Sender().run(100, 0.012, 0.006);
    expect(count(used.slice(0, 8), 'deflate')).toBe(8);
    expect(count(used, 'raw')).toBeGreaterThan(85);
  });

  it('are tried raw, but seldom, if that is slower', () => {
    const tried = count(new Sender().run(400, 0.012, 0.016), 'raw');
    expect(tried).toBeGreaterThan(0);
    expect(tried).toBeLessThanOrEqual(32);
  });

  it('are encoded as the link changes', () => {
    const sender = new Sender();
    expect(sender.run(100, 0.012, 0.006).at(-1)).toBe('raw');
    expect(sender.run(40, 0.5, 0.5).at(-1)).toBe('deflate');
    expect(sender.run(200, 0.012, 0.006)).toContain('raw');
  });

  it('that begin raw remain so on a very fast link, and are tried deflated on another one', () => {
    expect(count(new Sender(new Link('raw')).run(400, 0.001, 0.005), 'deflate')).toBe(0);
    expect(new Sender(new Link('raw')).run(100, 0.01, 0.012).at(-1)).toBe('deflate');
    const used = new Sender(new Link('raw')).run(100, 0.4, 0.8);
    expect(count(used, 'raw')).toBe(8);
  });

  it('in layers are no trial of an encoding', () => {
    const link = new Link('raw');
    for (let n = 1; n <= 100; n++) link.acknowledge({ bricks: 8, bytes: 1e5, encoding: null, sent: n }, n + 1);
    expect(link.encoding).toBe('raw');
    expect(link.throughput).toBeCloseTo(1e5);
  });
});
