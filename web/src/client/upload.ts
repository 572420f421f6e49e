/** The order of an image's bricks and their layers, and how many are in flight. */
import { bricksOfBits, Grid, MAX_BASE_LAYERS } from './bricks';
import type { Box, Index } from './geometry';
import type { Link, SentMessage } from './link';
import type { Encoding, Layer } from './messages';

/**
 * A brick whose acknowledgement takes longer than the fastest one by this has waited in a buffer, and so would the
 * message of a prompt.
 */
const LATE_S = 0.2;
/** The window shrinks by this factor, and again only if a brick that was sent after that is late, too. */
const SHRINK = 0.75;
/** The window at first, and the smallest later, in whole bricks. */
const SMALLEST_WINDOW = 8;
/**
 * A message has as many whole bricks as the link takes in this time, within these limits. The larger minimum is for
 * messages for which no request waits, since many small ones take more processor time.
 */
const MESSAGE_S = 0.01;
const MIN_PER_MESSAGE = 2;
const MIN_PER_UNHURRIED = 8;
/** The window has at least so many messages. With fewer, the link would be idle until the next acknowledgement. */
const MESSAGES_IN_FLIGHT = 4;
const MAX_PER_MESSAGE = 16;
/** Size of a base layer in the window and in a message, in whole bricks. */
const BASE_SIZE = 0.25;
/** Limit of bricks and layers in one message. */
export const MAX_BRICKS_PER_MESSAGE = MAX_PER_MESSAGE / BASE_SIZE;
/** If the bricks that a prompt waits for take longer, their base layers are sent first. */
const SLOW_S = 1;
const LAYERS: readonly Layer[] = ['whole', 'enhancement', 'base'];

/** A brick, or one layer of it. */
export interface BrickPart {
  readonly index: number;
  readonly layer: Layer;
  /** From the prompt, for which the layers were made, in voxels. */
  readonly distance: number;
}

/**
 * The order of the bricks of an image: those that a prompt waits for, then the nearest to the user's focus.
 *
 * Few bricks are in flight at a time. The window grows while acknowledgements come quickly and shrinks when they are
 * late, so that a prompt never waits behind the image, on any link. If the link is slow, or not known yet, the bricks
 * that a prompt waits for are sent in two layers: first the base layers of all, then their enhancement layers.
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
  private window: number;
  /** Of an acknowledgement, in seconds. */
  private shortestDelay = Infinity;
  /** Seconds when the window last shrank. */
  private shrunkAt = -Infinity;
  private focus: Index;
  private awaited: Box | null = null;
  private prompted: Index | null = null;
  private baseLayersSuffice = false;
  /** Bricks of the awaited box. */
  private needed: number[] = [];
  /** Order of the bricks, computed when it is needed, and how many of it were considered, whole and as base layers. */
  private order: Uint32Array | null = null;
  private considered = 0;
  private consideredAsBase = 0;
  /** Bricks that are sent in layers, and are not present yet: their distances from the prompt. */
  private readonly withBase = new Map<number, number>();

  /** `maxInFlight`: limit of the server. `clock`: returns seconds. `link`: what earlier uploads have shown. */
  constructor(
    shape: Index,
    maxInFlight: number,
    private readonly clock: () => number,
    private readonly link: Link,
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

  /**
   * Send the bricks of a box before all others, because a request waits for them, or for their base layers. Null: no
   * request waits. `prompted`: the voxel of the prompt, near which layers are finer; null: the focus.
   */
  prioritize(box: Box | null, baseLayersSuffice = false, prompted: Index | null = null): void {
    this.baseLayersSuffice = baseLayersSuffice;
    this.prompted = prompted;
    if (String(box) === String(this.awaited)) return;
    this.awaited = box;
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
      for (const layer of LAYERS) this.arrived(index, layer);
    }
    for (const index of base) this.arrived(index, 'base');
    this.window = Math.min(this.window, this.maxInFlight);
  }

  /** Return the encoding for parts of one message. Layers exist for the sake of fewer bytes. */
  encodingOf(parts: readonly BrickPart[]): Encoding {
    return parts.every(isWhole) ? this.link.encoding : 'deflate';
  }

  /** Note the size of the message of some parts, before it is sent. */
  sent(parts: readonly BrickPart[], bytes: number, encoding: Encoding): void {
    const key = keyOf(parts[0].index, parts[0].layer);
    const now = this.clock();
    const sent = this.inFlight.get(key) ?? now;
    this.messages.set(key, {
      size: sizeOf(parts),
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
      this.needed = this.awaited === null ? [] : this.grid.within(this.awaited);
      this.order = this.grid.nearestFirst(this.focus, this.needed);
      this.considered = this.consideredAsBase = 0;
    }
    const available = Math.min(this.messageSize(), this.window - this.sizeInFlight);
    const maxParts = Math.min(max, this.maxInFlight - this.inFlight.size);
    const baseLayers = Math.min(available / BASE_SIZE, maxParts);
    const sendsBase = isLayered && this.baseLayersSuffice && this.isSlow(this.present);
    const chosen = sendsBase ? this.nextBaseLayers(baseLayers, this.order, this.present) : [];
    // Base layers have messages of their own, so that a preview does not wait for enhancement layers.
    const hasBaseLayers = chosen.length > 0;
    while (
      !hasBaseLayers &&
      chosen.length < maxParts &&
      sizeOf(chosen) <= available - 1 &&
      this.considered < this.order.length
    ) {
      const index = this.order[this.considered++];
      const distance = this.withBase.get(index);
      const layer = distance === undefined ? 'whole' : 'enhancement';
      if (this.present[index] || this.inFlight.has(keyOf(index, layer))) continue;
      chosen.push({ index, layer, distance: distance ?? 0 });
    }
    const now = this.clock();
    for (const { index, layer } of chosen) this.inFlight.set(keyOf(index, layer), now);
    this.sizeInFlight += sizeOf(chosen);
    return chosen;
  }

  /** Return the size of the next message in whole bricks. */
  private messageSize(): number {
    const rate = this.link.bricksPerSecond;
    if (rate === null) return MIN_PER_MESSAGE;
    const least = this.awaited === null ? MIN_PER_UNHURRIED : MIN_PER_MESSAGE;
    const most = Math.min(MAX_PER_MESSAGE, Math.max(MIN_PER_MESSAGE, this.window / MESSAGES_IN_FLIGHT));
    return Math.min(Math.max(least, rate * MESSAGE_S), most);
  }

  private nextBaseLayers(max: number, order: Uint32Array, present: Uint8Array): BrickPart[] {
    const chosen: BrickPart[] = [];
    while (
      chosen.length <= max - 1 &&
      this.consideredAsBase < this.needed.length &&
      this.withBase.size < MAX_BASE_LAYERS
    ) {
      const index = order[this.consideredAsBase++];
      const isSent = this.withBase.has(index) || this.inFlight.has(keyOf(index, 'whole'));
      if (present[index] || isSent) continue;
      const distance = this.grid.distance(index, this.prompted ?? this.focus);
      this.withBase.set(index, distance);
      chosen.push({ index, layer: 'base', distance });
    }
    return chosen;
  }

  /** Whether the bricks that a prompt waits for would take long, as far as is known. */
  private isSlow(present: Uint8Array): boolean {
    const rate = this.link.bricksPerSecond;
    return rate === null || this.needed.filter((index) => !present[index]).length > SLOW_S * rate;
  }

  private arrived(index: number, layer: Layer): void {
    const key = keyOf(index, layer);
    const sent = this.inFlight.get(key);
    if (sent === undefined) return;
    this.inFlight.delete(key);
    const now = this.clock();
    const size = sizeOfLayer(layer);
    this.sizeInFlight -= size;
    this.shortestDelay = Math.min(this.shortestDelay, now - sent);
    if (now - sent <= this.shortestDelay + LATE_S) this.window += size;
    else if (sent >= this.shrunkAt) {
      this.window = Math.max(SMALLEST_WINDOW, SHRINK * this.window);
      this.shrunkAt = now;
    }
    const message = this.messages.get(key);
    if (message === undefined) return;
    this.messages.delete(key);
    this.link.acknowledge(message, now);
  }
}

function keyOf(index: number, layer: Layer): number {
  return LAYERS.length * index + LAYERS.indexOf(layer);
}

/** Return the size of a layer in whole bricks, roughly. Enhancement layers are hardly smaller. */
function sizeOfLayer(layer: Layer): number {
  return layer === 'base' ? BASE_SIZE : 1;
}

function sizeOf(parts: readonly BrickPart[]): number {
  return parts.reduce((size, { layer }) => size + sizeOfLayer(layer), 0);
}

function isWhole({ layer }: BrickPart): boolean {
  return layer === 'whole';
}
