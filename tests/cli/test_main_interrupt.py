"""Ctrl-C in commands, as a terminal sends it: to all processes of the foreground group."""

from collections.abc import Callable
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
import uuid

from helpers.end_to_end import wait_until
import pytest
import SimpleITK as sitk

from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.processes import python_module

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

COMMANDS = {
    "segment": ["segment", "ct.nii.gz", "--point", "30,30,30", "-o", "out.nii.gz", "--model", "demo"],
    "batch": ["batch", "jobs.csv", "-o", "out"],
    "evaluate": ["evaluate", "phantom:10", "-o", "out"],
    "demo": ["demo", "-o", "out"],
    "serve": ["serve", "--port", "0", "--model", "demo"],
}


class Running:
    """A command in its own process group."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            python_module("nninteractive_ws", *arguments), cwd=folder, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TEST_MARK": self._mark},
        )  # fmt: skip

    def count(self, word: str = "") -> int:
        """Return the number of processes of the command with a word in their command lines."""
        return sum(self._is_ours(path, word) for path in Path("/proc").iterdir() if path.name.isdigit())

    def _is_ours(self, path: Path, word: str) -> bool:
        try:
            mark = self._mark.encode() in (path / "environ").read_bytes()
            return mark and word.encode() in (path / "cmdline").read_bytes()
        except OSError:  # it has ended
            return False

    def interrupt(self) -> str:
        """Press Ctrl-C, and return what was printed until the end."""
        os.killpg(self.process.pid, signal.SIGINT)
        return "".join(self.process.communicate(timeout=60))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = make_phantom(5, (72, 64, 56), (4.0, 4.0, 4.0)).image
    sitk.WriteImage(sitk.GetImageFromArray(image.transpose()), tmp_path / "ct.nii.gz")
    (tmp_path / "jobs.csv").write_text("image,segment,prompt,ijk\nct.nii.gz,a,point,30 30 30\n")
    return tmp_path


def check(
    folder: Path, command: str, ready: Callable[[Running], object], delay_s: float, may_finish: bool = False
) -> None:
    """Interrupt a command some time after it is ready. ``may_finish``: a fast computer may be done by then."""
    running = Running(folder, COMMANDS[command])
    wait_until(lambda: ready(running) or running.process.poll() is not None)
    time.sleep(delay_s)
    output = running.interrupt()
    # Python itself handles Ctrl-C while it ends.
    finished = may_finish and "Stopped" not in output and running.process.returncode in (0, -signal.SIGINT)
    assert finished or (running.process.returncode == 130 and "Stopped" in output), output
    assert "Traceback" not in output
    wait_until(lambda: running.count() == 0)


def worker_runs(running: Running) -> bool:
    return running.count("nninteractive_ws.engine.worker") > 0


def server_runs(running: Running) -> bool:
    return running.count("serve") > 0


# At these moments, the worker imports torch.
@pytest.mark.parametrize("command", ["segment", "serve", *(pytest.param(c, marks=pytest.mark.slow) for c in COMMANDS)])
def test_interrupt_while_the_model_is_loading(folder: Path, command: str) -> None:
    check(folder, command, worker_runs, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("delay_s", [0.5, 1.5, 3.0])
def test_interrupt_at_other_moments(folder: Path, command: str, delay_s: float) -> None:
    """While the gateway starts, while the model is loading, and during a prediction."""
    check(folder, command, server_runs, delay_s, may_finish=command != "serve" and delay_s > 1)


@pytest.mark.parametrize("command", ["batch", "demo"])
def test_interrupt_during_the_imports(folder: Path, command: str) -> None:
    running = Running(folder, COMMANDS[command])
    wait_until(lambda: _imports(running))
    output = running.interrupt()
    assert running.process.returncode == 130, output
    assert output.strip().startswith("Stopped.")
    assert "Traceback" not in output


def _imports(running: Running) -> bool:
    """Whether the package's own dependencies with compiled code are being imported."""
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    return "numpy" in maps or "msgspec" in maps
