"""The polled driver: no thread and no event loop; a timer calls :meth:`PolledSession.poll` again and again.

For programs whose main thread must not wait and in which other threads starve, 3D Slicer above all. Every call
ends soon after its budget: one brick is packed or one message taken at a time.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
import logging
from pathlib import Path
import ssl
import time

import numpy.typing as npt
from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from nninteractive_ws import protocol
from nninteractive_ws.client import events
from nninteractive_ws.client.address import Address, explain, on_a_thread, parse_address, trust
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.client.reconnect import (
    OPEN_WITHIN_S,
    RECONNECT_FOR_S,
    Retries,
    Silence,
    websocket_log,
    why_closed,
)
from nninteractive_ws.client.stream import Stream
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.errors import ConnectionFailed, Error, TooLarge

_log = logging.getLogger(__name__)

#: A frame of Slicer's window at 60 Hz lasts 16 ms; half of it is left to everything else.
BUDGET_S = 0.008
_CHUNK_BYTES = 64 * 1024
#: Limit of fragments of a message, as in websockets' own drivers. An empty fragment takes memory, too, but the size
#: limit of messages does not count it.
_MAX_FRAGMENTS = 4096
#: Limit of messages, pings and pongs that wait to be sent: one message and some pongs, unless a server sends pings and
#: does not read.
_MAX_UNSENT = 4096
#: What has come and is not read makes the system say "reset" instead of goodbye; that much of it is read.
_MOST_UNREAD_CHUNKS = 64


class _Connection:
    """A WebSocket, a small thing at a time. What fails is raised as it is: OSError or WebSocketException."""

    def __init__(
        self, address: Address, token: str | None, trusting: ssl.SSLContext | None, clock: Callable[[], float]
    ) -> None:
        self.opened = False
        #: The end of it, where the other end has closed it.
        self.ended: Error | None = None
        #: Seconds that the answer to the last ping took.
        self.round_trip: float | None = None
        self._clock = clock
        self._stream = Stream(address, trusting, clock)
        self._open_by = clock() + OPEN_WITHIN_S
        self._silence = Silence(clock)
        self._websocket = ClientProtocol(
            parse_uri(address.url), max_size=protocol.MAX_MESSAGE_BYTES, logger=websocket_log
        )
        self._pinged_at = 0.0
        self._unsent: deque[memoryview] = deque()
        self._full = False  # whether the system took less than there was
        self._fragments: list[bytes] = []
        request = self._websocket.connect()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        self._websocket.send_request(request)

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def takes_more(self) -> bool:
        """Whether all that was sent is with the system, so that what comes next need not wait."""
        return self._websocket.state is State.OPEN and not self._unsent

    def advance(self) -> bool:
        """Go on with the way there; whether something was done. ``ready`` when there is no more to do."""
        self._check_time()
        progress = self._stream.advance()
        if self._stream.ready:
            self._queue_bytes()
        return progress

    @property
    def ready(self) -> bool:
        return self._stream.ready

    def receive(self) -> list[bytes] | None:
        """The messages that the next bytes complete; None where there are no bytes."""
        data = self._stream.receive(_CHUNK_BYTES)
        if data is None:
            self._check_time()
            return None
        self._silence.broken()
        if data:
            self._websocket.receive_data(data)
        else:
            self._websocket.receive_eof()
        messages = [message for item in self._websocket.events_received() for message in self._take(item)]
        if self._websocket.handshake_exc is not None:
            raise self._websocket.handshake_exc
        self._queue_bytes()
        if len(self._unsent) > _MAX_UNSENT:
            raise ConnectionFailed("The server sends pings without reading their answers; the connection was closed.")
        if not data or (self.opened and self._websocket.state is not State.OPEN):
            self.ended = why_closed(self._websocket.close_rcvd, self._websocket.close_sent)
        return messages

    def _take(self, item: object) -> Iterator[bytes]:
        if isinstance(item, Response):
            self.opened = self._websocket.handshake_exc is None
        elif isinstance(item, Frame) and item.opcode is Opcode.PONG:
            self.round_trip = self._clock() - self._pinged_at
        # A text message is an error of the server's; the core says so.
        elif isinstance(item, Frame) and item.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
            if len(self._fragments) >= _MAX_FRAGMENTS:
                raise TooLarge(f"The server sent a message in more than {_MAX_FRAGMENTS:,} fragments.")
            self._fragments.append(bytes(item.data))
            if item.fin:
                yield b"".join(self._fragments)
                self._fragments.clear()

    def _check_time(self) -> None:
        """Raises TimeoutError where it takes too long to open; ConnectionFailed where it has gone silent since."""
        if not self.opened:
            if self._clock() > self._open_by:
                raise TimeoutError
        elif self._silence.ask_now():
            self.ping()

    def ping(self) -> None:
        """Ask for a sign of life, and measure how long it takes."""
        self._pinged_at = self._clock()
        self._websocket.send_ping(b"")
        self._queue_bytes()

    def send(self, message: bytes) -> None:
        self._websocket.send_binary(message)
        self._queue_bytes()

    def flush(self) -> bool:
        """Hand over to the system what it takes; whether that was anything."""
        was_full, handed_over = self._full, False
        while self._unsent:
            n = self._stream.send(self._unsent[0][:_CHUNK_BYTES])
            if n == 0:
                break
            handed_over = True
            self._unsent[0] = self._unsent[0][n:]
            if not self._unsent[0]:
                self._unsent.popleft()
        self._full = bool(self._unsent)
        if was_full and handed_over:
            self._silence.broken()
        return handed_over

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
                for _ in range(_MOST_UNREAD_CHUNKS):
                    if not self._stream.receive(_CHUNK_BYTES):
                        break
        except OSError:
            pass  # lost already is as good
        finally:
            self._stream.close()

    def _queue_bytes(self) -> None:
        self._unsent.extend(memoryview(part) for part in self._websocket.data_to_send() if part)


class PolledSession:
    """A session on a server. ``core`` takes the commands; :meth:`poll` moves it on and returns what happened.

    ``address``, ``token``, ``ca``, ``reconnect_for``: as :func:`~nninteractive_ws.client.blocking.connect` takes
    them. Raises BadAddress, and Untrusted where ``ca`` cannot be used; all else is told by events. Unlike there, no
    proxy is used, whatever the computer's settings say: where a server is reached through one alone, use ssh.

    The first events are notices and ``Connection("open")``; ``Connection("closed")`` is the last, after
    ``Failed(None, error)`` where it was not :meth:`close`. Commands may be given at any time.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        reconnect_for: float = RECONNECT_FOR_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.core = Core(clock=clock)
        self.closed = False
        self._clock = clock
        self._address, self._token = parse_address(address), token
        self._trusting = _trusting(self._address, ca)
        self._retries = Retries(reconnect_for, clock)
        self._preparing: Iterator[ImageSource | None] | None = None
        self._journal: Journal | None = None  # for the image that is being prepared
        self._said: list[Event] = []
        self._tunnel = None if self._address.ssh is None else Tunnel(self._address.ssh)
        self._connection: _Connection | None = None
        self._retry_at: float | None = clock()  # None: with the next request
        self._asked = 0  # how many requests there were when the connection was lost

    # ---- what a user meets --------------------------------------------------------------------------------

    def set_image(self, image: npt.ArrayLike, journal: Journal | None = None) -> None:
        """Use a volume; it is looked at brick by brick while polling, and then announced. ``journal``: brings back
        the segments of an earlier day (``core.journal()``). Raises BadImage, here for its shape and type, and from
        :meth:`poll` for its voxels and where the journal is of another image."""
        preparing = ImageSource.prepare(image)
        next(preparing)
        self._preparing, self._journal = preparing, journal

    def poll(self, budget_s: float = BUDGET_S) -> list[Event]:
        """Do what can be done now, for about ``budget_s`` seconds; what has happened. Raises BadImage."""
        until = self._clock() + budget_s
        while not self.closed and self._step() and self._clock() < until:
            pass
        happened, self._said = self._said, []
        return happened

    def fileno(self) -> int:
        """The socket's, for a notifier; another one after each reconnection, -1 while there is none."""
        return -1 if self._connection is None else self._connection.fileno()

    @property
    def round_trip(self) -> float | None:
        """Seconds from a ping to its answer, measured last on this connection; None while that is not known. What
        comes is noticed by :meth:`poll` alone: where that is seldom called, it takes longer."""
        return None if self._connection is None else self._connection.round_trip

    def close(self) -> None:
        """End the session and the connection; what can be sent at once of a farewell is sent."""
        if self.closed:
            return
        farewell: list[bytes] = []
        if self._connection is not None and self._connection.opened:
            self.core.bye()
            while (frame := self.core.next_control()) is not None:
                farewell.append(frame)
        self._hang_up(farewell)
        self._end(ConnectionFailed("The session was closed."))

    # ---- one small thing at a time: each returns whether there may be more to do ---------------------------

    def _step(self) -> bool:
        progress = self._prepare()
        try:
            return self._move_on() or progress
        except Error as e:
            self._lose(e)
        except (OSError, UnicodeError, WebSocketException) as e:
            opened = self._connection is not None and self._connection.opened
            self._lose(why_closed(None, None, e) if opened else self._explained(e))
        except Exception as e:
            _log.exception("the client failed")
            self._lose(Error(f"The client failed, and the session with it ({e!r}); the log has the details."))
        return True

    def _explained(self, error: Exception) -> Error:
        explained = explain(error, self._address, self._token)
        if self._tunnel is None or type(explained) is not ConnectionFailed:
            return explained
        return self._tunnel.explain(explained)

    def _prepare(self) -> bool:
        if self._preparing is None:
            return False
        preparing = self._preparing
        self._preparing = None  # dropped where it raises
        source = next(preparing)
        if source is None:
            self._preparing = preparing
        else:
            journal, self._journal = self._journal, None
            self.core.set_image(source, journal)
        return True

    def _move_on(self) -> bool:
        """Raises what ends the connection."""
        if self._connection is None:
            return self._connect_when_due()
        if not self._connection.ready:
            return self._connection.advance()
        return self._converse(self._connection)

    def _connect_when_due(self) -> bool:
        if self._retry_at is None:
            if self.core.resting:
                return False
            self._retries.rested()
        elif self._clock() < self._retry_at and self.core.asked == self._asked:
            return False
        if not self._trusting.done() or (self._tunnel is not None and not self._tunnel.ready()):
            return False
        where = self._address if self._tunnel is None else self._tunnel.local
        self._connection = _Connection(where, self._token, self._trusting.result(), self._clock)
        return True

    def _converse(self, connection: _Connection) -> bool:
        was_open = connection.opened
        messages = connection.receive()
        if connection.opened and not was_open:
            connection.ping()
            self.core.start()
        for message in messages or []:
            self._take(message)
        if connection.ended is not None:
            raise connection.ended
        progress = messages is not None
        if connection.takes_more and (frame := self._next_frame()) is not None:
            connection.send(frame)
            progress = True
        return connection.flush() or progress

    def _next_frame(self) -> bytes | None:
        frame = self.core.next_control()
        if frame is None and (make := self.core.next_brick()) is not None:
            frame = make()
        return frame

    def _take(self, message: bytes) -> None:
        """Raises the Error that ends the connection, where the server says that it does."""
        for event in self.core.receive(message):
            if isinstance(event, events.Failed) and event.request is None:
                raise event.error
            if isinstance(event, events.Connection):
                self._retries.opened()
            self._said.append(event)
            if isinstance(event, events.Notice) and event.code == "evicted":
                raise ConnectionFailed(event.message)

    # ---- the end of a connection, and of the session --------------------------------------------------------

    def _lose(self, error: Error) -> None:
        self._hang_up([])
        delay = self._retries.after(error)
        if delay is None:
            self._said.append(events.Failed(None, error))
            self._end(error)
            return
        retry_in = None if self.core.resting else delay
        self._retry_at = None if retry_in is None else self._clock() + delay
        self._asked = self.core.asked
        self._said.append(events.Connection("lost", reason=str(error), retry_in=retry_in))

    def _hang_up(self, farewell: list[bytes]) -> None:
        if self._connection is not None:
            self._connection.close(farewell)
            self._connection = None

    def _end(self, error: Error) -> None:
        self.closed = True
        if self._tunnel is not None:
            self._tunnel.close()
        self._said.append(events.Connection("closed", reason=str(error)))


def _trusting(address: Address, ca: str | Path | None) -> "Future[ssl.SSLContext | None]":
    """:func:`trust`, which takes tens of milliseconds to read the system's certificates, and none for a file."""
    if address.secure and ca is None:
        return on_a_thread("reading certificates", lambda: trust(address, None))
    known: Future[ssl.SSLContext | None] = Future()
    known.set_result(trust(address, ca))
    return known
