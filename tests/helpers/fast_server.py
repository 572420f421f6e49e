"""A real server with a network that answers in milliseconds. Tests may inspect, kill and restart its processes.

The model folder is in nnInteractive's format, and is written by the tests. Its plans name :class:`ServedNetwork`,
which the worker imports from this file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import torch
from torch.nn import functional

from helpers.end_to_end import OFFICIAL_API, WORKER, children_running, is_running, wait_until
from helpers.engine import QUICK_PATCH, QuickNetwork
from nninteractive_ws.engine.model_registry import MODEL_FOLDER
from nninteractive_ws.server.local_server import LISTENING

NETWORK = "helpers.fast_server.ServedNetwork"
#: The same network, slow enough that a process can be killed in the middle of a prompt.
SLOW_NETWORK = "helpers.fast_server.SlowServedNetwork"
#: The same network, which breaks the worker's device.
BROKEN_DEVICE_NETWORK = "helpers.fast_server.BrokenDeviceNetwork"
LICENSE = "Apache-2.0\nA network of the tests' own, without weights.\n"


# Maximum distance of changes from the newest prompt, in cells of 4 voxels. A change of a whole patch causes zooming
# out, which takes half a second. With this limit, only long strokes and whole masks do.
REACH = 3


class ServedNetwork(QuickNetwork):
    """The quick network as nnU-Net creates it from plans. Its answer changes only near the newest prompt."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool = False) -> None:
        super().__init__()
        assert (input_channels, num_classes, deep_supervision) == (8, 2, False)
        # Limits zooming out, which takes upstream seconds a step. Only in the worker.
        nnInteractiveInferenceSession.MAX_AUTOZOOM_FACTOR = 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        previous, prompts = x[:, 1:2], x[:, 2:].amax(1, keepdim=True)
        # Older prompts have faded. Without prompts, a mask is being refined.
        newest = (prompts >= 0.95 * prompts.amax()).to(x.dtype) if prompts.any() else previous
        cells = functional.max_pool3d(newest, 4)
        near = functional.max_pool3d(cells, 2 * REACH + 1, stride=1, padding=REACH)
        within = functional.interpolate(near, scale_factor=4) > 0
        logits[:, 1:] = torch.where(within, logits[:, 1:], 10 * previous - 5)
        return logits


class SlowServedNetwork(ServedNetwork):
    """The same answers, each after a second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(len(x))
        return super().forward(x)


class BrokenDeviceNetwork(ServedNetwork):
    """The same answers. After the first, the device's memory cannot be asked, as after an illegal access on a GPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def broken(device: torch.device) -> int:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        # The worker, which runs as the main module.
        setattr(sys.modules["__main__"], "used_memory", broken)  # noqa: B010
        return super().forward(x)


def write_model(folder: Path, network: str = NETWORK) -> None:
    """Write a model folder like the embedded model's, with one of these networks."""
    (folder / "fold_0").mkdir(parents=True)
    for name in ("dataset.json", "inference_info.json"):
        shutil.copy(MODEL_FOLDER / name, folder / name)
    plans = json.loads((MODEL_FOLDER / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [QUICK_PATCH] * 3
    configuration["architecture"] = {"network_class_name": network, "arch_kwargs": {}, "_kw_requires_import": []}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "LICENSE").write_text(LICENSE)
    checkpoint: dict[str, Any] = {
        "trainer_name": "nnInteractiveTrainer_stub",
        "init_args": {"configuration": "3d_fullres"},
        "network_weights": {},
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


class QuickServer:
    """A server process. ``log``: the file for its output. Restarts keep the ``address``."""

    def __init__(self, model: Path, log: Path, arguments: tuple[str, ...]) -> None:
        self.model, self.log, self._arguments = model, log, arguments
        self._port = 0
        self.start()

    def start(self) -> None:
        """Start the server on its previous port. Return once it listens."""
        command = [sys.executable, "-m", "nninteractive_ws", "serve", "--port", str(self._port)]
        command += ["--model", str(self.model), *self._arguments]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "PYTHONPATH": path}
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(LISTENING), self.log.read_text()
        self.address = line.removeprefix(LISTENING).strip()
        self._port = int(self.address.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The process id of the gateway."""
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers, none during a restart."""
        return children_running(self.pid, WORKER)

    @property
    def official_api(self) -> list[int]:
        """The process id of the process that answers nnInteractive's HTTP API, none before its first client."""
        return children_running(self.pid, OFFICIAL_API)

    @property
    def worker(self) -> int:
        """Wait for the only worker, and return its process id."""
        wait_until(lambda: len(self.workers) == 1)
        return self.workers[0]

    def kill_worker(self) -> int:
        """Kill the worker, as a device fault would. Return its process id."""
        worker = self.worker
        os.kill(worker, signal.SIGKILL)
        return worker

    def kill(self) -> None:
        """Kill the gateway. Its child processes end by themselves."""
        children = self.workers + self.official_api
        self.process.kill()
        self._wait()
        wait_until(lambda: not any(map(is_running, children)), timeout=30)

    def stop(self) -> None:
        """Stop the server as Ctrl-C does, unless it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
        self._wait()

    def _wait(self) -> None:
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def quick_server(*arguments: str, network: str = NETWORK) -> Iterator[QuickServer]:
    """A server with the quick network on a free port of loopback, and these arguments of ``serve``."""
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "quick"
        write_model(model, network)
        server = QuickServer(model, Path(temporary) / "log", ("--log-level", "warning", *arguments))
        try:
            yield server
        finally:
            server.stop()


# ---- values from /proc --------------------------------------------------------------------------------------


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def count_descriptors(pid: int) -> int:
    """Return the number of open files, pipes and sockets of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
