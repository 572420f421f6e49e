// A volume read from image files, and the segments to save with it.
import type { DType } from '../client/messages';

/** Voxels in a type that the protocol can send. */
export type Voxels = Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | Float32Array;

/** Three components, along the axes of the image or of space. */
export type Vector = readonly [number, number, number];
/** Numbers of voxels along (i, j, k). */
export type Shape = readonly [number, number, number];

/** The four rows of a matrix from voxel indices (i, j, k, 1) to millimeters. */
export type Affine = readonly (readonly [number, number, number, number])[];

/** A volume. Its axes are perpendicular, and its voxels are finite. */
export interface Volume {
  /** File name of the image, or description of the DICOM series. */
  readonly name: string;
  /** Numbers of voxels along (i, j, k). */
  readonly shape: Shape;
  /** The voxel (i, j, k) is at i + ni * (j + nj * k): i is the fastest axis of the file, as for the Python client. */
  readonly voxels: Voxels;
  readonly dtype: DType;
  /** From voxel indices to RAS millimeters. */
  readonly affine: Affine;
  readonly source: 'nifti' | 'nrrd' | 'mha' | 'dicom';
  /** Sentences for the user about what was unusual in the file. */
  readonly notes: readonly string[];
  /** Header of a NIfTI image, in which a label map repeats qform and sform. */
  readonly nifti?: NiftiForms;
  /** Attributes of a DICOM image, which its segmentation repeats. */
  readonly dicom?: DicomSource;
}

/** The fields of a NIfTI header with the positions of the voxels. */
export interface NiftiForms {
  readonly qformCode: number;
  readonly sformCode: number;
  /** quatern_b, quatern_c, quatern_d, qoffset_x, qoffset_y, qoffset_z. */
  readonly qform: readonly number[];
  /** srow_x, srow_y, srow_z: 12 numbers. */
  readonly sform: readonly number[];
  /** pixdim[0] to pixdim[3]: the sign of the qform, and the distances of voxels. */
  readonly pixdim: readonly number[];
  readonly units: number;
}

/** Patient, study and instances of a DICOM image. */
export interface DicomSource {
  /** Attributes of patient, study and frame of reference by keyword, such as PatientID, as text. */
  readonly attributes: Readonly<Record<string, string>>;
  readonly seriesInstanceUid: string;
  /** The image of each slice, by k. */
  readonly slices: readonly DicomSlice[];
}

/** The DICOM image of a slice. */
export interface DicomSlice {
  readonly sopClassUid: string;
  readonly sopInstanceUid: string;
  /** Number of the frame in a multi-frame file, from 1. */
  readonly frame?: number;
}

/** A segment to save. Segments may overlap. */
export interface SavedSegment {
  readonly name: string;
  /** Red, green and blue from 0 to 1. */
  readonly color: Vector;
  /**
   * One byte for each voxel, 0 or 1, in the order of the protocol's arrays: the voxel (i, j, k) is at
   * (i * nj + j) * nk + k. Undefined if the segment is empty.
   */
  readonly mask: Uint8Array | undefined;
}

/** An image file or series that can be opened. */
export interface ImageChoice {
  /** Such as "ct.nii.gz" or "CT, thorax, 112 slices". */
  readonly label: string;
  /**
   * Read the image. `onProgress`: gets the share that was read, from 0 to 1. Rejects with an {@link ImageFileError}.
   */
  open(onProgress?: (share: number) => void): Promise<Volume>;
}

/** Limit of the protocol. */
const MAX_VOXELS = 2 ** 30;

/**
 * Return the shape of an image with these sizes along its axes. Further axes may have one element each.
 *
 * @throws ImageFileError - for sizes that are not those of one volume, or of more voxels than can be sent. Call it before
 * memory is taken for them. `name`: of the image.
 */
export function shapeOf(name: string, sizes: readonly number[]): Shape {
  if (!sizes.every((n) => Number.isInteger(n) && n > 0)) {
    throw new ImageFileError(`${name} is damaged: it has ${sizes.join(' x ')} voxels. Copy or export it again.`);
  }
  const [i, j, k, ...further] = sizes;
  if (sizes.length < 3) throw new ImageFileError(`${name} has ${sizes.length} dimensions. Expected a volume with 3.`);
  if (further.some((n) => n > 1)) {
    throw new ImageFileError(
      `${name} has ${sizes.length} dimensions, ${sizes.join(' x ')}. Expected one volume. Save the one to segment in a ` +
        'file of its own.',
    );
  }
  if (i * j * k > MAX_VOXELS) {
    throw new ImageFileError(
      `${name} has ${[i, j, k].join(' x ')} voxels, which are too many: at most ${MAX_VOXELS} are accepted. Crop or resample it.`,
    );
  }
  return [i, j, k];
}

/** A file cannot be read or written. The message is for the user: what is wrong, and what to do. */
export class ImageFileError extends Error {
  override readonly name = 'ImageFileError';
}
