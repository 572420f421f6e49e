// The worker that reads image files for ImageFiles.
import { findImages } from './find';
import { ImageFileError, type ImageChoice, type Volume } from './volume';

/** Find the images in files, or open one that was found by the request `found`. */
export type Request = { readonly files: readonly File[] } | { readonly found: number; readonly index: number };

/** Images in files. `id`: that of the request that found them. */
export interface OpenedFiles {
  readonly id: number;
  readonly labels: readonly string[];
}

/** Progress, result or error of a request. */
export type Reply =
  | { readonly id: number; readonly share: number }
  | { readonly id: number; readonly result: OpenedFiles | Volume }
  | { readonly id: number; readonly message: string; readonly isFileError: boolean };

/** The part of a worker's global scope that is used. The types of pages and of workers exclude each other. */
interface Scope {
  onmessage: ((event: MessageEvent<{ id: number; request: Request }>) => void) | null;
  postMessage(reply: Reply, transfer?: Transferable[]): void;
}

/** A progress message is sent for this share of a file, not for each piece of it. */
const MIN_PROGRESS = 0.01;

const scope = globalThis as unknown as Scope;
let last: { id: number; choices: readonly ImageChoice[] } = { id: 0, choices: [] };

scope.onmessage = ({ data: { id, request } }) => {
  answer(id, request).catch((e: unknown) => {
    const message = e instanceof Error ? e.message : String(e);
    scope.postMessage({ id, message, isFileError: e instanceof ImageFileError });
  });
};

async function answer(id: number, request: Request): Promise<void> {
  if ('files' in request) {
    last = { id, choices: await findImages(request.files) };
    scope.postMessage({ id, result: { id, labels: last.choices.map(({ label }) => label) } });
    return;
  }
  if (request.found !== last.id) throw new ImageFileError('Other files were chosen since. Choose these files again.');
  let sent = 0;
  const volume = await last.choices[request.index].open((share) => {
    if (share - sent < MIN_PROGRESS) return;
    sent = share;
    scope.postMessage({ id, share });
  });
  scope.postMessage({ id, result: volume }, [volume.voxels.buffer as ArrayBuffer]);
}
