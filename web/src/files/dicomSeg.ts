// DICOM segmentation objects (SEG) of DICOM images.
import { dicomLab } from './cielab';
import { ATTRIBUTES, COMMON_WITH_SEG, type Keyword, tagOf } from './dicomAttributes';
import { type Dataset, decimal, EncodedItems, newUid, writeDicom } from './dicomWriter';
import { axesOf, betweenRasAndLps, length, originOf, scaled } from './geometry';
import { everyVoxel, type Extent, extentOf } from './labels';
import {
  type DicomSlice,
  type DicomSource,
  ImageFileError,
  type SavedSegment,
  type Shape,
  type Volume,
} from './volume';

const SEGMENTATION_STORAGE = '1.2.840.10008.5.1.4.1.1.66.4';
/** Identifies the program that wrote a file: a UUID as a number, made once for this project. */
const IMPLEMENTATION = '2.25.38957256595216031959135633470868868697';
const PROGRAM = 'nninteractive-ws';
const MAX_TEXT = 64;
const DATE = /^(\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01]))?$/;

/** Patterns of valid values of some copied attributes, which may be empty. */
const VALID: Readonly<Partial<Record<Keyword, RegExp>>> = {
  StudyDate: DATE,
  StudyTime: /^(([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?)?$/,
  PatientBirthDate: DATE,
  PatientSex: /^[MFO]?$/,
};

/** A frame of the segmentation: the slice k of a segment, from 1. */
interface Frame {
  readonly segment: number;
  readonly k: number;
}

/**
 * Return a DICOM segmentation object (.dcm) of a DICOM image. `model`: the name of the algorithm. `version`: that of
 * this program. Rejects with an ImageFileError if the volume is of another format or lacks a required attribute.
 */
export async function saveDicomSeg(
  volume: Volume,
  segments: readonly SavedSegment[],
  model: string,
  version: string,
): Promise<Blob> {
  const { dicom, shape } = volume;
  if (dicom === undefined) {
    throw new ImageFileError('A DICOM SEG requires a DICOM image. Save the segmentation as .seg.nrrd or .nii.gz.');
  }
  checkRequired(dicom);
  const extents: Extent[] = [];
  for (const { mask } of segments) extents.push(await extentOf(mask, shape));
  const frames = framesOf(extents);
  const pixels = await packedBits(segments, extents, frames, shape);
  const instance = newUid();
  const dataset: Dataset = [
    ...generalAttributes(dicom, instance, version),
    ...imageAttributes(shape, frames.length, pixels),
    [0x00620002, 'SQ', segments.map((segment, index) => segmentAttributes(segment, index + 1, model, version))],
    ...dimensions(),
    [0x52009229, 'SQ', [sharedGroups(volume)]],
    [0x52009230, 'SQ', await EncodedItems.of(groupsOf(frames, volume, dicom.slices))],
  ];
  return writeDicom(SEGMENTATION_STORAGE, instance, IMPLEMENTATION, dataset);
}

function checkRequired({ attributes, seriesInstanceUid }: DicomSource): void {
  const missing = ['FrameOfReferenceUID', 'StudyInstanceUID'].find((name) => !attributes[name]);
  if (missing === undefined && seriesInstanceUid !== '') return;
  throw new ImageFileError(
    `A DICOM SEG cannot be written: the series has no ${missing ?? 'SeriesInstanceUID'}. Save the segmentation as ` +
      '.seg.nrrd.',
  );
}

/** Return a frame for each slice between the ends of each segment, and one if all segments are empty. */
function framesOf(extents: readonly Extent[]): Frame[] {
  const frames = extents.flatMap(([, , [first, last]], index) =>
    Array.from({ length: last - first + 1 }, (_, n) => ({ segment: index + 1, k: first + n })),
  );
  return frames.length > 0 ? frames : [{ segment: 1, k: 0 }];
}

/** Return the voxels of all frames as bits, one after the other. The first one is the lowest bit of a byte. */
async function packedBits(
  segments: readonly SavedSegment[],
  extents: readonly Extent[],
  frames: readonly Frame[],
  shape: Shape,
): Promise<Uint8Array<ArrayBuffer>> {
  const plane = shape[0] * shape[1];
  const bits = new Uint8Array(Math.ceil((frames.length * plane) / 8));
  for (const [index, { mask }] of segments.entries()) {
    const extent = extents[index];
    // The index of a voxel in the volume is that in the frames, but for the slices before the segment.
    const offset = (frames.findIndex(({ segment }) => segment === index + 1) - extent[2][0]) * plane;
    await everyVoxel(mask, shape, extent, (voxel) => {
      const bit = offset + voxel;
      bits[Math.floor(bit / 8)] |= 1 << (bit % 8);
      return true;
    });
  }
  return bits;
}

function generalAttributes(dicom: DicomSource, instance: string, version: string): Dataset {
  const now = new Date();
  const two = (n: number) => String(n).padStart(2, '0');
  const date = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`;
  const time = `${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`;
  const references = [...new Map(dicom.slices.map((slice) => [slice.sopInstanceUid, slice])).values()];
  const copied = COMMON_WITH_SEG.map((keyword) => {
    const value = dicom.attributes[keyword];
    // Anonymizers leave invalid values.
    return [tagOf(keyword), ATTRIBUTES[keyword][1], (VALID[keyword]?.test(value) ?? true) ? value : ''] as const;
  });
  return [
    ...copied,
    [0x00080005, 'CS', 'ISO_IR 192'],
    [0x00080008, 'CS', 'DERIVED\\PRIMARY'],
    [0x00080016, 'UI', SEGMENTATION_STORAGE],
    [0x00080018, 'UI', instance],
    [0x00080023, 'DA', date],
    [0x00080033, 'TM', time],
    [0x00080060, 'CS', 'SEG'],
    [0x00080070, 'LO', PROGRAM],
    [0x0008103e, 'LO', 'nnInteractive'],
    [0x00081090, 'LO', PROGRAM],
    [
      0x00081115,
      'SQ',
      [
        [
          [0x0008114a, 'SQ', references.map(reference)],
          [0x0020000e, 'UI', dicom.seriesInstanceUid],
        ],
      ],
    ],
    [0x00181000, 'LO', '0'],
    [0x00181020, 'LO', version],
    [0x0020000e, 'UI', newUid()],
    [0x00200011, 'IS', '300'],
    [0x00200013, 'IS', '1'],
  ];
}

function reference({ sopClassUid, sopInstanceUid }: DicomSlice): Dataset {
  return [
    [0x00081150, 'UI', sopClassUid],
    [0x00081155, 'UI', sopInstanceUid],
  ];
}

function imageAttributes([ni, nj]: Shape, frames: number, pixels: Uint8Array<ArrayBuffer>): Dataset {
  return [
    [0x00280002, 'US', [1]],
    [0x00280004, 'CS', 'MONOCHROME2'],
    [0x00280008, 'IS', String(frames)],
    [0x00280010, 'US', [nj]],
    [0x00280011, 'US', [ni]],
    [0x00280100, 'US', [1]],
    [0x00280101, 'US', [1]],
    [0x00280102, 'US', [0]],
    [0x00280103, 'US', [0]],
    [0x00282110, 'CS', '00'],
    [0x00620001, 'CS', 'BINARY'],
    [0x00700080, 'CS', 'SEGMENTATION'],
    [0x00700081, 'LO', ''],
    [0x00700084, 'PN', ''],
    [0x7fe00010, 'OB', pixels],
  ];
}

function segmentAttributes({ name, color }: SavedSegment, number: number, model: string, version: string): Dataset {
  // The anatomy of a segment is unknown. 3D Slicer uses the generic code Tissue too.
  const tissue = code('85756007', 'SCT', 'Tissue');
  return [
    [0x00620003, 'SQ', [tissue]],
    [0x00620004, 'US', [number]],
    [0x00620005, 'LO', shortText(name)],
    [
      0x00620007,
      'SQ',
      [
        [
          [0x0066002f, 'SQ', [code('123110', 'DCM', 'Artificial Intelligence')]],
          [0x00660031, 'LO', shortText(version)],
          [0x00660036, 'LO', shortText(model)],
        ],
      ],
    ],
    [0x00620008, 'CS', 'SEMIAUTOMATIC'],
    [0x00620009, 'LO', shortText(model)],
    [0x0062000d, 'US', dicomLab(color)],
    [0x0062000f, 'SQ', [tissue]],
  ];
}

function code(value: string, scheme: string, meaning: string): Dataset {
  return [
    [0x00080100, 'SH', value],
    [0x00080102, 'SH', scheme],
    [0x00080104, 'LO', meaning],
  ];
}

/** Text of an attribute has up to 64 characters. A backslash would separate two values. */
function shortText(text: string): string {
  return Array.from(text.replace(/[\\\p{Cc}]/gu, ' '))
    .slice(0, MAX_TEXT)
    .join('');
}

/** Frames are ordered by segment, then by position. */
function dimensions(): Dataset {
  const organization = newUid();
  const index = (pointer: number, group: number, label: string): Dataset => [
    [0x00209164, 'UI', organization],
    [0x00209165, 'AT', [pointer]],
    [0x00209167, 'AT', [group]],
    [0x00209421, 'LO', label],
  ];
  return [
    [0x00209221, 'SQ', [[[0x00209164, 'UI', organization]]]],
    [
      0x00209222,
      'SQ',
      [
        index(0x0062000b, 0x0062000a, 'Referenced Segment Number'),
        index(0x00200032, 0x00209113, 'Image Position Patient'),
      ],
    ],
  ];
}

function sharedGroups({ affine }: Volume): Dataset {
  const axes = axesOf(betweenRasAndLps(affine));
  const [i, j, k] = axes.map(length);
  const orientation = [scaled(axes[0], 1 / i), scaled(axes[1], 1 / j)].flat();
  return [
    [0x00209116, 'SQ', [[[0x00200037, 'DS', decimals(orientation)]]]],
    [
      0x00289110,
      'SQ',
      [
        [
          [0x00180050, 'DS', decimal(k)],
          [0x00180088, 'DS', decimal(k)],
          [0x00280030, 'DS', decimals([j, i])],
        ],
      ],
    ],
  ];
}

function decimals(values: readonly number[]): string {
  return values.map(decimal).join('\\');
}

function* groupsOf(frames: readonly Frame[], volume: Volume, slices: readonly DicomSlice[]): Generator<Dataset> {
  for (const frame of frames) yield frameGroups(frame, volume, slices[frame.k]);
}

function frameGroups({ segment, k }: Frame, { affine }: Volume, slice: DicomSlice): Dataset {
  const lps = betweenRasAndLps(affine);
  const [origin, step] = [originOf(lps), axesOf(lps)[2]];
  const source: Dataset = [
    ...reference(slice),
    ...(slice.frame === undefined ? [] : ([[0x00081160, 'IS', String(slice.frame)]] as const)),
    [0x0028135a, 'CS', 'YES'],
    [0x0040a170, 'SQ', [code('121322', 'DCM', 'Source image for image processing operation')]],
  ];
  return [
    [
      0x00089124,
      'SQ',
      [
        [
          [0x00082112, 'SQ', [source]],
          [0x00089215, 'SQ', [code('113076', 'DCM', 'Segmentation')]],
        ],
      ],
    ],
    [0x00209111, 'SQ', [[[0x00209157, 'UL', [segment, k + 1]]]]],
    [0x00209113, 'SQ', [[[0x00200032, 'DS', decimals(origin.map((x, axis) => x + k * step[axis]))]]]],
    [0x0062000a, 'SQ', [[[0x0062000b, 'US', [segment]]]]],
  ];
}
