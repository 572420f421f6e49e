import { join } from 'node:path';

/** Folder of the conformance suite. */
export const FOLDER =
  process.env.NNINTERACTIVE_WS_CONFORMANCE ?? join(import.meta.dirname, '../../../tests/conformance');
