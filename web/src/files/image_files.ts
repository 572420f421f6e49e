import type { ImageChoice } from './volume';

/** The image files that a user chose or dropped, read by a worker so that the page stays responsive. */
export class ImageFiles {
  constructor(private readonly worker: Worker) {}

  /**
   * Return the images in these files: NIfTI, NRRD and MetaImage files and DICOM series. Other files are ignored. Localizers
   * are left out where there is another DICOM series. Rejects with an ImageFileError if there is no image.
   */
  find(files: readonly File[]): Promise<ImageChoice[]> {
    throw new Error(`not yet: ${files.length} ${typeof this.worker}`);
  }
}
