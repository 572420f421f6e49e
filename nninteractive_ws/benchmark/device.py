"""Benchmark of prompts on a GPU, without servers.

It compares nnInteractive's session with this project's, with the image on the device and on the host, and each with
and without torch.compile.

``python -m nninteractive_ws.benchmark.device MODEL WORKLOAD TIMES DEVICE``: a model folder, the folder of the saved
workload, the number of runs of each prompt, and torch's name of the device. Prints each measurement as a line of JSON.
"""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
import gc
import itertools
import json
from pathlib import Path
import sys
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from nninteractive_ws import masks
from nninteractive_ws.benchmark.measure import Measurement, describe
from nninteractive_ws.benchmark.sessions import INPUTS, NETWORK, InstrumentedSession, Stopwatch, official_session
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN, OfficialClient
from nninteractive_ws.benchmark.workload import Workload
from nninteractive_ws.engine.model_loader import pick_device
from nninteractive_ws.evaluation.simulated_user import SimulatedPrompt
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Delta
from nninteractive_ws.messages import AddBbox, AddLasso, AddPoint, AddScribble, Request, Reset

_SEGMENT = "a"
#: Locations of image and interactions, first the one that a server with a GPU prefers.
_LOCATIONS = _ON_DEVICE, _ON_HOST = ("on the device", "on the host")


class _PromptTarget(Protocol):
    def open(self, volume: npt.NDArray[np.int16]) -> None: ...
    def send_prompt(self, prompt: SimulatedPrompt) -> object: ...
    def reset(self) -> None: ...


class _Own:
    """This project's session, prompted as by a server."""

    def __init__(self, session: InstrumentedSession) -> None:
        self._session = session
        self._ids = itertools.count(2)
        self.open = session.open

    def send_prompt(self, prompt: SimulatedPrompt) -> None:
        self._session.do(_request(next(self._ids), prompt))

    def reset(self) -> None:
        self._session.do(Reset(id=next(self._ids), segment=_SEGMENT))


def _request(number: int, prompt: SimulatedPrompt) -> Request:
    shape, positive = prompt.shape, prompt.positive
    if isinstance(shape, Box):
        return AddBbox(id=number, segment=_SEGMENT, box=shape.pairs, positive=positive)
    if isinstance(shape, Delta):
        kind = AddLasso if prompt.kind == "lasso" else AddScribble
        return kind(id=number, segment=_SEGMENT, mask=masks.pack(shape, "blosc2"), positive=positive)
    return AddPoint(id=number, segment=_SEGMENT, point=shape, positive=positive)


def measure(model: Path, workload: Workload, times: int, device_name: str) -> Iterator[Measurement]:
    """Measure each prompt of the workload with each session: milliseconds in total, in the network and elsewhere.

    Compiled networks and the peak of the device's memory are included on a GPU only.
    """
    device = pick_device(device_name)
    for compiled in (False, True) if device != pick_device("cpu") else (False,):
        yield from _measure_sessions(model, workload, times, device, compiled)


def _measure_sessions(
    model: Path, workload: Workload, times: int, device: torch.device, compiled: bool
) -> Iterator[Measurement]:
    """Measure with all networks compiled, or with none."""
    stopwatch, prefix, host = Stopwatch(device), "compiled, " * compiled, pick_device("cpu")
    sessions: dict[str, _PromptTarget] = {}

    def start(name: str) -> _PromptTarget:
        if name == OFFICIAL.name:
            return OfficialClient(official_session(model, device, compiled, stopwatch))
        images = device if name == _ON_DEVICE else host
        return _Own(InstrumentedSession(model, device, images, compiled, stopwatch))

    def run(number: int, names: Sequence[str]) -> Iterator[Measurement]:
        for prompt in workload.prompts.values():
            case = prefix + describe(prompt.kind, prompt.positive)
            for name in names:
                measured = _measure_prompt(sessions[name], prompt, stopwatch)
                yield from _measurements(name, measured, workload.size, case, number)

    for name in (OFFICIAL.name, *_LOCATIONS):
        gc.collect()  # of earlier sessions, which would otherwise count as memory before this one
        before = torch.cuda.memory_allocated(device) if device != host else 0
        session = sessions[name] = start(name)
        session.open(workload.volume)
        for prompt in workload.prompts.values():  # warm-up, not measured
            session.send_prompt(prompt)
        if device != host:
            torch.cuda.reset_peak_memory_stats(device)
        # The first run does not wait for the other sessions, because it can take a minute to compile a network.
        yield from run(0, [name])
        if device != host:
            peak = {"peak device memory, MB": (torch.cuda.max_memory_allocated(device) - before) / 1e6}
            yield from _measurements(name, peak, workload.size, f"{prefix}all prompts", 0)
    for number in range(1, times):
        yield from run(number, list(sessions))


def _measure_prompt(session: _PromptTarget, prompt: SimulatedPrompt, stopwatch: Stopwatch) -> dict[str, float]:
    if prompt.positive:
        session.reset()
    stopwatch.seconds.clear()
    stopwatch.calls.clear()
    started = time.monotonic()
    session.send_prompt(prompt)
    elapsed = time.monotonic() - started
    network, inputs = stopwatch.seconds[NETWORK], stopwatch.seconds[INPUTS]
    return {
        "passes": stopwatch.calls[NETWORK],
        "result, ms": 1e3 * elapsed,
        "network, ms": 1e3 * network,
        "its inputs, ms": 1e3 * inputs,
        "all else, ms": 1e3 * (elapsed - network - inputs),
    }


def _measurements(name: str, measured: dict[str, float], size: str, case: str, run: int) -> Iterator[Measurement]:
    """Yield what was measured with a session. Each location is compared with the official session."""
    system = OFFICIAL if name == OFFICIAL.name else OWN
    for location in _LOCATIONS if system is OFFICIAL else (name,):
        yield Measurement(f"GPU, image {location}", size, system.name, case, run, measured)


def main() -> None:
    model, folder, times, device = sys.argv[1:]
    results = sys.stdout
    with redirect_stdout(sys.stderr):  # nnInteractive prints, too
        for measurement in measure(Path(model), Workload.load(Path(folder)), int(times), device):
            print(json.dumps(asdict(measurement)), file=results, flush=True)


if __name__ == "__main__":
    main()
