"""Prompts on a GPU, in this process: nnInteractive's own session, and this project's with the image on the host and on
the device; each with and without torch.compile.

``python -m nninteractive_ws.benchmark.device MODEL WORK TIMES DEVICE``: a model folder, the folder in which the work
is kept, how often each prompt is given, and torch's name of the device. Prints every record as a line of JSON.
"""

from collections.abc import Iterator, Mapping
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
from nninteractive_ws.benchmark.measure import Record, words
from nninteractive_ws.benchmark.sides import OFFICIAL, OWN, OfficialClient
from nninteractive_ws.benchmark.work import Work
from nninteractive_ws.engine.bench_sessions import INPUTS, NETWORK, Stopwatch, WatchedSession, official_session
from nninteractive_ws.engine.models import pick_device
from nninteractive_ws.evaluation.user import Prompt
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Delta
from nninteractive_ws.messages import AddBbox, AddLasso, AddPoint, AddScribble, Request, Reset

_SEGMENT = "a"
#: Where image and interactions are kept.
_PLACES = ("on the host", "on the device")


class _Prompted(Protocol):
    def open(self, volume: npt.NDArray[np.int16]) -> None: ...
    def give(self, prompt: Prompt) -> object: ...
    def reset(self) -> None: ...


class _Own:
    """This project's session, prompted as a server would be."""

    def __init__(self, session: WatchedSession) -> None:
        self._session = session
        self._ids = itertools.count(2)
        self.open = session.open

    def give(self, prompt: Prompt) -> None:
        self._session.do(_request(next(self._ids), prompt))

    def reset(self) -> None:
        self._session.do(Reset(id=next(self._ids), segment=_SEGMENT))


def _request(number: int, prompt: Prompt) -> Request:
    shape, positive = prompt.shape, prompt.positive
    if isinstance(shape, Box):
        return AddBbox(id=number, segment=_SEGMENT, box=shape.pairs, positive=positive)
    if isinstance(shape, Delta):
        kind = AddLasso if prompt.kind == "lasso" else AddScribble
        return kind(id=number, segment=_SEGMENT, mask=masks.pack(shape, "blosc2"), positive=positive)
    return AddPoint(id=number, segment=_SEGMENT, point=shape, positive=positive)


def measure(model: Path, work: Work, times: int, device_name: str) -> Iterator[Record]:
    """Every prompt of the work with every session: milliseconds, and where they went.

    Compiled where nnInteractive compiles: not on a CPU.
    """
    device, host = pick_device(device_name), pick_device("cpu")
    for compiled in (False, True) if device != host else (False,):
        watch = Stopwatch(device)
        sessions: dict[str, _Prompted] = {
            OFFICIAL.name: OfficialClient(official_session(model, device, compiled, watch)),
        }
        for place, images in zip(_PLACES, (host, device), strict=True):
            sessions[place] = _Own(WatchedSession(model, device, images, compiled, watch))
        for session in sessions.values():
            session.open(work.volume)
            for prompt in work.prompts.values():  # not measured: what is done once is done now
                session.give(prompt)
        for run in range(times):
            for prompt in work.prompts.values():
                measured = {name: _measured(session, prompt, watch) for name, session in sessions.items()}
                yield from _records(measured, f"{'compiled, ' * compiled}{words(prompt.kind, prompt.positive)}", run)


def _measured(session: _Prompted, prompt: Prompt, watch: Stopwatch) -> dict[str, float]:
    if prompt.positive:
        session.reset()
    watch.seconds.clear()
    watch.calls.clear()
    started = time.monotonic()
    session.give(prompt)
    took = time.monotonic() - started
    network, inputs = watch.seconds[NETWORK], watch.seconds[INPUTS]
    return {
        "passes": watch.calls[NETWORK],
        "result, ms": 1e3 * took,
        "network, ms": 1e3 * network,
        "its inputs, ms": 1e3 * inputs,
        "all else, ms": 1e3 * (took - network - inputs),
    }


def _records(measured: Mapping[str, dict[str, float]], case: str, run: int) -> Iterator[Record]:
    """Ours in both places, each beside the official one's."""
    for place in _PLACES:
        for side, name in ((OFFICIAL, OFFICIAL.name), (OWN, place)):
            yield Record("GPU", side.name, f"image {place}, {case}", run, measured[name])


def main() -> None:
    model, folder, times, device = sys.argv[1:]
    for record in measure(Path(model), Work.load(Path(folder)), int(times), device):
        print(json.dumps(asdict(record)), flush=True)


if __name__ == "__main__":
    main()
