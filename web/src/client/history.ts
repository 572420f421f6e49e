import type { Index, Step } from './messages.js';

/** A segment with its mask and its history. */
export class Segment {
  /** One byte per voxel, 0 or 1, in C order: i slowest, k fastest. Changed in place. */
  readonly mask: Uint8Array;
  revision = 0;
  /** Set voxels of the mask. */
  voxels = 0;
  /** Steps that `undo` can undo, the oldest first. */
  steps: Step[] = [];
  /** Undone steps; the one to redo next is the last. */
  undone: Step[] = [];

  constructor(
    readonly name: string,
    readonly shape: Index,
  ) {
    this.mask = new Uint8Array(shape[0] * shape[1] * shape[2]);
  }
}
