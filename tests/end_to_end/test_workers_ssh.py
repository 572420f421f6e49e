"""Workers that are started through a real ssh. The masks are those of an undisturbed run, bit for bit."""

from collections.abc import Iterator
import os
from pathlib import Path
import shutil
import socket
import sys
import textwrap

from helpers.end_to_end import wait_until
from helpers.fast_server import SLOW_NETWORK, quick_server
from helpers.fault_script import State
from helpers.sshd import Sshd, sshd_in_path
from helpers.worker_user import worker_user, workers_of
import psutil
import pytest

TESTS = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.sshd, pytest.mark.timeout(600), pytest.mark.usefixtures("back_at_once")]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with sshd_in_path(tmp_path, {"PYTHONPATH": path}) as running:
        yield running


@pytest.fixture(scope="module")
def expected() -> list[dict[str, State]]:
    """The result on this machine, without a loss."""
    with quick_server(network=SLOW_NETWORK) as server, worker_user(server) as user:
        return user.run_undisturbed()


def test_sshd_ends_in_the_middle_of_a_prompt(sshd: Sshd, expected: list[dict[str, State]]) -> None:
    """Its process for the connection is killed, as when the other machine restarts."""
    with quick_server("--launch", "ssh gpu-box", network=SLOW_NETWORK) as server:
        with worker_user(server) as user:
            assert any(message == "Starting a worker (ssh gpu-box)." for message in user.notices)
            user.begin()
            (worker,) = workers_of(server)
            assert "secret" not in " ".join(worker.cmdline())
            connections = [p for p in psutil.process_iter(["name", "cmdline"]) if is_connection(p, worker)]
            assert connections

            def kill() -> None:
                for process in connections:
                    process.kill()

            user.prompt_through(kill)
            print(user.losses)
            user.finish(expected)
            (successor,) = workers_of(server)
            assert successor.pid != worker.pid, "a worker without its connection has ended"
        server.kill()
        wait_until(lambda: not workers_of(server), 30)


def is_connection(process: psutil.Process, worker: psutil.Process) -> bool:
    """Whether a process is the part of sshd that serves the connection of a worker."""
    if process.ppid() == os.getpid():
        return False
    return process.info["name"] == "sshd" and worker in process.children(recursive=True)


def test_the_remote_port_is_taken(sshd: Sshd, tmp_path: Path, expected: list[dict[str, State]]) -> None:
    """The first attempt draws a port at which another program listens, and the next one draws another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, first = other.getsockname()[1], tmp_path / "first"
        script = f"""\
            #!{sys.executable}
            import os, pathlib, sys

            arguments = sys.argv[1:]
            if not pathlib.Path({str(first)!r}).exists():
                pathlib.Path({str(first)!r}).touch()
                at = arguments.index("-R") + 1
                host, _, rest = arguments[at].split(":", 2)
                arguments[at] = f"{{host}}:{taken}:{{rest}}"
            os.execv({shutil.which("ssh")!r}, ["ssh", *arguments])
            """
        front = tmp_path / "front" / "ssh"
        front.parent.mkdir()
        front.write_text(textwrap.dedent(script))
        front.chmod(0o755)
        with quick_server("--launch", f"{front} gpu-box", network=SLOW_NETWORK) as server, worker_user(server) as user:
            (failure,) = [message for message in user.notices if "The next attempt is in" in message]
            assert failure.startswith("The worker ended with status 255 before it was ready. Its last line: ")
            assert f"remote port forwarding failed for listen port {taken}" in failure
            assert user.run_undisturbed() == expected
