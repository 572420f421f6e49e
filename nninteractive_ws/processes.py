"""Processes of this package: start and end them, watch for the end of the parent, return memory to the system.

The differences between operating systems are handled here.
"""

import asyncio
from collections.abc import Callable, Iterator
import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
from typing import Any

_READ_BYTES = 64 * 1024
#: The signals that end a server: Ctrl-C, the request to terminate, and on Windows Ctrl-Break.
_END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


# ---- start and end child processes ------------------------------------------------------------------------


def python_module(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Return the command that runs a module. ``python``: the interpreter, by default that of this environment.

    ``-m`` alone puts the working folder first on ``sys.path``, so that a file ``psutil.py`` next to a CT would be
    imported and run. ``-P`` excludes the folder.
    """
    return [python, "-P", "-m", module, *arguments]


def creation_flags() -> int:
    """The ``creationflags`` of child processes. On Windows, a program without a console, such as 3D Slicer, would
    otherwise open a console window for each. A program in a console shares it with its children."""
    if sys.platform != "win32":
        return 0
    return 0 if ctypes.windll.kernel32.GetConsoleWindow() else subprocess.CREATE_NO_WINDOW


def own_process_group() -> dict[str, Any]:
    """Return options of a child process that Ctrl-C in a terminal does not reach.

    Ctrl-C would interrupt the child anywhere, with tracebacks. This process receives it, and then ends the child.
    """
    if sys.platform == "win32":
        return {"creationflags": creation_flags() | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"process_group": 0}


def end_process(process: "subprocess.Popen[Any]", timeout_s: float, *, terminate: bool = True) -> None:
    """End a child process and close its pipes. Kill it if it has not ended after ``timeout_s`` seconds.

    ``terminate``: send SIGTERM; a process that ends with its standard input needs none.
    """
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # the process has ended, and did not read everything
            process.stdin.close()
    if terminate:
        process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def end_async_process(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    """:func:`end_process` for a child process of the event loop."""
    _signal(process, "SIGTERM")
    try:
        await asyncio.wait_for(process.wait(), timeout_s)
    except TimeoutError:
        _signal(process, "SIGKILL")
        await process.wait()


def _signal(process: asyncio.subprocess.Process, name: str) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        if sys.platform == "win32":
            process.kill()
        elif process.returncode is None:
            # Not process.send_signal(), which takes the status of an ended process away from the event loop.
            os.kill(process.pid, getattr(signal, name))


# ---- inside a child process -------------------------------------------------------------------------------


def stdin_stream() -> asyncio.StreamReader:
    """Standard input as a stream of the running event loop. Nothing else may read standard input afterwards.

    A thread reads it: on Windows, event loops cannot. There a pending read also blocks every other operation on the
    pipe, such as those at the start of a child process that inherits it. So the thread reads a duplicate, and the null
    device becomes the standard input of this process and its children.
    """
    loop, stream = asyncio.get_running_loop(), asyncio.StreamReader()
    descriptor = _take_stdin()

    def feed(data: bytes) -> None:
        if data:
            stream.feed_data(data)
        else:
            stream.feed_eof()

    def read() -> None:
        data = b"not empty"
        while data:
            try:
                # Not through sys.stdin: if this thread held its lock, the interpreter would abort at exit.
                data = os.read(descriptor, _READ_BYTES)
            except OSError:  # such as a terminal that was closed
                data = b""
            try:
                loop.call_soon_threadsafe(feed, data)
            except RuntimeError:  # the loop was closed
                break
        os.close(descriptor)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return stream


def _take_stdin() -> int:
    """A new descriptor of what standard input was; standard input becomes the null device."""
    null = os.open(os.devnull, os.O_RDONLY)
    if sys.stdin is None:  # it was closed when the process started
        return null
    own = os.dup(sys.stdin.fileno())
    os.dup2(null, sys.stdin.fileno())
    os.close(null)
    return own


async def wait_until_stdin_closes() -> None:
    """Wait for the end of standard input: the parent process closes it, or the system does when the parent ends."""
    stream = stdin_stream()
    while await stream.read(_READ_BYTES):
        pass


@contextlib.contextmanager
def end_signals(callback: Callable[[int], object]) -> Iterator[None]:
    """Call ``callback`` with the number in the running event loop at SIGINT, SIGTERM and, on Windows, SIGBREAK."""
    loop = asyncio.get_running_loop()
    replaced = {}
    for number in _END_SIGNALS:
        try:
            loop.add_signal_handler(number, callback, number)
        except NotImplementedError:  # on Windows
            replaced[number] = signal.signal(number, lambda n, _: loop.call_soon_threadsafe(callback, n))
    try:
        yield
    finally:
        for number in _END_SIGNALS:
            if number in replaced:
                signal.signal(number, replaced[number])
            else:
                loop.remove_signal_handler(number)


# ---- memory -----------------------------------------------------------------------------------------------


def trim_memory() -> None:
    """Return freed memory to the system. This takes milliseconds, without the GIL.

    glibc keeps it for later allocations, which is gigabytes after a large session. Allocators of other systems do not.
    """
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if malloc_trim is not None:
            malloc_trim(0)


def return_freed_memory() -> None:
    """Collect reference cycles, and return freed memory to the system.

    This takes up to some tenths of a second, so do not call it on an event loop.
    """
    gc.collect()
    trim_memory()
