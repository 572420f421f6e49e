import type { SavedSegment, Volume } from './volume';

/** Return a label map (.nii.gz) with the first segment as 1. Later segments overwrite earlier ones. */
export function saveNifti(volume: Volume, segments: readonly SavedSegment[]): Promise<Blob> {
  throw new Error(`not yet: ${volume.name} ${segments.length}`);
}
