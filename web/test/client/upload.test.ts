/** Upload of the image: which bricks and layers of them the client sends, and in which encoding. */
import { Decoder, Encoder } from '@msgpack/msgpack';
import { describe, expect, it } from 'vitest';
import { unpack } from '../../src/client/arrays';
import { MAX_BASE_LAYERS } from '../../src/client/bricks';
import { Core } from '../../src/client/core';
import { boxShape, countVoxels, wholeBox, type Box, type Index } from '../../src/client/geometry';
import { ImageSource } from '../../src/client/imageSource';
import { Link } from '../../src/client/link';
import type { Brick } from '../../src/client/messages';
import { createPacker } from '../../src/client/packing';
import { LAYERED_BRICKS } from '../../src/client/protocol';
import { Upload } from '../../src/client/upload';
import { WELCOME, type Message } from './fakeServer';
import { Random } from './random';

const LAYERED = { ...WELCOME, encoding: 'deflate', features: [LAYERED_BRICKS] };
/** 64 bricks, which are thin so that they are packed fast. */
const SHAPE: Index = [256, 256, 2];
const packer = createPacker();

/** Noise of about the deviation of a CT, 500. */
async function ctLike(shape: Index): Promise<ImageSource> {
  const random = new Random(0);
  const voxels = Int16Array.from({ length: countVoxels(shape) }, () => random.integer(-866, 866));
  const image = new ImageSource('scan', shape, voxels, [shape[1] * shape[2], shape[2], 1]);
  await image.prepare(packer);
  return image;
}

/** A core with an announced image, a server that receives its bricks, and a clock. */
class Session {
  now = 100;
  readonly core = new Core<ImageSource>({ clock: () => this.now });
  /** The parts that were sent, in order. */
  readonly sent: string[] = [];

  constructor(
    readonly image: ImageSource,
    welcome: Message = LAYERED,
  ) {
    this.core.start();
    this.tell(welcome);
    this.tell({ type: 'done', id: this.core.setImage(image) });
  }

  tell(message: Message): void {
    this.core.receive(new Encoder().encode(message));
  }

  /** Let a prompt wait for all bricks, none of which is present. */
  waitingPrompt(baseLayersSuffice = true): number {
    const id = this.core.addPoint('a', [0, 0, 0]);
    this.acknowledge([]);
    this.tell({
      type: 'progress',
      id,
      state: 'waiting_for_image',
      box: wholeBox(this.image.shape),
      base_layers_suffice: baseLayersSuffice,
    });
    return id;
  }

  async nextParts(): Promise<Brick[]> {
    const batch = this.core.nextBricks();
    if (batch === null) return [];
    const packed = await Promise.all(batch.parts.map((part) => batch.image.packBrick(part, batch.encoding, packer)));
    const frame = this.core.brickFrame(batch, packed);
    if (frame === null) throw new Error('The upload has ended.');
    const { bricks } = new Decoder().decode(frame) as { bricks: Brick[] };
    this.sent.push(...bricks.map(({ index, layer }) => `${layer} ${index}`));
    return bricks;
  }

  acknowledge(parts: readonly Brick[]): void {
    const indices = (isBase: boolean) => parts.filter(({ layer }) => (layer === 'base') === isBase).map((b) => b.index);
    this.tell({
      type: 'image_progress',
      image: this.image.name,
      received: indices(false),
      received_base: indices(true),
      present: 0,
      total: this.image.grid.length,
    });
  }

  /** Receive all parts, each message in some seconds. */
  async receiveAll(onParts: (parts: readonly Brick[]) => void = () => undefined, seconds = 1): Promise<void> {
    for (let parts = await this.nextParts(); parts.length > 0; parts = await this.nextParts()) {
      onParts(parts);
      this.now += seconds;
      this.acknowledge(parts);
    }
  }
}

describe('on a slow link', () => {
  it('a waiting prompt gets all base layers first, and then all voxels', async () => {
    const session = new Session(await ctLike(SHAPE));
    const { image } = session;
    session.waitingPrompt();
    const received = new Map<number, Uint8Array>();
    const bitsOf = new Map<number, Set<number>>();
    await session.receiveAll((parts) => {
      for (const { index, data, encoding, layer, low_bits } of parts) {
        expect(encoding).toBe('deflate');
        bitsOf.set(index, (bitsOf.get(index) ?? new Set()).add(low_bits));
        const bits = unpack(data, encoding, 2 * countVoxels(boxShape(image.grid.box(index))));
        const base = received.get(index) ?? new Uint8Array(bits.length);
        expect(received.has(index)).toBe(layer === 'enhancement');
        received.set(
          index,
          bits.map((byte, at) => byte | base[at]),
        );
      }
    });
    const nearest = [...image.grid.nearestFirst([0, 0, 0], [])];
    expect(session.sent).toEqual([...nearest.map((i) => `base ${i}`), ...nearest.map((i) => `enhancement ${i}`)]);
    for (const index of nearest) expect(received.get(index)).toEqual(image.brick(index));
    // Finer near the prompt: the distances are 0, 32 and more than 64.
    expect([0, 1, 63].map((n) => [...(bitsOf.get(nearest[n]) ?? [])])).toEqual([[2], [5], [6]]);
  });

  it('no brick is lost if the focus changes between its layers', async () => {
    const session = new Session(await ctLike(SHAPE));
    session.waitingPrompt();
    let n = 0;
    await session.receiveAll(() => {
      if (n++ % 3 === 0) session.core.addPoint('a', [(50 * n) % 256, (70 * n) % 256, 0]);
    });
    expect(new Set(session.sent).size).toBe(session.sent.length);
    const layers = (layer: string) =>
      session.sent
        .flatMap((part) => (part.startsWith(layer) ? [Number(part.split(' ')[1])] : []))
        .sort((a, b) => a - b);
    expect(layers('base').length).toBeGreaterThan(0);
    expect(layers('enhancement')).toEqual(layers('base'));
    const all = [...layers('whole'), ...layers('base')].sort((a, b) => a - b);
    expect(all).toEqual(Array.from({ length: session.image.grid.length }, (_, index) => index));
  });

  it.each(Array.from({ length: 30 }, (_, n) => n + 1))(
    'the layers of a brick travel in separate messages, with %i missing bricks',
    (missing) => {
      let now = 100;
      const upload = new Upload([32 * 40, 32, 32], 128, () => now, new Link('deflate'));
      upload.setFocus([0, 0, 0]);
      const layers = new Map<number, string[]>();
      const deliver = (messages: number): void => {
        for (let n = 0; n < messages; n++) {
          const parts = upload.next(8, true);
          if (parts.length === 0) return;
          expect(new Set(parts.map(({ index }) => index)).size).toBe(parts.length);
          upload.sent(parts, 20_000 * parts.length, 'deflate');
          now += parts.length;
          for (const { index, layer } of parts) layers.set(index, [...(layers.get(index) ?? []), layer]);
          const indices = (isBase: boolean) =>
            parts.filter(({ layer }) => (layer === 'base') === isBase).map(({ index }) => index);
          upload.acknowledge(indices(false), indices(true));
        }
      };
      upload.acknowledge([]);
      deliver(2);
      const first = layers.size;
      const awaited: Box = [
        [32 * first, 32 * (first + missing)],
        [0, 32],
        [0, 32],
      ];
      upload.prioritize(awaited, true);
      deliver(1000);
      // One brick takes a second, which is no reason for layers.
      const isLayered = (n: number) => missing > 1 && n >= first && n < first + missing;
      const expected = Array.from({ length: 40 }, (_, n) => (isLayered(n) ? ['base', 'enhancement'] : ['whole']));
      expect(Array.from(expected, (_, n) => layers.get(n))).toEqual(expected);
    },
  );

  it('base layers wait until the image is set again', async () => {
    const session = new Session(await ctLike(SHAPE));
    session.waitingPrompt();
    const first = await session.nextParts();
    const id = session.core.setImage(session.image);
    session.acknowledge(first); // of the upload before
    session.waitingPrompt();
    expect((await session.nextParts())[0].layer).toBe('whole');
    session.tell({ type: 'done', id });
    expect((await session.nextParts())[0].layer).toBe('base');
  });

  it('layers are fine near the prompt that waits, not near a later one', async () => {
    const session = new Session(await ctLike(SHAPE));
    session.waitingPrompt();
    session.core.addPoint('b', [255, 255, 1]);
    expect(kindsOf(await session.nextParts())).toEqual(['base 6']);
  });

  it('few bricks have a base layer alone', async () => {
    // A thin image has many bricks.
    const session = new Session(await ctLike([32 * (MAX_BASE_LAYERS + 100), 1, 1]));
    session.waitingPrompt();
    let [alone, most] = [0, 0];
    await session.receiveAll((parts) => {
      for (const { layer } of parts) alone += Number(layer === 'base') - Number(layer === 'enhancement');
      most = Math.max(alone, most);
    });
    expect([alone, most]).toEqual([0, MAX_BASE_LAYERS]);
  });

  it('bricks that began raw, near the server, are deflated', async () => {
    const session = new Session(await ctLike([512, 256, 2]), { ...WELCOME, encoding: 'raw' });
    session.acknowledge([]);
    const encodings = new Set<string>();
    await session.receiveAll((parts) => encodings.add(parts[0].encoding));
    expect([...encodings]).toEqual(['raw', 'deflate']);
  });
});

describe('an image that is set again after another one', () => {
  const bits = Uint8Array.of(255, 255, 255, 255, 255, 255, 255, 255);

  async function play(isLost: boolean): Promise<void> {
    const [image, other] = [await ctLike(SHAPE), await ctLike([40, 40, 2])];
    const session = new Session(image);
    const { core } = session;
    const progress = (indices: readonly number[]): number[] =>
      core
        .receive(
          new Encoder().encode({ type: 'image_progress', image: image.name, received: indices, present: 0, total: 64 }),
        )
        .flatMap((event) => (event.type === 'image_progress' ? [event.present] : []));
    progress(range64);
    if (isLost) core.start();
    const second = core.setImage(other);
    core.setImage(image);
    if (isLost) session.tell({ ...LAYERED, resumed: true, image: image.name, present_bricks: bits, last_id: 1 });
    expect(progress(range64)).toEqual([]);
    session.tell({ type: 'done', id: 1 });
    expect(progress(range64)).toEqual([]);
    expect(core.nextBricks()).toBeNull();
    session.tell({ type: 'done', id: second });
    expect(progress([])).toEqual([0]);
    await session.receiveAll();
    expect(session.sent).toHaveLength(64);
  }

  const range64 = Array.from({ length: 64 }, (_, n) => n);

  it('is sent again', () => play(false));
  it('is sent again after a lost connection', () => play(true));
});

describe('the order of bricks', () => {
  const [image, box]: [Promise<ImageSource>, Box] = [
    ctLike(SHAPE),
    [
      [0, 60],
      [70, 130],
      [0, 2],
    ],
  ];

  async function reconnect(core: Core<ImageSource>, resumed: boolean): Promise<number[]> {
    const { name } = await image;
    core.start();
    core.receive(
      new Encoder().encode({ ...WELCOME, resumed, image: name, present_bricks: new Uint8Array(8), last_id: 2 }),
    );
    core.receive(new Encoder().encode({ type: 'image_progress', image: name, received: [], present: 0, total: 64 }));
    const messages = Array.from({ length: 4 }, () => core.nextBricks()?.parts ?? []);
    return messages.flat().map(({ index }) => index);
  }

  it('has the patch around a prompt first, before the server tells', async () => {
    const session = new Session(await image);
    const { grid } = session.image;
    session.core.addPoint('a', [100, 60, 1]);
    session.acknowledge([]);
    const [i, j, k] = (WELCOME.model as { patch_size: Index }).patch_size;
    const patch = grid.within([
      [100 - i / 2, 100 + i / 2],
      [60 - j / 2, 60 + j / 2],
      [1 - k / 2, 1 + k / 2],
    ]);
    await session.receiveAll();
    expect(new Set(session.sent.slice(0, patch.length))).toEqual(new Set(patch.map((index) => `base ${index}`)));
  });

  it.each(['done', 'error', 'cancelled'])('forgets a prompt that has ended: %s', async (end) => {
    const session = new Session(await image, WELCOME);
    const id = session.core.addPoint('a', [0, 0, 0]);
    session.acknowledge([]);
    const far: Box = [
      [130, 250],
      [70, 130],
      [0, 2],
    ];
    const waiting = { type: 'progress', id, state: 'waiting_for_image', box: far };
    session.tell(waiting);
    if (end === 'done') session.tell({ type: 'done', id, segment: 'a' });
    else if (end === 'error') session.tell({ type: 'error', id, code: 'internal', message: 'Failed.' });
    else {
      session.core.cancel(id);
      session.tell(waiting); // sent before the server heard of it
    }
    await session.receiveAll();
    const order = [...session.image.grid.nearestFirst([0, 0, 0], [])];
    expect(session.sent).toEqual(order.map((index) => `whole ${index}`));
  });

  it.each([false, true])('outlives a lost connection, resumed: %s', async (resumed) => {
    const session = new Session(await image, WELCOME);
    const { core } = session;
    const { grid } = session.image;
    const id = core.addPoint('a', [255, 255, 0]);
    session.acknowledge([]);
    session.tell({ type: 'progress', id, state: 'waiting_for_image', done: 0, total: 8, box });
    const expected = [...grid.nearestFirst([255, 255, 0], grid.within(box))].slice(0, 8);
    expect(await reconnect(core, resumed)).toEqual(expected);
    expect(await reconnect(core, resumed)).toEqual(expected);
    // Only while the prompt waits.
    const sent: Message[] = [];
    for (let frame = core.nextControl(); frame !== null; frame = core.nextControl()) {
      sent.push(new Decoder().decode(frame) as Message);
    }
    session.tell({ type: 'done', id: sent.at(-1)?.id, segment: 'a' });
    expect(core.pendingRequests).not.toContain(id);
    expect(await reconnect(core, resumed)).toEqual([...grid.nearestFirst([255, 255, 0], [])].slice(0, 8));
  });

  it('knows a focus from before the connection', async () => {
    const core = new Core<ImageSource>({ clock: () => 0 });
    const { grid } = await image;
    core.setImage(await image);
    core.addPoint('a', [255, 255, 0]);
    expect(await reconnect(core, false)).toEqual([...grid.nearestFirst([255, 255, 0], [])].slice(0, 8));
  });
});

describe('on a fast link', () => {
  it('only the first bricks are in layers, whose enhancement comes next', async () => {
    const session = new Session(await ctLike(SHAPE));
    session.waitingPrompt();
    await session.receiveAll(undefined, 0.001);
    const base = session.sent.filter((part) => part.startsWith('base'));
    expect(base.length).toBeGreaterThan(0);
    expect(base.length).toBeLessThanOrEqual(16); // two messages of 8
    const rest = session.sent.slice(base.length);
    expect(rest.splice(0, base.length)).toEqual(base.map((part) => part.replace('base', 'enhancement')));
    expect(rest.every((part) => part.startsWith('whole'))).toBe(true);
  });

  it('the next image is not sent in layers, before the connection is lost', async () => {
    const session = new Session(await ctLike(SHAPE));
    session.waitingPrompt();
    await session.receiveAll(undefined, 0.001);
    session.tell({ type: 'done', id: 1 });
    session.tell({ type: 'done', id: session.core.setImage(session.image) });
    session.sent.length = 0;
    session.waitingPrompt();
    await session.receiveAll(undefined, 0.001);
    expect(session.sent.every((part) => part.startsWith('whole'))).toBe(true);
    session.core.start();
    session.tell({ ...LAYERED, resumed: true, image: session.image.name, present_bricks: new Uint8Array(8) });
    expect((await session.nextParts())[0].layer).toBe('base');
  });
});

describe('bricks are whole', () => {
  it.each([
    ['the server knows no layers', { ...LAYERED, features: [] }, true],
    ['base layers do not suffice', LAYERED, false],
  ])('if %s', async (_, welcome, suffice) => {
    const session = new Session(await ctLike(SHAPE), welcome);
    session.waitingPrompt(suffice);
    expect(kindsOf(await session.nextParts())).toEqual(['whole 0']);
  });

  it('if previews are off', async () => {
    const session = new Session(await ctLike(SHAPE));
    session.tell({ type: 'done', id: session.core.setOptions({ previews: false }) });
    session.waitingPrompt();
    expect(kindsOf(await session.nextParts())).toEqual(['whole 0']);
  });

  it('if no prompt waits', async () => {
    const session = new Session(await ctLike(SHAPE));
    session.acknowledge([]);
    await session.receiveAll((parts) => {
      expect(kindsOf(parts)).toEqual(['whole 0']);
    });
    expect(session.sent).toHaveLength(session.image.grid.length);
  });

  it('if their low bits are no noise', async () => {
    const voxels = Uint8Array.from({ length: countVoxels(SHAPE) }, (_, at) => at % 5);
    const image = new ImageSource('mask', SHAPE, voxels, [SHAPE[1] * SHAPE[2], SHAPE[2], 1]);
    await image.prepare(packer);
    const session = new Session(image);
    session.waitingPrompt();
    expect(kindsOf(await session.nextParts())).toEqual(['whole 0']);
  });
});

/** The layers and the numbers of low bits among parts. */
function kindsOf(parts: readonly Brick[]): string[] {
  return [...new Set(parts.map(({ layer, low_bits }) => `${layer} ${low_bits}`))];
}
