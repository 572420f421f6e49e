/** Drives a core over the browser's WebSocket. */
import { parseAddress, refusal, subprotocols, type Address } from './address';
import { Core, type BrickBatch, type SavedSession } from './core';
import { ClientError, messageOf, type ErrorCode } from './errors';
import type { Event, Result } from './events';
import type { ImageSource } from './imageSource';
import type { Welcome } from './messages';
import type { Packer } from './packing';
import { Backoff, closeError, isFinal, Keepalive } from './reconnect';

/** Timeout of the WebSocket handshake, and of each further message before the welcome: a model loads meanwhile. */
const OPEN_TIMEOUT_S = 15;
const WELCOME_TIMEOUT_S = 120;
/** Bricks are sent while fewer bytes wait in the browser, so that a prompt does not wait behind them. */
const MAX_BUFFERED_BYTES = 64 * 1024;
const BUFFER_CHECK_MS = 10;
const KEEPALIVE_CHECK_MS = 1000;

/** State for a status line. `message` is a sentence for the user. */
export type ConnectionState =
  | { readonly state: 'connecting' }
  | { readonly state: 'connected'; readonly welcome: Welcome }
  /** `retryIn`: seconds from now. */
  | { readonly state: 'lost'; readonly message: string; readonly retryIn: number }
  /** Reconnecting cannot help, before the user changes something: `connect` again, with a token for instance. */
  | { readonly state: 'refused'; readonly code: ErrorCode; readonly message: string }
  /** The server evicted the session for others. The next request connects and restores it. */
  | { readonly state: 'dormant'; readonly message: string }
  | { readonly state: 'closed' };

/** Options of a connection. */
export interface ConnectionOptions {
  readonly packer: Packer;
  readonly token?: string;
  /** A session of this tab before a reload. */
  readonly session?: SavedSession;
}

interface Waiter {
  readonly resolve: (result: Result) => void;
  readonly reject: (error: ClientError) => void;
}

/**
 * Keeps a core connected to a server: it reconnects with a back-off, and resumes or restores the session.
 *
 * Commands go through `request`. The core may be read at any time.
 */
export class Connection {
  readonly core: Core<ImageSource>;
  /** The state now. */
  state: ConnectionState = { state: 'connecting' };

  private readonly address: Address;
  private readonly packer: Packer;
  private token: string | undefined;
  private link: SocketLink | null = null;
  private retryTimer: ReturnType<typeof setTimeout> | undefined;
  private readonly backoff = new Backoff();
  private readonly waiting = new Map<number, Waiter>();
  private readonly eventListeners = new Set<(event: Event) => void>();
  private readonly stateListeners = new Set<(state: ConnectionState) => void>();
  private readonly wake = (): void => {
    if (typeof document !== 'undefined' && document.visibilityState === 'hidden') return;
    if (this.state.state === 'lost') this.open();
    else this.link?.probe();
  };

  /**
   * @param address - URL of the server: `http(s)://host:port/` or `ws(s)://host:port/`.
   * @throws ClientError - `bad_address`.
   */
  constructor(address: string, { packer, token, session }: ConnectionOptions) {
    this.address = parseAddress(address);
    this.packer = packer;
    this.token = token;
    // Near the server, packing takes longer than sending. If it is at the other end of a tunnel, the upload notices.
    const encodings = this.address.isLoopback ? (['raw', 'deflate'] as const) : (['deflate', 'raw'] as const);
    this.core = new Core({ encodings, session, keepalive: true });
    for (const [target, name] of wakeEvents()) target.addEventListener(name, this.wake);
  }

  /** Begin to connect, and reconnect until `close`. After `refused`: try again, with another token if one is given. */
  connect(token?: string): void {
    if (this.state.state === 'closed') return;
    this.token = token ?? this.token;
    this.open();
  }

  /**
   * Send a command, such as `(core) => core.addPoint('liver', [1, 2, 3])`. Resolves with its result, and rejects with a
   * ClientError if it fails. It need not be awaited. Without a connection, it waits for the next one; after `refused`,
   * that is the next `connect`.
   *
   * @throws ClientError - at once, for arguments that cannot be sent, and after `close`.
   */
  request(command: (core: Core<ImageSource>) => number): Promise<Result> {
    if (this.state.state === 'closed') throw closed();
    const number = command(this.core);
    const result = new Promise<Result>((resolve, reject) => {
      this.waiting.set(number, { resolve, reject });
    });
    // A page that listens to events only does not handle the rejection.
    result.catch(() => undefined);
    this.emitAll(this.core.takeEvents());
    if (this.state.state === 'lost' || this.state.state === 'dormant') this.open();
    else this.link?.pump();
    return result;
  }

  /** Cancel one request, or all. */
  cancel(request?: number): void {
    this.core.cancel(request);
    this.link?.pump();
  }

  /** Register a listener of events. Returns a function that removes it. */
  onEvent(listener: (event: Event) => void): () => void {
    this.eventListeners.add(listener);
    return () => this.eventListeners.delete(listener);
  }

  /** Register a listener of changes of `state`. Returns a function that removes it. */
  onState(listener: (state: ConnectionState) => void): () => void {
    this.stateListeners.add(listener);
    return () => this.stateListeners.delete(listener);
  }

  /** End the session on the server, and close. Requests without an answer reject. */
  close(): void {
    if (this.state.state === 'closed') return;
    for (const [target, name] of wakeEvents()) target.removeEventListener(name, this.wake);
    clearTimeout(this.retryTimer);
    this.core.bye();
    this.link?.pump();
    this.drop();
    this.setState({ state: 'closed' });
    for (const waiter of this.waiting.values()) waiter.reject(closed());
    this.waiting.clear();
  }

  /** The session, for the same tab to resume after a reload, or null. */
  get session(): SavedSession | null {
    return this.core.session;
  }

  private open(): void {
    clearTimeout(this.retryTimer);
    this.drop();
    this.setState({ state: 'connecting' });
    try {
      this.link = new SocketLink(this.address, this.token, this.core, this.packer, {
        events: (events) => {
          this.emitAll(events);
        },
        ended: (error) => {
          this.onEnded(error);
        },
      });
    } catch (error) {
      this.onEnded(error instanceof ClientError ? error : cannotConnect(error));
    }
  }

  private drop(): void {
    const { link } = this;
    this.link = null;
    link?.close();
  }

  private onEnded(error: ClientError): void {
    this.drop();
    const { code, message } = error;
    // The other page has the session. Another connection of this one must not take it back.
    if (code === 'session_taken') this.core.forgetSession();
    if (this.core.isDormant) this.setState({ state: 'dormant', message });
    else if (isFinal(error)) this.setState({ state: 'refused', code, message });
    else {
      const retryIn = this.backoff.next(seconds());
      this.retryTimer = setTimeout(() => {
        this.open();
      }, 1000 * retryIn);
      this.setState({ state: 'lost', message, retryIn });
    }
  }

  private emitAll(events: readonly Event[]): void {
    for (const event of events) {
      if (event.type === 'welcome') {
        this.backoff.opened(seconds());
        this.setState({ state: 'connected', welcome: event.welcome });
      } else if (event.type === 'done') this.removeWaiter(event.result.request)?.resolve(event.result);
      else if (event.type === 'failed') this.removeWaiter(event.request)?.reject(event.error);
      notify(this.eventListeners, event);
    }
  }

  private removeWaiter(request: number): Waiter | undefined {
    const waiter = this.waiting.get(request);
    this.waiting.delete(request);
    return waiter;
  }

  private setState(state: ConnectionState): void {
    this.state = state;
    notify(this.stateListeners, state);
  }
}

interface LinkListener {
  events(events: readonly Event[]): void;
  /** Called once, when the connection ends. Not called after `close`. */
  ended(error: ClientError): void;
}

/** One WebSocket. */
class SocketLink {
  private readonly socket: WebSocket;
  private readonly keepaliveTimer: ReturnType<typeof setInterval>;
  private keepalive = new Keepalive(seconds());
  private isOpen = false;
  private isOver = false;
  private isPacking = false;
  private bufferTimer: ReturnType<typeof setTimeout> | undefined;
  private deadline = seconds() + OPEN_TIMEOUT_S;
  private sentBytes = 0;
  /** At the last check: bytes that the system had taken, and whether others waited for that. */
  private deliveredBytes = 0;
  private hadToWait = false;

  constructor(
    private readonly address: Address,
    private readonly token: string | undefined,
    private readonly core: Core<ImageSource>,
    private readonly packer: Packer,
    private readonly listener: LinkListener,
  ) {
    this.socket = new WebSocket(address.webSocket, subprotocols(token));
    this.socket.binaryType = 'arraybuffer';
    this.socket.onopen = () => {
      this.onOpen();
    };
    this.socket.onmessage = ({ data }: MessageEvent<unknown>) => {
      this.onMessage(data);
    };
    this.socket.onclose = ({ code, reason }) => {
      if (this.isOpen) this.end(closeError(code, reason));
      else void this.onRefused();
    };
    this.keepaliveTimer = setInterval(() => {
      this.check();
    }, KEEPALIVE_CHECK_MS);
  }

  /** Send what the core has to send: prompts at once, bricks while the buffer is short. */
  pump(): void {
    if (!this.isOpen || this.isOver) return;
    for (let frame = this.core.nextControl(); frame !== null; frame = this.core.nextControl()) this.send(frame);
    if (this.isPacking) return;
    if (this.socket.bufferedAmount > MAX_BUFFERED_BYTES) {
      clearTimeout(this.bufferTimer);
      this.bufferTimer = setTimeout(() => {
        this.pump();
      }, BUFFER_CHECK_MS);
      return;
    }
    const batch = this.core.nextBricks();
    if (batch !== null) void this.sendBricks(batch);
  }

  /** Ask the server for a sign of life. */
  probe(): void {
    if (this.isOver || !this.isReady || !this.keepalive.ask(seconds())) return;
    this.core.ping();
    this.pump();
  }

  /** Close, without a call of the listener. */
  close(): void {
    this.isOver = true;
    clearInterval(this.keepaliveTimer);
    clearTimeout(this.bufferTimer);
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
  }

  /** Whether the handshake is complete. Until this socket is open, the core has the welcome of the one before. */
  private get isReady(): boolean {
    return this.isOpen && this.core.welcome !== null;
  }

  private end(error: ClientError): void {
    if (this.isOver) return;
    this.close();
    this.listener.ended(error);
  }

  /** End the connection if the server no longer answers. Ask it for a sign of life if it is silent. */
  private check(): void {
    const now = seconds();
    if (this.isOver) return;
    if (!this.isReady) {
      if (now > this.deadline) this.end(new ClientError('connection_failed', 'The server does not answer.'));
      return;
    }
    const { bufferedAmount } = this.socket;
    const delivered = this.sentBytes - bufferedAmount;
    // The system takes a few bytes also on a dead link. It takes those that had to wait only after it has sent others.
    if (this.hadToWait && delivered > this.deliveredBytes) this.keepalive.heard(now);
    this.deliveredBytes = delivered;
    this.hadToWait = bufferedAmount > 0;
    const failure = this.keepalive.failure(now, this.core.isBusy);
    if (failure !== null) this.end(failure);
    else if (this.keepalive.isSilent(now)) this.probe();
  }

  private onOpen(): void {
    this.isOpen = true;
    this.deadline = seconds() + WELCOME_TIMEOUT_S;
    this.core.start();
    this.listener.events(this.core.takeEvents());
    this.pump();
  }

  private onMessage(data: unknown): void {
    this.keepalive.heard(seconds());
    this.deadline = seconds() + WELCOME_TIMEOUT_S;
    if (!(data instanceof ArrayBuffer)) {
      this.end(new ClientError('bad_message', 'The server sent a text message. It is no nninteractive-ws server.'));
      return;
    }
    let events: Event[];
    try {
      events = this.core.receive(new Uint8Array(data));
    } catch (error) {
      this.end(failureOfPage(error));
      return;
    }
    this.listener.events(events);
    if (this.core.ended !== null) this.end(this.core.ended);
    this.pump();
  }

  private async onRefused(): Promise<void> {
    const error = await refusal(this.address, this.token);
    this.end(error);
  }

  private async sendBricks(batch: BrickBatch<ImageSource>): Promise<void> {
    this.isPacking = true;
    const { image, parts, encoding } = batch;
    try {
      const bricks = await Promise.all(parts.map((part) => image.packBrick(part, encoding, this.packer)));
      this.isPacking = false;
      if (this.isOver) return;
      const frame = this.core.brickFrame(batch, bricks);
      if (frame !== null) this.send(frame);
      this.pump();
    } catch (error) {
      this.end(error instanceof ClientError ? error : failureOfPage(error));
    }
  }

  private send(frame: Uint8Array<ArrayBuffer>): void {
    this.sentBytes += frame.length;
    this.socket.send(frame);
  }
}

/** Events after which the network or the user may be back. None outside of a browser. */
function wakeEvents(): [EventTarget, string][] {
  if (typeof document === 'undefined') return [];
  return [
    [window, 'online'],
    [document, 'visibilitychange'],
  ];
}

/** Call every listener. One that throws is reported as any uncaught error, and keeps the others running. */
function notify<T>(listeners: ReadonlySet<(value: T) => void>, value: T): void {
  for (const listener of listeners) {
    try {
      listener(value);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}

/** An error that no server can cause, and another attempt does not cure. */
function failureOfPage(error: unknown): ClientError {
  return new ClientError('page_failed', `The page failed (${messageOf(error)}). Reload it; the segments are kept.`);
}

/** The error of a WebSocket that the browser refuses to open. */
function cannotConnect(error: unknown): ClientError {
  return new ClientError(
    'bad_address',
    `The browser refuses to connect (${messageOf(error)}). A page over https needs a server with TLS. Check the address.`,
  );
}

function closed(): ClientError {
  return new ClientError('connection_failed', 'The session was closed.');
}

function seconds(): number {
  return performance.now() / 1000;
}
