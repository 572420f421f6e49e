"""Processes: the Python ones that this package starts, and the memory that a process has freed."""

import ctypes
import sys


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in this environment.

    ``-m`` alone puts the working folder first on ``sys.path``, and a file ``psutil.py`` beside a CT would be imported
    and run. ``-P`` keeps the folder out.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def trim_memory() -> None:
    """Give the memory that this process has freed back to the system; it takes milliseconds, without the GIL.

    glibc keeps it for the next allocations, gigabytes after a large session. Other systems' allocators do not.
    """
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if malloc_trim is not None:
            malloc_trim(0)
