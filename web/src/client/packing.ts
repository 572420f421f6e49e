/** Packs bricks and sums statistics, in a Worker or on this thread. */
export interface Packer {
  /** End the Worker, if there is one. */
  close(): void;
}

/**
 * Return a packer that works in `worker`, an instance of packing-worker.ts, or on this thread without one.
 *
 * The build must bundle `src/client/packing-worker.ts` as a file of its own; the page passes
 * `new Worker(url, { type: 'module' })`.
 */
export function createPacker(worker?: Worker): Packer {
  throw new Error(`not yet: ${String(worker)}`);
}
