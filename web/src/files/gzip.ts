import { pauses } from './pauses';

/** Browsers compress a piece without a pause. One of this size takes a few milliseconds. */
const PIECE_BYTES = 1 << 16;

/** Compress parts of a file with gzip. Pauses, so that the page stays responsive. */
export async function gzip(parts: Iterable<Uint8Array<ArrayBuffer>>): Promise<Blob> {
  const pause = pauses();
  const { readable, writable } = new CompressionStream('gzip');
  const compressed = collect(readable);
  const writer = writable.getWriter();
  for (const part of parts) {
    for (let start = 0; start < part.length; start += PIECE_BYTES) {
      await writer.write(part.subarray(start, start + PIECE_BYTES));
      await pause();
    }
  }
  await writer.close();
  return compressed;
}

async function collect(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<Blob> {
  const reader = stream.getReader();
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return new Blob(chunks);
    chunks.push(value);
  }
}
