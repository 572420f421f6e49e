/**
 * A client for tests/end_to_end: it executes commands from stdin, and writes their results to stdout.
 *
 * Each way, a message is its length as uint32 (little-endian), and a msgpack map. It runs in Node.js, whose WebSocket
 * is that of browsers.
 */
import { Decoder, Encoder } from '@msgpack/msgpack';
import { stdin, stdout } from 'node:process';
import { Connection } from '../../src/client/connection';
import type { Core, PromptOptions } from '../../src/client/core';
import { ClientError } from '../../src/client/errors';
import type { Box, Index } from '../../src/client/geometry';
import { ImageSource } from '../../src/client/imageSource';
import type { DType } from '../../src/client/messages';
import { createPacker } from '../../src/client/packing';
import { wireArray } from '../../src/client/voxels';

/** A method of a segment with its arguments, named as in the Python client. */
interface Prompt {
  readonly method: string;
  readonly segment: string;
  readonly point: Index;
  /** The box, or that of the mask. */
  readonly box: Box;
  readonly mask: Uint8Array;
  readonly options: PromptOptions;
}

type Command =
  | { readonly command: 'connect'; readonly address: string }
  | { readonly command: 'set_image'; readonly shape: Index; readonly dtype: DType; readonly voxels: Uint8Array }
  | { readonly command: 'prompts'; readonly prompts: Prompt[] }
  | { readonly command: 'state' | 'close' };

const packer = createPacker();
const encoder = new Encoder();
const decoder = new Decoder();
let connection: Connection;
let fetched = 0;
/** The image's complete bricks on the server. */
let present = 0;
/** The first preview, and the complete bricks at that time. */
let firstPreview: { present: number; voxels: number } | null = null;

// No long back-off for a client that loses many connections.
Math.random = () => 0.01;

async function execute(command: Command): Promise<unknown> {
  switch (command.command) {
    case 'connect':
      await connect(command.address);
      return null;
    case 'set_image': {
      const { shape, dtype, voxels } = command;
      const array = wireArray(dtype, voxels.slice().buffer);
      const image = new ImageSource('image', shape, array, [shape[1] * shape[2], shape[2], 1]);
      await image.prepare(packer);
      await connection.request((core) => core.setImage(image));
      return null;
    }
    case 'prompts':
      return Promise.all(command.prompts.map(outcome));
    case 'state':
      return state();
    case 'close':
      connection.close();
      return null;
  }
}

function connect(address: string): Promise<void> {
  connection = new Connection(address, { packer });
  connection.onEvent((event) => {
    if (event.type === 'image_progress') ({ present } = event);
    if (event.type !== 'mask_delta') return;
    if (event.request === null) fetched++;
    if (!event.final) firstPreview ??= { present, voxels: event.voxels };
  });
  return new Promise((resolve, reject) => {
    connection.onState((now) => {
      if (now.state === 'connected') resolve();
      if (now.state === 'refused') reject(new Error(now.message));
    });
    connection.connect();
  });
}

/** Voxels and the box of the change, or the code of the error. */
async function outcome(prompt: Prompt): Promise<unknown> {
  try {
    const { voxels, changed } = await connection.request((core) => send(core, prompt));
    return [voxels, changed];
  } catch (error) {
    if (error instanceof ClientError) return error.code;
    throw error;
  }
}

function send(core: Core<ImageSource>, { method, segment, point, box, mask, options }: Prompt): number {
  switch (method) {
    case 'add_point':
      return core.addPoint(segment, point, options);
    case 'add_bbox':
      return core.addBbox(segment, box, options);
    case 'add_scribble':
      return core.addScribble(segment, mask, box, options);
    case 'add_lasso':
      return core.addLasso(segment, mask, box, options);
    case 'set_mask':
      return core.setMask(segment, mask, box, options);
    case 'run':
      return core.run(segment);
    case 'undo':
      return core.undo(segment);
    case 'redo':
      return core.redo(segment);
    case 'reset':
      return core.reset(segment);
    default:
      throw new Error(`There is no method ${method}.`);
  }
}

function state(): unknown {
  const { core } = connection;
  const segments = [...core.segments.values()].map(({ name, shape, revision, voxels, mask, steps, undone }) => ({
    name,
    shape,
    revision,
    voxels,
    mask,
    steps,
    undone,
  }));
  const welcome =
    core.welcome === null ? null : { ...core.welcome, revisions: Object.fromEntries(core.welcome.revisions) };
  return { segments, welcome, fetched, first_preview: firstPreview };
}

async function main(): Promise<void> {
  let received = Buffer.alloc(0);
  for await (const chunk of stdin) {
    received = Buffer.concat([received, chunk as Buffer]);
    while (received.length >= 4 && received.length >= 4 + received.readUInt32LE()) {
      const end = 4 + received.readUInt32LE();
      const answer = encoder.encode(
        await execute(decoder.decode(new Uint8Array(received.subarray(4, end))) as Command),
      );
      received = received.subarray(end);
      const head = Buffer.alloc(4);
      head.writeUInt32LE(answer.length);
      stdout.write(Buffer.concat([head, answer]));
    }
  }
}

void main(); // without catch: Node.js prints an error and ends
