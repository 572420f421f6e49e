"""Check that an output does not replace an input, before anything is computed."""

from collections.abc import Iterable
import os
from pathlib import Path
import stat

from nninteractive_ws.atomic_files import partial_path
from nninteractive_ws.errors import BadOutput
from nninteractive_ws.files.data_files import files_in, format_of, named_files, paired_files
from nninteractive_ws.files.names import folded, is_utf8
from nninteractive_ws.redaction import escaped


class InputFiles:
    """The files that a command reads, to check its outputs against them.

    ``inputs``: files, and folders with a DICOM series. The data files that belong to an image are inputs too, and so is
    the folder of a DICOM file.
    """

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
        kind = format_of(path)
        for file in (path, *paired_files(path), *named_files(path, kind)):
            self._add_file(file)
        if kind == "dicom":
            self._add_folder(path.parent)

    def _add_folder(self, path: Path) -> None:
        if _key(path) in self._folders:
            return
        self._folders[_key(path)] = path
        if identity := _identity(path):
            self._folders[identity] = path
        for file in files_in(path):
            self._add_file(file)

    def _add_file(self, path: Path) -> None:
        self._names[_key(path)] = path
        if identity := _identity(path):
            self._files[identity] = path

    def check(self, output: Path) -> None:
        """Raise BadOutput if writing ``output`` would replace an input or add to its DICOM series, or is impossible."""
        if not is_utf8(str(output)):
            raise BadOutput(
                f"The path of the output {escaped(str(output))} is not UTF-8 text. Choose another output, or rename "
                "its folder."
            )
        for path in (output, partial_path(output)):
            replaced = self._names.get(_key(path)) or self._files.get(_identity(path) or (0, 0))
            if replaced is not None:
                raise BadOutput(
                    f"{output} would overwrite the input file {escaped(str(replaced))}. Choose another output."
                )
        for folder in _resolve(output).parents:
            series = self._folders.get(_key(folder)) or self._folders.get(_identity(folder) or (0, 0))
            if series is not None:
                raise BadOutput(
                    f"{output} is inside the input folder {escaped(str(series))}, and would become part of its DICOM "
                    "series. Choose an output elsewhere."
                )


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
