import { beforeEach, expect, test, vi } from 'vitest';
import { ImageFileError, ImageFiles } from '../../src/files';

/** The part of a worker that ImageFiles uses, with worker.ts on the other side. */
class LocalWorker {
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onerror: ((event: { message: string }) => void) | null = null;

  postMessage(data: unknown): void {
    (globalThis as unknown as LocalWorker).onmessage?.({ data });
  }
}

let worker: LocalWorker;
let files: ImageFiles;

beforeEach(async () => {
  worker = new LocalWorker();
  vi.stubGlobal('postMessage', (data: unknown) => worker.onmessage?.({ data }));
  await import('../../src/files/worker');
  files = new ImageFiles(worker as unknown as Worker);
});

const header =
  'NRRD0004\ntype: uchar\ndimension: 3\nspace: RAS\nsizes: 2 1 3\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n' +
  'space origin: (0,0,0)\nencoding: raw\n\n';
const image = new File([header, new Uint8Array([1, 2, 3, 4, 5, 6])], 'a.nrrd');

test('a worker finds and reads images', async () => {
  const [found] = await files.find([image, new File(['text'], 'readme.txt')]);
  expect(found.label).toBe('a.nrrd');
  const shares: number[] = [];
  const volume = await found.open((share) => shares.push(share));
  expect(shares.at(-1)).toBe(1);
  expect(volume.shape).toEqual([2, 1, 3]);
  expect([...volume.voxels]).toEqual([1, 2, 3, 4, 5, 6]);
  expect(volume.affine[2]).toEqual([0, 0, 2, 0]);
});

test('errors about files are ImageFileErrors', async () => {
  await expect(files.find([new File(['text'], 'readme.txt')])).rejects.toThrow(ImageFileError);
});

test('only what was found last can be opened', async () => {
  const [earlier] = await files.find([image]);
  await files.find([image]);
  await expect(earlier.open()).rejects.toThrow('Other files were chosen since. Choose these files again.');
});

test('requests fail if the worker does', async () => {
  vi.spyOn(worker, 'postMessage').mockImplementation(() => undefined);
  const found = files.find([image]);
  worker.onerror?.({ message: 'out of memory' });
  await expect(found).rejects.toThrow('The part of this page that reads image files has failed: out of memory.');
});
