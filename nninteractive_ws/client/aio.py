"""The asyncio driver: ``async with await aconnect(address) as session``."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
import contextlib
import logging
from types import TracebackType
from typing import Any

import numpy.typing as npt
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import protocol
from nninteractive_ws.client import events
from nninteractive_ws.client.address import explain, parse_address
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event, EventName, Result
from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.errors import ConnectionFailed, Error
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import Welcome

_log = logging.getLogger(__name__)

Boxlike = Sequence[Sequence[int]] | Box
Callback = Callable[[Any], object]

#: A server that can be reached at all answers the handshake within this.
OPEN_WITHIN_S = 15.0
#: Long, because a process that computes may be late with its pong and is not dead for that.
PING_EVERY_S, PONG_WITHIN_S = 20.0, 60.0
#: A farewell is a courtesy: closing does not wait for a server that takes in nothing more.
FAREWELL_WITHIN_S = 2.0


class AsyncSession:
    """A session on a server. Made by :func:`aconnect`; close it, or use it with ``async with``."""

    def __init__(self, websocket: ClientConnection, core: Core) -> None:
        self._websocket, self._core = websocket, core
        self._callbacks: dict[str, list[Callback]] = defaultdict(list)
        self._results: dict[int, asyncio.Future[Result]] = {}
        self._opened: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._to_write = asyncio.Event()
        self._failure: Error | None = None
        #: Bytes of the messages so far, each way.
        self.bytes_sent = self.bytes_received = 0
        core.start()
        self._to_write.set()
        self._tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._write())]

    # ---- what a user meets --------------------------------------------------------------------------------

    @property
    def server(self) -> Welcome:
        """What the server is: model, licence, device, limits."""
        return self._opened.result()

    def on(self, name: EventName, callback: Callback) -> None:
        """Call ``callback(event)`` for every event of a kind, on the event loop; see ``client.events``."""
        if name not in events.EVENT_NAMES:
            raise ValueError(f'no event is called "{name}"; there are {", ".join(events.EVENT_NAMES)}')
        self._callbacks[name].append(callback)

    async def set_image(self, image: npt.ArrayLike) -> None:
        """Use a volume: 3-D, any real dtype, order or stride. Returns once the server has taken it on.

        The voxels travel in the background, so the array must not change. All segments are forgotten, and
        requests that are not done are cancelled. Raises BadImage or TooLarge; then there is no image.
        """
        source = await asyncio.to_thread(ImageSource.of, image)
        await self._ask(lambda: self._core.set_image(source))

    def segment(self, name: str) -> "AsyncSegment":
        """The segment of a name; it is made with its first prompt."""
        return AsyncSegment(self, name)

    @property
    def segments(self) -> list[str]:
        """The names of the segments there are."""
        return list(self._core.segments)

    def cancel(self) -> None:
        """Stop what runs and what waits; each of the requests ends with Cancelled."""
        self._core.cancel()
        self._to_write.set()

    async def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> None:
        """Change how the session predicts; None leaves as it is."""
        await self._ask(lambda: self._core.set_options(autozoom=autozoom, previews=previews))

    async def close(self) -> None:
        """End the session on the server, and the connection."""
        if self._failure is None:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                await asyncio.wait_for(self._say_bye(), FAREWELL_WITHIN_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._websocket.close()
        self._fail(ConnectionFailed("The session was closed."))

    async def __aenter__(self) -> "AsyncSession":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- inside -------------------------------------------------------------------------------------------

    async def _say_bye(self) -> None:
        self._core.bye()
        while (frame := self._core.next_control()) is not None:
            await self._websocket.send(frame)

    async def wait_open(self) -> Welcome:
        """Wait until the server has said welcome, which it does once its model is loaded."""
        return await asyncio.shield(self._opened)

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

    async def _write(self) -> None:
        try:
            while True:
                frame = await self._next_frame()
                await self._websocket.send(frame)
                self.bytes_sent += len(frame)
        except ConnectionClosed:
            pass  # the reader sees it too, with the reason
        except Exception as e:
            self._fail_unexpectedly(e)

    async def _next_frame(self) -> bytes:
        while True:
            self._to_write.clear()
            if (frame := self._core.next_control()) is not None:
                return frame
            if (make := self._core.next_brick()) is not None:
                return await asyncio.to_thread(make)
            await self._to_write.wait()

    async def _read(self) -> None:
        try:
            async for data in self._websocket:
                self.bytes_received += len(data)
                # A text message is an error of the server's; the core says so.
                for event in self._core.receive(data if isinstance(data, bytes) else data.encode()):
                    self._handle(event)
                self._to_write.set()
            self._fail(ConnectionFailed("The server closed the connection."))
        except ConnectionClosed as e:
            self._fail(ConnectionFailed(f"The connection to the server was lost ({e})."))
        except Error as e:
            self._fail(e)
        except Exception as e:
            self._fail_unexpectedly(e)

    def _handle(self, event: Event) -> None:
        if isinstance(event, events.Connection) and event.welcome is not None and not self._opened.done():
            self._opened.set_result(event.welcome)
        elif isinstance(event, events.Done):
            self._settle(event.result.request, event.result)
        elif isinstance(event, events.Failed):
            if event.request is not None:
                self._settle(event.request, event.error)
            else:
                self._fail(event.error)
        self._tell(event)

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

    def _fail_unexpectedly(self, error: Exception) -> None:
        _log.error("the client failed", exc_info=error)
        self._fail(Error(f"The client failed, and the session with it ({error!r}); the log has the details."))

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
    address: str, *, token: str | None = None, on: "dict[EventName, Callback] | None" = None
) -> AsyncSession:
    """Connect to a server and wait for its welcome, however long it takes to load its model.

    ``address``: see :func:`~nninteractive_ws.client.address.parse_address`. ``on``: callbacks from the start,
    for the notice that the model is loading for instance. Raises ConnectionFailed, Unauthorized, AtCapacity or
    UnsupportedVersion.
    """
    where = parse_address(address)
    try:
        websocket = await websocket_connect(
            where.url,
            additional_headers={"Authorization": f"Bearer {token}"} if token else None,
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            open_timeout=OPEN_WITHIN_S,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_WITHIN_S,
            close_timeout=FAREWELL_WITHIN_S,
            proxy=None if where.is_loopback else True,
        )
    except Exception as e:
        raise explain(e, where) from e
    session = AsyncSession(websocket, Core())
    try:
        for name, callback in (on or {}).items():
            session.on(name, callback)
        await session.wait_open()
    except BaseException:
        await session.close()
        raise
    return session
