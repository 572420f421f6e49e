"""Small images in files of several formats, tilted in space, and a DICOM series."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
import SimpleITK as sitk

from nninteractive_ws.demo.phantom import make_phantom

#: The script for real Slicer code. It runs in a process, because it exits if slicer-core is missing.
SLICER_FILES = Path(__file__).with_name("slicer_files.py")

SHAPE = (40, 36, 30)
SPACING = (4.0, 4.5, 5.0)
ORIGIN = (-81.5, 12.25, 800.0)
#: A voxel in the center of the phantom's liver.
INSIDE = (12, 17, 15)
#: Rotated about two axes, like a patient.
OBLIQUE = np.linalg.qr(np.array([[1.0, 0.28, -0.1], [-0.28, 1.0, 0.2], [0.1, -0.2, 1.0]]))[0]
OBLIQUE = OBLIQUE * np.sign(np.diag(OBLIQUE))


def voxels(seed: int = 0) -> npt.NDArray[np.int16]:
    return make_phantom(seed, SHAPE, (9.0, 9.0, 10.0)).image


def write_image(path: Path, seed: int = 0, direction: npt.NDArray[np.float64] = OBLIQUE) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels(seed).transpose())
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return sitk.ReadImage(str(path))


def write_series(folder: Path, seed: int = 0) -> None:
    """Write an oblique CT series, whose file names and instance numbers are not in the order of the slices."""
    folder.mkdir(parents=True)
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    volume = voxels(seed)
    for k in range(SHAPE[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
        slice_.FrameOfReferenceUID = frame_of_reference
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate, slice_.PatientSex = "Phantom^A", "P1", "", "O"
        slice_.StudyDate, slice_.StudyTime, slice_.StudyID, slice_.AccessionNumber = "20260101", "120000", "1", ""
        slice_.ReferringPhysicianName, slice_.Manufacturer, slice_.Modality = "", "", "CT"
        slice_.SeriesNumber, slice_.InstanceNumber, slice_.PositionReferenceIndicator = 2, SHAPE[2] - k, ""
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.ImageOrientationPatient = [f"{x:.10f}" for x in (*OBLIQUE[:, 0], *OBLIQUE[:, 1])]
        slice_.ImagePositionPatient = [f"{x:.10f}" for x in ORIGIN + OBLIQUE[:, 2] * k * SPACING[2]]
        slice_.PixelSpacing, slice_.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        slice_.Rows, slice_.Columns = SHAPE[1], SHAPE[0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleIntercept, slice_.RescaleSlope, slice_.RescaleType = 0, 1, "HU"
        slice_.PixelData = np.ascontiguousarray(volume[:, :, k].T).tobytes()
        slice_.save_as(folder / f"{(7 * k) % SHAPE[2]:03}.dcm", enforce_file_format=True)


def write_table(path: Path, *rows: str) -> Path:
    """Write a CSV file with all columns."""
    path.write_text("\n".join(("image,segment,prompt,ijk,lps,file,polarity", *rows)) + "\n")
    return path


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))
