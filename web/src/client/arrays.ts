/** Packing and unpacking of arrays for the wire. The bytes are little-endian, as all browsers have numbers in memory. */
import { inflateSync, unzlibSync, zlibSync } from 'fflate';
import { ClientError, messageOf } from './errors';
import type { Encoding } from './messages';

/** Limit of an unpacked array in bytes. */
export const MAX_ARRAY_BYTES = 256 * 2 ** 20;

/** Pack bytes. `raw` returns the same array. */
export function pack(plain: Uint8Array<ArrayBuffer>, encoding: Encoding): Uint8Array<ArrayBuffer> {
  return encoding === 'raw' ? plain : zlibSync(plain, { level: 1 });
}

/**
 * Unpack an array of exactly `bytes` bytes into a buffer of its own.
 *
 * @throws ClientError - `bad_message` for other bytes than such an array, `too_large` over MAX_ARRAY_BYTES.
 */
export function unpack(data: Uint8Array, encoding: Encoding, bytes: number): Uint8Array<ArrayBuffer> {
  if (bytes > MAX_ARRAY_BYTES) {
    throw new ClientError(
      'too_large',
      `The server announced an array of ${bytes} bytes. At most ${MAX_ARRAY_BYTES} are accepted.`,
    );
  }
  const plain = encoding === 'raw' ? new Uint8Array(data) : inflate(data, bytes);
  if (plain.length !== bytes) {
    throw new ClientError('bad_message', `The server sent an array of another size than the announced ${bytes} bytes.`);
  }
  return plain;
}

/** Inflate at most `bytes` + 1 bytes, so that a longer stream shows. */
function inflate(data: Uint8Array, bytes: number): Uint8Array<ArrayBuffer> {
  let plain: Uint8Array<ArrayBuffer>;
  try {
    plain = unzlibSync(data, { out: new Uint8Array(bytes + 1) });
  } catch (error) {
    throw new ClientError('bad_message', `The server sent a damaged deflate stream (${messageOf(error)}).`);
  }
  // fflate checks neither the checksum nor that nothing follows the stream.
  const stated = new DataView(data.buffer, data.byteOffset + data.length - 4).getUint32(0);
  if (adler32(plain) !== stated || endsEarly(data, bytes)) {
    throw new ClientError(
      'bad_message',
      'The server sent a deflate stream with a wrong checksum, or with bytes after it.',
    );
  }
  return plain;
}

/** Whether the deflate stream of a zlib stream is complete without its last byte. */
function endsEarly(data: Uint8Array, bytes: number): boolean {
  try {
    inflateSync(data.subarray(2, -5), { out: new Uint8Array(bytes + 1) });
  } catch {
    return false; // it ends unexpectedly
  }
  return true;
}

/** Return the Adler-32 of bytes, the checksum of RFC 1950. */
export function adler32(bytes: Uint8Array): number {
  let a = 1;
  let b = 0;
  // The sums of 2048 bytes stay below 2^31, in which engines compute fastest.
  for (let start = 0; start < bytes.length; start += 2048) {
    const stop = Math.min(start + 2048, bytes.length);
    for (let at = start; at < stop; at++) b += a += bytes[at];
    a %= 65521;
    b %= 65521;
  }
  return b * 65536 + a;
}
