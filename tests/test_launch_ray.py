"""Workers on a real Ray cluster of three nodes on this machine, two of which have a GPU, according to their settings."""

from collections.abc import Iterator
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


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=pipe, stdout=pipe, text=True) as process:
        try:
            started = RayCluster(process)
            monkeypatch.setenv("RAY_ADDRESS", started.address)
            yield started
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def launch(*command: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([*LAUNCH, *command], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def read_pid(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def remote_worker() -> int | None:
    """Return the process id of a worker that Ray started."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"nninteractive_ws.engine.worker" in arguments and b"nninteractive_ws.launch_ray" not in arguments:
            return int(path.parent.name)
    return None


@pytest.mark.slow
def test_a_command_runs_on_a_node(cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With standard input, environment and status. It ends with its launcher, however that ends."""
    monkeypatch.setenv("PASSED_ON", "yes")
    script = f'read a; echo "$a $PASSED_ON $CUDA_VISIBLE_DEVICES" >{tmp_path}/found; exit 3'
    process = launch("--gpus", "1", "sh", "-c", script)
    assert process.stdin is not None
    process.stdin.write("line\n")
    process.stdin.flush()
    assert process.wait(60) == 3
    assert (tmp_path / "found").read_text() == "line yes 0\n"

    process = launch("--gpus", "1", "no-such-program")
    assert process.stdout is not None
    assert "no-such-program cannot be started" in process.stdout.read()
    assert process.wait(60) == 1

    for name, end in {
        "end of input": lambda process: process.stdin.close(),
        "SIGTERM": lambda process: process.terminate(),
        "SIGKILL": lambda process: process.kill(),
    }.items():
        noted = tmp_path / name
        process = launch("--gpus", "1", "sh", "-c", f'echo $$ >"{noted}"; exec sleep 100')
        pid = read_pid(noted)
        end(process)
        process.wait(30)
        wait_until(lambda pid=pid: not is_running(pid), timeout=30)

    # No node has so many GPUs.
    process = launch("--gpus", "5", "true")
    assert process.stdout is not None
    assert any("waiting for a node" in line for line in process.stdout)
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
