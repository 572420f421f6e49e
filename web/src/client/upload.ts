/** The order of an image's bricks and their layers, and how many are in flight. */
import { bricksOfBits, Grid, MAX_BASE_LAYERS } from './bricks';
import type { Box, Index } from './geometry';
import { Link, type SentMessage } from './link';
import type { Encoding, Layer } from './messages';

/** A brick that is acknowledged later than this has waited in a buffer, and so would the message of a prompt. */
const LATE_S = 0.2;
const SMALLEST_WINDOW = 16;
/** Size of a base layer in the window, in whole bricks. */
const BASE_SIZE = 0.25;
/** If the bricks that a prompt waits for take longer, their base layers are sent first. */
const SLOW_S = 1;
const LAYERS: readonly Layer[] = ['whole', 'enhancement', 'base'];

/** A brick, or one layer of it. */
export interface BrickPart {
  readonly index: number;
  readonly layer: Layer;
}

/**
 * The order of the bricks of an image: those that a prompt waits for, then the nearest to the user's focus.
 *
 * Few bricks are in flight at a time. The window grows while acknowledgements come quickly and shrinks when they are
 * late, so that a prompt never waits behind the image, on any link. On a slow link, the bricks that a prompt waits for
 * are sent in two layers: first the base layers of all, then their enhancement layers.
 */
export class Upload {
  readonly grid: Grid;
  /** One byte per brick; null before the first acknowledgement, which lists the bricks that the server has. */
  private present: Uint8Array | null = null;
  /** Number of bricks that the server has, as far as it has told. */
  presentCount = 0;
  /** Seconds when each part was sent, by its key. */
  private readonly inFlight = new Map<number, number>();
  /** In whole bricks. */
  private sizeInFlight = 0;
  /** Messages in flight by the key of their first part. */
  private readonly messages = new Map<number, SentMessage>();
  private readonly maxInFlight: number;
  private readonly link: Link;
  private window: number;
  private focus: Index;
  private needed: number[] = [];
  /** Order of the bricks, computed when it is needed, and how many of it were considered, whole and as base layers. */
  private order: Uint32Array | null = null;
  private considered = 0;
  private consideredAsBase = 0;
  /** Bricks that are sent in layers, and are not present yet. */
  private readonly withBase = new Set<number>();
  /** Bytes of a whole brick on the wire. */
  private bytesPerBrick = 0;

  /** `maxInFlight`: limit of the server. `clock`: returns seconds. `encoding`: of the first bricks. */
  constructor(
    shape: Index,
    maxInFlight: number,
    private readonly clock: () => number,
    encoding: Encoding,
  ) {
    this.grid = new Grid(shape);
    this.maxInFlight = Math.max(1, maxInFlight);
    this.window = Math.min(SMALLEST_WINDOW, this.maxInFlight);
    this.focus = [shape[0] >> 1, shape[1] >> 1, shape[2] >> 1];
    this.link = new Link(encoding);
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

  /**
   * Note bricks that the server has, and those of which it has only the base layer. The first acknowledgement lists
   * those from before.
   */
  acknowledge(received: readonly number[], base: readonly number[] = []): void {
    this.present ??= new Uint8Array(this.grid.length);
    for (const index of received) {
      if (index < this.grid.length && !this.present[index]) {
        this.present[index] = 1;
        this.presentCount++;
      }
      this.withBase.delete(index);
      for (const layer of LAYERS) this.arrived({ index, layer });
    }
    for (const index of base) this.arrived({ index, layer: 'base' });
    this.window = Math.min(this.window, this.maxInFlight);
  }

  /** Return the encoding for parts of one message. Layers exist for the sake of fewer bytes. */
  encodingOf(parts: readonly BrickPart[]): Encoding {
    return parts.every(isWhole) ? this.link.encoding : 'deflate';
  }

  /** Note the size of the message of some parts, before it is sent. */
  sent(parts: readonly BrickPart[], bytes: number, encoding: Encoding): void {
    const key = keyOf(parts[0]);
    const now = this.clock();
    const sent = this.inFlight.get(key) ?? now;
    this.messages.set(key, {
      bricks: parts.length,
      bytes,
      encoding: parts.every(isWhole) ? encoding : null,
      sent,
      packing: now - sent,
    });
  }

  /**
   * Return the parts of the next message, at most `max`: none if the window is full, or all are sent.
   *
   * `isLayered`: whether bricks may be sent in layers.
   */
  next(max: number, isLayered: boolean): BrickPart[] {
    if (this.present === null) return [];
    if (this.order === null) {
      this.order = this.grid.nearestFirst(this.focus, this.needed);
      this.considered = this.consideredAsBase = 0;
    }
    const available = this.window - this.sizeInFlight;
    const maxParts = Math.min(max, this.maxInFlight - this.inFlight.size);
    const baseLayers = Math.min(available / BASE_SIZE, maxParts);
    const chosen =
      isLayered && this.isSlow(this.present) ? this.nextBaseLayers(baseLayers, this.order, this.present) : [];
    // Base layers have messages of their own, so that a preview does not wait for enhancement layers.
    const hasBaseLayers = chosen.length > 0;
    while (
      !hasBaseLayers &&
      chosen.length < maxParts &&
      sizeOf(chosen) <= available - 1 &&
      this.considered < this.order.length
    ) {
      const index = this.order[this.considered++];
      const part: BrickPart = { index, layer: this.withBase.has(index) ? 'enhancement' : 'whole' };
      if (!this.present[index] && !this.inFlight.has(keyOf(part))) chosen.push(part);
    }
    const now = this.clock();
    for (const part of chosen) this.inFlight.set(keyOf(part), now);
    this.sizeInFlight += sizeOf(chosen);
    return chosen;
  }

  private nextBaseLayers(max: number, order: Uint32Array, present: Uint8Array): BrickPart[] {
    const chosen: BrickPart[] = [];
    while (
      chosen.length <= max - 1 &&
      this.consideredAsBase < this.needed.length &&
      this.withBase.size < MAX_BASE_LAYERS
    ) {
      const index = order[this.consideredAsBase++];
      const isSent = this.withBase.has(index) || this.inFlight.has(keyOf({ index, layer: 'whole' }));
      if (present[index] || isSent) continue;
      this.withBase.add(index);
      chosen.push({ index, layer: 'base' });
    }
    return chosen;
  }

  /** Whether the bricks that a prompt waits for would take long. */
  private isSlow(present: Uint8Array): boolean {
    const { throughput } = this.link;
    if (throughput === null) return false;
    const missing = this.needed.filter((index) => !present[index]).length;
    return missing * this.bytesPerBrick > SLOW_S * throughput;
  }

  private arrived(part: BrickPart): void {
    const key = keyOf(part);
    const sent = this.inFlight.get(key);
    if (sent === undefined) return;
    this.inFlight.delete(key);
    const now = this.clock();
    const size = sizeOf([part]);
    this.sizeInFlight -= size;
    this.window = now - sent > LATE_S ? Math.max(SMALLEST_WINDOW, this.window - size) : this.window + size;
    const message = this.messages.get(key);
    if (message === undefined) return;
    this.messages.delete(key);
    this.link.acknowledge(message, now);
    if (isWhole(part)) this.bytesPerBrick = message.bytes / message.bricks;
  }
}

function keyOf({ index, layer }: BrickPart): number {
  return LAYERS.length * index + LAYERS.indexOf(layer);
}

/** Return the size of parts in whole bricks, roughly. Enhancement layers are hardly smaller. */
function sizeOf(parts: readonly BrickPart[]): number {
  return parts.reduce((size, { layer }) => size + (layer === 'base' ? BASE_SIZE : 1), 0);
}

function isWhole({ layer }: BrickPart): boolean {
  return layer === 'whole';
}
