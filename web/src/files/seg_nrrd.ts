import type { SavedSegment, Volume } from './volume';

/** Return a segmentation for 3D Slicer (.seg.nrrd), with names, colors and overlaps. */
export function saveSegNrrd(volume: Volume, segments: readonly SavedSegment[]): Promise<Blob> {
  throw new Error(`not yet: ${volume.name} ${segments.length}`);
}
