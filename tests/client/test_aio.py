"""The asyncio client against a real server."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
import gc
import logging
import time
from typing import Any, TypeVar

from helpers.core_link import WELCOME
from helpers.end_to_end import SHAPE, WIDE_SHAPE, phantom, stroke, wide_lasso
from helpers.relay import relay
import msgspec
import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

import nninteractive_ws as nni
from nninteractive_ws import errors, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.reconnect import RECONNECT_FOR_S, is_final

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], timeout: float = 100) -> T:
    async def timed() -> T:
        return await asyncio.wait_for(work, timeout)

    return asyncio.run(timed())


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[nni.AsyncSession]:
    """A session with the small image."""
    async with await nni.aconnect(address) as session:
        await session.set_image(phantom())
        yield session


# ---- the public API ---------------------------------------------------------------------------------------


def test_every_prompt(server: str) -> None:
    async def work() -> None:
        async with opened(server) as session:
            assert session.segments == []
            a = session.segment("a")
            mask = a.mask
            assert mask.dtype == bool
            assert mask.shape == SHAPE
            drawn = stroke()
            box = nni.Box((24, 30, 26), (44, 36, 32))
            disc = np.zeros(SHAPE, np.uint8)
            disc[28:40, 28:38, 28] = 1
            results = [
                await a.add_point((30, 30, 28)),
                await a.add_point(np.array([50.2, 20.0, 20.4]), positive=False),
                await a.add_bbox(((20, 40), (20, 40), (28, 29))),
                await a.add_bbox(nni.Box((50, 50, 20), (60, 60, 21)), positive=False),
                await a.add_scribble(drawn),
                await a.add_scribble(drawn[box.slices], box=box, positive=False),
                await a.add_lasso(disc),
                await a.add_lasso(disc[20:50, 20:50, 28:29], box=((20, 50), (20, 50), (28, 29)), positive=False),
                await a.set_mask(disc, run=True),
            ]
            assert [r.request for r in results] == sorted({r.request for r in results})
            for result in results:
                assert result.segment == "a"
                assert result.timings.passes >= 1
                assert 0 < result.timings.network <= result.timings.total
            assert a.mask is mask, "one array, kept up to date"
            assert results[-1].voxels == a.voxels == int(mask.sum())
            assert (a.can_undo, a.can_redo) == (len(results), 0)
            assert session.segments == ["a"]

    run(work())


def test_masks_in_and_out(server: str) -> None:
    async def work() -> None:
        async with opened(server) as session:
            a = session.segment("a")
            await a.set_mask(stroke().astype(float))
            assert np.array_equal(a.mask, stroke())
            with pytest.raises(ValueError, match="read-only"):
                a.mask[:] = False
            for command in (a.set_mask, a.add_scribble, a.add_lasso):
                with pytest.raises(errors.BadMask, match="the values nan"):
                    await command(np.full(SHAPE, np.nan))
            with pytest.raises(errors.BadImage, match="is a path or a text"):
                await session.set_image("ct.nii.gz")
            assert np.array_equal(a.mask, stroke())

    run(work())


def test_history(server: str) -> None:
    async def work() -> None:
        async with opened(server) as session:
            a = session.segment("a")
            mask = a.mask
            given = np.zeros(SHAPE, bool)
            given[20:30, 20:30, 20:30] = True
            states = []
            first = await a.set_mask(given)
            assert (first.changed, first.voxels) == (nni.Box((20, 20, 20), (30, 30, 30)), 1000)
            assert np.array_equal(mask, given)
            for step in (a.add_point((25, 25, 25)), a.set_mask(given[:25], box=((0, 25), (0, 64), (0, 56))), a.reset()):
                states.append(mask.copy())
                await step
            assert a.voxels == 0
            for state in reversed(states):
                await a.undo()
                assert np.array_equal(mask, state)
                assert a.voxels == int(state.sum())
            assert (a.can_undo, a.can_redo) == (1, 3)
            for state in [*states[1:], np.zeros(SHAPE, bool)]:
                await a.redo()
                assert np.array_equal(mask, state)
            with pytest.raises(errors.NothingToUndo):
                await a.redo()
            await a.remove()
            assert session.segments == []
            with pytest.raises(errors.UnknownSegment):
                await a.undo()
            assert not a.mask.any()
            assert a.mask is not mask

    run(work())


def test_images_are_set_in_the_order_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    make = ImageSource.of

    def slowly(image: Any) -> ImageSource:
        time.sleep(0.2 if len(image) == 20 else 0)
        return make(image)

    monkeypatch.setattr(ImageSource, "of", slowly)

    async def work() -> None:
        core = Core()
        session = nni.AsyncSession(lambda: asyncio.Future(), core)  # without a connection
        first, second = (np.arange(n**3, dtype=np.int16).reshape(n, n, n) for n in (20, 10))
        ready = await asyncio.to_thread(make, first + 1)
        calls = [asyncio.ensure_future(session.set_image(image)) for image in (first, second, ready)]
        while len(core.pending_requests) < 3:
            await asyncio.sleep(0.01)
        shapes = [request.request.shape for request in core._pending.values()]
        assert shapes == [(20, 20, 20), (10, 10, 10), (20, 20, 20)]
        assert core.image is ready
        await session.close()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [errors.ConnectionFailed] * 3

    run(work())


@pytest.mark.slow
def test_pending_prompts(server: str) -> None:
    async def work() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        async with opened(server) as session:
            a, b = session.segment("a"), session.segment("b")
            waiting = await a.add_point((30, 30, 28), run=False)
            assert (waiting.timings.passes, waiting.changed, waiting.voxels) == (0, None, 0)
            await a.add_scribble(stroke(), run=False)
            ran = await a.run()
            assert ran.timings.passes >= 1
            idle = await a.run()
            assert (idle.timings.passes, idle.changed) == (0, None)
            assert a.can_undo == 3
            await b.add_point((30, 30, 28), run=False)
            await b.add_scribble(stroke())
            return a.mask.copy(), b.mask.copy()

    first, second = run(work())
    assert np.array_equal(first, second)


@pytest.mark.slow
def test_segments_are_independent(server: str) -> None:
    async def work() -> None:
        async with opened(server) as session:
            a, b = session.segment("a"), session.segment("b")
            await a.add_point((30, 30, 28))
            kept = a.mask.copy()
            await asyncio.gather(b.add_point((40, 30, 28)), b.add_point((41, 30, 28)))
            assert np.array_equal(a.mask, kept)
            assert (a.can_undo, b.can_undo) == (1, 2)
            await session.set_image(phantom(6))
            assert session.segments == []
            assert not a.mask.any()

    run(work())


# ---- events and callbacks ---------------------------------------------------------------------------------


def test_every_event_is_delivered(server: str) -> None:
    async def work() -> list[Any]:
        seen: list[Any] = []
        names = ("connection", "image_progress", "progress", "mask_delta", "done", "error", "notice")
        session = await nni.aconnect(server, on=dict.fromkeys(names, seen.append))
        await session.set_image(phantom())
        a = session.segment("a")
        given = np.zeros(SHAPE, bool)
        given[:2, :3, :4] = True
        await a.set_mask(given)
        done = await a.add_point((30, 30, 28))
        with pytest.raises(errors.NothingToUndo):
            await a.redo()
        await session.close()
        progress = [e for e in seen if isinstance(e, events.Progress)]
        assert {(e.request, e.segment) for e in progress} == {(done.request, "a")}
        assert events.Done(done) in seen
        return seen

    seen = run(work())
    kinds = Counter(type(e) for e in seen)
    assert set(kinds) >= {events.Connection, events.ImageProgress, events.Progress, events.MaskDelta, events.Done}
    assert isinstance(seen[0], events.Connection | events.Notice)
    opened, closed = (e for e in seen if isinstance(e, events.Connection))
    assert (opened.state, closed.state, closed.reason) == ("open", "closed", "The session was closed.")
    assert opened.welcome is not None
    failed = next(e for e in seen if isinstance(e, events.Failed))
    assert isinstance(failed.error, errors.NothingToUndo)
    first = next(e for e in seen if isinstance(e, events.MaskDelta))
    assert (first.segment, first.box, first.voxels) == ("a", nni.Box((0, 0, 0), (2, 3, 4)), 24)
    assert first.final
    assert seen[-1] is closed


@pytest.mark.slow
def test_an_exception_in_a_callback_is_contained(server: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Any) -> None:
        raise RuntimeError("in the callback")

    async def work() -> None:
        later: list[Any] = []
        async with opened(server) as session:
            for name in ("progress", "done", "mask_delta"):
                session.on(name, fail)  # type: ignore[arg-type]
            session.on("done", later.append)
            await session.segment("a").add_point((30, 30, 28))
            await session.segment("a").undo()
            assert len(later) == 2

    with caplog.at_level(logging.ERROR):
        run(work())
    assert "a callback for the event done failed" in caplog.messages


def test_an_unknown_event_is_refused(server: str) -> None:
    async def work() -> None:
        with pytest.raises(ValueError, match=r'No event is called "masks"\. The names are connection,'):
            await nni.aconnect(server, on={"masks": print})  # type: ignore[dict-item]

    run(work())
    gc.collect()  # asyncio warns about a task that is left


@pytest.mark.slow
def test_options(server: str) -> None:
    async def work() -> None:
        async with await nni.aconnect(server) as session:
            await session.set_options(previews=False)
            await session.set_image(phantom(shape=WIDE_SHAPE))
            deltas: list[events.MaskDelta] = []
            session.on("mask_delta", deltas.append)
            await session.segment("a").add_lasso(wide_lasso())
            assert all(d.final for d in deltas)

    run(work())


# ---- cancelling -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cancelling_the_task_cancels_the_request(server: str) -> None:
    async def work() -> None:
        async with await nni.aconnect(server) as session:
            await session.set_image(phantom(shape=WIDE_SHAPE))
            a = session.segment("a")
            await a.add_point((60, 30, 30))
            before, steps = a.mask.copy(), a.can_undo
            failed: list[events.Failed] = []
            working = asyncio.Event()
            session.on("progress", lambda _: working.set())
            session.on("error", failed.append)
            task = asyncio.ensure_future(a.add_lasso(wide_lasso()))
            await working.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            undone = await a.undo()  # is answered after the cancelled request
            assert [type(e.error) for e in failed] == [errors.Cancelled]
            assert a.can_undo == steps - 1
            await a.redo()
            assert np.array_equal(a.mask, before)
            assert undone.timings.passes == 0

    run(work())


@pytest.mark.slow
def test_cancelling_pending_requests(server: str) -> None:
    async def work() -> None:
        async with opened(server) as session:
            a = session.segment("a")
            waiting = [asyncio.ensure_future(a.add_point((30 + n, 30, 28))) for n in range(4)]
            await asyncio.sleep(0)
            session.cancel()
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(found[-1], errors.Cancelled)
            done = [f for f in found if not isinstance(f, BaseException)]
            assert a.can_undo == len(done)
            session.cancel()  # has no effect, because nothing runs
            await a.add_point((30, 30, 28))

    run(work())


# ---- connections that fail --------------------------------------------------------------------------------


def test_no_server() -> None:
    with pytest.raises(errors.ConnectionFailed, match="Nothing listens"):
        run(nni.aconnect("127.0.0.1:9"))
    with pytest.raises(errors.BadAddress):
        run(nni.aconnect("no address"))


def output(message: wire.Message) -> bytes:
    return protocol.encode(message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ("hang up", errors.ConnectionFailed, "The server closed the connection"),
        ("abort", errors.ConnectionFailed, "was lost"),
        ("text", errors.BadMessage, "must be a msgpack map"),
        (b"\xc1", errors.BadMessage, "not msgpack"),
        (msgspec.msgpack.encode({"type": "done"}), errors.BadMessage, '"done" is invalid'),
        (output(wire.Done(id=1, changed=((1, 1), (0, 1), (0, 1)))), errors.BadMessage, "inconsistent"),
        (output(wire.ErrorMessage(code="shutting_down", message="so long")), errors.ShuttingDown, "so long"),
        (output(wire.ErrorMessage(code="bad_message", message="what?")), errors.BadMessage, "what"),
        (output(wire.ErrorMessage(code="new", message="hm", id=1)), errors.InternalError, "hm"),
    ],
    ids=["hang up", "abort", "text", "garbage", "wrong", "not fitting", "stopping", "bad message", "unknown code"],
)
def test_a_failing_server(answer: str | bytes, kind: type[errors.Error], message: str) -> None:
    async def behave(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(output(WELCOME))
        await connection.recv()
        if answer == "abort":
            connection.transport.abort()
        elif answer != "hang up":
            await connection.send(answer)
            await connection.wait_closed()

    async def work() -> None:
        async with serve(behave, "127.0.0.1", 0) as fake:
            port = fake.sockets[0].getsockname()[1]
            closed: list[events.Connection] = []
            failed: list[events.Failed] = []
            session = await nni.aconnect(
                f"127.0.0.1:{port}",
                # Without this, temporary errors would be retried.
                reconnect_for=RECONNECT_FOR_S if is_final(kind("")) else 0,
                on={"connection": closed.append, "error": failed.append},
            )
            with pytest.raises(kind, match=message):
                await asyncio.wait_for(session.set_image(phantom()), 20)
            if kind is not errors.InternalError:
                assert [e.state for e in closed] == ["open", "closed"]
                assert [(e.request, type(e.error)) for e in failed] == [(None, kind)]
                with pytest.raises(kind):
                    await session.set_options(previews=True)
            await session.close()

    run(work())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("at_capacity", errors.AtCapacity),
        ("unsupported_version", errors.UnsupportedVersion),
        ("x", errors.InternalError),
    ],
)
def test_a_refusing_server(code: str, kind: type[errors.Error]) -> None:
    async def behave(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(output(wire.ErrorMessage(code=code, message="not you")))

    async def work() -> None:
        async with serve(behave, "127.0.0.1", 0) as fake:
            with pytest.raises(kind, match="not you"):
                await nni.aconnect(f"127.0.0.1:{fake.sockets[0].getsockname()[1]}")

    run(work())


def test_closing(server: str) -> None:
    async def work() -> None:
        session = await nni.aconnect(server)
        await session.set_image(phantom(shape=WIDE_SHAPE))
        working = asyncio.Event()
        session.on("progress", lambda _: working.set())
        waiting = asyncio.ensure_future(session.segment("a").add_lasso(wide_lasso()))
        await working.wait()
        await asyncio.gather(session.close(), session.close())
        with pytest.raises(errors.ConnectionFailed, match="The session was closed"):
            await waiting
        with pytest.raises(errors.ConnectionFailed, match="The session was closed"):
            await session.segment("a").undo()
        session.cancel()
        await session.close()

    run(work())


@pytest.mark.slow
def test_closing_does_not_wait_for_a_server_that_does_not_read(server: str) -> None:
    async def work(address: str) -> None:
        loop = asyncio.get_running_loop()
        session = await nni.aconnect(address)
        stuck.bytes_per_second = 1
        noise = np.random.default_rng(0).integers(-1000, 1000, (256, 256, 256), np.int16)
        waiting = asyncio.ensure_future(session.set_image(noise))
        await asyncio.sleep(0.5)
        started = loop.time()
        await session.close()
        print(f"closed after {loop.time() - started:.1f} s")
        with pytest.raises(errors.ConnectionFailed):
            await waiting

    with relay(server) as stuck:
        run(work(stuck.address), timeout=30)
