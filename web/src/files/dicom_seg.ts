import type { SavedSegment, Volume } from './volume';

/**
 * Return a DICOM segmentation object (.dcm) of a DICOM image. `model`: the name of the algorithm. `version`: that of
 * this program. Rejects with an ImageFileError if the volume is of another format or lacks a required attribute.
 */
export function saveDicomSeg(
  volume: Volume,
  segments: readonly SavedSegment[],
  model: string,
  version: string,
): Promise<Blob> {
  throw new Error(`not yet: ${volume.name} ${segments.length} ${model} ${version}`);
}
