"""Simulate how sessions are placed on workers: ``python -m tools.placement``.

Users click, think, and leave sessions open. A prompt takes 1 to 8 forward passes, in the order of the device scheduler.
The first table compares rules for the worker of a new session, among them the worker pool's own. The second one shows
how the duration of prompts grows with the active sessions of a worker. Another worker is due before it doubles.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
import heapq
import itertools
import random
import statistics

from rich.console import Console
from rich.table import Table

from nninteractive_ws import worker_protocol
from nninteractive_ws.engine.device_scheduler import SchedulerSlot, _ForwardPass
from nninteractive_ws.server.pool import (
    ACTIVE_FOR_S,
    ACTIVE_SESSIONS_PER_WORKER,
    PoolSettings,
    Usage,
    WorkerPool,
)
from nninteractive_ws.server.slot import SlotState, WorkerSlot

WORKERS, SESSIONS = 4, 150
PASS_S, MAX_PASSES = 0.1, 8
#: Mean time between an answer and the next prompt, mean number of prompts, and mean time that a session stays open
#: unused. With these, a third of the sessions were used in the last minute.
THINK_S, PROMPTS, UNUSED_S = 5.0, 20, 450.0
#: Share of the simulated time that does not count, in which the sessions are opened.
WARM_UP = 0.25
_JOIN_TOKEN = "simulated"


@dataclass(eq=False)
class _Session:
    random: random.Random
    slot: SchedulerSlot = field(default_factory=lambda: SchedulerSlot(lambda _: None))
    worker: "_Worker | None" = None
    last_used: float = 0.0
    prompts_left: int = 0
    asked: float = 0.0
    passes_left: int = 0
    is_first: bool = True


@dataclass(eq=False)
class _Worker:
    slot: WorkerSlot
    waiting: list[tuple[_ForwardPass[None], _Session]] = field(default_factory=list)
    is_busy: bool = False


@dataclass(frozen=True)
class Waits:
    """Seconds until the first pass of each prompt began, and until the last one ended."""

    first: list[float]
    whole: list[float]


class Simulation:
    """Sessions on workers. ``rule``: chooses the worker of a new session; None: all workers share one queue."""

    def __init__(
        self, workers: int, sessions: int, rule: "Rule | None", seed: int, unused_s: float | None = UNUSED_S
    ) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self._rule, self._unused_s = rule, unused_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._arrivals, self._served = itertools.count(), itertools.count(), itertools.count()
        self.pool = WorkerPool(PoolSettings((), 0, join_token=_JOIN_TOKEN), (), self)
        self.sessions = [_Session(random.Random(f"{seed} {n}")) for n in range(sessions)]
        self.workers = [self._add_worker() for _ in range(workers)]
        self._waits = Waits([], [])
        for session in self.sessions:
            self._after(self.random.uniform(0, THINK_S * PROMPTS + (unused_s or 0)), partial(self._open, session))

    def _add_worker(self) -> _Worker:
        slot = self.pool.admit(_JOIN_TOKEN)
        assert slot is not None
        self.pool.add(slot)
        slot.set_state(SlotState.READY)
        return _Worker(slot)

    def run(self, seconds: float) -> Waits:
        """Simulate for this time. The warm-up does not count."""
        while self._events[0][0] < seconds:
            self.now, _, event = heapq.heappop(self._events)
            if self.now < seconds * WARM_UP:
                self._waits = Waits([], [])
            event()
        return self._waits

    def _after(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._numbers), event))

    # ---- the user -----------------------------------------------------------------------------------------

    def _open(self, session: _Session) -> None:
        session.worker = None
        session.worker = self.workers[0] if self._rule is None else self._rule(self)
        session.last_used = self.now
        session.prompts_left = round(PROMPTS * session.random.uniform(0.3, 1.7))
        self._after(session.random.expovariate(1 / THINK_S), partial(self._ask, session))

    def _ask(self, session: _Session) -> None:
        session.last_used = session.asked = self.now
        session.passes_left, session.is_first = session.random.randint(1, MAX_PASSES), True
        self._enqueue(session)

    def _answer(self, session: _Session) -> None:
        self._waits.whole.append(self.now - session.asked)
        session.prompts_left -= 1
        if session.prompts_left or self._unused_s is None:
            self._after(session.random.expovariate(1 / THINK_S), partial(self._ask, session))
        else:
            self._after(session.random.expovariate(1 / self._unused_s), partial(self._open, session))

    # ---- the worker ---------------------------------------------------------------------------------------

    def _enqueue(self, session: _Session) -> None:
        assert session.worker is not None
        item = _ForwardPass[None](session.slot, not session.is_first, next(self._arrivals), lambda: None)
        session.worker.waiting.append((item, session))
        for worker in self.workers if self._rule is None else [session.worker]:
            self._serve(worker)

    def _serve(self, worker: _Worker) -> None:
        waiting = self.workers[0].waiting if self._rule is None else worker.waiting
        if worker.is_busy or not waiting:
            return
        item, session = min(waiting, key=lambda waiting: waiting[0].order)
        waiting.remove((item, session))
        item.slot.last_served = next(self._served)
        for other, _ in waiting:
            other.overtaken += other.arrival < item.arrival
        worker.is_busy = True
        if session.is_first:
            self._waits.first.append(self.now - session.asked)
        self._after(PASS_S, partial(self._end_pass, worker, session))

    def _end_pass(self, worker: _Worker, session: _Session) -> None:
        worker.is_busy, session.is_first = False, False
        session.passes_left -= 1
        if session.passes_left:
            self._enqueue(session)
        else:
            self._answer(session)
        self._serve(worker)

    # ---- what the pool asks -------------------------------------------------------------------------------

    def usage(self, slot: WorkerSlot) -> Usage:
        sessions = [s for s in self.sessions if s.worker is not None and s.worker.slot is slot]
        return Usage(len(sessions), sum(self.now - s.last_used < ACTIVE_FOR_S for s in sessions))

    def on_worker_message(self, message: worker_protocol.WorkerMessage) -> None: ...

    def on_worker_lost(self, slot: WorkerSlot) -> None: ...

    def on_worker_start(self, launcher: str) -> None: ...

    def on_worker_failure(self, launcher: str) -> None: ...

    def release_idle_sessions(self, slot: WorkerSlot, count: int) -> None: ...


# ---- rules for the worker of a new session --------------------------------------------------------------------

Rule = Callable[[Simulation], _Worker]


def at_random(simulation: Simulation) -> _Worker:
    """Choose any worker."""
    return simulation.random.choice(simulation.workers)


def fewest_sessions(simulation: Simulation) -> _Worker:
    """Choose the worker with the fewest sessions, used or not."""
    return min(simulation.workers, key=lambda worker: simulation.usage(worker.slot).sessions)


def shortest_queue(simulation: Simulation) -> _Worker:
    """Choose the worker with the fewest pending passes."""
    return min(simulation.workers, key=lambda worker: worker.is_busy + len(worker.waiting))


def of_the_pool(simulation: Simulation) -> _Worker:
    """Let the worker pool choose."""

    async def ignore(status: str) -> None:
        raise AssertionError("workers are ready")

    with asyncio.Runner() as runner:
        slot = runner.run(simulation.pool.choose(ignore))
    return next(worker for worker in simulation.workers if worker.slot is slot)


RULES: dict[str, Rule | None] = {
    "random": at_random,
    "fewest sessions": fewest_sessions,
    "shortest queue": shortest_queue,
    "the pool": of_the_pool,
    "one queue (bound)": None,
}


# ---- tables ---------------------------------------------------------------------------------------------------


def simulate(
    rule: Rule | None, seconds: float, seeds: Sequence[int], workers: int = WORKERS, sessions: int = SESSIONS
) -> Waits:
    """Simulate with several seeds, and return all waits together."""
    found = [Simulation(workers, sessions, rule, seed).run(seconds) for seed in seeds]
    return Waits([w for waits in found for w in waits.first], [w for waits in found for w in waits.whole])


def busy_worker(sessions: int, seconds: float, seeds: Sequence[int]) -> Waits:
    """Simulate one worker with sessions that are always in use."""
    found = [Simulation(1, sessions, fewest_sessions, seed, unused_s=None).run(seconds) for seed in seeds]
    return Waits([w for waits in found for w in waits.first], [w for waits in found for w in waits.whole])


def sessions_per_worker(seconds: float, seeds: Sequence[int]) -> int:
    """Return the number of active sessions with which prompts take at most twice as long as alone."""
    alone = PASS_S * (1 + MAX_PASSES) / 2
    for sessions in itertools.count(1):
        if statistics.mean(busy_worker(sessions + 1, seconds, seeds).whole) > 2 * alone:
            break
    return sessions


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3000, help="simulated time")
    parser.add_argument("--seeds", type=int, default=3, help="number of repetitions")
    args = parser.parse_args()
    seeds = range(args.seeds)
    console = Console()

    table = Table("rule", "whole prompt, mean", "95 %", title=f"{SESSIONS} sessions on {WORKERS} workers, seconds")
    for name, rule in RULES.items():
        whole = simulate(rule, args.seconds, seeds).whole
        table.add_row(name, f"{statistics.mean(whole):.2f}", f"{quantile(whole, 0.95):.2f}")
    console.print(table)

    table = Table("active sessions", "first preview, mean", "whole prompt, mean", "95 %", title="one worker, seconds")
    for sessions in (1, 2, 4, 6, 8, 10, 12, 16, 24):
        waits = busy_worker(sessions, args.seconds, seeds)
        means = statistics.mean(waits.first) + PASS_S, statistics.mean(waits.whole)
        table.add_row(str(sessions), *(f"{seconds:.2f}" for seconds in (*means, quantile(waits.whole, 0.95))))
    console.print(table)
    console.print(
        f"Prompts take at most twice as long as alone with up to {sessions_per_worker(args.seconds, seeds)} active "
        f"sessions per worker. The pool starts another one above {ACTIVE_SESSIONS_PER_WORKER}."
    )


if __name__ == "__main__":
    main()
