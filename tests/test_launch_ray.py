"""Workers on a real Ray cluster: three nodes on this machine, two of them with a GPU by their settings."""

from collections.abc import Iterator
import contextlib
from functools import partial
from importlib.util import find_spec
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import threading
import time

from helpers.end_to_end import WIDE_SHAPE, is_running, phantom, server_process, wait_until, wide_lasso
import numpy as np
import psutil
import pytest

import nninteractive_ws as nni
from nninteractive_ws import launch_ray

LAUNCH = [sys.executable, "-P", "-m", "nninteractive_ws.launch_ray"]

# Prints the address of the cluster. Each line of standard input kills the node on which the process with this id runs.
CLUSTER = """
import sys
import psutil
from ray.cluster_utils import Cluster

memory = {"object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, **memory})
nodes = [cluster.add_node(num_cpus=1, num_gpus=1, **memory) for _ in range(2)]
print("address", cluster.address, flush=True)
for line in sys.stdin:
    ancestors = {process.pid for process in psutil.Process(int(line)).parents()}
    (node,) = [n for n in nodes if n.all_processes["raylet"][0].process.pid in ancestors]
    cluster.remove_node(node, allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""


class RayCluster:
    """A cluster in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self._read("address ")

    def kill_node_of(self, pid: int) -> None:
        """Kill the node on which a process runs."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pid}\n")
        self._process.stdin.flush()
        self._read("killed")

    def _read(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line.removeprefix(start).strip()
        raise AssertionError("the cluster has ended")


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[RayCluster]:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    pipe = subprocess.PIPE
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        try:
            yield RayCluster(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def cluster(running_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    monkeypatch.setenv("RAY_ADDRESS", running_cluster.address)
    return running_cluster


@contextlib.contextmanager
def launch(*command: str) -> "Iterator[subprocess.Popen[str]]":
    pipe = subprocess.PIPE
    with subprocess.Popen([*LAUNCH, *command], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_pid(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def remote_worker() -> int | None:
    """Return the process id of the worker that Ray started, whose parent is the actor."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if "nninteractive_ws.engine.worker" in process.cmdline() and parent and "Runner" in parent.cmdline()[0]:
                return process.pid
    return None


@pytest.mark.slow
def test_a_command_runs_on_a_node(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With standard input, environment and status."""
    monkeypatch.setenv("PASSED_ON", "yes")
    script = f'read a; echo "$a $PASSED_ON $CUDA_VISIBLE_DEVICES" >{tmp_path}/found; exit 3'
    with launch("--gpus", "1", "sh", "-c", script) as process:
        assert process.stdin is not None
        process.stdin.write("line\n")
        process.stdin.flush()
        assert process.wait(60) == 3
    assert (tmp_path / "found").read_text() == "line yes 0\n"


@pytest.mark.slow
def test_a_program_that_does_not_exist(cluster: RayCluster) -> None:
    with launch("--gpus", "1", "no-such-program") as process:
        assert process.stdout is not None
        assert "no-such-program cannot be started" in process.stdout.read()
        assert process.wait(60) == 1


@pytest.mark.slow
def test_the_command_ends_with_its_launcher(cluster: RayCluster, tmp_path: Path) -> None:
    for end in ("end of input", "SIGTERM", "SIGKILL"):
        noted = tmp_path / end
        with launch("--gpus", "1", "sh", "-c", f'echo $$ >"{noted}"; exec sleep 1000') as process:
            pid = read_pid(noted)
            if end == "end of input":
                assert process.stdin is not None
                process.stdin.close()
            else:
                process.send_signal(signal.SIGTERM if end == "SIGTERM" else signal.SIGKILL)
            process.wait(30)
        wait_until(partial(lambda pid: not is_running(pid), pid), timeout=30)


@pytest.mark.slow
def test_a_launcher_without_a_free_node_says_so_and_can_be_ended(cluster: RayCluster) -> None:
    with launch("--gpus", "5", "true") as process:
        assert process.stdout is not None
        assert any(launch_ray.WAITING in line for line in process.stdout)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_is_killed_in_the_middle_of_a_prompt(cluster: RayCluster) -> None:
    """The worker starts again on the other node, and the mask is the same as without the fault."""
    command = shlex.join([*LAUNCH, "--gpus", "1"])
    image, lasso = phantom(5, WIDE_SHAPE), wide_lasso()

    def segment(address: str, on_preview: "threading.Event | None") -> "np.ndarray":
        with nni.connect(address, reconnect_for=300) as session:
            session.set_image(image)
            if on_preview is not None:
                session.on("mask_delta", lambda _: on_preview.set())
            segment = session.segment("organ")
            segment.add_lasso(lasso)
            return segment.mask.copy()

    with server_process("--launch", command, "--worker-host", "127.0.0.1") as server:
        expected = segment(server.address, None)
        first = remote_worker()
        assert first is not None
        seen = threading.Event()

        def kill() -> None:
            assert seen.wait(120)
            cluster.kill_node_of(first)

        killing = threading.Thread(target=kill)
        killing.start()
        started = time.monotonic()
        found = segment(server.address, seen)
        killing.join()
        print(f"the prompt took {time.monotonic() - started:.1f} s")
        assert remote_worker() not in (first, None)
        assert expected.any()
        assert np.array_equal(found, expected)
    wait_until(lambda: remote_worker() is None, timeout=30)


def test_without_ray_a_sentence_says_so(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(name='ray')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*LAUNCH, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "ray: launch_ray needs the package ray. Install it with: pip install ray\n"


def test_a_command_is_required(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launch_ray"])
    with pytest.raises(SystemExit):
        launch_ray.main()
    assert "Expected a command." in capsys.readouterr().err
