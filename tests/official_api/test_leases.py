"""Leases: claims, limits, owners, expiry, and failing sessions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from helpers.fake_session import FakeSession
from nnInteractive.inference.remote.serialization import pack_array
import numpy as np
import pytest

from nninteractive_ws import errors
from nninteractive_ws.official_api import lease as lease_module
from nninteractive_ws.official_api import leases as leases_module
from nninteractive_ws.official_api import nnia
from nninteractive_ws.official_api.leases import IDLE_TIMEOUT_S, LIVENESS_TIMEOUT_S, LeaseGone, Leases, Limits

IMAGE = nnia.parse(pack_array(np.arange(60, dtype=np.int16).reshape(1, 3, 4, 5)))
VOXELS = 60


class Clock:
    """The clock of leases, which tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Gateway:
    """Opens fake sessions. ``error``: raised instead. ``hold``: claims wait for it."""

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.tokens: list[str | None] = []
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.first_request_error: Exception | None = None

    async def connect(self, address: str, token: str | None) -> FakeSession:
        assert address == "ws://gateway"
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        session = FakeSession()
        session.error = self.first_request_error
        self.sessions.append(session)
        self.tokens.append(token)
        return session


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    gateway = Gateway()
    monkeypatch.setattr(leases_module, "connect_to_gateway", gateway.connect)
    return gateway


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # Not time.monotonic itself, which is also the clock of the event loop.
    for module in (lease_module, leases_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def new_leases(max_leases: int = 3, max_leases_per_user: int = 2, max_bytes: int = 10_000) -> Leases:
    return Leases("ws://gateway", Limits(max_leases, max_leases_per_user, max_bytes))


def run(work: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 30))  # type: ignore[arg-type]


async def sweep(leases: Leases) -> None:
    """Let the expiry look at all leases once."""
    expiring = asyncio.ensure_future(leases.expire())
    for _ in range(20):
        await asyncio.sleep(0.002)
    expiring.cancel()
    await asyncio.gather(expiring, return_exceptions=True)


def test_tokens_of_ended_claims_are_forgotten(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases()
        gateway.error = errors.Unauthorized("The server refused this token.")
        for n in range(3):
            with pytest.raises(errors.Unauthorized):
                await leases.claim(f"{n}" * 1000)
        assert not leases._claiming

    run(work)


# ---- claims -------------------------------------------------------------------------------------------------


def test_a_claim_opens_a_session_without_previews(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases()
        name, other = await leases.claim(""), await leases.claim("secret")
        assert name != other
        assert len(name) == 32
        assert len(leases) == 2
        assert gateway.tokens == [None, "secret"]
        assert gateway.sessions[0].options["previews"] is False
        assert leases.find(name, "").session is gateway.sessions[0]
        await leases.release(name)
        assert gateway.sessions[0].closed
        assert not gateway.sessions[1].closed
        await leases.release(name)  # again: nothing
        await leases.close()
        assert gateway.sessions[1].closed
        assert len(leases) == 0

    run(work)


def test_limits_of_all_and_of_one_user(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases(max_leases=3, max_leases_per_user=2)
        await leases.claim("a")
        second = await leases.claim("a")
        with pytest.raises(errors.AtCapacity, match="All 2 sessions that a user may have"):
            await leases.claim("a")
        await leases.claim("b")
        with pytest.raises(errors.AtCapacity, match="All 3 sessions of the server"):
            await leases.claim("c")
        await leases.release(second)
        await leases.claim("c")
        assert len(gateway.sessions) == 4

    run(work)


def test_claims_in_progress_count(gateway: Gateway) -> None:
    async def work() -> None:
        gateway.hold = asyncio.Event()
        leases = new_leases(max_leases=2)
        claims = [asyncio.ensure_future(leases.claim(token)) for token in "abc"]
        await asyncio.sleep(0)
        gateway.hold.set()
        done = await asyncio.gather(*claims, return_exceptions=True)
        assert sum(isinstance(outcome, errors.AtCapacity) for outcome in done) == 1
        assert len(leases) == 2

    run(work)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.ConnectionFailed("Nobody answers."), errors.ServerError),
        (errors.Unauthorized("The token is wrong."), errors.Unauthorized),
        (errors.AtCapacity("All are in use."), errors.AtCapacity),
    ],
)
def test_a_claim_that_the_gateway_refuses(gateway: Gateway, error: Exception, expected: type[Exception]) -> None:
    async def work() -> None:
        leases = new_leases(max_leases=1)
        gateway.error = error
        with pytest.raises(expected):
            await leases.claim("")
        gateway.error = None
        await leases.claim("")  # the failed one does not count

    run(work)


def test_a_claim_while_the_model_loads(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "ANSWER_TIMEOUT_S", 0.02)

    async def work() -> None:
        gateway.hold = asyncio.Event()
        leases = new_leases(max_leases=1)
        with pytest.raises(errors.ServerError, match="still loading"):
            await leases.claim("")
        gateway.hold = None
        await leases.claim("")

    run(work)


def test_a_session_that_fails_at_once_leaves_no_lease(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases(max_leases=1)
        gateway.first_request_error = errors.WorkerLost("The worker ended.")
        with pytest.raises(errors.WorkerLost):
            await leases.claim("")
        assert len(leases) == 0
        assert gateway.sessions[0].closed

    run(work)


# ---- owners -------------------------------------------------------------------------------------------------


def test_a_lease_belongs_to_its_user(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases()
        name = await leases.claim("own")
        assert leases.find(name, "own")
        for token in ("", "Own", "own ", "other", "ö"):
            with pytest.raises(errors.Unauthorized, match="not that of the lease"):
                leases.find(name, token)
        for unknown in ("", name[:-1], name.upper() + "x", "0" * 32):
            with pytest.raises(LeaseGone):
                leases.find(unknown, "own")

    run(work)


# ---- expiry -------------------------------------------------------------------------------------------------


def test_expiry(gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "_SWEEP_EVERY_S", 0.001)

    async def work() -> None:
        leases = new_leases(max_leases_per_user=3)
        silent, seen, active = [await leases.claim("") for _ in range(3)]
        for name in (silent, seen, active):
            await leases.find(name, "").set_image(IMAGE)
        assert leases.budget.used == 3 * 3 * VOXELS
        clock.now += LIVENESS_TIMEOUT_S - 1
        leases.find(seen, "")
        leases.find(silent, "", mark_seen=False)  # as /lease_status does
        leases.find(active, "").mark_active()
        clock.now += 2
        await sweep(leases)
        with pytest.raises(LeaseGone, match="Start another one"):
            leases.find(silent, "")
        assert gateway.sessions[0].closed
        assert leases.budget.used == 2 * 3 * VOXELS
        # Heartbeats do not extend the idle timeout.
        while clock.now < 1000 + IDLE_TIMEOUT_S - 50:
            clock.now += 50
            leases.find(seen, "")
            leases.find(active, "").mark_active()
        assert Leases.remaining_seconds(leases.find(seen, "")) == pytest.approx(IDLE_TIMEOUT_S - (clock.now - 1000))
        assert Leases.remaining_seconds(leases.find(active, "")) == IDLE_TIMEOUT_S
        clock.now += 51
        leases.find(seen, "")
        await sweep(leases)
        leases.find(seen, "")  # nobody needs its place
        assert leases.budget.used == 2 * 3 * VOXELS

    run(work)


def test_an_idle_lease_is_ended_for_another(gateway: Gateway, clock: Clock) -> None:
    async def work() -> None:
        leases = new_leases(max_leases=2)
        oldest, older = await leases.claim("a"), await leases.claim("b")
        leases.find(older, "b").mark_active()
        await leases.find(oldest, "a").set_image(IMAGE)
        clock.now += IDLE_TIMEOUT_S - 1
        with pytest.raises(errors.AtCapacity, match="All 2 sessions of the server"):
            await leases.claim("c")
        clock.now += 2
        newest = await leases.claim("c")
        with pytest.raises(LeaseGone):
            leases.find(oldest, "a")
        assert leases.budget.used == 0
        leases.find(older, "b")
        leases.find(newest, "c")
        await leases.close()
        assert all(session.closed for session in gateway.sessions)

    run(work)


def test_at_the_limit_of_a_user_only_an_own_idle_lease_is_ended(gateway: Gateway, clock: Clock) -> None:
    async def work() -> None:
        leases = new_leases(max_leases=3, max_leases_per_user=1)
        other = await leases.claim("a")
        clock.now += IDLE_TIMEOUT_S + 1
        own = await leases.claim("b")
        with pytest.raises(errors.AtCapacity, match="that a user may have"):
            await leases.claim("b")
        clock.now += IDLE_TIMEOUT_S + 1
        await leases.claim("b")
        leases.find(other, "a")
        with pytest.raises(LeaseGone):
            leases.find(own, "b")

    run(work)


def test_an_idle_lease_gives_up_its_memory(gateway: Gateway, clock: Clock) -> None:
    async def work() -> None:
        leases = new_leases(max_bytes=4 * VOXELS)
        idle, busy = await leases.claim(""), await leases.claim("")
        await leases.find(idle, "").set_image(IMAGE)
        with pytest.raises(errors.OutOfMemory):
            await leases.find(busy, "").set_image(IMAGE)
        clock.now += IDLE_TIMEOUT_S + 1
        leases.find(busy, "").mark_active()
        async with leases.find(busy, "").lock:  # as during a request
            await leases.find(busy, "").set_image(IMAGE)
        with pytest.raises(LeaseGone):
            leases.find(idle, "")
        assert leases.budget.used == 3 * VOXELS

    run(work)


def test_a_lease_in_use_does_not_expire(gateway: Gateway, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "_SWEEP_EVERY_S", 0.001)

    async def work() -> None:
        leases = new_leases()
        name = await leases.claim("")
        async with leases.find(name, "").lock:
            clock.now += 2 * IDLE_TIMEOUT_S
            await sweep(leases)
            assert len(leases) == 1
        await sweep(leases)
        assert len(leases) == 0

    run(work)


def test_a_release_waits_for_the_current_request(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases()
        name = await leases.claim("")
        async with leases.find(name, "").lock:
            releasing = asyncio.ensure_future(leases.release(name))
            await asyncio.sleep(0.01)
            with pytest.raises(LeaseGone):
                leases.find(name, "")
            assert not gateway.sessions[0].closed
        await releasing
        assert gateway.sessions[0].closed

    run(work)


# ---- failing sessions ---------------------------------------------------------------------------------------


def test_a_failed_session_is_forgotten_with_its_image(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases()
        name, other = await leases.claim(""), await leases.claim("")
        await leases.find(name, "").set_image(IMAGE)
        gateway.sessions[0].fail()
        with pytest.raises(LeaseGone):
            leases.find(name, "")
        leases.find(other, "")
        gateway.sessions[0].fail()  # again: nothing
        await leases.close()
        assert leases.budget.used == 0

    run(work)


def test_a_session_that_fails_while_its_image_is_sent(gateway: Gateway) -> None:
    async def work() -> None:
        leases = new_leases()
        lease = leases.find(await leases.claim(""), "")
        await lease.set_image(IMAGE)
        session = gateway.sessions[0]
        session.hold = asyncio.Event()
        await lease.lock.acquire()  # as every request does
        sending = asyncio.ensure_future(lease.set_image(IMAGE))
        await asyncio.sleep(0.05)
        assert leases.budget.used == 2 * 3 * VOXELS
        session.error = errors.ConnectionFailed("The server is gone.")
        session.fail()
        session.hold.set()
        with pytest.raises(errors.ConnectionFailed):
            await sending
        lease.lock.release()
        await leases.close()
        assert leases.budget.used == 0
        assert session.closed

    run(work)
