// Runs the page's readers and writers of image files, for the tests in Python: each line of the standard input is a job
// as JSON, and each line of the output its result.
import { openAsBlob, readFileSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { createInterface } from 'node:readline';
import { findImages } from '../../src/files/find';
import {
  ImageFileError,
  saveDicomSeg,
  saveNifti,
  saveSegNrrd,
  type SavedSegment,
  type Vector,
  type Volume,
} from '../../src/files';

interface Job {
  /** Paths of the files that a user chose. */
  readonly files: readonly string[];
  /** Which one of the found images is opened. */
  readonly choice: number;
  /** Path for the voxels that were read. */
  readonly voxels: string;
  /** Path for the segmentation. Its extension is the format. */
  readonly save?: string;
  /** `mask`: path of a file in C order. */
  readonly segments?: readonly { readonly name: string; readonly color: Vector; readonly mask: string | null }[];
}

const SAVE: Readonly<Record<string, (volume: Volume, segments: readonly SavedSegment[]) => Promise<Blob>>> = {
  '.nii.gz': saveNifti,
  '.seg.nrrd': saveSegNrrd,
  '.dcm': (volume, segments) => saveDicomSeg(volume, segments, 'demo', '1.2.3'),
};

async function run(job: Job): Promise<object> {
  const files = await Promise.all(job.files.map(async (path) => new File([await openAsBlob(path)], basename(path))));
  try {
    const found = await findImages(files);
    const { voxels, ...rest } = await found[job.choice].open();
    writeFileSync(job.voxels, voxels);
    if (job.save !== undefined) await save({ voxels, ...rest }, job.save, job.segments ?? []);
    return { labels: found.map(({ label }) => label), ...rest };
  } catch (e) {
    if (e instanceof ImageFileError) return { error: e.message };
    throw e;
  }
}

async function save(volume: Volume, path: string, segments: NonNullable<Job['segments']>): Promise<void> {
  const extension = Object.keys(SAVE).find((end) => path.endsWith(end)) ?? '';
  const read = segments.map(({ name, color, mask }) => ({
    name,
    color,
    mask: mask === null ? undefined : new Uint8Array(readFileSync(mask)),
  }));
  const blob = await SAVE[extension](volume, read);
  writeFileSync(path, new Uint8Array(await blob.arrayBuffer()));
}

createInterface({ input: process.stdin }).on('line', (line) => {
  void run(JSON.parse(line) as Job).then((result) => {
    console.log(JSON.stringify(result));
  });
});
