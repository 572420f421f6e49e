"""A server of one's own for as long as a command runs: a process on loopback, on a free port."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
import subprocess

from nninteractive_ws.processes import python_module

#: What ``serve`` prints first, with the address behind it.
LISTENING = "listening on "


class ServerDidNotStart(Exception):
    """``str()`` says why, and what to do."""


@contextmanager
def local_server(*arguments: str) -> Iterator[str]:
    """Start ``nninteractive-ws serve`` with these arguments; yields its address, and ends it afterwards.

    Raises ServerDidNotStart.
    """
    if find_spec("nnInteractive") is None:
        raise ServerDidNotStart(
            "No server can be started here: pip install 'nninteractive-ws[server]', or give the address of one that "
            "runs elsewhere (--server)."
        )
    command = python_module("nninteractive_ws", "serve", "--port", "0", "--end-with-stdin", *arguments)
    # Its standard input closes with this process, however that ends.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True)
    try:
        yield _address(process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.close()
        process.stdin.close()


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(LISTENING):
            return line.removeprefix(LISTENING).strip()
    raise ServerDidNotStart(f"The server ended with status {process.wait()} before it listened.")
