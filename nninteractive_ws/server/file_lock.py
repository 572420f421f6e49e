"""A lock between processes, which makes reading, changing and replacing a file one atomic step."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import os
from pathlib import Path
import sys
import time

LOCK_TIMEOUT_S = 10.0
_RETRY_S = 0.01


class FileLocked(Exception):
    """Another process did not release the lock in time. ``str()`` is a sentence that says what to do."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which need not exist. Raises FileLocked, and OSError if its folder is not writable.

    The lock file is in the same folder, and is deleted on release. A lock file that stays would belong to one user, and
    other users of the folder could not open it. The system releases the lock of a process that dies.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _acquire(lock)
    try:
        yield
    finally:
        # It is deleted before the lock is released. A waiting process then sees another file there, and tries again.
        with suppress(PermissionError):  # on Windows, while another process waits
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock: Path) -> int:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while (descriptor := _try_acquire(lock)) is None:
        if time.monotonic() > deadline:
            raise FileLocked(
                f"Another process holds the lock {lock}. Try again. If there is no such process, delete the lock file."
            )
        time.sleep(_RETRY_S)
    return descriptor


def _try_acquire(lock: Path) -> int | None:
    """Return a descriptor that holds the lock, or None if another process holds it."""
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
