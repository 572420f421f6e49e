"""Back-off, keepalive and close errors of connections, without I/O, for all drivers."""

from collections.abc import Callable, Iterator
import logging
import random

from websockets.frames import Close, CloseCode

from nninteractive_ws.errors import (
    AtCapacity,
    BadAddress,
    BadMessage,
    ConnectionFailed,
    Error,
    ServerError,
    TooLarge,
    Untrusted,
)
from nninteractive_ws.redaction import redact

#: Timeout of the WebSocket handshake.
OPEN_TIMEOUT_S = 15.0
#: Default time for which a lost connection is retried before the session ends.
RECONNECT_FOR_S = 300.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 15.0
#: Age of a connection after which its loss restarts the back-off from the first delay.
STEADY_AFTER_S = 5.0
#: Keepalive. The gateway computes nothing and answers at once, so silence means that it cannot be reached.
PING_EVERY_S, PONG_TIMEOUT_S = 10.0, 20.0
#: Limit of the system's send buffer. The client cannot observe the delivery of these bytes, and a ping waits behind
#: them. A link of 250 kbit/s delivers this much before the keepalive takes it for lost. It allows 5 MB/s at a round
#: trip of 100 ms.
SEND_BUFFER_BYTES = 512 * 1024


class _Redacted(logging.Filter):
    """Filter that redacts tokens in the headers that websockets logs at the level DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


#: Logger of the drivers' WebSockets. It is a child of websockets' logger, so that it has the same level.
websocket_log = logging.getLogger("websockets.client.nninteractive_ws")
websocket_log.addFilter(_Redacted())

_PROTOCOL_CODES = (CloseCode.PROTOCOL_ERROR, CloseCode.UNSUPPORTED_DATA, CloseCode.INVALID_DATA)


def delays() -> Iterator[float]:
    """Yield seconds to wait before each attempt: exponential back-off with full jitter.

    The jitter keeps the clients of a restarted server from reconnecting all at once.
    """
    bound = FIRST_DELAY_S
    while True:
        yield random.uniform(0, bound)
        bound = min(2 * bound, LONGEST_DELAY_S)


def is_final(error: Error) -> bool:
    """Return whether reconnecting cannot help, because one side or the user has to change something first."""
    return isinstance(error, BadAddress | Untrusted) or not isinstance(
        error, ConnectionFailed | ServerError | AtCapacity
    )


def close_error(received: Close | None, sent: Close | None, cause: object = None) -> Error:
    """Return the error for a connection that ended without an ``error`` message, by the close frames, if any."""
    for close in (received, sent):
        if close is not None and close.code == CloseCode.MESSAGE_TOO_BIG:
            side = "the server" if close is received else "this client"
            return TooLarge(f"A message was larger than {side} accepts.")
        if close is not None and close.code in _PROTOCOL_CODES:
            return BadMessage(f"Server and client do not speak the same protocol ({close}). Update both.")
    if received is not None:
        return ConnectionFailed(f"The server closed the connection{received.reason and f' ({received.reason})'}.")
    return ConnectionFailed(f"The connection to the server was lost{f' ({cause})' if cause else ''}.")


class Retries:
    """Reconnection policy of a session.

    ``reconnect_for``: seconds for which a lost connection is retried. Before the first welcome, every error is final,
    because the user may have mistyped the address.
    """

    def __init__(self, reconnect_for: float, clock: Callable[[], float]) -> None:
        self._reconnect_for, self._clock = reconnect_for, clock
        self._delays = delays()
        self._opened_at: float | None = None
        self._lost_since: float | None = None

    def opened(self) -> None:
        """Note that a welcome was received."""
        self._opened_at, self._lost_since = self._clock(), None

    def woken(self) -> None:
        """Note that a dormant session needs a connection again. Its time without one counts from now."""
        self._lost_since = self._clock()

    def delay_after(self, error: Error) -> float | None:
        """Return seconds to wait after ``error`` before the next attempt; None: the session ends."""
        now = self._clock()
        if self._opened_at is None or is_final(error):
            return None
        if self._lost_since is None:
            self._lost_since = now
            if now - self._opened_at >= STEADY_AFTER_S:
                self._delays = delays()
        remaining = self._lost_since + self._reconnect_for - now
        return min(next(self._delays), remaining) if remaining > 0 else None


class KeepaliveMonitor:
    """Keepalive of a connection, because a lost network reports no error.

    It pings after a silence, and fails if no pong arrives in time. Received data counts as activity. So do bytes that
    the system accepts for sending, because others were delivered. On a slow link, the pong may wait long behind an
    image or a mask.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pinged_at: float | None = None
        self._heard_at = clock()

    def heard(self) -> None:
        """Note activity of the other end."""
        self._heard_at, self._pinged_at = self._clock(), None

    def should_ping(self) -> bool:
        """Return whether to send a ping. Raises ConnectionFailed if a ping was not answered in time."""
        now = self._clock()
        if self._pinged_at is not None:
            if now - self._pinged_at > PONG_TIMEOUT_S:
                raise ConnectionFailed(f"The server has not answered for {now - self._heard_at:.0f} seconds.")
            return False
        if now - self._heard_at <= PING_EVERY_S:
            return False
        self._pinged_at = now
        return True
