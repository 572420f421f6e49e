import { Core, type SavedSession } from './core';
import type { ErrorCode } from './errors';
import type { Event, Result } from './events';
import type { Welcome } from './messages';
import type { Packer } from './packing';

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

export interface ConnectionOptions {
  readonly packer: Packer;
  readonly token?: string;
  /** A session of this tab before a reload. */
  readonly session?: SavedSession;
}

/** Keeps a Core connected to a server. */
export class Connection {
  readonly core: Core = new Core();
  state: ConnectionState = { state: 'connecting' };

  /** `address`: URL of the server, `http(s)://host:port/` or `ws(s)://host:port/`. Throws `bad_address`. */
  constructor(
    readonly address: string,
    readonly options: ConnectionOptions,
  ) {}

  /** Begin to connect, and reconnect until `close`. After `refused`: try again, with another token if one is given. */
  connect(token?: string): void {
    throw new Error(`not yet ${String(token)}`);
  }

  /**
   * Give a command, such as `(core) => core.addPoint('liver', [1, 2, 3])`. Resolves with its result, and rejects with a
   * ClientError if it fails. Throws at once what the command throws. Need not be awaited.
   */
  request(command: (core: Core) => number): Promise<Result> {
    throw new Error(`not yet ${String(command)}`);
  }

  /** Cancel one request, or all. */
  cancel(request?: number): void {
    throw new Error(`not yet ${String(request)}`);
  }

  /** Register a listener of events. Returns a function that removes it. */
  onEvent(listener: (event: Event) => void): () => void {
    throw new Error(`not yet ${String(listener)}`);
  }

  /** Register a listener of changes of `state`. Returns a function that removes it. */
  onState(listener: (state: ConnectionState) => void): () => void {
    throw new Error(`not yet ${String(listener)}`);
  }

  /** End the session on the server, and close. */
  close(): void {
    throw new Error('not yet');
  }

  /** What the same tab needs to resume the session after a reload, or null. */
  get session(): SavedSession | null {
    throw new Error('not yet');
  }
}
