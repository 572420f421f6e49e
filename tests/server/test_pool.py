"""The workers of a gateway: which of them run, and which one takes a session. Workers are slots without processes."""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
import math
from typing import Any

import pytest

from nninteractive_ws import worker_protocol
from nninteractive_ws.engine.session import LIMITS
from nninteractive_ws.messages import Model
from nninteractive_ws.server.launchers import Endpoints, WorkerCommand
from nninteractive_ws.server.pool import (
    ACTIVE_SESSIONS_PER_WORKER,
    PoolSettings,
    Usage,
    WorkerPool,
    WorkerStartupError,
)
from nninteractive_ws.server.slot import LaunchedSlot, SlotState, WorkerSlot

MODEL = Model(name="m", license="", patch_size=(1, 1, 1), prompts=[], scribble_thickness=(1, 1, 1))
READY = worker_protocol.ModelReady(MODEL, "cpu", LIMITS)


@dataclass(frozen=True)
class FakeLauncher:
    name: str = "srun"
    is_local: bool = False

    def command(self, endpoints: Endpoints, worker: Sequence[str]) -> WorkerCommand:
        raise AssertionError


@dataclass
class Owner:
    """A gateway with made-up sessions."""

    sessions: dict[WorkerSlot, Usage] = field(default_factory=lambda: defaultdict(lambda: Usage(0, 0)))
    released: list[tuple[str, int]] = field(default_factory=list)

    def on_worker_message(self, message: worker_protocol.WorkerMessage) -> None: ...

    def on_worker_lost(self, slot: WorkerSlot) -> None: ...

    def on_worker_start(self, launcher: str) -> None: ...

    def on_worker_failure(self, launcher: str) -> None: ...

    def usage(self, slot: WorkerSlot) -> Usage:
        return self.sessions[slot]

    def release_idle_sessions(self, slot: WorkerSlot, count: int) -> None:
        self.released.append((slot.name, count))


def make_pool(workers: int, low: int = 0, idle_end_s: float = math.inf, **launcher: Any) -> tuple[WorkerPool, Owner]:
    owner = Owner()
    settings = PoolSettings([FakeLauncher(**launcher)] * workers, low, idle_end_s, "join")
    return WorkerPool(settings, [], owner), owner


def wanted(pool: WorkerPool) -> list[str]:
    return [slot.name for slot in pool.slots if isinstance(slot, LaunchedSlot) and slot.wanted.is_set()]


def make_ready(slot: WorkerSlot) -> None:
    slot._on_message(READY)


async def no_status(status: str) -> None: ...


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


# ---- which workers run ------------------------------------------------------------------------------------


def test_the_minimum_always_runs() -> None:
    pool, _ = make_pool(4, low=2)
    pool.adjust()
    assert wanted(pool) == ["srun 1", "srun 2"]


def test_nothing_runs_while_nobody_waits() -> None:
    pool, _ = make_pool(3)
    pool.adjust()
    assert not wanted(pool)
    assert not pool.is_wanted


def test_a_waiting_client_starts_one_worker() -> None:
    async def check() -> None:
        pool, _ = make_pool(3)
        waiting = [asyncio.ensure_future(pool.choose(no_status)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert wanted(pool) == ["srun 1"]
        make_ready(pool.slots[0])
        assert {slot.name for slot in await asyncio.gather(*waiting)} == {"srun 1"}

    run(check())


def test_a_waiting_client_starts_another_worker_if_the_first_fails() -> None:
    async def check() -> None:
        pool, _ = make_pool(2)
        waiting = asyncio.ensure_future(pool.choose(no_status))
        await asyncio.sleep(0.05)
        pool.slots[0].set_state(SlotState.FAILED, "gpu1 cannot be reached. The next attempt is in 8 seconds.")
        await asyncio.sleep(0.05)
        assert wanted(pool) == ["srun 1", "srun 2"]
        make_ready(pool.slots[1])
        assert (await waiting).name == "srun 2"

    run(check())


def test_many_active_sessions_start_another_worker() -> None:
    pool, owner = make_pool(3, low=1)
    pool.adjust()
    make_ready(pool.slots[0])
    owner.sessions[pool.slots[0]] = Usage(ACTIVE_SESSIONS_PER_WORKER, ACTIVE_SESSIONS_PER_WORKER)
    pool.adjust()
    assert wanted(pool) == ["srun 1"]
    owner.sessions[pool.slots[0]] = Usage(ACTIVE_SESSIONS_PER_WORKER + 1, ACTIVE_SESSIONS_PER_WORKER + 1)
    for _ in range(5):
        pool.adjust()
        assert wanted(pool) == ["srun 1", "srun 2"], "one more for as many, even before it is ready"


def test_an_unused_worker_beyond_the_minimum_is_drained_and_ended() -> None:
    pool, owner = make_pool(2, low=1, idle_end_s=60)
    pool.adjust()
    first, second = pool.slots
    assert isinstance(second, LaunchedSlot)
    second.want(True)
    for slot in (first, second):
        make_ready(slot)
        slot.last_used -= 61
    owner.sessions[second] = Usage(3, 0)
    pool.adjust()
    assert (first.state, second.state) == (SlotState.READY, SlotState.DRAINING)
    assert owner.released == [("srun 2", 3)]
    assert pool.ready == [first]
    owner.sessions[second] = Usage(0, 0)
    pool.adjust()
    assert wanted(pool) == ["srun 1"]


def test_a_draining_worker_that_is_used_again_stays() -> None:
    pool, owner = make_pool(1, idle_end_s=60)
    (slot,) = pool.slots
    assert isinstance(slot, LaunchedSlot)
    slot.want(True)
    make_ready(slot)
    slot.last_used -= 61
    owner.sessions[slot] = Usage(1, 0)
    pool.adjust()
    assert slot.state is SlotState.DRAINING
    slot.last_used += 61  # the session was used meanwhile, and is not evicted
    pool.adjust()
    assert slot.state is SlotState.READY
    assert wanted(pool) == ["srun 1"]


def test_a_worker_that_is_about_to_end_has_a_successor_at_once() -> None:
    pool, owner = make_pool(1, low=1)
    pool.adjust()
    (slot,) = pool.slots
    make_ready(slot)
    owner.sessions[slot] = Usage(2, 1)
    slot._on_message(worker_protocol.EndingSoon("it received SIGTERM"))
    slot._on_message(worker_protocol.EndingSoon("it received SIGTERM"))
    assert wanted(pool) == ["srun 1", "srun 2"]
    assert pool.ready == []
    pool.adjust()
    assert owner.released == [("srun 1", 2)]
    owner.sessions[slot] = Usage(0, 0)
    pool.adjust()
    assert wanted(pool) == ["srun 2"]


def test_a_worker_that_was_asked_to_end_while_it_loaded_takes_no_session() -> None:
    pool, _ = make_pool(1, low=1)
    pool.adjust()
    (slot,) = pool.slots
    slot._on_message(worker_protocol.EndingSoon("it received SIGTERM"))
    make_ready(slot)
    assert slot.state is SlotState.DRAINING
    assert pool.ready == []


@pytest.mark.parametrize(("is_local", "ends"), [(True, True), (False, False)])
def test_only_a_server_whose_workers_are_all_here_ends_without_a_model(is_local: bool, ends: bool) -> None:
    async def check() -> None:
        pool, _ = make_pool(1, is_local=is_local)
        (slot,) = pool.slots
        assert isinstance(slot, LaunchedSlot)
        running = asyncio.ensure_future(pool.run(Endpoints(1)))
        await asyncio.sleep(0)
        slot.refused_model, slot.reason = True, "The model cannot be loaded."
        slot.set_state(SlotState.FAILED)
        await asyncio.wait({running}, timeout=0.3)
        assert running.done() == ends
        running.cancel()
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        assert isinstance(outcome, WorkerStartupError if ends else asyncio.CancelledError)
        assert pool.stopping != ends

    run(check())


# ---- which worker takes a session -------------------------------------------------------------------------


def test_a_session_goes_to_the_worker_with_the_fewest_active_sessions() -> None:
    async def check() -> None:
        pool, owner = make_pool(3, low=3)
        for slot, usage in zip(pool.slots, [Usage(2, 2), Usage(9, 1), Usage(5, 1)], strict=True):
            make_ready(slot)
            owner.sessions[slot] = usage
        assert (await pool.choose(no_status)).name == "srun 3"

    run(check())


def test_sessions_even_out_when_a_worker_is_ready() -> None:
    pool, owner = make_pool(3, low=3)
    first, second, third = pool.slots
    make_ready(first)
    make_ready(second)
    owner.sessions |= {first: Usage(7, 3), second: Usage(2, 1)}
    owner.released.clear()
    make_ready(third)
    assert owner.released == [("srun 1", 4)]


def test_waiting_clients_hear_what_is_waited_for() -> None:
    async def check() -> None:
        heard: list[str] = []

        async def note(status: str) -> None:
            heard.append(status)

        pool, _ = make_pool(1)
        waiting = asyncio.ensure_future(pool.choose(note))
        await asyncio.sleep(0.02)
        (slot,) = pool.slots
        for state, status in [
            (SlotState.STARTING, "Starting a worker (srun)."),
            (SlotState.STARTING, "Waiting for the cluster: job 12 is pending."),
            (SlotState.STARTING, "Waiting for the cluster: job 12 is pending."),
            (SlotState.LOADING, ""),
        ]:
            slot.set_state(state, status)
            await asyncio.sleep(0.02)
        make_ready(slot)
        assert await waiting is slot
        assert [text for text in heard if text] == [
            "Starting a worker (srun).",
            "Waiting for the cluster: job 12 is pending.",
        ]
        assert heard[-1] == ""

    run(check())


@pytest.mark.parametrize("next_state", [SlotState.READY, SlotState.FAILED])
def test_sessions_of_an_ending_worker_stay_while_its_successor_starts(next_state: SlotState) -> None:
    pool, owner = make_pool(1, low=1)
    pool.adjust()
    old = pool.slots[0]
    make_ready(old)
    owner.sessions[old] = Usage(2, 0)
    old._on_message(worker_protocol.EndingSoon("it received SIGTERM"))
    _, successor = pool.slots
    for state in (SlotState.STARTING, SlotState.LOADING):
        successor.set_state(state)
        pool.adjust()
        assert not owner.released
    successor.set_state(next_state)
    pool.adjust()
    assert ("srun 1", 2) in owner.released


def test_workers_join_with_the_token_alone() -> None:
    pool, _ = make_pool(0)
    assert pool.admit("") is None
    assert pool.admit("guess") is None
    joined = pool.admit("join")
    assert joined is not None
    assert pool.slots == [], "its handshake may fail"
    pool.add(joined)
    assert pool.is_wanted
    make_ready(joined)
    assert pool.ready == [joined]
    pool.on_lost(joined)
    assert pool.slots == []
    assert not pool.is_wanted


def test_the_numbers_of_slots_are_different_and_small() -> None:
    pool, _ = make_pool(2, low=2)
    pool.adjust()
    first, second = pool.slots
    joined = [pool.admit("join"), pool.admit("join")]
    for slot in joined:
        assert slot is not None
        pool.add(slot)
    assert [slot.number for slot in pool.slots] == [0, 1, 2, 3]
    assert joined[0] is not None
    pool.on_lost(joined[0])
    second._on_message(worker_protocol.EndingSoon("it received SIGTERM"))
    assert [slot.number for slot in pool.slots] == [0, 1, 2, 3]
    assert (first.number, second.number, pool.slots[2].number) == (0, 1, 2)


def test_a_pool_without_a_token_lets_nobody_join() -> None:
    pool = WorkerPool(PoolSettings([], 0), [], Owner())
    assert pool.admit("") is None
    assert pool.slots == []
