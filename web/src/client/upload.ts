/** The order of an image's bricks, and how many are in flight. */
import { bricksOfBits, Grid } from './bricks';
import type { Box, Index } from './geometry';

/** A brick that is acknowledged later than this has waited in a buffer, and so would the message of a prompt. */
const LATE_S = 0.2;
const SMALLEST_WINDOW = 16;

/**
 * The order of the bricks of an image: those that a prompt waits for, then the nearest to the user's focus.
 *
 * Few bricks are in flight at a time. The window grows while acknowledgements come quickly and shrinks when they are
 * late, so that a prompt never waits behind the image, on any link.
 */
export class Upload {
  readonly grid: Grid;
  /** One byte per brick; null before the first acknowledgement, which lists the bricks that the server has. */
  private present: Uint8Array | null = null;
  private readonly inFlight = new Map<number, number>();
  private readonly maxInFlight: number;
  private window: number;
  private focus: Index;
  private needed: number[] = [];
  /** Order of the bricks, computed when it is needed, and how many of it were considered. */
  private order: Uint32Array | null = null;
  private considered = 0;

  /** `maxInFlight`: limit of the server. `clock`: returns seconds. */
  constructor(
    shape: Index,
    maxInFlight: number,
    private readonly clock: () => number,
  ) {
    this.grid = new Grid(shape);
    this.maxInFlight = Math.max(1, maxInFlight);
    this.window = Math.min(SMALLEST_WINDOW, this.maxInFlight);
    this.focus = [shape[0] >> 1, shape[1] >> 1, shape[2] >> 1];
  }

  /** Send the bricks around a voxel first. */
  setFocus(focus: Index): void {
    this.focus = focus;
    this.order = null;
  }

  /** Send the bricks of a box before all others, because a prompt waits for them. */
  prioritize(box: Box): void {
    this.needed = this.grid.within(box);
    this.order = null;
  }

  /** Note the bricks that a welcome lists as present. Throws a ClientError `bad_message` for another grid. */
  resume(bits: Uint8Array): void {
    this.acknowledge(bricksOfBits(bits, this.grid));
  }

  /** Note bricks that the server has. The first acknowledgement lists those from before. */
  acknowledge(received: readonly number[]): void {
    this.present ??= new Uint8Array(this.grid.length);
    const now = this.clock();
    for (const index of received) {
      if (index < this.grid.length) this.present[index] = 1;
      const sent = this.inFlight.get(index);
      if (sent === undefined) continue;
      this.inFlight.delete(index);
      this.window = now - sent > LATE_S ? Math.max(SMALLEST_WINDOW, this.window - 1) : this.window + 1;
    }
    this.window = Math.min(this.window, this.maxInFlight);
  }

  /** Return the bricks of the next message, at most `max`: none if the window is full, or all are sent. */
  next(max: number): number[] {
    if (this.present === null) return [];
    if (this.order === null) {
      this.order = this.grid.nearestFirst(this.focus, this.needed);
      this.considered = 0;
    }
    const count = Math.min(max, this.window - this.inFlight.size);
    const chosen: number[] = [];
    const now = this.clock();
    while (chosen.length < count && this.considered < this.order.length) {
      const index = this.order[this.considered++];
      if (this.present[index] || this.inFlight.has(index)) continue;
      this.inFlight.set(index, now);
      chosen.push(index);
    }
    return chosen;
  }
}
