"""Compare the memory charged to a session with the resident memory of its processes.

``python -m nninteractive_ws.benchmark.session_memory PORT CASE VOLUME`` is the client, in a process of its own. It
prints its own figures as a line of JSON at every stage, and continues at a line on its standard input.

An image is charged in full when it is announced. Its pages, and those of its interaction channels, become resident
when they are first written. So the client first writes all of them, with prompts of every kind and polarity, and
leaves a mask that fills the volume in the current segment. A case measures the growth of both figures from there.

Both processes return freed memory to the system before they are measured. Freed memory that is not returned serves the
next request of any session, and belongs to none.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
import json
from mmap import PAGESIZE
import os
from pathlib import Path
import sys
import time

import numpy as np
import numpy.typing as npt
import psutil

from nninteractive_ws.benchmark.measure import ClientProcess, Measurement
from nninteractive_ws.benchmark.systems import OWN, ServedModel, Server
from nninteractive_ws.client.blocking import connect
from nninteractive_ws.client.events import Done, Failed, ImageProgress
from nninteractive_ws.client.polled import PolledSession
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.history import Segment
from nninteractive_ws.processes import return_freed_memory

_CLICKS, _EDITS, _SEGMENTS = 2000, 300, 256
#: Clicks in each of the segments, one of which exists before.
_CLICKS_EACH = 2
_POSITIVE_SHARE = 0.6
_WARM_UP_CLICKS = 100
#: Distance of points, small enough that each page of their channels is written.
_POINT_STRIDE = 8
_BRUSH_VOXELS, _BRUSH_TOLERANCE_HU = (8, 20), 40
#: Millimeters along each axis: the torso, so that several organs are in the volume.
_EXTENT_MM = 320.0
#: Standard deviation in Hounsfield units, as in a low-dose CT. It makes the surfaces of masks ragged.
_NOISE_HU = 30.0
_PAUSE_S = 0.5
_STAGES = ("connected", "image", "case")
#: Name of this part, and of the compared figures.
PART, ACCOUNTED, RESIDENT = "session memory", "accounted", "resident"
Volume = npt.NDArray[np.int16]


# ---- the client's process ---------------------------------------------------------------------------------


class _User:
    """A client that draws prompts from a seeded generator, and waits for each result."""

    def __init__(self, port: int, volume: Volume) -> None:
        self.volume, self.rng = volume, np.random.default_rng(0)
        self.shape: Index = volume.shape[0], volume.shape[1], volume.shape[2]
        self._session = PolledSession(f"ws://127.0.0.1:{port}")
        self._session.set_image(volume)
        self._until(lambda event: isinstance(event, ImageProgress) and event.present == event.total)

    @property
    def histories(self) -> Mapping[str, Segment]:
        return self._session.histories

    def call(self, command: str, segment: str, *arguments: object, **options: object) -> None:
        """Call a method of a segment, and wait for its result."""
        number = getattr(self._session.segment(segment), command)(*arguments, **options)
        self._until(lambda event: isinstance(event, Done) and event.result.request == number)

    def _until(self, is_last: Callable[[object], bool]) -> None:
        while True:
            for event in self._session.poll():
                if isinstance(event, Failed):
                    raise event.error
                if is_last(event):
                    return
            time.sleep(5e-4)

    def random_voxel(self) -> list[int]:
        return [int(self.rng.integers(n)) for n in self.shape]

    def click(self, segment: str) -> None:
        self.call("add_point", segment, self.random_voxel(), positive=self.rng.random() < _POSITIVE_SHARE)

    def paint(self, segment: str) -> None:
        """Paint or erase with a round brush, only where the tissue is as bright as in its center."""
        center, radius = self.random_voxel(), int(self.rng.integers(*_BRUSH_VOXELS))
        box = Box.from_pairs([(c - radius, c + radius + 1) for c in center]).clip(self.shape)
        assert box is not None
        distances = [np.arange(a, b) - c for (a, b), c in zip(box.pairs, center, strict=True)]
        brush = sum(d**2 for d in np.ix_(*distances)) <= radius**2
        tissue = np.abs(self.volume[box.slices] - self.volume[tuple(center)]) < _BRUSH_TOLERANCE_HU
        self.call("flip_mask", segment, brush & tissue, box=box.pairs)

    def touch(self) -> None:
        """Write every page of the image and its interaction channels."""
        everywhere = np.ones(self.shape, bool)
        for positive in (True, False):
            options = {"positive": positive, "run": False}
            self.call("add_scribble", "touched", everywhere, **options)
            self.call("add_lasso", "touched", everywhere, **options)
            self.call("add_bbox", "touched", Box.whole(self.shape).pairs, **options)
            for i, j in np.ndindex(*(n // _POINT_STRIDE for n in self.shape[:2])):
                self.call("add_point", "touched", (_POINT_STRIDE * i, _POINT_STRIDE * j, self.shape[2] // 2), **options)
        self.call("remove", "touched")
        self.call("set_mask", "filled", everywhere)
        for _ in range(_WARM_UP_CLICKS):
            self.click("filled")
        self.call("set_mask", "filled", everywhere)

    def kept_bytes(self) -> int:
        """Bytes of the histories that the client keeps, and of the pages of masks that were written."""
        return sum(segment.memory + _written_bytes(segment) for segment in self.histories.values())

    def close(self) -> None:
        self._session.close()


def _written_bytes(segment: Segment) -> int:
    """Bytes of the pages of a mask that the segment's steps have written."""
    if (box := segment.extent) is None:
        return 0
    _, rows, columns = segment.shape
    (i0, i1), (j0, j1), (k0, k1) = box.pairs
    planes = np.arange(i0, i1) * rows
    first = ((planes + j0) * columns + k0) // PAGESIZE
    last = ((planes + j1 - 1) * columns + k1 - 1) // PAGESIZE
    shared = np.count_nonzero(first[1:] == last[:-1])
    return int((last - first + 1).sum() - shared) * PAGESIZE


def _click(user: _User) -> None:
    for _ in range(_CLICKS):
        user.click("clicked")


def _paint(user: _User) -> None:
    user.click("painted")
    for _ in range(_EDITS):
        user.paint("painted")


def _segment(user: _User) -> None:
    for n in range(_SEGMENTS - 1):
        for _ in range(_CLICKS_EACH):
            user.click(f"segment {n}")


@dataclass(frozen=True)
class _Case:
    edge: int
    run: Callable[[_User], None]


_CASES = {
    f"{_CLICKS:,} clicks": _Case(160, _click),
    f"{_EDITS} hand edits": _Case(192, _paint),
    f"{_SEGMENTS} segments": _Case(160, _segment),
}
#: Names of the cases.
CASES = tuple(_CASES)


def main() -> None:
    port, case, path = sys.argv[1:]
    volume = np.load(path)
    # The first session of a process takes memory that later ones reuse.
    _use(int(port), volume, lambda user: user.click("first"))
    _report()
    _use(int(port), volume, lambda user: _run(user, _CASES[case]))


def _use(port: int, volume: Volume, run: Callable[[_User], None]) -> None:
    user = _User(port, volume)
    try:
        run(user)
    finally:
        user.close()


def _run(user: _User, case: _Case) -> None:
    for step in (_User.touch, case.run):
        step(user)
        _report(accounted=user.kept_bytes())


def _report(**accounted: int) -> None:
    return_freed_memory()
    print(json.dumps({"resident": _resident_bytes(os.getpid()), **accounted}), flush=True)
    sys.stdin.readline()


# ---- the benchmark's process ------------------------------------------------------------------------------


def measure(model: Path, name: str) -> Iterator[Measurement]:
    """Measure a case in a session of its own on a server of its own, on the host. ``model``: a model folder."""
    case = _CASES[name]
    volume = model.with_name("session volume.npy")
    np.save(volume, _noisy_phantom((case.edge,) * 3))
    with OWN.serve(ServedModel(model, "cpu")) as server:
        client = ClientProcess("session_memory", str(server.port), name, str(volume))
        with client.process:
            stages = [_stage(client, server) for _ in _STAGES]
    size = " x ".join([str(case.edge)] * 3)
    for system, measured in zip((ACCOUNTED, RESIDENT), _figures(*stages), strict=True):
        yield Measurement(PART, size, system, f"{name}, {size}", 0, measured)


def _noisy_phantom(shape: Index) -> Volume:
    spacing = _EXTENT_MM / shape[0], _EXTENT_MM / shape[1], _EXTENT_MM / shape[2]
    noise = np.random.default_rng(0).normal(0, _NOISE_HU, shape)
    return (make_phantom(0, shape, spacing).image + noise).astype(np.int16)


@dataclass(frozen=True)
class _Stage:
    """Bytes at one stage. ``charged``: to the worker's sessions, by purpose. ``worker``: resident, after freed memory
    was returned; ``freed``: that freed memory. ``client``: the client's own figures."""

    charged: Mapping[str, int]
    worker: int
    freed: int
    client: Mapping[str, int]


def _stage(client: ClientProcess, server: Server) -> _Stage:
    figures = json.loads(client.read_line())
    (worker,) = psutil.Process(server.pid).children()
    if "accounted" not in figures:
        while any(server.gauge("session_memory_bytes", "purpose").values()):
            time.sleep(_PAUSE_S)
    before = _resident_bytes(worker.pid)
    _return_freed_memory(server, worker)
    after = _resident_bytes(worker.pid)
    charged = server.gauge("session_memory_bytes", "purpose")
    client.write_line()
    return _Stage(charged, after, before - after, figures)


def _return_freed_memory(server: Server, worker: psutil.Process) -> None:
    """Have the worker return freed memory, as it does whenever a session ends."""
    connect(f"ws://127.0.0.1:{server.port}").close()
    last = 0
    while last != (last := _resident_bytes(worker.pid)):
        time.sleep(_PAUSE_S)


def _figures(connected: _Stage, image: _Stage, case: _Stage) -> tuple[dict[str, float], dict[str, float]]:
    """Return megabytes by process and starting point: the accounted ones, and the resident ones."""
    kept, base = sum(case.charged.values()), sum(image.charged.values())
    client, client_base, empty = case.client, image.client, connected.client
    figures = {
        "worker beyond the image, MB": (kept - base, case.worker - image.worker),
        "worker with the image, MB": (kept, case.worker - connected.worker),
        "client beyond the image, MB": (
            client["accounted"] - client_base["accounted"],
            client["resident"] - client_base["resident"],
        ),
        "client beyond the volume, MB": (client["accounted"], client["resident"] - empty["resident"]),
    }
    accounted, resident = ({name: pair[n] / 1e6 for name, pair in figures.items()} for n in range(2))
    return accounted, {**resident, "worker, freed and not returned, MB": case.freed / 1e6}


def _resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


if __name__ == "__main__":
    main()
