"""Read a DICOM series, and write a DICOM segmentation object (SEG)."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.masks import Mask

#: Tolerance of the distance between slices, relative to it. Some scanners round positions to 0.1 mm.
_SPACING_TOLERANCE = 0.05
#: Minimum cosine of the angle between the stack and the normal of its slices; about one degree.
_MIN_COSINE = 0.9998


def read_series(folder: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    """Read the only DICOM series in a folder. Return the image, and the files from the first slice to the last.

    Raises BadImage, also if the slices are not an evenly spaced stack along their normal, because their voxels would
    be at wrong positions.
    """
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"{len(series)} DICOM series ({', '.join(series)})" if series else "no DICOM series"
        raise BadImage(f"The folder {folder} contains {found}. Expected exactly one.")
    files = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    if len(files) > 1:
        _check_stack(folder, files)
    reader.SetFileNames(files)
    try:
        return reader.Execute(), tuple(files)
    except RuntimeError as e:
        reason = str(e).strip().splitlines()[-1]
        raise BadImage(f"The DICOM series in {folder} cannot be read. ITK reports: {reason}") from e


def _check_stack(folder: Path, files: Sequence[str]) -> None:
    tags = ["ImagePositionPatient", "ImageOrientationPatient"]
    headers = [pydicom.dcmread(file, specific_tags=tags, force=True) for file in files]
    if not all(header.get(tag) for header in headers for tag in tags):
        raise BadImage(f"The DICOM series in {folder} has slices without position or orientation in their headers.")
    positions = [tuple(float(x) for x in header.ImagePositionPatient) for header in headers]
    if duplicates := len(positions) - len(set(positions)):
        raise BadImage(
            f"The DICOM series in {folder} has {duplicates} slices at positions of other slices. Remove duplicate "
            "files, or split the series if it has several volumes."
        )
    steps = np.diff(positions, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    step = steps.mean(0)
    if np.linalg.norm(steps - step, axis=1).max() > _SPACING_TOLERANCE * np.linalg.norm(step):
        raise BadImage(
            f"The slices in {folder} are {lengths.min():.3f} to {lengths.max():.3f} mm apart. Expected equal "
            "distances. Slices are missing, or the series has several volumes."
        )
    row, column = np.reshape([float(x) for x in headers[0].ImageOrientationPatient], (2, 3))
    if abs(np.dot(np.cross(row, column), step)) < _MIN_COSINE * np.linalg.norm(step):
        raise BadImage(
            f"The slices in {folder} are sheared against each other, as with a tilted gantry. Resample the series to "
            "an orthogonal grid."
        )


def write_seg(
    path: Path,
    masks: Mapping[str, Mask],
    files: Sequence[str],
    colors: Mapping[str, tuple[float, float, float]],
    model: str,
) -> None:
    """Write segments of a series as a DICOM SEG of the same patient and study. ``masks``: (i, j, k), k along ``files``.

    ``colors``: red, green and blue from 0 to 1. ``model``: the name of the algorithm. Raises BadImage.
    """
    program = version("nninteractive-ws")
    algorithm = hd.AlgorithmIdentificationSequence(model, codes.cid7162.ArtificialIntelligence, program)
    try:
        descriptions = [
            hd.seg.SegmentDescription(
                number,
                name,
                # The anatomy of a segment is unknown. 3D Slicer uses the generic code Tissue too.
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Tissue,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
                algorithm_identification=algorithm,
                display_color=hd.color.CIELabColor.from_rgb(*(round(255 * c) for c in colors[name])),
            )
            for number, name in enumerate(masks, start=1)
        ]
        segmentation = hd.seg.Segmentation(
            list(map(_read_header, files)),
            np.stack([mask.transpose() for mask in masks.values()], axis=-1).astype(np.uint8),
            hd.seg.SegmentationTypeValues.BINARY,
            descriptions,
            series_instance_uid=hd.UID(),
            series_number=300,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="nninteractive-ws",
            manufacturer_model_name="nninteractive-ws",
            software_versions=program,
            device_serial_number="0",
            series_description="nnInteractive",
            specific_character_set="ISO_IR 192",  # UTF-8, because segment names can be in any language
        )
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        # highdicom raises these if attributes are missing in the headers of the series.
        raise BadImage(
            f"A DICOM SEG for the series in {Path(files[0]).parent} cannot be written. highdicom reports: {e}"
        ) from e
    segmentation.save_as(path)


def _read_header(file: str) -> pydicom.FileDataset:
    """Read a header without pixels. Decode its text, so that it can be written in another character set."""
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    header.decode()
    return header
