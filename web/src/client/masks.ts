/**
 * Masks and their changes, as sets of voxels.
 *
 * A mask in memory has one byte per voxel, in C order. A change is a list of *runs*: pairs of indices into the mask,
 * start and end (exclusive) of each run of voxels, in ascending order, with a gap between any two. The exclusive or of
 * two changes is then a merge of sorted lists, and applying a change touches its voxels only.
 */
import { pack, unpack } from './arrays';
import { CRC_TABLE } from './crc32';
import { ClientError } from './errors';
import { boxShape, countVoxels, isInside, type Box, type Index } from './geometry';
import type { Encoding, RunLengthMask } from './messages';

/** Pairs of start and end (exclusive), strictly ascending. */
export type Runs = Uint32Array<ArrayBuffer>;

/** The change that changes nothing. */
export const NO_CHANGE: Runs = new Uint32Array(0);

/** A box for an empty mask or change, which has no bounding box. */
export const FIRST_VOXEL: Box = [
  [0, 1],
  [0, 1],
  [0, 1],
];

/** A growing list of runs. */
class RunList {
  private values: Runs = new Uint32Array(256);
  private length = 0;

  /** Append a run that begins at or after the end of the last one. */
  add(start: number, stop: number): void {
    if (this.length > 0 && this.values[this.length - 1] === start) {
      this.values[this.length - 1] = stop;
      return;
    }
    if (this.length === this.values.length) {
      const grown = new Uint32Array(2 * this.length);
      grown.set(this.values);
      this.values = grown;
    }
    this.values[this.length++] = start;
    this.values[this.length++] = stop;
  }

  finish(): Runs {
    return this.values.slice(0, this.length);
  }
}

/**
 * Read the set voxels of a mask from the wire.
 *
 * @throws ClientError - `bad_message` if box and runs do not match or the box is not inside the volume, and the errors
 *   of `unpack`.
 */
export function readMask(packed: RunLengthMask, shape: Index): Runs {
  const { box } = packed;
  if (!isInside(box, shape)) {
    throw new ClientError(
      'bad_message',
      `The box ${JSON.stringify(box)} of a mask is not inside the image of ${shape.join(' × ')} voxels.`,
    );
  }
  const size = boxShape(box);
  const voxels = countVoxels(size);
  if (packed.runs > voxels + 1) {
    throw new ClientError('bad_message', `A mask announces ${packed.runs} runs for a box of ${voxels} voxels.`);
  }
  const lengths = new Uint32Array(unpack(packed.data, packed.encoding, 4 * packed.runs).buffer, 0, packed.runs);
  let total = 0;
  for (const length of lengths) total += length;
  if (total !== voxels) {
    throw new ClientError(
      'bad_message',
      `The runs of a mask add up to ${total}, not to the ${voxels} voxels of its box.`,
    );
  }
  const list = new RunList();
  let at = 0;
  for (let n = 0; n < lengths.length; n++) {
    if (n % 2 === 1) addRunOfBox(list, at, at + lengths[n], box, size, shape);
    at += lengths[n];
  }
  return list.finish();
}

/** Add voxels of a box, from `start` to `stop` in the C order of the box, row by row. */
function addRunOfBox(list: RunList, start: number, stop: number, box: Box, size: Index, shape: Index): void {
  for (let at = start; at < stop;) {
    const row = Math.floor(at / size[2]);
    const end = Math.min(stop, (row + 1) * size[2]);
    const i = box[0][0] + Math.floor(row / size[1]);
    const j = box[1][0] + (row % size[1]);
    const offset = (i * shape[1] + j) * shape[2] + box[2][0] - row * size[2];
    list.add(at + offset, end + offset);
    at = end;
  }
}

/**
 * Pack the set voxels of a mask for the wire, in their bounding box.
 *
 * @throws RangeError if there are none.
 */
export function makeMask(runs: Runs, shape: Index, encoding: Encoding): RunLengthMask {
  const box = boundingBox(runs, shape);
  if (box === null) throw new RangeError('An empty mask has no bounding box.');
  return packRuns(toBox(runs, box, shape), box, encoding);
}

/** Return a mask for the wire that sets no voxel of a volume. */
export function makeEmptyMask(encoding: Encoding): RunLengthMask {
  return packRuns(NO_CHANGE, FIRST_VOXEL, encoding);
}

/** Return runs in the C order of a box that holds them. */
function toBox(runs: Runs, box: Box, shape: Index): Runs {
  const size = boxShape(box);
  const list = new RunList();
  for (let n = 0; n < runs.length; n += 2) {
    for (let at = runs[n]; at < runs[n + 1];) {
      const row = Math.floor(at / shape[2]);
      const end = Math.min(runs[n + 1], (row + 1) * shape[2]);
      const i = Math.floor(row / shape[1]) - box[0][0];
      const j = (row % shape[1]) - box[1][0];
      const offset = (i * size[1] + j) * size[2] - box[2][0] - row * shape[2];
      list.add(at + offset, end + offset);
      at = end;
    }
  }
  return list.finish();
}

/** `inBox`: runs in the C order of the box. */
function packRuns(inBox: Runs, box: Box, encoding: Encoding): RunLengthMask {
  const voxels = countVoxels(boxShape(box));
  const hasTail = inBox.length === 0 || inBox[inBox.length - 1] < voxels;
  const lengths = new Uint32Array(inBox.length + Number(hasTail));
  let last = 0;
  for (let n = 0; n < inBox.length; n++) {
    lengths[n] = inBox[n] - last;
    last = inBox[n];
  }
  if (hasTail) lengths[inBox.length] = voxels - last;
  return { box, runs: lengths.length, encoding, data: pack(new Uint8Array(lengths.buffer), encoding) };
}

/** Return the nonzero voxels of an array of the shape of `box`. */
export function runsOf(mask: Uint8Array, box: Box, shape: Index): Runs {
  const [rows, columns, length] = boxShape(box);
  const list = new RunList();
  let at = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const offset = ((box[0][0] + i) * shape[1] + box[1][0] + j) * shape[2] + box[2][0] - at;
      for (const end = at + length; at < end;) {
        while (at < end && mask[at] === 0) at++;
        const start = at;
        while (at < end && mask[at] !== 0) at++;
        if (at > start) list.add(start + offset, at + offset);
      }
    }
  }
  return list.finish();
}

/** Flip voxels of a mask in place. Returns by how much the number of set voxels grew. */
export function flip(mask: Uint8Array, runs: Runs): number {
  let growth = 0;
  for (let n = 0; n < runs.length; n += 2) {
    const stop = runs[n + 1];
    for (let at = runs[n]; at < stop; at++) growth += 2 * (mask[at] ^= 1) - 1;
  }
  return growth;
}

/** Return the change that is equivalent to both, in any order. */
export function compose(first: Runs, second: Runs): Runs {
  if (first.length === 0 || second.length === 0) return first.length === 0 ? second : first;
  // At each index, a run begins or ends. An index of both changes cancels out in the exclusive or.
  const merged = new Uint32Array(first.length + second.length);
  let length = 0;
  let a = 0;
  let b = 0;
  while (a < first.length && b < second.length) {
    const x = first[a];
    const y = second[b];
    if (x <= y) a++;
    if (y <= x) b++;
    if (x !== y) merged[length++] = Math.min(x, y);
  }
  while (a < first.length) merged[length++] = first[a++];
  while (b < second.length) merged[length++] = second[b++];
  return merged.slice(0, length);
}

/** Return the number of voxels of runs. */
export function countRuns(runs: Runs): number {
  let voxels = 0;
  for (let n = 0; n < runs.length; n += 2) voxels += runs[n + 1] - runs[n];
  return voxels;
}

/** Return the bounding box of runs, or null if there are none. */
export function boundingBox(runs: Runs, shape: Index): Box | null {
  if (runs.length === 0) return null;
  const [, nj, nk] = shape;
  let [j0, j1, k0, k1] = [nj, 0, nk, 0];
  for (let n = 0; n < runs.length; n += 2) {
    const first = runs[n];
    const last = runs[n + 1] - 1;
    const firstRow = Math.floor(first / nk);
    const lastRow = Math.floor(last / nk);
    // A run over several rows has the end of one row and the start of the next.
    k0 = Math.min(k0, firstRow === lastRow ? first % nk : 0);
    k1 = Math.max(k1, firstRow === lastRow ? (last % nk) + 1 : nk);
    const isOnePlane = Math.floor(firstRow / nj) === Math.floor(lastRow / nj);
    j0 = Math.min(j0, isOnePlane ? firstRow % nj : 0);
    j1 = Math.max(j1, isOnePlane ? (lastRow % nj) + 1 : nj);
  }
  const plane = nj * nk;
  return [
    [Math.floor(runs[0] / plane), Math.floor((runs[runs.length - 1] - 1) / plane) + 1],
    [j0, j1],
    [k0, k1],
  ];
}

/** Return the CRC-32 of the voxels of a box in C order, eight to a byte, the first in the lowest bit. */
export function checksum(mask: Uint8Array, box: Box, shape: Index): number {
  let crc = -1;
  let bits = 0; // voxels that are not in the CRC yet, fewer than eight
  let count = 0;
  const length = box[2][1] - box[2][0];
  for (let i = box[0][0]; i < box[0][1]; i++) {
    for (let j = box[1][0]; j < box[1][1]; j++) {
      let at = (i * shape[1] + j) * shape[2] + box[2][0];
      const end = at + length;
      for (; at + 8 <= end; at += 8) {
        bits |= eightBits(mask, at) << count;
        crc = CRC_TABLE[(crc ^ bits) & 255] ^ (crc >>> 8);
        bits >>>= 8;
      }
      for (; at < end; at++) {
        bits |= mask[at] << count;
        if (++count === 8) {
          crc = CRC_TABLE[(crc ^ bits) & 255] ^ (crc >>> 8);
          bits = count = 0;
        }
      }
    }
  }
  if (count > 0) crc = CRC_TABLE[(crc ^ bits) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

function eightBits(mask: Uint8Array, at: number): number {
  const low = mask[at] | (mask[at + 1] << 1) | (mask[at + 2] << 2) | (mask[at + 3] << 3);
  const high = (mask[at + 4] << 4) | (mask[at + 5] << 5) | (mask[at + 6] << 6) | (mask[at + 7] << 7);
  return low | high;
}
