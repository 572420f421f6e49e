/** Events of a session. `type` distinguishes them. */
import type { ClientError } from './errors';
import type { Box } from './geometry';
import type { NoticeCode, ProgressState, Timings, Welcome } from './messages';

/** The server accepted the connection. `welcome.resumed`: whether it still had the session. */
export interface WelcomeEvent {
  readonly type: 'welcome';
  readonly welcome: Welcome;
}

/** Bricks on the server, and bricks of the image. */
export interface ImageProgressEvent {
  readonly type: 'image_progress';
  readonly present: number;
  readonly total: number;
}

/**
 * State of a request. `queued`: `done` requests are ahead. `waiting_for_image`: `done` of `total` bricks are present.
 * `refining`: `done` of `total` passes are made.
 */
export interface ProgressEvent {
  readonly type: 'progress';
  readonly request: number;
  readonly segment: string | null;
  readonly state: ProgressState;
  readonly done: number;
  readonly total: number;
}

/**
 * A mask changed; `core.segments` has the change already. `request`: null if the change is none of a request.
 * `box`: holds all changed voxels. `change`: the voxels that flipped, as pairs of indices into the mask, start and end
 * (exclusive) of each run. There may be none, if only the revision changed. `final`: false for a preview.
 */
export interface MaskDeltaEvent {
  readonly type: 'mask_delta';
  readonly request: number | null;
  readonly segment: string;
  readonly box: Box;
  readonly change: Uint32Array;
  readonly revision: number;
  readonly voxels: number;
  readonly final: boolean;
}

/** Result of a request. `changed`: a box that holds all changed voxels. `timings`: seconds on the server. */
export interface Result {
  readonly request: number;
  readonly segment: string | null;
  readonly changed: Box | null;
  readonly voxels: number;
  readonly revision: number;
  readonly timings: Timings;
}

/** A request succeeded. */
export interface DoneEvent {
  readonly type: 'done';
  readonly result: Result;
}

/** A request failed, and changed nothing. */
export interface FailedEvent {
  readonly type: 'failed';
  readonly request: number;
  readonly error: ClientError;
}

/** Information for the user. */
export interface NoticeEvent {
  readonly type: 'notice';
  readonly code: NoticeCode;
  readonly message: string;
}

/** A segment no longer exists: it was removed, or its first request failed. */
export interface SegmentRemovedEvent {
  readonly type: 'segment_removed';
  readonly segment: string;
}

/** All segments are gone, because the image was replaced or refused. `core.segments` has those of a journal. */
export interface MasksDroppedEvent {
  readonly type: 'masks_dropped';
}

/** Any event. */
export type Event =
  | WelcomeEvent
  | ImageProgressEvent
  | ProgressEvent
  | MaskDeltaEvent
  | DoneEvent
  | FailedEvent
  | NoticeEvent
  | SegmentRemovedEvent
  | MasksDroppedEvent;
