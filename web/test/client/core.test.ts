/** Behavior of the core beyond the rules of the protocol, which the conformance suite tests. */
import { Decoder, Encoder } from '@msgpack/msgpack';
import { beforeEach, describe, expect, it } from 'vitest';
import { Core } from '../../src/client/core';
import type { Event } from '../../src/client/events';
import type { ImageSource } from '../../src/client/imageSource';
import type { Journal } from '../../src/client/journal';
import { checksum, flip, makeMask } from '../../src/client/masks';
import type { RunLengthMask } from '../../src/client/messages';
import { Random } from './random';
import { makeImage, WELCOME, type Message } from './fakeServer';

let image: ImageSource;
let core: Core<ImageSource>;

function tell(message: Message): Event[] {
  return core.receive(new Encoder().encode(message));
}

function sent(): Message[] {
  const messages: Message[] = [];
  for (let frame = core.nextControl(); frame !== null; frame = core.nextControl()) {
    messages.push(new Decoder().decode(frame) as Message);
  }
  return messages;
}

/** The change of the first voxels of an empty mask, by a request. */
function delta(request: number, voxels: number): Message & { readonly change: RunLengthMask } {
  const runs = Uint32Array.of(0, voxels);
  const change = makeMask(runs, image.shape, 'raw');
  const mask = new Uint8Array(64 * 64 * 2);
  flip(mask, runs);
  return {
    type: 'mask_delta',
    segment: 'liver',
    request,
    base_revision: 0,
    revision: 1,
    change,
    checksum: checksum(mask, change.box, image.shape),
    voxels,
    final: false,
  };
}

beforeEach(async () => {
  image = await makeImage();
  core = new Core({ encodings: ['raw', 'deflate'] });
  core.start();
  tell(WELCOME);
  core.setImage(image);
  tell({ type: 'done', id: 1 });
  core.takeEvents();
});

describe('the events of the core', () => {
  it('tell which voxels changed', () => {
    core.addPoint('liver', [0, 0, 0]);
    const events = tell(delta(2, 5));
    expect(events).toEqual([
      {
        type: 'mask_delta',
        request: 2,
        segment: 'liver',
        box: [
          [0, 1],
          [0, 3],
          [0, 2],
        ],
        change: Uint32Array.of(0, 5),
        revision: 1,
        voxels: 5,
        final: false,
      },
    ]);
  });

  it('tell that a segment is gone whose first request failed after previews', () => {
    core.addPoint('liver', [0, 0, 0]);
    tell(delta(2, 5));
    expect(
      tell({ ...delta(2, 5), base_revision: 1, revision: 2, checksum: EMPTY, voxels: 0, final: true }),
    ).toHaveLength(1);
    const events = tell({ type: 'error', id: 2, code: 'cancelled', message: 'Cancelled.' });
    expect(events).toMatchObject([
      { type: 'segment_removed', segment: 'liver' },
      { type: 'failed', request: 2 },
    ]);
    expect(core.segments.size).toBe(0);
  });

  it('tell that previews are reverted when another connection begins', () => {
    core.addPoint('liver', [0, 0, 0]);
    tell(delta(2, 5));
    core.start();
    expect(core.takeEvents()).toMatchObject([{ type: 'mask_delta', revision: 0, voxels: 0, final: true }]);
    expect(core.segments.get('liver')?.mask.some(Boolean)).toBe(false);
  });

  it('tell that all masks are gone with another image, and show those of a journal', () => {
    core.setMask('liver', new Uint8Array(64 * 64 * 2).fill(1), null);
    tell(delta(2, 5));
    tell({ type: 'done', id: 2, segment: 'liver', revision: 1, voxels: 5 });
    const journal = core.journal();
    core.setImage(image, journal);
    expect(core.takeEvents()).toMatchObject([
      { type: 'masks_dropped' },
      {
        type: 'mask_delta',
        voxels: 5,
        box: [
          [0, 1],
          [0, 3],
          [0, 2],
        ],
        change: Uint32Array.of(0, 5),
      },
    ]);
    expect(sent().map(({ type }) => type)).toEqual(['hello', 'set_image', 'set_mask', 'set_image', 'restore']);
  });
});

describe('the progress of the image', () => {
  it('is not reduced by an older acknowledgement, which a resumed connection repeats', () => {
    const { name } = image;
    const progress = (received: readonly number[]): Event[] =>
      tell({ type: 'image_progress', image: name, received, present: received.length, total: 4 });
    core.start();
    const events = tell({ ...WELCOME, resumed: true, image: name, present_bricks: Uint8Array.of(7), last_id: 1 });
    expect(events.at(-1)).toEqual({ type: 'image_progress', present: 3, total: 4 });
    expect(progress([0])).toEqual([{ type: 'image_progress', present: 3, total: 4 }]);
    expect(progress([2, 3, 3])).toEqual([{ type: 'image_progress', present: 4, total: 4 }]);
  });
});

describe('the event of a snapshot', () => {
  const snapshot = (request: unknown, voxels: number): Event[] =>
    tell({ type: 'mask_snapshot', segment: 'liver', request, revision: 3, voxels, mask: delta(2, voxels).change });

  beforeEach(() => {
    core.addPoint('liver', [0, 0, 0]);
    tell(delta(2, 5));
    sent();
  });

  it('tells which voxels changed', () => {
    tell({ ...delta(2, 5), base_revision: 2, revision: 3 });
    const [{ id }] = sent();
    const box = [
      [0, 1],
      [2, 5],
      [0, 2],
    ];
    expect(snapshot(id, 9)).toMatchObject([{ request: null, box, change: Uint32Array.of(5, 9), voxels: 9 }]);
  });

  it('tells a change since the last event, and not since a change that was wrong', () => {
    expect(tell({ ...delta(2, 3), base_revision: 1, revision: 2, checksum: 1 })).toEqual([]);
    const [{ id }] = sent();
    const box = [
      [0, 1],
      [0, 3],
      [0, 2],
    ];
    expect(snapshot(id, 5)).toMatchObject([{ request: null, box, change: new Uint32Array(0), voxels: 5 }]);
  });
});

/** CRC-32 of one byte of zeros: the box of the change has 6 voxels. */
const EMPTY = 0xd202ef8d;

describe('the core', () => {
  it('asks for a sign of life with an answered heartbeat, while it is among the last 1024 requests', () => {
    sent();
    core.ping();
    expect(sent()).toMatchObject([{ type: 'set_options', id: 2, autozoom: null, previews: null }]);
    tell({ type: 'done', id: 2, segment: null });
    core.setOptions({ previews: false });
    tell({ type: 'done', id: 3, segment: null });
    sent();
    core.ping();
    expect(sent()).toMatchObject([{ type: 'set_options', id: 2, autozoom: null, previews: null }]);
    for (let n = 0; n < 1023; n++) core.addPoint('liver', [0, 0, 0]);
    sent();
    core.ping();
    expect(sent()).toMatchObject([{ type: 'set_options', id: 1027, autozoom: null, previews: null }]);
  });

  it('does not send a history that is too large for a message', () => {
    core.setMask('liver', new Uint8Array(64 * 64 * 2).fill(1), null);
    tell(delta(2, 5));
    tell({ type: 'done', id: 2, segment: 'liver', revision: 1, voxels: 5 });
    core.addPoint('liver', [0, 0, 0], { run: false });
    tell({ type: 'done', id: 3, segment: 'liver', revision: 1, voxels: 5 });
    core.start();
    sent();
    const events = tell({ ...WELCOME, limits: { ...(WELCOME.limits as object), message_bytes: 200 } });
    expect(events).toContainEqual(expect.objectContaining({ type: 'notice', code: 'warning' }));
    const restore = sent().find(({ type }) => type === 'restore');
    expect(restore?.steps).toMatchObject([{ request: { type: 'set_mask' } }]);
  });

  it('refuses the mask of another size', () => {
    expect(() => core.setMask('liver', new Uint8Array(5), null)).toThrow('Expected 8192');
    expect(() => core.addScribble('liver', new Uint8Array(64 * 64 * 2), null)).toThrow('Mark at least one voxel');
  });

  it('sends an empty mask', () => {
    sent();
    core.setMask('liver', new Uint8Array(64 * 64 * 2), null);
    expect(sent()).toMatchObject([{ type: 'set_mask', mask: { runs: 1 } }]);
  });

  it('sends all bricks if the list of present ones was lost with a connection', () => {
    const messages = [core.nextBricks(), core.nextBricks()]; // after a done without an image_progress
    expect(messages.flatMap((batch) => batch?.parts ?? [])).toHaveLength(4);
  });

  it('drops a packed batch of an upload that has ended', () => {
    const batch = core.nextBricks();
    if (batch === null) throw new Error('There is no batch.');
    core.setImage(image);
    expect(core.brickFrame(batch, [])).toBeNull();
  });

  it('does not offer more bricks than a message of the server may have', async () => {
    const large = await makeImage(256);
    core.start();
    tell({ ...WELCOME, limits: { ...(WELCOME.limits as object), message_bytes: 3 * 2 ** 16 + 5000 } });
    core.setImage(large);
    tell({ type: 'done', id: 2 }); // the image before
    tell({ type: 'image_progress', image: large.name, received: [], present: 0, total: 32 });
    const batch = core.nextBricks();
    expect(batch?.parts).toHaveLength(2);
  });
});

describe('a prompt without an image', () => {
  it('is refused with the reason', () => {
    expect(() => new Core().addPoint('liver', [0, 0, 0])).toThrow('There is no image. Open one before');
    const id = core.setImage(image);
    tell({ type: 'error', id, code: 'out_of_memory', message: 'So.' });
    expect(() => core.addPoint('liver', [0, 0, 0])).toThrow(
      'The server has no image, because it refused the last one.',
    );
  });
});

describe('the same image set twice', () => {
  it('is answered twice, without a connection', () => {
    core = new Core({ encodings: ['raw', 'deflate'] });
    core.setImage(image);
    core.setImage(image);
    core.start();
    core.takeEvents();
    expect(tell(WELCOME)).toMatchObject([{ type: 'welcome' }, { type: 'failed', request: 1 }]);
    const [, { id }] = sent();
    expect(tell({ type: 'done', id })).toMatchObject([{ type: 'done', result: { request: 2 } }]);
    expect(core.pendingRequests).toEqual([]);
  });

  it('is not changed by a prompt from before', () => {
    core.setMask('liver', new Uint8Array(64 * 64 * 2).fill(1), null);
    core.setImage(image);
    core.takeEvents();
    expect(tell(delta(2, 5))).toEqual([]);
    expect(tell({ type: 'done', id: 2, segment: 'liver', revision: 1, voxels: 5 })).toMatchObject([{ type: 'done' }]);
    expect(core.segments.size).toBe(0);
  });
});

describe('the restores of a journal', () => {
  let journal: Journal;

  beforeEach(() => {
    core.setMask('liver', new Uint8Array(64 * 64 * 2).fill(1), null);
    tell(delta(2, 5));
    tell({ type: 'done', id: 2, segment: 'liver', revision: 1, voxels: 5 });
    journal = core.journal();
  });

  it('do not end the session behind an image that is refused', () => {
    core = new Core({ encodings: ['raw', 'deflate'] });
    core.start();
    tell(WELCOME);
    core.setImage(image, journal);
    expect(sent().at(-1)).toMatchObject({ type: 'restore', id: 2 });
    expect(tell({ type: 'error', id: 1, code: 'out_of_memory', message: 'So.' }).at(-1)).toMatchObject({ request: 1 });
    expect(tell({ type: 'error', id: 2, code: 'no_image', message: 'So.' })).toEqual([]);
    expect(core.ended).toBeNull();
  });

  it.each(['no_image', 'out_of_bounds', 'out_of_memory'])(
    'do not end the session after their image was replaced: %s',
    async (code) => {
      const other = await makeImage(3);
      core.setImage(image, journal);
      core.setImage(other);
      tell({ type: 'error', id: 3, code: 'cancelled', message: 'So.' });
      expect(tell({ type: 'error', id: 4, code, message: 'So.' })).toEqual([]);
      expect(core.ended).toBeNull();
      expect(core.image).toBe(other);
      expect(tell({ type: 'done', id: 5 })).toMatchObject([{ type: 'done' }]);
    },
  );
});

describe('a frame with random errors', () => {
  it.each(Array.from({ length: 300 }, (_, seed) => seed))('ends the connection at most, seed %i', (seed) => {
    const random = new Random(seed);
    core.addPoint('liver', [0, 0, 0]);
    const message = random.pick([
      delta(2, 5),
      WELCOME,
      { type: 'done', id: 2, segment: 'liver', changed: delta(2, 1).change.box },
      { type: 'image_progress', image: image.name, received: [0, 1], present: 2, total: 4 },
      { type: 'mask_snapshot', segment: 'liver', request: 2, revision: 3, voxels: 5, mask: delta(2, 5).change },
    ]);
    const frame = new Encoder().encode(message);
    for (let n = random.integer(1, 3); n > 0; n--) frame[random.integer(0, frame.length - 1)] = random.integer(0, 255);
    core.receive(random.next() < 0.2 ? frame.subarray(0, random.integer(0, frame.length)) : frame);
    expect([undefined, 'bad_message', 'too_large']).toContain(core.ended?.code);
    expect(core.segments.get('liver')?.mask.every((set) => set <= 1)).not.toBe(false);
  });
});
