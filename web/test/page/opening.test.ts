/** Opening of images in a session. */
import { afterEach, expect, test, vi } from 'vitest';
import { Connection } from '../../src/client/connection';
import { createPacker } from '../../src/client/packing';
import type { JournalStore } from '../../src/client/journalStore';
import type { ImageFiles, Volume } from '../../src/files';
import { Opening } from '../../src/page/opening';
import { Session } from '../../src/page/session';
import type { Viewer } from '../../src/page/viewer';

class UnreadableEntry {
  file(_: (file: File) => void, reject: (error: Error) => void): void {
    reject(new Error('A requested file could not be found.'));
  }
}

afterEach(() => {
  vi.unstubAllGlobals();
});

test('a dropped file that cannot be read is an error in the status line', async () => {
  vi.stubGlobal('FileSystemFileEntry', UnreadableEntry);
  const item = { webkitGetAsEntry: () => new UnreadableEntry(), getAsFile: () => null };
  const data = { items: [item] } as unknown as DataTransfer;
  const session = { showError: vi.fn(), onChange: vi.fn() };
  const opening = new Opening(session as unknown as Session, {} as unknown as ImageFiles, createPacker(), null);
  await opening.openDropped(data);
  expect(session.showError).toHaveBeenCalledExactlyOnceWith('A requested file could not be found.');
  expect(opening.isRunning).toBe(false);
});

const VOLUME: Volume = {
  name: 'ct.nii.gz',
  shape: [2, 2, 2],
  voxels: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8),
  dtype: 'uint8',
  affine: [
    [1, 0, 0, 0],
    [0, 1, 0, 0],
    [0, 0, 1, 0],
    [0, 0, 0, 1],
  ],
  source: 'nifti',
  notes: [],
};

type Store = Pick<JournalStore, 'load'>;

/** Open the image in a new session, with a store of journals. */
async function open(store: Store | null): Promise<{ session: Session; connection: Connection }> {
  vi.stubGlobal('location', { hostname: 'localhost', pathname: '/' });
  vi.stubGlobal('history', { replaceState: () => undefined });
  const viewer = { show: vi.fn(), paint: vi.fn(), setColors: vi.fn(), drawAbove: vi.fn() };
  const packer = createPacker();
  const connection = new Connection('ws://localhost/', { packer });
  const session = new Session(connection, viewer as unknown as Viewer);
  const reader = { find: () => Promise.resolve([{ label: '', open: () => Promise.resolve(VOLUME) }]) };
  const opening = new Opening(session, reader as unknown as ImageFiles, packer, store as JournalStore | null);
  await opening.openFiles([new File([], 'ct.nii.gz')]);
  return { session, connection };
}

const damaged: Store = {
  load: (image) => Promise.resolve([{ journal: { image, shape: [3, 3, 3], segments: [] }, savedAt: 0 }]),
};
const unreadable: Store = { load: () => Promise.reject(new DOMException('Failed to read a large value.')) };

test.each([
  ['is damaged', damaged, /^The saved segments were not restored\./],
  [
    'cannot be read',
    unreadable,
    /^This browser cannot read the prompts that it keeps \(Failed to read a large value\.\)\./,
  ],
  ['has no store', null, /^This browser does not keep prompts for later\. Save the segments/],
])('an image whose journal %s is opened without it, and a note says so', async (_, store, note) => {
  const { session, connection } = await open(store);
  // Without a connection, nothing follows that would replace the progress of the preparation.
  expect(session.status).toEqual({ kind: 'busy', message: 'Connecting to the server' });
  expect(session.image?.volume.notes).toEqual([expect.stringMatching(note)]);
  expect(connection.core.image).toBe(session.image?.source);
  expect(session.segments.all).toHaveLength(1);
});
