/** Encoding of the client's messages, and decoding and checking of the server's. */
import { Decoder, Encoder } from '@msgpack/msgpack';
import { MAX_BRICKS } from './bricks';
import { ClientError, messageOf } from './errors';
import {
  array,
  bool,
  bytes,
  fields,
  float,
  integer,
  nullable,
  oneOf,
  optional,
  struct,
  text,
  triple,
  type Check,
} from './fields';
import type { Box, Range } from './geometry';
import { checkStructure } from './messageLimits';
import type { ClientMessage, FreeMemory, Limits, Model, RunLengthMask, ServerMessage, Timings } from './messages';

/** Version of the protocol, that of protocol.md. */
export const PROTOCOL_VERSION = 1;
/** The feature of bricks in two layers. */
export const LAYERED_BRICKS = 'layered_bricks';
/** Features of this client beyond the messages of its protocol version. */
export const FEATURES: readonly string[] = [LAYERED_BRICKS];
/** Limit of a message in bytes, in both directions. */
export const MAX_MESSAGE_BYTES = 64 * 2 ** 20;
/** Limit of a segment's steps, done and undone each. */
export const MAX_STEPS = 10_000;

const encoder = new Encoder();
/** No field needs more. See also `checkStructure`. */
const decoder = new Decoder({ maxArrayLength: MAX_BRICKS, maxMapLength: 2 ** 16 });

/** Encode a message as one WebSocket message. */
export function encode(message: ClientMessage): Uint8Array<ArrayBuffer> {
  return encoder.encode(message);
}

/**
 * Decode a message of the server. Returns null for an unknown type.
 *
 * @throws ClientError - `bad_message` or `too_large`.
 */
export function decode(frame: Uint8Array): ServerMessage | null {
  if (frame.length > MAX_MESSAGE_BYTES) {
    throw new ClientError(
      'too_large',
      `The server sent a message of ${frame.length} bytes. At most ${MAX_MESSAGE_BYTES} are accepted.`,
    );
  }
  checkStructure(frame);
  const message = fields(decodeMap(frame), 'a message');
  const type = text(0, MAX_MESSAGE_BYTES)(message.type, '"type" of a message');
  return isKnown(type) ? MESSAGES[type](message, type) : null;
}

function isKnown(type: string): type is ServerMessage['type'] {
  return Object.hasOwn(MESSAGES, type);
}

function decodeMap(frame: Uint8Array): unknown {
  try {
    return decoder.decode(frame);
  } catch (error) {
    throw new ClientError('bad_message', `The server sent a message that is not msgpack (${messageOf(error)}).`);
  }
}

const count = integer(0, 2 ** 53);
const id = integer(1, 2 ** 53);
/** Limit of the thickness of a scribble in voxels, because the strokes are drawn in memory. */
const MAX_THICKNESS = 256;
const coordinate = integer(-(2 ** 31), 2 ** 31 - 1);
const anyInteger = integer(-Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
const size = integer(1, 2 ** 31 - 1);
const name = text(1, 256);
const sentence = text(0, 4096);
const thickness: Check<number> = (value, where) => {
  const voxels = float(value, where);
  if (!(voxels >= 0 && voxels <= MAX_THICKNESS)) {
    throw new ClientError(
      'bad_message',
      `The server sent an invalid message: ${where} is ${voxels}. Expected 0 to ${MAX_THICKNESS} voxels.`,
    );
  }
  return voxels;
};
const shortTexts = array(text(0, 64), 64);
const encoding = oneOf('deflate', 'raw');

const range: Check<Range> = (value, where) => {
  const pair = array(coordinate, 2)(value, where);
  if (pair.length !== 2 || pair[0] >= pair[1]) {
    throw new ClientError('bad_message', `The server sent an invalid message: ${where} has an empty or wrong range.`);
  }
  return [pair[0], pair[1]];
};

const box: Check<Box> = triple(range);

const runLengthMask: Check<RunLengthMask> = struct({ box, runs: size, encoding, data: bytes });

const NO_TIMINGS: Timings = { queued: 0, waiting_for_image: 0, network: 0, passes: 0, total: 0 };

const timings: Check<Timings> = struct({
  queued: optional(float, 0),
  waiting_for_image: optional(float, 0),
  network: optional(float, 0),
  passes: optional(count, 0),
  total: optional(float, 0),
});

const limits: Check<Limits> = struct({
  message_bytes: count,
  image_voxels: count,
  segments: count,
  steps: optional(count, MAX_STEPS),
  unacknowledged_bricks: count,
  session_bytes: optional(count, 0),
});

const model: Check<Model> = struct({
  name: sentence,
  license: sentence,
  patch_size: triple(size),
  prompts: shortTexts,
  scribble_thickness: triple(thickness),
});

const revisions: Check<ReadonlyMap<string, number>> = (value, where) =>
  new Map(Object.entries(fields(value, where)).map(([key, revision]) => [name(key, where), count(revision, where)]));

const memory: Check<FreeMemory> = struct({ device: count, device_total: count, images: count });

/** The check of each message, by its type. */
const MESSAGES: { [T in ServerMessage['type']]: Check<Extract<ServerMessage, { type: T }>> } = {
  welcome: struct({
    type: oneOf('welcome'),
    version: anyInteger,
    server_version: sentence,
    features: shortTexts,
    encoding: encoding,
    session_id: sentence,
    session_secret: sentence,
    resumed: bool,
    last_id: optional(count, 0),
    revisions: optional(revisions, new Map<string, number>()),
    image: optional(nullable(sentence), null),
    present_bricks: optional(bytes, new Uint8Array(0)),
    limits: limits,
    model: model,
    device: sentence,
    memory: optional(nullable(memory), null),
  }),
  image_progress: struct({
    type: oneOf('image_progress'),
    image: name,
    received: array(count, MAX_BRICKS),
    received_base: optional(array(count, MAX_BRICKS), []),
    present: count,
    total: count,
  }),
  progress: struct({
    type: oneOf('progress'),
    id: id,
    state: oneOf('queued', 'waiting_for_image', 'predicting', 'refining'),
    done: optional(count, 0),
    total: optional(count, 0),
    box: optional(nullable(box), null),
    base_layers_suffice: optional(bool, false),
  }),
  mask_delta: struct({
    type: oneOf('mask_delta'),
    segment: name,
    request: id,
    base_revision: count,
    revision: count,
    change: runLengthMask,
    checksum: integer(0, 2 ** 32 - 1),
    voxels: count,
    final: bool,
  }),
  mask_snapshot: struct({
    type: oneOf('mask_snapshot'),
    segment: name,
    request: id,
    revision: count,
    mask: optional(nullable(runLengthMask), null),
    voxels: count,
  }),
  done: struct({
    type: oneOf('done'),
    id: id,
    segment: optional(nullable(name), null),
    revision: optional(count, 0),
    changed: optional(nullable(box), null),
    voxels: optional(count, 0),
    timings: optional(timings, NO_TIMINGS),
  }),
  error: struct({
    type: oneOf('error'),
    code: name,
    message: sentence,
    id: optional(nullable(id), null),
  }),
  notice: struct({
    type: oneOf('notice'),
    code: oneOf('loading_model', 'worker_lost', 'shutting_down', 'evicted', 'warning'),
    message: sentence,
  }),
};
