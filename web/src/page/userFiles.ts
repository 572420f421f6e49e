/** Files that the user opens, drops and saves. */

import { ImageFiles, saveDicomSeg, saveNifti, saveSegNrrd, type SavedSegment, type Volume } from '../files';
import { askChoice } from './dialogs';

/** A format in which segments are saved. */
export type Format = 'nrrd' | 'nifti' | 'dicom';

const EXTENSIONS: Readonly<Record<Format, string>> = { nrrd: '.seg.nrrd', nifti: '.nii.gz', dicom: '.dcm' };
/** Extensions of images, which are left out of the names of saved files. */
const IMAGE_EXTENSIONS = /(\.nii(\.gz)?|\.nrrd|\.nhdr|\.mha|\.mhd|\.dcm)$/i;

/** Read the image in files. Ask which if there are several. Resolves with null if the user chooses none. */
export async function readImage(
  reader: ImageFiles,
  files: readonly File[],
  onProgress: (share: number) => void,
): Promise<Volume | null> {
  const found = await reader.find(files);
  const index = found.length === 1 ? 0 : await askChoice(found.map(({ label }) => label));
  return index === null ? null : await found[index].open(onProgress);
}

/** Return the file of the segments in a format. `model`: name of the model; `version`: of the server. */
export function segmentsFile(
  format: Format,
  volume: Volume,
  segments: readonly SavedSegment[],
  model: string,
  version: string,
): Promise<Blob> {
  if (format === 'nrrd') return saveSegNrrd(volume, segments);
  if (format === 'nifti') return saveNifti(volume, segments);
  return saveDicomSeg(volume, segments, model, version);
}

/** Return the name of the file of the segments of an image. */
export function segmentsFileName(image: string, format: Format): string {
  return `${image.replace(IMAGE_EXTENSIONS, '').replace(/[^\w.-]+/g, '_')}_segments${EXTENSIONS[format]}`;
}

/** Return the dropped files, with those of dropped folders. */
export async function droppedFiles(data: DataTransfer): Promise<File[]> {
  // The list is emptied when the event is over, so read it before the first pause.
  const items = [...data.items].map((item) => ({ entry: item.webkitGetAsEntry(), file: item.getAsFile() }));
  const files = items.map(async ({ entry, file }) => {
    if (entry !== null) return filesOf(entry);
    return file === null ? [] : [file]; // of another program, or a text
  });
  return (await Promise.all(files)).flat();
}

async function filesOf(entry: FileSystemEntry): Promise<File[]> {
  if (entry instanceof FileSystemFileEntry) {
    return [
      await new Promise<File>((resolve, reject) => {
        entry.file(resolve, reject);
      }),
    ];
  }
  if (!(entry instanceof FileSystemDirectoryEntry)) return [];
  const reader = entry.createReader();
  const files: File[] = [];
  for (;;) {
    // The reader returns about a hundred entries at a time, and none at the end.
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => {
      reader.readEntries(resolve, reject);
    });
    if (entries.length === 0) return files;
    for (const each of entries) files.push(...(await filesOf(each)));
  }
}
