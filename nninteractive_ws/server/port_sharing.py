"""WebSocket, nnInteractive's HTTP API and files of the web page on one port: a connection's first bytes decide.

All other requests reach the WebSocket server, which also answers plain HTTP.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from websockets.asyncio.server import ServerConnection

#: First bytes of the requests of the HTTP API that its own process answers.
OFFICIAL_API_REQUESTS = (b"POST ", b"GET /lease_status")

#: Called with a connection.
HttpHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class SharedPort:
    """The connections to one port. ``handlers``: by first bytes; all other connections are those of WebSockets.
    ``timeout_s``: timeout for the first bytes."""

    def __init__(self, handlers: Mapping[bytes, HttpHandler], timeout_s: float) -> None:
        self.handlers, self.timeout_s = handlers, timeout_s
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
        handlers = self._port.handlers
        if any(first != self._received and first.startswith(self._received) for first in handlers):
            return
        self._decide()
        for first, handle in handlers.items():
            if self._received.startswith(first):
                handle(*open_stream(self._transport, self._received))
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
