"""The blocking API: the asyncio driver on its own thread, so that bricks travel while the caller computes."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from nninteractive_ws.client.aio import AsyncSegment, AsyncSession, Callback, aconnect
from nninteractive_ws.client.array_like import ArrayLike
from nninteractive_ws.client.dial import FAREWELL_TIMEOUT_S
from nninteractive_ws.client.dns import AddressList, resolve
from nninteractive_ws.client.events import EventName, Result
from nninteractive_ws.client.inputs import Boxlike
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.ownership import Owner
from nninteractive_ws.client.reconnect import RECONNECT_FOR_S
from nninteractive_ws.errors import ConnectionFailed
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import Welcome

if TYPE_CHECKING:
    from nninteractive_ws.client.notebook import View

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that can end during a DNS lookup, which takes long without a network."""

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> AddressList:
        return await asyncio.wrap_future(resolve(host, port, **hints))


class _IOThread:
    """An event loop on a thread, until ``stop``."""

    def __init__(self) -> None:
        self.owner = Owner()
        # Held while work is submitted, so that none is submitted after the loop was stopped.
        self._lock = threading.Lock()
        self._stopped = False
        running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=_run_loop, args=(_run_until_stopped(running),), name="nninteractive-ws I/O", daemon=True
        )
        self._thread.start()
        self._loop, self._stop = running.result()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop and wait. An interrupted wait (Ctrl-C) cancels it. Raises as ``submit``."""
        try:
            self.check_caller()
        except RuntimeError:
            work.close()
            raise
        future = self.submit(work)
        try:
            return future.result()
        except CancelledError as e:
            raise ConnectionFailed("The session was closed.") from e
        except BaseException:
            future.cancel()
            raise

    def check_caller(self) -> None:
        """Raise RuntimeError on the I/O thread."""
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a callback runs on the I/O thread, where a blocking call would wait for itself. Call it on another "
                "thread, for instance after the callback has set an event"
            )

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run ``work`` on the loop after everything submitted before, and return at once.

        Raises ConnectionFailed after the thread was stopped, and in a forked child, which has no such thread.
        """
        if not self.owner.is_this_process:
            work.close()
            self.owner.check()
        with self._lock:
            if self._stopped:
                work.close()
                raise ConnectionFailed("The session was closed.")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call ``function`` on the loop soon, or never if the thread was stopped. Raises in a forked child."""
        self.owner.check()
        with self._lock:
            if not self._stopped:
                self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """End the loop and the thread. Pending waits raise ConnectionFailed."""
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
    # An interrupted connect() is still closing its connection. Otherwise the server would take it for a live client.
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=FAREWELL_TIMEOUT_S)


class Session:
    """A session on a server, made by ``connect``.

    Close it with ``close``, or use it with ``with``. A session outlives lost connections: it connects again, and
    restores images, prompts and masks if the server no longer has them.

    Examples
    --------
    >>> with nni.connect("ws://127.0.0.1:1528") as session:
    ...     session.set_image(volume)
    ...     result = session.segment("liver").add_point((30, 40, 36))
    >>> result.segment
    'liver'
    """

    def __init__(self, thread: _IOThread, session: AsyncSession) -> None:
        self._thread, self._async = thread, session
        self._closed = False

    @property
    def server(self) -> Welcome:
        """The server's ``welcome``: model, license, device and limits. After a reconnection, those of now."""
        return self._async.server

    def on(self, name: EventName, callback: Callback) -> None:
        """Register a callback for every event of one kind.

        Parameters
        ----------
        name : str
            Kind of event: ``connection``, ``image_progress``, ``progress``, ``mask_delta``, ``done``, ``error`` or
            ``notice``. See ``events``.
        callback : callable
            Called with the event, on the I/O thread. It must return soon, and must not call blocking methods of this
            session.

        Raises
        ------
        ValueError
            If no event has this name.
        """
        self._async.on(name, callback)

    def set_image(self, image: ArrayLike, journal: Journal | None = None) -> None:
        """Use a volume, and return once the server has accepted it.

        The voxels travel in the background, so the array must not change. All segments are removed, and pending
        requests are cancelled.

        Parameters
        ----------
        image : array_like
            3-D array of real numbers, of any dtype, memory order or stride. Its axes are the (i, j, k) of all prompts
            and masks. An image of SimpleITK, nibabel or ITK has the (i, j, k) of its own indices. A tensor of torch, on
            any device, and any object with ``__array__`` or ``__dlpack__`` keep their axes.
        journal : Journal, optional
            Restores the segments of an earlier session on the same image; see ``save``.

        Raises
        ------
        BadImage
            If the image is no volume, has voxels that are masked or not finite, is constant, loses its differences in
            float32, or is not the journal's image.
        TooLarge
            If the image is over the server's limits.
        OutOfMemory
            If the server has no memory for the image. There is no image then.
        ConnectionFailed
            If the session was closed or lost.

        Examples
        --------
        >>> session.set_image(volume)
        """
        self._thread.wait(self._async.set_image(image, journal))

    def save(self, path: str | Path) -> None:
        """Write the journal, to continue another day: prompts and masks, but not the image.

        Requests without an answer are left out. Works without a connection. Read the file with ``load``.

        Parameters
        ----------
        path : str or Path
            File to write, completely or not at all. Readable by the user alone.

        Raises
        ------
        NoImage
            If there is no image.
        OSError
            If the file cannot be written.
        """
        self._thread.wait(self._async.save(path))

    def segment(self, name: str) -> "Segment":
        """Return the segment of a name. Its first prompt creates it.

        Parameters
        ----------
        name : str
            1 to 256 characters.

        Returns
        -------
        Segment
            A view of the segment. Two calls with one name return views of the same segment.
        """
        return Segment(self._thread, self._async.segment(name))

    @property
    def segments(self) -> list[str]:
        """The names of the segments."""
        return self._async.segments

    def view(self, affine: ArrayLike | None = None) -> "View":
        """Show the image and its segments in a notebook, and prompt with the mouse.

        Needs the extra ``notebook``. Segments changed by code appear in all views of the session.

        Parameters
        ----------
        affine : array_like, optional
            4 by 4 matrix from voxels (i, j, k) to millimeters, to the patient's right, front and top (RAS). An image of
            nibabel has it as ``affine``. By default voxels are cubes of 1 mm, and the axes point to the right, the
            front and the top.

        Returns
        -------
        View
            The view, which a cell shows as its last line.

        Raises
        ------
        NoImage
            If there is no image.
        ValueError
            If the affine is no such matrix.
        ModuleNotFoundError
            If the extra is not installed.
        """
        try:
            from nninteractive_ws.client.notebook import View
        except ModuleNotFoundError as e:
            raise ModuleNotFoundError(
                f"view needs the package {e.name}. Install it with: pip install 'nninteractive-ws[notebook]'",
                name=e.name,
            ) from e
        return View(self._async, self._thread.submit, affine)

    @property
    def bytes_sent(self) -> int:
        """Bytes of all messages to the server."""
        return self._async.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of all messages from the server."""
        return self._async.bytes_received

    def cancel(self) -> None:
        """Cancel all pending requests, from any thread. Each of them raises Cancelled."""
        self._thread.call(self._async.cancel)

    def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> None:
        """Change how the session predicts.

        Parameters
        ----------
        autozoom : bool, optional
            Whether the network zooms out for objects larger than its patch. On at first. None leaves it as it is.
        previews : bool, optional
            Whether masks are sent while they are computed. On at first. None leaves it as it is.

        Raises
        ------
        ConnectionFailed
            If the session was closed or lost.
        """
        self._thread.wait(self._async.set_options(autozoom=autozoom, previews=previews))

    def close(self) -> None:
        """End the session on the server, the connection and the thread.

        A second call does nothing, and neither does a call in a forked child of the session's process. A callback
        must not call it.
        """
        if not self._closed and self._thread.owner.is_this_process:
            self._thread.check_caller()
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
    """A segment of a ``Session``: its prompts and its mask.

    All positions are array indices (i, j, k) of the image. Every prompt waits for its result, and raises the errors
    below and, like all requests, ConnectionFailed, OutOfMemory, WorkerLost and InternalError.

    Examples
    --------
    >>> spleen = session.segment("spleen")
    >>> result = spleen.add_point((30, 40, 36))
    >>> spleen.mask.shape == volume.shape
    True
    """

    def __init__(self, thread: _IOThread, segment: AsyncSegment) -> None:
        self._thread, self._async = thread, segment

    @property
    def name(self) -> str:
        """The segment's name."""
        return self._async.name

    @property
    def mask(self) -> Mask:
        """Read-only bool array of the image's shape, updated in place, previews included. Raises NoImage.

        ``copy()`` it to keep or to change it. ``set_mask`` replaces the segment's mask.
        """
        return self._async.mask

    @property
    def voxels(self) -> int:
        """Number of voxels in the mask. Raises NoImage."""
        return self._async.voxels

    @property
    def can_undo(self) -> int:
        """Number of steps that can be undone. Raises NoImage."""
        return self._async.can_undo

    @property
    def can_redo(self) -> int:
        """Number of steps that can be redone. Raises NoImage."""
        return self._async.can_redo

    def add_point(self, point: Sequence[float], *, positive: bool = True, run: bool = True) -> Result:
        """Add a point.

        Parameters
        ----------
        point : sequence of 3 float
            Voxel (i, j, k). Fractions are rounded to the nearest voxel.
        positive : bool, default True
            True: the voxel belongs to the object. False: it does not.
        run : bool, default True
            Predict now. False: the prompt waits for ``run`` or for the next prompt that runs.

        Returns
        -------
        Result
            The change of the mask, and timings.

        Raises
        ------
        NoImage
            If there is no image.
        OutOfBounds
            If the point is outside of the image.
        UnsupportedPrompt
            If the model was not trained for points.
        Cancelled
            If the request was cancelled. The mask is as before.

        Examples
        --------
        >>> session.segment("liver").add_point((20, 30, 36), positive=False).voxels >= 0
        True
        """
        return self._thread.wait(self._async.add_point(point, positive=positive, run=run))

    def add_bbox(self, box: Boxlike, *, positive: bool = True, run: bool = True) -> Result:
        """Add a bounding box.

        Parameters
        ----------
        box : Box or nested sequence of int
            End-exclusive voxel ranges ((i0, i1), (j0, j1), (k0, k1)). Models trained on 2-D boxes do best with a box
            that is one voxel thick along one axis.
        positive, run
            As for ``add_point``.

        Returns
        -------
        Result
            The change of the mask, and timings.

        Raises
        ------
        NoImage, OutOfBounds, UnsupportedPrompt, Cancelled
            As for ``add_point``. OutOfBounds also for an empty box.

        Examples
        --------
        >>> box = ((20, 40), (30, 50), (36, 37))
        >>> session.segment("boxed").add_bbox(box).segment
        'boxed'
        """
        return self._thread.wait(self._async.add_bbox(box, positive=positive, run=run))

    def add_scribble(
        self, mask: ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """Add a scribble: strokes through the object.

        Parameters
        ----------
        mask : array_like
            Voxels of the strokes, of the image's shape, or of the shape of ``box``. See ``set_mask`` for the types.
            Only the part around the strokes travels. Strokes are best as thick as
            ``session.server.model.scribble_thickness``, in voxels.
        box : Box or nested sequence of int, optional
            End-exclusive box of the image that ``mask`` covers.
        positive, run
            As for ``add_point``.

        Returns
        -------
        Result
            The change of the mask, and timings.

        Raises
        ------
        NoImage, OutOfBounds, UnsupportedPrompt, Cancelled
            As for ``add_point``. OutOfBounds also for a mask of another shape. UnsupportedPrompt also for a mask
            without a voxel.
        BadMask
            If the mask has other values, such as probabilities.

        Examples
        --------
        >>> stroke = np.ones((20, 1, 1), bool)
        >>> session.segment("drawn").add_scribble(stroke, box=((20, 40), (40, 41), (36, 37))).segment
        'drawn'
        """
        return self._thread.wait(self._async.add_scribble(mask, box=box, positive=positive, run=run))

    def add_lasso(
        self, mask: ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> Result:
        """Add a lasso: a filled outline in one slice.

        Parameters
        ----------
        mask : array_like
            Voxels on and inside of the outline, of the image's shape, or of the shape of ``box``. See ``set_mask`` for
            the types.
        box : Box or nested sequence of int, optional
            End-exclusive box of the image that ``mask`` covers.
        positive, run
            As for ``add_point``.

        Returns
        -------
        Result
            The change of the mask, and timings.

        Raises
        ------
        NoImage, OutOfBounds, BadMask, UnsupportedPrompt, Cancelled
            As for ``add_scribble``.
        """
        return self._thread.wait(self._async.add_lasso(mask, box=box, positive=positive, run=run))

    def set_mask(self, mask: ArrayLike, *, box: Boxlike | None = None, run: bool = False) -> Result:
        """Replace the mask. Earlier prompts no longer count.

        Parameters
        ----------
        mask : array_like
            The object's voxels, of the image's shape, or of the shape of ``box``: bool, nonnegative integers (any
            nonzero value is set), or floats that are 0 or 1. It may be an array, image or tensor as in
            ``Session.set_image``.
        box : Box or nested sequence of int, optional
            End-exclusive box of the image that ``mask`` covers. The mask is empty outside of it.
        run : bool, default False
            Refine the mask with the network now.

        Returns
        -------
        Result
            The change of the mask, and timings.

        Raises
        ------
        NoImage
            If there is no image.
        OutOfBounds
            If the mask has another shape, or the box is outside of the image.
        BadMask
            If the mask has other values, such as probabilities. Pass a comparison then, such as ``mask > 0.5``.
        UnsupportedPrompt
            If the model cannot start from a mask.

        Examples
        --------
        >>> session.segment("copy").set_mask(session.segment("drawn").mask).segment
        'copy'
        """
        return self._thread.wait(self._async.set_mask(mask, box=box, run=run))

    def run(self) -> Result:
        """Predict from the prompts that were added with ``run=False``.

        Returns
        -------
        Result
            The change of the mask, and timings.

        Raises
        ------
        UnknownSegment
            If the segment does not exist.
        """
        return self._thread.wait(self._async.run())

    def undo(self) -> Result:
        """Undo the last step: a prompt, a set mask or a reset.

        Returns
        -------
        Result
            The change of the mask.

        Raises
        ------
        NothingToUndo
            If no step is left.
        UnknownSegment
            If the segment does not exist.

        Examples
        --------
        >>> copy = session.segment("copy")
        >>> copy.undo().voxels, copy.can_redo
        (0, 1)
        """
        return self._thread.wait(self._async.undo())

    def redo(self) -> Result:
        """Redo the step that was undone last.

        Returns
        -------
        Result
            The change of the mask.

        Raises
        ------
        NothingToUndo
            If no undone step is left.
        UnknownSegment
            If the segment does not exist.
        """
        return self._thread.wait(self._async.redo())

    def reset(self) -> Result:
        """Empty the mask and forget the prompts. This can be undone.

        Returns
        -------
        Result
            The change of the mask.

        Raises
        ------
        UnknownSegment
            If the segment does not exist.
        """
        return self._thread.wait(self._async.reset())

    def remove(self) -> Result:
        """Remove the segment with its history. This cannot be undone.

        Returns
        -------
        Result
            Without a change.

        Raises
        ------
        UnknownSegment
            If the segment does not exist.
        """
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
    """Connect to a server, and wait until it is ready. Loading its model can take a minute.

    Parameters
    ----------
    address : str
        ``host``, ``host:port``, ``ws://``, ``wss://``, ``http://``, ``https://`` or ``ssh://user@host``.
    token : str, optional
        Token for a server that has a token file.
    ca : str or Path, optional
        PEM file of certificates to trust for ``wss://``, instead of the system's.
    start : str, optional
        Command that starts a server on the host of ``ssh://`` if none runs there, such as
        ``nninteractive-ws serve``. The server ends with the session.
    reconnect_for : float, default 300
        Seconds for which a lost connection is tried again. 0: not at all. ``math.inf``: forever.
    on : dict of str to callable, optional
        Callbacks by event name, as for ``Session.on``, registered before the connection is made.

    Returns
    -------
    Session
        The session. Close it after use.

    Raises
    ------
    ConnectionFailed
        If the server cannot be reached. Its kinds are BadAddress (the address names no server) and Untrusted (the
        certificate does not prove the server's identity).
    Unauthorized
        If the server needs a token, or refuses this one.
    AtCapacity
        If all sessions of the server are in use.
    UnsupportedVersion
        If client and server speak different versions of the protocol.

    Examples
    --------
    >>> session = nni.connect("ws://127.0.0.1:1528")
    >>> session.server.model.name
    'demo'
    >>> session.close()
    """
    thread = _IOThread()
    try:
        opening = aconnect(address, token=token, ca=ca, start=start, reconnect_for=reconnect_for, on=on)
        return Session(thread, thread.wait(opening))
    except BaseException:
        thread.stop()
        raise
