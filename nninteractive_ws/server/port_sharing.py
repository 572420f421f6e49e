"""WebSocket and nnInteractive's HTTP API on one port: the first bytes of a connection decide.

The gateway answers GET requests itself. All other requests of the API are POST, except for ``/lease_status``.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import ServerConnection

_FIRST_BYTES = (b"POST ", b"GET /lease_status")

#: Called with a connection of the HTTP API.
HttpHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class SharedPort:
    """The connections to one port. ``timeout_s``: timeout for their first bytes."""

    def __init__(self, on_http: HttpHandler, timeout_s: float) -> None:
        self.on_http, self.timeout_s = on_http, timeout_s
        #: Connections without first bytes.
        self.undecided: set[_UndecidedConnection] = set()

    def connection(self, make_websocket: Callable[[], ServerConnection]) -> asyncio.Protocol:
        """Return the protocol of a new connection. ``make_websocket``: makes that of a WebSocket connection."""
        return _UndecidedConnection(self, make_websocket)

    def close(self) -> None:
        """Drop the connections that are not decided, for which the end of the listening socket would wait."""
        for connection in list(self.undecided):
            connection.abort()


class _UndecidedConnection(asyncio.Protocol):
    """A connection before its first bytes."""

    def __init__(self, port: SharedPort, make_websocket: Callable[[], ServerConnection]) -> None:
        self._port, self._make_websocket = port, make_websocket
        self._received = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._port.timeout_s, self.abort)
        self._port.undecided.add(self)

    def abort(self) -> None:
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._decide()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if any(first != self._received and first.startswith(self._received) for first in _FIRST_BYTES):
            return
        self._decide()
        if self._received.startswith(_FIRST_BYTES):
            self._port.on_http(*open_stream(self._transport, self._received))
            return
        websocket = self._make_websocket()
        self._transport.set_protocol(websocket)
        websocket.connection_made(self._transport)
        websocket.data_received(self._received)

    def _decide(self) -> None:
        self._timer.cancel()
        self._port.undecided.discard(self)


def open_stream(transport: asyncio.Transport, received: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a transport as a stream, which begins with bytes that were received before."""
    loop: Any = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    reader.feed_data(received)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
