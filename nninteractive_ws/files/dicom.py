"""DICOM: a series in, a segmentation object (SEG) out."""

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

#: Steps between slices may differ by this part of a step: some scanners round positions to a tenth of a millimetre.
_UNEVEN = 0.05
#: The cosine of the angle that the stack of slices may lean by; about a degree.
_UPRIGHT = 0.9998


def read_series(folder: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    """Read the one DICOM series in a folder: the image, and its files from the first slice to the last.

    Raises BadImage, also where the slices are no even, upright stack: their voxels would lie at wrong places.
    """
    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"{len(series)} series ({', '.join(series)})" if series else "no DICOM series"
        raise BadImage(f"The folder {folder} holds {found}; one is needed.")
    files = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    if len(files) > 1:
        _check_stack(folder, files)
    reader.SetFileNames(files)
    try:
        return reader.Execute(), tuple(files)
    except RuntimeError as e:
        reason = str(e).strip().splitlines()[-1]
        raise BadImage(f"The DICOM series in {folder} could not be read: {reason}") from e


def _check_stack(folder: Path, files: Sequence[str]) -> None:
    tags = ["ImagePositionPatient", "ImageOrientationPatient"]
    headers = [pydicom.dcmread(file, specific_tags=tags, force=True) for file in files]
    if not all(header.get(tag) for header in headers for tag in tags):
        raise BadImage(f"The DICOM series in {folder} does not say where its slices are.")
    places = [tuple(float(x) for x in header.ImagePositionPatient) for header in headers]
    if twice := len(places) - len(set(places)):
        raise BadImage(
            f"The series in {folder} has {twice} slices where others are already: files that are there twice, or "
            "several volumes."
        )
    steps = np.diff(places, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    step = steps.mean(0)
    if np.linalg.norm(steps - step, axis=1).max() > _UNEVEN * np.linalg.norm(step):
        raise BadImage(
            f"The slices in {folder} are {lengths.min():.3f} to {lengths.max():.3f} mm apart: some are missing, or "
            "there are several volumes."
        )
    row, column = np.reshape([float(x) for x in headers[0].ImageOrientationPatient], (2, 3))
    if abs(np.dot(np.cross(row, column), step)) < _UPRIGHT * np.linalg.norm(step):
        raise BadImage(f"The slices in {folder} are shifted against each other (a tilted gantry).")


def write_seg(
    path: Path,
    masks: Mapping[str, Mask],
    files: Sequence[str],
    colors: Mapping[str, tuple[float, float, float]],
    model: str,
) -> None:
    """Write segments of a series as a DICOM SEG of the same patient and study. ``masks``: (i, j, k), k along ``files``.

    ``colors``: red, green and blue from 0 to 1. ``model``: is named as the algorithm. Raises BadImage.
    """
    program = version("nninteractive-ws")
    algorithm = hd.AlgorithmIdentificationSequence(model, codes.cid7162.ArtificialIntelligence, program)
    try:
        described = [
            hd.seg.SegmentDescription(
                number,
                name,
                # The table does not say what a segment is; Slicer calls such a segment tissue too.
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
            described,
            series_instance_uid=hd.UID(),
            series_number=300,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="nninteractive-ws",
            manufacturer_model_name="nninteractive-ws",
            software_versions=program,
            device_serial_number="0",
            series_description="nnInteractive",
            specific_character_set="ISO_IR 192",  # UTF-8: segments have names in any language
        )
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        # What highdicom raises where the headers of the series lack something.
        raise BadImage(f"No DICOM SEG can be made of the series in {Path(files[0]).parent}: {e}") from e
    segmentation.save_as(path)


def _read_header(file: str) -> pydicom.FileDataset:
    """All but the pixels, with names that can be written in another character set."""
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    header.decode()
    return header
