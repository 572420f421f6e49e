import type { Index, Step } from './messages.js';

/** History of one segment, as the protocol's `restore` has it. */
export interface SegmentHistory {
  readonly name: string;
  readonly revision: number;
  readonly steps: readonly Step[];
  readonly undone: readonly Step[];
}

/** Prompts and masks of an image, without the image. It can be cloned, so that a database can store it. */
export interface Journal {
  /** `name` of the image source: one name for one content. */
  readonly image: string;
  readonly shape: Index;
  readonly segments: readonly SegmentHistory[];
}
