"""Check that an output does not replace an input, before anything is computed."""

from collections.abc import Iterable, Iterator
import os
from pathlib import Path
import re
import stat

from nninteractive_ws.atomic_files import partial_path
from nninteractive_ws.errors import BadImage, BadOutput
from nninteractive_ws.files.identify import identify
from nninteractive_ws.files.names import folded, is_utf8

#: Endings of formats whose images are in two files of the same stem.
_PAIRS = ((".hdr", ".img", ".hdr.gz", ".img.gz"), (".spr", ".sdt"))
#: A header ends within so many bytes, also if it lists the files of a thousand slices.
_MAX_HEADER_BYTES = 1 << 20
#: No image has more slices.
_MAX_NUMBERED = 100_000
_META_DATA_FILE = re.compile(r"(?m)^ElementDataFile *= *(.+?) *$")
_NRRD_DATA_FILE = re.compile(r"(?mi)^data ?file: *(.+?) *$")
#: A pattern of numbered files, such as slice%03d.raw 1 100 1.
_NUMBERED = re.compile(r"(.*%0?\d*d\S*)\s+(\d+)\s+(\d+)(?:\s+(\d+))?.*")


def check_overwrite(output: Path, inputs: Iterable[Path]) -> None:
    """Raise BadOutput if writing ``output`` would replace an input or add to its DICOM series, or is impossible.

    ``inputs``: files, and folders with a DICOM series. The data files that belong to an image are inputs too, and so is
    the folder of a DICOM file.
    """
    InputFiles(inputs).check(output)


class InputFiles:
    """The files that a command reads, to check many outputs against them."""

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._names: dict[str, Path] = {}
        self._files: dict[tuple[int, int], Path] = {}
        self._folders: dict[str | tuple[int, int], Path] = {}
        for path in dict.fromkeys(inputs):
            self._add(path)

    def _add(self, path: Path) -> None:
        found = _stat(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            self._add_folder(path)
            return
        kind = _kind(path)
        for file in (path, *data_files(path, kind)):
            self._add_file(file)
        if kind == "dicom":
            self._add_folder(path.parent)

    def _add_folder(self, path: Path) -> None:
        if _key(path) in self._folders:
            return
        self._folders[_key(path)] = path
        if identity := _identity(path):
            self._folders[identity] = path
        for file in _listed(path):
            self._add_file(file)

    def _add_file(self, path: Path) -> None:
        self._names[_key(path)] = path
        if identity := _identity(path):
            self._files[identity] = path

    def check(self, output: Path) -> None:
        """Raise BadOutput if writing ``output`` would replace an input or add to its DICOM series, or is impossible."""
        if not is_utf8(str(output)):
            raise BadOutput(
                f"The path of the output {_printable(output)} is not UTF-8 text. Choose another output, or rename its "
                "folder."
            )
        for path in (output, partial_path(output)):
            replaced = self._names.get(_key(path)) or self._files.get(_identity(path) or (0, 0))
            if replaced is not None:
                raise BadOutput(
                    f"{output} would overwrite the input file {_printable(replaced)}. Choose another output."
                )
        for folder in _resolve(output).parents:
            series = self._folders.get(_key(folder)) or self._folders.get(_identity(folder) or (0, 0))
            if series is not None:
                raise BadOutput(
                    f"{output} is inside the input folder {_printable(series)}, and would become part of its DICOM "
                    "series. Choose an output elsewhere."
                )


def data_files(image: Path, kind: str) -> Iterator[Path]:
    """Yield the other files of an image: the second of a pair, or those that its header names.

    ``kind``: its format, see :func:`identify`.
    """
    for endings in _PAIRS:
        ending = max((e for e in endings if image.name.lower().endswith(e)), key=len, default="")
        if ending:
            stem = image.name[: -len(ending)].casefold()
            names = {f"{stem}{e}" for e in endings}
            yield from (p for p in _listed(image.parent) if p.name.casefold() in names and p != image)
    if kind not in ("nrrd", "metaimage"):
        return
    text = _header(image)
    named = (_NRRD_DATA_FILE if kind == "nrrd" else _META_DATA_FILE).search(text)
    if named is None or named[1].upper() == "LOCAL":
        return
    following = text[named.end() :].splitlines() if named[1].upper().startswith("LIST") else []
    for name in following or [named[1]]:
        yield from (image.parent / n for n in _expand(name.strip()) if n and "\0" not in n)


def _header(image: Path) -> str:
    """Return the header of a NRRD or MetaImage file as text."""
    with image.open("rb") as file:
        content = file.read(_MAX_HEADER_BYTES)
    content = content.replace(b"\r\n", b"\n")
    if content.startswith(b"NRRD"):
        content = content.partition(b"\n\n")[0]
    return os.fsdecode(content)


def _kind(path: Path) -> str:
    """Return the format of a file, or an empty text for a file that is no image."""
    try:
        return identify(path)
    except (BadImage, OSError, ValueError):  # the reader reports it
        return ""


def _expand(name: str) -> Iterator[str]:
    """Yield the names of a pattern of numbered files, or the name itself."""
    pattern = _NUMBERED.fullmatch(name)
    if pattern is None:
        yield name
        return
    first, last, step = int(pattern[2]), int(pattern[3]), int(pattern[4] or 1)
    for number in range(first, min(last, first + _MAX_NUMBERED) + 1, max(step, 1)):
        yield pattern[1] % number


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.is_dir()]
    except OSError:
        return []


def _key(path: Path) -> str:
    """Return a key that is equal for names of the same file, also where the file system ignores case."""
    return folded(str(_resolve(path)))


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a symlink loop
        return path.absolute()


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode, which all hard links to a file share, or None if there is no file."""
    found = _stat(path)
    return None if found is None or not found.st_ino else (found.st_dev, found.st_ino)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, RuntimeError, ValueError):
        return None


def _printable(path: Path) -> str:
    return str(path).encode(errors="backslashreplace").decode()
