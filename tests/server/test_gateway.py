"""The gateway from the client's side: a real process with a real worker and real sockets."""

import asyncio
from collections.abc import Iterator
from functools import partial
import os
from pathlib import Path
import signal
import sys
import time
from typing import Any
import urllib.error
import urllib.request

from helpers.core_link import MODEL
from helpers.end_to_end import (
    WIDE_SHAPE,
    PlainClient,
    ServerProcess,
    health,
    hello,
    http,
    is_running,
    phantom,
    run,
    server_process,
    sessions,
    stroke,
    wait_until,
    wide_lasso,
)
from helpers.fast_server import BROKEN_DEVICE_NETWORK, QuickServer, quick_server
import msgspec
import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.typing import Origin

import nninteractive_ws as nni
from nninteractive_ws import errors, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.client.connection_errors import connection_error
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import dial
from nninteractive_ws.client.reconnect import close_error, is_final
from nninteractive_ws.engine.session import LIMITS
from nninteractive_ws.masks import Mask
from nninteractive_ws.server.gateway import HELLO_TIMEOUT_S, Gateway
from nninteractive_ws.server.launchers import LocalLauncher
from nninteractive_ws.server.pool import PoolSettings
from nninteractive_ws.server.settings import Settings
from nninteractive_ws.worker_protocol import ModelReady

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


# ---- the life of one server, in the order of the tests -----------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Iterator[ServerProcess]:
    """A server for the tests that end one of its processes, or need it during its start."""
    with server_process("--max-sessions", "2", "--log-level", "critical") as server:
        yield server


@pytest.mark.slow
def test_the_gateway_answers_while_the_model_loads(own: ServerProcess) -> None:
    before = health(own.address)
    assert before["status"] == "loading"
    assert before["device"] is None
    _, output = plain_get(own.address, "/")
    assert "is loading its model" in output

    async def wait() -> list[Any]:
        silent = PlainClient(await connect(own.address, proxy=None))
        opened = time.monotonic()
        client = PlainClient(await connect(own.address, proxy=None))
        await client.send(hello())
        first = [await client.receive(), await client.receive()]
        await client.close()
        # A silent client is disconnected, even while the server is busy. It may reconnect, so there is no error.
        with pytest.raises(ConnectionClosed) as closed:
            await silent.receive()
        assert time.monotonic() - opened >= HELLO_TIMEOUT_S - 1
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == CloseCode.TRY_AGAIN_LATER
        assert not is_final(close_error(closed.value.rcvd, None))
        return first

    notice, welcome = run(wait())
    assert isinstance(notice, wire.Notice)
    assert notice.code == "loading_model"
    assert "demo" in notice.message
    assert isinstance(welcome, wire.Welcome)
    after = health(own.address)
    assert after["status"] == "ready"
    assert after["device"] == welcome.device


@linux
def test_the_gateway_has_no_torch(own: ServerProcess) -> None:
    wait_until(lambda: health(own.address)["status"] == "ready")

    def libraries(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "libtorch" in libraries(own.worker)
    assert "libtorch" not in libraries(own.process.pid)


def test_a_closed_session_frees_capacity(own: ServerProcess) -> None:
    async def fill() -> None:
        first, _second = await PlainClient.open(own.address), await PlainClient.open(own.address)
        assert health(own.address)["sessions"] == 2
        third = PlainClient(await connect(own.address, proxy=None))
        await third.send(hello())
        error = await third.receive()
        assert (error.code, error.id) == ("at_capacity", None)
        assert "All 2 sessions of the server" in error.message
        await third.websocket.wait_closed()
        assert (third.websocket.close_code, third.websocket.close_reason) == (1013, "at_capacity")
        with pytest.raises(errors.AtCapacity):
            await nni.aconnect(own.address)
        await first.leave()
        await asyncio.to_thread(wait_until, lambda: health(own.address)["sessions"] == 1)
        await (await PlainClient.open(own.address)).close()
        await _second.close()

    run(fill())
    wait_until(lambda: sessions(own.address, "connected") == 0)


@pytest.mark.slow
@linux
def test_sessions_are_restored_after_a_killed_worker(own: ServerProcess) -> None:
    """Its sessions are restored on the next worker, and the running prompt is answered."""
    received: list[Any] = []

    async def lose() -> tuple[list[Mask], int]:
        session = await nni.aconnect(own.address, on={"notice": received.append, "connection": received.append})
        await session.set_image(phantom(shape=WIDE_SHAPE))
        segment, found = session.segment("a"), []
        await segment.add_point((60, 30, 30))
        found.append(segment.mask.copy())
        predicting = asyncio.Event()
        session.on("progress", lambda _: predicting.set())
        waiting = asyncio.ensure_future(segment.add_lasso(wide_lasso()))
        await predicting.wait()
        worker = own.worker
        os.kill(worker, signal.SIGKILL)
        await waiting
        found.append(segment.mask.copy())
        await segment.undo()
        assert np.array_equal(segment.mask, found[0])
        await session.close()
        return found, worker

    found, killed = run(lose())
    states = [(e.code if isinstance(e, events.Notice) else e.state) for e in received]
    assert states == ["open", "worker_lost", "lost", "loading_model", "open", "closed"]
    assert "ended unexpectedly" in received[2].reason
    assert received[2].retry_in is not None
    assert not received[4].welcome.resumed
    assert own.worker != killed
    assert own.process.poll() is None
    with nni.connect(own.address) as session:
        session.set_image(phantom(shape=WIDE_SHAPE))
        segment = session.segment("a")
        segment.add_point((60, 30, 30))
        assert np.array_equal(segment.mask, found[0])
        segment.add_lasso(wide_lasso())
        assert np.array_equal(segment.mask, found[1])


@pytest.mark.slow
def test_a_worker_whose_device_is_broken_is_replaced() -> None:
    with quick_server(network=BROKEN_DEVICE_NETWORK) as server, nni.connect(server.address) as session:
        session.set_image(phantom())
        found, workers = [], set()
        for _ in range(3):
            workers.add(server.worker)
            segment = session.segment("a")
            segment.add_point((30, 30, 28))
            found.append(segment.mask.copy())
            segment.undo()
            wait_until(lambda: health(server.address)["status"] == "ready" and server.worker not in workers, 60)
    assert len(workers) == 3
    assert found[0].any()
    assert all(np.array_equal(mask, found[0]) for mask in found)


@pytest.mark.slow
@linux
def test_a_worker_that_did_not_answer_keeps_no_session() -> None:
    """Otherwise, sessions without a client would fill the server."""

    async def open_session(address: str) -> str:
        async with connect(address, proxy=None) as websocket:
            await websocket.send(protocol.encode(hello()))
            while True:
                message = protocol.decode_server(await websocket.recv())  # type: ignore[arg-type]
                if isinstance(message, wire.ErrorMessage):
                    return message.code
                if isinstance(message, wire.Welcome):
                    return "open"

    with quick_server("--max-sessions", "1") as server:
        wait_until(lambda: health(server.address)["status"] == "ready", 60)
        worker = server.worker
        os.kill(worker, signal.SIGSTOP)
        try:
            assert run(open_session(server.address)) == "worker_lost"
        finally:
            os.kill(worker, signal.SIGCONT)
        assert run(open_session(server.address)) == "open"


@pytest.mark.slow
@linux
def test_a_client_that_leaves_before_its_welcome_keeps_no_session() -> None:
    """Nobody could resume it."""

    async def leave(server: QuickServer) -> None:
        websocket = await connect(server.address, proxy=None)
        await websocket.send(protocol.encode(hello()))
        await asyncio.to_thread(wait_until, lambda: health(server.address)["sessions"] == 1)
        port = websocket.local_address[1]
        websocket.transport.abort()
        gateway = psutil.Process(server.process.pid)
        await asyncio.to_thread(
            wait_until, lambda: port not in {c.raddr.port for c in gateway.net_connections("tcp") if c.raddr}
        )

    with quick_server() as server:
        wait_until(lambda: health(server.address)["status"] == "ready", 60)
        worker = server.worker
        os.kill(worker, signal.SIGSTOP)
        try:
            run(leave(server))
            assert health(server.address)["sessions"] == 1
        finally:
            os.kill(worker, signal.SIGCONT)
        wait_until(lambda: health(server.address)["sessions"] == 0, 20)


@linux
def test_a_signal_ends_gateway_and_worker(own: ServerProcess) -> None:
    """Ends the server that the tests above share."""
    notices: list[events.Notice] = []

    async def stop() -> None:
        session = await nni.aconnect(own.address, on={"notice": notices.append}, reconnect_for=0)
        await session.set_image(phantom(shape=WIDE_SHAPE))
        predicting = asyncio.Event()
        session.on("progress", lambda _: predicting.set())
        waiting = asyncio.ensure_future(session.segment("a").add_lasso(wide_lasso()))
        await predicting.wait()
        own.process.terminate()
        with pytest.raises(errors.ShuttingDown, match="is shutting down"):
            await waiting
        await session.close()

    worker = own.worker
    run(stop())
    assert notices[-1].code == "shutting_down"
    assert own.process.wait(20) == 0
    wait_until(lambda: not is_running(worker), timeout=10)


# ---- metrics ----------------------------------------------------------------------------------------------


def test_a_worker_keeps_its_label_while_another_restarts() -> None:
    pool = PoolSettings([LocalLauncher("cuda:0"), LocalLauncher("cuda:1")], 2)
    gateway = Gateway(Settings(worker=(), model_name="demo", pool=pool, page=None))
    for slot, device in zip(gateway._workers.slots, ("cuda:0", "cuda:1"), strict=True):
        slot.description = ModelReady(MODEL, device, LIMITS)
    assert list(gateway._gauges().memory) == ["0 cuda:0", "1 cuda:1"]
    gateway._workers.slots[0].description = None
    assert list(gateway._gauges().memory) == ["1 cuda:1"]


# ---- plain HTTP -------------------------------------------------------------------------------------------


def plain_get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{http(address)}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


def test_healthz(server: str) -> None:
    found = health(server)
    assert set(found) == {"ok", "status", "server", "protocol", "model", "device", "sessions", "max_sessions"}
    assert found["status"] in ("loading", "ready")
    assert found["server"].startswith("nninteractive-ws ")
    assert (found["protocol"], found["model"], found["max_sessions"]) == (protocol.PROTOCOL_VERSION, "demo", 16)
    status, _ = plain_get(server, "/healthz?verbose=1")
    assert status == 200


@pytest.mark.parametrize("path", ["/", "/index.html", "/predict"])
def test_plain_http_is_answered_with_an_explanation(server: str, path: str) -> None:
    status, output = plain_get(server, path)
    assert status == 426
    assert output.startswith("This is an nninteractive-ws server")
    assert "Enter this address in the nninteractive-ws module" in output


@linux
@pytest.mark.parametrize("path", ["/worker", "/worker/session", "/worker/session?token=x", "/workers", "/"])
@pytest.mark.parametrize("secret", [None, "", "guess", "caf\u00e9"])
def test_the_worker_port_requires_a_secret(inside: str, path: str, secret: str | None) -> None:
    headers = None if secret is None else {"Authorization": f"Bearer {secret}"}

    async def dial() -> None:
        async with connect(inside + path, additional_headers=headers, proxy=None):
            pass

    with pytest.raises(InvalidStatus) as refused:
        run(dial())
    assert refused.value.response.status_code == 401


@pytest.fixture(scope="module")
def inside() -> Iterator[str]:
    """Return the address to which a server's workers connect."""
    with server_process("--log-level", "critical") as own:
        wait_until(lambda: health(own.address)["status"] == "ready")
        (connection,) = psutil.Process(own.worker).net_connections("tcp")
        assert connection.raddr.ip == "127.0.0.1"
        yield f"ws://127.0.0.1:{connection.raddr.port}"


def test_a_foreign_origin_is_refused(server: str) -> None:
    async def dial() -> None:
        async with connect(server, origin=Origin("https://example.org"), proxy=None):
            pass

    with pytest.raises(InvalidStatus) as refused:
        run(dial())
    assert refused.value.response.status_code == 403
    assert b"--allow-origin" in bytes(refused.value.response.body or b"")
    assert isinstance(connection_error(refused.value, parse_address(server)), errors.ForbiddenOrigin)


# ---- the handshake ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code", "expected"),
    [
        ("hello", "bad_message", 'The first message must be a "hello"'),
        (b"\xc1garbage", "bad_message", "not msgpack"),
        (b"\x90", "bad_message", "must be a msgpack map"),
        (protocol.encode(wire.Undo(id=1, segment="a")), "bad_message", 'The first message must be a "hello"'),
        (msgspec.msgpack.encode({"type": "hallo"}), "bad_message", 'The first message must be a "hello"'),
        (msgspec.msgpack.encode({"type": "hello"}), "bad_message", '"hello" is invalid'),
        (protocol.encode(hello(version=99)), "unsupported_version", "Update the server"),
        (protocol.encode(hello(version=0)), "unsupported_version", "Update the client"),
        (protocol.encode(hello(encodings=["zip"])), "unsupported_version", "the server supports"),
        (protocol.encode(hello(encodings=[])), "unsupported_version", "the server supports"),
    ],
)
def test_an_invalid_first_message_is_refused(server: str, first: str | bytes, code: str, expected: str) -> None:
    async def begin() -> tuple[Any, int | None, str | None]:
        client = PlainClient(await connect(server, proxy=None))
        await client.websocket.send(first)
        error = await client.receive()
        await client.websocket.wait_closed()
        return error, client.websocket.close_code, client.websocket.close_reason

    error, close_code, reason = run(begin())
    assert isinstance(error, wire.ErrorMessage)
    assert (error.code, error.id) == (code, None)
    assert expected in error.message
    assert (close_code, reason) == (CloseCode.POLICY_VIOLATION, code)


def test_a_message_over_the_limit_closes_the_connection(server: str) -> None:
    async def begin() -> int | None:
        client = PlainClient(await connect(server, proxy=None))
        await client.websocket.send(bytes(protocol.MAX_MESSAGE_BYTES + 1))
        await client.websocket.wait_closed()
        return client.websocket.close_code

    assert run(begin()) == CloseCode.MESSAGE_TOO_BIG


def test_the_welcome(server: str) -> None:
    async def begin() -> list[wire.Welcome]:
        clients = [await PlainClient.open(server, encodings=["zip", e]) for e in ("deflate", "raw")]
        for client in clients:
            await client.close()
        return [c.welcome for c in clients]

    first, second = run(begin())
    assert [first.encoding, second.encoding] == ["deflate", "raw"]
    assert first.session_id != second.session_id
    assert first.session_secret != second.session_secret
    assert len(first.session_secret) >= 40
    assert (first.version, first.resumed, first.model.name) == (protocol.PROTOCOL_VERSION, False, "demo")


# ---- sessions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lone_masks(server: str) -> dict[int, list[Mask]]:
    """The masks of each image's prompts in a single session, by the seed of the image."""
    return {seed: run(prompt_through(server, seed)) for seed in (5, 6)}


async def prompt_through(server: str, seed: int, session: AsyncSession | None = None) -> list[Mask]:
    """Send a few prompts on the phantom of a seed. Return the masks after each."""
    session = await nni.aconnect(server) if session is None else session
    async with session:
        await session.set_image(phantom(seed))
        segment, found = session.segment("same name"), []
        for prompt in (
            segment.add_point((20 + seed, 30, 28)),
            segment.add_scribble(stroke()),
            segment.add_point((40, 30, 28), positive=False),
        ):
            await prompt
            found.append(segment.mask.copy())
        return found


def same(a: list[Mask], b: list[Mask]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_concurrent_sessions_get_the_masks_of_single_ones(server: str, lone_masks: dict[int, list[Mask]]) -> None:
    async def both() -> list[list[Mask]]:
        return await asyncio.gather(prompt_through(server, 5), prompt_through(server, 6))

    first, second = run(both())
    assert same(first, lone_masks[5])
    assert same(second, lone_masks[6])


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["deflate", "raw"])
def test_other_encodings(server: str, lone_masks: dict[int, list[Mask]], encoding: Any) -> None:
    async def work() -> list[Mask]:
        session = AsyncSession(partial(dial, parse_address(server)), Core(encodings=(encoding,)))
        assert (await session.wait_open()).encoding == encoding
        return await prompt_through(server, 5, session)

    assert same(run(work()), lone_masks[5])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["upload", "prediction"])
def test_a_vanished_client_does_not_affect_others(server: str, lone_masks: dict[int, list[Mask]], moment: str) -> None:
    async def work() -> list[Mask]:
        victim = await PlainClient.open(server)
        image = phantom(shape=WIDE_SHAPE)
        if moment == "upload":
            await victim.send(wire.SetImage(id=1, image="x", shape=WIDE_SHAPE, dtype="int16", mean=0.0, std=500.0))
            await victim.send(wire.AddPoint(id=2, segment="a", point=(1, 1, 1)))
            await victim.receive_until(wire.Progress)
        else:
            await victim.set_image(image)
            box = ((4, 126), (30, 31), (4, 60))
            await victim.send(wire.AddBbox(id=2, segment="a", box=box))
            await victim.receive_until(wire.Progress)
        other = asyncio.ensure_future(prompt_through(server, 5))
        await asyncio.sleep(0.05)
        victim.websocket.transport.abort()  # like a killed process
        return await other

    before = sessions(server, "connected")
    assert same(run(work()), lone_masks[5])
    wait_until(lambda: sessions(server, "connected") == before)
