import { join } from 'node:path';

/** Folder of the conformance suite. */
export const FOLDER = join(import.meta.dirname, '../../../tests/conformance');
