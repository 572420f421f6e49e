"""The files of an image: the second of a pair, those that a header names, and those of a DICOM series."""

from collections.abc import Iterator
import os
from pathlib import Path
import re

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.identify import identify

#: Extensions of NIfTI images that are in two files of the same stem.
_PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")
#: A header ends within so many bytes, also if it lists the files of a thousand slices.
_MAX_HEADER_BYTES = 1 << 20
#: No image has more slices.
_MAX_NUMBERED = 100_000
_META_DATA_FILE = re.compile(r"(?m)^[ \t]*ElementDataFile[ \t]*=[ \t]*(.+?)[ \t]*$")
_NRRD_DATA_FILE = re.compile(r"(?mi)^[ \t]*data ?file[ \t]*:[ \t]*(.+?)[ \t]*$")
#: A pattern of numbered files, such as slice%03d.raw 1 100 1.
_NUMBERED = re.compile(r"(.*%0?\d*d\S*)\s+(\d+)\s+(\d+)(?:\s+(\d+))?.*")


def files_of(path: Path) -> list[Path]:
    """Return the existing files that are read for an image or a folder: their change means another image.

    They are all files in a folder and its subfolders, those beside a slice of a DICOM series, or an image and its data
    files.
    """
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    kind = format_of(path)
    if kind == "dicom":
        from nninteractive_ws.files.dicom_series import is_directory, is_multi_frame  # pydicom takes long to import

        if is_directory(path):
            return files_of(path.parent)
        return [path] if is_multi_frame(path) else files_in(path.parent)
    return [file for file in (path, *paired_files(path), *named_files(path, kind)) if file.exists()]


def format_of(path: Path) -> str:
    """Return the format of a file, see :func:`identify`, or an empty text for a file that is no image."""
    try:
        return identify(path)
    except (BadImage, OSError, ValueError):  # the reader reports it
        return ""


def paired_files(image: Path) -> Iterator[Path]:
    """Yield the existing files that make a pair with an image, such as its ``.img`` with a ``.hdr``."""
    extension = max((e for e in _PAIR if image.name.lower().endswith(e)), key=len, default="")
    if extension:
        stem = image.name[: -len(extension)].casefold()
        names = {f"{stem}{e}" for e in _PAIR}
        yield from (p for p in files_in(image.parent) if p.name.casefold() in names and p.name != image.name)


def named_files(image: Path, kind: str) -> Iterator[Path]:
    """Yield the files that the header of an image names, which need not exist. Raises OSError.

    ``kind``: the format of the image, see :func:`identify`.
    """
    if kind not in ("nrrd", "metaimage"):
        return
    text = _header(image)
    named = (_NRRD_DATA_FILE if kind == "nrrd" else _META_DATA_FILE).search(text)
    if named is None or named[1].upper() == "LOCAL":
        return
    following = text[named.end() :].splitlines() if named[1].upper().startswith("LIST") else []
    for name in following or [named[1]]:
        yield from (image.parent / n for n in _expand(name.strip()) if n and "\0" not in n)


def files_in(folder: Path) -> list[Path]:
    """Return the files in a folder, in order; none if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.is_dir())
    except OSError:
        return []


def _header(image: Path) -> str:
    """Return the header of a NRRD or MetaImage file as text."""
    with image.open("rb") as file:
        content = file.read(_MAX_HEADER_BYTES)
    content = content.replace(b"\r\n", b"\n")
    if content.startswith(b"NRRD"):
        content = content.partition(b"\n\n")[0]
    return os.fsdecode(content)


def _expand(name: str) -> Iterator[str]:
    """Yield the names of a pattern of numbered files, or the name itself."""
    pattern = _NUMBERED.fullmatch(name)
    if pattern is None:
        yield name
        return
    first, last, step = int(pattern[2]), int(pattern[3]), int(pattern[4] or 1)
    for number in range(first, min(last, first + _MAX_NUMBERED) + 1, max(step, 1)):
        yield pattern[1] % number
