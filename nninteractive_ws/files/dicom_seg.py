"""Write DICOM segmentation objects (SEG) by highdicom."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.volume import Affine
from nninteractive_ws.masks import Mask

#: Attributes of patient and study that every object has, and that may be empty (type 2).
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
_SEXES = ("M", "F", "O")


def write_seg(
    path: Path,
    masks: Mapping[str, Mask],
    ijk_to_lps: Affine,
    files: Sequence[str],
    colors: Mapping[str, tuple[float, float, float]],
    model: str,
) -> None:
    """Write segments of a DICOM image as an object of the same patient and study.

    ``masks``: (i, j, k). ``files``: those of the image. ``colors``: red, green and blue from 0 to 1. ``model``: the
    name of the algorithm. Raises BadImage, if the image lacks an attribute.
    """
    _segmentation(masks, ijk_to_lps, files, colors, model).save_as(path)


def check_seg(ijk_to_lps: Affine, shape: Sequence[int], files: Sequence[str]) -> None:
    """Raise BadImage if no segmentation object can be written for an image: before work on it is lost."""
    mask = np.zeros(shape, bool)
    mask[0, 0, 0] = True
    _segmentation({"segment": mask}, ijk_to_lps, files, {"segment": (1.0, 0.0, 0.0)}, "nnInteractive")


def _segmentation(
    masks: Mapping[str, Mask],
    ijk_to_lps: Affine,
    files: Sequence[str],
    colors: Mapping[str, tuple[float, float, float]],
    model: str,
) -> hd.seg.Segmentation:
    program = version("nninteractive-ws")
    algorithm = hd.AlgorithmIdentificationSequence(model, codes.cid7162.ArtificialIntelligence, program)
    thickness = f"{np.linalg.norm(ijk_to_lps[:3, 2]):.6g}"
    # The axes of highdicom's volumes are slice, row and column.
    kji_to_lps = ijk_to_lps[:, [2, 1, 0, 3]]
    segments = np.stack([mask.transpose() for mask in masks.values()], axis=-1).astype(np.uint8)
    try:
        volume = hd.Volume(segments, kji_to_lps, "PATIENT", channels={"SegmentNumber": list(range(1, len(masks) + 1))})
        return hd.seg.Segmentation(
            [_read_header(file, thickness) for file in files],
            volume,
            hd.seg.SegmentationTypeValues.BINARY,
            [
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
            ],
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
            f"A DICOM SEG for the series in {Path(files[0]).parent} cannot be written. highdicom reports: {reason(e)}. "
            "Choose another format, such as .seg.nrrd."
        ) from e


def _read_header(file: str, thickness: str) -> pydicom.FileDataset:
    """Read a header without pixels, and fill in what is empty. ``thickness``: the distance of slices in millimeters."""
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    header.decode()  # its text can then be written in another character set
    _fill_in(header)
    measures = header
    if "PerFrameFunctionalGroupsSequence" in header:
        _share_groups(header)
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if not measures.get("SliceThickness"):
        measures.SliceThickness = thickness
    measures.SpacingBetweenSlices = thickness  # that of the series can be wrong
    return header


def _share_groups(header: pydicom.Dataset) -> None:
    """Share what all frames have in common. highdicom looks for it there only."""
    if not header.get("SharedFunctionalGroupsSequence"):
        header.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    shared, first = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[0]
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if name not in shared:
            shared[name] = first[name]


def _fill_in(header: pydicom.Dataset) -> None:
    """Replace missing attributes that may be empty, and invalid values that anonymizers leave, by empty ones."""
    for name in _MAY_BE_EMPTY:
        if name not in header or not _is_valid(name, str(header[name].value or "")):
            setattr(header, name, "")


def _is_valid(name: str, value: str) -> bool:
    if not value:
        return True
    if name == "PatientSex":
        return value in _SEXES
    kinds: Mapping[str, type] = {"DA": DA, "TM": TM}
    kind = kinds.get(dictionary_VR(name))
    if kind is None:
        return True
    try:
        return kind(value) is not None
    except ValueError:
        return False
