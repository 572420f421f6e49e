/** Back-off and keepalive of connections, without timers. Times are in seconds. */
import { ClientError, type ErrorCode } from './errors';

const FIRST_DELAY_S = 0.25;
const LONGEST_DELAY_S = 15;
/** Age of a connection after which its loss restarts the back-off from the first delay. */
const STEADY_AFTER_S = 5;
/** Silence after which the server is asked for a sign of life, and the time it has for that. */
const PING_AFTER_S = 20;
const PONG_TIMEOUT_S = 20;
/** The same during a request: the answer may have to wait for it, although servers of this project answer at once. */
const BUSY_PONG_TIMEOUT_S = 60;

/** After these errors, the server may accept the next attempt. */
const TRANSIENT: readonly ErrorCode[] = [
  'connection_failed',
  'at_capacity',
  'out_of_memory',
  'worker_lost',
  'shutting_down',
  'internal',
];

/** Whether reconnecting cannot help, because one side or the user has to change something first. */
export function isFinal(error: ClientError): boolean {
  return !TRANSIENT.includes(error.code);
}

/** Return the error of a connection that was closed with a code of RFC 6455, and without an `error` message. */
export function closeError(code: number, reason: string): ClientError {
  if (code === 1000) {
    return new ClientError(
      'session_taken',
      'The session was continued by another page, such as a copy of this tab. Continue there, or reload this page.',
    );
  }
  if (code === 1009) return new ClientError('too_large', 'A message was larger than the server accepts.');
  if ([1002, 1003, 1007].includes(code)) {
    return new ClientError(
      'bad_message',
      `Server and page do not speak the same protocol (${code} ${reason}). Reload the page, or update the server.`,
    );
  }
  const detail = reason === '' ? '' : ` (${reason})`;
  return new ClientError('connection_failed', `The connection to the server was lost${detail}.`);
}

/**
 * Exponential back-off with full jitter, which keeps the clients of a restarted server from reconnecting all at once.
 */
export class Backoff {
  private bound = FIRST_DELAY_S;
  private openedAt: number | null = null;

  /** Note a welcome. */
  opened(now: number): void {
    this.openedAt = now;
  }

  /** Return the delay before the next attempt, and forget the connection that was lost. */
  next(now: number): number {
    if (this.openedAt !== null && now - this.openedAt >= STEADY_AFTER_S) this.bound = FIRST_DELAY_S;
    this.openedAt = null;
    const delay = Math.random() * this.bound;
    this.bound = Math.min(2 * this.bound, LONGEST_DELAY_S);
    return delay;
  }
}

/**
 * Keepalive of a connection, because a lost network reports no error, and a page cannot send pings.
 *
 * Bytes that had to wait before the browser could hand them over to the system count as activity, since others were
 * delivered before them.
 */
export class Keepalive {
  private heardAt: number;
  private askedAt: number | null = null;

  constructor(now: number) {
    this.heardAt = now;
  }

  /** Note activity of the server. */
  heard(now: number): void {
    this.heardAt = now;
    this.askedAt = null;
  }

  /** Whether the server has been silent for so long that it is time to ask. */
  isSilent(now: number): boolean {
    return now - this.heardAt >= PING_AFTER_S;
  }

  /** Note that the server is asked for a sign of life. Returns false if that was done already. */
  ask(now: number): boolean {
    if (this.askedAt !== null) return false;
    this.askedAt = now;
    return true;
  }

  /**
   * Return the error of a server that has not answered in time, or null.
   *
   * `isBusy`: whether a request other than a heartbeat is unanswered.
   */
  failure(now: number, isBusy: boolean): ClientError | null {
    const timeout = isBusy ? BUSY_PONG_TIMEOUT_S : PONG_TIMEOUT_S;
    if (this.askedAt === null || now - this.askedAt < timeout) return null;
    const silence = Math.round(now - this.heardAt);
    return new ClientError('connection_failed', `The server has not answered for ${silence} seconds.`);
  }
}
