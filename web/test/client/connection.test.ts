/** The connection, with a WebSocket without a network and with fake timers. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Connection, type ConnectionState } from '../../src/client/connection';
import type { Event } from '../../src/client/events';
import type { ImageSource } from '../../src/client/imageSource';
import { createPacker, type Packer } from '../../src/client/packing';
import { FakeSocket, makeImage, WELCOME } from './fakeServer';

const ADDRESS = 'http://gpu-box:1528/';
const packer = createPacker();
let connection: Connection;
let states: ConnectionState[];
let events: Event[];
let image: ImageSource;

/** A page in a browser, as far as a connection uses it. */
class FakePage extends EventTarget {
  visibilityState = 'visible';
}

function start(options: { token?: string; address?: string; packer?: Packer } = {}): FakeSocket {
  const { token, address = ADDRESS } = options;
  connection = new Connection(address, { packer: options.packer ?? packer, token });
  states = [];
  events = [];
  connection.onState((state) => states.push(state));
  connection.onEvent((event) => events.push(event));
  connection.connect();
  return FakeSocket.last;
}

function lastState(): ConnectionState | undefined {
  return states.at(-1);
}

/** Answer HTTP requests with a status, or not at all. */
function respond(status: number | null, text = ''): ReturnType<typeof vi.fn> {
  const headers = { 'Content-Type': 'text/plain' };
  const fetch = vi.fn(() =>
    status === null ? Promise.reject(new TypeError('no')) : Promise.resolve(new Response(text, { status, headers })),
  );
  vi.stubGlobal('fetch', fetch);
  return fetch;
}

beforeEach(async () => {
  image = await makeImage();
  vi.useFakeTimers();
  vi.stubGlobal('WebSocket', FakeSocket);
  vi.spyOn(Math, 'random').mockReturnValue(0.999999);
  FakeSocket.sockets = [];
});

afterEach(() => {
  connection.close();
  vi.useRealTimers();
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
});

describe('a connection', () => {
  it('connects, sends a prompt before the bricks, and resolves it', async () => {
    const socket = start();
    expect(states).toEqual([{ state: 'connecting' }]);
    socket.welcome();
    expect(lastState()).toMatchObject({ state: 'connected' });
    void connection.request((core) => core.setImage(image));
    const answer = connection.request((core) => core.addPoint('liver', [1, 2, 1]));
    expect(socket.types()).toEqual(['hello', 'set_image', 'add_point']);
    socket.tell({ type: 'image_progress', image: image.name, received: [], present: 0, total: 4 });
    await vi.advanceTimersByTimeAsync(1);
    expect(socket.types()).toEqual(['image_bricks', 'image_bricks']);
    socket.tell({ type: 'done', id: 3, segment: 'liver', revision: 0 });
    await expect(answer).resolves.toMatchObject({ request: 3, segment: 'liver' });
  });

  it('rejects the promise of a request that fails', async () => {
    const socket = start();
    socket.welcome();
    const answer = connection.request((core) => core.setOptions({ autozoom: false }));
    socket.tell({ type: 'error', id: 2, code: 'internal', message: 'A bug.' });
    await expect(answer).rejects.toMatchObject({ code: 'internal', message: 'A bug.' });
    expect(events.at(-1)).toMatchObject({ type: 'failed', request: 2 });
  });

  it('throws what cannot be sent', () => {
    start().welcome();
    expect(() => connection.request((core) => core.addPoint('liver', [0, 0, 0]))).toThrow('There is no image');
    void connection.request((core) => core.setImage(image));
    expect(() => connection.request((core) => core.addPoint('liver', [0, 64, 0]))).toThrow('outside the volume');
  });

  it('does not let bricks fill the buffer', async () => {
    const large = await (async () => {
      vi.useRealTimers();
      const made = await makeImage(256);
      vi.useFakeTimers();
      return made;
    })();
    const socket = start();
    socket.welcome();
    void connection.request((core) => core.setImage(large));
    socket.bufferedAmount = 2 ** 20;
    socket.tell({ type: 'image_progress', image: large.name, received: [], present: 0, total: 32 });
    await vi.advanceTimersByTimeAsync(100);
    void connection.request((core) => core.addPoint('liver', [1, 2, 1]));
    expect(socket.types()).toEqual(['hello', 'set_image', 'add_point']);
    socket.bufferedAmount = 0;
    await vi.advanceTimersByTimeAsync(100);
    // The window of bricks in flight is full then.
    expect(socket.types()).toEqual(Array(4).fill('image_bricks'));
  });

  it('does not send bricks that were packed for a connection that was lost', async () => {
    const waiting: (() => void)[] = [];
    const slow: Packer = {
      ...packer,
      pack: (plain) =>
        new Promise((resolve) =>
          waiting.push(() => {
            resolve(plain);
          }),
        ),
      sum: (voxels, counts) => packer.sum(voxels, counts),
      close: () => undefined,
    };
    const first = start({ packer: slow });
    first.welcome();
    void connection.request((core) => core.setImage(image));
    first.tell({ type: 'image_progress', image: image.name, received: [], present: 0, total: 4 });
    first.lose();
    await vi.advanceTimersByTimeAsync(1000);
    for (const done of waiting) done();
    await vi.advanceTimersByTimeAsync(1);
    expect(first.types()).toEqual(['hello', 'set_image']);
    FakeSocket.last.welcome({ resumed: true, image: image.name, present_bricks: Uint8Array.of(0) });
    await vi.advanceTimersByTimeAsync(1);
    expect(waiting.length).toBe(4); // two for each connection
  });

  it('reconnects with a back-off, and resumes', async () => {
    start().welcome();
    const delays: number[] = [];
    for (let n = 0; n < 9; n++) {
      FakeSocket.last.lose(n === 0 ? 1006 : 1001, 'going away');
      respond(null);
      await vi.advanceTimersByTimeAsync(0);
      const state = lastState();
      expect(state?.state).toBe('lost');
      if (state?.state === 'lost') delays.push(state.retryIn);
      await vi.advanceTimersByTimeAsync(15_000);
    }
    expect(delays.map((delay) => Math.round(100 * delay) / 100)).toEqual([0.25, 0.5, 1, 2, 4, 8, 15, 15, 15]);
    FakeSocket.last.welcome({ resumed: true });
    expect(FakeSocket.last.received[0]).toMatchObject({ session_id: 'session', session_secret: 'secret' });
    // A connection that held for a while begins anew.
    await vi.advanceTimersByTimeAsync(6000);
    FakeSocket.last.lose();
    expect(lastState()).toMatchObject({ state: 'lost' });
    expect((lastState() as { retryIn: number }).retryIn).toBeCloseTo(0.25, 3);
  });

  it('reconnects at once for a request', () => {
    const first = start();
    first.welcome();
    first.lose();
    void connection.request((core) => core.setOptions({ previews: false }));
    expect(FakeSocket.last).not.toBe(first);
    FakeSocket.last.welcome({ resumed: true });
    expect(FakeSocket.last.types()).toEqual(['hello', 'set_options']);
  });

  it.each(['online', 'visibilitychange'])('reconnects at once when the page is %s', (name) => {
    const [page, view] = [new FakePage(), new EventTarget()];
    vi.stubGlobal('document', page);
    vi.stubGlobal('window', view);
    const first = start();
    first.welcome();
    first.lose();
    page.visibilityState = 'hidden';
    (name === 'online' ? view : page).dispatchEvent(new Event(name));
    expect(FakeSocket.last).toBe(first);
    page.visibilityState = 'visible';
    (name === 'online' ? view : page).dispatchEvent(new Event(name));
    expect(FakeSocket.last).not.toBe(first);
    connection.close();
  });

  it('asks a silent server for a sign of life, and gives it up', async () => {
    const first = start();
    first.welcome();
    await vi.advanceTimersByTimeAsync(19_000);
    expect(first.types()).toEqual(['hello']);
    await vi.advanceTimersByTimeAsync(2000);
    expect(first.types()).toEqual(['set_options']);
    first.tell({ type: 'done', id: 1 });
    expect(events.map(({ type }) => type)).toEqual(['welcome']);
    // The answered one again, which the server answers at once even during a prediction.
    await vi.advanceTimersByTimeAsync(21_000);
    expect(first.received).toMatchObject([{ type: 'set_options', id: 1 }]);
    await vi.advanceTimersByTimeAsync(21_000);
    expect(states.some((state) => state.state === 'lost')).toBe(true);
    expect(first.isClosed).toBe(true);
    expect(FakeSocket.last).not.toBe(first);
  });

  it('sends a heartbeat before the image, to repeat it while the server is busy', async () => {
    const socket = start();
    void connection.request((core) => core.setImage(image));
    socket.open();
    socket.tell(WELCOME);
    expect(socket.types()).toEqual(['hello', 'set_options', 'set_image']);
    socket.tell({ type: 'done', id: 2 });
    await vi.advanceTimersByTimeAsync(21_000);
    expect(socket.received).toMatchObject([{ type: 'set_options', id: 2 }]);
  });

  it('times out on a dead link although the user clicks', async () => {
    const first = start();
    first.welcome();
    void connection.request((core) => core.setImage(image));
    for (let n = 0; n < 10; n++) {
      void connection.request((core) => core.addPoint('liver', [1, 2, 1]));
      await vi.advanceTimersByTimeAsync(9000);
    }
    expect(first.isClosed).toBe(true);
  });

  it('takes bytes that leave the buffer for a sign of life', async () => {
    const first = start();
    first.welcome();
    await vi.advanceTimersByTimeAsync(21_000);
    first.bufferedAmount = 10_000;
    void connection.request((core) => core.setImage(image));
    for (let n = 0; n < 6; n++) {
      void connection.request((core) => core.addPoint('liver', [1, 2, 1]));
      await vi.advanceTimersByTimeAsync(9000);
    }
    expect(lastState()?.state).toBe('connected');
  });

  it('gives up a server that does not answer the handshake', async () => {
    respond(null);
    const first = start();
    await vi.advanceTimersByTimeAsync(16_500);
    expect(first.isClosed).toBe(true);
    expect(FakeSocket.last).not.toBe(first);
  });

  it('times out if the handshake of a reconnection is not answered', async () => {
    respond(null);
    start().welcome();
    FakeSocket.last.lose();
    await vi.advanceTimersByTimeAsync(1000);
    const second = FakeSocket.last;
    await vi.advanceTimersByTimeAsync(14_000);
    expect(second.isClosed).toBe(false);
    await vi.advanceTimersByTimeAsync(2500);
    expect(second.isClosed).toBe(true);
    expect(second.received).toEqual([]);
  });

  it('waits for the model of a server', async () => {
    const first = start();
    first.open();
    for (let n = 0; n < 4; n++) {
      await vi.advanceTimersByTimeAsync(100_000);
      first.tell({ type: 'notice', code: 'loading_model', message: 'Loading.' });
    }
    expect(first.isClosed).toBe(false);
    await vi.advanceTimersByTimeAsync(122_000);
    expect(first.isClosed).toBe(true);
  });

  it('rests after an eviction until the next request', async () => {
    const first = start();
    first.welcome();
    first.tell({ type: 'notice', code: 'evicted', message: 'Another session needs the memory.' });
    expect(lastState()).toEqual({ state: 'dormant', message: 'Another session needs the memory.' });
    await vi.advanceTimersByTimeAsync(100_000);
    expect(FakeSocket.last).toBe(first);
    void connection.request((core) => core.setOptions({}));
    FakeSocket.last.welcome();
    expect(lastState()?.state).toBe('connected');
  });

  it.each([
    ['a text message', 'hello', 'bad_message'],
    ['bytes that are no message', Uint8Array.of(0xc1).buffer, 'bad_message'],
  ])('is refused after %s', (_, data, code) => {
    const socket = start();
    socket.welcome();
    socket.onmessage?.({ data });
    expect(lastState()).toMatchObject({ state: 'refused', code });
    expect(socket.isClosed).toBe(true);
  });

  it.each([
    [1009, 'too_large'],
    [1002, 'bad_message'],
  ])('is refused after the close code %i', (close, code) => {
    const socket = start();
    socket.welcome();
    socket.lose(close);
    expect(lastState()).toMatchObject({ state: 'refused', code });
  });

  it('tries again if its hello came too late', () => {
    const socket = start();
    socket.open();
    socket.lose(1013, 'no hello within 5 seconds');
    expect(lastState()).toMatchObject({
      state: 'lost',
      message: 'The connection to the server was lost (no hello within 5 seconds).',
    });
  });

  it.each([
    [401, '', { state: 'refused', code: 'unauthorized' }],
    [
      403,
      'The origin is not allowed.',
      { state: 'refused', code: 'forbidden_origin', message: 'The origin is not allowed.' },
    ],
    [421, '', { state: 'refused', code: 'forbidden_origin' }],
    [503, 'All sessions are in use.', { state: 'lost', message: 'All sessions are in use.' }],
    [404, '', { state: 'lost' }],
    [200, '', { state: 'lost' }],
    [null, '', { state: 'lost' }],
  ])('asks why it was refused: status %s', async (status, text, expected) => {
    const fetch = respond(status, text);
    start({ token: 'abc' }).lose();
    await vi.advanceTimersByTimeAsync(0);
    expect(lastState()).toMatchObject(expected);
    expect(fetch).toHaveBeenCalledWith(
      'http://gpu-box:1528/capabilities',
      expect.objectContaining({ headers: { Authorization: 'Bearer abc' } }),
    );
  });

  it('leaves the session to another page that took it', () => {
    const socket = start();
    socket.welcome();
    socket.lose(1000);
    expect(lastState()).toMatchObject({ state: 'refused', code: 'session_taken' });
    connection.connect();
    FakeSocket.last.welcome();
    expect(FakeSocket.last.received[0].session_id).toBeNull();
  });

  it('gives a server more time that has a request to answer', async () => {
    const socket = start();
    socket.welcome();
    void connection.request((core) => core.setOptions({ autozoom: false }));
    await vi.advanceTimersByTimeAsync(60_000);
    expect(lastState()?.state).toBe('connected');
    await vi.advanceTimersByTimeAsync(25_000);
    expect(socket.isClosed).toBe(true);
  });

  it('gives a server more time that restores a session', async () => {
    start().welcome();
    void connection.request((core) => core.setImage(image));
    FakeSocket.last.tell({ type: 'done', id: 2 });
    FakeSocket.last.lose();
    await vi.advanceTimersByTimeAsync(1000);
    const socket = FakeSocket.last;
    socket.welcome();
    expect(socket.types()).toEqual(['hello', 'set_image']);
    expect(connection.core.pendingRequests).toEqual([]);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(socket.isClosed).toBe(false);
    await vi.advanceTimersByTimeAsync(25_000);
    expect(socket.isClosed).toBe(true);
  });

  it('sends a token as a subprotocol, and another one after it was refused', async () => {
    respond(401);
    const first = start({ token: 'wrong' });
    expect(first.protocols).toEqual(['nninteractive.v1', 'nninteractive.v1.bearer.wrong']);
    first.lose();
    await vi.advanceTimersByTimeAsync(0);
    const answer = connection.request((core) => core.setOptions({ autozoom: true }));
    connection.connect('right');
    expect(FakeSocket.last.protocols).toEqual(['nninteractive.v1', 'nninteractive.v1.bearer.right']);
    FakeSocket.last.welcome();
    const [, request] = FakeSocket.last.received;
    FakeSocket.last.tell({ type: 'done', id: request.id });
    await expect(answer).resolves.toMatchObject({ segment: null });
  });

  it('refuses a token that cannot be one', () => {
    expect(() => start({ token: 'with space' })).toThrow('No connection was tried.');
    expect(lastState()).toMatchObject({ state: 'refused', code: 'unauthorized' });
  });

  it('refuses an address that a browser refuses', () => {
    const refuse = vi.fn(function () {
      throw new DOMException('mixed content');
    });
    vi.stubGlobal('WebSocket', refuse);
    expect(() => start()).toThrow();
    expect(lastState()).toMatchObject({ state: 'refused', code: 'bad_address' });
  });

  it.each([
    ['http://gpu-box:1528/', 'ws://gpu-box:1528/', 'deflate'],
    ['https://clinic.example/segment/index.html?x#y', 'wss://clinic.example/segment/', 'deflate'],
    ['ws://127.0.0.1:1528', 'ws://127.0.0.1:1528/', 'raw'],
    ['http://localhost:8000/', 'ws://localhost:8000/', 'raw'],
    ['http://[::1]:8000/', 'ws://[::1]:8000/', 'raw'],
  ])('connects to %s', (address, url, encoding) => {
    const socket = start({ address });
    expect(socket.url).toBe(url);
    expect(socket.protocols).toEqual(['nninteractive.v1']);
    socket.open();
    expect((socket.received[0].encodings as string[])[0]).toBe(encoding);
  });

  it.each(['gpu-box', 'ftp://gpu-box/', ''])('refuses the address "%s"', (address) => {
    expect(() => new Connection(address, { packer })).toThrow('no address of a server');
  });

  it('ends the session when it is closed', async () => {
    const socket = start();
    socket.welcome();
    const answer = connection.request((core) => core.setOptions({}));
    connection.close();
    expect(socket.types()).toEqual(['hello', 'set_options', 'bye']);
    expect(socket.isClosed).toBe(true);
    expect(lastState()).toEqual({ state: 'closed' });
    await expect(answer).rejects.toMatchObject({ code: 'connection_failed' });
    expect(() => connection.request((core) => core.setOptions({}))).toThrow('closed');
    connection.connect();
    expect(FakeSocket.last).toBe(socket);
  });

  it('keeps other listeners running when one throws', () => {
    const socket = start();
    const reported: unknown[] = [];
    vi.stubGlobal('queueMicrotask', (report: () => void) => {
      try {
        report();
      } catch (error) {
        reported.push(error);
      }
    });
    const remove = connection.onEvent(() => {
      throw new Error('a bug of the page');
    });
    const later = vi.fn();
    connection.onEvent(later);
    socket.welcome();
    expect(later).toHaveBeenCalledOnce();
    expect(reported).toHaveLength(1);
    remove();
    socket.tell({ type: 'notice', code: 'warning', message: 'A sentence.' });
    expect(reported).toHaveLength(1);
  });

  it('resumes the session of a page before its reload, and sends the image anew', () => {
    connection = new Connection(ADDRESS, { packer, session: { id: 'old', secret: 'older' } });
    connection.connect();
    void connection.request((core) => core.setImage(image));
    const socket = FakeSocket.last;
    socket.welcome({ resumed: true, last_id: 40, image: 'any', present_bricks: Uint8Array.of(1) });
    expect(socket.received).toMatchObject([
      { type: 'hello', session_id: 'old', session_secret: 'older' },
      { type: 'cancel', request: null },
      { type: 'set_options', id: 42, autozoom: true, previews: true },
      { type: 'set_image', id: 43 },
    ]);
    expect(connection.session).toEqual({ id: 'session', secret: 'secret' });
  });
});
