"""Long runs: some seconds by default, or NNINTERACTIVE_WS_SOAK_MINUTES minutes. Run them with ``--slow``.

Clients connect and disconnect in every way, and leave no memory, thread or socket behind. Then, the fault and fuzz
tests of tests/end_to_end run with more seeds and inputs.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import itertools
import os
import random
import statistics
import time

from helpers.end_to_end import health, wait_until
from helpers.engine import bar_in_a_box
from helpers.fast_server import QuickServer, count_descriptors, count_threads, quick_server, resident_bytes
from helpers.fault_proxy import Fault, FaultProxy, fault_proxy
from helpers.fault_script import SHAPE, blocking, cancel_through, concurrent, disturb, make_script, polled
from helpers.fault_script import undisturbed as expect
from helpers.fuzz_inputs import inputs
from helpers.fuzzer import feed
from helpers.http_fuzzer import feed_http
from helpers.http_inputs import http_inputs, record
from helpers.neighbor import undisturbed, undisturbed_with_http
from helpers.soak import MINUTES
import numpy as np
import pytest

import nninteractive_ws as nni

#: Of each of the three tests.
SECONDS = 20 * MINUTES if MINUTES else 6
#: Long enough for a server to have seen every kind of client several times.
WARM_UP_S = min(120, SECONDS / 3)
#: A process keeps a varying part of the memory that it frees. So medians of several measurements are compared, as many
#: before as after.
MAY_GROW, MEASUREMENTS = 1.05, 8 if MINUTES else 1
#: Threads of asyncio's own pool in each process, which are created when needed and stay.
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
INPUTS, HTTP_INPUTS = (50_000, 20_000) if MINUTES else (100, 100)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 * MINUTES + 120), pytest.mark.usefixtures("back_at_once")]


@pytest.fixture(scope="module")
def lingering() -> Iterator[QuickServer]:
    """A server that keeps sessions without a client, which is the default."""
    with quick_server("--memory", "2") as server:
        yield server


@pytest.fixture
def quick() -> Iterator[QuickServer]:
    """A server whose sessions expire a second after the client disconnects, so that leaks can be detected."""
    with quick_server("--linger", "1", "--memory", "2") as server:
        yield server


# ---- connecting and disconnecting ---------------------------------------------------------------------------


def come_and_go(address: str, proxy: FaultProxy, rng: random.Random) -> str:
    """Run one client with a few prompts or none. Return how it disconnected."""
    way = rng.choice(("bye", "bye", "cut off and back", "killed", "killed while it predicts", "hello and gone"))
    if way == "bye":
        with nni.connect(address) as session:
            prompt(session, rng, rng.randint(0, 6))
    elif way == "cut off and back":
        with nni.connect(proxy.address) as session:
            proxy.arm(Fault(rng.choice(("cut", "truncate")), "up", rng.randrange(200_000)))
            prompt(session, rng, rng.randint(1, 6))
        proxy.disarm()
    else:
        leave_without_a_word(proxy, rng, way)
    return way


def prompt(session: nni.Session, rng: random.Random, count: int) -> None:
    session.set_image(bar_in_a_box())
    for _ in range(count):
        segment = session.segment(rng.choice("abc"))
        segment.add_point(tuple(rng.randrange(n) for n in SHAPE), positive=rng.random() < 0.7)


def leave_without_a_word(proxy: FaultProxy, rng: random.Random, way: str) -> None:
    """Disconnect like a killed process. Its session is kept for a while."""

    async def work() -> None:
        session = await nni.aconnect(proxy.address, reconnect_for=0)
        if way != "hello and gone":
            await session.set_image(bar_in_a_box())
            strokes = np.zeros(SHAPE, bool)
            strokes[4:-4, 30, 28] = True
            asked = asyncio.ensure_future(session.segment("a").add_scribble(strokes))
            if way == "killed":
                await asked
            else:
                await asyncio.sleep(rng.uniform(0, 0.3))
        proxy.cut()
        await session.close()
        if way != "hello and gone":
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(work())


@dataclass(frozen=True)
class ProcessUsage:
    """Resources of a process after all sessions have ended."""

    threads: int
    descriptors: int
    mebibytes: float

    @classmethod
    def at(cls, pid: int) -> "ProcessUsage":
        return cls(count_threads(pid), count_descriptors(pid), resident_bytes(pid) / 2**20)


def median_memory(usage: Sequence[ProcessUsage]) -> float:
    return statistics.median(u.mebibytes for u in usage)


def test_clients_come_and_go(quick: QuickServer) -> None:
    rng, ways = random.Random(0), Counter[str]()
    pids = {"gateway": quick.pid, "worker": quick.worker}
    usage: dict[str, list[ProcessUsage]] = {name: [] for name in pids}
    with fault_proxy(quick.address) as proxy:
        for n in range(2 * MEASUREMENTS):
            until = time.monotonic() + (WARM_UP_S if n == 0 else (SECONDS - WARM_UP_S) / (2 * MEASUREMENTS - 1))
            while time.monotonic() < until:
                ways[come_and_go(quick.address, proxy, rng)] += 1
            wait_until(lambda: health(quick.address)["sessions"] == 0, timeout=30)
            for name, pid in pids.items():
                usage[name].append(ProcessUsage.at(pid))
    print(dict(ways))
    assert quick.worker == pids["worker"]
    assert "Traceback" not in quick.log.read_text(), quick.log.read_text()[-5000:]
    for name, found in usage.items():
        first, last = found[0], found[-1]
        before, after = median_memory(found[:MEASUREMENTS]), median_memory(found[MEASUREMENTS:])
        print(f"{name}: {first}, in the end {last}; {before:.0f} MiB and then {after:.0f}")
        assert last.descriptors <= first.descriptors + 2, name
        assert last.threads <= first.threads + POOL_THREADS, name
        if MINUTES:
            assert after <= MAY_GROW * before, name


# ---- more seeds and inputs ----------------------------------------------------------------------------------


def test_more_seeds(lingering: QuickServer) -> None:
    """Failing networks, for every kind of client."""
    until = time.monotonic() + SECONDS
    count, drivers = 30, [(concurrent, 4)]
    if MINUTES:
        count, drivers = 200, [(blocking, 1), (concurrent, 6), (polled, 4)]
    for seed in itertools.count(100):
        script, rng = make_script(seed, count), random.Random(seed)
        try:
            expected = expect(lingering.address, script)
            for open_driver, at_once in drivers:
                disturb(lingering, script, expected, rng, open_driver, at_once)
            cancel_through(lingering, script, rng)
        except BaseException as e:
            e.add_note(f"with seed {seed}")
            raise
        if time.monotonic() > until:
            break
    print(f"{seed - 99} seeds of {count} prompts")
    assert "Traceback" not in lingering.log.read_text()


def test_more_inputs(lingering: QuickServer) -> None:
    with undisturbed(lingering):
        seen = asyncio.run(feed(lingering.address, itertools.islice(inputs(seed=2), INPUTS)))
    print(dict(seen.most_common()))


def test_more_http_inputs() -> None:
    with quick_server("--memory", "2", "--max-sessions", "40", "--max-sessions-per-user", "40") as server:
        recorded = record(server.address)
        with undisturbed_with_http(server):
            items = itertools.islice(http_inputs(2, recorded), HTTP_INPUTS)
            seen = asyncio.run(feed_http(server.address, items, at_once=8))
    print(dict(seen.most_common()))
