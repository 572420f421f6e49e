/** A WebSocket without a network, and the server at its other end. */
import { Decoder, Encoder } from '@msgpack/msgpack';
import { ImageSource } from '../../src/client/imageSource';
import { createPacker } from '../../src/client/packing';

export type Message = Record<string, unknown> & { type: string };

/** The browser's WebSocket, as far as a connection uses it. */
export class FakeSocket {
  static sockets: FakeSocket[] = [];

  static get last(): FakeSocket {
    const socket = FakeSocket.sockets.at(-1);
    if (socket === undefined) throw new Error('No connection was tried.');
    return socket;
  }

  binaryType = 'blob';
  bufferedAmount = 0;
  isClosed = false;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  /** Messages of the client. */
  received: Message[] = [];

  constructor(
    readonly url: string,
    readonly protocols: string[],
  ) {
    FakeSocket.sockets.push(this);
  }

  send(frame: Uint8Array): void {
    if (this.isClosed) throw new Error('The socket is closed.');
    this.received.push(new Decoder().decode(frame) as Message);
  }

  close(): void {
    this.isClosed = true;
  }

  // ---- the server's side ------------------------------------------------------------------------------------

  /** Accept the connection. */
  open(): void {
    this.onopen?.();
  }

  /** Accept the connection, send a welcome with these fields, and answer the heartbeat with which a session begins. */
  welcome(fields: Record<string, unknown> = {}): void {
    this.open();
    this.tell({ ...WELCOME, ...fields });
    const at = this.received.findIndex(({ type, autozoom, previews }) => {
      return type === 'set_options' && autozoom === null && previews === null;
    });
    if (at < 0) return;
    const [{ id }] = this.received.splice(at, 1);
    this.tell({ type: 'done', id });
  }

  tell(message: Message): void {
    this.onmessage?.({ data: new Uint8Array(new Encoder().encode(message)).buffer });
  }

  /** Lose the connection. */
  lose(code = 1006, reason = ''): void {
    this.isClosed = true;
    this.onclose?.({ code, reason });
  }

  /** The types of the messages since the last call. */
  types(): string[] {
    return this.received.splice(0).map(({ type }) => type);
  }
}

export const WELCOME: Message = {
  type: 'welcome',
  version: 1,
  server_version: 'test',
  features: [],
  encoding: 'raw',
  session_id: 'session',
  session_secret: 'secret',
  resumed: false,
  limits: { message_bytes: 2 ** 26, image_voxels: 2 ** 30, segments: 256, unacknowledged_bricks: 128 },
  model: {
    name: 'test',
    license: 'none',
    patch_size: [192, 192, 192],
    prompts: ['point'],
    scribble_thickness: [1, 1, 1],
  },
  device: 'cpu',
};

/** A small image, or one of many bricks. */
export async function makeImage(slices = 2): Promise<ImageSource> {
  const voxels = Int16Array.from({ length: 64 * 64 * slices }, (_, at) => at % 100);
  const image = new ImageSource('scan', [64, 64, slices], voxels, [1, 64, 64 * 64]);
  await image.prepare(createPacker());
  return image;
}
