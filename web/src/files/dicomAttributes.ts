// The attributes of DICOM images that are read.

/** Tag, as dicom-parser writes it, and value representation of the attributes that are read. */
export const ATTRIBUTES = {
  TransferSyntaxUID: ['x00020010', 'UI'],
  MediaStorageSOPClassUID: ['x00020002', 'UI'],
  SpecificCharacterSet: ['x00080005', 'CS'],
  ImageType: ['x00080008', 'CS'],
  SOPClassUID: ['x00080016', 'UI'],
  SOPInstanceUID: ['x00080018', 'UI'],
  StudyDate: ['x00080020', 'DA'],
  StudyTime: ['x00080030', 'TM'],
  AcquisitionTime: ['x00080032', 'TM'],
  ContentTime: ['x00080033', 'TM'],
  AcquisitionDateTime: ['x0008002a', 'DT'],
  AccessionNumber: ['x00080050', 'SH'],
  Modality: ['x00080060', 'CS'],
  ReferringPhysicianName: ['x00080090', 'PN'],
  SeriesDescription: ['x0008103e', 'LO'],
  FrameType: ['x00089007', 'CS'],
  PatientName: ['x00100010', 'PN'],
  PatientID: ['x00100020', 'LO'],
  PatientBirthDate: ['x00100030', 'DA'],
  PatientSex: ['x00100040', 'CS'],
  SliceThickness: ['x00180050', 'DS'],
  EchoTime: ['x00180081', 'DS'],
  SpacingBetweenSlices: ['x00180088', 'DS'],
  TriggerTime: ['x00181060', 'DS'],
  FrameAcquisitionDateTime: ['x00189074', 'DT'],
  EffectiveEchoTime: ['x00189082', 'FD'],
  DiffusionBValue: ['x00189087', 'FD'],
  StudyInstanceUID: ['x0020000d', 'UI'],
  SeriesInstanceUID: ['x0020000e', 'UI'],
  StudyID: ['x00200010', 'SH'],
  SeriesNumber: ['x00200011', 'IS'],
  AcquisitionNumber: ['x00200012', 'IS'],
  ImagePositionPatient: ['x00200032', 'DS'],
  ImageOrientationPatient: ['x00200037', 'DS'],
  FrameOfReferenceUID: ['x00200052', 'UI'],
  TemporalPositionIdentifier: ['x00200100', 'IS'],
  PositionReferenceIndicator: ['x00201040', 'LO'],
  StackID: ['x00209056', 'SH'],
  TemporalPositionIndex: ['x00209128', 'UL'],
  FrameAcquisitionNumber: ['x00209156', 'US'],
  SamplesPerPixel: ['x00280002', 'US'],
  NumberOfFrames: ['x00280008', 'IS'],
  Rows: ['x00280010', 'US'],
  Columns: ['x00280011', 'US'],
  PixelSpacing: ['x00280030', 'DS'],
  BitsAllocated: ['x00280100', 'US'],
  BitsStored: ['x00280101', 'US'],
  PixelRepresentation: ['x00280103', 'US'],
  RescaleIntercept: ['x00281052', 'DS'],
  RescaleSlope: ['x00281053', 'DS'],
  ModalityLUTSequence: ['x00283000', 'SQ'],
  SharedFunctionalGroupsSequence: ['x52009229', 'SQ'],
  PerFrameFunctionalGroupsSequence: ['x52009230', 'SQ'],
} as const;

/** DICOM keyword of an attribute. */
export type Keyword = keyof typeof ATTRIBUTES;

/** Attributes of patient, study and frame of reference, which a segmentation has in common with its image. */
export const COMMON_WITH_SEG = [
  'PatientName',
  'PatientID',
  'PatientBirthDate',
  'PatientSex',
  'StudyInstanceUID',
  'StudyDate',
  'StudyTime',
  'StudyID',
  'AccessionNumber',
  'ReferringPhysicianName',
  'FrameOfReferenceUID',
  'PositionReferenceIndicator',
] as const satisfies readonly Keyword[];

/** Return the tag of an attribute as a number, such as 0x00100010. */
export function tagOf(keyword: Keyword): number {
  return Number.parseInt(ATTRIBUTES[keyword][0].slice(1), 16);
}
