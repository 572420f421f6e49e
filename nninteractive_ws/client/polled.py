"""The polled driver: no thread and no event loop; a timer calls :meth:`PolledSession.poll` again and again.

For programs whose main thread must not wait and in which other threads starve, 3D Slicer above all. Every call
ends soon after its budget: one brick is packed or one message taken at a time.
"""

from collections import deque
from collections.abc import Callable, Iterator
import contextlib
import errno
import socket
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
from nninteractive_ws.client.address import explain, parse_address
from nninteractive_ws.client.aio import OPEN_WITHIN_S, PING_EVERY_S, PONG_WITHIN_S
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.errors import BadAddress, ConnectionFailed, Error

#: A frame of Slicer's window at 60 Hz lasts 16 ms; half of it is left to everything else.
BUDGET_S = 0.008
_CHUNK_BYTES = 64 * 1024


class PolledSession:
    """A session on a server. ``core`` takes the commands; :meth:`poll` moves it on and returns what happened.

    The first events are notices and ``Connection("open")``; ``Connection("closed")`` is the last.
    """

    def __init__(self, address: str, *, token: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.core = Core(clock=clock)
        self.closed = False
        self._clock = clock
        self._address = parse_address(address)
        if self._address.secure:
            raise BadAddress("The polled driver of this release does not speak TLS; use a ws:// address or a tunnel.")
        self._websocket = ClientProtocol(parse_uri(self._address.url), max_size=protocol.MAX_MESSAGE_BYTES)
        self._unsent: deque[memoryview] = deque()
        self._fragments: list[bytes] = []
        self._preparing: Iterator[ImageSource | None] | None = None
        self._connected = False
        self._opened = False
        self._open_by = clock() + OPEN_WITHIN_S
        self._heard = clock()
        self._asked: float | None = None
        self._said: list[Event] = []
        request = self._websocket.connect()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        self._websocket.send_request(request)
        self._socket = self._begin_connecting()

    # ---- what a user meets --------------------------------------------------------------------------------

    def set_image(self, image: npt.ArrayLike) -> None:
        """Use a volume; it is looked at slab by slab while polling, and then announced. Raises BadImage, here
        for its shape and type, and from :meth:`poll` for its voxels."""
        preparing = ImageSource.prepare(image)
        next(preparing)
        self._preparing = preparing

    def poll(self, budget_s: float = BUDGET_S) -> list[Event]:
        """Do what can be done now, for about ``budget_s`` seconds; what has happened. Raises BadImage."""
        until = self._clock() + budget_s
        try:
            while not self.closed and self._step() and self._clock() < until:
                pass
        except (OSError, WebSocketException) as e:
            self._end(explain(e, self._address))
        happened, self._said = self._said, []
        return happened

    def fileno(self) -> int:
        """The socket's, for a notifier."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the session and the connection; what can be sent at once of a farewell is sent."""
        if not self.closed:
            if self._websocket.state is State.OPEN:
                self.core.bye()
                while (frame := self.core.next_control()) is not None:
                    self._websocket.send_binary(frame)
                self._websocket.send_close()
                self._queue_bytes()
            with contextlib.suppress(OSError):  # lost already is as good
                self._flush()
            self._end(ConnectionFailed("The session was closed."))

    # ---- one small thing at a time: each returns whether there may be more to do ---------------------------

    def _step(self) -> bool:
        if not self._opened and self._clock() > self._open_by:
            raise TimeoutError
        if not self._connected:
            self._connected = self._finish_connecting()
            return self._connected
        progress = self._receive()
        progress = self._prepare() or progress
        if not self._unsent:
            progress = self._websocket_frames() or progress
        return self._flush() or progress

    def _begin_connecting(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
        except OSError as e:
            raise explain(e, self._address) from e
        # "localhost" may name ::1 first, where a server on 127.0.0.1 does not listen.
        family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect_ex(where)
        return connection

    def _finish_connecting(self) -> bool:
        failure = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, errno.errorcode.get(failure, "connecting failed"))
        try:
            self._socket.getpeername()
        except OSError:
            return False  # not yet
        self._queue_bytes()
        return True

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            self._check_silence()
            return False
        self._heard, self._asked = self._clock(), None
        if data:
            self._websocket.receive_data(data)
        else:
            self._websocket.receive_eof()
        for item in self._websocket.events_received():
            if isinstance(item, Response):
                self._start()
            elif isinstance(item, Frame):
                self._take(item)
        if self._websocket.handshake_exc is not None:
            raise self._websocket.handshake_exc
        self._queue_bytes()
        if not data:
            reason = self._websocket.close_reason
            self._end(ConnectionFailed(f"The server closed the connection{f' ({reason})' if reason else ''}."))
        return True

    def _start(self) -> None:
        if self._websocket.handshake_exc is None:
            self._opened = True
            self.core.start()

    def _check_silence(self) -> None:
        """A network that is gone says nothing: ask now and then, and give up without an answer."""
        now = self._clock()
        if self._asked is not None:
            if now - self._asked > PONG_WITHIN_S:
                raise TimeoutError
        elif now - self._heard > PING_EVERY_S:
            self._websocket.send_ping(b"")  # raises where the server has said goodbye but does not hang up
            self._queue_bytes()
            self._asked = now

    def _take(self, frame: Frame) -> None:
        # A text message is an error of the server's; the core says so.
        if frame.opcode not in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
            return
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            data, self._fragments = b"".join(self._fragments), []
            try:
                self._said += self.core.receive(data)
            except Error as e:
                self._end(e)

    def _prepare(self) -> bool:
        if self._preparing is None or self.core.welcome is None:
            return False
        preparing = self._preparing
        self._preparing = None  # dropped where it raises
        source = next(preparing)
        if source is None:
            self._preparing = preparing
        else:
            self.core.set_image(source)
        return True

    def _websocket_frames(self) -> bool:
        if self._websocket.state is not State.OPEN:
            return False
        frame = self.core.next_control()
        if frame is None:
            make = self.core.next_brick()
            frame = None if make is None else make()
        if frame is None:
            return False
        self._websocket.send_binary(frame)
        self._queue_bytes()
        return True

    def _queue_bytes(self) -> None:
        self._unsent.extend(memoryview(part) for part in self._websocket.data_to_send() if part)

    def _flush(self) -> bool:
        sent = False
        while self._unsent:
            try:
                n = self._socket.send(self._unsent[0][:_CHUNK_BYTES])
            except BlockingIOError:
                return sent
            sent = True
            self._unsent[0] = self._unsent[0][n:]
            if not self._unsent[0]:
                self._unsent.popleft()
        return sent

    def _end(self, error: Error) -> None:
        if not self.closed:
            self.closed = True
            self._socket.close()
            self._said.append(events.Connection("closed", reason=str(error)))
