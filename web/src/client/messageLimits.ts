/** Limits on the structure of a message, because a short one could take gigabytes in memory. */
import { MAX_BRICKS } from './bricks';
import { ClientError } from './errors';

/** Limit of the items of all arrays and maps together: the longest list is that of all bricks. */
const MAX_ITEMS = 2 * MAX_BRICKS;
/** Limit of arrays and maps inside of each other. The messages of the server have fewer. */
const MAX_DEPTH = 16;

/** Bytes of the length of each type from 0xc0 to 0xdf, 0 for those of a fixed size. */
const LENGTH_BYTES = [0, 0, 0, 0, 1, 2, 4, 1, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4];
/** Its other bytes, without those that the length counts. */
const OTHER_BYTES = [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 5, 9, 2, 3, 5, 9, 2, 3, 5, 9, 3, 4, 6, 10, 18, 1, 1, 1, 1, 1, 1, 1];

/**
 * Check a message before it is decoded: a decoder allocates an array when its length is announced. Whether the message
 * is complete is left to the decoder.
 *
 * @throws ClientError - `too_large`.
 */
export function checkStructure(frame: Uint8Array): void {
  /** Values that are still to come of each array and map around the position. */
  const open: number[] = [];
  let items = 0;
  let at = 0;
  do {
    const [size, inside] = headOf(frame, at);
    at += size;
    items += inside;
    if (open.length > 0) open[open.length - 1]--;
    open.push(inside);
    if (items > MAX_ITEMS || open.length > MAX_DEPTH) {
      throw new ClientError(
        'too_large',
        `The server sent a message with more than ${MAX_ITEMS} items or ${MAX_DEPTH} levels. It is no nninteractive-ws ` +
          'server, or is damaged.',
      );
    }
    while (open.at(-1) === 0) open.pop();
  } while (open.length > 0 && at < frame.length);
}

/** Return the size of a value in bytes, without the items of an array or a map, and the number of these. */
function headOf(frame: Uint8Array, at: number): [size: number, items: number] {
  const first = frame[at];
  if (first < 0x80 || first >= 0xe0) return [1, 0];
  if (first < 0x90) return [1, 2 * (first & 15)];
  if (first < 0xa0) return [1, first & 15];
  if (first < 0xc0) return [1 + (first & 31), 0];
  const bytes = LENGTH_BYTES[first - 0xc0];
  let length = 0;
  for (let n = 1; n <= bytes; n++) length = 256 * length + (frame.at(at + n) ?? 0);
  const size = OTHER_BYTES[first - 0xc0] + bytes;
  if (first < 0xdc) return [size + length, 0];
  return [size, first < 0xde ? length : 2 * length];
}
