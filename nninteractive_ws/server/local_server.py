"""A temporary server for one command, as a process on a free port of loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
import subprocess

from nninteractive_ws.processes import creation_flags, end_process, python_module

#: Seconds that the server has to end by itself.
_END_TIMEOUT_S = 10.0
#: Beginning of the first line that ``serve`` prints. The address follows.
LISTENING = "listening on "


class ServerDidNotStart(Exception):
    """The temporary server did not start. ``str()`` is a sentence that says why and what to do."""


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
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, creationflags=creation_flags()
    )
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
