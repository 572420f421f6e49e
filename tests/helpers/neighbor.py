"""Another client of a server under attack, and the memory of the server's processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
import threading
import time

from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession
import numpy as np

from helpers.end_to_end import health, http, wait_until
from helpers.engine import bar_in_a_box, stroke
from helpers.fast_server import QuickServer, resident_bytes
from helpers.shapes import ball
import nninteractive_ws as nni

#: Pause between the rounds of the other client, to limit its load.
PAUSE_S = 0.5
#: A message of 64 MiB is in memory several times while it is relayed and decoded.
GATEWAY_MAY_GROW, WORKER_MAY_GROW = 512 * 2**20, 1024 * 2**20
#: In its budget, the process of the HTTP API may unpack large arrays. Afterwards, it has about as much as before.
API_MAY_KEEP = 100 * 2**20


class Neighbor:
    """Another client of the server, whose masks must not change."""

    def __init__(self, address: str) -> None:
        self._address = address
        #: Seconds from each prompt to its answer.
        self.latencies: list[float] = []
        self._expected = self._masks()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self.rounds = 0
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _masks(self) -> list[bytes]:
        found = []
        with nni.connect(self._address) as session:
            session.set_image(bar_in_a_box())
            a, b = session.segment("a"), session.segment("b")
            prompts: tuple[Callable[[], object], ...] = (
                lambda: a.add_point((42, 30, 28)),
                lambda: b.add_scribble(ball(a.mask.shape, (60, 56, 46), 3)),
                lambda: a.add_point((60, 30, 28), positive=False),
                b.undo,
                lambda: a.add_scribble(stroke(a.mask.shape, (30, 30, 28), (50, 34, 30))),
                b.redo,
            )
            for prompt in prompts:
                started = time.monotonic()
                prompt()
                self.latencies.append(time.monotonic() - started)
                found.append(np.packbits(a.mask).tobytes() + np.packbits(b.mask).tobytes())
        return found

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                assert self._masks() == self._expected, f"the masks of round {self.rounds} differ"
                self.rounds += 1
                self._stop.wait(PAUSE_S)
        except BaseException as e:
            self._failure = e

    def leave(self) -> None:
        """Stop, and raise the error that occurred, if any."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class HttpNeighbor(Neighbor):
    """Another client of the server's HTTP API: nnInteractive's own, whose masks must be those of a WebSocket client."""

    def __init__(self, address: str) -> None:
        with nni.connect(address) as session:
            session.set_image(bar_in_a_box())
            segment, masks = session.segment("a"), []
            prompts: tuple[Callable[[], object], ...] = (
                lambda: segment.add_point((42, 30, 28)),
                lambda: segment.add_scribble(stroke(segment.mask.shape, (30, 30, 28), (50, 34, 30))),
                lambda: segment.add_point((60, 30, 28), positive=False),
                segment.undo,
            )
            for prompt in prompts:
                prompt()
                masks.append(np.packbits(segment.mask).tobytes())
        super().__init__(address)
        assert self._expected == masks

    def _masks(self) -> list[bytes]:
        image, found = bar_in_a_box(), []
        session = nnInteractiveRemoteInferenceSession(http(self._address))
        try:
            session.set_image(image[None])
            buffer = np.zeros(image.shape, np.uint8)
            strokes = stroke((84, 72, 66), (30, 30, 28), (50, 34, 30)).astype(np.uint8)
            session.set_target_buffer(buffer)
            prompts: tuple[Callable[[], object], ...] = (
                lambda: session.add_point_interaction((42, 30, 28), True),
                lambda: session.add_scribble_interaction(strokes, True),
                lambda: session.add_point_interaction((60, 30, 28), False),
                session.undo,
            )
            for prompt in prompts:
                started = time.monotonic()
                prompt()
                self.latencies.append(time.monotonic() - started)
                found.append(np.packbits(buffer).tobytes())
        finally:
            session.close()
        return found


def peak_resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def page_faults_of_children(pid: int) -> int:
    """Return the number of page faults of a process's ended children: 0 if it never started one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[8])


@contextmanager
def undisturbed_with_http(server: QuickServer) -> Iterator[HttpNeighbor]:
    """Check what :func:`undisturbed` does, and that a neighbor at the HTTP API is served, the process of that API keeps
    little memory, and neither it nor the worker starts a process."""
    neighbor = HttpNeighbor(server.address)
    (api,) = server.official_api
    processes = (api, server.worker)
    started = [page_faults_of_children(pid) for pid in processes]
    before = resident_bytes(api)
    forget_peak(api)
    try:
        with undisturbed(server):
            yield neighbor
    finally:
        neighbor.leave()
    peak, kept = ((x - before) / 2**20 for x in (peak_resident_bytes(api), resident_bytes(api)))
    print(f"HTTP API: {before / 2**20:.0f} MiB before, at most {peak:+.0f}, {kept:+.0f} afterwards")
    print(f"{neighbor.rounds} rounds of the HTTP neighbor, each answer within {max(neighbor.latencies):.2f} s")
    assert kept * 2**20 <= API_MAY_KEEP
    assert neighbor.rounds >= 1
    assert server.official_api == [api]
    assert [page_faults_of_children(pid) for pid in processes] == started


@contextmanager
def undisturbed(
    server: QuickServer, gateway: int = GATEWAY_MAY_GROW, worker: int = WORKER_MAY_GROW
) -> Iterator[Neighbor]:
    """Check that the processes live, the log has no traceback, a neighbor's masks stay right, and the memory of gateway
    and worker grows by at most ``gateway`` and ``worker`` bytes."""
    pids = {"gateway": (server.pid, gateway), "worker": (server.worker, worker)}
    neighbor = Neighbor(server.address)
    before = {name: resident_bytes(pid) for name, (pid, _) in pids.items()}
    for pid, _ in pids.values():
        forget_peak(pid)
    try:
        yield neighbor
    except BaseException as e:
        e.add_note(f"The log ends with:\n{server.log.read_text()[-5000:]}")
        raise
    finally:
        neighbor.leave()
    for name, (pid, may_grow) in pids.items():
        peak, after = peak_resident_bytes(pid), resident_bytes(pid)
        grown = [(x - before[name]) / 2**20 for x in (peak, after)]
        print(f"{name}: {before[name] / 2**20:.0f} MiB before, at most {grown[0]:+.0f}, {grown[1]:+.0f} afterwards")
        assert peak - before[name] <= may_grow, name
    print(f"{neighbor.rounds} rounds of the neighbor, each answer within {max(neighbor.latencies):.2f} s")
    assert neighbor.rounds >= 1
    assert server.process.poll() is None
    assert server.worker == pids["worker"][0]
    assert "Traceback" not in server.log.read_text(), server.log.read_text()[-5000:]
    wait_until(lambda: health(server.address)["status"] == "ready")
