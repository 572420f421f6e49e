"""Eviction with the real client, which is notified and restores its session with the next request."""

import asyncio
from collections.abc import Iterator
import contextlib
from functools import partial
import itertools
import subprocess
import sys
from typing import Any

from helpers.end_to_end import LISTENING, PlainClient, health, phantom, run, sessions, wait_until
from helpers.engine import brick_message
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

import nninteractive_ws as nni
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import dial

# Without an option of the command line, because users need not change it.
IDLE_S = 2.0
SERVE = f"""
from nninteractive_ws.engine.model_registry import DEMO, MODEL_FOLDER
from nninteractive_ws.server.launchers import LocalLauncher
from nninteractive_ws.server.pool import PoolSettings
from nninteractive_ws.server.run import run_gateway
from nninteractive_ws.server.settings import Settings
worker = ("--model-name", DEMO, "--model-folder", str(MODEL_FOLDER), "--memory", "50000000")
pool = PoolSettings([LocalLauncher("auto")], 1)
run_gateway(Settings(worker, DEMO, pool, port=0, max_sessions=3, idle={IDLE_S}))
"""
SHAPE = (120, 120, 120)  # the memory holds one such image
SMALL_SHAPE = (64, 64, 64)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix(LISTENING).strip()
        try:
            wait_until(lambda: health(address)["status"] == "ready")
            yield address
        finally:
            process.terminate()
            process.wait(20)


class Watched:
    """A session, and the events of its connection."""

    def __init__(self) -> None:
        self.received: list[Any] = []

    async def open(self, address: str) -> AsyncSession:
        return await nni.aconnect(address, on={"connection": self.received.append, "notice": self.received.append})

    @property
    def states(self) -> list[str]:
        return [e.code if isinstance(e, events.Notice) else e.state for e in self.received]


@pytest.mark.slow
def test_an_idle_session_is_evicted_for_an_image_and_restored_later(server: str) -> None:
    async def work() -> None:
        first, second = Watched(), Watched()
        async with await first.open(server) as idle, await second.open(server) as newcomer:
            await idle.set_image(phantom(5, SHAPE))
            segment = idle.segment("a")
            await segment.add_point((60, 60, 60))
            await segment.add_point((70, 60, 60), positive=False)
            before = segment.mask.copy()
            await asyncio.sleep(IDLE_S + 0.1)
            await newcomer.set_image(phantom(6, SHAPE))
            await newcomer.segment("a").add_point((60, 60, 60))
            await asyncio.to_thread(wait_until, lambda: first.states[-1] == "lost")
            assert first.states == ["open", "evicted", "lost"]
            assert first.received[-1].retry_in is None
            await asyncio.sleep(0.5)
            assert first.states[-1] == "lost", "it came back without being needed"
            assert np.array_equal(segment.mask, before)
            await asyncio.sleep(IDLE_S - 0.4)
            await segment.undo()  # evicts the other one
            assert first.states == ["open", "evicted", "lost", "open"]
            await segment.redo()
            assert np.array_equal(segment.mask, before)
            assert second.states[:2] == ["open", "evicted"]

    run(work())


@pytest.mark.slow
def test_a_busy_session_is_not_evicted(server: str) -> None:
    async def work() -> None:
        first = Watched()
        async with await first.open(server) as busy, await Watched().open(server) as newcomer:
            await busy.set_image(phantom(5, SHAPE))
            drawn = np.zeros(SHAPE, bool)
            drawn[4:-4, 60, 4:-4] = True
            running = asyncio.ensure_future(busy.segment("a").add_lasso(drawn))
            await asyncio.sleep(1.5)
            if not running.done():
                with pytest.raises(nni.Error) as refused:
                    await newcomer.set_image(phantom(6, SHAPE))
                assert refused.value.code == "out_of_memory"
            assert (await running).voxels == busy.segment("a").mask.sum()
            assert first.states == ["open"]

    run(work())


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.1])
def test_closing_during_a_prompt_frees_the_session(server: str, pause_s: float) -> None:
    """It closes during an upload and a prompt. The next session can be opened immediately."""

    async def work() -> None:
        image = phantom(5, SHAPE)
        for _ in range(4):
            session = await Watched().open(server)
            await session.set_image(image)
            prompt = asyncio.ensure_future(session.segment("a").add_point((60, 60, 60)))
            await asyncio.sleep(pause_s)
            await session.close()
            with contextlib.suppress(nni.Error):
                await prompt
        await asyncio.to_thread(wait_until, lambda: health(server)["sessions"] == 0)

    run(work())


@pytest.mark.slow
def test_an_idle_session_is_evicted_for_a_session(server: str) -> None:
    async def work() -> None:
        watched = [Watched() for _ in range(4)]
        opened = [await w.open(server) for w in watched[:3]]
        await opened[0].set_image(phantom(5))
        await opened[0].segment("a").add_point((30, 30, 30))
        before = opened[0].segment("a").mask.copy()
        for session in (opened[1], opened[2], opened[0]):  # all were used a moment ago
            await session.set_options(autozoom=True)
        with pytest.raises(nni.Error) as refused:
            await watched[3].open(server)
        assert refused.value.code == "at_capacity"
        await asyncio.sleep(IDLE_S + 0.1)
        opened.append(await watched[3].open(server))
        evicted = [w for w in watched if "evicted" in w.states]
        assert evicted == [watched[1]], "not the one that was used longest ago"
        assert sessions(server, "connected") <= 3
        await asyncio.sleep(IDLE_S + 0.1)
        await opened[0].segment("a").add_point((34, 30, 30))
        await opened[0].segment("a").undo()
        assert np.array_equal(opened[0].segment("a").mask, before)
        for session in opened:
            await session.close()

    run(work())


async def talk(client: PlainClient, what: str) -> None:
    """Send messages without effect continuously."""
    for n in itertools.count(10):
        message: wire.Message = {
            "cancel": wire.Cancel(request=n),
            "undo": wire.Undo(id=n, segment="none"),
            "heartbeat": wire.SetOptions(id=n),
            "the same brick": brick_message(phantom(5), "image", [0]),
        }[what]
        await client.send(message)
        await client.websocket.send(b"\x81\xa4type\xa4what")
        await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("cancel", "undo", "the same brick"), ("heartbeat",) * 3], ids=" ".join)
def test_requests_without_effect_do_not_prevent_eviction(server: str, kinds: tuple[str, str, str]) -> None:
    async def work() -> None:
        clients, talking = [await PlainClient.open(server) for _ in range(3)], []
        for client, what in zip(clients, kinds, strict=True):
            await client.set_image(phantom(5))
            talking.append(asyncio.ensure_future(talk(client, what)))
        await asyncio.sleep(IDLE_S + 0.2)
        assert not any(task.done() for task in talking)
        async with await Watched().open(server) as session:
            await session.set_image(phantom(5))
            await session.segment("a").add_point((30, 30, 30))
        for task in talking:
            task.cancel()
        for done in await asyncio.gather(*talking, return_exceptions=True):
            assert isinstance(done, asyncio.CancelledError | ConnectionClosed)
        for client in clients:
            with contextlib.suppress(ConnectionClosed):  # one was evicted
                await client.send(wire.Bye())
                while True:
                    await client.receive()
        await asyncio.to_thread(wait_until, lambda: health(server)["sessions"] == 0)

    run(work())


@pytest.mark.slow
def test_a_prompt_without_its_bricks_does_not_prevent_eviction(server: str) -> None:
    """Two clients that disconnected during an upload, and one that is stuck."""

    async def work() -> None:
        clients = [await PlainClient.open(server) for _ in range(3)]
        for client in clients:
            await client.send(wire.SetImage(id=1, image="x", shape=SMALL_SHAPE, dtype="int16", mean=0.0, std=1.0))
            await client.receive_answer(1)
            await client.send(wire.AddPoint(id=2, segment="a", point=(5, 5, 5)))
            await client.receive_until(wire.Progress)
        for client in clients[:2]:
            client.websocket.transport.abort()
        await asyncio.to_thread(wait_until, lambda: sessions(server, "waiting") == 2)
        opened = [await Watched().open(server) for _ in range(2)]  # replace the disconnected ones
        with pytest.raises(nni.Error) as refused:
            await Watched().open(server)
        assert refused.value.code == "at_capacity", "bricks may still come"
        await asyncio.sleep(IDLE_S + 0.1)
        for session in opened:
            await session.set_options(autozoom=True)  # these are in use
        opened.append(await Watched().open(server))
        received = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                received.append(await clients[2].receive())
        assert [m.code for m in received if isinstance(m, wire.Notice)] == ["evicted"]
        assert not [m for m in received if isinstance(m, wire.ErrorMessage | wire.Done)], "it is done after a restore"
        await opened[2].set_image(phantom(5))
        await opened[2].segment("a").add_point((30, 30, 30))
        for session in opened:
            await session.close()

    run(work())


async def open_modestly(address: str) -> AsyncSession:
    """Open a session that may not evict others."""
    session = AsyncSession(partial(dial, parse_address(address)), Core(allow_eviction=False), reconnect_for=0)
    try:
        await session.wait_open()
    except BaseException:
        await session.close()
        raise
    return session


@pytest.mark.slow
def test_a_session_without_allow_eviction_evicts_no_other(server: str) -> None:
    async def work() -> None:
        watched = [Watched() for _ in range(3)]
        async with await watched[0].open(server) as idle, await watched[1].open(server):
            await idle.set_image(phantom(5, SHAPE))
            await asyncio.sleep(IDLE_S + 0.1)
            async with await open_modestly(server) as guest:
                memory = guest.server.memory
                assert memory is not None
                assert memory.images < 50_000_000 / 2
                assert 0 < memory.device < memory.device_total
                with pytest.raises(nni.Error) as refused:
                    await guest.set_image(phantom(6, SHAPE))
                assert refused.value.code == "out_of_memory"
                await guest.set_image(phantom(6, (20, 20, 20)))
            async with await watched[2].open(server):
                await asyncio.sleep(IDLE_S + 0.1)
                with pytest.raises(nni.Error) as refused:
                    await open_modestly(server)
                assert refused.value.code == "at_capacity"
            assert [w.states for w in watched] == [["open"], ["open"], ["open", "closed"]]

    run(work())
