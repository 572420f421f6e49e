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


def return_freed_memory() -> None:
    """Give freed memory back to the system. It takes up to some tenths of a second: not on an event loop.

    glibc keeps what was freed for the process's next allocations, gigabytes after a large session.
    """
    gc.collect()  # what refers to itself would stay until the next time
    if sys.platform == "linux":
        with_glibc = ctypes.CDLL(None)
        if hasattr(with_glibc, "malloc_trim"):
            with_glibc.malloc_trim(0)
