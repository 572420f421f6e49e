"""The lock of an output folder, so that no two batches do the same work and write the same files."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import errno
import logging
import os
from pathlib import Path
import platform
import warnings

import filelock

from nninteractive_ws.errors import BadOutput
from nninteractive_ws.files.reason import reason
from nninteractive_ws.redaction import escaped

_log = logging.getLogger(__name__)

LOCK_NAME = ".batch.lock"
#: Error numbers of file systems without locks, such as some network file systems.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_MAX_OWNER_CHARS = 200


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. The system releases it if the process is killed.

    Raises BadOutput if another batch holds it, or if the folder cannot be written. If the file system has no locks, a
    warning is logged.
    """
    path = folder / LOCK_NAME
    owner = _owner(path)  # before old versions of filelock truncate the file
    lock = _acquire(folder, path, owner, attempts=5)
    try:
        yield
    finally:
        # It is deleted before it is released: another batch then creates a new file, and cannot lock the old one.
        # Windows deletes no open file. It stays there, and the next batch locks it.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        if lock is not None:
            lock.release()


def _acquire(folder: Path, path: Path, owner: str, attempts: int) -> filelock.BaseFileLock | None:
    # The generator of a batch may be closed by another thread than the one that started it.
    lock = filelock.FileLock(path, thread_local=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # filelock falls back to a file without a lock of the system
            lock.acquire(timeout=0)
        if path.read_text(encoding="utf-8", errors="replace").split()[:1] != [str(os.getpid())]:
            path.write_text(f"{os.getpid()} {platform.node()}\n", encoding="utf-8")
    except filelock.Timeout:
        if not path.exists():
            return _acquire_again(folder, path, attempts)
        raise BadOutput(
            f"Another batch{owner} is running in the folder {folder}. Wait until it ends or stop it, or choose another "
            "output folder."
        ) from None
    except FileNotFoundError:
        lock.release()
        return _acquire_again(folder, path, attempts)
    except (NotImplementedError, OSError) as e:
        if lock.is_locked:  # on Windows, a locked file cannot be written
            return lock
        if isinstance(e, OSError) and e.errno not in _NO_LOCKS:
            raise _not_writable(folder, reason(e)) from e
        _log.warning("The file system of %s has no locks. Do not start a second batch in this folder.", folder)
        return None
    return lock


def _acquire_again(folder: Path, path: Path, attempts: int) -> filelock.BaseFileLock | None:
    """Try again after another batch has deleted the file, which it does when it ends."""
    if attempts == 1:
        raise _not_writable(folder, "no file can be created there")
    return _acquire(folder, path, "", attempts - 1)


def _not_writable(folder: Path, detail: str) -> BadOutput:
    return BadOutput(
        f"The output folder {folder} cannot be written or locked ({detail}). Choose another output folder. If "
        f"a batch of another user left the file {LOCK_NAME} there, delete it."
    )


def _owner(path: Path) -> str:
    """Return the process that holds a lock for a sentence, or an empty text if it is unknown."""
    try:
        number, *host = path.read_text(encoding="utf-8")[:_MAX_OWNER_CHARS].split()
    except (OSError, ValueError):
        return ""
    elsewhere = f" on {escaped(host[0])}" if host and host[0] != platform.node() else ""
    return f" (process {escaped(number)}{elsewhere})"
