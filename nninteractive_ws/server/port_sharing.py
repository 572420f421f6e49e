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


class SharedPortConnection(asyncio.Protocol):
    """A connection before its first bytes.

    ``make_websocket``: makes the protocol of a WebSocket connection. ``timeout_s``: timeout for the first bytes.
    """

    def __init__(self, make_websocket: Callable[[], ServerConnection], on_http: HttpHandler, timeout_s: float) -> None:
        self._make_websocket, self._on_http, self._timeout_s = make_websocket, on_http, timeout_s
        self._received = b""
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if any(first != self._received and first.startswith(self._received) for first in _FIRST_BYTES):
            return  # not decided yet
        self._timer.cancel()
        if self._received.startswith(_FIRST_BYTES):
            self._on_http(*open_stream(self._transport, self._received))
            return
        websocket = self._make_websocket()
        self._transport.set_protocol(websocket)
        websocket.connection_made(self._transport)
        websocket.data_received(self._received)


def open_stream(transport: asyncio.Transport, received: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a transport as a stream, which begins with bytes that were received before."""
    loop: Any = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    reader.feed_data(received)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
