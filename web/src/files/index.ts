// Reading and writing image files.
//
//     const files = new ImageFiles(new Worker(workerUrl, { type: 'module' })); // src/files/worker.ts
//     const found = await files.find(droppedFiles);                           // one for each image or DICOM series
//     const volume = await found[0].open((share) => ...);
//     const blob = await saveSegNrrd(volume, segments);
export { ImageFiles } from './imageFiles';
export { saveDicomSeg } from './dicomSeg';
export { saveNifti } from './niftiWriter';
export { saveSegNrrd } from './segNrrd';
export * from './volume';
