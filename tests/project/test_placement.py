"""The simulation of placement, against what can be calculated, and the pool's own choice in it."""

import statistics

import pytest

from nninteractive_ws.server.pool import ACTIVE_FOR_S, ACTIVE_SESSIONS_PER_WORKER
from tools import placement
from tools.placement import PASS_S, Simulation, busy_worker, fewest_sessions, of_the_pool, sessions_per_worker, simulate


def test_a_session_alone_waits_for_its_own_passes_only() -> None:
    waits = busy_worker(1, seconds=5000, seeds=[0])
    assert set(waits.first) == {0.0}
    assert statistics.mean(waits.whole) == pytest.approx(4.5 * PASS_S, rel=0.05)


def test_an_overloaded_worker_is_always_busy() -> None:
    """Then it answers a prompt for every 4.5 passes, whatever the order."""
    waits = busy_worker(40, seconds=2000, seeds=[0])
    counted = 2000 * (1 - placement.WARM_UP)
    assert len(waits.whole) == pytest.approx(counted / (4.5 * PASS_S), rel=0.05)


def test_the_pool_counts_only_active_sessions() -> None:
    simulation = Simulation(2, 6, of_the_pool, seed=0)
    simulation.now = 10 * ACTIVE_FOR_S
    quiet, busy = simulation.workers
    for session in simulation.sessions[:4]:
        session.worker, session.last_used = quiet, 0.0
    simulation.sessions[4].worker, simulation.sessions[4].last_used = busy, simulation.now - ACTIVE_FOR_S / 2
    assert of_the_pool(simulation) is quiet
    assert fewest_sessions(simulation) is busy


@pytest.mark.slow
def test_the_pool_places_better_than_chance() -> None:
    mean = {
        name: statistics.mean(simulate(rule, seconds=1500, seeds=range(3)).whole)
        for name, rule in placement.RULES.items()
        if name in ("random", "the pool", "one queue (bound)")
    }
    assert mean["one queue (bound)"] < mean["the pool"] < mean["random"]


def test_another_worker_is_due_where_the_pool_starts_one() -> None:
    assert sessions_per_worker(seconds=2000, seeds=[0]) == pytest.approx(ACTIVE_SESSIONS_PER_WORKER, abs=1)
