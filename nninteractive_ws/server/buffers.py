"""Limits on the bytes that clients' connections hold in this process: whole messages and parts, in both directions."""

import logging
from typing import Any

from websockets.asyncio.server import ServerConnection

from nninteractive_ws import protocol

_log = logging.getLogger(__name__)

#: Bytes that have been received on all connections and not passed on: four messages of the largest size. A part of a
#: message is copied when it is complete, so that they take twice as much for a moment.
MAX_INCOMING_BYTES = 4 * protocol.MAX_MESSAGE_BYTES
#: Bytes that a client has not taken: one message, and pongs. A client that sends pings and never reads has more.
MAX_OUTGOING_BYTES = protocol.MAX_MESSAGE_BYTES + 1024**2
# Frame headers and pings are received, but not passed on. What is left of less than this are those.
_OVERHEAD_BYTES = 256 * 1024


class IncomingBytes:
    """Counts what has been received on all connections. At the limit, the connection with the most is closed."""

    def __init__(self, limit: int = MAX_INCOMING_BYTES) -> None:
        self._limit = limit
        self._total = 0
        self._connections: set[BoundedConnection] = set()

    def add(self, connection: "BoundedConnection", count: int) -> None:
        """Count bytes that came on a connection; negative: that were passed on."""
        self._connections.add(connection)
        connection.incoming += count
        connection.largest_incoming = max(connection.largest_incoming, connection.incoming)
        self._total += count
        if self._total > self._limit:
            largest = max(self._connections, key=lambda one: one.incoming)
            _log.warning("closed a connection: %d bytes of unfinished messages were held", self._total)
            self.forget(largest)
            largest.transport.abort()

    def forget(self, connection: "BoundedConnection") -> None:
        """A connection is closed."""
        self._total -= connection.incoming
        connection.incoming = 0
        self._connections.discard(connection)


class BoundedConnection(ServerConnection):
    """A client's connection whose buffers are limited. ``incoming``: bytes received and not passed on;
    ``largest_incoming``: the most that they have been."""

    def __init__(self, *arguments: Any, incoming_bytes: IncomingBytes, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.incoming = self.largest_incoming = 0
        self._incoming_bytes = incoming_bytes

    def data_received(self, data: bytes) -> None:
        self._incoming_bytes.add(self, len(data))
        super().data_received(data)
        if self.transport.get_write_buffer_size() > MAX_OUTGOING_BYTES:
            _log.warning("closed a connection: the client does not read")
            self.transport.abort()

    def passed_on(self, count: int) -> None:
        """A message of ``count`` bytes was passed on."""
        left = self.incoming - count
        self._incoming_bytes.add(self, -count if left > _OVERHEAD_BYTES else -self.incoming)

    def connection_lost(self, exc: Exception | None) -> None:
        self._incoming_bytes.forget(self)
        super().connection_lost(exc)
