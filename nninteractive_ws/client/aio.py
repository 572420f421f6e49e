"""The asyncio driver: ``async with await aconnect(address) as session``."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
import contextlib
from functools import partial
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from nninteractive_ws.client import events
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.array_like import ArrayLike
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import FAREWELL_TIMEOUT_S, Dialer, MonitoredConnection, dial, dial_through
from nninteractive_ws.client.events import Event, EventName, Result
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.inputs import Boxlike
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.reconnect import RECONNECT_FOR_S, Retries, close_error
from nninteractive_ws.client.tls import ssl_context
from nninteractive_ws.client.tokens import checked_token
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.errors import BadAddress, ConnectionFailed, Error
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import Welcome

_log = logging.getLogger(__name__)

Callback = Callable[[Any], object]


class AsyncSession:
    """The asyncio form of ``Session``, made by ``aconnect``.

    Close it with ``close``, or use it with ``async with``. Requests may be awaited at the same time. The server
    does them in the order of the calls. Cancelling an awaiting task cancels its request.

    Examples
    --------
    >>> async def segment_liver():
    ...     async with await nni.aconnect("ws://127.0.0.1:1528") as session:
    ...         await session.set_image(volume)
    ...         return await session.segment("liver").add_point((30, 40, 36))
    >>> asyncio.run(segment_liver()).segment
    'liver'
    """

    def __init__(
        self, dialer: Dialer, core: Core, reconnect_for: float = RECONNECT_FOR_S, tunnel: Tunnel | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self._dial, self._core, self._tunnel = dialer, core, tunnel
        self._retries = Retries(reconnect_for, loop.time)
        self._callbacks: dict[str, list[Callback]] = defaultdict(list)
        self._results: dict[int, asyncio.Future[Result]] = {}
        self._opened: asyncio.Future[None] = loop.create_future()
        self._welcome: Welcome | None = None
        self._to_write = asyncio.Event()
        self._image_lock = asyncio.Lock()  # while an image is prepared
        self._websocket: MonitoredConnection | None = None
        self._failure: Error | None = None
        self._closing: asyncio.Task[None] | None = None
        #: Bytes of the messages so far, each way.
        self.bytes_sent = self.bytes_received = 0
        self._runner = asyncio.ensure_future(self._run())

    # ---- public -------------------------------------------------------------------------------------------

    @property
    def server(self) -> Welcome:
        """The server's ``welcome``: model, license, device and limits. After a reconnection, those of now."""
        assert self._welcome is not None
        return self._welcome

    def on(self, name: EventName, callback: Callback) -> None:
        """Register a callback for every event of one kind, called on the event loop.

        Parameters
        ----------
        name : str
            Kind of event; see ``events``.
        callback : callable
            Called with the event. It must return soon.

        Raises
        ------
        ValueError
            If no event has this name.
        """
        self._core.owner.check()
        if name not in events.EVENT_NAMES:
            raise ValueError(f'No event is called "{name}". The names are {", ".join(events.EVENT_NAMES)}.')
        self._callbacks[name].append(callback)

    def _off(self, name: EventName, callback: Callback) -> None:
        """Unregister a callback."""
        self._callbacks[name].remove(callback)

    async def set_image(self, image: ArrayLike | ImageSource, journal: Journal | None = None) -> None:
        """Use a volume, and return once the server has accepted it. See ``Session.set_image``.

        Images are set in the order of the calls. A prompt that is called before this has returned may still go to the
        image before, because the volume is announced once its statistics are computed.
        """
        async with self._image_lock:
            source = image if isinstance(image, ImageSource) else await asyncio.to_thread(ImageSource.of, image)
            number = self._issue(lambda: self._core.set_image(source, journal))
        await self._answer(number)

    async def save(self, path: str | Path) -> None:
        """Write the journal, to continue another day: prompts and masks, but not the image. See ``Session.save``."""
        journal = self._core.journal()
        await asyncio.to_thread(journal.save, path)

    def segment(self, name: str) -> "AsyncSegment":
        """Return the segment of a name. Its first prompt creates it. See ``Session.segment``."""
        return AsyncSegment(self, name)

    @property
    def segments(self) -> list[str]:
        """The names of the segments."""
        return self._core.segment_names

    def cancel(self) -> None:
        """Cancel all pending requests. Each of them raises Cancelled."""
        self._core.cancel()
        self._to_write.set()

    async def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> None:
        """Change how the session predicts. See ``Session.set_options``."""
        await self._ask(lambda: self._core.set_options(autozoom=autozoom, previews=previews))

    async def close(self) -> None:
        """End the session on the server and the connection, or the attempts to connect.

        In a forked child of the session's process, this does nothing.
        """
        if not self._core.owner.is_this_process:
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> "AsyncSession":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- private ------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        if self._websocket is not None:
            if self._core.welcome is not None:  # else there is no session, and no answer to wait for
                with contextlib.suppress(ConnectionClosed, TimeoutError):
                    await asyncio.wait_for(self._send_bye(self._websocket), FAREWELL_TIMEOUT_S)
            await self._websocket.close()
        if self._tunnel is not None:
            await asyncio.to_thread(self._tunnel.close)
        self._fail(ConnectionFailed("The session was closed."))

    async def _send_bye(self, websocket: MonitoredConnection) -> None:
        """Send ``bye``, and drain the connection until the server has closed it.

        The server closes it once everything is released. It does not read from a client that does not read.
        """
        self._core.bye()
        listening = asyncio.ensure_future(self._drain(websocket))
        try:
            while (frame := self._core.next_control()) is not None:
                await websocket.send(frame)
            await listening
        finally:
            listening.cancel()

    @staticmethod
    async def _drain(websocket: MonitoredConnection) -> None:
        async for _ in websocket:
            pass

    async def wait_open(self) -> Welcome:
        """Wait until the server is ready.

        Returns
        -------
        Welcome
            Model, license, device and limits of the server.
        """
        self._core.owner.check()
        await asyncio.shield(self._opened)
        return self.server

    async def _ask(self, command: Callable[[], int]) -> Result:
        """Pass a command to the core, and wait for the answer. Cancelling the wait cancels the request."""
        return await self._answer(self._issue(command))

    def _issue(self, command: Callable[[], int]) -> int:
        """Pass a command to the core. Return the number of its request, for ``_answer``."""
        if self._failure is not None:
            # Without the traceback of an earlier call, which would keep that call's arguments.
            raise self._failure.with_traceback(None)
        number = command()
        self._to_write.set()
        self._results[number] = asyncio.get_running_loop().create_future()
        return number

    async def _answer(self, number: int) -> Result:
        try:
            return await asyncio.shield(self._results[number])
        except asyncio.CancelledError:
            self._core.cancel(number)
            self._to_write.set()
            raise

    async def _run(self) -> None:
        """Keep a connection open until an error is final."""
        while True:
            error = await self._run_connection()
            delay = self._retries.delay_after(error)
            if delay is None:
                break
            await self._wait_before_retry(error, delay)
        self._emit(events.Failed(None, error))
        self._fail(error)

    async def _run_connection(self) -> Error:
        """Make a connection and use it until it ends. Return the reason."""
        try:
            self._websocket = await self._dial()
            await self._exchange(self._websocket)
        except Error as e:
            error = e
        except Exception as e:
            _log.exception("the client failed")
            error = Error(f"The client failed, and the session with it ({e!r}); the log has the details.")
        if self._websocket is not None:
            await self._websocket.close()
            self._websocket = None
        return error

    async def _wait_before_retry(self, error: Error, delay: float) -> None:
        if not self._core.is_dormant:
            self._emit(events.Connection("lost", reason=str(error), retry_in=delay))
            await self._wait_for_a_request(delay)
            return
        self._emit(events.Connection("lost", reason=str(error)))
        while self._core.is_dormant:
            self._to_write.clear()
            await self._to_write.wait()
        self._retries.woken()

    async def _wait_for_a_request(self, within: float) -> None:
        before = self._core.request_count
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._core.request_count == before:
                    self._to_write.clear()
                    await self._to_write.wait()

    async def _exchange(self, websocket: MonitoredConnection) -> NoReturn:
        """Raises the Error that ends the connection."""
        self._core.start()
        self._to_write.set()
        works = (websocket.watch(), self._read(websocket), self._write(websocket))
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
        raise next(e for e in found if isinstance(e, Exception))

    async def _write(self, websocket: MonitoredConnection) -> None:
        while True:
            frame = await self._next_frame()
            try:
                await websocket.send(frame)
            except ConnectionClosed:
                return  # the reader raises it, with the reason
            except AttributeError:
                # Raised by asyncio of Python 3.11 if the connection ends with unsent bytes.
                if websocket.state is State.CLOSED:
                    return
                raise
            self.bytes_sent += len(frame)

    async def _next_frame(self) -> bytes:
        while True:
            self._to_write.clear()
            if (frame := self._core.next_control()) is not None:
                return frame
            if (make := self._core.next_brick()) is not None:
                return await asyncio.to_thread(make)
            await self._to_write.wait()

    async def _read(self, websocket: MonitoredConnection) -> NoReturn:
        try:
            while True:
                data = await websocket.recv()
                self.bytes_received += len(data)
                # A text message is an error of the server; the core raises it.
                for event in self._core.receive(data if isinstance(data, bytes) else data.encode()):
                    self._handle(event)
                if self._core.ended is not None:
                    raise self._core.ended
                self._to_write.set()
        except ConnectionClosed as e:
            raise close_error(e.rcvd, e.sent, e.__cause__) from e

    def _handle(self, event: Event) -> None:
        if isinstance(event, events.Connection) and event.welcome is not None:
            self._welcome = event.welcome
            self._retries.opened()
            if not self._opened.done():
                self._opened.set_result(None)
        elif isinstance(event, events.Done):
            self._settle(event.result.request, event.result)
        elif isinstance(event, events.Failed) and event.request is not None:
            self._settle(event.request, event.error)
        self._emit(event)

    def _emit(self, event: Event) -> None:
        for callback in tuple(self._callbacks[event.name]):  # it may unregister itself
            try:
                callback(event)
            except (Exception, SystemExit):  # SystemExit would end the event loop, and with it all sessions
                _log.exception("a callback for the event %s failed", event.name)

    def _settle(self, number: int, outcome: Result | Error) -> None:
        future = self._results.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(outcome, Error):
            future.set_exception(outcome)
            future.exception()  # retrieved, so that asyncio does not warn about a waiter that left
        else:
            future.set_result(outcome)

    def _fail(self, error: Error) -> None:
        """End the session: every pending wait raises ``error``."""
        if self._failure is not None:
            return
        self._failure = error
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()
        for number in list(self._results):
            self._settle(number, error)
        self._emit(events.Connection("closed", reason=str(error)))


class AsyncSegment:
    """A segment of an ``AsyncSession``: the asyncio form of ``Segment``."""

    def __init__(self, session: AsyncSession, name: str) -> None:
        self._session, self._core, self.name = session, session._core, name

    @property
    def mask(self) -> Mask:
        """Read-only bool array of the image's shape, updated in place, previews included. Raises NoImage.

        ``copy()`` it to keep or to change it. ``set_mask`` replaces the segment's mask.
        """
        return self._core.segment(self.name).mask

    @property
    def voxels(self) -> int:
        """Number of voxels in the mask. Raises NoImage."""
        return self._core.segment(self.name).voxels

    @property
    def can_undo(self) -> int:
        """Number of steps that can be undone. Raises NoImage."""
        return len(self._core.segment(self.name).steps)

    @property
    def can_redo(self) -> int:
        """Number of steps that can be redone. Raises NoImage."""
        return len(self._core.segment(self.name).undone)

    async def add_point(self, point: Sequence[float], *, positive: bool = True, run: bool = True) -> Result:
        """Add a point. See ``Segment.add_point``."""
        return await self._ask(lambda: self._core.add_point(self.name, point, positive=positive, run=run))

    async def add_bbox(self, box: Boxlike, *, positive: bool = True, run: bool = True) -> Result:
        """Add a bounding box. See ``Segment.add_bbox``."""
        return await self._ask(lambda: self._core.add_bbox(self.name, box, positive=positive, run=run))

    async def add_scribble(
        self, mask: ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """Add a scribble: strokes through the object. See ``Segment.add_scribble``."""
        return await self._ask(lambda: self._core.add_scribble(self.name, mask, box=box, positive=positive, run=run))

    async def add_lasso(
        self, mask: ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """Add a lasso: a filled outline in one slice. See ``Segment.add_lasso``."""
        return await self._ask(lambda: self._core.add_lasso(self.name, mask, box=box, positive=positive, run=run))

    async def set_mask(self, mask: ArrayLike, *, box: Boxlike | None = None, run: bool = False) -> Result:
        """Replace the mask. Earlier prompts no longer count. See ``Segment.set_mask``."""
        return await self._ask(lambda: self._core.set_mask(self.name, mask, box=box, run=run))

    async def run(self) -> Result:
        """Predict from the prompts that were added with ``run=False``. See ``Segment.run``."""
        return await self._ask(lambda: self._core.run(self.name))

    async def undo(self) -> Result:
        """Undo the last step: a prompt, a set mask or a reset. See ``Segment.undo``."""
        return await self._ask(lambda: self._core.undo(self.name))

    async def redo(self) -> Result:
        """Redo the step that was undone last. See ``Segment.redo``."""
        return await self._ask(lambda: self._core.redo(self.name))

    async def reset(self) -> Result:
        """Empty the mask and forget the prompts. This can be undone. See ``Segment.reset``."""
        return await self._ask(lambda: self._core.reset(self.name))

    async def remove(self) -> Result:
        """Remove the segment with its history. This cannot be undone. See ``Segment.remove``."""
        return await self._ask(lambda: self._core.remove_segment(self.name))

    async def _ask(self, command: Callable[[], int]) -> Result:
        return await self._session._ask(command)


async def aconnect(
    address: str,
    *,
    token: str | None = None,
    ca: str | Path | None = None,
    start: str | None = None,
    reconnect_for: float = RECONNECT_FOR_S,
    on: "dict[EventName, Callback] | None" = None,
) -> AsyncSession:
    """Connect to a server, and wait until it is ready: the asyncio form of ``connect``.

    Parameters
    ----------
    address, token, ca, start, reconnect_for, on
        As for ``connect``. Callbacks are called on the event loop.

    Returns
    -------
    AsyncSession
        The session. Close it after use.

    Raises
    ------
    ConnectionFailed, Unauthorized, AtCapacity, UnsupportedVersion
        As for ``connect``.
    """
    parsed, token = parse_address(address), checked_token(token)
    tunnel = None if parsed.ssh is None else Tunnel(parsed.ssh)
    tls = ssl_context(parsed, ca)
    if tunnel is not None:
        dialer = partial(dial_through, tunnel, start, token=token)
    elif start is not None:
        raise BadAddress(f"A server can only be started through ssh, and {parsed} is reached without it.")
    else:
        dialer = partial(dial, parsed, token=token, ssl_context=tls)
    session = AsyncSession(dialer, Core(), reconnect_for, tunnel)
    try:
        for name, callback in (on or {}).items():
            session.on(name, callback)
        await session.wait_open()
    except BaseException:
        await session.close()
        raise
    return session
