// The slices of a DICOM series, or the frames of multi-frame files, as a volume.
import { wireType } from '../client/voxels';
import { grouped, type OnProgress } from './bytes';
import { COMMON_WITH_SEG, type Keyword } from './dicomAttributes';
import { type Attributes, type DicomHeader, PIXEL_DATA } from './dicomHeader';
import { openPixels, type Pixels, type ReadFrame } from './dicomPixels';
import { framesOf, type Series } from './dicomSeries';
import { affineOf, betweenRasAndLps, cross, difference, dot, length, scaled, straightened } from './geometry';
import {
  type Affine,
  type DicomSource,
  ImageFileError,
  type Shape,
  shapeOf,
  type Vector,
  type Volume,
  type Voxels,
} from './volume';
import { replaceNonFinite } from './voxels';

/** Tolerance of the distance between slices: relative to it, and in millimeters, because scanners round positions. */
const SPACING_TOLERANCE = 0.05;
const ROUNDING_MM = 0.1;
/** Slices nearer to each other than this are at the same position. */
const SAME_POSITION_MM = 0.01;
/** Tolerance of direction cosines, which are often rounded to few digits. */
const COSINE_TOLERANCE = 1e-3;
/** Tolerance of the length of a direction, and of the cosine between rows and columns. */
const NORM_TOLERANCE = 0.01;
/** Relative tolerance of the distance of pixels. */
const PIXEL_TOLERANCE = 1e-3;
/** Maximum number of values in an error message. */
const MAX_VALUES = 8;

/** Attributes that distinguish time points, echoes and other repetitions, in the order in which they are tried. */
const REPETITIONS: readonly Keyword[] = [
  'TemporalPositionIndex',
  'EffectiveEchoTime',
  'FrameAcquisitionNumber',
  'FrameType',
  'StackID',
  'TemporalPositionIdentifier',
  'EchoTime',
  'DiffusionBValue',
  'TriggerTime',
  'AcquisitionNumber',
  'ImageType',
  'AcquisitionDateTime',
  'FrameAcquisitionDateTime',
  'AcquisitionTime',
  'ContentTime',
];
/** A slice, without its pixels: frame `index` of `header`. */
interface Slice {
  readonly header: DicomHeader;
  readonly index: number;
  readonly rows: number;
  readonly columns: number;
  readonly position: Vector;
  /** Unit vectors along a row and down a column of pixels. */
  readonly row: Vector;
  readonly column: Vector;
  /** Distances of rows and of columns. */
  readonly pixel: readonly [number, number];
  readonly thickness: number;
  readonly slope: number;
  readonly intercept: number;
  readonly repetition: Readonly<Partial<Record<Keyword, string>>>;
  readonly isLocalizer: boolean;
  readonly instance: string;
}

/** Read a series. Columns of pixels are i, rows are j, and k is along the normal. Rejects with an ImageFileError. */
export async function readStack(series: Series, earlier: readonly string[], onProgress: OnProgress): Promise<Volume> {
  const { label } = series;
  const notes = [...earlier];
  const unique = withoutCopies(series.headers.flatMap(slicesOf), notes);
  const slices = withoutLocalizers(unique, notes);
  checkSame(slices, label);
  slices.sort((a, b) => along(a) - along(b));
  checkOneTime(slices, label);
  checkEven(slices, label);
  const shape = shapeOf(`The series ${label}`, [slices[0].columns, slices[0].rows, slices.length]);
  const affine = straightened(betweenRasAndLps(affineOfSlices(slices)), shape, `The series ${label}`);
  const voxels = await readVoxels(slices, shape, onProgress);
  return {
    name: label,
    shape,
    voxels,
    dtype: wireType(voxels),
    affine,
    source: 'dicom',
    notes: [...notes, ...replaceNonFinite(voxels, `The series ${label}`)],
    dicom: sourceOf(slices),
  };
}

function slicesOf(header: DicomHeader): Slice[] {
  const { attributes, file } = header;
  const frames = attributes.items('PerFrameFunctionalGroupsSequence');
  const count = framesOf(header);
  if (frames === undefined) {
    if (count === 1) return [sliceOf(header, 0, [attributes])];
    throw new ImageFileError(
      `${file.name} has several frames without positions, like ultrasound or a film. Expected slices.`,
    );
  }
  if (frames.length !== count) {
    throw new ImageFileError(
      `${file.name} has ${count} frames, but the positions of ${frames.length}. Copy or export it again.`,
    );
  }
  const shared = attributes.items('SharedFunctionalGroupsSequence')?.at(0)?.groups() ?? [];
  return frames.map((frame, index) => sliceOf(header, index, [...frame.groups(), ...shared, attributes]));
}

/** `places`: the attributes among which one of a frame is looked up, in turn. */
function sliceOf(header: DicomHeader, index: number, places: readonly Attributes[]): Slice {
  const { attributes, file } = header;
  const place = (keyword: Keyword) => places.find((attributes) => attributes.has(keyword));
  const numbers = (keyword: Keyword) => place(keyword)?.numbers(keyword) ?? [];
  const number = (keyword: Keyword) => place(keyword)?.number(keyword);
  const text = (keyword: Keyword) => place(keyword)?.text(keyword) ?? '';
  if ((attributes.number('SamplesPerPixel') ?? 1) !== 1) {
    throw new ImageFileError(`${file.name} is a color image. Expected one value per pixel.`);
  }
  if (attributes.has('ModalityLUTSequence')) {
    throw new ImageFileError(`${file.name} has a table of pixel values (modality LUT), which this page cannot apply.`);
  }
  const geometry = geometryOf(
    file.name,
    numbers('ImagePositionPatient'),
    numbers('ImageOrientationPatient'),
    numbers('PixelSpacing'),
  );
  const repetition = REPETITIONS.map((keyword) => [keyword, text(keyword)] as const).filter(
    ([, value]) => value !== '',
  );
  return {
    header,
    index,
    rows: attributes.number('Rows') ?? 0,
    columns: attributes.number('Columns') ?? 0,
    ...geometry,
    thickness: Math.abs(number('SpacingBetweenSlices') || number('SliceThickness') || 1),
    slope: finite(file.name, number('RescaleSlope') ?? 1),
    intercept: finite(file.name, number('RescaleIntercept') ?? 0),
    repetition: Object.fromEntries(repetition),
    isLocalizer: (text('FrameType') || text('ImageType')).split('\\').includes('LOCALIZER'),
    instance: attributes.text('SOPInstanceUID') || file.name,
  };
}

function finite(name: string, value: number): number {
  if (Number.isFinite(value)) return value;
  throw new ImageFileError(
    `${name} has a damaged DICOM header: a rescale slope or intercept is ${value}. Export it again.`,
  );
}

function geometryOf(
  name: string,
  position: readonly number[],
  orientation: readonly number[],
  pixel: readonly number[],
): Pick<Slice, 'position' | 'row' | 'column' | 'pixel'> {
  if (position.length === 0 || orientation.length === 0 || pixel.length === 0) {
    throw new ImageFileError(`${name} has no position, orientation or pixel distance. Expected slices of a volume.`);
  }
  const [row, column] = [vector(orientation.slice(0, 3)), vector(orientation.slice(3))];
  const values = [...position, ...orientation, ...pixel];
  const isUnit = (v: Vector) => Math.abs(length(v) - 1) <= NORM_TOLERANCE;
  if (
    position.length !== 3 ||
    orientation.length !== 6 ||
    pixel.length !== 2 ||
    !values.every(Number.isFinite) ||
    Math.min(...pixel) <= 0 ||
    !isUnit(row) ||
    !isUnit(column)
  ) {
    throw new ImageFileError(
      `${name} has an invalid position, orientation or pixel distance: ${values.join(', ')}. Export it again.`,
    );
  }
  if (Math.abs(dot(row, column)) > NORM_TOLERANCE) {
    throw new ImageFileError(
      `${name} has rows and columns that are not perpendicular: ${orientation.join(', ')}. Export it again.`,
    );
  }
  return {
    position: vector(position),
    row: scaled(row, 1 / length(row)),
    column: scaled(column, 1 / length(column)),
    pixel: [pixel[0], pixel[1]],
  };
}

function vector(values: readonly number[]): Vector {
  return [values[0], values[1], values[2]];
}

/** Drop copies of files. Some anonymizers give every file the same UID, so that alone is no copy. */
function withoutCopies(slices: readonly Slice[], notes: string[]): Slice[] {
  const key = ({ instance, index, position, repetition }: Slice) =>
    JSON.stringify([instance, index, position, repetition]);
  const unique = new Map(slices.map((slice) => [key(slice), slice]));
  const copies = slices.length - unique.size;
  if (copies > 0) notes.push(`${copies} copies of slices were skipped.`);
  return [...unique.values()];
}

function withoutLocalizers(slices: Slice[], notes: string[]): Slice[] {
  const others = slices.filter(({ isLocalizer }) => !isLocalizer);
  if (others.length === 0 || others.length === slices.length) return slices;
  notes.push(`${slices.length - others.length} localizers in the series were skipped.`);
  return others;
}

function along({ position, row, column }: Slice): number {
  return dot(position, cross(row, column));
}

/** Properties that all slices of a volume have in common: name, and test whether two slices agree. */
const COMMON: readonly (readonly [string, (a: Slice, b: Slice) => boolean])[] = [
  ['numbers of rows and columns', (a, b) => a.rows === b.rows && a.columns === b.columns],
  ['orientations', (a, b) => isNear(a.row, b.row, COSINE_TOLERANCE) && isNear(a.column, b.column, COSINE_TOLERANCE)],
  ['pixel distances', (a, b) => a.pixel.every((x, n) => Math.abs(x - b.pixel[n]) <= PIXEL_TOLERANCE * b.pixel[n])],
];

function isNear(a: Vector, b: Vector, tolerance: number): boolean {
  return difference(a, b).every((x) => Math.abs(x) < tolerance);
}

/** Throw an ImageFileError unless all slices have the size, the orientation and the pixel distances of most. */
function checkSame(slices: readonly Slice[], label: string): void {
  for (const [name, isSame] of COMMON) {
    let others = slices.filter((slice) => !isSame(slices[0], slice));
    // More than half differ from the first slice, if that is the odd one.
    if (others.length > slices.length / 2) others = slices.filter((slice) => isSame(slices[0], slice));
    if (others.length === 0) continue;
    throw new ImageFileError(
      `The slices of the series ${label} have different ${name}: ${others.length} of ${slices.length} differ from the ` +
        `others, such as ${others[0].header.file.name}. Leave those out.`,
    );
  }
}

/** Throw an ImageFileError if sorted slices are at the same position. */
function checkOneTime(slices: readonly Slice[], label: string): void {
  const places: number[] = [];
  for (const [n, slice] of slices.entries()) {
    const isNew = n > 0 && along(slice) - along(slices[n - 1]) > SAME_POSITION_MM;
    places.push(n === 0 ? 0 : places[n - 1] + Number(isNew));
  }
  const count = (places.at(-1) ?? 0) + 1;
  if (count === slices.length) return;
  for (const name of REPETITIONS) {
    const values = completeGroups(slices, places, count, name);
    if (values.length === 0) continue;
    const shown = values.slice(0, MAX_VALUES).join(', ') + (values.length > MAX_VALUES ? ', ...' : '');
    throw new ImageFileError(
      `The series ${label} has ${values.length} volumes at the same place, which differ in ${name} (${shown}). Expected ` +
        'one volume. Choose only the files of the one to segment.',
    );
  }
  throw new ImageFileError(
    `The series ${label} has ${slices.length} slices at ${count} positions. They are not complete repetitions that ` +
      'could be told apart. Leave out duplicate files, or split the series.',
  );
}

/** Return the values of an attribute that distinguish volumes of `count` slices each, or nothing. */
function completeGroups(slices: readonly Slice[], places: readonly number[], count: number, name: Keyword): string[] {
  const groups = new Map<string, number[]>();
  for (const [n, { repetition }] of slices.entries()) {
    const value = repetition[name] ?? '';
    groups.set(value, [...(groups.get(value) ?? []), places[n]]);
  }
  const isDistinct = [...groups.values()].every((group) => new Set(group).size === group.length);
  if (groups.size < 2 || !isDistinct) return [];
  const complete = [...groups].filter(([, group]) => group.length === count).map(([value]) => value);
  return complete.sort((a, b) => Number(a) - Number(b) || a.localeCompare(b));
}

/** Throw an ImageFileError unless sorted slices are at equal distances. */
function checkEven(slices: readonly Slice[], label: string): void {
  const steps = slices.slice(1).map(({ position }, n) => difference(position, slices[n].position));
  if (steps.length === 0) return;
  const mean = scaled(difference(slices[slices.length - 1].position, slices[0].position), 1 / steps.length);
  const tolerance = Math.max(SPACING_TOLERANCE * length(mean), Math.min(ROUNDING_MM, length(mean) / 2));
  if (steps.every((step) => length(difference(step, mean)) <= tolerance)) return;
  const distances = steps.map(length);
  throw new ImageFileError(
    `The slices of the series ${label} are ${Math.min(...distances).toFixed(3)} to ` +
      `${Math.max(...distances).toFixed(3)} mm apart. Expected equal distances. Slices are missing, or the series has ` +
      'several volumes. Choose the missing files as well, or resample the series, for example with the option ' +
      '--resample of the command line of this program.',
  );
}

function affineOfSlices(slices: readonly Slice[]): Affine {
  const [{ row, column, pixel, position, thickness }] = slices;
  const last = slices[slices.length - 1].position;
  const step =
    slices.length === 1
      ? scaled(cross(row, column), thickness)
      : scaled(difference(last, position), 1 / (slices.length - 1));
  return affineOf([scaled(row, pixel[1]), scaled(column, pixel[0]), step], position);
}

/** Read the voxels in real-world values, each slice with its own slope and intercept. Whole numbers stay whole. */
async function readVoxels(slices: readonly Slice[], [ni, nj, nk]: Shape, onProgress: OnProgress): Promise<Voxels> {
  const voxels = allocate(ni * nj * nk, slices.some(isReal));
  let opened: { header: DicomHeader; read: ReadFrame } | undefined;
  for (const [k, slice] of slices.entries()) {
    if (opened?.header !== slice.header) opened = { header: slice.header, read: await openPixels(slice.header) };
    rescale(await opened.read(slice.index), slice, voxels.subarray(k * ni * nj, (k + 1) * ni * nj));
    onProgress((k + 1) / nk);
  }
  return voxels instanceof Int32Array ? narrowed(voxels) : voxels;
}

function isReal({ header, slope, intercept }: Slice): boolean {
  return !Number.isInteger(slope) || !Number.isInteger(intercept) || header.pixels?.tag !== PIXEL_DATA;
}

function allocate(count: number, real: boolean): Int32Array | Float32Array {
  try {
    return real ? new Float32Array(count) : new Int32Array(count);
  } catch {
    throw new ImageFileError(
      `The series is too large for the memory of the browser (${grouped(4 * count)} bytes). Crop or resample it.`,
    );
  }
}

function rescale(pixels: Pixels, { header, slope, intercept }: Slice, target: Int32Array | Float32Array): void {
  const isWhole = target instanceof Int32Array;
  for (let index = 0; index < pixels.length; index++) {
    const value = pixels[index] * slope + intercept;
    target[index] = value;
    if (isWhole && target[index] !== value) {
      throw new ImageFileError(`${header.file.name} has the value ${value}, which is too large.`);
    }
  }
}

/** Return whole numbers in the smallest type that holds them. */
function narrowed(voxels: Int32Array): Voxels {
  let lowest = Infinity;
  let highest = -Infinity;
  for (let index = 0; index < voxels.length; index++) {
    lowest = Math.min(lowest, voxels[index]);
    highest = Math.max(highest, voxels[index]);
  }
  if (lowest >= 0 && highest < 2 ** 8) return new Uint8Array(voxels);
  if (lowest >= -(2 ** 15) && highest < 2 ** 15) return new Int16Array(voxels);
  if (lowest >= 0 && highest < 2 ** 16) return new Uint16Array(voxels);
  return voxels;
}

function sourceOf(slices: readonly Slice[]): DicomSource {
  const { attributes } = slices[0].header;
  return {
    attributes: Object.fromEntries(COMMON_WITH_SEG.map((keyword) => [keyword, attributes.text(keyword)])),
    seriesInstanceUid: attributes.text('SeriesInstanceUID'),
    slices: slices.map(({ header, index }) => ({
      sopClassUid: header.attributes.text('SOPClassUID'),
      sopInstanceUid: header.attributes.text('SOPInstanceUID'),
      ...(framesOf(header) > 1 ? { frame: index + 1 } : {}),
    })),
  };
}
