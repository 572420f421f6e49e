"""Limits on the bytes of whole and partial messages that client connections hold here, in both directions."""

import asyncio
import logging
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode
from websockets.protocol import State

from nninteractive_ws import protocol

_log = logging.getLogger(__name__)

#: Bytes received on all connections and not relayed yet, as four messages of the largest size. The parts of a complete
#: message are copied, so they take twice as much for a moment.
MAX_INCOMING_BYTES = 4 * protocol.MAX_MESSAGE_BYTES
#: Bytes that a client has not read: one message, and pongs. Only a client that sends pings and never reads exceeds it.
MAX_OUTGOING_BYTES = protocol.MAX_MESSAGE_BYTES + 1024**2
# Frame headers and pings are received but not relayed. A remainder below this consists of them.
_OVERHEAD_BYTES = 256 * 1024


class IncomingBytes:
    """Counter of bytes received on all connections. At the limit, the connection with the most is closed."""

    def __init__(self, limit: int = MAX_INCOMING_BYTES) -> None:
        self._limit = limit
        self._total = 0
        self._connections: set[BoundedConnection] = set()

    def add(self, connection: "BoundedConnection", count: int) -> None:
        """Count bytes received on a connection, or as a negative count, bytes relayed from it."""
        if count > 0:  # bytes are relayed from connections that are closed already, too
            self._connections.add(connection)
        connection.incoming += count
        connection.largest_incoming = max(connection.largest_incoming, connection.incoming)
        self._total += count
        if self._total > self._limit:
            largest = max(self._connections, key=lambda connection: connection.incoming)
            _log.warning("closed a connection because clients sent %d bytes of incomplete messages", self._total)
            self.forget(largest)
            largest.transport.abort()

    def forget(self, connection: "BoundedConnection") -> None:
        """Stop counting a closed connection."""
        self._total -= connection.incoming
        connection.incoming = 0
        self._connections.discard(connection)


class BoundedConnection(ServerConnection):
    """A client's connection with limited buffers. ``incoming``: bytes received and not relayed yet;
    ``largest_incoming``: their maximum so far."""

    def __init__(self, *arguments: Any, incoming_bytes: IncomingBytes, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.incoming = self.largest_incoming = 0
        self._incoming_bytes = incoming_bytes
        self._received_at = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self._received_at = self.loop.time()
        self._incoming_bytes.add(self, len(data))
        super().data_received(data)
        if self.state is State.CONNECTING and self.request is not None and self.protocol.eof_sent:
            # Invalid frames after the request. The library's handshake would log an assertion error.
            self.transport.abort()
        if self.transport.get_write_buffer_size() > MAX_OUTGOING_BYTES:
            _log.warning("closed a connection because the client does not read")
            self.transport.abort()

    async def keepalive(self) -> None:
        """Send pings, and fail the connection if nothing arrives any more.

        The library counts pongs alone. A pong waits behind the client's current message, which takes minutes on a slow
        link.
        """
        assert self.ping_interval is not None
        assert self.ping_timeout is not None
        try:
            while True:
                await asyncio.sleep(self.ping_interval)
                if self.loop.time() - self._received_at > self.ping_interval + self.ping_timeout:
                    async with self.send_context():
                        self.protocol.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
                await self.ping()
        except Exception:
            _log.exception("the keepalive of a connection failed")

    def relayed(self, count: int) -> None:
        """Count a relayed message of ``count`` bytes."""
        remaining = self.incoming - count
        self._incoming_bytes.add(self, -count if remaining > _OVERHEAD_BYTES else -self.incoming)

    def connection_lost(self, exc: Exception | None) -> None:
        self._incoming_bytes.forget(self)
        super().connection_lost(exc)
