/** Opening of images in a session that only notes its status. */
import { afterEach, expect, test, vi } from 'vitest';
import { createPacker } from '../../src/client/packing';
import type { ImageFiles } from '../../src/files';
import { Opening } from '../../src/page/opening';
import type { Session } from '../../src/page/session';

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
