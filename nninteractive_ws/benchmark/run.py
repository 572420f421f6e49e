"""The parts of the benchmark, one after the other."""

from collections.abc import Callable, Iterator, Sequence
import json
import os
from pathlib import Path
import platform
import subprocess

import psutil

from nninteractive_ws.benchmark import Part, measure, session_memory
from nninteractive_ws.benchmark.measure import LINKS, Passes, Record
from nninteractive_ws.benchmark.sides import Served
from nninteractive_ws.benchmark.work import Work, make_work
from nninteractive_ws.geometry import Index
from nninteractive_ws.processes import python_module

#: How cost grows: a fraction of every side of the volume. Over the link of the middle speed.
_FRACTIONS = (0.5, 0.75, 1.25)
#: What several clients open: the demo's phantom, so that many fit on one machine.
_SMALL: Index = (160, 128, 112)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "memory, GB": round(psutil.virtual_memory().total / 1e9, 1),
        "load average before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def make_models(folder: Path) -> str:
    """Write the model folders into a folder; the device there is. In a process of its own, which alone needs torch."""
    command = python_module("nninteractive_ws.engine.bench_models", str(folder))
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class NoGpu(Exception):
    """What needs a GPU was asked for where there is none."""


def run(
    parts: Sequence[Part] | None, folder: Path, shape: Index, times: int, say: Callable[[str], None]
) -> Iterator[Record]:
    """Measure; each record as it is made.

    ``parts``: None: all that this machine has the devices for. ``folder``: an empty one, for models, volumes and the
    servers' logs. ``say``: told in words what comes next. Raises NoGpu, ServerDidNotStart, and the errors of both
    clients.
    """
    say("making models and a volume")
    device = make_models(folder)
    if parts is None:
        parts = [part for part in Part if part is not Part.GPU or device != "cpu"]
    elif Part.GPU in parts and device == "cpu":
        raise NoGpu("--part gpu needs a GPU that torch can use; torch finds none on this machine.")
    work = make_work(shape)
    passes = Passes(folder / "passes")
    size = " x ".join(map(str, shape))
    embedded = Served(folder / "embedded", device)
    if Part.FIRST_MASK in parts:
        for model in ("embedded", "official"):
            say(f"first mask, {model} patch")
            with measure.both(Served(folder / model, device)) as servers:
                patch = "patch 96" if model == "embedded" else "patch 192"
                for speed in (None, *LINKS):
                    name = "loopback" if speed is None else speed.name
                    yield from measure.first_mask(servers, work, f"{patch}, {name}", speed, times)
        with measure.both(embedded) as servers:
            for fraction in _FRACTIONS:
                smaller = _scaled(shape, fraction)
                say(f"first mask, {smaller}")
                case = f"patch 96, {LINKS[1].name}, {' x '.join(map(str, smaller))}"
                yield from measure.first_mask(servers, make_work(smaller), case, LINKS[1], times)
    if Part.PROMPTS in parts or Part.HISTORY in parts:
        with measure.both(embedded) as servers:
            if Part.PROMPTS in parts:
                say("prompts")
                yield from measure.prompts(servers, passes, work, size, times)
            if Part.HISTORY in parts:
                say("undo, redo, other objects")
                yield from measure.history(servers, passes, work, size, times)
        if Part.HISTORY in parts:
            say("cut connections, restarted servers")
            yield from measure.losses(embedded, passes, work, size, times)
    yield from _in_processes(parts, folder, device, work, times, say)


def _in_processes(
    parts: Sequence[Part], folder: Path, device: str, work: Work, times: int, say: Callable[[str], None]
) -> Iterator[Record]:
    """What needs clients in processes of their own."""
    served = Served(folder / "embedded", device, max(measure.CLIENTS))
    if Part.CLIENTS in parts:
        say("several clients")
        small = folder / "small"
        small.mkdir()
        make_work(_SMALL).save(small)
        yield from measure.clients(served, small, "demo's phantom", times)
    whole = folder / "whole"
    if Part.MEMORY in parts or Part.GPU in parts:
        whole.mkdir()
        work.save(whole)
    if Part.MEMORY in parts:
        say("memory")
        yield from measure.memory(served, whole, " x ".join(map(str, work.volume.shape)))
        for case in session_memory.CASES:
            say(f"memory of a session: {case}")
            yield session_memory.measure(folder / "local", case)
    if Part.GPU in parts:
        say("prompts on the GPU, with a network of the official size")
        yield from on_device(folder / "large", whole, times, device)


def on_device(model: Path, work: Path, times: int, device: str) -> Iterator[Record]:
    """What the module ``device`` measures, in a process of its own; ``work``: the folder that it is kept in."""
    arguments = [str(model), str(work), str(times), device]
    command = python_module("nninteractive_ws.benchmark.device", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Record(**json.loads(line))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _scaled(shape: Index, fraction: float) -> Index:
    i, j, k = (round(n * fraction) for n in shape)
    return i, j, k
