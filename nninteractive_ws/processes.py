"""Processes of this package: how they are started, and how they return memory to the system."""

import ctypes
import gc
import sys


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in this environment.

    ``-m`` alone puts the working folder first on ``sys.path``, and a file ``psutil.py`` beside a CT would be imported
    and run. ``-P`` keeps the folder out.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def trim_memory() -> None:
    """Return freed memory to the system. It takes milliseconds, without the GIL.

    glibc keeps it for later allocations: gigabytes after a large session. Other systems' allocators do not.
    """
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if malloc_trim is not None:
            malloc_trim(0)


def return_freed_memory() -> None:
    """Collect reference cycles, and return freed memory to the system. It takes up to some tenths of a second: do not
    call it on an event loop."""
    gc.collect()
    trim_memory()
