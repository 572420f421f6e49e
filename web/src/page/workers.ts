/** The page's workers. The build bundles each to a file of its own. */

/** Start the worker that reads image files. */
export function startFilesWorker(): Worker {
  return new Worker(new URL('../files/worker.ts', import.meta.url), { type: 'module' });
}

/** Start the worker that packs the image for the server. */
export function startPackingWorker(): Worker {
  return new Worker(new URL('../client/packing-worker.ts', import.meta.url), { type: 'module' });
}
