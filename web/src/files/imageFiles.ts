import type { OpenedFiles, Reply, Request } from './worker';
import { ImageFileError, type ImageChoice, type Volume } from './volume';

interface Pending {
  readonly resolve: (result: never) => void;
  readonly reject: (error: Error) => void;
  readonly onProgress?: (share: number) => void;
}

/** The image files that a user chose or dropped, read by a worker so that the page stays responsive. */
export class ImageFiles {
  private readonly pending = new Map<number, Pending>();
  private lastId = 0;

  /** `worker`: runs worker.ts. */
  constructor(private readonly worker: Worker) {
    worker.onmessage = ({ data }: MessageEvent<Reply>) => {
      this.receive(data);
    };
    worker.onerror = (event) => {
      const error = new Error(`The part of this page that reads image files has failed: ${event.message}.`);
      for (const { reject } of this.pending.values()) reject(error);
      this.pending.clear();
    };
  }

  /**
   * Return the images in these files: NIfTI, NRRD and MetaImage files and DICOM series. Other files are ignored.
   * Localizers are left out if there is another DICOM series. Only the images that were found last can be opened.
   * Rejects with an ImageFileError if there is no image.
   */
  async find(files: readonly File[]): Promise<ImageChoice[]> {
    const { id, labels } = await this.request<OpenedFiles>({ files });
    return labels.map((label, index) => ({
      label,
      open: (onProgress) => this.request<Volume>({ found: id, index }, onProgress),
    }));
  }

  private request<Result>(request: Request, onProgress?: (share: number) => void): Promise<Result> {
    const id = ++this.lastId;
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject, onProgress });
      this.worker.postMessage({ id, request });
    });
  }

  private receive(reply: Reply): void {
    const pending = this.pending.get(reply.id);
    if (pending === undefined) return;
    if ('share' in reply) {
      pending.onProgress?.(reply.share);
      return;
    }
    this.pending.delete(reply.id);
    if ('result' in reply) pending.resolve(reply.result as never);
    else pending.reject(reply.isFileError ? new ImageFileError(reply.message) : new Error(reply.message));
  }
}
