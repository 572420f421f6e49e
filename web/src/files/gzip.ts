/** Compress pieces of a file with gzip, outside of the page's thread. */
export async function gzip(pieces: AsyncIterable<Uint8Array<ArrayBuffer>>): Promise<Blob> {
  const { readable, writable } = new CompressionStream('gzip');
  const writer = writable.getWriter();
  const compressed = collect(readable);
  try {
    for await (const piece of pieces) await writer.write(piece);
    await writer.close();
  } catch (e) {
    await writer.abort(e).catch(() => undefined); // it has failed already, if it is the one that fails
    await compressed.catch(() => undefined); // fails for the same reason
    throw e;
  }
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
