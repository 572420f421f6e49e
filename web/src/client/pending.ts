/** Requests without an answer. */
import { ClientError } from './errors';
import type { Box, Index } from './geometry';
import { NO_CHANGE, type Runs } from './masks';
import type { Request } from './messages';

/** A request during which the worker ended this often may be the cause. It is not sent again. */
const MAX_LOSSES = 2;

/** A request without an answer. */
export interface Pending {
  /** Id that the user knows, also after it was sent again under another id; null for the core's own requests. */
  readonly number: number | null;
  readonly request: Request;
  /** Number of the request's image. An image that is set again gets another one. */
  readonly generation: number;
  /** Changes of the request so far. */
  change: Runs;
  /** The segment's revision before the request's first change. */
  base: number | null;
  cancelled: boolean;
  /** Number of workers that ended during the request. */
  losses: number;
  /** Region of the image for which it waits, has waited, or probably will; or null. */
  awaited: Box | null;
  /** Whether it waits for base layers. */
  baseLayersSuffice: boolean;
  /** The voxel of a prompt, or null. */
  focus: Index | null;
}

/** Return a request that is sent now, without changes. */
export function makePending(request: Request, number: number | null, generation: number): Pending {
  return {
    number,
    request,
    generation,
    change: NO_CHANGE,
    base: null,
    cancelled: false,
    losses: 0,
    awaited: null,
    baseLayersSuffice: false,
    focus: null,
  };
}

/** Return the segment of a request, or null. */
export function segmentOf({ request }: Pending): string | null {
  return 'segment' in request ? request.segment : null;
}

/** Throw a ClientError, `bad_message`, if an answer names another segment than its request. */
export function checkSegment(name: string, pending: Pending): void {
  if (name === segmentOf(pending)) return;
  throw new ClientError(
    'bad_message',
    `The server answered a request about segment "${String(segmentOf(pending))}" with segment "${name}".`,
  );
}

/** Whether a request changes nothing, and only asks for an answer. */
export function isHeartbeat(request: Request): boolean {
  return request.type === 'set_options' && request.autozoom === null && request.previews === null;
}

/** Whether a request creates its segment if there is none. */
export function createsSegment({ request }: Pending): boolean {
  return request.type === 'set_mask' || request.type.startsWith('add_');
}

/** Whether the image of a request has been replaced. `generation`: that of the image now. */
export function isObsolete(pending: Pending, generation: number): boolean {
  return pending.generation !== generation && pending.request.type !== 'set_options';
}

/**
 * Return the error of a request that must not be sent again after a lost connection, or null.
 *
 * `generation`: that of the image now.
 */
export function retryError(pending: Pending, generation: number): ClientError | null {
  if (isObsolete(pending, generation)) {
    return new ClientError(
      'cancelled',
      'The connection was lost during the request, and its image has been replaced since.',
    );
  }
  if (pending.request.type === 'set_image') return null;
  if (pending.cancelled) {
    return new ClientError(
      'cancelled',
      'The request was cancelled, and the connection was lost. The segment is unchanged.',
    );
  }
  if (pending.losses >= MAX_LOSSES) {
    return new ClientError(
      'worker_lost',
      `The server's worker process ended ${pending.losses} times during this request, which may be the cause. ` +
        'The request is not sent again. The segment is unchanged.',
    );
  }
  return null;
}
