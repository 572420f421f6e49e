"""Two hundred prompts over failing connections, on servers that die. Each is applied once, and none is lost.

A script of prompts runs over a failing network (``helpers/fault_proxy.py``), and over an undisturbed one. All masks and
histories must be equal, bit for bit, on the client and on the server. A seed determines script and faults.
"""

from collections.abc import Iterator
from functools import cache
import random
from typing import Protocol

from helpers.fast_server import QuickServer, quick_server
from helpers.fault_script import (
    KINDS,
    PROMPTS,
    Expected,
    Open,
    cancel_through,
    concurrent,
    disturb,
    kill_in_turn,
    kill_server,
    kill_worker,
    make_script,
    polled,
    undisturbed,
)
import pytest

from nninteractive_ws.client import reconnect

#: One, which takes a minute. tests/soak has more.
SEED = 1

pytestmark = pytest.mark.usefixtures("back_at_once")


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    """A server for this module."""
    with quick_server() as server:
        yield server


class Expect(Protocol):
    def __call__(self, seed: int, count: int = PROMPTS) -> Expected: ...


@pytest.fixture(scope="module")
def expect(quick: QuickServer) -> Expect:
    """Return the expected result of a seed's script. Each script runs once."""
    return cache(lambda seed, count=PROMPTS: undisturbed(quick.address, make_script(seed, count)))


@pytest.mark.slow
def test_the_script_covers_all_prompts(expect: Expect) -> None:
    """It has every kind of prompt, most prompts succeed, and masks are refined."""
    script, expected = make_script(SEED), expect(SEED)
    assert {p.method for p in script} == set(KINDS) - {"long scribble", "refined mask"}
    done = [o for o in expected.outcomes if not isinstance(o, str)]
    assert len(done) >= 0.85 * PROMPTS
    assert sum(changed is not None for _, changed in done) >= 0.6 * PROMPTS
    assert {o for o in expected.outcomes if isinstance(o, str)} <= {"nothing_to_undo", "unknown_segment"}
    assert expected.refined >= 3
    first, undone, redone = expected.after
    assert all(s.steps and s.undone and s.voxels for s in first.values())
    assert all(not s.steps and not s.voxels for s in undone.values())
    assert all(not s.undone for s in redone.values())


# ---- disturbed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("open_driver", "at_once"), [(concurrent, 6), (polled, 4)], ids=["asyncio", "polled"])
@pytest.mark.slow
def test_a_failing_network(quick: QuickServer, expect: Expect, open_driver: Open, at_once: int) -> None:
    disturb(quick, make_script(SEED), expect(SEED), random.Random(SEED), open_driver, at_once)


@pytest.mark.slow
@pytest.mark.parametrize(
    "open_driver",
    [pytest.param(concurrent, id="asyncio", marks=pytest.mark.slow), pytest.param(polled, id="polled")],
)
def test_a_silent_network(
    quick: QuickServer, expect: Expect, open_driver: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections die without a close, and the server keeps the old ones."""
    monkeypatch.setattr(reconnect, "PING_EVERY_S", 0.2)
    monkeypatch.setattr(reconnect, "PONG_TIMEOUT_S", 0.4)
    seed, count = SEED + 1, 24
    script, expected = make_script(seed, count), expect(seed, count)
    disturb(quick, script, expected, random.Random(seed), open_driver, at_once=3, kinds=["stall"])


@pytest.mark.slow
def test_cancelled_while_the_network_fails(quick: QuickServer, expect: Expect) -> None:
    """Chance decides which prompts are cancelled. Both ends must agree."""
    cancel_through(quick, make_script(SEED + 2, 60), random.Random(SEED + 2))


# ---- processes that are killed --------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_processes(quick: QuickServer, expect: Expect) -> None:
    """The worker, and the whole server, in the middle of predictions."""
    rng = random.Random(SEED)
    kill_in_turn(quick, make_script(SEED), expect(SEED), rng, [kill_worker, kill_server, kill_worker])
