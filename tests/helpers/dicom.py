"""Edited DICOM series, and multi-frame files from a series."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

Edit = Callable[[Any, int], object]


def sorted_slices(folder: Path) -> list[Path]:
    """Return the files of a series along its normal, with pydicom only."""

    def along(file: Path) -> float:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        row, column = np.reshape([float(x) for x in header.ImageOrientationPatient], (2, 3))
        return float(np.cross(row, column) @ [float(x) for x in header.ImagePositionPatient])

    return sorted((file for file in folder.iterdir() if file.is_file()), key=along)


def edited(series: Path, folder: Path, edit: Edit) -> Path:
    """Copy a series. ``edit``: changes slice k, which is omitted if it returns False."""
    folder.mkdir(parents=True)
    for k, file in enumerate(sorted_slices(series)):
        slice_ = pydicom.dcmread(file)
        if edit(slice_, k) is not False:
            slice_.save_as(folder / file.name)
    return folder


def set_pixels(slice_: Any, pixels: Any) -> None:
    """Replace the pixels (row, column) of a slice, int16 or uint16."""
    slice_.PixelRepresentation = int(pixels.dtype.kind == "i")
    slice_.PixelData = np.ascontiguousarray(pixels).tobytes()


def enhanced(
    series: Path, path: Path, edit: Edit = lambda _frame, _k: None, order: Sequence[int] | None = None
) -> Path:
    """Write a series as a multi-frame (enhanced) CT. ``edit``: as in :func:`edited`. ``order``: of the frames."""
    slices = [pydicom.dcmread(file) for file in sorted_slices(series)]
    frames = [s for k, s in enumerate(slices) if edit(s, k) is not False]
    frames = [frames[k] for k in (order or range(len(frames)))]
    image = pydicom.dcmread(sorted_slices(series)[0])
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del image[name]
    for name in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        del image[name]
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.NumberOfFrames = len(frames)
    image.PixelData = b"".join(frame.PixelData for frame in frames)
    image.SharedFunctionalGroupsSequence = [Dataset()]
    image.PerFrameFunctionalGroupsSequence = [_groups(frame) for frame in frames]
    image.save_as(path)
    return path


def _groups(frame: Any) -> Dataset:
    groups = Dataset()
    for sequence, names in (
        ("PlanePositionSequence", ("ImagePositionPatient",)),
        ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
        ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
        ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept", "RescaleType")),
        ("FrameContentSequence", ("TemporalPositionIndex",)),
    ):
        item = Dataset()
        for name in names:
            if name in frame:
                item[name] = frame[name]
        setattr(groups, sequence, [item])
    return groups
