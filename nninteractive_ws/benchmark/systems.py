"""The two systems under test: each a server as a user starts it, with its own client."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
import os
from pathlib import Path
import socket
import subprocess
import time
from typing import Any, Protocol
import urllib.error
import urllib.request

from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession
import numpy as np
import numpy.typing as npt
from prometheus_client.parser import text_string_to_metric_families
import psutil

from nninteractive_ws.client.blocking import connect
from nninteractive_ws.client.events import ImageProgress, MaskDelta
from nninteractive_ws.evaluation.simulated_user import SimulatedPrompt
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Delta, Mask
from nninteractive_ws.processes import end_process, python_module
from nninteractive_ws.server.local_server import ServerDidNotStart

_START_TIMEOUT_S, _END_TIMEOUT_S = 300.0, 60.0
#: Timeout of the official client. Its default of 60 seconds would end a measurement of long queues.
_READ_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class PromptTimes:
    """Times of the first mask and of the result, from time.monotonic(). They are equal without previews."""

    first: float
    final: float


class Client(Protocol):
    """A client on the calling thread, connected by its constructor."""

    def open(self, volume: npt.NDArray[np.int16]) -> None:
        """Set a volume. Return as soon as a prompt is possible."""

    def wait_for_upload(self) -> float:
        """Wait for the end of the upload, and return its time."""

    def send_prompt(self, prompt: SimulatedPrompt) -> PromptTimes:
        """Send a prompt, and wait for the result."""

    def mask(self) -> Mask:
        """Return the current mask."""

    def undo(self) -> None:
        """Undo the last prompt."""

    def reset(self) -> None:
        """Reset the segment."""

    def close(self) -> None:
        """End the session."""


class OwnClient:
    """This project's blocking client."""

    def __init__(self, port: int) -> None:
        self._session = connect(f"ws://127.0.0.1:{port}")
        self._segment = self._session.segment("a")
        self._first: float | None = None
        self._present = 0.0
        self._session.on("mask_delta", self._on_delta)
        self._session.on("image_progress", self._on_image)

    def _on_delta(self, event: MaskDelta) -> None:
        if self._first is None:
            self._first = time.monotonic()

    def _on_image(self, event: ImageProgress) -> None:
        self._present = time.monotonic() if event.present == event.total else 0.0

    def open(self, volume: npt.NDArray[np.int16]) -> None:
        self._session.set_image(volume)

    def wait_for_upload(self) -> float:
        while not self._present:
            time.sleep(1e-3)
        return self._present

    def send_prompt(self, prompt: SimulatedPrompt) -> PromptTimes:
        self._first = None
        prompt.send(self._segment)
        final = time.monotonic()
        return PromptTimes(final if self._first is None else self._first, final)

    def mask(self) -> Mask:
        return self._segment.mask

    def undo(self) -> None:
        self._segment.undo()

    def redo(self) -> None:
        self._segment.redo()

    def reset(self) -> None:
        if self._segment.name in self._session.segments:
            self._segment.reset()

    def segment(self, name: str) -> None:
        """Switch to another object for the next prompts."""
        self._segment = self._session.segment(name)

    def close(self) -> None:
        self._session.close()


class OfficialClient:
    """nnInteractive's client, used as in its documentation. ``session``: remote, or in this process; both have the same
    methods."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._opened = 0.0
        self._mask: npt.NDArray[np.uint8] | None = None

    @classmethod
    def at(cls, port: int) -> "OfficialClient":
        return cls(nnInteractiveRemoteInferenceSession(f"http://127.0.0.1:{port}", read_timeout=_READ_TIMEOUT_S))

    def open(self, volume: npt.NDArray[np.int16]) -> None:
        self._session.set_image(volume[None])
        self._opened = time.monotonic()
        self._mask = np.zeros(volume.shape, np.uint8)
        self._session.set_target_buffer(self._mask)

    def wait_for_upload(self) -> float:
        return self._opened

    def send_prompt(self, prompt: SimulatedPrompt) -> PromptTimes:
        shape = prompt.shape
        if isinstance(shape, Box):
            self._session.add_bbox_interaction(_as_lists(shape), prompt.positive)
        elif isinstance(shape, Delta):
            assert shape.box is not None
            add = self._session.add_scribble_interaction
            if prompt.kind == "lasso":
                add = self._session.add_lasso_interaction
            # The official session accepts a crop, which is cheaper than a mask of the whole volume.
            add(shape.flips.astype(np.uint8), prompt.positive, interaction_bbox=_as_lists(shape.box))
        else:
            self._session.add_point_interaction(shape, prompt.positive)
        now = time.monotonic()
        return PromptTimes(now, now)

    def mask(self) -> Mask:
        assert self._mask is not None
        return self._mask.astype(bool)

    def undo(self) -> None:
        self._session.undo()

    def reset(self) -> None:
        self._session.reset_interactions()

    def start_from(self, mask: Mask) -> None:
        """Start from a mask, the official way to return to an object."""
        self._session.add_initial_seg_interaction(mask.astype(np.uint8))

    def close(self) -> None:
        self._session.close()


def _as_lists(box: Box) -> list[list[int]]:
    return [[a, b] for a, b in zip(box.start, box.stop, strict=True)]


@dataclass(frozen=True)
class ServedModel:
    """Settings of a server: a model folder, torch's name of a device, and the maximum number of sessions."""

    model: Path
    device: str
    sessions: int = 2


@dataclass(frozen=True)
class SystemUnderTest:
    """A server and its client. ``command``: returns the command that starts the server on a port. ``ready``: text in
    the response of /healthz once the server is ready."""

    name: str
    command: Callable[[int, "ServedModel"], list[str]]
    ready: str
    connect: Callable[[int], Client]

    @contextmanager
    def serve(self, served: "ServedModel") -> Iterator["Server"]:
        """Run a server for the duration of the context, with its log beside the model. Raises ServerDidNotStart."""
        port = _free_port()
        log = served.model.with_name(f"{self.name}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(self.command(port, served), stdout=output, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready(process, port, log)
            yield Server(port, process.pid)
        finally:
            end_process(process, _END_TIMEOUT_S)

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.ready not in _health(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerDidNotStart(f"{self.name} did not start. Its log ends with: {log.read_text()[-2000:]}")
            time.sleep(0.1)


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    pid: int

    def gauge(self, name: str, label: str) -> dict[str, int]:
        """Return the values of a gauge of this project's server by label."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as response:
            text = response.read().decode()
        return {
            sample.labels[label]: int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"nninteractive_ws_{name}"
        }

    def processor_seconds(self) -> float:
        """Return the processor time of the server's processes so far, and of this process."""
        process = psutil.Process(self.pid)
        processes = (psutil.Process(), process, *process.children(recursive=True))
        return sum(sum(p.cpu_times()[:2]) for p in processes)

    def peak_bytes(self) -> int:
        """Return the sum of the peak resident memory of the server's processes, each at its own time."""
        process = psutil.Process(self.pid)
        return sum(peak_bytes(p.pid) for p in (process, *process.children(recursive=True)))


def peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process: VmHWM of proc(5), on Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(found.split()[1])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _health(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return ""


def _own_command(port: int, served: ServedModel) -> list[str]:
    serve = python_module("nninteractive_ws", "serve", "--log-level", "warning", "--model", str(served.model))
    return [*serve, *_common(port, served)]


def _official_command(port: int, served: ServedModel) -> list[str]:
    # As this project's server by default: one thread per processor, and no torch.compile. The official defaults are 8
    # threads, and torch.compile on a GPU.
    options = ["--torch-n-threads", str(os.cpu_count() or 1), "--no-torch-compile"]
    serve = python_module("nnInteractive.inference.server.main", *options)
    return [*serve, "--model-dir", str(served.model), "--fold", "0", *_common(port, served)]


def _common(port: int, served: ServedModel) -> list[str]:
    return ["--port", str(port), "--device", served.device, "--max-sessions", str(served.sessions)]


OWN = SystemUnderTest("nninteractive-ws", _own_command, '"ready"', OwnClient)
OFFICIAL = SystemUnderTest("nninteractive-server", _official_command, '"ok"', OfficialClient.at)

#: The official client with this project's server, which is the server of OWN.
OWN_HTTP = replace(OWN, name="nninteractive-ws, official client", connect=OfficialClient.at)

#: The official system first: ratios are its value over ours.
SYSTEMS = (OFFICIAL, OWN)


def system_named(name: str) -> SystemUnderTest:
    """Return the system of a name."""
    return next(system for system in (*SYSTEMS, OWN_HTTP) if system.name == name)
