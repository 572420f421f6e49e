import type { ClientError } from './errors.js';
import type { Event } from './events.js';
import type { Segment } from './history.js';
import type { ImageSource } from './imageSource.js';
import type { Journal } from './journal.js';
import type { Box, Encoding, Index, Welcome } from './messages.js';

/** What a client needs to resume a session, also after a reload of the page. */
export interface SavedSession {
  readonly id: string;
  readonly secret: string;
}

export interface CoreOptions {
  /** Array encodings, best first. */
  readonly encodings?: readonly Encoding[];
  /** Returns seconds. */
  readonly clock?: () => number;
  /** A session of an earlier page to resume. */
  readonly session?: SavedSession;
}

export interface PromptOptions {
  /** false: the prompt marks background. Default true. */
  readonly positive?: boolean;
  /** Whether to predict at once. Default true. */
  readonly run?: boolean;
}

const notYet = (...values: unknown[]): never => {
  throw new Error(`not yet ${values.length}`);
};

/**
 * The client without I/O: commands and frames in, frames and events out.
 *
 * A command returns the number of its request, which its events carry. Commands throw a ClientError for arguments that
 * cannot be sent (`no_image`, `out_of_bounds`, `unsupported_prompt`). They may be given without a connection, and wait
 * for the next one. Masks of arguments have one byte per voxel, nonzero for set, in C order, of the shape of `box`, or
 * of the volume if `box` is null.
 */
export class Core {
  readonly segments = new Map<string, Segment>();
  /** The server's welcome on this connection, or null before it. */
  welcome: Welcome | null = null;
  /** Error that ended this connection, or null. */
  ended: ClientError | null = null;
  image: ImageSource | null = null;

  constructor(readonly options: CoreOptions = {}) {}

  /** Begin a connection: the first, or another after one was lost. */
  start(): void {
    notYet();
  }

  /** Return the next frame that is no part of the image, or null. */
  nextControl(): Uint8Array | null {
    return notYet();
  }

  /** Handle a frame, and return its events. It may set `ended`. */
  receive(frame: Uint8Array): Event[] {
    return notYet(frame);
  }

  /** Announce an image; its bricks follow. Removes all segments, and restores those of `journal`. */
  setImage(source: ImageSource, journal?: Journal): number {
    return notYet(source, journal);
  }

  /** Add a point, the voxel (i, j, k). */
  addPoint(segment: string, point: Index, options?: PromptOptions): number {
    return notYet(segment, point, options);
  }

  /** Add an end-exclusive box. */
  addBbox(segment: string, box: Box, options?: PromptOptions): number {
    return notYet(segment, box, options);
  }

  /** Add strokes, at least one voxel. */
  addScribble(segment: string, mask: Uint8Array, box: Box | null, options?: PromptOptions): number {
    return notYet(segment, mask, box, options);
  }

  /** Add a filled outline, at least one voxel. */
  addLasso(segment: string, mask: Uint8Array, box: Box | null, options?: PromptOptions): number {
    return notYet(segment, mask, box, options);
  }

  /** Replace the segment's mask, which is empty outside of `box`. */
  setMask(segment: string, mask: Uint8Array, box: Box | null, options?: { readonly run?: boolean }): number {
    return notYet(segment, mask, box, options);
  }

  /** Flip voxels of the segment's mask, for edits by hand. */
  flipMask(segment: string, flips: Uint8Array, box: Box | null): number {
    return notYet(segment, flips, box);
  }

  /** Predict from the prompts added with `run` false. */
  run(segment: string): number {
    return notYet(segment);
  }

  undo(segment: string): number {
    return notYet(segment);
  }

  redo(segment: string): number {
    return notYet(segment);
  }

  /** Empty the segment and forget its prompts. This can be undone. */
  reset(segment: string): number {
    return notYet(segment);
  }

  removeSegment(segment: string): number {
    return notYet(segment);
  }

  /** Change how the session predicts. An omitted option stays as it is. */
  setOptions(options: { readonly autozoom?: boolean; readonly previews?: boolean }): number {
    return notYet(options);
  }

  /** Cancel one request, or all. Each still ends with `done`, or with `failed` and the code `cancelled`. */
  cancel(request?: number): void {
    notYet(request);
  }

  /** End the session on the server. */
  bye(): void {
    notYet();
  }

  /** Numbers of the requests without an answer. */
  get pendingRequests(): number[] {
    return notYet();
  }

  /** Return prompts and masks, without pending requests. Throws `no_image`. */
  journal(): Journal {
    return notYet();
  }
}
