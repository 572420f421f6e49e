"""A non-blocking byte stream to a server, for the polled driver."""

from collections.abc import Callable
from concurrent.futures import Future
import errno
import socket
import ssl

from nninteractive_ws.client.address import AF_UNIX, Address
from nninteractive_ws.client.dns import AddressList, resolve
from nninteractive_ws.client.reconnect import OPEN_TIMEOUT_S, SEND_BUFFER_BYTES

# Exceptions of an operation that would block, without and with TLS.
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """A connection, made step by step: DNS lookup, each address in turn, TLS handshake.

    ``ssl_context``: see :func:`~nninteractive_ws.client.tls.ssl_context`. Methods raise OSError on failure.
    """

    def __init__(self, address: Address, ssl_context: ssl.SSLContext | None, clock: Callable[[], float]) -> None:
        self._address, self._ssl_context, self._clock = address, ssl_context, clock
        self._found: Future[AddressList] | None = None
        self._untried: AddressList | None = None
        self._seconds_each = OPEN_TIMEOUT_S
        self._try_until = 0.0
        self._failure: OSError | None = None
        self._socket: socket.socket | None = None
        self._connected = False
        self.ready = False

    @property
    def accepted(self) -> bool:
        """Whether a program has accepted the TCP connection."""
        return self._connected

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1."""
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def receive(self, max_bytes: int) -> bytes | None:
        """Return up to ``max_bytes``. Empty: the server has closed the stream. None: nothing has arrived."""
        assert self._socket is not None
        try:
            return self._socket.recv(max_bytes)
        except _WOULD_BLOCK:
            return None

    def send(self, data: memoryview) -> int:
        """Return how many bytes the operating system accepted."""
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except _WOULD_BLOCK:
            return 0

    # ---- connecting ---------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Do the next step of connecting, until ``ready``. Return whether there was one."""
        if self._untried is None:
            return self._resolve()
        if self._socket is None:
            self._try_next()
        elif not self._connected:
            return self._finish_connecting()
        elif isinstance(self._socket, ssl.SSLSocket):
            return self._shake_hands(self._socket)
        return True

    def _resolve(self) -> bool:
        """Look up the addresses of the host, on a thread if that may block."""
        host, port = self._address.host, self._address.port
        if self._address.unix_socket is not None:
            self._sort([(AF_UNIX, socket.SOCK_STREAM, 0, "", self._address.unix_socket)])
            return True
        if self._found is None:
            if self._address.is_literal or host == "localhost":
                self._sort(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
                return True
            self._found = resolve(host, port, type=socket.SOCK_STREAM)
        if not self._found.done():
            return False
        self._sort(self._found.result())
        return True

    def _sort(self, found: AddressList) -> None:
        # "localhost" may name ::1 first, where a server on 127.0.0.1 does not listen.
        self._untried = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)
        self._seconds_each = OPEN_TIMEOUT_S / len(found)

    def _try_next(self) -> None:
        """Begin to connect to the next address. Raises the first failure if there is none left."""
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
        # A refusal tells more than a timeout, and the first address more than the others.
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
        if self._ssl_context is None:
            self.ready = True
        else:
            self._socket = self._ssl_context.wrap_socket(
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
