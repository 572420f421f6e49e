"""Limits on connections without a session, counted from accept on, before TLS, HTTP and hello.

At a limit, the oldest connection of the address with the most is dropped in favor of a new one. So idle connections and
floods from one address do not lock out another address, and a new connection is always served.
"""

from asyncio import BaseTransport
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
import errno
import gc
import ipaddress
import logging
import os
import socket
import sys
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

_log = logging.getLogger(__name__)

#: Connections without a session. A stalled TLS handshake costs 312 KiB, so this many take 80 MB.
MAX_PENDING = 256
# Closed connections per garbage collection. asyncio's TLS connections are reference cycles of few but large objects,
# which Python's own schedule would collect too late.
_CLOSED_BEFORE_COLLECTION = 128
#: Connections of the HTTP API for each session. nnInteractive's client has one, and another one for heartbeats.
HTTP_CONNECTIONS = 2
#: Descriptors for everything but connections: the event loop, files, pipes to the workers.
RESERVED_DESCRIPTORS = 48
# Length of the system's queue of connections to accept. The system may allow fewer. In a flood, every client waits in
# this queue, so a longer queue means longer waits.
_LISTEN_BACKLOG = 1024
# Connections closed in one call of accept while too many are open.
_MAX_REFUSALS = 256
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Admission:
    """Counter and limits for the connections of one or more listening sockets.

    ``max_pending``: connections without a session; ``max_of_address``: those from one address, which may be a reverse
    proxy in front of all clients; ``max_open``: connections in all.
    """

    def __init__(self, max_pending: int, max_of_address: int, max_open: int) -> None:
        self._max_pending, self._max_of_address, self._max_open = max_pending, max_of_address, max_open
        # Weak, so that a connection whose setup fails in the event loop does not count forever.
        self._pending: WeakKeyDictionary[AcceptedSocket, str] = WeakKeyDictionary()  # in the order of arrival
        self._open: WeakSet[AcceptedSocket] = WeakSet()
        self._closed = 0

    @property
    def accept_batch(self) -> int:
        """Number of connections to accept in one turn of the event loop. An HTTP request is answered four turns after
        accept, before its connection is dropped in favor of later ones."""
        return max(1, self._max_of_address // 8)

    def admit(self, connection: "AcceptedSocket", address: str) -> bool:
        """Count a new connection, and drop an older one if necessary. Return False if the new one has to be closed."""
        if len(self._open) >= self._max_open:
            _log.warning("refused a connection: too many are open", extra={"peer": address})
            return False
        source = _network(address)
        if sum(other == source for other in self._pending.values()) >= self._max_of_address:
            self._drop_oldest(source)
        elif len(self._pending) >= self._max_pending:
            self.drop_one()
        self._open.add(connection)
        self._pending[connection] = source
        return True

    def drop_one(self) -> bool:
        """Drop the oldest connection of the address with the most. Return False if all connections have sessions."""
        counts = Counter(self._pending.values())
        if counts:
            self._drop_oldest(max(counts, key=counts.__getitem__))
        return bool(counts)

    def _drop_oldest(self, source: str) -> None:
        oldest = next(connection for connection, other in self._pending.items() if other == source)
        del self._pending[oldest]
        _log.warning("dropped a connection without a session: there were too many", extra={"peer": source})
        # The transport owns the descriptor. It sees the end of the stream and closes the descriptor.
        with suppress(OSError):  # the peer has already closed it
            oldest.shutdown(socket.SHUT_RDWR)

    def closed(self, connection: "AcceptedSocket") -> None:
        """Stop counting a connection that was closed."""
        self._open.discard(connection)
        self._pending.pop(connection, None)
        self._closed += 1
        if self._closed % _CLOSED_BEFORE_COLLECTION == 0:
            gc.collect()

    @contextmanager
    def with_session(self, transport: BaseTransport) -> Iterator[None]:
        """Protect a connection from being dropped while it has a session. Afterwards it may be dropped, because a
        client that does not answer the close frame holds its connection for seconds."""
        accepted = self._find(transport)
        source = None if accepted is None else self._pending.pop(accepted, None)
        try:
            yield
        finally:
            if accepted is not None and source is not None and accepted in self._open:
                self._pending[accepted] = source

    def _find(self, transport: BaseTransport) -> "AcceptedSocket | None":
        transport_socket = transport.get_extra_info("socket")
        if transport_socket is None:  # a TLS connection that was lost
            return None
        return next((accepted for accepted in self._open if accepted.fileno() == transport_socket.fileno()), None)


class AcceptedSocket(socket.socket):
    """The server's end of a connection, counted until it is closed."""

    def __init__(self, accepted: socket.socket, admission: Admission) -> None:
        self._admission = admission
        super().__init__(fileno=accepted.detach())

    def close(self) -> None:
        super().close()
        self._admission.closed(self)


class ListeningSocket(socket.socket):
    """A listening socket whose ``accept`` counts connections and handles a shortage of descriptors.

    asyncio's selector event loop calls ``accept``. The proactor event loop of Windows does not, so on Windows only the
    timeouts apply.
    """

    def __init__(self, listening: socket.socket, admission: Admission) -> None:
        super().__init__(fileno=listening.detach())
        self._admission = admission
        self._spare: int | None = _open_spare()

    def listen(self, backlog: int = _LISTEN_BACKLOG, /) -> None:
        """Listen with a long queue, as a flood needs. asyncio passes the number of connections to accept in one turn
        also as the length of the queue."""
        super().listen(max(backlog, _LISTEN_BACKLOG))

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises BlockingIOError if there is no connection to serve now."""
        for _ in range(_MAX_REFUSALS):
            try:
                accepted, peer = super().accept()
            except OSError as e:
                if e.errno not in _OUT_OF_RESOURCES:
                    raise
                _log.warning("cannot accept a connection: %s", e.strerror)
                if self._admission.drop_one():
                    break  # the event loop closes the dropped one and calls again
                if not self._refuse_by_spare():
                    raise
                continue
            connection = AcceptedSocket(accepted, self._admission)
            if self._admission.admit(connection, str(peer[0])):
                return connection, peer
            connection.close()
        raise BlockingIOError(errno.EAGAIN, "no connection to serve now")

    def _refuse_by_spare(self) -> bool:
        """Close the next connection with the help of a spare descriptor. Return False if the spare is lost too.

        Otherwise the socket would stay readable, and the event loop would spin or stop listening for a second.
        """
        if self._spare is not None:
            os.close(self._spare)
            with suppress(OSError):  # the client has disconnected, or another process took the descriptor
                super().accept()[0].close()
        self._spare = _open_spare()
        return self._spare is not None

    def close(self) -> None:
        super().close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return None


def _network(address: str) -> str:
    """Return the network that counts as one source. An IPv6 subscriber has 2^64 addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address


# ---- listening --------------------------------------------------------------------------------------------


class CannotListen(Exception):
    """The server cannot listen at its address. ``str()`` is a sentence that says why and what to do."""


def listen(
    host: str, port: int, admission: Admission, host_option: str = "--host", port_option: str = "--port"
) -> list[ListeningSocket]:
    """Listen at every address of a host, at the same port. "" means every address of this machine.

    ``host_option``, ``port_option``: those that set host and port. Raises CannotListen.
    """
    try:
        return _listen(host, port, admission)
    except (OSError, UnicodeError) as e:
        number = getattr(e, "errno", None)
        if number == errno.EADDRINUSE:
            remedy = f"Stop the other server, or choose another port. {port_option} 0 selects a free one."
        elif number == errno.EACCES:
            remedy = "Choose a port from 1024 on. Those below need special rights on many systems."
        else:
            remedy = f"Check {host_option}: it must be an address of this machine, or a name of one."
        reason = getattr(e, "strerror", None) or e
        raise CannotListen(f"Cannot listen on {host}:{port}: {reason}. {remedy}") from e


def _listen(host: str, port: int, admission: Admission) -> list[ListeningSocket]:
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening: list[ListeningSocket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(infos):
            bind_address = (address[0], port, *address[2:])
            try:
                bound = socket.create_server(bind_address, family=family)
                # Accepted sockets inherit it. Else a preview waits until the client has acknowledged the one before,
                # since asyncio does so only for sockets that it has made itself.
                bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as e:
                # A name may resolve to ::1 although IPv6 is disabled.
                if e.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or len(infos) == 1:
                    raise
                _log.warning("cannot listen at %s: %s", address[0], e.strerror)
                continue
            listening.append(ListeningSocket(bound, admission))
            port = port or int(bound_port(listening[0]))
    except BaseException:
        for opened in listening:
            opened.close()
        raise
    if not listening:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return listening


def bound_port(listening: socket.socket) -> int:
    """Return the port at which a socket listens."""
    return int(listening.getsockname()[1])


def admission_limits(max_sessions: int) -> tuple[Admission, Admission]:
    """Return the limits for clients and for workers that this process's descriptors allow.

    A session takes two descriptors, one to its client and one to its worker. A connection of the HTTP API takes two,
    one to its client and one to the process with the answers. Dropped and closing connections keep their descriptors
    for a moment.
    """
    free = _descriptors() - RESERVED_DESCRIPTORS - (3 + 2 * HTTP_CONNECTIONS) * max_sessions
    if free < 48:
        _log.warning(
            "This process may have %d open files, which is too few for %d sessions. Raise the limit (ulimit -n) or "
            "lower --max-sessions.",
            _descriptors(),
            max_sessions,
        )
    clients, workers = min(MAX_PENDING, max(free // 4, 16)), min(MAX_PENDING, max(free // 8, 16))
    return (
        Admission(clients, clients // 2, 2 * clients + (1 + HTTP_CONNECTIONS) * max_sessions),
        Admission(workers, workers, workers + 2 * max_sessions),
    )


def _descriptors() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Raise the limit of open files of this process and its workers as far as the system allows."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as e:  # macOS enforces a lower limit than it reports
        _log.info("the limit of open files stays %d: %s", soft, e)
