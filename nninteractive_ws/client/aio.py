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

import numpy.typing as npt
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from nninteractive_ws.client import events
from nninteractive_ws.client.address import parse_address, trust
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import FAREWELL_WITHIN_S, Connection, Dialler, dial, dial_through
from nninteractive_ws.client.events import Event, EventName, Result
from nninteractive_ws.client.given import Boxlike
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.reconnect import RECONNECT_FOR_S, Retries, why_closed
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.errors import BadAddress, ConnectionFailed, Error
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import Welcome

_log = logging.getLogger(__name__)

Callback = Callable[[Any], object]


class AsyncSession:
    """A session on a server. Made by :func:`aconnect`; close it, or use it with ``async with``."""

    def __init__(
        self, dialler: Dialler, core: Core, reconnect_for: float = RECONNECT_FOR_S, tunnel: Tunnel | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self._dial, self._core, self._tunnel = dialler, core, tunnel
        self._retries = Retries(reconnect_for, loop.time)
        self._callbacks: dict[str, list[Callback]] = defaultdict(list)
        self._results: dict[int, asyncio.Future[Result]] = {}
        self._opened: asyncio.Future[None] = loop.create_future()
        self._welcome: Welcome | None = None
        self._to_write = asyncio.Event()
        self._websocket: Connection | None = None
        self._failure: Error | None = None
        self._closing: asyncio.Task[None] | None = None
        #: Bytes of the messages so far, each way.
        self.bytes_sent = self.bytes_received = 0
        self._life = asyncio.ensure_future(self._live())

    # ---- what a user meets --------------------------------------------------------------------------------

    @property
    def server(self) -> Welcome:
        """What the server is: model, licence, device, limits. After a reconnection, what it is now."""
        assert self._welcome is not None
        return self._welcome

    def on(self, name: EventName, callback: Callback) -> None:
        """Call ``callback(event)`` for every event of a kind, on the event loop; see ``client.events``."""
        if name not in events.EVENT_NAMES:
            raise ValueError(f'no event is called "{name}"; there are {", ".join(events.EVENT_NAMES)}')
        self._callbacks[name].append(callback)

    async def set_image(self, image: npt.ArrayLike, journal: Journal | None = None) -> None:
        """Use a volume: 3-D, any real dtype, order or stride. Returns once the server has taken it on.

        The voxels travel in the background, so the array must not change. All segments are forgotten, and
        requests that are not done are cancelled. ``journal``: brings back the segments that :meth:`save` kept.
        Raises BadImage, also where the journal is of another image, TooLarge or OutOfMemory; then there is no image.
        """
        source = await asyncio.to_thread(ImageSource.of, image)
        await self._ask(lambda: self._core.set_image(source, journal))

    async def save(self, path: str | Path) -> None:
        """Write prompts and masks to a file, but not the image, to go on another day: see :func:`load`.

        Requests that are not done are not in it. Works without a connection too. Raises NoImage or OSError.
        """
        journal = self._core.journal()
        await asyncio.to_thread(journal.save, path)

    def segment(self, name: str) -> "AsyncSegment":
        """The segment of a name; it is made with its first prompt."""
        return AsyncSegment(self, name)

    @property
    def segments(self) -> list[str]:
        """The names of the segments there are."""
        return self._core.segment_names

    def cancel(self) -> None:
        """Stop what runs and what waits; each of the requests ends with Cancelled."""
        self._core.cancel()
        self._to_write.set()

    async def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> None:
        """Change how the session predicts; None leaves as it is."""
        await self._ask(lambda: self._core.set_options(autozoom=autozoom, previews=previews))

    async def close(self) -> None:
        """End the session on the server, and the connection, or the attempts to get one."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> "AsyncSession":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- inside -------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)
        if self._websocket is not None:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                await asyncio.wait_for(self._say_bye(self._websocket), FAREWELL_WITHIN_S)
            await self._websocket.close()
        if self._tunnel is not None:
            await asyncio.to_thread(self._tunnel.close)
        self._fail(ConnectionFailed("The session was closed."))

    async def _say_bye(self, websocket: Connection) -> None:
        """The server closes the connection once it has let go of everything; until then it is listened to, as it may
        not listen to who does not."""
        self._core.bye()
        listening = asyncio.ensure_future(self._hear_out(websocket))
        try:
            while (frame := self._core.next_control()) is not None:
                await websocket.send(frame)
            await listening
        finally:
            listening.cancel()

    @staticmethod
    async def _hear_out(websocket: Connection) -> None:
        async for _ in websocket:
            pass

    async def wait_open(self) -> Welcome:
        """Wait until the server has said welcome, which it does once its model is loaded."""
        await asyncio.shield(self._opened)
        return self.server

    async def _ask(self, command: Callable[[], int]) -> Result:
        """Give a command to the core and wait for its answer. Cancelling the waiting cancels the request."""
        if self._failure is not None:
            raise self._failure
        number = command()
        self._to_write.set()
        future = self._results[number] = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._core.cancel(number)
            self._to_write.set()
            raise

    async def _live(self) -> None:
        """One connection after another, until trying again is no use."""
        while True:
            error = await self._have_a_connection()
            delay = self._retries.after(error)
            if delay is None:
                break
            await self._stay_away(error, delay)
        self._tell(events.Failed(None, error))
        self._fail(error)

    async def _have_a_connection(self) -> Error:
        """Make one, and use it as long as it lasts; why it ended."""
        try:
            self._websocket = await self._dial()
            await self._converse(self._websocket)
        except Error as e:
            error = e
        except Exception as e:
            _log.exception("the client failed")
            error = Error(f"The client failed, and the session with it ({e!r}); the log has the details.")
        if self._websocket is not None:
            await self._websocket.close()
            self._websocket = None
        return error

    async def _stay_away(self, error: Error, delay: float) -> None:
        if not self._core.resting:
            self._tell(events.Connection("lost", reason=str(error), retry_in=delay))
            await self._wait_for_a_request(delay)
            return
        self._tell(events.Connection("lost", reason=str(error)))
        while self._core.resting:
            self._to_write.clear()
            await self._to_write.wait()
        self._retries.rested()

    async def _wait_for_a_request(self, within: float) -> None:
        before = self._core.asked
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._core.asked == before:
                    self._to_write.clear()
                    await self._to_write.wait()

    async def _converse(self, websocket: Connection) -> NoReturn:
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

    async def _write(self, websocket: Connection) -> None:
        while True:
            frame = await self._next_frame()
            try:
                await websocket.send(frame)
            except ConnectionClosed:
                return  # the reader sees it too, with the reason
            except AttributeError:
                # From asyncio in Python 3.11, where bytes waited when the end came.
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

    async def _read(self, websocket: Connection) -> NoReturn:
        try:
            while True:
                data = await websocket.recv()
                self.bytes_received += len(data)
                # A text message is an error of the server's; the core says so.
                for event in self._core.receive(data if isinstance(data, bytes) else data.encode()):
                    self._handle(event)
                self._to_write.set()
        except ConnectionClosed as e:
            raise why_closed(e.rcvd, e.sent, e.__cause__) from e

    def _handle(self, event: Event) -> None:
        """Raises the Error that ends the connection, where the server says that it does."""
        if isinstance(event, events.Failed) and event.request is None:
            raise event.error
        if isinstance(event, events.Connection) and event.welcome is not None:
            self._welcome = event.welcome
            self._retries.opened()
            if not self._opened.done():
                self._opened.set_result(None)
        elif isinstance(event, events.Done):
            self._settle(event.result.request, event.result)
        elif isinstance(event, events.Failed) and event.request is not None:
            self._settle(event.request, event.error)
        self._tell(event)
        if isinstance(event, events.Notice) and event.code == "evicted":
            raise ConnectionFailed(event.message)

    def _tell(self, event: Event) -> None:
        for callback in self._callbacks[event.name]:
            try:
                callback(event)
            except Exception:
                _log.exception("a callback for the event %s failed", event.name)

    def _settle(self, number: int, outcome: Result | Error) -> None:
        future = self._results.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(outcome, Error):
            future.set_exception(outcome)
            future.exception()  # so that a waiter that left is not complained about
        else:
            future.set_result(outcome)

    def _fail(self, error: Error) -> None:
        """The session has ended: everybody who waits is told why, once."""
        if self._failure is not None:
            return
        self._failure = error
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()
        for number in list(self._results):
            self._settle(number, error)
        self._tell(events.Connection("closed", reason=str(error)))


class AsyncSegment:
    """A segment of a session: its prompts and its mask. All positions are array indices."""

    def __init__(self, session: AsyncSession, name: str) -> None:
        self._session, self._core, self.name = session, session._core, name

    @property
    def mask(self) -> Mask:
        """bool, the volume's shape, kept up to date in place, previews included."""
        return self._core.segment(self.name).mask

    @property
    def voxels(self) -> int:
        """How many voxels the mask has."""
        return self._core.segment(self.name).voxels

    @property
    def can_undo(self) -> int:
        """How many steps can be undone."""
        return len(self._core.segment(self.name).steps)

    @property
    def can_redo(self) -> int:
        """How many steps can be redone."""
        return len(self._core.segment(self.name).undone)

    async def add_point(self, point: Sequence[float], *, positive: bool = True, run: bool = True) -> Result:
        """A click on the voxel (i, j, k); floats are rounded. Raises NoImage, OutOfBounds or UnsupportedPrompt.

        ``run`` false: the prompt waits for :meth:`run` or for a prompt that runs.
        """
        return await self._ask(lambda: self._core.add_point(self.name, point, positive=positive, run=run))

    async def add_bbox(self, box: Boxlike, *, positive: bool = True, run: bool = True) -> Result:
        """A half-open box ((i0, i1), (j0, j1), (k0, k1)), best one voxel thick on one axis. Raises as a point."""
        return await self._ask(lambda: self._core.add_bbox(self.name, box, positive=positive, run=run))

    async def add_scribble(
        self, mask: npt.ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """Strokes: a mask of the volume's shape, or of ``box``'s; only the part around them travels."""
        return await self._ask(lambda: self._core.add_scribble(self.name, mask, box=box, positive=positive, run=run))

    async def add_lasso(
        self, mask: npt.ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """A filled outline in a slice: a mask of the volume's shape, or of ``box``'s."""
        return await self._ask(lambda: self._core.add_lasso(self.name, mask, box=box, positive=positive, run=run))

    async def set_mask(self, mask: npt.ArrayLike, *, box: Boxlike | None = None, run: bool = False) -> Result:
        """Start from a mask: of the volume's shape, or of ``box``'s and empty outside. Earlier prompts no longer
        count. ``run``: refine it at once."""
        return await self._ask(lambda: self._core.set_mask(self.name, mask, box=box, run=run))

    async def run(self) -> Result:
        """Predict from the prompts that were added with ``run`` false."""
        return await self._ask(lambda: self._core.run(self.name))

    async def undo(self) -> Result:
        """Take back the last step, as often as there are steps. Raises NothingToUndo."""
        return await self._ask(lambda: self._core.undo(self.name))

    async def redo(self) -> Result:
        """Do again what was taken back. Raises NothingToUndo."""
        return await self._ask(lambda: self._core.redo(self.name))

    async def reset(self) -> Result:
        """Empty the segment and forget its prompts; it can be undone."""
        return await self._ask(lambda: self._core.reset(self.name))

    async def remove(self) -> Result:
        """Forget the segment with its history."""
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
    """Connect to a server and wait for its welcome, however long it takes to load its model.

    ``address``: see :func:`~nninteractive_ws.client.address.parse_address`. ``ca``: a PEM file of certificates
    to trust instead of the system's, for ``wss://``. ``start``: for ``ssh://``, the command that starts a server over
    there where none answers, such as ``nninteractive-ws serve``; it ends with the session. ``reconnect_for``: seconds
    for which a connection that is lost later is tried again before the session is given up; 0: not at all,
    ``math.inf``: for ever. ``on``: callbacks from the start, for the notice that the model is loading for instance.

    Raises ConnectionFailed (of its kinds, BadAddress and Untrusted), Unauthorized, AtCapacity or
    UnsupportedVersion.
    """
    where = parse_address(address)
    tunnel = None if where.ssh is None else Tunnel(where.ssh)
    trusting = trust(where, ca)
    if tunnel is not None:
        dialler = partial(dial_through, tunnel, start, token=token)
    elif start is not None:
        raise BadAddress(f"A server can only be started through ssh, and {where} is reached without it.")
    else:
        dialler = partial(dial, where, token=token, trusting=trusting)
    session = AsyncSession(dialler, Core(), reconnect_for, tunnel)
    try:
        for name, callback in (on or {}).items():
            session.on(name, callback)
        await session.wait_open()
    except BaseException:
        await session.close()
        raise
    return session
