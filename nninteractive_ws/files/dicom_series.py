"""Find the DICOM image that a path means: a folder with a series, one file of it, or a multi-frame file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.uid import MediaStorageDirectoryStorage

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.read_options import SeveralVolumes
from nninteractive_ws.files.reason import reason

#: What is read of each file, to tell the series apart.
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType",
    "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "ImagePositionPatient", "SharedFunctionalGroupsSequence",
]  # fmt: skip
#: Objects with the attributes of images that are no images of a patient.
_NOT_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")
_MAX_LISTED = 20


@dataclass
class Series:
    """The files of a series in a folder.

    ``frames``: the number of slices, in single- or multi-frame files. ``is_volume``: whether it has more than
    localizers and pictures without a position.
    """

    uid: str
    number: int = 0
    modality: str = ""
    description: str = ""
    frames: int = 0
    is_volume: bool = False
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        slices = f"{self.frames} slice{'s' * (self.frames != 1)}"
        return ", ".join(filter(None, (self.modality, self.description, slices)))


@dataclass(frozen=True)
class _Header:
    """The attributes that tell series apart. ``is_slice``: whether it is an image with a position, and no localizer."""

    file: Path
    uid: str
    number: int
    modality: str
    description: str
    frames: int
    is_image: bool
    is_slice: bool


def find_series(path: Path, number: int | None) -> tuple[Series, list[str]]:
    """Return the series of a folder or of a file, and notes for the user.

    ``number``: which one of a folder with several, from 1. Raises BadImage, with a list of the series if one of them
    has to be chosen.
    """
    folder = path.parent if is_directory(path) else path
    if folder.is_dir():
        headers, damaged = _scan(folder)
        return _choose(folder, _series_of(headers), damaged, number)
    if number is not None:
        raise BadImage(f"{path} is a single file. Give its folder to choose a series by its number.")
    header = _header(path)
    if header is None:
        raise BadImage(f"{path} is not a DICOM file, or a damaged one. Expected a file of a DICOM series.")
    if not header.is_image:
        kind = header.modality or "of unknown kind"
        raise BadImage(f"{path} is a DICOM object without an image ({kind}). Expected a slice.")
    if header.frames > 1:
        return _series_of([header])[0], []
    headers, damaged = _scan(path.parent, subfolders=False)
    series = next(s for s in _series_of(headers) if s.uid == header.uid)
    notes = _note_on_damaged(damaged)
    if len(series.files) > 1:
        notes.append(f"{path.name} is one of {len(series.files)} files of a series. The whole series is used.")
    return series, notes


def is_multi_frame(file: Path) -> bool:
    """Whether a DICOM file has several slices, so that it is read without the other files of its folder."""
    try:
        header = _header(file)
    except BadImage:
        return False
    return header is not None and header.frames > 1


def is_directory(file: Path) -> bool:
    """Whether a file is a DICOMDIR, which stands for its folder."""
    return file.name.upper() == "DICOMDIR"


def _scan(folder: Path, *, subfolders: bool = True) -> tuple[list[_Header], int]:
    """Return the images in a folder, or else in its subfolders, and the number of damaged files."""
    images = []
    damaged = 0
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        try:
            header = _header(file)
        except BadImage:
            damaged += 1
            continue
        if header is not None and header.is_image:
            images.append(header)
    if images or not subfolders:
        return images, damaged
    # A series may be spread over several subfolders, as on some exported discs.
    below = [_scan(child) for child in sorted(folder.iterdir()) if child.is_dir()]
    return [header for found, _ in below for header in found], damaged + sum(count for _, count in below)


def _note_on_damaged(count: int) -> list[str]:
    return [f"{count} empty or damaged files were skipped. Slices may be missing."] if count else []


def _header(file: Path) -> _Header | None:
    """Return the header of a file, or None if it is not DICOM. Raises BadImage if it is damaged, and OSError."""
    with file.open("rb") as opened:
        start = opened.read(132)
    if not start:
        raise BadImage(f"{file} is empty (0 bytes).")
    # Some old files have no preamble. Without one, nearly any bytes can be read as some attributes.
    without_preamble = start[128:] != b"DICM"
    if without_preamble and start[:2] not in (b"\x02\0", b"\x08\0"):
        return None
    try:
        dataset = pydicom.dcmread(file, specific_tags=_TAGS, stop_before_pixels=True, force=without_preamble)
        kind = dataset.get("SOPClassUID")
        stored_kind = dataset.file_meta.get("MediaStorageSOPClassUID")
        is_directory = stored_kind == MediaStorageDirectoryStorage
        should_have_rows = any(k.name.endswith("Image Storage") for k in (kind, stored_kind) if k)
        if kind and (dataset.get("Rows") or not should_have_rows):
            return _parse(file, dataset)
        # Some programs that anonymize files remove the class of an image, or its value.
        if not kind and dataset.get("Rows") and not without_preamble and not is_directory:
            return _parse(file, dataset)
    except Exception as e:  # pydicom raises many kinds for damaged bytes
        if without_preamble:
            return None
        raise BadImage(f"{file} is damaged ({reason(e)}).") from e
    if without_preamble or is_directory:
        return None
    raise BadImage(f"{file} is damaged: it ends within its header.")


def _parse(file: Path, dataset: pydicom.Dataset) -> _Header:
    modality = str(dataset.get("Modality") or "")
    number = _series_number(dataset)
    # Without a UID, the files of a folder with the same number are a series. Those of two folders may be two patients.
    uid = str(dataset.get("SeriesInstanceUID") or f"{number} in {file.parent}")
    is_placed = bool(dataset.get("ImagePositionPatient") or dataset.get("SharedFunctionalGroupsSequence"))
    return _Header(
        file,
        uid,
        number,
        modality,
        str(dataset.get("SeriesDescription") or ""),
        int(dataset.get("NumberOfFrames") or 1),
        bool(dataset.get("Rows") and dataset.get("Columns") and modality not in _NOT_IMAGES),
        is_placed and "LOCALIZER" not in (dataset.get("ImageType") or []),
    )


def _series_number(dataset: pydicom.Dataset) -> int:
    """Return the number of the series; 0 if it has none, or one that is not a number."""
    try:
        return int(dataset.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        return 0


def _series_of(headers: Iterable[_Header]) -> list[Series]:
    """Group files by series, in the order of their numbers."""
    found: dict[str, Series] = {}
    for header in headers:
        series = found.setdefault(header.uid, Series(header.uid))
        series.number, series.modality, series.description = header.number, header.modality, header.description
        series.frames += header.frames
        series.is_volume |= header.is_slice
        series.files.append(header.file)
    return sorted(found.values(), key=lambda s: (s.number, s.uid))


def _choose(folder: Path, found: Sequence[Series], damaged: int, number: int | None) -> tuple[Series, list[str]]:
    if not found:
        files = f"{damaged} empty or damaged files" if damaged else "no DICOM image"
        raise BadImage(f"The folder {folder} contains {files}. Expected a DICOM series.")
    notes = _note_on_damaged(damaged)
    if number is not None:
        if not 1 <= number <= len(found):
            raise BadImage(f"The folder {folder} has no series {number}. It contains {_list(found)}")
        return found[number - 1], notes
    volumes = [series for series in found if series.is_volume] or found
    if len(volumes) > 1:
        raise SeveralVolumes(
            f"The folder {folder} contains {_list(found)}",
            "Choose one by its number (--series N, or the column series), or give the folder of one series.",
        )
    if len(found) > 1:
        notes.append(f"The folder has {len(found)} series. Used: {volumes[0]}. The others are localizers or pictures.")
    return volumes[0], notes


def _list(found: Sequence[Series]) -> str:
    lines = [f"{number}: {series}" for number, series in enumerate(found[:_MAX_LISTED], start=1)]
    more = f"; and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    return f"{len(found)} series ({'; '.join(lines)}{more})."
