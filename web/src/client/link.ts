/** What the acknowledgements of bricks tell about the link: its throughput, and which encoding is faster on it. */
import type { Encoding } from './messages';

/** Weight of the past in the throughput, at each acknowledgement. The last ten or so count. */
const DECAY = 0.9;
/** An encoding is judged after this many bricks, and the other one is tried again after this many trials. */
const TRIAL_BRICKS = 64;
const TRIALS_REMEMBERED = 16;
/**
 * Throughputs, in bytes per second, between which the encodings are tried. On slower links the bytes decide, on faster
 * ones the packing. A brick of a CT with noise (65,536 bytes) was deflated to 44,000 bytes in 2.5 ms of processor time
 * (Node.js 20 on a server), which is 17 MB/s. Raw bricks are therefore faster above 26 MB/s there.
 */
const SLOW_LINK = 10e6;
const FAST_LINK = 50e6;

/** A message with bricks. */
export interface SentMessage {
  readonly bricks: number;
  readonly bytes: number;
  /** Encoding of whole bricks; null: some are in layers. */
  readonly encoding: Encoding | null;
  /** Seconds, when its packing began. */
  readonly sent: number;
}

/** The link to the server, as far as acknowledgements of messages with bricks show it. */
export class Link {
  private acknowledgedAt = 0;
  private bytes = 0;
  private seconds = 0;
  private bricksOnTrial = 0;
  private secondsOnTrial = 0;
  /** Seconds per brick of each encoding, and the trials since then. */
  private readonly costs: Partial<Record<Encoding, number>> = {};
  private readonly age: Record<Encoding, number> = { deflate: 0, raw: 0 };

  /** `encoding`: for the next message with whole bricks. */
  constructor(public encoding: Encoding) {}

  /** Bytes per second, also where a processor is the limit; null before the first acknowledgement. */
  get throughput(): number | null {
    return this.seconds > 0 ? this.bytes / this.seconds : null;
  }

  /** Note that the server has received a message. `now`: seconds. */
  acknowledge(message: SentMessage, now: number): void {
    // While messages follow each other closely, the time between acknowledgements is that of the slowest stage.
    const seconds = now - Math.max(this.acknowledgedAt, message.sent);
    this.acknowledgedAt = now;
    this.bytes = DECAY * this.bytes + message.bytes;
    this.seconds = DECAY * this.seconds + seconds;
    if (message.encoding !== this.encoding) return;
    this.bricksOnTrial += message.bricks;
    this.secondsOnTrial += seconds;
    if (this.bricksOnTrial >= TRIAL_BRICKS) this.endTrial();
  }

  /** Choose the encoding with the lower cost, or the one whose cost is not known. */
  private endTrial(): void {
    const [current, other]: Encoding[] = this.encoding === 'raw' ? ['raw', 'deflate'] : ['deflate', 'raw'];
    const cost = this.secondsOnTrial / this.bricksOnTrial;
    this.costs[current] = cost;
    this.age[current] = 0;
    this.age[other]++;
    this.bricksOnTrial = this.secondsOnTrial = 0;
    const throughput = this.throughput ?? 0;
    const otherCost = this.age[other] > TRIALS_REMEMBERED ? 0 : (this.costs[other] ?? 0);
    if (throughput < SLOW_LINK) this.encoding = 'deflate';
    else if (throughput > FAST_LINK) this.encoding = 'raw';
    else if (otherCost < cost) this.encoding = other;
  }
}
