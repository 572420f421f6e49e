// Label maps as NIfTI files (.nii.gz).
import { countVoxels } from '../client/geometry';
import { wireType } from '../client/voxels';
import { axesOf, cross, dot, length, originOf, scaled } from './geometry';
import { gzip } from './gzip';
import { extentOf, type Labels, paint } from './labels';
import { type Affine, ImageFileError, type NiftiForms, type SavedSegment, type Vector, type Volume } from './volume';
import { NIFTI_CODES } from './voxels';

const HEADER_BYTES = 352;
/** NIfTI-1 stores dimensions as int16. */
const MAX_DIMENSION = 2 ** 15 - 1;
const MILLIMETERS = 2;
/** Positions of a scanner. */
const SCANNER = 1;

/**
 * Return a label map (.nii.gz) with the first segment as 1. Later segments overwrite earlier ones. qform and sform of a
 * NIfTI image are copied, so that every program shows both at one place. Rejects with an ImageFileError.
 */
export async function saveNifti(volume: Volume, segments: readonly SavedSegment[]): Promise<Blob> {
  const { shape } = volume;
  if (Math.max(...shape) > MAX_DIMENSION) {
    throw new ImageFileError(
      `The image has ${shape.join(' x ')} voxels, too many along one axis for NIfTI-1. Save the segmentation as .seg.nrrd.`,
    );
  }
  const count = countVoxels(shape);
  const labels: Labels = segments.length < 256 ? new Uint8Array(count) : new Uint16Array(count);
  for (const [index, { mask }] of segments.entries()) {
    await paint(labels, mask, shape, await extentOf(mask, shape), index + 1);
  }
  return gzip([headerOf(volume, labels), new Uint8Array(labels.buffer)]);
}

function headerOf({ shape, affine, nifti }: Volume, labels: Labels): Uint8Array<ArrayBuffer> {
  const forms = nifti ?? formsOf(affine);
  const view = new DataView(new ArrayBuffer(HEADER_BYTES));
  const int16s = (at: number, values: readonly number[]) => {
    values.forEach((value, index) => {
      view.setInt16(at + 2 * index, value, true);
    });
  };
  const reals = (at: number, values: readonly number[]) => {
    values.forEach((value, index) => {
      view.setFloat32(at + 4 * index, value, true);
    });
  };
  view.setInt32(0, 348, true);
  view.setUint8(38, 'r'.charCodeAt(0));
  int16s(40, [3, ...shape, 1, 1, 1, 1]);
  int16s(70, [NIFTI_CODES[wireType(labels)], 8 * labels.BYTES_PER_ELEMENT]);
  reals(76, [...forms.pixdim, 1, 1, 1, 1]);
  reals(108, [HEADER_BYTES, 1, 0]);
  view.setUint8(123, forms.units);
  int16s(252, [forms.qformCode, forms.sformCode]);
  reals(256, forms.qform);
  reals(280, forms.sform);
  view.setInt32(344, 0x6e2b3100); // n+1
  return new Uint8Array(view.buffer);
}

/** Return the qform and the sform of an affine with perpendicular axes. */
function formsOf(affine: Affine): NiftiForms {
  const axes = axesOf(affine);
  const sign = dot(axes[0], cross(axes[1], axes[2])) < 0 ? -1 : 1;
  const [i, j, k] = axes.map((axis) => scaled(axis, 1 / length(axis)));
  return {
    qformCode: SCANNER,
    sformCode: SCANNER,
    qform: [...quaternionOf(i, j, scaled(k, sign)), ...originOf(affine)],
    sform: affine.slice(0, 3).flat(),
    pixdim: [sign, ...axes.map(length)],
    units: MILLIMETERS,
  };
}

/** Return b, c and d of the quaternion a + bi + cj + dk of a rotation, with a not negative. */
function quaternionOf(x: Vector, y: Vector, z: Vector): Vector {
  // Each of these is 4 times the square of one part. The largest one gives the others without loss of digits.
  const squares = [1 + x[0] + y[1] + z[2], 1 + x[0] - y[1] - z[2], 1 - x[0] + y[1] - z[2], 1 - x[0] - y[1] + z[2]];
  const [a, b, c, d] = squares;
  const products = [
    [a, y[2] - z[1], z[0] - x[2], x[1] - y[0]],
    [y[2] - z[1], b, x[1] + y[0], z[0] + x[2]],
    [z[0] - x[2], x[1] + y[0], c, y[2] + z[1]],
    [x[1] - y[0], z[0] + x[2], y[2] + z[1], d],
  ];
  const largest = squares.indexOf(Math.max(...squares));
  const factor = (products[largest][0] < 0 ? -1 : 1) / (2 * Math.sqrt(squares[largest]));
  const [, qb, qc, qd] = products[largest].map((product) => product * factor);
  return [qb, qc, qd];
}
