"""A stream of bytes to a server for the polled driver: no call waits, whatever the network does."""

from collections.abc import Callable
from concurrent.futures import Future
import errno
import socket
import ssl

from nninteractive_ws.client.address import Address, Found, look_up
from nninteractive_ws.client.reconnect import OPEN_WITHIN_S, SEND_BUFFER_BYTES

# What an operation that would have to wait says, without and with TLS.
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """A connection, made step by step: look up the name, try one address after the other, agree on TLS.

    ``trusting``: see :func:`~nninteractive_ws.client.address.trust`. Methods raise OSError where it fails.
    """

    def __init__(self, address: Address, trusting: ssl.SSLContext | None, clock: Callable[[], float]) -> None:
        self._address, self._trusting, self._clock = address, trusting, clock
        self._found: Future[Found] | None = None
        self._untried: Found | None = None
        self._seconds_each = OPEN_WITHIN_S
        self._try_until = 0.0
        self._failure: OSError | None = None
        self._socket: socket.socket | None = None
        self._connected = False
        self.ready = False

    def fileno(self) -> int:
        """The socket's; -1 where there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def receive(self, most: int) -> bytes | None:
        """Up to ``most`` bytes; none: the other end has closed; None: nothing has come."""
        assert self._socket is not None
        try:
            return self._socket.recv(most)
        except _LATER:
            return None

    def send(self, data: memoryview) -> int:
        """How many bytes the system took."""
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except _LATER:
            return 0

    # ---- the way there ------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Go on with making the connection; whether something was done. In the end, ``ready`` is true."""
        if self._untried is None:
            return self._look_up()
        if self._socket is None:
            self._try_next()
        elif not self._connected:
            return self._finish_connecting()
        elif isinstance(self._socket, ssl.SSLSocket):
            return self._shake_hands(self._socket)
        return True

    def _look_up(self) -> bool:
        """The addresses of the name. A thread asks for what the system may not know by itself."""
        host, port = self._address.host, self._address.port
        if self._address.unix_socket is not None:
            self._sort([(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", self._address.unix_socket)])
            return True
        if self._found is None:
            if self._address.is_literal or host == "localhost":
                self._sort(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
                return True
            self._found = look_up(host, port, type=socket.SOCK_STREAM)
        if not self._found.done():
            return False
        self._sort(self._found.result())
        return True

    def _sort(self, found: Found) -> None:
        # "localhost" may name ::1 first, where a server on 127.0.0.1 does not listen.
        self._untried = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
        self._seconds_each = OPEN_WITHIN_S / len(found)

    def _try_next(self) -> None:
        """Begin to connect to the next address. Raises what the last one said where there is none left."""
        if not self._untried:
            raise self._failure or TimeoutError
        family, _, _, _, where = self._untried.pop(0)
        self._try_until = self._clock() + self._seconds_each
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            if self._address.unix_socket is None:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self._socket.connect(where)
        except BlockingIOError:
            pass
        except OSError as e:  # no network of this family, for instance
            self._give_up_address(e)

    def _give_up_address(self, failure: OSError) -> None:
        # A refusal says more than silence, and the first address more than the others.
        if self._failure is None or isinstance(self._failure, TimeoutError):
            self._failure = failure
        self.close()
        self._socket = None

    def _finish_connecting(self) -> bool:
        assert self._socket is not None
        if failure := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._give_up_address(OSError(failure, errno.errorcode.get(failure, "connecting failed")))
            return True
        try:
            self._socket.getpeername()
        except OSError:  # not yet
            if self._clock() > self._try_until:
                self._give_up_address(TimeoutError())
            return False
        self._connected = True
        if self._trusting is None:
            self.ready = True
        else:
            self._socket = self._trusting.wrap_socket(
                self._socket, server_hostname=self._address.host, do_handshake_on_connect=False
            )
        return True

    def _shake_hands(self, connection: ssl.SSLSocket) -> bool:
        try:
            connection.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.ready = True
        return True
