"""A lock between processes: to read, change and replace a file becomes one step."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import os
from pathlib import Path
import sys
import time

LOCK_TIMEOUT_S = 10.0
_RETRY_S = 0.01


class FileLocked(Exception):
    """Another process did not release the lock in time. ``str()`` says what to do."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which need not exist. Raises FileLocked, and OSError if its folder is not writable.

    The lock file lies beside the file, and is deleted with the lock. If it were kept, it would belong to one user, and
    other users of the folder could not open it. The system releases the lock of a process that dies.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _acquire(lock)
    try:
        yield
    finally:
        # Deleted while it is held: a waiting process finds that the name is another file by now, and tries again.
        with suppress(PermissionError):  # on Windows, while another process waits
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock: Path) -> int:
    end = time.monotonic() + LOCK_TIMEOUT_S
    while (descriptor := _try(lock)) is None:
        if time.monotonic() > end:
            raise FileLocked(
                f"Another process is changing the file beside {lock}. Try again; if none is, delete {lock}."
            )
        time.sleep(_RETRY_S)
    return descriptor


def _try(lock: Path) -> int | None:
    """A descriptor that holds the lock; None if another process holds it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except PermissionError:
        if lock.exists():
            return None  # another user holds it
        raise
    if _lock_now(descriptor) and _is_at(lock, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _is_at(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock_now(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock_now(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
