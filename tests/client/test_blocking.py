"""The blocking client, against a real server."""

import asyncio
from collections.abc import Callable, Iterator
import contextlib
from contextlib import ExitStack
import gc
import logging
import signal
import socket
import sys
import threading
import time
from typing import Any
import weakref

from helpers.end_to_end import SHAPE, WIDE_SHAPE, health, phantom, stroke, wait_until, wide_lasso
from helpers.threads import run_in_thread
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

import nninteractive_ws as nni
from nninteractive_ws import errors, protocol
from nninteractive_ws.client import aio, blocking, events, reconnect
from nninteractive_ws.client import dial as dial_module
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import MonitoredConnection, dial
from nninteractive_ws.messages import Hello


@pytest.fixture(scope="module")
def session(server: str) -> Iterator[nni.Session]:
    """A session for the tests that leave it usable. Each sets its own image."""
    with nni.connect(server) as session:
        yield session


# ---- images -----------------------------------------------------------------------------------------------

Array = npt.NDArray[Any]

#: The same voxels, 0 to 200 in int16, with other types and memory layouts.
WAYS: dict[str, Callable[[Array], Array]] = {
    "uint8": lambda a: a.astype(np.uint8),
    "uint16": lambda a: a.astype(np.uint16),
    "int32": lambda a: a.astype(np.int32),
    "int64": lambda a: a.astype(np.int64),
    "float16": lambda a: a.astype(np.float16),
    "float32": lambda a: a.astype(np.float32),
    "float64": lambda a: a.astype(np.float64),
    "big-endian": lambda a: a.astype(">i2"),
    "big-endian float64": lambda a: a.astype(">f8"),
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
    "negative strides": lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "a part": lambda a: np.pad(a, 5)[5:-5, 5:-5, 5:-5],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view("<i2").reshape(a.shape),
    "nested lists": lambda a: a.tolist(),  # type: ignore[dict-item]
}


@pytest.fixture(scope="module")
def plain() -> Array:
    """Half a phantom in contiguous int16, so that each variant is quick."""
    return np.clip(phantom()[::2, ::2, ::2] // 4 + 100, 0, 200).astype(np.int16)


def mask_of(session: nni.Session, image: Array) -> Array:
    session.set_image(image)
    segment = session.segment("a")
    segment.add_point((15, 15, 14))
    return segment.mask.copy()


@pytest.mark.slow
def test_the_same_voxels_give_the_same_mask(session: nni.Session, plain: Array) -> None:
    expected = mask_of(session, plain)
    assert expected.shape == plain.shape
    for name, way in WAYS.items():
        assert np.array_equal(mask_of(session, way(plain)), expected), name


@pytest.mark.slow
def test_booleans(session: nni.Session, plain: Array) -> None:
    expected = mask_of(session, (plain > 100).astype(np.uint8))
    assert np.array_equal(mask_of(session, plain > 100), expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((4, 5)), "2 dimensions"),
        (np.zeros((4, 5, 6, 3)), "Take one channel"),
        (np.zeros((0, 5, 6)), "empty"),
        (np.zeros((4, 5, 6), complex), "real numbers are needed"),
        (np.full((4, 5, 6), "a"), "real numbers are needed"),
        (np.full((4, 5, 6), 7.0), "Every voxel of the image is 7"),
        (
            np.where(np.arange(120).reshape(4, 5, 6) == 45, np.nan, 1.0),
            "NaN or infinite voxels, the first at (1, 2, 3)",
        ),
        (np.where(np.arange(120).reshape(4, 5, 6) == 45, -np.inf, 1.0), "first at (1, 2, 3): -inf"),
        (np.arange(120).reshape(4, 5, 6) * 1e300, "too large for float32"),
        ([[[1, 2], [3]]], "not an array"),
    ],
    ids=["2-D", "4-D", "empty", "complex", "text", "constant", "nan", "inf", "too large", "ragged"],
)
def test_invalid_images_are_refused(session: nni.Session, image: Any, expected: str) -> None:
    session.set_image(phantom())
    with pytest.raises(errors.BadImage) as caught:
        session.set_image(image)
    assert expected in str(caught.value)
    assert session.segment("a").mask.shape == SHAPE, "the image from before is still there"


def test_a_prompt_before_any_image(server: str) -> None:
    with nni.connect(server) as fresh:
        for ask in (
            lambda: fresh.segment("a").add_point((1, 1, 1)),
            lambda: fresh.segment("a").mask,
            lambda: fresh.segment("a").undo(),
        ):
            with pytest.raises(errors.NoImage):
                ask()


# ---- the public API ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_api(session: nni.Session) -> None:
    session.set_image(phantom())
    assert session.server.model.name == "demo"
    a = session.segment("a")
    mask, drawn = a.mask, stroke()
    assert a.name == "a"
    results = [
        a.add_point((30, 30, 28)),
        a.add_bbox(((20, 40), (20, 40), (28, 29)), run=False),
        a.add_scribble(drawn, positive=False, run=False),
        a.add_lasso(drawn[:, :, 28:30], box=((0, 72), (0, 64), (28, 30)), run=False),
        a.run(),
        a.set_mask(drawn),
    ]
    assert [r.timings.passes > 0 for r in results] == [True, False, False, False, True, False]
    assert np.array_equal(a.mask, drawn)
    assert a.mask is mask
    assert a.voxels == int(drawn.sum())
    a.undo()
    assert (a.can_undo, a.can_redo) == (5, 1)
    a.redo()
    assert np.array_equal(a.mask, drawn)
    a.reset()
    assert (a.voxels, a.can_undo) == (0, 7)
    session.set_options(autozoom=True, previews=True)
    assert session.segments == ["a"]
    a.remove()
    assert session.segments == []
    with pytest.raises(errors.OutOfBounds):
        a.add_point((1000, 0, 0))
    with pytest.raises(errors.UnsupportedPrompt):
        a.add_scribble(np.zeros(SHAPE))


def test_the_mask_is_read_only(session: nni.Session) -> None:
    session.set_image(phantom())
    segment = session.segment("a")
    segment.set_mask(stroke())
    seen = []
    session.on("mask_delta", lambda event: seen.append(session.segment(event.segment).mask))
    segment.set_mask(~stroke())
    assert seen
    for mask in (segment.mask, *seen):
        with pytest.raises(ValueError, match="read-only"):
            mask[:] = False
    changed = segment.mask.copy()
    changed[:9] = False
    segment.set_mask(changed)
    assert np.array_equal(segment.mask, changed)


def test_an_invalid_mask_is_refused(session: nni.Session) -> None:
    session.set_image(phantom())
    segment = session.segment("a")
    segment.set_mask(stroke())
    for command in (segment.set_mask, segment.add_scribble, segment.add_lasso):
        with pytest.raises(errors.BadMask, match=r"For probabilities, pass mask > 0\.5"):
            command(np.full(SHAPE, 0.3))
    assert np.array_equal(segment.mask, stroke())


def test_an_image_of_simpleitk_has_the_axes_of_its_mask(session: nni.Session) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(phantom().transpose()))
    session.set_image(image)
    segment = session.segment("a")
    assert segment.mask.shape == image.GetSize()
    drawn = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    drawn[3, 4, 5] = 1
    assert segment.set_mask(drawn).changed == nni.Box((3, 4, 5), (4, 5, 6))


def test_an_empty_mask_can_be_set(session: nni.Session) -> None:
    session.set_image(phantom())
    segment = session.segment("a")
    assert segment.set_mask(np.zeros(SHAPE, bool)).voxels == 0  # of a new segment
    cube = np.zeros(SHAPE, bool)
    cube[3:9, 4:8, 5:7] = True
    assert segment.set_mask(cube).voxels == 48
    assert segment.set_mask(np.zeros(SHAPE, bool)).voxels == 0
    segment.undo()
    assert np.array_equal(segment.mask, cube)


def test_bricks_travel_while_the_caller_computes(session: nni.Session) -> None:
    everything = threading.Event()
    session.on("image_progress", lambda e: e.present == e.total and everything.set())
    session.set_image(phantom(shape=WIDE_SHAPE))
    assert everything.wait(60)


# ---- cancelling and threads -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("state", ["predicting", "refining"])
def test_cancel_from_another_thread(session: nni.Session, state: str) -> None:
    session.set_image(phantom(shape=WIDE_SHAPE))
    a = session.segment("a")
    given = np.zeros(WIDE_SHAPE, bool)
    given[40:60, 20:40, 20:40] = True
    a.set_mask(given)
    seen: list[events.Progress] = []
    now = threading.Event()

    def watch(event: events.Progress) -> None:
        seen.append(event)
        if event.state == state:
            now.set()

    def cancel() -> None:
        now.wait(60)
        session.cancel()

    session.on("progress", watch)
    thread = threading.Thread(target=cancel)
    thread.start()
    # A whole mask is refined, independent of the model.
    everything = np.ones(WIDE_SHAPE, bool)
    prompts = {"predicting": lambda: a.add_lasso(wide_lasso()), "refining": lambda: a.set_mask(everything, run=True)}
    with pytest.raises(errors.Cancelled):
        prompts[state]()
    thread.join()
    if state == "refining":
        assert seen[-1].state == "refining"
        assert seen[-1].done < seen[-1].total, "it was cancelled before its last pass"
    assert np.array_equal(a.mask, given)
    assert a.voxels == int(given.sum())
    assert a.can_undo == 1
    a.undo()
    assert a.voxels == 0


@pytest.mark.slow
def test_threads_share_a_session(session: nni.Session) -> None:
    session.set_image(phantom())
    results: list[nni.Result] = []

    def prompt(name: str) -> None:
        results.append(session.segment(name).add_point((30, 30, 28)))

    threads = [threading.Thread(target=prompt, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.segment for r in results} == set("abc")
    masks = [session.segment(name).mask for name in "abc"]
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])


@pytest.mark.slow
def test_callbacks_run_on_the_io_thread_and_cannot_block(server: str, caplog: pytest.LogCaptureFixture) -> None:
    names: list[str] = []
    with nni.connect(server) as fresh:
        fresh.on("done", lambda _: names.append(threading.current_thread().name))
        fresh.on("done", lambda _: fresh.set_options(previews=False))
        with caplog.at_level(logging.ERROR):
            fresh.set_image(phantom())
        assert names == ["nninteractive-ws I/O"]
        assert "a blocking call would wait for itself" in caplog.text
        fresh.segment("a").add_point((30, 30, 28))


@pytest.mark.slow
def test_a_callback_can_neither_close_nor_end_the_session(server: str, caplog: pytest.LogCaptureFixture) -> None:
    with nni.connect(server) as fresh:
        once = iter([fresh.close, sys.exit])
        fresh.on("done", lambda _: next(once, lambda: None)())
        with caplog.at_level(logging.ERROR):
            fresh.set_image(phantom())
            fresh.set_options(previews=False)
        assert "a blocking call would wait for itself" in caplog.text
        assert "SystemExit" in caplog.text
        assert fresh.segment("a").add_point((30, 30, 28)).voxels > 0


def test_a_failed_session_keeps_no_arguments_of_later_calls() -> None:
    async def work() -> None:
        async def dial() -> MonitoredConnection:
            raise errors.Unauthorized("The server refused this token.")

        session = AsyncSession(dial, Core())
        volumes = []
        for _ in range(3):
            volume = np.arange(60.0).reshape(3, 4, 5)
            volumes.append(weakref.ref(volume))
            with pytest.raises(errors.Unauthorized):
                await session.set_image(volume)
            del volume
            await asyncio.sleep(0.01)
        gc.collect()
        assert sum(volume() is not None for volume in volumes) <= 1
        await session.close()

    asyncio.run(asyncio.wait_for(work(), 30))


def test_prompts_do_not_wait_for_acknowledgements(server: str) -> None:
    """Of TCP, as they would with Nagle's algorithm."""

    async def work() -> None:
        connection = await dial(parse_address(server))
        tcp = connection.transport.get_extra_info("socket")
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        await connection.close()

    asyncio.run(asyncio.wait_for(work(), 30))


def test_an_address_that_does_not_answer_leaves_time_for_the_next(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dial_module._endpoints

    async def endpoints(where: Any) -> Any:
        return [(socket.AF_INET, full.getsockname()), *await real(where)]

    async def work() -> None:
        connection = await dial(parse_address(server))
        await connection.close()

    monkeypatch.setattr(dial_module, "_endpoints", endpoints)
    monkeypatch.setattr(reconnect, "OPEN_TIMEOUT_S", 3.0)
    # A listener whose queue is full answers no further connection.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        asyncio.run(asyncio.wait_for(work(), 30))


def test_cancel_from_a_callback(session: nni.Session) -> None:
    session.set_image(phantom(shape=WIDE_SHAPE))
    once = iter([session.cancel])

    def cancel(event: events.Progress) -> None:
        for call in once:
            call()

    session.on("progress", cancel)
    with pytest.raises(errors.Cancelled):
        session.segment("a").add_lasso(wide_lasso())
    assert not session.segment("a").mask.any()


# ---- beginning and end ------------------------------------------------------------------------------------


def test_no_server() -> None:
    threads = threading.active_count()
    with pytest.raises(errors.ConnectionFailed, match="Nothing listens"):
        nni.connect("127.0.0.1:9")
    with pytest.raises(errors.BadAddress):
        nni.connect("ftp://box")
    assert threading.active_count() == threads


@pytest.mark.parametrize("address", ["{host}:{port}", "http://{host}:{port}", "localhost:{port}"])
def test_addresses(server: str, address: str) -> None:
    found = parse_address(server)
    with nni.connect(address.format(host=found.host, port=found.port)) as fresh:
        assert fresh.server.model.name == "demo"


def test_the_token_travels_in_a_header() -> None:
    seen: list[str | None] = []

    def behave(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers.get("Authorization"))
        assert isinstance(protocol.decode_client(connection.recv()), Hello)  # type: ignore[arg-type]

    with serve(behave, "127.0.0.1", 0) as fake, run_in_thread(fake.serve_forever, fake.shutdown):
        address = f"127.0.0.1:{fake.socket.getsockname()[1]}"
        for token in ("secret", None):
            with pytest.raises(errors.ConnectionFailed, match="The server closed the connection"):
                nni.connect(address, token=token)
    assert seen == ["Bearer secret", None]


@pytest.mark.slow
def test_with_closes(server: str) -> None:
    before, threads = health(server)["sessions"], threading.active_count()
    closed: list[events.Connection] = []
    with nni.connect(server, on={"connection": closed.append}) as fresh:
        fresh.set_image(phantom())
        segment = fresh.segment("a")
        segment.add_point((30, 30, 28))
        mask = segment.mask
        assert health(server)["sessions"] == before + 1
    assert threading.active_count() == threads
    assert closed[-1].reason == "The session was closed."
    wait_until(lambda: health(server)["sessions"] == before)
    for ask in (segment.undo, segment.run, lambda: fresh.set_image(phantom()), lambda: fresh.set_options()):
        with pytest.raises(errors.ConnectionFailed, match="The session was closed"):
            ask()
    fresh.cancel()
    fresh.close()
    assert segment.mask is mask, "what was found is kept"


def test_with_closes_after_an_exception(server: str) -> None:
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError), nni.connect(server) as fresh:
        _ = 1 / len(fresh.segments)
    assert threading.active_count() == threads


def test_close_while_another_thread_waits(server: str) -> None:
    fresh = nni.connect(server)
    fresh.set_image(phantom(shape=WIDE_SHAPE))
    ended: list[BaseException] = []
    working = threading.Event()
    fresh.on("progress", lambda _: working.set())

    def prompt() -> None:
        try:
            fresh.segment("a").add_lasso(wide_lasso())
        except errors.Error as e:
            ended.append(e)

    thread = threading.Thread(target=prompt)
    thread.start()
    assert working.wait(60)
    closing = [threading.Thread(target=fresh.close) for _ in range(2)]
    for t in closing:
        t.start()
    for t in (thread, *closing):
        t.join()
    assert [type(e) for e in ended] == [errors.ConnectionFailed]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pthread_kill")
def test_an_interrupted_connect_closes_its_connection_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, a server that loads its model would reserve a session for a vanished client."""
    monkeypatch.setattr(aio, "FAREWELL_TIMEOUT_S", 60.0)
    monkeypatch.setattr(blocking, "FAREWELL_TIMEOUT_S", 60.0)
    codes: list[int | None] = []

    def behave(connection: ServerConnection) -> None:
        connection.recv()
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        with contextlib.suppress(ConnectionClosed):
            connection.recv(30)
        codes.append(connection.close_code)

    with serve(behave, "127.0.0.1", 0) as fake, run_in_thread(fake.serve_forever, fake.shutdown):
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            nni.connect(f"127.0.0.1:{fake.socket.getsockname()[1]}")
        took = time.monotonic() - started
        wait_until(lambda: codes, 30)
    assert codes == [1000]
    assert took < 25, "it waited for an answer to a bye of no session"
