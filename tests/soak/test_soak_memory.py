"""Memory over a long time: some seconds by default, or NNINTERACTIVE_WS_SOAK_MINUTES minutes. Run it with ``--slow``.

Four clients stay connected and use all commands. When the memory of the gateway and the worker is measured, their
sessions are full of histories, but no fuller than at the measurements before.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import random
import statistics
import time

from helpers.drivers import Polled
from helpers.engine import bar_in_a_box
from helpers.fast_server import quick_server, resident_bytes
from helpers.shapes import ball
from helpers.soak import MINUTES
import pytest

SECONDS = 60 * MINUTES if MINUTES else 6
CLIENTS, SEGMENTS, REQUESTS_PER_IMAGE = 4, 3, 40
#: Measurements after the warm-up, which takes the first third of the time. The first half of them is compared with the
#: second half, by the median of each.
WARM_UP_S, MEASUREMENTS = SECONDS / 3, 16 if MINUTES else 2
MAX_GROWTH = 1.05
VOLUME = bar_in_a_box()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 300)]


class User:
    """A client that keeps its session, and replaces the image after ``REQUESTS_PER_IMAGE`` requests."""

    def __init__(self, address: str, seed: int) -> None:
        self._client, self._rng = Polled(address), random.Random(seed)
        self._requests = REQUESTS_PER_IMAGE
        self.done = Counter[str]()

    def work(self, until: float) -> None:
        while time.monotonic() < until:
            if self._requests == REQUESTS_PER_IMAGE:
                # Another offset makes another image, of which the server has no brick.
                self._client.set_image(VOLUME + self._rng.randrange(1000))()
                self._requests = 0
                self.done["image"] += 1
            self._requests += 1
            self._do_one()
            self._client.events.clear()

    def _do_one(self) -> None:
        core, name = self._client.core, f"segment {self._rng.randrange(SEGMENTS)}"
        at = tuple(self._rng.randrange(n) for n in VOLUME.shape)
        segment = core.segments.get(name)
        choices = ["click", "click", "edit"] + ["undo"] * (segment is not None and len(segment.steps) > 0)
        choices += ["remove"] * (segment is not None and not segment.is_empty and self._rng.random() < 0.1)
        kind = self._rng.choice(choices)
        if kind == "click":
            number = core.add_point(name, at, positive=self._rng.random() < 0.7)
        elif kind == "edit":
            number = core.flip_mask(name, ball(VOLUME.shape, at, 7))
        else:
            number = core.undo(name) if kind == "undo" else core.remove_segment(name)
        self._client._waiter(number)()
        self.done[kind] += 1

    def close(self) -> None:
        self._client.close()


def test_memory_stays_flat_while_clients_work() -> None:
    with (
        quick_server("--memory", "2", "--max-sessions", str(CLIENTS)) as server,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        pids = {"gateway": server.pid, "worker": server.worker}
        users = [User(server.address, seed) for seed in range(CLIENTS)]
        found: dict[str, list[float]] = {name: [] for name in pids}
        for n in range(MEASUREMENTS + 1):
            until = time.monotonic() + (WARM_UP_S if n == 0 else (SECONDS - WARM_UP_S) / MEASUREMENTS)
            list(pool.map(lambda user: user.work(until), users))  # noqa: B023 - called at once
            for name, pid in pids.items():
                found[name].append(resident_bytes(pid) / 2**20)
        assert server.worker == pids["worker"]
        done = sum((user.done for user in users), Counter[str]())
        for user in users:
            user.close()
        log = server.log.read_text()
    print(dict(done), {name: [round(size) for size in sizes] for name, sizes in found.items()})
    assert "Traceback" not in log, log[-5000:]
    assert set(done) >= {"image", "click", "edit", "undo"}
    for name, (_, *sizes) in found.items():
        before, after = (statistics.median(half) for half in (sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]))
        print(f"{name}: {before:.0f} MiB and then {after:.0f}")
        if MINUTES:
            assert after <= MAX_GROWTH * before, name
