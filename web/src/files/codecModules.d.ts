// The parts of these packages that are used. They have no types of their own.

/** A decoder in WebAssembly. Its buffers are in the memory of the module, and move when it grows. */
interface WasmDecoder {
  getEncodedBuffer(size: number): Uint8Array;
  decode(): void;
  getDecodedBuffer(): Uint8Array;
  getFrameInfo(): { width: number; height: number; bitsPerSample: number; componentCount: number };
  delete(): void;
}

type WasmFactory<Name extends string> = (options: {
  wasmBinary: Uint8Array;
  print: (line: string) => void;
  printErr: (line: string) => void;
}) => Promise<Record<Name, new () => WasmDecoder>>;

declare module '@cornerstonejs/codec-charls/decodewasmjs' {
  const factory: WasmFactory<'JpegLSDecoder'>;
  export default factory;
}

declare module '@cornerstonejs/codec-openjpeg/decodewasmjs' {
  const factory: WasmFactory<'J2KDecoder'>;
  export default factory;
}

declare module '@cornerstonejs/codec-libjpeg-turbo-8bit/decodewasmjs' {
  const factory: WasmFactory<'JPEGDecoder'>;
  export default factory;
}

declare module '@cornerstonejs/*/decodewasm' {
  const content: Uint8Array;
  export default content;
}
