/** A runner of the conformance suite, whose format tests/conformance/README.md describes. */
import { Decoder, Encoder } from '@msgpack/msgpack';
import assert from 'node:assert/strict';
import { unzlibSync } from 'fflate';
import { Grid } from '../../src/client/bricks';
import { Core, type Image } from '../../src/client/core';
import type { Event, MaskDeltaEvent } from '../../src/client/events';
import { boxShape, countVoxels, wholeBox, type Box, type Index } from '../../src/client/geometry';
import { ImageSource } from '../../src/client/imageSource';
import type { DType } from '../../src/client/messages';
import { createPacker } from '../../src/client/packing';
import { wireArray } from '../../src/client/voxels';

/** A value of the files. */
export type Json = string | number | boolean | null | Json[] | JsonMap;
export interface JsonMap {
  [key: string]: Json;
}
type Value = string | number | boolean | null | Uint8Array | Value[] | ValueMap;
interface ValueMap {
  [key: string]: Value;
}

/** An image of the suite: its voxels under the name that the scenario gives it. */
interface NamedImage extends Image {
  readonly source: ImageSource;
}

interface Step {
  readonly start?: true;
  readonly command?: JsonMap;
  readonly receive?: JsonMap | null;
  readonly frame?: string;
  readonly upload?: { readonly bricks: number[]; readonly first?: number[]; readonly present?: number };
  readonly expect?: JsonMap;
}

export interface Scenario {
  readonly title: string;
  readonly images: Record<string, JsonMap>;
  readonly steps: readonly Step[];
}

interface RunLengths {
  readonly box: Box;
  readonly runs: number[];
}

const ENCODINGS = ['deflate', 'raw'] as const;
const BYTE_STRINGS = ['data', 'present_bricks'];
const ANY_SESSION = 'any';
const encoder = new Encoder();
const decoder = new Decoder();

/** Drives a core through a scenario. Throws if it does not conform. */
export class Runner {
  private readonly core = new Core<NamedImage>({ encodings: ENCODINGS });
  private readonly labels = new Map<string, number>();
  /** The client's ids by the scenario's. */
  private readonly ids = new Map<number, number>();
  private sent: ValueMap[] = [];
  private noted: Record<'answers' | 'progress' | 'notices', Json[]> = { answers: [], progress: [], notices: [] };
  private shape: Index = [0, 0, 0];
  private limit = 0;
  /** Masks reconstructed from the events. */
  private readonly maskFromEvents = new Map<string, Uint8Array>();

  /** `defaults`: those of the messages of a client, from defaults.json. */
  private constructor(
    private readonly scenario: Scenario,
    private readonly images: ReadonlyMap<string, NamedImage>,
    private readonly defaults: Record<string, JsonMap>,
  ) {}

  static async run(scenario: Scenario, defaults: Record<string, JsonMap>): Promise<void> {
    const images = new Map<string, NamedImage>();
    for (const [name, image] of Object.entries(scenario.images)) images.set(name, await makeImage(name, image));
    new Runner(scenario, images, defaults).run();
  }

  private run(): void {
    this.scenario.steps.forEach((step, number) => {
      try {
        this.act(step);
        this.check(step.expect ?? {});
      } catch (error) {
        if (error instanceof Error) error.message = `step ${number}: ${error.message}`;
        throw error;
      }
    });
    this.drain();
    assert.deepEqual([this.sent, this.noted.answers], [[], []], 'more happened than was expected');
  }

  // ---- actions ----------------------------------------------------------------------------------------------

  private act(step: Step): void {
    if (step.start) {
      this.drain();
      this.core.start();
      this.note(this.core.takeEvents());
    } else if (step.command) this.command(step.command);
    else if (step.frame !== undefined) this.receive(step.receive ?? null, step.frame);
    else if (step.upload) this.upload(step.upload);
    this.drain();
  }

  private command({ name, label, ...args }: JsonMap): void {
    const { core } = this;
    const segment = args.segment as string;
    const options = args as { positive?: boolean; run?: boolean; autozoom?: boolean; previews?: boolean };
    const draw = (): [Uint8Array, Box | null] => {
      const drawn = args.mask as unknown as RunLengths | null;
      return drawn === null ? [new Uint8Array(countVoxels(this.shape)), null] : [voxelsOf(drawn), drawn.box];
    };
    const commands: Record<string, () => number | undefined> = {
      set_image: () => {
        const image = this.image(args.image as string);
        this.shape = image.shape;
        return core.setImage(image);
      },
      add_point: () => core.addPoint(segment, args.point as unknown as Index, options),
      add_bbox: () => core.addBbox(segment, args.box as unknown as Box, options),
      add_scribble: () => core.addScribble(segment, ...draw(), options),
      add_lasso: () => core.addLasso(segment, ...draw(), options),
      set_mask: () => core.setMask(segment, ...draw(), options),
      flip_mask: () => core.flipMask(segment, ...draw()),
      run: () => core.run(segment),
      undo: () => core.undo(segment),
      redo: () => core.redo(segment),
      reset: () => core.reset(segment),
      remove_segment: () => core.removeSegment(segment),
      set_options: () => core.setOptions(options),
      cancel: () => {
        core.cancel(this.labels.get(label as string));
        return undefined;
      },
      bye: () => {
        core.bye();
        return undefined;
      },
    };
    const number = commands[name as string]();
    if (number !== undefined && typeof label === 'string') this.labels.set(label, number);
    this.note(core.takeEvents());
  }

  private image(name: string): NamedImage {
    const image = this.images.get(name);
    assert(image !== undefined, `The scenario has no image ${name}.`);
    return image;
  }

  private receive(message: JsonMap | null, frame: string): void {
    if (message?.type === 'welcome') this.limit = (message.limits as JsonMap).unacknowledged_bricks as number;
    const translated = message === null ? null : this.translated(message);
    const isSame = JSON.stringify(translated) === JSON.stringify(message);
    const bytes = isSame ? Buffer.from(frame, 'hex') : encoder.encode(fromJson(translated));
    this.note(this.core.receive(new Uint8Array(bytes)));
  }

  /** Return a message with the ids of the client. */
  private translated(message: JsonMap): JsonMap {
    const result = { ...message };
    for (const key of ['id', 'request', 'last_id']) {
      const id = message[key];
      if (typeof id === 'number') result[key] = this.ids.get(id) ?? id;
    }
    return result;
  }

  private upload({ bricks, first = [], present = 0 }: NonNullable<Step['upload']>): void {
    const sent: number[] = [];
    for (let batch = this.takeBricks(); batch.indices.length > 0; batch = this.takeBricks()) {
      assert(batch.indices.length <= this.limit, `${batch.indices.length} bricks are in flight`);
      sent.push(...batch.indices);
      const progress = {
        type: 'image_progress',
        image: batch.image,
        received: batch.indices,
        present: present + sent.length,
        total: new Grid(this.shape).length,
      };
      this.note(this.core.receive(encoder.encode(progress)));
    }
    assert.deepEqual([...sent].sort(ascending), [...bricks].sort(ascending));
    assert.deepEqual(sent.slice(0, first.length).sort(ascending), [...first].sort(ascending));
  }

  /** Take bricks until the client has none to send. */
  private takeBricks(): { image: string; indices: number[] } {
    const indices: number[] = [];
    let image = '';
    for (let batch = this.core.nextBricks(); batch !== null; batch = this.core.nextBricks()) {
      const { source } = batch.image;
      const bricks = batch.parts.map(({ index, layer }) => {
        assert.equal(layer, 'whole', 'no welcome of the suite has the feature of layers');
        return { index, encoding: 'raw' as const, data: source.brick(index), layer, low_bits: 0 };
      });
      const frame = this.core.brickFrame(batch, bricks);
      assert(frame !== null);
      const message = decoder.decode(frame) as ValueMap;
      image = message.image as string;
      assert(bricks.length <= 64);
      for (const brick of message.bricks as ValueMap[]) {
        const index = brick.index as number;
        assert.deepEqual(brick.data, expectedBrick(this.scenario.images[image], index), `voxels of brick ${index}`);
        indices.push(index);
      }
    }
    return { image, indices };
  }

  // ---- what the core does -----------------------------------------------------------------------------------

  private drain(): void {
    for (let frame = this.core.nextControl(); frame !== null; frame = this.core.nextControl()) {
      // A driver sends nothing on a connection that the core has ended.
      if (this.core.ended === null) this.sent.push(decoder.decode(frame) as ValueMap);
    }
  }

  private note(events: readonly Event[]): void {
    const label = (request: number): string | null =>
      [...this.labels].find(([, number]) => number === request)?.[0] ?? null;
    for (const event of events) {
      if (event.type === 'done') {
        const { request, segment, revision, voxels, changed } = event.result;
        const done = { segment, revision, voxels, changed: changed as Json };
        this.noted.answers.push({ label: label(request), done });
      } else if (event.type === 'failed') {
        this.noted.answers.push({ label: label(event.request), error: event.error.code });
      } else if (event.type === 'progress') {
        const { request, state, done, total } = event;
        this.noted.progress.push({ label: label(request), state, done, total });
      } else if (event.type === 'notice') this.noted.notices.push(event.code);
      else if (event.type === 'mask_delta') this.noteMask(event);
      else if (event.type === 'segment_removed') this.maskFromEvents.delete(event.segment);
      else if (event.type === 'masks_dropped') this.maskFromEvents.clear();
    }
  }

  private noteMask({ segment, box, change }: MaskDeltaEvent): void {
    const mask = this.maskFromEvents.get(segment) ?? new Uint8Array(countVoxels(this.shape));
    this.maskFromEvents.set(segment, mask);
    const [, nj, nk] = this.shape;
    for (let n = 0; n < change.length; n += 2) {
      for (let at = change[n]; at < change[n + 1]; at++) {
        mask[at] ^= 1;
        const voxel = [Math.floor(at / (nj * nk)), Math.floor(at / nk) % nj, at % nk];
        assert(
          voxel.every((position, axis) => position >= box[axis][0] && position < box[axis][1]),
          `voxel ${voxel.join()} changed outside of the box of an event`,
        );
      }
    }
  }

  // ---- expectations -----------------------------------------------------------------------------------------

  private check(expect: JsonMap): void {
    for (const [key, expected] of Object.entries(expect)) {
      if (key === 'sends') this.checkSends(expected as JsonMap[]);
      else if (key === 'masks') this.checkMasks(expected as JsonMap);
      else if (key === 'histories') this.checkHistories(expected as JsonMap);
      else if (key === 'bricks_wait') assert.deepEqual(this.takeBricks().indices, []);
      else if (key === 'closed') assert.equal(this.closed(), expected);
      else if (key === 'refused') assert(['bad_message', 'too_large'].includes(this.closed() ?? ''), 'not refused');
      else {
        const happened = key as keyof typeof this.noted;
        assert.deepEqual(this.noted[happened], expected);
        this.noted[happened] = [];
      }
    }
    for (const [name, { mask }] of this.core.segments) {
      assert.deepEqual(this.maskFromEvents.get(name) ?? new Uint8Array(mask.length), mask, `the events of ${name}`);
    }
    if (!('closed' in expect || 'refused' in expect)) assert.notEqual(this.closed(), 'bad_message');
  }

  private closed(): string | null {
    if (this.core.ended === null) return null;
    return this.core.isDormant ? 'evicted' : this.core.ended.code;
  }

  private checkSends(expected: JsonMap[]): void {
    for (const item of expected) {
      const left = 'any_order' in item ? [...(item.any_order as JsonMap[])] : [item];
      while (left.length > 0) {
        const message = this.sent.shift();
        assert(message !== undefined, `${JSON.stringify(left[0])} was not sent`);
        const found = left.findIndex((one) => this.matches(one, message));
        assert(found >= 0, `${JSON.stringify(message)} was sent, not ${JSON.stringify(left)}`);
        const [one] = left.splice(found, 1);
        if (typeof one.id === 'number') this.ids.set(one.id, message.id as number);
      }
    }
    assert.deepEqual(this.sent, [], 'more was sent');
  }

  private matches(expected: JsonMap, sent: ValueMap): boolean {
    const ours: ValueMap = this.withoutDefaults(expected);
    const theirs = this.withoutDefaults(sent);
    const free = expected.type === 'hello' ? ['client', 'features'] : [];
    if (expected.session_id === ANY_SESSION) free.push('session_id', 'session_secret');
    if (typeof expected.id === 'number') {
      const id = theirs.id as number;
      const known = this.ids.get(expected.id);
      if (known === undefined ? id <= Math.max(0, ...this.ids.values()) : id !== known) return false;
      free.push('id');
    }
    if (typeof ours.request === 'number') ours.request = this.ids.get(ours.request) ?? 0;
    return isEqual(without(ours, free), without(theirs, free));
  }

  private withoutDefaults(message: ValueMap): ValueMap {
    const defaults = (this.defaults[message.type as string] as JsonMap | undefined) ?? {};
    const kept = Object.entries(message).filter(([key, value]) => !(key in defaults) || !isEqual(defaults[key], value));
    return Object.fromEntries(
      kept.map(([key, value]) =>
        key === 'steps' || key === 'undone' ? [key, (value as ValueMap[]).map((s) => this.plainStep(s))] : [key, value],
      ),
    );
  }

  private plainStep(step: ValueMap): ValueMap {
    const request = without(this.withoutDefaults(step.request as ValueMap), ['id']);
    return { request, change: step.change ?? null };
  }

  private checkMasks(expected: JsonMap): void {
    for (const [name, mask] of Object.entries(expected) as [string, JsonMap | null][]) {
      const segment = this.core.segments.get(name);
      if (mask === null) {
        assert(segment === undefined || (segment.isEmpty && segment.revision === 0 && segment.voxels === 0), name);
        continue;
      }
      assert(segment !== undefined, `there is no segment ${name}`);
      const whole = { box: wholeBox(segment.shape), voxels: segment.mask };
      const runs = mask.mask as unknown as RunLengths | null;
      const theirs = runs === null ? [] : setVoxels(runs.box, voxelsOf(runs));
      assert.deepEqual(setVoxels(whole.box, whole.voxels), theirs, `mask of ${name}`);
      assert.deepEqual([segment.revision, segment.voxels], [mask.revision, mask.voxels], name);
    }
  }

  private checkHistories(expected: JsonMap): void {
    for (const [name, history] of Object.entries(expected) as [string, JsonMap][]) {
      const segment = this.core.segments.get(name);
      assert(segment !== undefined, `there is no segment ${name}`);
      for (const key of ['steps', 'undone'] as const) {
        const theirs = segment[key].map((step) => this.plainStep(step as unknown as ValueMap));
        const ours = (history[key] as ValueMap[]).map((step) => this.plainStep(step));
        assert(isEqual(ours, theirs), `${key} of ${name}: ${JSON.stringify(theirs)}`);
      }
    }
  }
}

function ascending(a: number, b: number): number {
  return a - b;
}

function without(map: ValueMap, keys: readonly string[]): ValueMap {
  return Object.fromEntries(Object.entries(map).filter(([key]) => !keys.includes(key)));
}

/** Return a message of the files with its byte strings. */
function fromJson(value: Json, key = ''): Value {
  if (Array.isArray(value)) return value.map((item) => fromJson(item));
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, fromJson(item, name)]));
  }
  return typeof value === 'string' && BYTE_STRINGS.includes(key) ? Buffer.from(value, 'hex') : value;
}

/** Voxels of the box of run lengths, one byte each. */
function voxelsOf({ box, runs }: RunLengths): Uint8Array {
  const voxels = new Uint8Array(countVoxels(boxShape(box)));
  let at = 0;
  runs.forEach((length, n) => {
    voxels.fill(n % 2, at, at + length);
    at += length;
  });
  return voxels;
}

/** The indices of set voxels of a box, as texts. */
function setVoxels(box: Box, voxels: Uint8Array): string[] {
  const [, nj, nk] = boxShape(box);
  return [...voxels].flatMap((set, at) =>
    set
      ? [`${box[0][0] + Math.floor(at / (nj * nk))},${box[1][0] + (Math.floor(at / nk) % nj)},${box[2][0] + (at % nk)}`]
      : [],
  );
}

function isMask(value: Value): value is ValueMap {
  return typeof value === 'object' && value !== null && 'runs' in value;
}

/** Compare values of the files (`ours`) with decoded ones. Masks are equal if their voxels are. */
function isEqual(ours: Value, theirs: Value): boolean {
  if (isMask(theirs) && (ours === null || isMask(ours))) {
    const mask = ours as unknown as RunLengths | null;
    const sent = plainRunLengths(theirs);
    const expected = mask === null ? [] : setVoxels(mask.box, voxelsOf(mask));
    return expected.join(';') === setVoxels(sent.box, voxelsOf(sent)).join(';');
  }
  if (Array.isArray(ours) && Array.isArray(theirs)) {
    return ours.length === theirs.length && ours.every((item, n) => isEqual(item, theirs[n]));
  }
  if (typeof ours === 'number' && typeof theirs === 'number') {
    return ours === theirs || Math.abs(ours - theirs) <= 1e-9 * Math.abs(ours);
  }
  if (typeof ours === 'object' && typeof theirs === 'object' && ours !== null && theirs !== null) {
    const [a, b] = [ours as ValueMap, theirs as ValueMap];
    const keys = Object.keys(a).sort();
    return keys.join() === Object.keys(b).sort().join() && keys.every((key) => isEqual(a[key], b[key]));
  }
  return ours === theirs;
}

function plainRunLengths({ box, runs, encoding, data }: ValueMap): RunLengths {
  const plain = encoding === 'deflate' ? unzlibSync(data as Uint8Array) : (data as Uint8Array);
  const lengths = [...new Uint32Array(plain.slice().buffer)];
  assert.equal(lengths.length, runs);
  return { box: box as unknown as Box, runs: lengths };
}

/** Voxel (i, j, k) of an image of the files. */
function voxelOf(image: JsonMap, i: number, j: number, k: number): number {
  const [a, b, c] = image.factors as number[];
  return ((a * i + b * j + c * k) % (image.modulus as number)) + (image.offset as number);
}

/** An image of the files with i as the fastest axis in memory, as in a NIfTI file. */
async function makeImage(name: string, image: JsonMap): Promise<NamedImage> {
  const shape = image.shape as unknown as Index;
  const voxels = wireArray(image.dtype as DType, countVoxels(shape));
  let at = 0;
  for (let k = 0; k < shape[2]; k++) {
    for (let j = 0; j < shape[1]; j++) for (let i = 0; i < shape[0]; i++) voxels[at++] = voxelOf(image, i, j, k);
  }
  const source = new ImageSource(name, shape, voxels, [1, shape[0], shape[0] * shape[1]]);
  await source.prepare(createPacker());
  const { statistics, dtype, lowBits } = source;
  assert(isEqual([image.mean, image.std], [statistics.mean, statistics.std]), JSON.stringify(statistics));
  return { name, shape, dtype, statistics, lowBits, source };
}

/** The bytes of a brick of an image of the files. */
function expectedBrick(image: JsonMap, index: number): Uint8Array {
  const [i, j, k] = new Grid(image.shape as unknown as Index).box(index);
  const voxels = wireArray(image.dtype as DType, countVoxels(boxShape([i, j, k])));
  let at = 0;
  for (let a = i[0]; a < i[1]; a++) {
    for (let b = j[0]; b < j[1]; b++) for (let c = k[0]; c < k[1]; c++) voxels[at++] = voxelOf(image, a, b, c);
  }
  return new Uint8Array(voxels.buffer);
}
