"""Another client of a server under attack, and the memory of the server's processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
import threading
import time

import numpy as np

from helpers.end_to_end import health, wait_until
from helpers.engine import bar_in_a_box, stroke
from helpers.fast_server import QuickServer, resident_bytes
from helpers.shapes import ball
import nninteractive_ws as nni

#: Pause between the rounds of the other client, to limit its load.
PAUSE_S = 0.5
#: A message of 64 MiB is in memory several times while it is relayed and decoded.
GATEWAY_MAY_GROW, WORKER_MAY_GROW = 512 * 2**20, 1024 * 2**20


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


def peak_resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


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
