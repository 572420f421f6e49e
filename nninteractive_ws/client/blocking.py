"""The blocking API: the asyncio driver on one thread of its own, so that bricks travel while the caller computes."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
import threading
from types import TracebackType
from typing import Any, TypeVar

import numpy.typing as npt

from nninteractive_ws.client.address import Found, look_up
from nninteractive_ws.client.aio import AsyncSegment, AsyncSession, Callback, aconnect
from nninteractive_ws.client.events import EventName, Result
from nninteractive_ws.client.given import Boxlike
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.reconnect import RECONNECT_FOR_S
from nninteractive_ws.errors import ConnectionFailed
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import Welcome

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose end need not wait for a name that is being looked up, which without a network takes long."""

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Found:
        return await asyncio.wrap_future(look_up(host, port, **hints))


class _IOThread:
    """An event loop on a thread, until :meth:`stop`."""

    def __init__(self) -> None:
        # Held while work is handed over, so that none is after the loop was told to stop.
        self._lock = threading.Lock()
        self._stopped = False
        running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=_run_loop, args=(_run_until_stopped(running),), name="nninteractive-ws I/O", daemon=True
        )
        self._thread.start()
        self._loop, self._stop = running.result()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop and wait; an interrupted wait (Ctrl-C) cancels it there.

        Raises ConnectionFailed once the thread was stopped.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a callback runs on the I/O thread, where a blocking call would wait for itself")
        with self._lock:
            if self._stopped:
                work.close()
                raise ConnectionFailed("The session was closed.")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError as e:
            raise ConnectionFailed("The session was closed.") from e
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function`` on the loop, soon; not any more once the thread was stopped."""
        with self._lock:
            if not self._stopped:
                self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """End the loop and the thread; what is still waited for ends with ConnectionFailed."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


def _run_loop(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(work)


async def _run_until_stopped(running: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]") -> None:
    stop = asyncio.Event()
    running.set_result((asyncio.get_running_loop(), stop))
    await stop.wait()


class Session:
    """A session on a server. Made by :func:`connect`; close it, or use it with ``with``."""

    def __init__(self, thread: _IOThread, session: AsyncSession) -> None:
        self._thread, self._async = thread, session
        self._closed = False

    @property
    def server(self) -> Welcome:
        """What the server is: model, licence, device, limits."""
        return self._async.server

    def on(self, name: EventName, callback: Callback) -> None:
        """Call ``callback(event)`` for every event of a kind, on the I/O thread; see ``client.events``.

        A callback must return soon, and must not call this session's blocking methods.
        """
        self._async.on(name, callback)

    def set_image(self, image: npt.ArrayLike, journal: Journal | None = None) -> None:
        """Use a volume: 3-D, any real dtype, order or stride. Returns once the server has taken it on.

        The voxels travel in the background, so the array must not change. All segments are forgotten, and
        requests that are not done are cancelled. ``journal``: brings back the segments that :meth:`save` kept.
        Raises BadImage, also where the journal is of another image, TooLarge or OutOfMemory; then there is no image.
        """
        self._thread.wait(self._async.set_image(image, journal))

    def save(self, path: str | Path) -> None:
        """Write prompts and masks to a file, but not the image, to go on another day: see :func:`load`.

        Requests that are not done are not in it. Works without a connection too. Raises NoImage or OSError.
        """
        self._thread.wait(self._async.save(path))

    def segment(self, name: str) -> "Segment":
        """The segment of a name; it is made with its first prompt."""
        return Segment(self._thread, self._async.segment(name))

    @property
    def segments(self) -> list[str]:
        """The names of the segments there are."""
        return self._async.segments

    @property
    def bytes_sent(self) -> int:
        """Bytes of the messages to the server so far."""
        return self._async.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of the messages from the server so far."""
        return self._async.bytes_received

    def cancel(self) -> None:
        """Stop what runs and what waits, from any thread; each of the requests ends with Cancelled."""
        self._thread.call(self._async.cancel)

    def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> None:
        """Change how the session predicts; None leaves as it is."""
        self._thread.wait(self._async.set_options(autozoom=autozoom, previews=previews))

    def close(self) -> None:
        """End the session on the server, the connection and the thread. Closing twice does nothing more."""
        if not self._closed:
            self._closed = True
            try:
                self._thread.wait(self._async.close())
            finally:
                self._thread.stop()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Segment:
    """A segment of a session: its prompts and its mask. All positions are array indices."""

    def __init__(self, thread: _IOThread, segment: AsyncSegment) -> None:
        self._thread, self._async = thread, segment

    @property
    def name(self) -> str:
        return self._async.name

    @property
    def mask(self) -> Mask:
        """bool, the volume's shape, kept up to date in place, previews included."""
        return self._async.mask

    @property
    def voxels(self) -> int:
        """How many voxels the mask has."""
        return self._async.voxels

    @property
    def can_undo(self) -> int:
        """How many steps can be undone."""
        return self._async.can_undo

    @property
    def can_redo(self) -> int:
        """How many steps can be redone."""
        return self._async.can_redo

    def add_point(self, point: Sequence[float], *, positive: bool = True, run: bool = True) -> Result:
        """A click on the voxel (i, j, k); floats are rounded. Raises NoImage, OutOfBounds or UnsupportedPrompt.

        ``run`` false: the prompt waits for :meth:`run` or for a prompt that runs.
        """
        return self._thread.wait(self._async.add_point(point, positive=positive, run=run))

    def add_bbox(self, box: Boxlike, *, positive: bool = True, run: bool = True) -> Result:
        """A half-open box ((i0, i1), (j0, j1), (k0, k1)), best one voxel thick on one axis. Raises as a point."""
        return self._thread.wait(self._async.add_bbox(box, positive=positive, run=run))

    def add_scribble(
        self, mask: npt.ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """Strokes: a mask of the volume's shape, or of ``box``'s; only the part around them travels."""
        return self._thread.wait(self._async.add_scribble(mask, box=box, positive=positive, run=run))

    def add_lasso(
        self, mask: npt.ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """A filled outline in a slice: a mask of the volume's shape, or of ``box``'s."""
        return self._thread.wait(self._async.add_lasso(mask, box=box, positive=positive, run=run))

    def set_mask(self, mask: npt.ArrayLike, *, box: Boxlike | None = None, run: bool = False) -> Result:
        """Start from a mask: of the volume's shape, or of ``box``'s and empty outside. Earlier prompts no longer
        count. ``run``: refine it at once."""
        return self._thread.wait(self._async.set_mask(mask, box=box, run=run))

    def run(self) -> Result:
        """Predict from the prompts that were added with ``run`` false."""
        return self._thread.wait(self._async.run())

    def undo(self) -> Result:
        """Take back the last step, as often as there are steps. Raises NothingToUndo."""
        return self._thread.wait(self._async.undo())

    def redo(self) -> Result:
        """Do again what was taken back. Raises NothingToUndo."""
        return self._thread.wait(self._async.redo())

    def reset(self) -> Result:
        """Empty the segment and forget its prompts; it can be undone."""
        return self._thread.wait(self._async.reset())

    def remove(self) -> Result:
        """Forget the segment with its history."""
        return self._thread.wait(self._async.remove())


def connect(
    address: str,
    *,
    token: str | None = None,
    ca: str | Path | None = None,
    start: str | None = None,
    reconnect_for: float = RECONNECT_FOR_S,
    on: "dict[EventName, Callback] | None" = None,
) -> Session:
    """Connect to a server and wait for its welcome, however long it takes to load its model.

    ``address``: ``host``, ``host:port``, ``ws://``, ``wss://``, ``http://``, ``https://`` or ``ssh://user@host``.
    ``ca``: a PEM file of certificates to trust instead of the system's, for ``wss://``. ``start``: for ``ssh://``, the
    command that starts a server over there where none answers, such as ``nninteractive-ws serve``; it ends with the
    session. ``reconnect_for``: seconds for which a connection that is lost later is tried again before the session
    is given up; 0: not at all, ``math.inf``: for ever. ``on``: callbacks from the start, for the notice that the
    model is loading for instance.

    Raises ConnectionFailed (of its kinds, BadAddress and Untrusted), Unauthorized, AtCapacity or
    UnsupportedVersion.
    """
    thread = _IOThread()
    try:
        opening = aconnect(address, token=token, ca=ca, start=start, reconnect_for=reconnect_for, on=on)
        return Session(thread, thread.wait(opening))
    except BaseException:
        thread.stop()
        raise
