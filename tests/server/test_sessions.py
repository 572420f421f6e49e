"""Sessions on a real server: kept, resumed, evicted, and protected from other users."""

import asyncio
from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import re
import signal
import sys
import time
from typing import Any
import urllib.error

from helpers.end_to_end import (
    WIDE_SHAPE,
    PlainClient,
    ServerProcess,
    health,
    hello,
    metrics,
    phantom,
    run,
    server_process,
    sessions,
    wait_until,
    wide_lasso,
)
import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from nninteractive_ws import masks, protocol
from nninteractive_ws import messages as wire

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


async def resume(address: str, welcome: wire.Welcome, **fields: Any) -> PlainClient:
    return await PlainClient.open(
        address, **{"session_id": welcome.session_id, "session_secret": welcome.session_secret, **fields}
    )


# ---- resuming ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_session_is_resumed(server: str) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)
        await client.set_image(phantom())
        await client.send(wire.AddPoint(id=2, segment="a", point=(30, 30, 28)))
        _, done = await client.receive_answer(2)
        before = await client.mask(3, "a")
        assert before.any()
        client.websocket.transport.abort()
        again = await resume(server, client.welcome)
        welcome = again.welcome
        assert welcome.resumed
        assert (welcome.session_id, welcome.session_secret) == (
            client.welcome.session_id,
            client.welcome.session_secret,
        )
        assert (welcome.last_id, welcome.revisions, welcome.image) == (3, {"a": done.revision}, "image")
        assert np.unpackbits(np.frombuffer(welcome.present_bricks, np.uint8)).sum() == 3 * 2 * 2, (
            "all bricks of the volume"
        )
        assert np.array_equal(await again.mask(4, "a"), before)
        await again.leave()
        late = await resume(server, client.welcome)
        assert not late.welcome.resumed, "after bye"
        assert late.welcome.session_id != client.welcome.session_id
        assert (late.welcome.revisions, late.welcome.image, late.welcome.present_bricks) == ({}, None, b"")
        await late.send(wire.Bye())

    run(work())


@pytest.mark.slow
def test_missed_messages_are_replayed(server: str) -> None:
    """A prompt continues after its connection breaks. If it is sent again, all of its messages are replayed."""

    async def work() -> None:
        client = await PlainClient.open(server)
        await client.set_image(phantom(shape=WIDE_SHAPE))
        drawn = masks.pack(masks.to_delta(wide_lasso()), "blosc2")
        lasso = wire.AddLasso(id=2, segment="a", mask=drawn)
        await client.send(lasso)
        await client.receive_until(wire.MaskDelta)
        client.websocket.transport.abort()
        again = await resume(server, client.welcome)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(again.receive(), 0.5)  # nothing is replayed without a request
        await again.send(lasso)
        before, done = await again.receive_answer(2)
        assert isinstance(done, wire.Done)
        mask, revision = np.zeros(WIDE_SHAPE, bool), 0
        for delta in [m for m in before if isinstance(m, wire.MaskDelta)]:
            assert delta.base_revision == revision
            masks.apply(masks.unpack(delta.change, WIDE_SHAPE), mask)
            revision = delta.revision
        assert revision == done.revision
        assert np.array_equal(mask, await again.mask(3, "a", WIDE_SHAPE))
        await again.send(lasso)  # on the same connection, only the answer is replayed
        assert await again.receive() == done
        await again.send(wire.Bye())

    run(work())


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["secret", "no secret", "name", "encoding"])
def test_a_session_is_resumed_only_with_its_secret(server: str, wrong: str) -> None:
    async def work() -> None:
        client = await PlainClient.open(server)
        await client.set_image(phantom())
        fields: dict[str, Any] = {
            "secret": {"session_secret": client.welcome.session_secret[:-1] + "?"},
            "no secret": {"session_secret": None},
            "name": {"session_id": client.welcome.session_id[:-1] + "?"},
            "encoding": {"encodings": ["raw"]},
        }[wrong]
        other = await resume(server, client.welcome, **fields)
        assert not other.welcome.resumed
        assert other.welcome.session_id != client.welcome.session_id
        assert other.welcome.session_secret != client.welcome.session_secret
        await client.send(wire.AddPoint(id=2, segment="a", point=(30, 30, 28)))  # the session is not affected
        _, done = await client.receive_answer(2)
        assert isinstance(done, wire.Done)
        await client.send(wire.Bye())
        await other.send(wire.Bye())

    run(work())


def test_a_new_connection_replaces_the_old_one(server: str) -> None:
    async def work() -> None:
        first = await PlainClient.open(server)
        await first.set_image(phantom())
        waiting = [asyncio.ensure_future(resume(server, first.welcome)) for _ in range(3)]
        opened = await asyncio.gather(*waiting, return_exceptions=True)
        # Of concurrent connections, the last accepted one stays. The others are closed.
        alive = [c for c in opened if isinstance(c, PlainClient)]
        assert alive
        await first.websocket.wait_closed()
        last = None
        for client in alive:
            try:
                await client.send(wire.GetMask(id=9, segment="a"))
                answer = await asyncio.wait_for(client.receive(), 5)
                assert (answer.code, answer.id) == ("unknown_segment", 9)
                assert last is None, "two connections of one session"
                last = client
            except (ConnectionClosed, TimeoutError):
                continue
        assert last is not None
        await last.send(wire.Bye())

    run(work())


# ---- eviction and expiry ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[ServerProcess]:
    """A server with two sessions and memory for few images."""
    with server_process("--max-sessions", "2", "--memory", "0.05", "--log-level", "critical") as server:
        wait_until(lambda: health(server.address)["status"] == "ready")
        yield server


@pytest.mark.slow
def test_a_disconnected_session_is_evicted_for_a_new_one(small: ServerProcess) -> None:
    async def work() -> None:
        first, second = await PlainClient.open(small.address), await PlainClient.open(small.address)
        await first.close()
        await asyncio.to_thread(wait_until, lambda: sessions(small.address, "waiting") == 1)
        assert health(small.address)["sessions"] == 2, "it is kept for a while"
        third = await PlainClient.open(small.address)
        again = PlainClient(await connect(small.address, proxy=None))
        await again.send(hello(session_id=first.welcome.session_id, session_secret=first.welcome.session_secret))
        refused = await again.receive()
        assert (refused.code, refused.id) == ("at_capacity", None)
        for client in (second, third):
            await client.leave()

    run(work())
    wait_until(lambda: health(small.address)["sessions"] == 0)


@pytest.mark.slow
def test_an_image_larger_than_the_memory_is_refused(small: ServerProcess) -> None:
    async def work() -> None:
        client = await PlainClient.open(small.address)
        await client.set_image(phantom())
        await client.send(wire.SetImage(id=2, image="x", shape=(600, 600, 600), dtype="int16", mean=0.0, std=1.0))
        _, refused = await client.receive_answer(2)
        assert refused.code == "too_large"
        assert "50.0 MB for images" in refused.message
        assert re.search(r"crop of at most [\d,]+ voxels", refused.message)
        await client.set_image(phantom(), request=3)
        await client.send(wire.AddPoint(id=4, segment="a", point=(30, 30, 28)))
        _, done = await client.receive_answer(4)
        assert isinstance(done, wire.Done)
        await client.leave()

    run(work())


@pytest.mark.slow
def test_the_image_of_a_disconnected_session_is_evicted(small: ServerProcess) -> None:
    """A session that was used a moment ago is not evicted, so the image of the new one does not fit."""
    shape = (120, 120, 120)  # two of these exceed the server's memory

    async def work() -> None:
        first = await PlainClient.open(small.address)
        await first.set_image(phantom(shape=shape))
        second = await PlainClient.open(small.address)
        await second.send(wire.SetImage(id=1, image="x", shape=shape, dtype="int16", mean=0.0, std=1.0))
        _, refused = await second.receive_answer(1)
        assert refused.code == "out_of_memory"
        assert "in use by active sessions" in refused.message
        await first.leave()
        await asyncio.to_thread(wait_until, lambda: health(small.address)["sessions"] == 1)
        await second.set_image(phantom(shape=shape), request=2)
        await second.send(wire.AddPoint(id=3, segment="a", point=(60, 60, 60)))
        _, done = await second.receive_answer(3)
        assert isinstance(done, wire.Done)
        await second.leave()

    run(work())


@pytest.mark.slow
def test_sessions_are_kept_for_the_linger_time() -> None:
    with server_process("--linger", "1.5", "--log-level", "critical") as server:

        async def work() -> None:
            client = await PlainClient.open(server.address)
            await client.close()
            again = await resume(server.address, client.welcome)
            assert again.welcome.resumed
            await asyncio.sleep(2)  # connected, so it does not expire
            assert health(server.address)["sessions"] == 1
            await again.close()
            await asyncio.to_thread(wait_until, lambda: health(server.address)["sessions"] == 0, 10)
            late = await resume(server.address, client.welcome)
            assert not late.welcome.resumed
            await late.close()

        run(work())


# ---- clients that misbehave -------------------------------------------------------------------------------


def test_the_hello_message_is_limited_in_size(server: str) -> None:
    async def work() -> None:
        stranger = await connect(server, compression=None, proxy=None)
        await stranger.send(protocol.encode(hello()) + bytes(70_000))
        with pytest.raises(ConnectionClosed) as closed:
            await stranger.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009

    run(work())


# ---- several workers --------------------------------------------------------------------------------------


@linux
@pytest.mark.slow
def test_compile_has_no_effect_without_a_gpu() -> None:
    with server_process("--device", "cpu", "--compile", "--log-level", "critical") as server:

        async def work() -> int:
            client = await PlainClient.open(server.address)
            await client.set_image(phantom())
            await client.send(wire.AddPoint(id=2, segment="a", point=(30, 30, 28)))
            _, answer = await client.receive_answer(2)
            assert isinstance(answer, wire.Done)
            return answer.voxels

        assert run(work()) > 0


@pytest.mark.slow
def test_each_device_has_a_worker_and_sessions_go_to_the_least_loaded() -> None:
    with server_process("--device", "cpu,cpu", "--log-level", "critical") as server:
        wait_until(lambda: len(_workers(server)) == 2 and 'state="ready"} 2.0' in metrics(server.address))

        async def work() -> None:
            clients = [await PlainClient.open(server.address) for _ in range(4)]
            for client in clients:
                await client.set_image(phantom())
                await client.send(wire.AddPoint(id=2, segment="a", point=(30, 30, 28)))
            snapshots = []
            for client in clients:
                await client.receive_answer(2)
                snapshots.append(await client.mask(3, "a"))
            assert all(np.array_equal(snapshots[0], mask) for mask in snapshots)
            victim = _workers(server)[0]
            os.kill(victim, signal.SIGKILL)
            ends = await asyncio.gather(*(_how_it_ends(client) for client in clients))
            # Two were on it. The others are not affected.
            assert sorted(ends) == ["goes on", "goes on", "worker_lost", "worker_lost"]
            opened = [await PlainClient.open(server.address) for _ in range(2)]  # immediately, on the other one
            assert not any(client.welcome.resumed for client in opened)

        run(work())
        wait_until(lambda: len(_workers(server)) == 2)
        assert 'worker_failures_total{launcher="cpu"} 1.0' in metrics(server.address)


async def _how_it_ends(client: PlainClient) -> str:
    try:
        message = await asyncio.wait_for(client.receive_until(wire.ErrorMessage), 5)
    except TimeoutError:
        assert (await client.mask(5, "a")).any()
        return "goes on"
    return str(message.code)


def _workers(server: ServerProcess) -> list[int]:
    return sorted(p.pid for p in psutil.Process(server.process.pid).children())


# ---- access -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    from nninteractive_ws.server.access import add_user

    path = tmp_path_factory.mktemp("access") / "tokens"
    return path, {name: add_user(path, name) for name in ("anna", "ben")}


@pytest.fixture(scope="module")
def guarded(tokens: tuple[Path, dict[str, str]]) -> Iterator[ServerProcess]:
    with server_process("--token-file", str(tokens[0]), "--max-sessions-per-user", "2") as server:
        wait_until(lambda: health(server.address)["status"] == "ready")
        yield server


@pytest.mark.parametrize("token", [None, "", "nws_wrong", "{anna}x", "{anna-1}"])
def test_a_missing_or_wrong_token_is_refused(guarded: ServerProcess, tokens: Any, token: str | None) -> None:
    anna = tokens[1]["anna"]
    given = None if token is None else token.replace("{anna}", anna).replace("{anna-1}", anna[:-1])
    with pytest.raises(InvalidStatus) as refused:
        run(PlainClient.open(guarded.address, given))
    assert refused.value.response.status_code == 401
    problem = b"This server needs a token." if given is None else b"The server refused this token."
    assert (refused.value.response.body or b"").startswith(problem)
    with pytest.raises(urllib.error.HTTPError) as closed:
        metrics(guarded.address, given)
    with contextlib.closing(closed.value):
        assert closed.value.code == 401
    assert health(guarded.address)["status"] == "ready"


def test_a_session_is_resumed_only_by_its_user(guarded: ServerProcess, tokens: Any) -> None:
    async def work() -> None:
        anna = await PlainClient.open(guarded.address, tokens[1]["anna"])
        await anna.set_image(phantom())
        stolen = {"session_id": anna.welcome.session_id, "session_secret": anna.welcome.session_secret}
        ben = await PlainClient.open(guarded.address, tokens[1]["ben"], **stolen)
        assert not ben.welcome.resumed
        assert ben.welcome.image is None
        again = await PlainClient.open(guarded.address, tokens[1]["anna"], **stolen)
        assert again.welcome.resumed
        for client in (ben, again):
            await client.leave()

    run(work())
    assert sessions(guarded.address, "connected", tokens[1]["ben"]) == 0


def test_the_sessions_of_a_user_are_limited(guarded: ServerProcess, tokens: Any) -> None:
    async def work() -> None:
        two = [await PlainClient.open(guarded.address, tokens[1]["anna"]) for _ in range(2)]
        third = PlainClient(
            await connect(
                guarded.address, additional_headers={"Authorization": f"Bearer {tokens[1]['anna']}"}, proxy=None
            )
        )
        await third.send(hello())
        refused = await third.receive()
        assert refused.code == "at_capacity"
        assert "that a user may have" in refused.message
        ben = await PlainClient.open(guarded.address, tokens[1]["ben"])
        for client in (*two, ben):
            await client.leave()

    run(work())


def test_a_removed_token_is_refused(guarded: ServerProcess, tokens: Any) -> None:
    from nninteractive_ws.server.access import add_user, remove_user

    token = add_user(tokens[0], "carl")
    run(_come_and_go(guarded.address, token))
    remove_user(tokens[0], "carl")
    with pytest.raises(InvalidStatus):
        run(PlainClient.open(guarded.address, token))


async def _come_and_go(address: str, token: str) -> None:
    client = await PlainClient.open(address, token)
    await client.leave()


@pytest.mark.slow
@linux
def test_secrets_are_neither_logged_nor_listed(tokens: Any, tmp_path: Path) -> None:
    """Neither in the log, nor in an error, nor in a process list."""
    secrets = list(tokens[1].values())

    async def work(address: str) -> None:
        client = await PlainClient.open(address, tokens[1]["anna"])
        secrets.append(client.welcome.session_secret)
        await client.set_image(phantom())
        await client.websocket.send(protocol.encode(hello(session_secret=client.welcome.session_secret)))
        client.websocket.transport.abort()
        with pytest.raises(InvalidStatus):
            await PlainClient.open(address, tokens[1]["ben"] + "x")

    with (
        (tmp_path / "log").open("w") as log,
        server_process("--token-file", str(tokens[0]), "--log-level", "debug", "--device", "cpu", stderr=log) as server,
    ):
        run(work(server.address))
        lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert any(str(tokens[0]) in line for line in lines)
    logged = (tmp_path / "log").read_text()
    assert "refused: wrong token" in logged
    for secret in secrets:
        assert secret not in logged
        assert not any(secret in line for line in lines)


def test_listening_beyond_loopback_requires_tokens() -> None:
    import subprocess

    command = [sys.executable, "-m", "nninteractive_ws", "serve", "--host", "0.0.0.0", "--port", "0", "--model", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "without tokens can be used by everybody" in " ".join(done.stderr.split())
    assert "listening" not in done.stdout


# ---- a stop -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@linux
@pytest.mark.parametrize("reads", [True, False])
def test_a_signal_ends_the_server_despite_busy_clients(reads: bool) -> None:
    with server_process("--log-level", "critical") as server:

        async def work() -> tuple[list[Any], float]:
            client = await PlainClient.open(server.address)
            await client.set_image(phantom(shape=WIDE_SHAPE))
            await client.send(wire.AddLasso(id=2, segment="a", mask=masks.pack(masks.to_delta(wide_lasso()), "blosc2")))
            await client.receive_until(wire.MaskDelta)
            started = time.monotonic()
            server.process.terminate()
            output: list[Any] = []
            if reads:
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        output.append(await client.receive())
            else:
                client.websocket.transport.pause_reading()
            await asyncio.to_thread(server.process.wait, 20)
            took = time.monotonic() - started
            client.websocket.transport.abort()
            return output, took

        output, took = run(work())
        print(f"ended in {took:.1f} s")
        assert server.process.returncode == 0
        assert took < 10
        if reads:
            assert [m.code for m in output if isinstance(m, wire.Notice)] == ["shutting_down"]
            assert output[-1].code == "shutting_down"
