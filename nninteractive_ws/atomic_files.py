"""Atomic replacement of files. At any moment, the path has the complete old or the complete new file."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import os
from pathlib import Path
import tempfile

_PREFIX = ".partial-"


@contextmanager
def atomic_write(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, whose file then replaces ``path``, or is deleted after an error.

    ``private``: only this user may read the file, and the temporary name is random, so that several processes may write
    at once. Otherwise the temporary path is :func:`partial_path`. Raises OSError with a sentence for the user.
    """
    try:
        partial = _private_file(path) if private else partial_path(path)
        try:
            yield partial
            partial.replace(path)
        finally:
            with suppress(OSError):  # the folder may not exist
                partial.unlink(missing_ok=True)
    except OSError as e:
        raise OSError(f"The file {path} cannot be written ({e.strerror or e}).") from e


def partial_path(path: Path) -> Path:
    """Return the path of the temporary file that replaces ``path``. A killed process leaves it behind."""
    return path.with_name(f"{_PREFIX}{path.name}")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, unless it exists. Raises OSError with a sentence for the user."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"The folder {folder} cannot be created ({e.strerror or e}).") from e


def check_writable(path: Path) -> None:
    """Raise OSError with a sentence for the user if no file can be written at a path, before work on it is lost."""
    try:
        partial_path(path).touch()
        partial_path(path).unlink()
    except OSError as e:
        raise OSError(f"The file {path} cannot be written ({e.strerror or e}). Choose another folder.") from e
    if path.is_dir():
        raise OSError(f"The file {path} cannot be written, because it is a folder. Choose another output.")


def _private_file(path: Path) -> Path:
    """Create an empty file of mode 0600 in the same folder, so that replacing is a rename."""
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    os.close(descriptor)
    return Path(name)
