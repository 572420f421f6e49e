/** The page's workers. The build bundles each to a file of its own. */

/** Names of the workers' files, relative to the page's script. The build defines them. */
declare const WORKER_FILES: { readonly files: string; readonly packing: string };

/** Start the worker that reads image files. */
export function startFilesWorker(): Worker {
  return new Worker(new URL(WORKER_FILES.files, import.meta.url), { type: 'module' });
}

/** Start the worker that packs the image for the server. */
export function startPackingWorker(): Worker {
  return new Worker(new URL(WORKER_FILES.packing, import.meta.url), { type: 'module' });
}
