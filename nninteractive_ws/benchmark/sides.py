"""The two sides: a server as a user would start it, with a client of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
import psutil

from nninteractive_ws.client.blocking import connect
from nninteractive_ws.client.events import ImageProgress, MaskDelta
from nninteractive_ws.evaluation.user import Prompt
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Delta, Mask
from nninteractive_ws.processes import python_module
from nninteractive_ws.server.local import ServerDidNotStart

_STARTS_WITHIN_S = 300.0


@dataclass(frozen=True)
class Answer:
    """When something of the mask was seen first, and the result: time.monotonic(). Without previews they are one."""

    first: float
    final: float


class Client(Protocol):
    """A client on the calling thread. Made: connected."""

    def open(self, volume: npt.NDArray[np.int16]) -> None:
        """Use a volume; returns as soon as a prompt may follow."""

    def whole_image_at(self) -> float:
        """Wait until the server has the whole image; when that was."""

    def give(self, prompt: Prompt) -> Answer:
        """Give a prompt, and wait for the result."""

    def mask(self) -> Mask:
        """The mask as it is now."""

    def undo(self) -> None:
        """Take back the last prompt."""

    def reset(self) -> None:
        """Begin anew."""

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

    def whole_image_at(self) -> float:
        while not self._present:
            time.sleep(1e-3)
        return self._present

    def give(self, prompt: Prompt) -> Answer:
        self._first = None
        prompt.give(self._segment)
        final = time.monotonic()
        return Answer(final if self._first is None else self._first, final)

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
        """Prompts are for another object from here on."""
        self._segment = self._session.segment(name)

    def close(self) -> None:
        self._session.close()


class OfficialClient:
    """nnInteractive's own, used as its documentation shows it. ``session``: with a server or in this process; both
    have the same methods."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._opened = 0.0
        self._mask: npt.NDArray[np.uint8] | None = None

    @classmethod
    def at(cls, port: int) -> "OfficialClient":
        return cls(nnInteractiveRemoteInferenceSession(f"http://127.0.0.1:{port}"))

    def open(self, volume: npt.NDArray[np.int16]) -> None:
        self._session.set_image(volume[None])
        self._opened = time.monotonic()
        self._mask = np.zeros(volume.shape, np.uint8)
        self._session.set_target_buffer(self._mask)

    def whole_image_at(self) -> float:
        return self._opened

    def give(self, prompt: Prompt) -> Answer:
        shape = prompt.shape
        if isinstance(shape, Box):
            self._session.add_bbox_interaction(_as_lists(shape), prompt.positive)
        elif isinstance(shape, Delta):
            assert shape.box is not None
            add = self._session.add_scribble_interaction
            if prompt.kind == "lasso":
                add = self._session.add_lasso_interaction
            # As a crop, which it takes and which costs it less than a mask of the whole volume.
            add(shape.flips.astype(np.uint8), prompt.positive, interaction_bbox=_as_lists(shape.box))
        else:
            self._session.add_point_interaction(shape, prompt.positive)
        now = time.monotonic()
        return Answer(now, now)

    def mask(self) -> Mask:
        assert self._mask is not None
        return self._mask.astype(bool)

    def undo(self) -> None:
        self._session.undo()

    def reset(self) -> None:
        self._session.reset_interactions()

    def start_from(self, mask: Mask) -> None:
        """Take up a mask: what there is for coming back to an object."""
        self._session.add_initial_seg_interaction(mask.astype(np.uint8))

    def close(self) -> None:
        self._session.close()


def _as_lists(box: Box) -> list[list[int]]:
    return [[a, b] for a, b in zip(box.start, box.stop, strict=True)]


@dataclass(frozen=True)
class Served:
    """What a server is started with: a model folder, torch's name of a device, and how many sessions there may be."""

    model: Path
    device: str
    sessions: int = 2


@dataclass(frozen=True)
class Side:
    """A server and its client. ``command``: starts the server on a port. ``ready``: what its /healthz says once it can
    be used."""

    name: str
    command: Callable[[int, "Served"], list[str]]
    ready: str
    connect: Callable[[int], Client]

    @contextmanager
    def serve(self, served: "Served") -> Iterator["Server"]:
        """A server, as long as the context; its log is written beside the model. Raises ServerDidNotStart."""
        port = _free_port()
        log = served.model.with_name(f"{self.name}.log")
        with log.open("wb") as said:
            process = subprocess.Popen(self.command(port, served), stdout=said, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready(process, port, log)
            yield Server(port, process.pid)
        finally:
            process.terminate()
            process.wait()

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        until = time.monotonic() + _STARTS_WITHIN_S
        while self.ready not in _health(port):
            if process.poll() is not None or time.monotonic() > until:
                raise ServerDidNotStart(f"{self.name} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    pid: int

    def peak_bytes(self) -> int:
        """The most memory that the server's processes have had, each at its own peak."""
        process = psutil.Process(self.pid)
        return sum(peak_bytes(p.pid) for p in (process, *process.children(recursive=True)))


def peak_bytes(pid: int) -> int:
    """The most resident memory that a process has had: VmHWM of proc(5), so on Linux alone."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(found.split()[1])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _health(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return ""


def _own_command(port: int, served: Served) -> list[str]:
    serve = python_module("nninteractive_ws", "serve", "--log-level", "warning", "--model", str(served.model))
    return [*serve, *_common(port, served)]


def _official_command(port: int, served: Served) -> list[str]:
    # As many threads as there are processors, which is what this project's server takes; its default is 8.
    threads = str(os.cpu_count() or 1)
    serve = python_module("nnInteractive.inference.server.main", "--torch-n-threads", threads)
    return [*serve, "--model-dir", str(served.model), "--fold", "0", *_common(port, served)]


def _common(port: int, served: Served) -> list[str]:
    return ["--port", str(port), "--device", served.device, "--max-sessions", str(served.sessions)]


OWN = Side("nninteractive-ws", _own_command, '"ready"', OwnClient)
OFFICIAL = Side("nninteractive-server", _official_command, '"ok"', OfficialClient.at)

#: The other side first: what is printed is its figure over ours.
SIDES = (OFFICIAL, OWN)
