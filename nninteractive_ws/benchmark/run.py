"""Run the parts of the benchmark."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
import json
import os
from pathlib import Path
import platform
import subprocess

import psutil

from nninteractive_ws.benchmark import Part, fairness, measure, session_memory
from nninteractive_ws.benchmark.measure import LINKS, Measurement, PassLog
from nninteractive_ws.benchmark.systems import ServedModel
from nninteractive_ws.benchmark.workload import Workload, make_workload
from nninteractive_ws.geometry import Index
from nninteractive_ws.processes import python_module

#: Scale factors of the volume's edges, to measure how cost grows. Measured over the second of the links.
_FRACTIONS = (0.5, 0.75, 1.0, 1.25)
#: Default volumes: a CT, and for prompts and simultaneous clients the demo's phantom, of which many fit on one machine.
_LARGE: Index = (512, 512, 256)
_SMALL: Index = (160, 128, 112)
#: Default numbers of runs: where a run takes at most a few seconds, where it takes minutes, and elsewhere.
SHORT_TIMES, HEAVY_USER_TIMES, LONG_TIMES = 5, 1, 3
#: Links on which a run of the first mask takes at most a few seconds.
_FAST_BITS_PER_S = 1e9


def machine() -> dict[str, object]:
    """Return properties of the machine."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "memory, GB": round(psutil.virtual_memory().total / 1e9, 1),
        "load average before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def make_models(folder: Path) -> str:
    """Create the model folders in ``folder``, and return the device. Only the subprocess for it imports torch."""
    command = python_module("nninteractive_ws.benchmark.models", str(folder))
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class MeasurementFailed(Exception):
    """A process of the benchmark failed. ``str()`` is a sentence."""


class NoGpu(Exception):
    """A part of the benchmark needs a GPU, and there is none."""


def run(
    parts: Sequence[Part] | None,
    folder: Path,
    shape: Index | None,
    times: int | None,
    on_status: Callable[[str], None],
) -> Iterator[Measurement]:
    """Run parts of the benchmark, and yield each measurement.

    ``parts``: None: all for which this machine has the devices. ``folder``: an empty one, for models, volumes and the
    servers' logs. ``shape``, ``times``: size of the volumes and number of runs; None: the defaults of each part.
    ``on_status``: called with the next step. Raises NoGpu, ServerDidNotStart, and the errors of both clients.
    """
    on_status("creating models")
    device = make_models(folder)
    if parts is None:
        parts = [part for part in Part if part is not Part.GPU or device != "cpu"]
    elif Part.GPU in parts and device == "cpu":
        raise NoGpu("--part gpu needs a GPU, and torch finds none on this machine. Choose other parts.")
    of_part = {
        Part.FIRST_MASK: _first_mask,
        Part.PROMPTS: _prompts,
        Part.HISTORY: _history,
        Part.CLIENTS: _clients,
        Part.FAIRNESS: _fairness,
        Part.MEMORY: _memory,
        Part.GPU: _gpu,
    }
    setting = _Setting(folder, device, shape, times, on_status)
    for part in (part for part in Part if part in parts):
        yield from of_part[part](setting)


@dataclass(frozen=True)
class _Setting:
    """Arguments of all parts, see run()."""

    folder: Path
    device: str
    shape: Index | None
    times: int | None
    on_status: Callable[[str], None]

    @property
    def pass_log(self) -> PassLog:
        return PassLog(self.folder / "passes")

    @property
    def short_times(self) -> int:
        return self.times or SHORT_TIMES

    @property
    def long_times(self) -> int:
        return self.times or LONG_TIMES

    def served(self, model: str = "embedded", sessions: int = 2) -> ServedModel:
        return ServedModel(self.folder / model, self.device, sessions)

    def workload(self, default: Index) -> Workload:
        """Create the workload on a volume of the chosen size, or of the default of the part."""
        self.on_status("creating a volume")
        return make_workload(self.shape or default)

    def save(self, workload: Workload) -> Path:
        """Save a workload for client processes. Return its folder."""
        folder = self.folder / f"workload {workload.size}"
        folder.mkdir(exist_ok=True)
        workload.save(folder)
        return folder


def _first_mask(setting: _Setting) -> Iterator[Measurement]:
    workload = setting.workload(_LARGE)
    for model, patch in (("embedded", "patch 96"), ("official", "patch 192")):
        setting.on_status(f"first mask, {model} patch")
        with measure.serve_both(setting.served(model)) as servers:
            for speed in (None, *LINKS):
                fast = speed is None or speed.bits_per_s >= _FAST_BITS_PER_S
                times = setting.short_times if fast else setting.long_times
                case = f"{patch}, {measure.LOOPBACK if speed is None else speed.name}"
                # The image does not depend on the model.
                measure_image = model == "embedded"
                yield from measure.first_mask(
                    servers, setting.pass_log, workload, case, speed, times, with_image=measure_image
                )
    speed, shape = LINKS[1], workload.volume.shape
    with measure.serve_both(setting.served()) as servers:
        for fraction in _FRACTIONS:
            i, j, k = (round(n * fraction) for n in shape)
            scaled = make_workload((i, j, k))
            setting.on_status(f"first mask, {scaled.size}")
            part, times = f"first mask at {speed.name}", setting.long_times
            yield from measure.first_mask(servers, setting.pass_log, scaled, scaled.size, speed, times, part=part)


def _prompts(setting: _Setting) -> Iterator[Measurement]:
    workload = setting.workload(_SMALL)
    setting.on_status("prompts")
    with measure.serve_both(setting.served()) as servers:
        yield from measure.prompts(servers, setting.pass_log, workload, setting.short_times)


def _history(setting: _Setting) -> Iterator[Measurement]:
    workload = setting.workload(_SMALL)
    setting.on_status("undo, redo, other objects")
    with measure.serve_both(setting.served()) as servers:
        yield from measure.history(servers, setting.pass_log, workload, setting.short_times)
    setting.on_status("cut connections, restarted servers")
    yield from measure.losses(setting.served(), setting.pass_log, workload, setting.short_times)


def _clients(setting: _Setting) -> Iterator[Measurement]:
    workload = make_workload(_SMALL)
    setting.on_status("several clients")
    served = setting.served(sessions=max(measure.CLIENTS))
    yield from measure.clients(served, setting.pass_log, workload, setting.save(workload), setting.long_times)


def _fairness(setting: _Setting) -> Iterator[Measurement]:
    with measure.serve_both(setting.served(sessions=max(measure.CLIENTS))) as servers:
        phantom = make_workload(_SMALL)
        setting.on_status("a click beside a heavy user")
        folder = setting.save(phantom)
        times = setting.times or HEAVY_USER_TIMES
        yield from fairness.fairness(servers, setting.pass_log, phantom, folder, times)
        workload = setting.workload(_SMALL)
        setting.on_status("cost of the HTTP API")
        yield from fairness.api_cost(servers, setting.pass_log, workload, setting.short_times)


def _memory(setting: _Setting) -> Iterator[Measurement]:
    workload = setting.workload(_LARGE)
    setting.on_status("memory")
    served = replace(setting.served(), device="cpu")
    yield from measure.memory(served, workload, setting.save(workload))
    for case in session_memory.CASES:
        setting.on_status(f"memory of a session: {case}")
        yield from session_memory.measure(setting.folder / "local", case)


def _gpu(setting: _Setting) -> Iterator[Measurement]:
    workload = setting.workload(_LARGE)
    setting.on_status("prompts on the GPU, with a network of the official size")
    folder = setting.save(workload)
    yield from on_device(setting.folder / "large", folder, setting.short_times, setting.device)


def on_device(model: Path, workload_folder: Path, times: int, device: str) -> Iterator[Measurement]:
    """Run the module ``device`` in a process of its own. ``workload_folder``: contains the saved workload."""
    arguments = [str(model), str(workload_folder), str(times), device]
    command = python_module("nninteractive_ws.benchmark.device", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Measurement(**json.loads(line))
    if process.returncode:
        raise MeasurementFailed(
            f"The process of the measurements on {device} ended with status {process.returncode}. See its messages "
            "above."
        )
