/** Sentences for the status line. */

import type { ConnectionState } from '../client/connection';
import type { Event } from '../client/events';
import type { NoticeCode } from '../client/messages';

const CONNECTION_LOST = 'Connection lost, trying again. No work is lost.';
const NOT_CONNECTED = 'Not connected, trying again.';

/** State of the page for the status line. */
export interface Status {
  kind: 'idle' | 'busy' | 'ready' | 'lost' | 'warning' | 'error';
  /** A sentence for the user. A screen reader reads it. */
  message: string;
  /** Figures that change often. They are shown after the message, and not read. */
  detail?: string;
  /** Progress from 0 to 1; undefined if it is unknown or nothing runs. */
  fraction?: number;
}

/** Return the status to which an event of the session leads, or null. */
export function statusOf(event: Event): Status | null {
  switch (event.type) {
    case 'image_progress':
      return imageStatus(event.present, event.total);
    case 'progress':
      return progressStatus(event);
    case 'done':
      return doneStatus(event.result.voxels, event.result.timings.total);
    case 'failed':
      return event.error.code === 'cancelled'
        ? { kind: 'ready', message: 'Canceled. The segment was reverted.' }
        : { kind: 'error', message: event.error.message };
    case 'notice':
      return { kind: noticeKind(event.code), message: event.message };
    default:
      return null;
  }
}

function noticeKind(code: NoticeCode): Status['kind'] {
  if (code === 'loading_model') return 'busy';
  return code === 'warning' ? 'warning' : 'ready';
}

/**
 * Return the status of a state of the connection.
 *
 * @param elapsed - seconds since the state began
 * @param wasConnected - whether the page had a connection before
 */
export function connectionStatus(state: ConnectionState, elapsed = 0, wasConnected = true): Status {
  switch (state.state) {
    case 'connecting':
      return { kind: 'busy', message: 'Connecting to the server' };
    case 'connected':
      return { kind: 'ready', message: 'Connected.' };
    case 'lost':
      return {
        kind: 'lost',
        message: `${wasConnected ? CONNECTION_LOST : NOT_CONNECTED} ${state.message}`,
        detail: `${Math.max(0, Math.ceil(state.retryIn - elapsed))} s`,
      };
    case 'refused':
      return { kind: 'error', message: state.message };
    case 'dormant':
      return { kind: 'lost', message: state.message };
    case 'closed':
      return { kind: 'idle', message: 'Not connected.' };
  }
}

/** Format a whole number with separators of thousands. */
export function formatCount(count: number): string {
  return count.toLocaleString('en-US');
}

function imageStatus(present: number, total: number): Status {
  if (present === total) return { kind: 'ready', message: 'The image is on the server.' };
  const fraction = present / total;
  return { kind: 'busy', message: 'Sending the image', detail: `${Math.floor(100 * fraction)} %`, fraction };
}

function progressStatus(event: { state: string; done: number; total: number }): Status {
  const { state, done, total } = event;
  const fraction = total > 0 ? done / total : undefined;
  if (state === 'queued')
    return { kind: 'busy', message: 'Waiting in the queue', detail: `number ${done + 1} in line` };
  if (state === 'waiting_for_image') {
    return {
      kind: 'busy',
      message: 'Waiting for the image around the prompt',
      detail: `${done} of ${total}`,
      fraction,
    };
  }
  if (state === 'refining' && total > 0) {
    return { kind: 'busy', message: 'Refining', detail: `${done} of ${total}`, fraction };
  }
  return { kind: 'busy', message: state === 'predicting' ? 'Predicting' : 'Refining' };
}

function doneStatus(voxels: number, seconds: number): Status {
  return { kind: 'ready', message: `Done: ${formatCount(voxels)} voxels in ${seconds.toFixed(1)} s.` };
}
