"""Lost and restored connections, with both drivers: the polled one, and the asyncio one of the blocking client.

The server is real and has a network that takes milliseconds. A proxy in front of it fails.
"""

from collections.abc import Iterator
import itertools
import math
from pathlib import Path
import socket
import threading
import time
from typing import Any

from helpers.core_link import WELCOME
from helpers.drivers import Blocking, Driver, last, lost, mask, states
from helpers.end_to_end import WIDE_SHAPE, phantom, stroke
from helpers.fast_server import QuickServer, quick_server
from helpers.fault_proxy import Fault, FaultProxy, fault_proxy
from helpers.relay import relay
from helpers.threads import run_in_thread
import numpy as np
import pytest
from websockets.frames import Close
from websockets.sync.server import ServerConnection, serve

import nninteractive_ws as nni
from nninteractive_ws import errors, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import aio, blocking, dial, events, reconnect
from nninteractive_ws.client.reconnect import KeepaliveMonitor, Retries, close_error, delays, is_final
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.access import add_user, remove_user

# ---- the server, and its answers without faults -------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[QuickServer]:
    with quick_server("--allow-host", "gpu-box") as server:
        yield server


@pytest.fixture
def network(server: QuickServer) -> Iterator[FaultProxy]:
    with fault_proxy(server.address) as proxy:
        yield proxy


WHOLE = np.ones(WIDE_SHAPE, bool)
PROMPTS: list[tuple[Any, ...]] = [
    ("add_point", (30, 30, 28)),
    ("add_scribble", stroke(WIDE_SHAPE)),
    ("set_mask", WHOLE),
    ("undo",),
    ("add_bbox", ((20, 40), (20, 40), (28, 29))),
]


@pytest.fixture(scope="module")
def undisturbed(server: QuickServer) -> list[Mask]:
    """The mask after each of PROMPTS."""
    session, found = Blocking(server.address), []
    session.set_image(phantom(shape=WIDE_SHAPE))()
    for prompt in PROMPTS:
        session.ask(*prompt)()
        found.append(mask(session).copy())
    session.close()
    return found


def go_on(session: Driver, expected: list[Mask], done: int = 0) -> None:
    """Check that the prompts after the first ``done`` of PROMPTS give the masks of an undisturbed client."""
    for prompt, found in zip(PROMPTS[done:], expected[done:], strict=True):
        session.ask(*prompt)()
        assert np.array_equal(mask(session), found), prompt[0]
    assert len(session.core.segment("a").steps) == len(PROMPTS) - 2


# ---- losses -------------------------------------------------------------------------------------------------


def test_a_lost_connection_while_idle(driver: type[Driver], network: FaultProxy, undisturbed: list[Mask]) -> None:
    session = driver(network.address)
    session.set_image(phantom(shape=WIDE_SHAPE))()
    for prompt in PROMPTS[:2]:
        session.ask(*prompt)()
    network.cut()
    session.until(lambda: states(session) == ["open", "lost", "open"])
    (loss,) = lost(session)
    assert loss.reason.startswith("The connection to the server was lost")
    assert loss.retry_in is not None
    assert 0 <= loss.retry_in <= reconnect.FIRST_DELAY_S
    again = last(session).welcome
    assert again is not None
    assert again.resumed
    go_on(session, undisturbed, done=2)
    session.close()
    assert last(session) == events.Connection("closed", reason="The session was closed.")
    assert not [e for e in session.events if isinstance(e, events.Failed)]


def test_a_lost_connection_during_the_upload(
    driver: type[Driver], network: FaultProxy, undisturbed: list[Mask]
) -> None:
    session = driver(network.address)
    network.arm(Fault("cut", "up", 60_000))
    image = session.set_image(phantom(shape=WIDE_SHAPE))
    first = session.ask(*PROMPTS[0])
    image()
    first()
    assert [f.kind for f in network.happened] == ["cut"]
    assert np.array_equal(mask(session), undisturbed[0])
    go_on(session, undisturbed, done=1)
    session.close()


@pytest.mark.slow
def test_a_lost_connection_during_a_prompt(driver: type[Driver], network: FaultProxy) -> None:
    session, calm = driver(network.address), driver(network.address)
    for one in (session, calm):
        one.set_image(phantom(shape=WIDE_SHAPE))()
        one.ask("add_point", (30, 30, 28))()
    calm.ask("set_mask", WHOLE, run=True)()  # refined everywhere, which takes a second
    before = mask(session).copy()
    refining = session.ask("set_mask", WHOLE, run=True)
    session.until(lambda: any(isinstance(e, events.MaskDelta) and not e.final for e in session.events))
    network.cut()
    refining()
    assert states(session) == ["open", "lost", "open"]
    assert np.array_equal(mask(session), mask(calm))
    session.ask("undo")()
    assert np.array_equal(mask(session), before)
    session.close()
    calm.close()


@pytest.mark.slow
def test_commands_while_disconnected(driver: type[Driver], network: FaultProxy, undisturbed: list[Mask]) -> None:
    session = driver(network.address)
    session.set_image(phantom())()
    session.ask("add_point", (30, 30, 28))()
    network.refusing = True
    network.cut()
    session.until(lambda: "lost" in states(session))
    never = session.ask("add_point", (40, 30, 28))
    image = session.set_image(phantom(shape=WIDE_SHAPE))
    first, cancelled = session.ask(*PROMPTS[0]), session.ask("add_point", (1, 2, 3))
    session.core.cancel(session.core.pending_requests[-1])
    assert mask(session).shape == WIDE_SHAPE
    network.refusing = False
    image()
    with pytest.raises(errors.Cancelled):
        never()
    first()
    with pytest.raises(errors.Cancelled):
        cancelled()
    assert np.array_equal(mask(session), undisturbed[0])
    go_on(session, undisturbed, done=1)
    session.close()


@pytest.mark.slow
def test_cancelling_all_while_disconnected(driver: type[Driver], network: FaultProxy) -> None:
    session = driver(network.address)
    session.set_image(phantom())()
    network.refusing = True
    network.cut()
    session.until(lambda: "lost" in states(session))
    waiting = [session.ask("add_point", (30 + n, 30, 28)) for n in range(3)]
    session.cancel()
    network.refusing = False
    for wait in waiting:
        with pytest.raises(errors.Cancelled):
            wait()
    assert not mask(session).any()
    session.ask("add_point", (30, 30, 28))()
    session.close()


@pytest.mark.slow
def test_servers_that_end(driver: type[Driver], undisturbed: list[Mask]) -> None:
    """A killed worker, a stopped server, a killed server: the next one restores all, and runs the pending prompt."""
    with quick_server() as server:
        session = driver(server.address)
        session.set_image(phantom(shape=WIDE_SHAPE))()
        for prompt in PROMPTS[:2]:
            session.ask(*prompt)()
        for end, reason in (
            (server.kill_worker, "The worker process of this session ended unexpectedly."),
            (server.stop, "The server is shutting down."),
            (server.kill, "lost"),
        ):
            seen = len(session.events)
            refining = session.ask("set_mask", WHOLE, run=True)
            session.until(lambda: any(isinstance(e, events.Progress) for e in session.events[seen:]))  # noqa: B023
            end()
            session.until(lambda: lost(session, seen))  # noqa: B023
            assert reason in lost(session, seen)[0].reason
            if server.process.poll() is not None:
                server.start()
            refining()
            assert states(session)[-1] == "open"
            welcome = last(session).welcome
            assert welcome is not None
            assert not welcome.resumed
            session.ask("undo")()
            assert np.array_equal(mask(session), undisturbed[1])
        go_on(session, undisturbed, done=2)
        assert not [e for e in session.events if isinstance(e, events.Failed)]
        session.close()


# ---- the end ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_giving_up(driver: type[Driver], network: FaultProxy) -> None:
    session = driver(network.address, reconnect_for=0.8)
    session.set_image(phantom())()
    network.refusing = True
    cut_at = time.monotonic()
    network.cut()
    waiting = session.ask("add_point", (30, 30, 28))
    with pytest.raises(errors.ConnectionFailed):
        waiting()
    assert 0.8 <= time.monotonic() - cut_at < 10
    session.until(lambda: states(session)[-1] == "closed")
    assert set(states(session)[1:-1]) == {"lost"}
    failed, closed = session.events[-2:]
    assert isinstance(failed, events.Failed)
    assert (failed.request, str(failed.error)) == (None, last(session).reason)
    assert closed is last(session)
    session.close()
    assert session.events[-1] is closed, "it is told once"


def test_reconnecting_disabled(driver: type[Driver], network: FaultProxy) -> None:
    session = driver(network.address, reconnect_for=0)
    network.cut()
    session.until(lambda: states(session) == ["open", "closed"])
    session.close()


@pytest.mark.slow
def test_a_token_that_was_withdrawn(driver: type[Driver], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    token = add_user(tokens, "anna")
    with quick_server("--token-file", str(tokens)) as server, fault_proxy(server.address) as network:
        with pytest.raises(errors.Unauthorized):
            nni.connect(network.address)
        session = driver(network.address, token=token)
        session.set_image(phantom())()
        remove_user(tokens, "anna")
        network.cut()
        waiting = session.ask("add_point", (30, 30, 28))
        with pytest.raises(errors.Unauthorized, match="token"):
            waiting()
        session.until(lambda: states(session) == ["open", "lost", "closed"])
        session.close()


@pytest.fixture
def patient_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that would wait for a farewell would wait for long."""
    for module in (aio, blocking, dial):
        monkeypatch.setattr(module, "FAREWELL_TIMEOUT_S", 30.0)


def closes_at_once(session: Driver) -> None:
    threads = threading.active_count()
    waiting = session.ask("add_point", (30, 30, 28))
    started = time.monotonic()
    session.close()
    assert time.monotonic() - started < 15
    assert last(session) == events.Connection("closed", reason="The session was closed.")
    assert threading.active_count() <= threads
    if isinstance(session, Blocking):
        with pytest.raises(errors.ConnectionFailed, match="The session was closed"):
            waiting()


@pytest.mark.usefixtures("patient_farewell")
def test_closing_before_the_next_try(
    driver: type[Driver], network: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect.random, "uniform", lambda low, high: 60.0)
    session = driver(network.address)
    session.set_image(phantom())()
    network.refusing = True
    network.cut()
    session.until(lambda: states(session)[-1] == "lost")
    assert last(session).retry_in == 60
    closes_at_once(session)


@pytest.mark.usefixtures("patient_farewell")
def test_closing_during_a_try(driver: type[Driver], network: FaultProxy) -> None:
    session = driver(network.address)
    session.set_image(phantom())()
    tried = threading.Event()

    def plan() -> Fault:
        tried.set()
        return Fault("stall", "up", 0)

    network.plan = plan
    network.cut()
    session.until(tried.is_set)
    closes_at_once(session)


@pytest.mark.usefixtures("patient_farewell")
def test_closing_during_a_dns_lookup(
    driver: type[Driver], network: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, a DNS lookup waits for its timeout. Closing does not."""
    known, asked, over = True, threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **hints: Any) -> Any:
        if host == "gpu-box" and not known:
            asked.set()
            over.wait(30)
        return real("127.0.0.1" if host == "gpu-box" else host, *rest, **hints)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    session = driver(network.address.replace("127.0.0.1", "gpu-box"))
    session.set_image(phantom())()
    known = False
    network.cut()
    session.until(asked.is_set)
    waiting = threading.active_count()
    started = time.monotonic()
    session.close()
    assert time.monotonic() - started < 15
    assert threading.active_count() <= waiting
    over.set()


# ---- keepalive ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_silent_network(driver: type[Driver], network: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "PING_EVERY_S", 0.2)
    monkeypatch.setattr(reconnect, "PONG_TIMEOUT_S", 0.4)
    session = driver(network.address)
    session.set_image(phantom())()
    idle_until = time.monotonic() + 1.5
    session.until(lambda: time.monotonic() > idle_until)
    assert states(session) == ["open"], "a server that answers pings is there"
    network.arm(Fault("stall", "up", 0))
    started = time.monotonic()
    session.ask("add_point", (30, 30, 28))()
    assert time.monotonic() - started < 10
    assert states(session) == ["open", "lost", "open"]
    assert "has not answered" in lost(session)[0].reason
    session.close()


@pytest.mark.slow
def test_a_slow_link_is_not_considered_lost(
    driver: type[Driver], server: QuickServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pong waits behind a large mask for longer than the keepalive timeout."""
    monkeypatch.setattr(reconnect, "PING_EVERY_S", 0.3)
    monkeypatch.setattr(reconnect, "PONG_TIMEOUT_S", 2.2)
    noise = np.random.default_rng(0).random((240, 240, 240)) < 0.5
    with relay(server.address) as slow:
        session = driver(slow.address)
        session.set_image(np.arange(240**3, dtype=np.int32).reshape(noise.shape) // 1000)()
        session.until(lambda: any(isinstance(e, events.ImageProgress) and e.present == e.total for e in session.events))
        sent = slow.bytes_up
        slow.bytes_per_second = 600e3
        started = time.monotonic()
        session.ask("set_mask", noise)()
        print(f"{slow.bytes_up - sent:,} bytes in {time.monotonic() - started:.1f} s")
        assert time.monotonic() - started > 3
        assert states(session) == ["open"]
        slow.bytes_per_second = math.inf
        session.close()


def answer_all(connection: ServerConnection) -> None:
    """Answer every request with done until the client disconnects."""
    for data in connection:
        assert isinstance(data, bytes)
        request = protocol.decode_client(data)
        if isinstance(request, wire.Request):
            connection.send(protocol.encode(wire.Done(id=request.id)))


@pytest.mark.slow
def test_a_request_does_not_wait_until_the_next_try_is_due(
    driver: type[Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A click reconnects immediately, although the back-off is 15 seconds."""
    monkeypatch.setattr(reconnect, "delays", lambda: itertools.repeat(60.0))
    count = 0

    def behave(connection: ServerConnection) -> None:
        nonlocal count
        count += 1
        connection.recv()
        if count == 2:
            return  # the first click is too early, and stays pending
        connection.send(protocol.encode(WELCOME))
        if count == 1:
            return
        answer_all(connection)

    with serve(behave, "127.0.0.1", 0) as fake, run_in_thread(fake.serve_forever, fake.shutdown):
        session = driver(f"127.0.0.1:{fake.socket.getsockname()[1]}")
        session.until(lambda: states(session) == ["open", "lost"])
        first = session.set_image(phantom())
        session.until(lambda: states(session) == ["open", "lost", "lost"], timeout=20)
        assert count == 2, "it was tried again without being asked"
        second = session.ask("add_point", (30, 30, 28))
        first()
        second()
        assert states(session) == ["open", "lost", "lost", "open"]
        session.close()


# ---- eviction -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_evicted_session_is_dormant(driver: type[Driver]) -> None:
    """The connection returns with the next request. Dormant time does not count toward the timeout."""
    count = 0

    def behave(connection: ServerConnection) -> None:
        nonlocal count
        count += 1
        connection.recv()
        connection.send(protocol.encode(WELCOME))
        if count == 1:
            connection.send(protocol.encode(wire.Notice(code="evicted", message="Others need the room.")))
            return
        answer_all(connection)

    with serve(behave, "127.0.0.1", 0) as fake, run_in_thread(fake.serve_forever, fake.shutdown):
        session = driver(f"127.0.0.1:{fake.socket.getsockname()[1]}", reconnect_for=0.5)
        session.until(lambda: states(session) == ["open", "lost"])
        assert last(session) == events.Connection("lost", reason="Others need the room.")
        rest_until = time.monotonic() + 1
        session.until(lambda: time.monotonic() > rest_until)
        assert states(session) == ["open", "lost"]
        assert count == 1
        session.set_image(phantom())()
        assert states(session) == ["open", "lost", "open"]
        session.close()


# ---- without a network --------------------------------------------------------------------------------------


def test_backoff_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high / 2

    monkeypatch.setattr(reconnect.random, "uniform", uniform)
    waits = delays()
    assert [next(waits) for _ in range(8)] == [0.125, 0.25, 0.5, 1, 2, 4, 7.5, 7.5]
    assert asked == [(0, b) for b in (0.25, 0.5, 1, 2, 4, 8, 15, 15)]


@pytest.mark.parametrize(
    ("kind", "final"),
    [
        (errors.ConnectionFailed, False),
        (errors.WorkerLost, False),
        (errors.ShuttingDown, False),
        (errors.InternalError, False),
        (errors.AtCapacity, False),
        (errors.Unauthorized, True),
        (errors.ForbiddenOrigin, True),
        (errors.UnsupportedVersion, True),
        (errors.BadAddress, True),
        (errors.Untrusted, True),
        (errors.BadMessage, True),
        (errors.TooLarge, True),
        (errors.BadImage, True),
        (errors.Error, True),
    ],
)
def test_final_errors_are_not_retried(kind: type[errors.Error], final: bool) -> None:
    assert is_final(kind("")) is final
    retries = Retries(math.inf, lambda: 0.0)
    assert retries.delay_after(kind("")) is None, "the first connection is tried once"
    retries.opened()
    assert (retries.delay_after(kind("")) is None) is final


@pytest.mark.parametrize(
    ("received", "sent", "kind", "message"),
    [
        (None, None, errors.ConnectionFailed, "was lost (cable)."),
        (Close(1000, ""), Close(1000, ""), errors.ConnectionFailed, "The server closed the connection."),
        (Close(1012, "restart"), None, errors.ConnectionFailed, "The server closed the connection (restart)."),
        (Close(1009, ""), None, errors.TooLarge, "larger than the server accepts"),
        (None, Close(1009, ""), errors.TooLarge, "larger than this client accepts"),
        (Close(1002, "what"), None, errors.BadMessage, "what"),
        (None, Close(1007, "not UTF-8"), errors.BadMessage, "not UTF-8"),
    ],
)
def test_close_errors(received: Close, sent: Close, kind: type[errors.Error], message: str) -> None:
    error = close_error(received, sent, "cable")
    assert type(error) is kind
    assert message in str(error)


def test_retries_end_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect.random, "uniform", lambda low, high: high)
    now, loss = [0.0], errors.ConnectionFailed("")
    retries = Retries(10, lambda: now[0])
    retries.opened()
    now[0] = 100
    assert retries.delay_after(loss) == 0.25
    now[0] = 108
    assert retries.delay_after(loss) == 0.5
    now[0] = 109.5
    assert retries.delay_after(loss) == 0.5, "the last try comes when the time is over"
    now[0] = 110
    assert retries.delay_after(loss) is None
    retries.opened()
    now[0] = 111
    assert retries.delay_after(loss) == 2, "a connection that is lost again at once is no reason to hurry"
    retries.opened()
    now[0] = 120
    assert retries.delay_after(loss) == 0.25
    now[0] = 500
    retries.woken()
    now[0] = 509
    assert retries.delay_after(loss) == 0.5
    now[0] = 510
    assert retries.delay_after(loss) is None


def test_the_keepalive_monitor_pings_and_times_out() -> None:
    now = [0.0]
    silence = KeepaliveMonitor(lambda: now[0])
    for now[0] in (1, 10):
        assert not silence.should_ping()
    now[0] = 10.1
    assert silence.should_ping()
    assert not silence.should_ping(), "once"
    now[0] = 30
    assert not silence.should_ping()
    silence.heard()
    now[0] = 40.1
    assert silence.should_ping()
    now[0] = 60.2
    with pytest.raises(errors.ConnectionFailed, match="not answered for 30 seconds"):
        silence.should_ping()
