/** The work on an image, with a WebSocket without a network. */
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { Connection } from '../../src/client/connection';
import type { ImageSource } from '../../src/client/imageSource';
import type { Journal } from '../../src/client/journal';
import { makeMask } from '../../src/client/masks';
import { createPacker } from '../../src/client/packing';
import type { Volume } from '../../src/files';
import { Session } from '../../src/page/session';
import type { Viewer } from '../../src/page/viewer';
import { FakeSocket, makeImage } from '../client/fakeServer';

const TIMINGS = { queued: 0, waiting_for_image: 0, network: 0, passes: 1, total: 0.5 };

let source: ImageSource;
let connection: Connection;
let session: Session;
let viewer: Record<'show' | 'paint' | 'setColors' | 'drawAbove', ReturnType<typeof vi.fn>> & {
  crosshair: readonly [number, number, number];
};
let onRecord: ReturnType<typeof vi.fn>;

beforeEach(async () => {
  source = await makeImage();
  vi.useFakeTimers();
  vi.stubGlobal('WebSocket', FakeSocket);
  FakeSocket.sockets = [];
  connection = new Connection('http://localhost:1528/', { packer: createPacker() });
  viewer = { show: vi.fn(), paint: vi.fn(), setColors: vi.fn(), drawAbove: vi.fn(), crosshair: [1, 2, 1] };
  session = new Session(connection, viewer as unknown as Viewer);
  onRecord = vi.fn();
  session.onRecord = onRecord;
});

afterEach(() => {
  connection.close();
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** Connect. */
function connect(): FakeSocket {
  connection.connect();
  FakeSocket.last.welcome();
  return FakeSocket.last;
}

/** Open an image, with the segments of a journal. */
function open(segments: Journal['segments'] = []): void {
  const volume = { name: 'ct.nii.gz', shape: source.shape } as unknown as Volume;
  session.open({ volume, source }, { image: source.name, shape: source.shape, segments });
  session.showSegments();
}

/** Return the id of the last message of a type that the page sent. */
function idOf(type: string): unknown {
  return FakeSocket.last.received.findLast((message) => message.type === type)?.id;
}

/** Answer the last request of a type. */
function succeed(type: string, fields: object = {}): void {
  const done = { segment: null, changed: null, voxels: 0, revision: 0, timings: TIMINGS };
  FakeSocket.last.tell({ type: 'done', id: idOf(type), ...done, ...fields });
}

function fail(type: string, code: string): void {
  FakeSocket.last.tell({ type: 'error', id: idOf(type), code, message: `${code} of ${type}` });
}

/** Tell that bricks of the image have arrived. */
function progress(present = 1): void {
  const image = connection.core.image?.name;
  FakeSocket.last.tell({ type: 'image_progress', image, present, total: 8, received: [], received_base: [] });
}

/** The history of a segment with one voxel. */
function history(name: string): Journal['segments'][number] {
  const mask = makeMask(Uint32Array.of(3, 4), [64, 64, 2], 'raw');
  const request = { type: 'set_mask', id: 1, segment: name, mask, flip: false, run: false } as const;
  return { name, revision: 1, steps: [{ request, change: mask }], undone: [] };
}

test('restored segments are painted once', () => {
  open([history('segment-1'), history('segment-2')]);
  expect(session.segments.all.map(({ id }) => session.voxels(id))).toEqual([1, 1]);
  expect(viewer.paint).toHaveBeenCalledOnce();
  const layers = viewer.paint.mock.calls[0][1] as { label: number }[];
  expect(layers.map(({ label }) => label)).toEqual([2, 1]);
});

describe('the status', () => {
  test('keeps an error while the image is sent, until the next prompt', () => {
    const socket = connect();
    open();
    progress();
    expect(session.status.message).toBe('Sending the image');
    session.showError('The point is outside the image.');
    progress(2);
    expect(session.status.kind).toBe('error');
    session.addPointAtCrosshair(true);
    const request = idOf('add_point');
    socket.tell({ type: 'progress', id: request, state: 'predicting', done: 0, total: 0, box: null });
    succeed('add_point', { segment: 'segment-1' });
    progress(3);
    expect(session.status.message).toBe('Sending the image');
  });

  test('keeps a warning while the image is sent', () => {
    const socket = connect();
    open();
    socket.tell({ type: 'notice', code: 'warning', message: 'The prompts cannot be used.' });
    progress();
    expect(session.status).toEqual({ kind: 'warning', message: 'The prompts cannot be used.' });
  });

  test('states why a prompt is not sent', () => {
    const socket = connect();
    open();
    socket.tell({ type: 'error', id: null, code: 'unsupported_version', message: 'Update the server.' });
    expect(session.status).toEqual({ kind: 'error', message: 'Update the server.' });
    session.setStatus({ kind: 'busy', message: 'Preparing the image' });
    session.addPointAtCrosshair(true);
    expect(session.status).toEqual({ kind: 'error', message: 'Update the server.' });
  });

  test('is busy after a reconnection during a prompt', () => {
    const socket = connect();
    open();
    session.addPointAtCrosshair(true);
    socket.lose();
    expect(session.status.message).toMatch(/^Connection lost, trying again\. No work is lost\./);
    vi.runOnlyPendingTimers();
    FakeSocket.last.welcome();
    expect(session.status).toEqual({ kind: 'busy', message: 'Waiting for the answer' });
  });

  test('states that the first connection has failed', () => {
    connection.connect();
    FakeSocket.last.open();
    FakeSocket.last.tell({ type: 'error', id: null, code: 'at_capacity', message: 'The server is full.' });
    expect(session.status).toMatchObject({ kind: 'lost', message: 'Not connected, trying again. The server is full.' });
  });
});

describe('a removed segment', () => {
  beforeEach(() => {
    connect();
    open([history('segment-1'), history('segment-2')]);
    succeed('set_image');
  });

  test('is not kept for a reload, although the server has not answered', () => {
    session.removeSegment('segment-2');
    expect(connection.core.segments.has('segment-2')).toBe(true);
    expect(session.journal().segments.map(({ name }) => name)).toEqual(['segment-1']);
    onRecord.mockClear();
    succeed('remove_segment');
    expect(connection.core.segments.has('segment-2')).toBe(false);
    expect(onRecord).toHaveBeenCalledOnce();
  });

  test('leaves its id to another only when the server has removed it', () => {
    session.removeSegment('segment-2');
    session.addSegment();
    expect(session.segments.all.map(({ id }) => id)).toEqual(['segment-1', 'segment-3']);
    succeed('remove_segment');
    session.addSegment();
    expect(session.segments.active?.id).toBe('segment-2');
  });

  test('ends its prompts, and errors of that are not shown', () => {
    session.addSegment();
    session.addPointAtCrosshair(true);
    const request = idOf('add_point');
    session.removeSegment('segment-3');
    expect(session.isBusy).toBe(false);
    expect(FakeSocket.last.received.findLast(({ type }) => type === 'cancel')?.request).toBe(request);
    FakeSocket.last.tell({ type: 'progress', id: request, state: 'predicting', done: 0, total: 0, box: null });
    fail('add_point', 'cancelled');
    session.addSegment();
    expect(session.segments.active?.id).toBe('segment-4');
    fail('remove_segment', 'unknown_segment');
    expect(session.status).toEqual({ kind: 'ready', message: 'Segment 3 was deleted.' });
  });
});

test('not more steps can be undone than there are, before the server has answered', () => {
  connect();
  open([history('segment-1')]);
  session.addPointAtCrosshair(true);
  session.command('undo');
  expect([session.canUndo, session.canRedo]).toEqual([true, true]);
  session.command('undo');
  expect([session.canUndo, session.canRedo]).toEqual([false, true]);
  session.command('redo');
  expect(session.canUndo).toBe(true);
});
