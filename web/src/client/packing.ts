/** Packs bricks and sums statistics, in a Worker or on this thread. */
import { pack } from './arrays';
import { ClientError } from './errors';
import type { Index } from './geometry';
import { keepLayer, type Split } from './layers';
import type { DType, Encoding } from './messages';
import { sumSlab, type SlabSums } from './statistics';
import { wireArray, wireType, type WireVoxels } from './voxels';

/** Packs bricks and sums statistics. Its arguments' arrays are no longer usable afterwards. */
export interface Packer {
  /** Pack the bytes of voxels, or with `split` those of a layer of them. */
  pack(plain: Uint8Array<ArrayBuffer>, encoding: Encoding, split?: Split): Promise<Uint8Array<ArrayBuffer>>;
  /** Return the sums of a slab of `counts` voxels along its axes, the slowest first. */
  sum(voxels: WireVoxels, counts: Index): Promise<SlabSums>;
  /** End the Worker, if there is one. */
  close(): void;
}

/** Work for the Worker. */
export type PackingTask =
  | { readonly kind: 'pack'; readonly plain: ArrayBuffer; readonly encoding: Encoding; readonly split?: Split }
  | { readonly kind: 'sum'; readonly voxels: ArrayBuffer; readonly dtype: DType; readonly counts: Index };

/** The Worker's answers, in the order of the tasks. */
export type PackingResult =
  | { readonly kind: 'pack'; readonly packed: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'sum'; readonly sums: SlabSums };

/** Perform a task. */
export function perform(task: PackingTask): PackingResult {
  if (task.kind === 'sum') return { kind: 'sum', sums: sumSlab(wireArray(task.dtype, task.voxels), task.counts) };
  if (task.split !== undefined) keepLayer(task.plain, task.split);
  return { kind: 'pack', packed: pack(new Uint8Array(task.plain), task.encoding) };
}

/**
 * Return a packer that works in `worker`, an instance of packing-worker.ts, or on this thread without one.
 *
 * The build must bundle `src/client/packing-worker.ts` as a file of its own; the page passes
 * `new Worker(url, { type: 'module' })`.
 */
export function createPacker(worker?: Worker): Packer {
  if (worker === undefined) return new TaskPacker(runOnThisThread, () => undefined);
  const tasks = new WorkerTasks(worker);
  return new TaskPacker(
    (task, buffer) => tasks.run(task, buffer),
    () => {
      worker.terminate();
    },
  );
}

type RunTask = (task: PackingTask, buffer: ArrayBuffer) => Promise<PackingResult>;

class TaskPacker implements Packer {
  constructor(
    private readonly run: RunTask,
    readonly close: () => void,
  ) {}

  async pack(plain: Uint8Array<ArrayBuffer>, encoding: Encoding, split?: Split): Promise<Uint8Array<ArrayBuffer>> {
    if (encoding === 'raw' && split === undefined) return plain;
    const result = await this.run({ kind: 'pack', plain: plain.buffer, encoding, split }, plain.buffer);
    if (result.kind !== 'pack') throw new Error('The packing Worker answered another task.');
    return result.packed;
  }

  async sum(voxels: WireVoxels, counts: Index): Promise<SlabSums> {
    const { buffer } = voxels;
    const result = await this.run({ kind: 'sum', voxels: buffer, dtype: wireType(voxels), counts }, buffer);
    if (result.kind !== 'sum') throw new Error('The packing Worker answered another task.');
    return result.sums;
  }
}

/** Work on this thread, one task per turn of the event loop. */
async function runOnThisThread(task: PackingTask): Promise<PackingResult> {
  await new Promise((resolve) => setTimeout(resolve));
  return perform(task);
}

/** Tasks of a Worker, which answers them in order. */
class WorkerTasks {
  private waiting: { resolve: (result: PackingResult) => void; reject: (error: ClientError) => void }[] = [];
  private failure: ClientError | null = null;

  constructor(private readonly worker: Worker) {
    worker.onmessage = ({ data }: MessageEvent<PackingResult>) => {
      this.waiting.shift()?.resolve(data);
    };
    worker.onerror = ({ message }) => {
      this.failure = new ClientError(
        'page_failed',
        `The page's background process failed (${message || 'it could not be started'}). Reload the page.`,
      );
      for (const { reject } of this.waiting) reject(this.failure);
      this.waiting = [];
    };
  }

  run(task: PackingTask, buffer: ArrayBuffer): Promise<PackingResult> {
    return new Promise((resolve, reject) => {
      if (this.failure !== null) {
        reject(this.failure);
        return;
      }
      this.waiting.push({ resolve, reject });
      this.worker.postMessage(task, [buffer]);
    });
  }
}
