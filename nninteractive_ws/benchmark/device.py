"""Benchmark of prompts on a GPU, without servers.

It compares nnInteractive's session with this project's, with the image on the host and on the device, and each with
and without torch.compile.

``python -m nninteractive_ws.benchmark.device MODEL WORKLOAD TIMES DEVICE``: a model folder, the folder of the saved
workload, the number of runs of each prompt, and torch's name of the device. Prints each measurement as a line of JSON.
"""

from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
import itertools
import json
from pathlib import Path
import sys
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

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
#: Locations of image and interactions.
_LOCATIONS = ("on the host", "on the device")


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

    Compiled networks are included on a GPU only, as in nnInteractive.
    """
    device, host = pick_device(device_name), pick_device("cpu")
    for compiled in (False, True) if device != host else (False,):
        stopwatch = Stopwatch(device)
        sessions: dict[str, _PromptTarget] = {
            OFFICIAL.name: OfficialClient(official_session(model, device, compiled, stopwatch)),
        }
        for location, images in zip(_LOCATIONS, (host, device), strict=True):
            sessions[location] = _Own(InstrumentedSession(model, device, images, compiled, stopwatch))
        for session in sessions.values():
            session.open(workload.volume)
            for prompt in workload.prompts.values():  # warm-up, not measured
                session.send_prompt(prompt)
        for run in range(times):
            for prompt in workload.prompts.values():
                measured = {name: _measure_prompt(session, prompt, stopwatch) for name, session in sessions.items()}
                case = f"{'compiled, ' * compiled}{describe(prompt.kind, prompt.positive)}"
                yield from _measurements(measured, workload.size, case, run)


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


def _measurements(measured: Mapping[str, dict[str, float]], size: str, case: str, run: int) -> Iterator[Measurement]:
    """Pair this project's session in each location with the official one."""
    for location in _LOCATIONS:
        for system, name in ((OFFICIAL, OFFICIAL.name), (OWN, location)):
            yield Measurement(f"GPU, image {location}", size, system.name, case, run, measured[name])


def main() -> None:
    model, folder, times, device = sys.argv[1:]
    results = sys.stdout
    with redirect_stdout(sys.stderr):  # nnInteractive prints, too
        for measurement in measure(Path(model), Workload.load(Path(folder)), int(times), device):
            print(json.dumps(asdict(measurement)), file=results, flush=True)


if __name__ == "__main__":
    main()
