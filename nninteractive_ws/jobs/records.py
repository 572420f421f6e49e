"""Pictures and measures of finished volumes: a file per volume in a hidden folder, for the report of a later run."""

from collections.abc import Iterable, Mapping, Sequence
import io
from pathlib import Path
import re

import msgspec

from nninteractive_ws.atomic_files import atomic_write, make_folder
from nninteractive_ws.files.images import Color
from nninteractive_ws.files.pictures import Picture, Prompt, picture
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.volume import Volume
from nninteractive_ws.jobs.measures import Measures, measure
from nninteractive_ws.masks import Mask

#: Folder in the output folder.
FOLDER = ".report"
_FILE_NAME = re.compile(r"(\.partial-)?[0-9a-f]{16}\.json")
#: Quality of WebP. A picture of a CT takes 3 to 9 kB, a fifth of PNG. Outlines stay sharp.
_QUALITY = 70


class SegmentRecord(msgspec.Struct, frozen=True):
    """A WebP picture with its size in pixels and its slice, and the measures unless the segment is empty.

    ``warning``: a sentence about what its file lacks, or an empty text.
    """

    picture: bytes
    width: int
    height: int
    place: str
    measures: Measures | None
    warning: str = ""


class VolumeRecord(msgspec.Struct, frozen=True):
    """The records of the segments by name, and the warnings about the image file.

    ``output``: the file of the segmentation, relative to the output folder.
    """

    segments: dict[str, SegmentRecord]
    warnings: tuple[str, ...] = ()
    output: str = ""


def record_path(folder: Path, key: str) -> Path:
    """Return the file of a volume in an output folder. ``key``: as in results.csv."""
    return folder / FOLDER / f"{key}.json"


def write_record(
    path: Path,
    masks: Mapping[str, Mask],
    volume: Volume,
    colors: Mapping[str, Color],
    prompts: Mapping[str, Sequence[Prompt]],
    warnings: Mapping[str, str],
    output: str,
) -> None:
    """Draw and measure the segments of a volume, and store the result atomically. Raises OSError.

    ``warnings``: of segments, by name. ``output``: see :class:`VolumeRecord`.
    """
    segments = {}
    for name, mask in masks.items():
        drawn = picture(volume.voxels, mask, volume.ijk_to_lps, colors[name], prompts.get(name, ()))
        warning = warnings.get(name, "")
        segments[name] = _segment_record(drawn, measure(mask, volume.ijk_to_lps), warning)
    _write(path, VolumeRecord(segments, volume.notes, output))


def write_empty_record(path: Path, output: str) -> None:
    """Mark the output of a volume as a result of batch, before its record is written. Raises OSError."""
    _write(path, VolumeRecord({}, output=output))


def _write(path: Path, record: VolumeRecord) -> None:
    make_folder(path.parent)
    with atomic_write(path) as partial:
        partial.write_bytes(msgspec.json.encode(record))


def _segment_record(drawn: Picture, measures: Measures | None, warning: str) -> SegmentRecord:
    encoded = io.BytesIO()
    drawn.image.save(encoded, "WEBP", quality=_QUALITY)
    place = f"{drawn.plane} slice, {drawn.at}"
    return SegmentRecord(encoded.getvalue(), drawn.image.width, drawn.image.height, place, measures, warning)


def read_record(path: Path) -> VolumeRecord | None:
    """Return the record of a volume, or None if the file is missing or was edited. Raises OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=VolumeRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    except OSError as e:
        raise OSError(f"The file {path} cannot be read ({reason(e)}).") from e


def recorded_outputs(folder: Path) -> set[str]:
    """Return the outputs of all records, relative to the output folder, also of an earlier table. Raises OSError."""
    records = (read_record(path) for path in (folder / FOLDER).glob("*.json") if _FILE_NAME.fullmatch(path.name))
    return {record.output for record in records if record is not None}


def remove_other_records(folder: Path, keys: Iterable[str]) -> None:
    """Remove the files of volumes that are no longer in the table, and partial files of a killed run."""
    kept = {record_path(folder, key) for key in keys}
    try:
        for path in (folder / FOLDER).glob("*.json"):
            if _FILE_NAME.fullmatch(path.name) and path not in kept:
                path.unlink()
    except OSError as e:
        raise OSError(f"The folder {folder / FOLDER} cannot be cleaned up ({reason(e)}).") from e
