/** Names, colors and visibility of segments. Their masks and histories are in the client's core. */

import { array, bool, float, integer, struct, triple } from '../client/fields';
import { readValue, STORED_TEXT, type TextStore } from './browserStore';
import type { Rgb } from './viewer';

/** A segment as the user sees it. `id` is its name in the protocol, and does not change when it is renamed. */
export interface SegmentInfo {
  readonly id: string;
  /** Its label in the views, from 1 to 255. */
  readonly label: number;
  name: string;
  color: Rgb;
  isVisible: boolean;
}

/** Distinct colors, light enough for a dark image. */
export const PALETTE: readonly Rgb[] = [
  [255, 196, 61],
  [77, 208, 225],
  [186, 140, 255],
  [129, 212, 96],
  [255, 138, 128],
  [100, 161, 255],
  [255, 128, 196],
  [214, 189, 152],
];

/** Number of labels: the views have one byte for each voxel, and 0 is no segment. */
const MAX_SEGMENTS = 255;

/** The segments of an image, in the order of the list. */
export class SegmentList {
  readonly all: SegmentInfo[] = [];
  activeId: string | null = null;

  get active(): SegmentInfo | null {
    return this.find(this.activeId);
  }

  find(id: string | null): SegmentInfo | null {
    return this.all.find((segment) => segment.id === id) ?? null;
  }

  /** Add an empty segment and select it. Return null if there are too many. `used`: ids that it must not have. */
  add(used: ReadonlySet<string> = new Set()): SegmentInfo | null {
    const numbers = new Set(this.all.map(({ label }) => label));
    const isFree = (label: number) => !numbers.has(label) && !used.has(idOf(label));
    const label = Array.from({ length: MAX_SEGMENTS }, (_, n) => n + 1).find(isFree);
    if (label === undefined) return null;
    return this.insert(idOf(label), label);
  }

  /** Add the segment of a journal, and select it. */
  restore(id: string): SegmentInfo | null {
    const label = Number(/^segment-(\d+)$/.exec(id)?.[1]);
    if (Number.isInteger(label) && label >= 1 && label <= MAX_SEGMENTS) return this.insert(id, label);
    return null;
  }

  /** Remove a segment, and select its neighbor. */
  remove(id: string): void {
    const at = this.all.findIndex((segment) => segment.id === id);
    if (at < 0) return;
    this.all.splice(at, 1);
    if (this.activeId === id) this.activeId = (this.all.at(at) ?? this.all.at(-1))?.id ?? null;
  }

  clear(): void {
    this.all.length = 0;
    this.activeId = null;
  }

  private insert(id: string, label: number): SegmentInfo {
    const color = PALETTE[(label - 1) % PALETTE.length];
    const segment = { id, label, name: `Segment ${label}`, color, isVisible: true };
    this.all.push(segment);
    this.activeId = id;
    return segment;
  }
}

function idOf(label: number): string {
  return `segment-${label}`;
}

const KEY = 'nninteractive-ws.segments.';
/** Images whose names and colors are kept. */
const MAX_IMAGES = 20;

type StoredInfo = Pick<SegmentInfo, 'id' | 'name' | 'color' | 'isVisible'>;
interface StoredList {
  savedAt: number;
  segments: StoredInfo[];
}

const STORED_INFO = struct<StoredInfo>({
  id: STORED_TEXT,
  name: STORED_TEXT,
  color: triple(integer(0, 255)),
  isVisible: bool,
});
const STORED_LIST = struct<StoredList>({ savedAt: float, segments: array(STORED_INFO, MAX_SEGMENTS) });

/** Keep names, colors and visibility for an image, for all tabs. `image`: its name in the protocol. */
export function storeInfos(store: TextStore, image: string, list: SegmentList, now: number): void {
  const stored: StoredList = {
    savedAt: now,
    segments: list.all.map(({ id, name, color, isVisible }) => ({ id, name, color, isVisible })),
  };
  store.setItem(KEY + image, JSON.stringify(stored));
  const savedAt = (key: string) => readValue(store, key, STORED_LIST)?.savedAt ?? 0;
  for (const key of storedKeys(store)
    .sort((a, b) => savedAt(b) - savedAt(a))
    .slice(MAX_IMAGES))
    store.removeItem(key);
}

/** Delete names, colors and visibility of all images. */
export function clearInfos(store: TextStore): void {
  for (const key of storedKeys(store)) store.removeItem(key);
}

/** Set names, colors and visibility of restored segments as they were kept. Empty segments return, too. */
export function restoreInfos(store: TextStore, image: string, list: SegmentList): void {
  for (const stored of readValue(store, KEY + image, STORED_LIST)?.segments ?? []) {
    const segment = list.find(stored.id) ?? list.restore(stored.id);
    if (segment !== null) Object.assign(segment, stored);
  }
}

function storedKeys(store: TextStore): string[] {
  return Array.from({ length: store.length }, (_, n) => store.key(n) ?? '').filter((key) => key.startsWith(KEY));
}
