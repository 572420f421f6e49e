"""A temporary server for one command, as a process on a free port of loopback."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
import subprocess
from typing import Any

from nninteractive_ws.client.address import printable_address
from nninteractive_ws.processes import end_process, own_process_group, python_module

#: Seconds that the server has to end by itself.
_END_TIMEOUT_S = 10.0
#: Beginning of the first line that ``serve`` prints. The address follows.
LISTENING = "listening on "


class ServerDidNotStart(Exception):
    """The temporary server did not start. ``str()`` is a sentence that says why and what to do."""


@dataclass(frozen=True)
class ServerOptions:
    """The server that a command uses: the one at ``address``, or if that is None a temporary one with ``model``.

    ``token``, ``ca``, ``start``: as for ``connect``.
    """

    address: str | None = None
    token: str | None = field(default=None, repr=False)
    ca: str | Path | None = None
    start: str | None = None
    model: str | None = None

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``connect`` and ``aconnect``."""
        return {"token": self.token, "ca": self.ca, "start": self.start}

    @contextmanager
    def running(self, on_status: Callable[[str], object]) -> Iterator[str]:
        """Yield the address, of a temporary server if none is given. ``on_status``: called with the current activity.

        Raises ServerDidNotStart.
        """
        if self.address is not None:
            on_status(f"connecting to {printable_address(self.address)}")
            yield self.address
            return
        on_status("starting a server")
        with local_server("--log-level", "warning", *(("--model", self.model) if self.model else ())) as address:
            yield address


@contextmanager
def local_server(*arguments: str) -> Iterator[str]:
    """Start ``nninteractive-ws serve`` with these arguments, yield its address, and stop it afterwards.

    Raises ServerDidNotStart.
    """
    if find_spec("nnInteractive") is None:
        raise ServerDidNotStart(
            "A server cannot be started, because the package nnInteractive is not installed. Run: pip install "
            "'nninteractive-ws[server]'. Or pass the address of a running server (--server)."
        )
    command = python_module("nninteractive_ws", "serve", "--port", "0", "--end-with-stdin", *arguments)
    # Its standard input closes when this process ends for any reason.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **own_process_group())
    try:
        yield _address(process)
    finally:
        end_process(process, _END_TIMEOUT_S)


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(LISTENING):
            return line.removeprefix(LISTENING).strip()
    raise ServerDidNotStart(
        f"The server ended with status {process.wait()} during startup. Its messages above say why."
    )
