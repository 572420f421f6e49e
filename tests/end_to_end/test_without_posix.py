"""The server, and commands that start one, without the features that Windows lacks."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import signal
import subprocess
import sys

import helpers
from helpers.end_to_end import WORKER, ServerProcess, children_running, is_running, wait_until
import pytest
import SimpleITK as sitk

import nninteractive_ws as nni
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.processes import python_module
from nninteractive_ws.server.local_server import LISTENING

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, and Windows lacks it all by itself")

WITHOUT_POSIX = Path(helpers.__file__).parent / "without_posix"
IMAGE = make_phantom(5, (72, 64, 56), (4.0, 4.0, 4.0)).image
POINT = (28, 30, 30)


def environment() -> dict[str, str]:
    path = [str(WITHOUT_POSIX), str(Path(nni.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "USERNAME": "anna", "PYTHONPATH": os.pathsep.join(path).rstrip(os.pathsep)}


@contextmanager
def serve(*arguments: str) -> Iterator[ServerProcess]:
    command = python_module("nninteractive_ws", "serve", "--port", "0", "--model", "demo", *arguments)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line.startswith(LISTENING), process.stderr.read()
            yield ServerProcess(process, line.removeprefix(LISTENING).strip())
        finally:
            process.kill()


def started_worker(server: ServerProcess) -> int:
    # A child runs this process's program until it has started its own.
    wait_until(lambda: children_running(server.process.pid, WORKER))
    return server.worker


def click(address: str) -> int:
    """Return the number of voxels of a prompt's mask."""
    with nni.connect(address) as session:
        session.set_image(IMAGE)
        return session.segment("a").add_point(POINT).voxels


def test_the_environment_lacks_posix_features() -> None:
    code = """
import asyncio, os, signal, socket
from nninteractive_ws.client import address, tunnel
from nninteractive_ws.server import admission, file_lock
print(address.AF_UNIX, tunnel._UNIX_SOCKETS, hasattr(os, "fchmod"), file_lock.msvcrt.__name__, admission._descriptors())
async def main():
    try:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
    except NotImplementedError:
        print("no handlers")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout.splitlines() == [f"-1 False False msvcrt {sys.maxsize}", "no handlers"], done.stderr


def test_the_end_of_standard_input_ends_gateway_and_worker() -> None:
    with serve("--end-with-stdin") as server:
        worker = started_worker(server)
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.process.wait(30) == 0
        wait_until(lambda: not is_running(worker), timeout=10)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_gateway_and_worker(number: signal.Signals, status: int) -> None:
    with serve() as server:
        worker = started_worker(server)
        server.process.send_signal(number)
        assert server.process.wait(30) == status
        wait_until(lambda: not is_running(worker), timeout=10)


@pytest.mark.slow
def test_a_worker_ends_after_its_gateway_is_killed() -> None:
    with serve() as server:
        assert click(server.address) > 0
        worker = server.worker
        server.process.kill()
        wait_until(lambda: not is_running(worker), timeout=10)


@pytest.mark.slow
def test_segment_starts_a_server_of_its_own(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE.transpose()), tmp_path / "ct.nii.gz")
    arguments = ["segment", "ct.nii.gz", "--point", ",".join(map(str, POINT)), "-o", "out.nii.gz", "--model", "demo"]
    command = python_module("nninteractive_ws", *arguments)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out.nii.gz")).any()


@pytest.mark.slow
def test_tokens_are_added_and_removed(tmp_path: Path) -> None:
    """With the file lock of Windows, and without owners and modes of files."""
    for arguments in (["anna"], ["ben"], ["--remove", "anna"]):
        command = python_module("nninteractive_ws", "token", *arguments, "--file", str(tmp_path / "tokens"))
        subprocess.run(command, env=environment(), check=True, capture_output=True)
    assert [line.split()[0] for line in (tmp_path / "tokens").read_text().splitlines()] == ["ben"]
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
