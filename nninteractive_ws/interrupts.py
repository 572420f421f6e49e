"""Ctrl-C in commands."""

from collections.abc import Iterator
import contextlib
import logging
import os
import signal
import sys
from typing import NoReturn

#: Exit status after Ctrl-C.
INTERRUPTED = 130


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit at once at Ctrl-C. For imports: KeyboardInterrupt within the import of a compiled module can crash it."""
    before = signal.signal(signal.SIGINT, lambda *_: exit_interrupted("Stopped."))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def exit_interrupted(message: str = "") -> NoReturn:
    """Print a message, and exit. After Ctrl-C in compiled code, sys.exit would end the process without a status."""
    logging.shutdown()
    with contextlib.suppress(OSError):  # a closed pipe
        if message:
            sys.stderr.write(f"{message}\n")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(INTERRUPTED)
