"""When a lost connection is tried again, and how a silent one is noticed: what the drivers share. No I/O."""

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

#: A server that can be reached at all answers the handshake within this.
OPEN_WITHIN_S = 15.0
#: How long a session may be away before it is given up, unless the user says otherwise.
RECONNECT_FOR_S = 300.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 15.0
#: One that is lost sooner after its welcome is no reason to try as quickly as at first.
STEADY_AFTER_S = 5.0
#: The gateway computes nothing and answers at once, so that silence means that it cannot be reached.
PING_EVERY_S, PONG_WITHIN_S = 10.0, 20.0
#: What the system has taken and not yet delivered cannot be seen, and a ping waits behind it. So that is limited: to
#: what a link of 250 kbit/s delivers before it is taken for dead. It is enough for 5 MB/s at a round trip of 100 ms.
SEND_BUFFER_BYTES = 512 * 1024


class _Redacted(logging.Filter):
    """Keeps tokens out of the headers that websockets logs at the level DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


#: Logger of the drivers' WebSockets. It is a child of websockets' logger, so that it has the same level.
websocket_log = logging.getLogger("websockets.client.nninteractive_ws")
websocket_log.addFilter(_Redacted())

_NOT_UNDERSTOOD = (CloseCode.PROTOCOL_ERROR, CloseCode.UNSUPPORTED_DATA, CloseCode.INVALID_DATA)


def delays() -> Iterator[float]:
    """Seconds to wait before each try: any number up to a bound that doubles (exponential backoff, full jitter).

    The clients of a server that was started again do not all come back in the same moment.
    """
    bound = FIRST_DELAY_S
    while True:
        yield random.uniform(0, bound)
        bound = min(2 * bound, LONGEST_DELAY_S)


def is_final(error: Error) -> bool:
    """Whether connecting again cannot help: one side or the user has to change something first."""
    return isinstance(error, BadAddress | Untrusted) or not isinstance(
        error, ConnectionFailed | ServerError | AtCapacity
    )


def why_closed(received: Close | None, sent: Close | None, cause: object = None) -> Error:
    """What the end of a connection means that no ``error`` has announced; by the close frames, each way, if any."""
    for close in (received, sent):
        if close is not None and close.code == CloseCode.MESSAGE_TOO_BIG:
            return TooLarge(f"A message was larger than {'the server' if close is received else 'this client'} takes.")
        if close is not None and close.code in _NOT_UNDERSTOOD:
            return BadMessage(f"Server and client do not understand each other ({close}).")
    if received is not None:
        return ConnectionFailed(f"The server closed the connection{received.reason and f' ({received.reason})'}.")
    return ConnectionFailed(f"The connection to the server was lost{f' ({cause})' if cause else ''}.")


class Retries:
    """When a session's connection is tried again, and whether at all.

    ``reconnect_for``: seconds that it may be away. Before the first welcome every error is the end: a user
    waits who may have mistyped the address.
    """

    def __init__(self, reconnect_for: float, clock: Callable[[], float]) -> None:
        self._reconnect_for, self._clock = reconnect_for, clock
        self._delays = delays()
        self._opened_at: float | None = None
        self._away_since: float | None = None

    def opened(self) -> None:
        """There was a welcome."""
        self._opened_at, self._away_since = self._clock(), None

    def rested(self) -> None:
        """A session that needed no connection needs one now: it is away only from here on."""
        self._away_since = self._clock()

    def after(self, error: Error) -> float | None:
        """Seconds to wait after ``error`` before the next try; None: it is the end of the session."""
        now = self._clock()
        if self._opened_at is None or is_final(error):
            return None
        if self._away_since is None:
            self._away_since = now
            if now - self._opened_at >= STEADY_AFTER_S:
                self._delays = delays()
        left = self._away_since + self._reconnect_for - now
        return min(next(self._delays), left) if left > 0 else None


class Silence:
    """A network that is gone says nothing: ask after a while, and give up where no answer comes.

    Everything that comes, and every byte that the system takes from us because others have arrived, is a sign of
    life: on a slow link the answer may wait behind an image or a mask for long.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asked_at: float | None = None
        self._alive_at = clock()

    def broken(self) -> None:
        """There was a sign of life."""
        self._alive_at, self._asked_at = self._clock(), None

    def ask_now(self) -> bool:
        """Whether to send a ping. Raises ConnectionFailed where one has not been answered in time."""
        now = self._clock()
        if self._asked_at is not None:
            if now - self._asked_at > PONG_WITHIN_S:
                raise ConnectionFailed(f"The server has not answered for {now - self._alive_at:.0f} seconds.")
            return False
        if now - self._alive_at <= PING_EVERY_S:
            return False
        self._asked_at = now
        return True
