"""The polled client against a real server. It needs no thread and no event loop, and no call takes long."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import socket
import ssl
import threading
import time
from typing import Any

from helpers.drivers import answer_of
from helpers.end_to_end import WIDE_SHAPE, PlainClient, phantom, stroke, wide_lasso
from helpers.relay import relay
from helpers.threads import greeting_server, serving
import numpy as np
import numpy.typing as npt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.client.events import Event

Array = npt.NDArray[Any]


class Timer:
    """A poller like the timer of a user interface. It keeps the events and the duration of the longest call."""

    def __init__(self, session: nni.PolledSession) -> None:
        self.session = session
        self.events: list[Event] = []
        self.longest = 0.0

    def until(self, true: Callable[[], object], timeout: float = 100) -> None:
        end = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < end, self.events[-5:]
            assert not self.session.closed, self.events[-2:]
            self.tick()

    def tick(self) -> None:
        started = time.monotonic()
        self.events += self.session.poll()
        self.longest = max(self.longest, time.monotonic() - started)
        time.sleep(0.001)

    def until_closed(self, timeout: float = 60) -> str:
        """Wait until the session ends. Return the reason."""
        end = time.monotonic() + timeout
        while not self.session.closed:
            assert time.monotonic() < end
            self.tick()
        self.tick()
        last = self.events[-1]
        assert isinstance(last, events.Connection)
        assert last.state == "closed"
        return last.reason

    def open(self) -> "Timer":
        self.until(lambda: self.session._core.welcome)
        return self

    def set_image(self, image: Array) -> None:
        self.session.set_image(image)
        self.until(lambda: self.session._core.image is not None and not self.session._core.pending_requests)

    def ask(self, number: int) -> events.Result | errors.Error:
        """Wait for the answer to a request."""
        self.until(lambda: answer_of(self.events, number))
        found = answer_of(self.events, number)
        assert found is not None
        return found


@contextmanager
def polled(address: str) -> Iterator[Timer]:
    timer = Timer(nni.PolledSession(address))
    try:
        yield timer
    finally:
        timer.session.close()


def test_masks_in_and_out(server: str) -> None:
    with polled(server) as timer:
        timer.open().set_image(phantom())
        a = timer.session.segment("a")
        assert isinstance(timer.ask(a.set_mask(stroke())), events.Result)
        for mask in (a.mask, timer.session.histories["a"].mask):
            assert np.array_equal(mask, stroke())
            with pytest.raises(ValueError, match="read-only"):
                mask[:] = False
        for command in (a.set_mask, a.flip_mask, a.add_scribble, a.add_lasso):
            with pytest.raises(errors.BadMask, match="the values -1"):
                command(np.full(phantom().shape, -1))
        with pytest.raises(errors.BadImage, match="is a path or a text"):
            timer.session.set_image("ct.nii.gz")
        assert timer.session.journal().masks["a"].flags.writeable


@pytest.fixture(scope="module")
def blocking_masks(server: str) -> list[Array]:
    """The masks of the blocking client for the prompts of :func:`prompt_through`."""
    with nni.connect(server) as session:
        session.set_image(phantom())
        a, masks = session.segment("a"), []
        for prompt in (
            lambda: a.add_point((30, 30, 28)),
            lambda: a.add_scribble(stroke()),
            lambda: a.add_bbox(((20, 40), (20, 40), (28, 29)), positive=False),
            a.undo,
        ):
            prompt()
            masks.append(a.mask.copy())
        return masks


def prompt_through(timer: Timer) -> list[Array]:
    core, masks = timer.session._core, []
    timer.set_image(phantom())
    for prompt in (
        lambda: core.add_point("a", (30, 30, 28)),
        lambda: core.add_scribble("a", stroke()),
        lambda: core.add_bbox("a", ((20, 40), (20, 40), (28, 29)), positive=False),
        lambda: core.undo("a"),
    ):
        assert isinstance(timer.ask(prompt()), events.Result)
        masks.append(core.segment("a").mask.copy())
    return masks


def equal(a: list[Array], b: list[Array]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_the_same_masks_as_the_blocking_client(server: str, blocking_masks: list[Array]) -> None:
    with polled(server) as timer:
        assert timer.session.fileno() == -1, "nothing is done before it is polled"
        timer.open()
        assert timer.session.fileno() > 0
        assert isinstance(next(e for e in timer.events if not isinstance(e, events.Notice)), events.Connection)
        assert equal(prompt_through(timer), blocking_masks)
        kinds = {type(e) for e in timer.events}
        assert {events.ImageProgress, events.Progress, events.Done} <= kinds
    assert timer.session.closed
    assert timer.session.poll()[-1] == events.Connection("closed", reason="The session was closed.")
    assert timer.session.poll() == []
    assert timer.session.fileno() == -1


def test_no_call_takes_long(server: str) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (256, 192, 128), np.int16)
    with polled(server) as timer:
        timer.open()
        timer.longest = 0
        timer.session.set_image(noise)
        timer.until(lambda: isinstance(e := timer.events[-1], events.ImageProgress) and e.present == e.total)
    # Printed only, because it depends on the load of the machine.
    print(f"the longest call took {1000 * timer.longest:.1f} ms while 12.6 MB traveled")


@pytest.mark.slow
def test_commands_before_the_connection_is_open(server: str) -> None:
    with polled(server) as timer:
        assert isinstance(timer.ask(timer.session._core.set_options(previews=False)), events.Result)
    with polled(server) as timer:
        timer.session.set_image(phantom())
        timer.until(lambda: timer.session._core.image)
        assert isinstance(timer.ask(timer.session._core.add_point("a", (30, 30, 28))), events.Result)


@pytest.mark.slow
def test_invalid_images_are_refused(server: str) -> None:
    nan = phantom().astype(np.float32)
    nan[70, 60, 50] = np.nan
    with polled(server) as timer:
        timer.open()
        with pytest.raises(errors.BadImage):
            timer.session.set_image(np.zeros((3, 4)))
        timer.tick()
        timer.session.set_image(nan)
        with pytest.raises(errors.BadImage, match="NaN"):
            timer.until(lambda: False, timeout=20)
        timer.tick()
        prompt_through(timer)


def test_cancel(server: str) -> None:
    with polled(server) as timer:
        timer.open()
        timer.set_image(phantom(shape=WIDE_SHAPE))
        core = timer.session._core
        number = core.add_lasso("a", wide_lasso())
        timer.until(lambda: any(isinstance(e, events.Progress) for e in timer.events))
        core.cancel()
        assert isinstance(timer.ask(number), errors.Cancelled)
        assert not core.segment("a").mask.any()


def test_errors_are_events(server: str) -> None:
    with polled(server) as timer:
        timer.open()
        timer.set_image(phantom())
        core = timer.session._core
        assert isinstance(timer.ask(core.undo("a")), errors.UnknownSegment)
        with pytest.raises(errors.OutOfBounds):
            core.add_point("a", (1000, 0, 0))


# ---- connections that fail --------------------------------------------------------------------------------


def reason(address: str, **options: Any) -> str:
    return Timer(nni.PolledSession(address, **options)).until_closed()


def test_nothing_listens() -> None:
    assert "Nothing listens at 127.0.0.1:9" in reason("127.0.0.1:9")


def test_invalid_addresses() -> None:
    assert 'DNS lookup of "no-such-machine.invalid" failed' in reason("no-such-machine.invalid")
    assert 'DNS lookup of "a..b" failed' in reason("a..b")
    with pytest.raises(errors.BadAddress):
        nni.PolledSession("no address")


def names(monkeypatch: pytest.MonkeyPatch, addresses: Callable[[int], list[tuple[str, int]]]) -> None:
    """Resolve the name gpu-box with ``addresses``, a function of the port."""
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *rest: Any, **hints: Any) -> Any:
        if host != "gpu-box":
            return real(host, port, *rest, **hints)
        return [found for address, p in addresses(port) for found in real(address, p, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_a_slow_dns_lookup_does_not_block(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(port: int) -> list[tuple[str, int]]:
        time.sleep(1)
        return [("127.0.0.1", port)]

    names(monkeypatch, slow)
    started = time.monotonic()
    with polled(server.replace("127.0.0.1", "gpu-box")) as timer:
        timer.open()
        assert time.monotonic() - started > 1
        assert timer.longest < 0.5


def test_the_system_certificates_are_read_on_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes longer than a poll may. The session waits for it without blocking."""
    readers: list[threading.Thread] = []
    real = ssl.create_default_context

    def read(**how: Any) -> ssl.SSLContext:
        readers.append(threading.current_thread())
        time.sleep(0.2)
        return real(**how)

    monkeypatch.setattr(ssl, "create_default_context", read)
    assert "Nothing listens at 127.0.0.1:9" in reason("wss://127.0.0.1:9")
    assert len(readers) == 1
    assert threading.main_thread() not in readers


def test_a_dns_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def never(port: int) -> list[tuple[str, int]]:
        over.wait(30)
        return []

    names(monkeypatch, never)
    now = [0.0]
    timer = Timer(nni.PolledSession("gpu-box", clock=lambda: now[0]))
    for _ in range(10):
        timer.tick()
    assert not timer.session.closed
    now[0] += 16
    assert "gpu-box:1528 does not answer" in timer.until_closed()
    over.set()


def test_one_address_after_the_other(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(server.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as refusing:
        nobody = refusing.getsockname()[1]
    names(monkeypatch, lambda _: [("127.0.0.1", nobody), ("::1", nobody), ("127.0.0.1", port)])
    with polled("gpu-box") as timer:
        timer.open()
        assert isinstance(timer.ask(timer.session._core.set_options(previews=False)), events.Result)
    names(monkeypatch, lambda _: [("127.0.0.1", nobody), ("::1", nobody)])
    assert "Nothing listens at gpu-box:1528" in reason("gpu-box")


def test_a_silent_address_does_not_use_up_the_timeout(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(server.rpartition(":")[2])
    now = [0.0]
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        silent = full.getsockname()[1]
        # The accept queue is full then, and further connections get no answer.
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", silent))
        names(monkeypatch, lambda _: [("127.0.0.1", silent), ("127.0.0.1", port)])
        timer = Timer(nni.PolledSession("gpu-box", clock=lambda: now[0]))
        for _ in range(50):
            timer.tick()
        assert timer.session.fileno() >= 0
        assert not timer.events
        now[0] += 8  # half of the timeout
        timer.open()
        timer.session.close()


@pytest.mark.parametrize(
    ("greeting", "hold", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", True, "is not an nninteractive-ws server"),
        (b"", False, "is not an nninteractive-ws server"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", True, 'HTTP 404, "nope".'),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", True, "This server needs a token"),
    ],
    ids=["ssh", "hangs up", "404", "401"],
)
def test_a_server_of_another_protocol(greeting: bytes, hold: bool, message: str) -> None:
    with greeting_server(greeting, hold) as address:
        assert message in reason(address)


def test_a_server_that_never_answers() -> None:
    now = [0.0]
    with greeting_server(b"", hold=True) as address:
        timer = Timer(nni.PolledSession(address, clock=lambda: now[0]))
        for _ in range(20):
            timer.tick()
        assert not timer.session.closed
        now[0] += 16
        assert f"A program at {address} accepts connections, but does not answer as an" in timer.until_closed()


def test_a_silent_network(server: str) -> None:
    now = [0.0]
    timer = Timer(nni.PolledSession(server, clock=lambda: now[0])).open()
    for _ in range(10):
        now[0] += 30  # each time, it pings and gets an answer
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            timer.tick()
    assert not timer.session.closed
    timer.session.close()
    with relay(server) as silent:
        timer = Timer(nni.PolledSession(silent.address, clock=lambda: now[0], reconnect_for=0)).open()
        silent.bytes_per_second = 0.1
        now[0] += 30
        timer.tick()
        assert not timer.session.closed
        now[0] += 70
        assert timer.until_closed() == "The server has not answered for 100 seconds."


def test_a_broken_connection(server: str) -> None:
    with relay(server) as broken:
        timer = Timer(nni.PolledSession(broken.address, reconnect_for=0)).open()
        timer.set_image(phantom())
        broken.cut()
        timer.session._core.add_point("a", (30, 30, 28))
        assert "lost" in timer.until_closed()
    failed = timer.events[-2]
    assert isinstance(failed, events.Failed)
    assert (failed.request, type(failed.error)) == (None, errors.ConnectionFailed)
    timer.session.close()
    assert timer.session.poll() == []


def test_close_at_any_moment(server: str) -> None:
    for ticks in (0, 1, 3, 30):
        timer = Timer(nni.PolledSession(server))
        for _ in range(ticks):
            timer.tick()
        timer.session.close()
        timer.session.close()
        assert timer.session.closed
    timer = Timer(nni.PolledSession(server)).open()
    timer.session.set_image(phantom(shape=WIDE_SHAPE))
    timer.until(lambda: timer.session._core.image is not None)
    timer.session._core.add_point("a", (30, 30, 28))
    timer.session.close()


# ---- unusual servers --------------------------------------------------------------------------------------


class Proxy:
    """A WebSocket server in front of the real one. ``pass_down(message, connection)`` is awaited for each answer."""

    def __init__(self, server: str, pass_down: Callable[[bytes, ServerConnection], Any]) -> None:
        self._server, self._pass_down = server, pass_down

    async def serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        options = {"compression": None, "max_size": None, "close_timeout": 1}
        async with serve(self._behave, "127.0.0.1", 0, **options) as listening:
            self.address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            started.set()
            await self._stop.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _behave(self, client: ServerConnection) -> None:
        async with connect(self._server, compression=None, max_size=None, proxy=None) as upstream:
            task = asyncio.ensure_future(self._up(client, upstream))
            try:
                async for message in upstream:
                    assert isinstance(message, bytes)
                    await self._pass_down(message, client)
            except ConnectionClosed:
                pass
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _up(self, client: ServerConnection, upstream: ClientConnection) -> None:
        try:
            async for message in client:
                await upstream.send(message)
        finally:
            await upstream.close()


@contextmanager
def proxy(server: str, pass_down: Callable[[bytes, ServerConnection], Any]) -> Iterator[str]:
    """The address of a :class:`Proxy` in front of the real server."""
    with serving(Proxy(server, pass_down)) as made:
        yield made.address


@pytest.mark.slow
def test_fragments(server: str, blocking_masks: list[Array]) -> None:
    """A message may have any number of frames, with pings between them."""

    async def in_pieces(message: bytes, client: ServerConnection) -> None:
        async def pieces() -> Any:
            for start in range(0, len(message), 37):
                yield message[start : start + 37]
                if start % 5 == 0:
                    await client.ping()

        await client.send(pieces())

    with proxy(server, in_pieces) as address, polled(address) as timer:
        timer.open()
        assert equal(prompt_through(timer), blocking_masks)


def test_a_server_that_closes_during_the_upload(server: str) -> None:
    count = 0

    async def leave(message: bytes, client: ServerConnection) -> None:
        nonlocal count
        count += 1
        await (client.send(message) if count < 6 else client.close(1012, "restarting"))

    with proxy(server, leave) as address:
        timer = Timer(nni.PolledSession(address, reconnect_for=0)).open()
        timer.session.set_image(np.random.default_rng(0).integers(-9, 9, (192, 192, 192), np.int16))
        assert timer.until_closed() == "The server closed the connection (restarting)."


def test_text_is_an_error(server: str) -> None:
    async def as_text(message: bytes, client: ServerConnection) -> None:
        await client.send("hello")

    with proxy(server, as_text) as address:
        assert "must be a msgpack map" in reason(address)


def test_a_refused_connection(server: str) -> None:
    async def refuse(message: bytes, client: ServerConnection) -> None:
        from nninteractive_ws import messages, protocol

        await client.send(protocol.encode(messages.ErrorMessage(code="at_capacity", message="full")))
        await client.close(1013, "at_capacity")

    with proxy(server, refuse) as address:
        timer = Timer(nni.PolledSession(address))
        assert timer.until_closed() == "full"
    failed = next(e for e in timer.events if isinstance(e, events.Failed))
    assert isinstance(failed.error, errors.AtCapacity)


def test_a_plain_client_is_still_accepted(server: str) -> None:
    """The server is unaffected by the tests above."""

    async def work() -> str:
        client = await PlainClient.open(server)
        await client.close()
        return client.welcome.model.name

    assert asyncio.run(work()) == "demo"
