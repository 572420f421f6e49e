"""The example volume of the web page: the demo's phantom as a NIfTI file.

Another process makes it on the first request, so that the gateway needs neither its time nor its memory. The file of
some megabytes is kept.
"""

import asyncio
from collections.abc import Sequence
import contextlib
import logging
import time

from nninteractive_ws.processes import end_async_process, own_process_group, python_module

_log = logging.getLogger(__name__)

#: Timeouts for the process to write the volume, and to end when it is interrupted.
TIMEOUT_S, END_TIMEOUT_S = 120.0, 3.0
#: Time without another attempt after a failure, because anybody can request the volume.
RETRY_AFTER_S = 30.0
COMMAND = python_module("nninteractive_ws.demo.phantom_file")
_FAILURE = "The example volume could not be made. The server's log says why. Open a file instead."


class NoExample(Exception):
    """The example volume could not be made. ``str()`` is a sentence for the user."""


class ExampleVolume:
    """The volume, which is made once. ``command``: writes it to standard output."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._content: bytes | None = None
        self._making = asyncio.Lock()
        self._retry_at = 0.0

    async def content(self) -> bytes:
        """Return the bytes of the file. Raises NoExample."""
        async with self._making:
            if self._content is None:
                if time.monotonic() < self._retry_at:
                    raise NoExample(_FAILURE)
                try:
                    self._content = await self._make()
                finally:
                    self._retry_at = time.monotonic() + RETRY_AFTER_S
            return self._content

    async def _make(self) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            **own_process_group(),
        )
        output = b""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT_S):
                    output, _ = await process.communicate()
        finally:
            await end_async_process(process, END_TIMEOUT_S)
        if process.returncode != 0:
            _log.error("the example volume could not be made: its process ended with status %s", process.returncode)
            raise NoExample(_FAILURE)
        return output
