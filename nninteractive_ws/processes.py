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
    """Give the memory that this process has freed back to the system; it takes milliseconds, without the GIL.

    glibc keeps it for the next allocations, gigabytes after a large session. Other systems' allocators do not.
    """
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if malloc_trim is not None:
            malloc_trim(0)


def return_freed_memory() -> None:
    """Free what refers to itself, and give freed memory back to the system. It takes up to some tenths of a second: not
    on an event loop."""
    gc.collect()
    trim_memory()
