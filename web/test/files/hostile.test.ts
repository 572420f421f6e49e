// Files that would take much time or memory, although they are small.
import { constants, deflateRawSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { findImages } from '../../src/files/find';
import { NOT_DICOM, parseDicomFile, readDicomHeader } from '../../src/files/dicomHeader';
import type { Volume } from '../../src/files';

const LONG = 2 ** 19;
const DEFLATED = '1.2.840.10008.1.2.1.99';
const MEBIBYTE = 2 ** 20;

function nrrd(...fields: string[]): string {
  return ['NRRD0004', 'type: uchar', 'dimension: 3', 'sizes: 100 100 100', 'encoding: raw', ...fields].join('\n');
}

function metaImage(...fields: string[]): string {
  return ['NDims = 3', 'DimSize = 100 100 100', 'ElementType = MET_UCHAR', ...fields].join('\n');
}

/** A NIfTI header of a cube of uint8. */
function niftiHeader(edge: number): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(352));
  view.setInt32(0, 348, true);
  [3, edge, edge, edge].forEach((value, n) => {
    view.setInt16(40 + 2 * n, value, true);
  });
  view.setInt16(70, 2, true);
  view.setInt32(344, 0x6e2b3100);
  return new Uint8Array(view.buffer);
}

async function open(name: string, content: BlobPart, ...others: File[]): Promise<Volume> {
  const [image] = await findImages([new File([content], name), ...others]);
  return image.open();
}

test.each([
  ['a.nrrd', `${nrrd('byte skip: x')}\n\nabc`],
  ['a.mha', `${metaImage('HeaderSize = x', 'ElementDataFile = LOCAL')}\nabc`],
])('a number of skipped bytes that is none does not fill the image with zeros: %s', async (name, content) => {
  await expect(open(name, content)).rejects.toThrow(`${name} is damaged: its header skips NaN bytes.`);
});

test.each([
  ['a.nrrd', `${nrrd().replace('100 100 100', '2000 2000 2000')}\n\nabc`],
  ['a.mha', `${metaImage('ElementDataFile = LOCAL').replace('100 100 100', '2000 2000 2000')}\nabc`],
  ['a.nii', niftiHeader(2000)],
])('more voxels than can be sent are refused before they are read: %s', async (name, content) => {
  await expect(open(name, content)).rejects.toThrow('2000 x 2000 x 2000 voxels, which are too many');
});

test.each([
  [[NaN, 0, 0, 0], /axes \(NaN, 0, 0\).*Expected three directions/],
  [[0, 0, 0, 0], /axes \(0, 0, 0\).*Expected three directions/],
  [[1, 0, 0, Infinity], /the position \(Infinity, 0, 0\)/],
])('an sform that places no voxel is refused: %s', async (row, expected) => {
  const header = niftiHeader(2);
  const view = new DataView(header.buffer);
  view.setInt16(254, 1, true);
  [...row, 0, 1, 0, 0, 0, 0, 1, 0].forEach((value, n) => {
    view.setFloat32(280 + 4 * n, value, true);
  });
  await expect(open('a.nii', new Blob([header, new Uint8Array(8)]))).rejects.toThrow(expected);
});

// With a time that grows with the square of the length, these take minutes.
const BLANKS = `x${' '.repeat(LONG)}x`;
test.each([
  ['a.nrrd', `${nrrd(`space: ${BLANKS}`)}\n\nabc`, /incomplete/],
  ['a.mha', `${metaImage(`HeaderSize = ${BLANKS}`, 'ElementDataFile = LOCAL')}\n`, /NaN/],
  ['a.mhd', metaImage(`ElementDataFile = ${BLANKS}`), /is missing/],
  ['a.nhdr', `${nrrd(`data file: ${'%d'.repeat(LONG / 4)}`)}\n`, /is missing/],
  ['a.nhdr', `${nrrd('data file: %0999999999d.raw 1 100000')}\n`, /is missing/],
  ['a.nhdr', `${nrrd('data file: LIST', ...Array.from({ length: 1000 }, () => 'x%d 1 100000'))}\n`, /is missing/],
])('a header is read in a time that grows with its length: %s', async (name, content, expected) => {
  await expect(open(name, content)).rejects.toThrow(expected);
});

test('blanks around values are ignored', async () => {
  const voxels = new File([new Uint8Array(100 ** 3)], 'my voxels.raw');
  const shape = [100, 100, 100];
  expect((await open('a.nhdr', `${nrrd(' data file :\t my voxels.raw \t')}\n`, voxels)).shape).toEqual(shape);
  expect((await open('a.mhd', metaImage(' ElementDataFile\t=  my voxels.raw\t '), voxels)).shape).toEqual(shape);
});

/** An element of explicit little-endian DICOM. */
function element(group: number, number: number, vr: string, value: Buffer): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt16LE(group, 0);
  head.writeUInt16LE(number, 2);
  head.write(vr, 4);
  head.writeUInt16LE(value.length, 6);
  return Buffer.concat([head, value]);
}

function deflatedDicom(...compressed: Buffer[]): Buffer {
  const syntax = element(2, 0x10, 'UI', Buffer.from(DEFLATED));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(syntax.length);
  return Buffer.concat([Buffer.alloc(128), Buffer.from('DICM'), element(2, 0, 'UL', length), syntax, ...compressed]);
}

test('a deflated DICOM file does not unpack to much more than its size', () => {
  const piece = deflateRawSync(Buffer.alloc(MEBIBYTE), { finishFlush: constants.Z_FULL_FLUSH });
  const bomb = deflatedDicom(...Array.from({ length: 200 }, () => piece), deflateRawSync(Buffer.alloc(0)));
  expect(bomb.length).toBeLessThan(MEBIBYTE / 2);
  expect(() => parseDicomFile(bomb)).toThrow(/unpacks to more than 67,108,864 bytes/);
});

test('a deflated DICOM file is unpacked, and refused if it is cut', () => {
  const packed = deflateRawSync(element(0x10, 0x20, 'LO', Buffer.from('123456')));
  expect(parseDicomFile(deflatedDicom(packed)).string('x00100020')).toBe('123456');
  expect(() => parseDicomFile(deflatedDicom(packed.subarray(0, -4)))).toThrow();
});

test('a text that is longer than any in a valid file is cut', async () => {
  const long = element(0x10, 0x20, 'LO', Buffer.from(`x${' '.repeat(60_000)}x `));
  const content = deflatedDicom(deflateRawSync(Buffer.concat([element(8, 0x16, 'UI', Buffer.from('1.2 ')), long])));
  const file = new File([Uint8Array.from(content)], 'a');
  const header = await readDicomHeader(file);
  expect(header === NOT_DICOM ? '' : header.attributes.text('PatientID')).toBe('x');
});
