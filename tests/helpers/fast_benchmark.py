"""The benchmark without servers, processes and networks: all its parts run in seconds, with meaningless values."""

from collections.abc import Iterator
from contextlib import contextmanager
import itertools
import json
from pathlib import Path
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from nninteractive_ws.benchmark import device, fairness, measure, run, session_memory, systems, workload
from nninteractive_ws.benchmark.measure import Measurement, describe
from nninteractive_ws.benchmark.sessions import Stopwatch
from nninteractive_ws.benchmark.systems import OFFICIAL, ServedModel, Server, SystemUnderTest
from nninteractive_ws.benchmark.workload import Workload

SHAPE = (512, 512, 256)
_SMALL = (64, 64, 64)


class _Session(MagicMock):
    """A session of this project's client, which has each image and each mask at once."""

    def on(self, event: str, callback: Any) -> None:
        if event == "image_progress":
            self.set_image.side_effect = lambda _: callback(SimpleNamespace(present=1, total=1))


class _Process:
    """A client in a process of its own, which has printed its results before it was started."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.process = MagicMock()
        answers = {"answers": [(0.0, 1.0, 2.0), (2.0, 3.0, 4.0)], "added": 1}
        self._lines = iter(["", json.dumps(answers if module == "client" else []), ""])

    def read_line(self) -> str:
        return next(self._lines)

    def write_line(self, text: str = "") -> None:
        pass


class _Relay:
    port = 1

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def count(self) -> tuple[int, int]:
        return next(self._count), next(self._count)


@contextmanager
def _link(*_: object) -> Iterator[_Relay]:
    yield _Relay()


@contextmanager
def _serve(system: SystemUnderTest, served: ServedModel) -> Iterator[Server]:
    yield Server(1, 1)


def _make_models(folder: Path) -> str:
    (folder / "passes").touch()
    return "cuda:0"


def _on_device(model: Path, workload_folder: Path, times: int, name: str) -> Iterator[Measurement]:
    work = Workload.load(workload_folder)
    stopwatch = Stopwatch(torch.device("cpu"))
    for prompt in work.prompts.values():
        measured = device._measure_prompt(MagicMock(), prompt, stopwatch)
        case = f"compiled, {describe(prompt.kind, prompt.positive)}"
        for session, number in itertools.product((OFFICIAL.name, *device._LOCATIONS), range(times)):
            yield from device._measurements(session, measured, work.size, case, number)


def all_measurements(monkeypatch: pytest.MonkeyPatch, folder: Path, times: int | None) -> list[Measurement]:
    """Run all parts of the benchmark, with the default sizes of volumes in their names."""
    work = workload.make_workload(_SMALL)
    monkeypatch.setattr(Workload, "size", " x ".join(map(str, SHAPE)))
    monkeypatch.setattr(SystemUnderTest, "serve", _serve)
    monkeypatch.setattr(Server, "peak_bytes", lambda _: 1)  # works on Linux only
    monkeypatch.setattr(Server, "processor_seconds", lambda _: time.monotonic())
    monkeypatch.setattr(measure, "_NORMALIZATION_S", 0.0)
    monkeypatch.setattr(systems, "connect", lambda _: _Session())
    monkeypatch.setattr(systems, "nnInteractiveRemoteInferenceSession", MagicMock())
    monkeypatch.setattr(measure, "link", _link)
    stage = session_memory._Stage({}, 1, 1, {"accounted": 1, "resident": 1})
    monkeypatch.setattr(session_memory, "_stage", lambda *_: stage)
    monkeypatch.setattr(session_memory, "_noisy_phantom", lambda _: work.volume)
    for module in (measure, fairness, session_memory):
        monkeypatch.setattr(module, "ClientProcess", _Process)
    for name in ("_CLICKS_ALONE_S", "_HEAVY_ALONE_S", "_BOTH_S", "_PAUSE_S"):
        monkeypatch.setattr(fairness, name, 0.0)
    monkeypatch.setattr(fairness, "_a_minute", lambda *_: 1.0)
    monkeypatch.setattr(run, "make_models", _make_models)
    monkeypatch.setattr(run, "make_workload", lambda _: work)
    monkeypatch.setattr(run, "on_device", _on_device)
    return list(run.run(None, folder, SHAPE, times, lambda _: None))
