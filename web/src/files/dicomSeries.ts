// The DICOM series among files.
import { type DicomHeader, NOT_DICOM, readDicomHeader } from './dicomHeader';
import { ImageFileError } from './volume';

/** Objects with the attributes of images that are no images of a patient. */
const NOT_IMAGES = ['SEG', 'RTSTRUCT', 'RTPLAN', 'RTDOSE', 'SR', 'PR', 'KO', 'REG', 'DOC'];

/** The files of a DICOM series. */
export interface Series {
  readonly uid: string;
  readonly number: number;
  /** Such as "CT, thorax, 112 slices". */
  readonly label: string;
  /** Whether it has more than localizers and pictures without a position. */
  readonly isVolume: boolean;
  readonly headers: readonly DicomHeader[];
}

/** Return the series that can be opened, and notes for the user. Localizers are left out if there is a volume. */
export async function findSeries(files: readonly File[]): Promise<{ series: Series[]; notes: string[] }> {
  const headers: DicomHeader[] = [];
  const errors: ImageFileError[] = [];
  for (const file of files) {
    try {
      const header = await readDicomHeader(file);
      if (header !== NOT_DICOM && isImage(header)) headers.push(header);
    } catch (e) {
      if (!(e instanceof ImageFileError)) throw e;
      errors.push(e);
    }
  }
  if (headers.length === 0 && errors.length > 0) throw errors[0];
  const found = seriesOf(headers);
  const notes = errors.length > 0 ? [`${errors.length} damaged files were skipped. Slices may be missing.`] : [];
  const volumes = found.filter(({ isVolume }) => isVolume);
  if (volumes.length === 1 && found.length > 1) {
    notes.push(`There are ${found.length} series. Used: ${volumes[0].label}. The others are localizers or pictures.`);
  }
  return { series: volumes.length > 0 ? volumes : found, notes };
}

function isImage({ attributes }: DicomHeader): boolean {
  const isSized = Boolean(attributes.number('Rows')) && Boolean(attributes.number('Columns'));
  return isSized && attributes.text('SeriesInstanceUID') !== '' && !NOT_IMAGES.includes(attributes.text('Modality'));
}

/** Group files by series, in the order of their numbers. */
function seriesOf(headers: readonly DicomHeader[]): Series[] {
  const groups = new Map<string, DicomHeader[]>();
  for (const header of headers) {
    const uid = header.attributes.text('SeriesInstanceUID');
    groups.set(uid, [...(groups.get(uid) ?? []), header]);
  }
  return [...groups].map(([uid, files]) => oneSeries(uid, files)).sort((a, b) => a.number - b.number);
}

function oneSeries(uid: string, headers: readonly DicomHeader[]): Series {
  const { attributes } = headers[0];
  const frames = headers.reduce((count, header) => count + framesOf(header), 0);
  const slices = `${frames} slice${frames === 1 ? '' : 's'}`;
  const parts = [attributes.text('Modality'), attributes.text('SeriesDescription'), slices];
  return {
    uid,
    number: attributes.number('SeriesNumber') ?? 0,
    label: parts.filter(Boolean).join(', '),
    isVolume: headers.some(isSlice),
    headers,
  };
}

/** Return the number of frames of a file, which is 1 without the attribute. */
export function framesOf({ attributes }: DicomHeader): number {
  return attributes.number('NumberOfFrames') ?? 1;
}

function isSlice({ attributes }: DicomHeader): boolean {
  const isPlaced = attributes.has('ImagePositionPatient') || attributes.has('SharedFunctionalGroupsSequence');
  return isPlaced && !attributes.texts('ImageType').includes('LOCALIZER');
}
