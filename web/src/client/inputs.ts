/** Masks that a user passes to commands, checked and packed for messages. */
import { ClientError } from './errors';
import { boxShape, checkBox, countVoxels, wholeBox, type Box, type Index } from './geometry';
import { makeEmptyMask, makeMask, runsOf, type Runs } from './masks';
import type { Encoding, RunLengthMask } from './messages';

/** A mask as a user passes it: one byte per voxel of `frame`, nonzero for set, in C order. */
export interface MaskInput {
  readonly mask: Uint8Array;
  readonly frame: Box;
  /** Of the volume. */
  readonly shape: Index;
}

/** Return a mask with its box, the whole volume by default. Throws `out_of_bounds` for another number of voxels. */
export function maskInput(mask: Uint8Array, box: Box | null, shape: Index): MaskInput {
  const frame = box ?? wholeBox(shape);
  checkBox(frame, shape);
  if (mask.length !== countVoxels(boxShape(frame))) {
    throw new ClientError(
      'out_of_bounds',
      `The mask has ${mask.length} voxels. Expected ${countVoxels(boxShape(frame))}, as many as its box.`,
    );
  }
  return { mask, frame, shape };
}

/** Pack the mask of a scribble or a lasso. Throws `unsupported_prompt` if no voxel is set. */
export function promptMask(input: MaskInput, encoding: Encoding): RunLengthMask {
  const runs = setRuns(input);
  if (runs.length === 0) {
    throw new ClientError('unsupported_prompt', 'The scribble or lasso is empty. Mark at least one voxel.');
  }
  return makeMask(runs, input.shape, encoding);
}

/** Pack the mask of a segment, which may be empty. */
export function segmentMask(input: MaskInput, encoding: Encoding): RunLengthMask {
  const runs = setRuns(input);
  return runs.length === 0 ? makeEmptyMask(encoding) : makeMask(runs, input.shape, encoding);
}

function setRuns({ mask, frame, shape }: MaskInput): Runs {
  return runsOf(mask, frame, shape);
}
