// Find the images among the files that a user chose or dropped.
import { hasDicomPreamble, isGzip, latin1, readBytes, readStart, startsWith } from './bytes';
import { findSeries } from './dicomSeries';
import { readStack } from './dicomStack';
import { readMetaImage } from './metaimage';
import { isNifti, isNiftiPair, NIFTI_HEADER_BYTES, readNifti } from './nifti';
import { readNrrd } from './nrrd';
import { ImageFileError, type ImageChoice } from './volume';

type Kind = 'nifti' | 'nrrd' | 'mha' | 'dicom';

/** Enough bytes to tell a format: a NIfTI-2 header, and the first lines of a MetaImage header. */
const START_BYTES = Math.max(1024, NIFTI_HEADER_BYTES);

/** Patterns of the text at the start of files that are no images, and a description with the remedy. */
const OTHERS: readonly (readonly [RegExp, string])[] = [
  [/^version https:\/\/git-lfs/, 'a pointer of Git LFS. Run `git lfs pull` to download the file itself'],
  [/^.{0,100}\/annex\/objects\//, 'a pointer of git-annex. Run `git annex get` to download the file itself'],
  [/^PK\x03\x04/, 'a ZIP archive. Unpack it'],
  [/^(Rar!|7z\xbc\xaf|[^]{257}ustar)/, 'an archive. Unpack it'],
  [/^(BZh|\xfd7zXZ|\x28\xb5\x2f\xfd)/, 'compressed by another program than gzip. Decompress it'],
  [/^(\x89PNG|\xff\xd8\xff|BM|GIF8)/, 'a picture. Expected a volume'],
  [/^%PDF/, 'a PDF document. Expected a volume'],
  [/^\x89HDF/, 'an HDF5 or MINC file. Convert it to NIfTI or NRRD'],
  [/^\0\0\0\x01\0\0/, 'a FreeSurfer MGH file. Convert it with mri_convert to NIfTI'],
  [/^(# vtk DataFile|II\*\0|MM\0\*)/, 'a VTK or TIFF file, which the command line reads. Convert it to NIfTI or NRRD'],
  [
    /^(\x5c\x01\0\0|\0\0\x01\x5c)/,
    'an Analyze 7.5 file, which does not say what is left and right. Convert it to NIfTI',
  ],
  [/^\s*(<!doctype html|<html)/i, 'a web page (HTML), perhaps an error page of a download. Download the image again'],
  [/^\s*[{<]/, 'a text file (JSON or XML). Expected an image'],
  [/^\0+$/, 'filled with zeros, as after an interrupted copy. Copy it again'],
];

interface Identified {
  readonly file: File;
  readonly start: Uint8Array;
  readonly kind: Kind | undefined;
  readonly gzip: boolean;
}

/** Return the images in these files. Rejects with an ImageFileError if there is none. See {@link ImageFiles.find}. */
export async function findImages(files: readonly File[]): Promise<ImageChoice[]> {
  const identified: Identified[] = [];
  for (const file of files) identified.push(await identify(file));
  const dicom = identified.filter(({ kind }) => kind === 'dicom').map(({ file }) => file);
  const choices = [...identified.flatMap((found) => choiceOf(found, files)), ...(await seriesIn(dicom))];
  if (choices.length > 0) return choices;
  throw noImage(identified);
}

async function identify(file: File): Promise<Identified> {
  const { start, gzip } = await readStart(file, START_BYTES).catch(async (e: unknown) => {
    const packed = await readBytes(file.slice(0, 2), file.name);
    if (!isGzip(packed)) throw e;
    return { start: packed, gzip: true }; // damaged, and so of no known format
  });
  const kind = kindOf(start);
  return { file, start, kind: gzip && kind !== 'nifti' ? undefined : kind, gzip };
}

function kindOf(start: Uint8Array): Kind | undefined {
  const text = latin1(start);
  if (isNifti(start)) return 'nifti';
  if (text.startsWith('NRRD000')) return 'nrrd';
  if (hasDicomPreamble(start) || startsWith(start, 8, 0) || startsWith(start, 2, 0, 0, 0)) return 'dicom';
  return /^\s*(ObjectType|NDims)\s*=/m.test(text) ? 'mha' : undefined;
}

function choiceOf({ file, start, kind }: Identified, files: readonly File[]): ImageChoice[] {
  if (kind === 'nifti') {
    const voxels = isNiftiPair(start) ? pairOf(file, files) : undefined;
    return [{ label: file.name, open: (onProgress = ignore) => readNifti(file, voxels, onProgress) }];
  }
  if (kind === 'nrrd') return [{ label: file.name, open: (onProgress = ignore) => readNrrd(file, files, onProgress) }];
  if (kind === 'mha')
    return [{ label: file.name, open: (onProgress = ignore) => readMetaImage(file, files, onProgress) }];
  return [];
}

async function seriesIn(files: readonly File[]): Promise<ImageChoice[]> {
  const { series, notes } = await findSeries(files);
  return series.map((one) => ({
    label: one.label,
    open: (onProgress = ignore) => readStack(one, notes, onProgress),
  }));
}

function ignore(): void {
  // no listener
}

/** Return the .img of a .hdr, packed by gzip or not. */
function pairOf(header: File, files: readonly File[]): File | undefined {
  const stem = header.name.replace(/\.hdr(\.gz)?$/i, '').toLowerCase();
  return files.find((file) => [`${stem}.img`, `${stem}.img.gz`].includes(file.name.toLowerCase()));
}

function noImage(identified: readonly Identified[]): ImageFileError {
  if (identified.length !== 1) {
    return new ImageFileError(
      `None of the ${identified.length} files is an image. Expected NIfTI, NRRD or MetaImage files, or a DICOM series.`,
    );
  }
  const [{ file, start, gzip, kind }] = identified;
  if (kind === 'dicom') {
    return new ImageFileError(`${file.name} is a DICOM object without an image. Expected a DICOM series.`);
  }
  if (file.size === 0) return new ImageFileError(`${file.name} is empty (0 bytes). Copy or export it again.`);
  const text = latin1(start);
  const what = OTHERS.find(([pattern]) => pattern.test(text))?.[1] ?? 'of an unknown format';
  const advice = gzip ? `${what}, compressed by gzip. Decompress it` : what;
  return new ImageFileError(
    `${file.name} cannot be read: it is ${advice}. Supported formats are NIfTI, NRRD and MetaImage, and DICOM series.`,
  );
}
