"""The polled driver: no thread and no event loop; a timer calls ``PolledSession.poll`` again and again.

It is made for programs whose main thread must not block and in which other threads starve, such as 3D Slicer. Every
call ends soon after its budget: it packs one message of bricks, or handles one message, at a time.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
import logging
from pathlib import Path
import ssl
import time

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from nninteractive_ws import protocol
from nninteractive_ws.client import events
from nninteractive_ws.client.address import Address, parse_address
from nninteractive_ws.client.array_like import ArrayLike
from nninteractive_ws.client.connection_errors import connection_error
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dns import run_in_thread
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.inputs import Boxlike
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.reconnect import (
    OPEN_TIMEOUT_S,
    RECONNECT_FOR_S,
    KeepaliveMonitor,
    Retries,
    close_error,
    websocket_log,
)
from nninteractive_ws.client.stream import Stream
from nninteractive_ws.client.tls import ssl_context
from nninteractive_ws.client.tokens import checked_token
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.errors import ConnectionFailed, Error, TooLarge
from nninteractive_ws.history import Segment
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import Welcome

_log = logging.getLogger(__name__)

#: A frame of Slicer's window at 60 Hz lasts 16 ms; half of it is left to everything else.
BUDGET_S = 0.008
_CHUNK_BYTES = 64 * 1024
#: Limit of fragments of a message, as in websockets' own drivers. An empty fragment takes memory, too, but the size
#: limit of messages does not count it.
_MAX_FRAGMENTS = 4096
#: Limit of unsent messages, pings and pongs. It is exceeded only by a server that sends pings and reads no pongs.
_MAX_UNSENT = 4096
#: Chunks to read before closing: with unread data, the operating system would send a reset instead of a close.
_MAX_UNREAD_CHUNKS = 64


class _Connection:
    """A WebSocket that works in small steps. Raises OSError or WebSocketException."""

    def __init__(
        self, address: Address, token: str | None, ssl_context: ssl.SSLContext | None, clock: Callable[[], float]
    ) -> None:
        self.opened = False
        #: Reason, if the server has closed the connection.
        self.ended: Error | None = None
        #: Seconds from the last ping to its pong.
        self.round_trip: float | None = None
        self._clock = clock
        self._stream = Stream(address, ssl_context, clock)
        self._open_by = clock() + OPEN_TIMEOUT_S
        self._keepalive = KeepaliveMonitor(clock)
        self._websocket = ClientProtocol(
            parse_uri(address.url), max_size=protocol.MAX_MESSAGE_BYTES, logger=websocket_log
        )
        self._pinged_at = 0.0
        self._unsent: deque[memoryview] = deque()
        self._full = False  # whether the operating system accepted less than all data
        self._fragments: list[bytes] = []
        request = self._websocket.connect()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        self._websocket.send_request(request)

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def accepted(self) -> bool:
        """Whether a program has accepted the TCP connection."""
        return self._stream.accepted

    @property
    def takes_more(self) -> bool:
        """Whether the operating system has accepted all data, so that the next message need not wait."""
        return self._websocket.state is State.OPEN and not self._unsent

    def advance(self) -> bool:
        """Do the next step of connecting, until ``ready``. Return whether there was one."""
        self._check_time()
        progress = self._stream.advance()
        if self._stream.ready:
            self._queue_bytes()
        return progress

    @property
    def ready(self) -> bool:
        return self._stream.ready

    def receive(self) -> list[bytes] | None:
        """Return the messages that the next bytes complete, or None if there are no bytes."""
        data = self._stream.receive(_CHUNK_BYTES)
        if data is None:
            self._check_time()
            return None
        self._keepalive.heard()
        if data:
            self._websocket.receive_data(data)
        else:
            self._websocket.receive_eof()
        messages = [message for item in self._websocket.events_received() for message in self._handle(item)]
        if self._websocket.handshake_exc is not None:
            raise self._websocket.handshake_exc
        self._queue_bytes()
        if len(self._unsent) > _MAX_UNSENT:
            raise ConnectionFailed("The server sends pings without reading the pongs. The connection was closed.")
        if not data or (self.opened and self._websocket.state is not State.OPEN):
            self.ended = close_error(self._websocket.close_rcvd, self._websocket.close_sent)
        return messages

    def _handle(self, item: object) -> Iterator[bytes]:
        if isinstance(item, Response):
            self.opened = self._websocket.handshake_exc is None
        elif isinstance(item, Frame) and item.opcode is Opcode.PONG:
            self.round_trip = self._clock() - self._pinged_at
        # A text message is an error of the server; the core raises it.
        elif isinstance(item, Frame) and item.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
            if len(self._fragments) >= _MAX_FRAGMENTS:
                raise TooLarge(f"The server sent a message in more than {_MAX_FRAGMENTS:,} fragments.")
            self._fragments.append(bytes(item.data))
            if item.fin:
                yield b"".join(self._fragments)
                self._fragments.clear()

    def _check_time(self) -> None:
        """Raise TimeoutError if connecting takes too long, ConnectionFailed if the server stays silent."""
        if not self.opened:
            if self._clock() > self._open_by:
                raise TimeoutError
        elif self._keepalive.should_ping():
            self.ping()

    def ping(self) -> None:
        """Send a ping, and measure the round trip."""
        self._pinged_at = self._clock()
        self._websocket.send_ping(b"")
        self._queue_bytes()

    def send(self, message: bytes) -> None:
        self._websocket.send_binary(message)
        self._queue_bytes()

    def flush(self) -> bool:
        """Write as much as the operating system accepts. Return whether it accepted anything."""
        was_full, written = self._full, False
        while self._unsent:
            n = self._stream.send(self._unsent[0][:_CHUNK_BYTES])
            if n == 0:
                break
            written = True
            self._unsent[0] = self._unsent[0][n:]
            if not self._unsent[0]:
                self._unsent.popleft()
        self._full = bool(self._unsent)
        if was_full and written:
            self._keepalive.heard()
        return written

    def close(self, farewell: list[bytes]) -> None:
        """End it; what can be sent at once is."""
        try:
            if self._websocket.state is State.OPEN:
                for message in farewell:
                    self._websocket.send_binary(message)
                self._websocket.send_close()
                self._queue_bytes()
            if self.ready:
                self.flush()
                for _ in range(_MAX_UNREAD_CHUNKS):
                    if not self._stream.receive(_CHUNK_BYTES):
                        break
        except OSError:
            pass  # already lost
        finally:
            self._stream.close()

    def _queue_bytes(self) -> None:
        self._unsent.extend(memoryview(part) for part in self._websocket.data_to_send() if part)


class PolledSession:
    """A session without threads: commands return at once, ``poll`` does the work and returns events.

    The first events are notices and ``Connection("open")``. The last is ``Connection("closed")``, after
    ``Failed(None, error)`` unless ``close`` was called. Commands may be given at any time, also before the
    connection is open. Unlike ``connect``, it uses no proxy: reach a server behind a proxy by ``ssh://``.

    Parameters
    ----------
    address, token, ca, reconnect_for
        As for ``connect``.
    ssh_environment : mapping, optional
        Environment variables of ssh, if those of this program would not suit it. An application that brings its own
        libraries passes those that it was started with.
    clock : callable
        Returns seconds. For tests.

    Raises
    ------
    BadAddress
        If the address names no server.
    Untrusted
        If ``ca`` cannot be used.
    Unauthorized
        If ``token`` has characters that cannot be sent. All other errors come as events.

    Examples
    --------
    >>> session = nni.PolledSession("ws://127.0.0.1:1528")
    >>> session.set_image(volume)
    >>> done = []
    >>> while not done:
    ...     for event in session.poll():
    ...         if event.name == "image_progress" and not session.pending_requests:
    ...             number = session.segment("liver").add_point((30, 40, 36))
    ...         elif event.name == "done" and event.result.segment == "liver":
    ...             done.append(event.result.request == number)
    >>> done
    [True]
    >>> session.close()
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        reconnect_for: float = RECONNECT_FOR_S,
        ssh_environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = Core(clock=clock)
        self.closed = False
        self._clock = clock
        self._address, self._token = parse_address(address), checked_token(token)
        self._ssl_context = _load_ssl_context(self._address, ca)
        self._retries = Retries(reconnect_for, clock)
        self._preparing: ImageSource | None = None
        self._journal: Journal | None = None  # of the image in preparation
        self._events: list[Event] = []
        self._tunnel = None if self._address.ssh is None else Tunnel(self._address.ssh, ssh_environment)
        self._connection: _Connection | None = None
        self._retry_at: float | None = clock()  # None: connect for the next request
        self._requests_before = 0  # number of requests when the connection was lost

    # ---- public -------------------------------------------------------------------------------------------

    def set_image(self, image: ArrayLike, journal: Journal | None = None) -> None:
        """Use a volume. Polling computes its statistics block by block, and then announces it.

        Parameters
        ----------
        image : array_like
            3-D array of real numbers, image or tensor; see ``Session.set_image``.
        journal : Journal, optional
            Restores the segments of an earlier session on the same image.

        Raises
        ------
        BadImage, TooLarge
            For its type, shape and dtype. ``poll`` raises them for its voxels, and for a journal of another image.
        """
        self._core.owner.check()
        self._preparing, self._journal = ImageSource(image), journal

    @property
    def server(self) -> Welcome | None:
        """The server: its model, license, device and limits. None while there is no connection."""
        return self._core.welcome

    @property
    def image(self) -> ImageSource | None:
        """The volume in use. None before it is announced, and after it was refused."""
        return self._core.image

    def segment(self, name: str) -> "PolledSegment":
        """Return the segment of a name. Its first prompt creates it. See ``Session.segment``."""
        return PolledSegment(self._core, name)

    @property
    def segments(self) -> list[str]:
        """The names of the segments."""
        return self._core.segment_names

    @property
    def histories(self) -> Mapping[str, Segment]:
        """The steps and the mask of each segment; read only."""
        return self._core.segments

    def journal(self) -> Journal:
        """Return prompts and masks, to continue another day. Requests without an answer are left out.

        Returns
        -------
        Journal
            For ``set_image`` with the same image.

        Raises
        ------
        NoImage
            If there is no image.
        """
        return self._core.journal()

    def save(self, path: str | Path) -> None:
        """Write the journal to a file. See ``Session.save``."""
        self._core.journal().save(path)

    def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> int:
        """Change how the session predicts. Return the request's number. See ``Session.set_options``."""
        return self._core.set_options(autozoom=autozoom, previews=previews)

    def cancel(self, request: int | None = None) -> None:
        """Cancel requests. Each is answered by a ``done`` or an ``error`` event.

        Parameters
        ----------
        request : int, optional
            Number of the request. None: all requests.
        """
        self._core.cancel(request)

    @property
    def pending_requests(self) -> list[int]:
        """The numbers of the requests without an answer."""
        return self._core.pending_requests

    @property
    def is_dormant(self) -> bool:
        """Whether the session was evicted and connects again with the next request."""
        return self._core.is_dormant

    def poll(self, budget_s: float = BUDGET_S) -> list[Event]:
        """Work for about ``budget_s`` seconds.

        Parameters
        ----------
        budget_s : float, default 0.008
            Seconds. Less if there is nothing to do.

        Returns
        -------
        list of event
            What happened, in order; see ``events``.

        Raises
        ------
        BadImage, TooLarge
            If the image of ``set_image`` cannot be used.
        ConnectionFailed
            In a forked child of the process that made the session.
        """
        if not self.closed:
            self._core.owner.check()
        until = self._clock() + budget_s
        while not self.closed and self._step() and self._clock() < until:
            pass
        emitted, self._events = self._events, []
        return emitted

    def fileno(self) -> int:
        """Return the socket's descriptor, for a notifier.

        Returns
        -------
        int
            It changes with each reconnection. -1 if there is none.
        """
        return -1 if self._connection is None else self._connection.fileno()

    @property
    def round_trip(self) -> float | None:
        """Seconds from the last ping to its pong, or None. It includes the time until the next call of ``poll``."""
        return None if self._connection is None else self._connection.round_trip

    def close(self) -> None:
        """End the session and the connection. ``bye`` is sent if the socket accepts it at once.

        In a forked child of the session's process, only its copy is marked as closed.
        """
        if self.closed or not self._core.owner.is_this_process:
            self.closed = True
            return
        farewell: list[bytes] = []
        if self._connection is not None and self._connection.opened:
            self._core.bye()
            while (frame := self._core.next_control()) is not None:
                farewell.append(frame)
        self._disconnect(farewell)
        self._end(ConnectionFailed("The session was closed."))

    # ---- steps: each returns whether there may be more to do -----------------------------------------------

    def _step(self) -> bool:
        progress = self._step_image()
        try:
            return self._step_connection() or progress
        except Error as e:
            self._on_lost(e)
        except (OSError, UnicodeError, WebSocketException) as e:
            opened = self._connection is not None and self._connection.opened
            self._on_lost(close_error(None, None, e) if opened else self._explain(e))
        except Exception as e:
            _log.exception("the client failed")
            self._on_lost(Error(f"The client failed, and the session with it ({e!r}); the log has the details."))
        return True

    def _explain(self, error: Exception) -> Error:
        accepted = self._connection is not None and self._connection.accepted
        explained = connection_error(error, self._address, self._token, accepted=accepted)
        if self._tunnel is None or type(explained) is not ConnectionFailed:
            return explained
        return self._tunnel.connection_error(explained)

    def _step_image(self) -> bool:
        if self._preparing is None:
            return False
        source, self._preparing = self._preparing, None  # discarded if step() raises
        if source.step():
            self._preparing = source
        else:
            journal, self._journal = self._journal, None
            self._core.set_image(source, journal)
        return True

    def _step_connection(self) -> bool:
        """Raises the Error that ends the connection."""
        if self._connection is None:
            return self._connect_when_due()
        if not self._connection.ready:
            return self._connection.advance()
        return self._exchange(self._connection)

    def _connect_when_due(self) -> bool:
        if self._retry_at is None:
            if self._core.is_dormant:
                return False
            self._retries.woken()
        elif self._clock() < self._retry_at and self._core.request_count == self._requests_before:
            return False
        if not self._ssl_context.done() or (self._tunnel is not None and not self._tunnel.ready()):
            return False
        where = self._address if self._tunnel is None else self._tunnel.local
        self._connection = _Connection(where, self._token, self._ssl_context.result(), self._clock)
        return True

    def _exchange(self, connection: _Connection) -> bool:
        was_open = connection.opened
        messages = connection.receive()
        if connection.opened and not was_open:
            connection.ping()
            self._core.start()
        for message in messages or []:
            self._handle(message)
        if connection.ended is not None:
            raise connection.ended
        progress = messages is not None
        if connection.takes_more and (frame := self._next_frame()) is not None:
            connection.send(frame)
            progress = True
        return connection.flush() or progress

    def _next_frame(self) -> bytes | None:
        frame = self._core.next_control()
        if frame is None and (make := self._core.next_brick()) is not None:
            frame = make()
        return frame

    def _handle(self, message: bytes) -> None:
        """Raises the Error that ends the connection."""
        for event in self._core.receive(message):
            if isinstance(event, events.Connection):
                self._retries.opened()
            self._events.append(event)
        if self._core.ended is not None:
            raise self._core.ended

    # ---- the end of a connection, and of the session --------------------------------------------------------

    def _on_lost(self, error: Error) -> None:
        self._disconnect([])
        delay = self._retries.delay_after(error)
        if delay is None:
            self._events.append(events.Failed(None, error))
            self._end(error)
            return
        retry_in = None if self._core.is_dormant else delay
        self._retry_at = None if retry_in is None else self._clock() + delay
        self._requests_before = self._core.request_count
        self._events.append(events.Connection("lost", reason=str(error), retry_in=retry_in))

    def _disconnect(self, farewell: list[bytes]) -> None:
        if self._connection is not None:
            self._connection.close(farewell)
            self._connection = None

    def _end(self, error: Error) -> None:
        self.closed = True
        if self._tunnel is not None:
            self._tunnel.close()
        self._events.append(events.Connection("closed", reason=str(error)))


class PolledSegment:
    """A segment of a ``PolledSession``: its prompts and its mask. All positions are array indices.

    Every command returns the request's number, under which events report it.
    """

    def __init__(self, core: Core, name: str) -> None:
        self._core, self.name = core, name

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

    def add_point(self, point: Sequence[float], *, positive: bool = True, run: bool = True) -> int:
        """Add a point. See ``Segment.add_point``."""
        return self._core.add_point(self.name, point, positive=positive, run=run)

    def add_bbox(self, box: Boxlike, *, positive: bool = True, run: bool = True) -> int:
        """Add a bounding box. See ``Segment.add_bbox``."""
        return self._core.add_bbox(self.name, box, positive=positive, run=run)

    def add_scribble(
        self, mask: ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True
    ) -> int:
        """Add a scribble: strokes through the object. See ``Segment.add_scribble``."""
        return self._core.add_scribble(self.name, mask, box=box, positive=positive, run=run)

    def add_lasso(self, mask: ArrayLike, *, box: Boxlike | None = None, positive: bool = True, run: bool = True) -> int:
        """Add a lasso: a filled outline in one slice. See ``Segment.add_lasso``."""
        return self._core.add_lasso(self.name, mask, box=box, positive=positive, run=run)

    def set_mask(self, mask: ArrayLike, *, box: Boxlike | None = None, run: bool = False) -> int:
        """Replace the mask. Earlier prompts no longer count. See ``Segment.set_mask``."""
        return self._core.set_mask(self.name, mask, box=box, run=run)

    def flip_mask(self, flips: ArrayLike, *, box: Boxlike | None = None) -> int:
        """Flip voxels of the mask, for edits by hand. Only the flipped voxels travel.

        Parameters
        ----------
        flips : array_like
            Voxels to flip, of the image's shape, or of the shape of ``box``. See ``Segment.set_mask`` for the types.
        box : Box or nested sequence of int, optional
            End-exclusive box of the image that ``flips`` covers.

        Returns
        -------
        int
            Number of the request.

        Raises
        ------
        NoImage, OutOfBounds, BadMask
            As for ``Segment.set_mask``.
        """
        return self._core.flip_mask(self.name, flips, box=box)

    def run(self) -> int:
        """Predict from the prompts that were added with ``run=False``. See ``Segment.run``."""
        return self._core.run(self.name)

    def undo(self) -> int:
        """Undo the last step: a prompt, a set mask or a reset. See ``Segment.undo``."""
        return self._core.undo(self.name)

    def redo(self) -> int:
        """Redo the step that was undone last. See ``Segment.redo``."""
        return self._core.redo(self.name)

    def reset(self) -> int:
        """Empty the mask and forget the prompts. This can be undone. See ``Segment.reset``."""
        return self._core.reset(self.name)

    def remove(self) -> int:
        """Remove the segment with its history. This cannot be undone. See ``Segment.remove``."""
        return self._core.remove_segment(self.name)


def _load_ssl_context(address: Address, ca: str | Path | None) -> "Future[ssl.SSLContext | None]":
    """Make the TLS context on a thread: reading the system's certificates takes tens of milliseconds."""
    if address.secure and ca is None:
        return run_in_thread("reading certificates", lambda: ssl_context(address, None))
    known: Future[ssl.SSLContext | None] = Future()
    known.set_result(ssl_context(address, ca))
    return known
