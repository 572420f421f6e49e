// Decoders of compressed DICOM pixels. They are loaded when a file needs them.
import { JPEG, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE } from './transferSyntaxes';
import { ImageFileError } from './volume';

/** Decodes one frame to the bytes of its pixels, little-endian, of 1 byte for up to 8 bits and else of 2. */
export type Decoder = (encoded: Uint8Array) => Uint8Array;

/** Size of a frame, which its data does not contain. */
export interface FrameSize {
  readonly pixels: number;
  readonly bitsAllocated: number;
}

/** Load the decoder of a transfer syntax. Rejects with an ImageFileError if there is none. `name`: of the file. */
export async function loadDecoder(transferSyntax: string, size: FrameSize, name: string): Promise<Decoder> {
  if (transferSyntax === RLE) return (encoded) => decodeRle(encoded, size);
  if (JPEG_LOSSLESS.includes(transferSyntax)) return loadJpegLossless(size);
  if (JPEG_LS.includes(transferSyntax)) return loadJpegLs();
  if (JPEG_2000.includes(transferSyntax)) return loadJpeg2000();
  if (JPEG.includes(transferSyntax) && size.bitsAllocated === 8) return loadJpeg();
  throw new ImageFileError(
    `${name} is compressed by a method that this page cannot decode (transfer syntax ${transferSyntax}). Export the ` +
      'series without compression.',
  );
}

const loadJpegLs = once(async () => {
  const { default: factory } = await import('@cornerstonejs/codec-charls/decodewasmjs');
  const { default: wasmBinary } = await import('@cornerstonejs/codec-charls/decodewasm');
  const { JpegLSDecoder } = await factory({ wasmBinary, ...SILENT });
  return (encoded: Uint8Array) => decodeWith(new JpegLSDecoder(), encoded);
});

const loadJpeg2000 = once(async () => {
  const { default: factory } = await import('@cornerstonejs/codec-openjpeg/decodewasmjs');
  const { default: wasmBinary } = await import('@cornerstonejs/codec-openjpeg/decodewasm');
  const { J2KDecoder } = await factory({ wasmBinary, ...SILENT });
  return (encoded: Uint8Array) => decodeWith(new J2KDecoder(), encoded);
});

const loadJpeg = once(async () => {
  const { default: factory } = await import('@cornerstonejs/codec-libjpeg-turbo-8bit/decodewasmjs');
  const { default: wasmBinary } = await import('@cornerstonejs/codec-libjpeg-turbo-8bit/decodewasm');
  const { JPEGDecoder } = await factory({ wasmBinary, ...SILENT });
  return (encoded: Uint8Array) => decodeWith(new JPEGDecoder(), encoded);
});

/** Return a function that loads a decoder at its first call only. */
function once(load: () => Promise<Decoder>): () => Promise<Decoder> {
  let loaded: Promise<Decoder> | undefined;
  return () => (loaded ??= load());
}

async function loadJpegLossless({ bitsAllocated }: FrameSize): Promise<Decoder> {
  const { Decoder } = await import('@cornerstonejs/jpeg-lossless-decoder-js');
  return (encoded) => {
    const pixels = new Decoder().decode(encoded.slice().buffer, 0, encoded.length, bitsAllocated / 8);
    return new Uint8Array(pixels.buffer, pixels.byteOffset, pixels.byteLength);
  };
}

/** The decoders print a line for each frame. Errors are thrown as well. */
const SILENT = { print: ignore, printErr: ignore };

function ignore(): void {
  // not shown to the user
}

function decodeWith(decoder: WasmDecoder, encoded: Uint8Array): Uint8Array {
  try {
    decoder.getEncodedBuffer(encoded.length).set(encoded);
    decoder.decode();
    return decoder.getDecodedBuffer().slice();
  } finally {
    decoder.delete();
  }
}

/** Decode run lengths: a header with the starts of segments, one for each byte of a pixel, the highest first. */
function decodeRle(encoded: Uint8Array, { pixels, bitsAllocated }: FrameSize): Uint8Array {
  const header = new DataView(encoded.buffer, encoded.byteOffset, 64);
  const count = header.getUint32(0, true);
  if (count !== bitsAllocated / 8) throw new Error(`${count} segments for ${bitsAllocated} bits`);
  const result = new Uint8Array(pixels * count);
  for (let segment = 0; segment < count; segment++) {
    const start = header.getUint32(4 + 4 * segment, true);
    const end = segment + 1 < count ? header.getUint32(8 + 4 * segment, true) : encoded.length;
    unpackBits(encoded.subarray(start, end), result, count - 1 - segment, count);
  }
  return result;
}

/** Write the bytes of a segment to every `step`-th byte of `target`, from `first`. */
function unpackBits(segment: Uint8Array, target: Uint8Array, first: number, step: number): void {
  let from = 0;
  let to = first;
  while (to < target.length) {
    if (from >= segment.length) throw new Error('the run lengths end too early');
    const control = segment[from++];
    const isRun = control > 128;
    const length = control === 128 ? 0 : isRun ? 257 - control : control + 1;
    for (let index = 0; index < length && to < target.length; index++, to += step) {
      target[to] = segment[isRun ? from : from + index];
    }
    from += isRun ? 1 : length;
  }
}
