"""Run the parts of the benchmark."""

from collections.abc import Callable, Iterator, Sequence
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
_FRACTIONS = (0.5, 0.75, 1.25)
#: Volume of simultaneous clients: the demo's phantom, so that many fit on one machine.
_SMALL: Index = (160, 128, 112)


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


class NoGpu(Exception):
    """A part of the benchmark needs a GPU, and there is none."""


def run(
    parts: Sequence[Part] | None, folder: Path, shape: Index, times: int, on_status: Callable[[str], None]
) -> Iterator[Measurement]:
    """Run parts of the benchmark, and yield each measurement.

    ``parts``: None: all for which this machine has the devices. ``folder``: an empty one, for models, volumes and the
    servers' logs. ``on_status``: called with the next step. Raises NoGpu, ServerDidNotStart, and the errors of both
    clients.
    """
    on_status("creating models and a volume")
    device = make_models(folder)
    if parts is None:
        parts = [part for part in Part if part is not Part.GPU or device != "cpu"]
    elif Part.GPU in parts and device == "cpu":
        raise NoGpu("--part gpu needs a GPU, and torch finds none on this machine. Choose other parts.")
    workload = make_workload(shape)
    pass_log = PassLog(folder / "passes")
    size = " x ".join(map(str, shape))
    embedded = ServedModel(folder / "embedded", device)
    if Part.FIRST_MASK in parts:
        for model in ("embedded", "official"):
            on_status(f"first mask, {model} patch")
            with measure.serve_both(ServedModel(folder / model, device)) as servers:
                patch = "patch 96" if model == "embedded" else "patch 192"
                for speed in (None, *LINKS):
                    name = "loopback" if speed is None else speed.name
                    yield from measure.first_mask(servers, workload, f"{patch}, {name}", speed, times)
        with measure.serve_both(embedded) as servers:
            for fraction in _FRACTIONS:
                smaller = _scaled(shape, fraction)
                on_status(f"first mask, {smaller}")
                case = f"patch 96, {LINKS[1].name}, {' x '.join(map(str, smaller))}"
                yield from measure.first_mask(servers, make_workload(smaller), case, LINKS[1], times)
    if Part.PROMPTS in parts or Part.HISTORY in parts:
        with measure.serve_both(embedded) as servers:
            if Part.PROMPTS in parts:
                on_status("prompts")
                yield from measure.prompts(servers, pass_log, workload, size, times)
            if Part.HISTORY in parts:
                on_status("undo, redo, other objects")
                yield from measure.history(servers, pass_log, workload, size, times)
        if Part.HISTORY in parts:
            on_status("cut connections, restarted servers")
            yield from measure.losses(embedded, pass_log, workload, size, times)
    yield from _in_processes(parts, folder, device, workload, times, on_status)


def _in_processes(
    parts: Sequence[Part], folder: Path, device: str, workload: Workload, times: int, on_status: Callable[[str], None]
) -> Iterator[Measurement]:
    """Run the parts whose clients are in processes of their own."""
    served = ServedModel(folder / "embedded", device, max(measure.CLIENTS))
    if Part.CLIENTS in parts:
        on_status("several clients")
        yield from measure.clients(served, _save_small(folder)[1], "demo's phantom", times)
    if Part.FAIRNESS in parts:
        with measure.serve_both(served) as servers:
            on_status("a click beside a heavy user")
            yield from fairness.fairness(servers, *_save_small(folder), "demo's phantom", times)
            on_status("cost of the HTTP API")
            size = " x ".join(map(str, workload.volume.shape))
            yield from fairness.api_cost(servers, PassLog(folder / "passes"), workload, size, times)
    workload_folder = folder / "workload"
    if Part.MEMORY in parts or Part.GPU in parts:
        workload_folder.mkdir()
        workload.save(workload_folder)
    if Part.MEMORY in parts:
        on_status("memory")
        yield from measure.memory(served, workload_folder, " x ".join(map(str, workload.volume.shape)))
        for case in session_memory.CASES:
            on_status(f"memory of a session: {case}")
            yield session_memory.measure(folder / "local", case)
    if Part.GPU in parts:
        on_status("prompts on the GPU, with a network of the official size")
        yield from on_device(folder / "large", workload_folder, times, device)


def _save_small(folder: Path) -> tuple[Workload, Path]:
    """Create the small workload, and save it in a folder. Return both."""
    workload, small = make_workload(_SMALL), folder / "small"
    small.mkdir(exist_ok=True)
    workload.save(small)
    return workload, small


def on_device(model: Path, workload_folder: Path, times: int, device: str) -> Iterator[Measurement]:
    """Run the module ``device`` in a process of its own. ``workload_folder``: contains the saved workload."""
    arguments = [str(model), str(workload_folder), str(times), device]
    command = python_module("nninteractive_ws.benchmark.device", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Measurement(**json.loads(line))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _scaled(shape: Index, fraction: float) -> Index:
    i, j, k = (round(n * fraction) for n in shape)
    return i, j, k
