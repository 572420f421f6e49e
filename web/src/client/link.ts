/** Estimates from the acknowledgements of bricks: the throughput of the link, and the encoding faster on it. */
import type { Encoding } from './messages';

/** Weight of the past in the throughput, at each acknowledgement. The last ten or so count. */
const DECAY = 0.9;
/** An encoding is judged after this many bricks, and the other one is tried again after this many trials. */
const TRIAL_BRICKS = 64;
const TRIALS_REMEMBERED = 16;
/**
 * Throughput of raw bricks, in bytes per second, below which deflating is worth a trial. A brick of a CT with noise
 * (65,536 bytes) was deflated to 44,000 bytes in 2.5 ms of processor time, in Node.js 20: 26 MB of voxels per second.
 */
const FAST_LINK = 25e6;

/** A message with bricks. */
export interface SentMessage {
  /** In whole bricks. */
  readonly size: number;
  readonly bytes: number;
  /** Encoding of whole bricks; null: some are in layers. */
  readonly encoding: Encoding | null;
  /** Seconds, when its packing began. */
  readonly sent: number;
  /** Seconds that its packing took. */
  readonly packing: number;
}

/** The link to the server, as far as acknowledgements of messages with bricks show it. */
export class Link {
  private acknowledgedAt = 0;
  /** Whether the last message does not count. */
  private hasSkipped = false;
  private bricks = 0;
  private bytes = 0;
  private seconds = 0;
  private bricksOnTrial = 0;
  private secondsOnTrial = 0;
  private packingOnTrial = 0;
  /** Seconds per brick of each encoding, and the trials since then. */
  private readonly costs: Partial<Record<Encoding, number>> = {};
  private readonly age: Record<Encoding, number> = { deflate: 0, raw: 0 };

  /** `encoding`: for the next message with whole bricks. */
  constructor(public encoding: Encoding) {}

  /** Bytes per second, also where a processor is the limit; null before the first messages. */
  get throughput(): number | null {
    return this.seconds > 0 ? this.bytes / this.seconds : null;
  }

  /** Whole bricks per second; null before the first messages. */
  get bricksPerSecond(): number | null {
    return this.seconds > 0 ? this.bricks / this.seconds : null;
  }

  /** Note that the server has received a message. `now`: seconds. */
  acknowledge(message: SentMessage, now: number): void {
    // While messages follow each other closely, the time between acknowledgements is that of the slowest stage. After a
    // pause, it has a round trip in addition, and does not count. Where each message comes after a pause, packing is
    // slower than the link, and every other message counts.
    const isAfterPause = message.sent > this.acknowledgedAt;
    const seconds = now - Math.max(this.acknowledgedAt, message.sent);
    this.acknowledgedAt = now;
    this.hasSkipped = isAfterPause && !this.hasSkipped;
    if (this.hasSkipped) return;
    this.bricks = DECAY * this.bricks + message.size;
    this.bytes = DECAY * this.bytes + message.bytes;
    this.seconds = DECAY * this.seconds + seconds;
    if (message.encoding !== this.encoding) return;
    this.bricksOnTrial += message.size;
    this.secondsOnTrial += seconds;
    this.packingOnTrial += message.packing;
    // The first raw bricks end their trial early, because a tunnel's end on this computer may lead to a slow link.
    const isTooSlow = this.encoding === 'raw' && this.costs.deflate === undefined && this.isSlow();
    if (this.bricksOnTrial >= TRIAL_BRICKS || isTooSlow) this.endTrial();
  }

  private isSlow(): boolean {
    return (this.throughput ?? 0) < FAST_LINK;
  }

  /** Choose the encoding with the lower cost, or the other one if its cost is not known and may be lower. */
  private endTrial(): void {
    const [current, other]: Encoding[] = this.encoding === 'raw' ? ['raw', 'deflate'] : ['deflate', 'raw'];
    const cost = this.secondsOnTrial / this.bricksOnTrial;
    const isLimitedByPacking = this.packingOnTrial > this.secondsOnTrial / 2;
    this.costs[current] = cost;
    this.age[current] = 0;
    this.age[other]++;
    this.bricksOnTrial = this.secondsOnTrial = this.packingOnTrial = 0;
    // Raw bricks have more bytes, so they gain where packing is the limit alone. The throughput does not tell: a slow
    // processor looks like a slow link.
    if (current === 'deflate' && !isLimitedByPacking) return;
    const otherCost = this.age[other] > TRIALS_REMEMBERED ? undefined : this.costs[other];
    const mayBeFaster = current === 'deflate' || this.isSlow();
    if (otherCost === undefined ? mayBeFaster : otherCost < cost) this.encoding = other;
  }
}
