"""The slices of a DICOM series, or the frames of multi-frame files, as a volume."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.read_options import time_index
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.volume import Affine

Vector = npt.NDArray[np.float64]

#: Tolerance of the distance between slices: relative to it, and in millimeters, because some scanners round positions
#: to 0.1 mm.
_SPACING_TOLERANCE = 0.05
_ROUNDING_MM = 0.1
#: Slices nearer to each other than this are at the same position.
_SAME_POSITION_MM = 0.01
#: Tolerance of direction cosines, which are often rounded to few digits.
_COSINE_TOLERANCE = 1e-3
#: Tolerance of the length of a direction, and of the cosine between rows and columns.
_NORM_TOLERANCE = 0.01
#: Relative tolerance of the distance of pixels.
_PIXEL_TOLERANCE = 1e-3
#: Maximum number of values in an error message.
_MAX_VALUES = 8

#: Attributes that tell time points, echoes and other repetitions of a stack apart, in the order in which they are
#: tried. The first ones are of multi-frame files.
_REPETITIONS = (
    "TemporalPositionIndex", "EffectiveEchoTime", "FrameAcquisitionNumber", "FrameType", "StackID",
    "TemporalPositionIdentifier", "EchoTime", "DiffusionBValue", "TriggerTime", "AcquisitionNumber", "ImageType",
    "AcquisitionDateTime", "FrameAcquisitionDateTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """A slice, without its pixels: frame ``index`` of ``file``.

    ``row``, ``column``: unit vectors along a row and down a column of pixels. ``pixel``: the distances of rows and of
    columns. ``repetition``: the values of :data:`_REPETITIONS` that it has.
    """

    file: Path
    index: int
    size: tuple[int, int]
    position: Vector
    row: Vector
    column: Vector
    pixel: tuple[float, float]
    thickness: float
    rescale: tuple[float, float]
    repetition: dict[str, str]
    localizer: bool
    instance: str

    @property
    def normal(self) -> Vector:
        return np.cross(self.row, self.column)


def read_stack(
    files: Sequence[Path], time: int | None, *, resample: bool
) -> tuple[npt.NDArray[Any], Affine, list[Path], list[str]]:
    """Read a series. Return the voxels (i, j, k), the affine from them to LPS, its files along k, and notes.

    Columns of pixels are i, rows are j, and k is along the normal. The affine can be sheared. Raises BadImage.
    """
    slices = [slice_ for file in files for slice_ in _slices(file)]
    slices, notes = _without_copies(slices)
    slices = _without_localizers(slices, notes)
    _check_same(slices)
    slices = _one_time(sorted(slices, key=_along_normal), time)
    positions = np.array([slice_.position for slice_ in slices])
    voxels = _pixels(slices)
    uneven = len(slices) > 1 and _is_uneven(positions)
    if uneven and not resample:
        distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        raise BadImage(
            f"The slices in {files[0].parent} are {distances.min():.3f} to {distances.max():.3f} mm apart. Expected "
            "equal distances. Slices are missing, or the series has several volumes. Copy the missing files, or use "
            "--resample to interpolate between the slices."
        )
    if uneven:
        from nninteractive_ws.files.straighten import even_out

        along = (positions - positions[0]) @ slices[0].normal
        voxels, step = even_out(voxels, along)
        last = positions[0] + (positions[-1] - positions[0]) * step * (voxels.shape[2] - 1) / along[-1]
        positions = np.array([positions[0], last])
        notes.append(
            f"The slices are not evenly spaced. They were interpolated to a distance of {step:g} mm, and slice indices "
            "count these."
        )
    return voxels, _affine(slices[0], positions, voxels.shape[2]), list(dict.fromkeys(s.file for s in slices)), notes


def _slices(file: Path) -> list[Slice]:
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        return [_slice(file, index, header, get) for index, get in enumerate(_frames(file, header))]
    except BadImage:
        raise
    except Exception as e:  # pydicom raises many kinds for damaged bytes
        raise BadImage(f"{file} has a damaged DICOM header ({reason(e)}). Copy or export it again.") from e


def _frames(file: Path, header: pydicom.Dataset) -> Iterator[Callable[[str], Any]]:
    """Yield for each frame the function that returns its attributes by name. Raises BadImage."""
    count = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        if count > 1:
            raise BadImage(f"{file} has several frames without positions, like ultrasound or a film. Expected slices.")
        yield header.get
        return
    if len(groups) != count:
        raise BadImage(f"{file} has {count} frames, but the positions of {len(groups)}. Copy or export it again.")
    shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    for frame in groups:
        yield partial(_in_groups, (frame, shared[0], header))


def _in_groups(places: Sequence[pydicom.Dataset], name: str) -> Any:
    """Return an attribute of a frame: of its own functional groups, of the shared ones, or of the file."""
    for place in places[:2]:
        for group in place:
            if group.VR == "SQ" and len(group.value) and name in group.value[0]:
                return group.value[0][name].value
    return places[2].get(name)


def _slice(file: Path, index: int, header: pydicom.Dataset, get: Callable[[str], Any]) -> Slice:
    position, orientation, pixel = (
        get(name) for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if not position or not orientation or not pixel:
        raise BadImage(f"{file} has no position, orientation or pixel distance. Expected slices of a volume.")
    place = np.array([float(x) for x in position]).reshape(3)
    directions = np.array([float(x) for x in orientation]).reshape(2, 3)
    distances = np.array([float(x) for x in pixel]).reshape(2)
    _check_geometry(file, place, directions, distances)
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise BadImage(f"{file} is a color image. Expected one value per pixel.")
    repetition = {name: str(value) for name in _REPETITIONS if (value := get(name)) not in (None, "")}
    kind = get("FrameType") or get("ImageType") or []
    if "MOSAIC" in kind:
        raise BadImage(
            f"{file} is a mosaic: one picture of all slices. Convert the series, for instance with dcm2niix."
        )
    return Slice(
        file,
        index,
        (int(header.Rows), int(header.Columns)),
        place,
        directions[0] / np.linalg.norm(directions[0]),
        directions[1] / np.linalg.norm(directions[1]),
        (distances[0], distances[1]),
        abs(float(get("SpacingBetweenSlices") or get("SliceThickness") or 1)),
        (_number(get("RescaleSlope"), 1), _number(get("RescaleIntercept"), 0)),
        repetition,
        "LOCALIZER" in kind,
        str(header.get("SOPInstanceUID") or file),
    )


def _check_geometry(file: Path, position: Vector, directions: Vector, distances: Vector) -> None:
    """Raise BadImage unless these numbers place the pixels of a slice. ``directions``: of a row, and of a column."""
    values = np.concatenate([position, directions.ravel(), distances])
    norms = np.linalg.norm(directions, axis=1)
    if not np.isfinite(values).all() or distances.min() <= 0 or abs(norms - 1).max() > _NORM_TOLERANCE:
        raise BadImage(
            f"{file} has an invalid position, orientation or pixel distance: {values.tolist()}. Export it again."
        )
    if abs(directions[0] @ directions[1]) > _NORM_TOLERANCE:
        raise BadImage(
            f"{file} has rows and columns that are not perpendicular: {directions.tolist()}. Export it again."
        )


def _number(value: Any, default: float) -> float:
    number = default if value in (None, "") else float(value)
    if not np.isfinite(number):
        raise ValueError(f"a rescale slope or intercept is {number}")
    return number


def _same_orientation(a: Slice, b: Slice) -> bool:
    return bool(max(abs(a.row - b.row).max(), abs(a.column - b.column).max()) < _COSINE_TOLERANCE)


#: What all slices of a volume have in common: its name, and whether it is the same in two slices.
_COMMON: tuple[tuple[str, Callable[[Slice, Slice], bool]], ...] = (
    ("numbers of rows and columns", lambda a, b: a.size == b.size),
    ("orientations", _same_orientation),
    ("pixel distances", lambda a, b: bool(np.allclose(a.pixel, b.pixel, rtol=_PIXEL_TOLERANCE))),
)


def _without_copies(slices: list[Slice]) -> tuple[list[Slice], list[str]]:
    """Drop copies of files. Some anonymizers give every file the same UID, so that alone is no copy."""
    unique = {(s.instance, s.index, *s.position, *s.repetition.items()): s for s in slices}
    copies = len(slices) - len(unique)
    return list(unique.values()), [f"{copies} copies of slices were skipped."] if copies else []


def _without_localizers(slices: list[Slice], notes: list[str]) -> list[Slice]:
    others = [slice_ for slice_ in slices if not slice_.localizer]
    if not others or len(others) == len(slices):
        return slices
    notes.append(f"{len(slices) - len(others)} localizers in the series were skipped.")
    return others


def _check_same(slices: Sequence[Slice]) -> None:
    """Raise BadImage unless all slices have the size, the orientation and the pixel distances of most."""
    for name, same in _COMMON:
        others = [slice_ for slice_ in slices if not same(slices[0], slice_)]
        if len(others) > len(slices) / 2:  # the first one is the odd one
            others = [slice_ for slice_ in slices if same(slices[0], slice_)]
        if others:
            raise BadImage(
                f"The slices in {slices[0].file.parent} have different {name}: {len(others)} of {len(slices)} differ "
                f"from the others, such as {others[0].file.name}. Move those to a folder of their own."
            )


def _along_normal(slice_: Slice) -> float:
    return float(slice_.position @ slice_.normal)


def _one_time(slices: list[Slice], time: int | None) -> list[Slice]:
    """Return the slices of one time point, from slices sorted by position. Raises BadImage."""
    places = np.cumsum([0, *(np.diff([_along_normal(s) for s in slices]) > _SAME_POSITION_MM)])
    count = int(places[-1]) + 1
    folder = slices[0].file.parent
    if count == len(slices):
        if time is not None:
            time_index(time, 1, f"The series in {folder} has one time point.")
        return slices
    for name in _REPETITIONS:
        groups: dict[str, list[tuple[int, Slice]]] = {}
        for place, slice_ in zip(places.tolist(), slices, strict=True):
            groups.setdefault(slice_.repetition.get(name, ""), []).append((place, slice_))
        # The last time point may be incomplete, where the acquisition was stopped.
        complete = {value: group for value, group in groups.items() if len(group) == count}
        if len(groups) > 1 and complete and all(_is_distinct(group) for group in groups.values()):
            return _choose_time(complete, name, time, folder)
    raise BadImage(
        f"The series in {folder} has {len(slices)} slices at {count} positions. They are not complete "
        "repetitions that could be told apart. Remove duplicate files, or split the series."
    )


def _is_distinct(group: list[tuple[int, Slice]]) -> bool:
    """Whether all slices are at different positions."""
    return len({place for place, _ in group}) == len(group)


def _choose_time(groups: dict[str, list[tuple[int, Slice]]], name: str, time: int | None, folder: Path) -> list[Slice]:
    values = sorted(groups, key=_by_number)
    shown = ", ".join(values[:_MAX_VALUES]) + (", ..." if len(values) > _MAX_VALUES else "")
    found = f"The series in {folder} has {len(values)} volumes at the same place, which differ in {name} ({shown})."
    return [slice_ for _, slice_ in groups[values[time_index(time, len(values), found)]]]


def _by_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return 0.0, text


def _is_uneven(positions: npt.NDArray[np.float64]) -> bool:
    steps = np.diff(positions, axis=0)
    step = steps.mean(0)
    length = float(np.linalg.norm(step))
    tolerance = max(_SPACING_TOLERANCE * length, min(_ROUNDING_MM, length / 2))
    return bool(np.linalg.norm(steps - step, axis=1).max() > tolerance)


def _affine(first: Slice, positions: npt.NDArray[np.float64], count: int) -> Affine:
    step = first.normal * first.thickness if count == 1 else (positions[-1] - positions[0]) / (count - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([first.row * first.pixel[1], first.column * first.pixel[0], step, positions[0]], axis=1)
    return affine


def _pixels(slices: Sequence[Slice]) -> npt.NDArray[Any]:
    """Return the voxels (i, j, k) in real-world values, each slice with its own slope and intercept."""
    loaded: list[npt.NDArray[Any] | None] = [None] * len(slices)
    by_file: dict[Path, list[int]] = {}
    for k, slice_ in enumerate(slices):
        by_file.setdefault(slice_.file, []).append(k)
    for file, ks in by_file.items():
        for k, frame in zip(ks, _load(file, [slices[k] for k in ks]), strict=True):
            loaded[k] = frame
    return np.stack([frame for frame in loaded if frame is not None]).transpose(2, 1, 0)


def _load(file: Path, slices: Sequence[Slice]) -> list[npt.NDArray[Any]]:
    """Return slices of a file (row, column) in real-world values. Raises BadImage."""
    try:
        dataset = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:  # an old file without a preamble
            implicit = dataset.original_encoding[0]
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        pixels = dataset.pixel_array
        frames = pixels if pixels.ndim == 3 else pixels[None]
        return [_rescaled(frames[slice_.index], slice_, dataset) for slice_ in slices]
    except Exception as e:  # pydicom and its decoders raise many kinds for damaged bytes
        raise BadImage(f"The pixels of {file} cannot be read ({reason(e)}). Copy or export it again.") from e


# int16 before uint16, so that the slices of a CT have one type.
_WHOLE_TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)


def _rescaled(pixels: npt.NDArray[Any], slice_: Slice, dataset: pydicom.Dataset) -> npt.NDArray[Any]:
    """Apply the modality transformation. Whole numbers stay whole, in the smallest type that holds them."""
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(pixels, dataset))
    slope, intercept = slice_.rescale
    if pixels.dtype.kind == "f" or slope % 1 or intercept % 1:
        return (pixels * np.float64(slope) + intercept).astype(np.float32)
    values = pixels.astype(np.int64) * int(slope) + int(intercept)
    smallest, largest = values.min(), values.max()
    fitting = (t for t in _WHOLE_TYPES if np.iinfo(t).min <= smallest and largest <= np.iinfo(t).max)
    return values.astype(next(fitting))
