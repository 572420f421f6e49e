"""The WebSocket connection of the asyncio driver, with a keepalive."""

import asyncio
from collections.abc import Awaitable, Callable
import socket
import ssl
from typing import Any, NoReturn

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.protocol import State
from websockets.uri import WebSocketURI

from nninteractive_ws import protocol
from nninteractive_ws.client import reconnect
from nninteractive_ws.client.address import AF_UNIX, Address
from nninteractive_ws.client.connection_errors import connection_error
from nninteractive_ws.client.proxies import proxy_for
from nninteractive_ws.client.reconnect import KeepaliveMonitor
from nninteractive_ws.client.tokens import checked_token
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.errors import ConnectionFailed, Error

#: Timeout for sending ``bye`` and closing. Closing does not wait for a server that reads nothing more.
FAREWELL_TIMEOUT_S = 2.0
#: Interval of checks for a tunnel and for a started server, and timeout for that server.
_CHECK_EVERY_S, _START_TIMEOUT_S = 0.1, 60.0
#: Checks of the keepalive per ping interval.
_CHECKS_PER_PING = 8


class _Connect(websocket_connect):
    """A connector that follows no redirects: a token goes only to its server, and only over the requested scheme.

    ``accepted``: whether the TCP connection to the server was made, also by a proxy.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.accepted, make = False, self.factory

        def factory(uri: WebSocketURI) -> ClientConnection:
            self.accepted = True
            return make(uri)

        self.factory = factory

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class MonitoredConnection(ClientConnection):
    """A connection with a keepalive that counts all received bytes.

    websockets' own keepalive counts pongs alone. A pong behind a large mask on a slow link comes too late for it.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._keepalive = KeepaliveMonitor(self.loop.time)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, reconnect.SEND_BUFFER_BYTES)
        if connection.family != AF_UNIX:
            # asyncio does so only for sockets that it has made itself. A prompt must not wait for acknowledgements.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._keepalive.heard()
        super().data_received(data)
        # More than one message waits: the server sends pings and does not read the pongs.
        if self.transport.get_write_buffer_size() > protocol.MAX_MESSAGE_BYTES + reconnect.SEND_BUFFER_BYTES:
            self.transport.abort()

    async def watch(self) -> NoReturn:
        """End the connection when the server is silent for too long. Raises ConnectionFailed then."""
        unsent = 0
        try:
            while True:
                await asyncio.sleep(reconnect.PING_EVERY_S / _CHECKS_PER_PING)
                # Bytes that are added to it are no sign of the server.
                if self.transport.get_write_buffer_size() < unsent:
                    self._keepalive.heard()
                if self._keepalive.should_ping() and self.protocol.state is State.OPEN:
                    # Not by ping(), which waits until the operating system accepts the bytes, perhaps forever.
                    self.protocol.send_ping(b"")
                    self.send_data()
                unsent = self.transport.get_write_buffer_size()
        except ConnectionFailed:
            self.transport.abort()  # close() would wait for the server
            raise


async def dial(
    where: Address, *, token: str | None = None, ssl_context: ssl.SSLContext | None = None
) -> MonitoredConnection:
    """Connect to a server. ``ssl_context``: see :func:`~nninteractive_ws.client.tls.ssl_context`. Raises Error."""
    token = checked_token(token)
    proxy = None if where.unix_socket is not None else proxy_for(where)
    connector: _Connect | None = None
    try:
        async with asyncio.timeout(reconnect.OPEN_TIMEOUT_S):
            connector = _Connect(
                where.url,
                create_connection=MonitoredConnection,
                additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                compression=None,
                max_size=protocol.MAX_MESSAGE_BYTES,
                open_timeout=None,
                ping_interval=None,
                close_timeout=FAREWELL_TIMEOUT_S,
                ssl=ssl_context,
                logger=reconnect.websocket_log,
                **({"sock": await _connect_socket(where)} if proxy is None else {}),
                proxy=None if proxy is None else proxy.url,
            )
            connection = await connector
    except Error:  # translated already
        raise
    except Exception as e:
        accepted = connector is not None and connector.accepted
        raise connection_error(e, where, token, proxy=proxy, accepted=accepted) from e
    assert isinstance(connection, MonitoredConnection)
    return connection


async def _connect_socket(where: Address) -> socket.socket:
    """Return a socket that is connected to a server. Raises the most informative OSError of all its addresses."""
    failures: list[OSError] = []
    endpoints = await _endpoints(where)
    for family, endpoint in endpoints:
        connected = socket.socket(family)
        connected.setblocking(False)
        try:
            # One that does not answer leaves time for the others.
            async with asyncio.timeout(reconnect.OPEN_TIMEOUT_S / len(endpoints)):
                await asyncio.get_running_loop().sock_connect(connected, endpoint)
        except OSError as e:  # also TimeoutError
            connected.close()
            failures.append(e)
        except BaseException:
            connected.close()
            raise
        else:
            return connected
    raise next((e for e in failures if isinstance(e, ConnectionRefusedError)), failures[0])


async def _endpoints(where: Address) -> list[tuple[int, Any]]:
    """Return families and socket addresses of a server."""
    if where.unix_socket is not None:
        return [(AF_UNIX, where.unix_socket)]
    found = await asyncio.get_running_loop().getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    return [(family, endpoint) for family, _, _, _, endpoint in found]


async def open_tunnel(tunnel: Tunnel) -> None:
    """Open a tunnel, and wait until it is ready. Raises Error."""
    while not tunnel.ready():
        await asyncio.sleep(_CHECK_EVERY_S)


async def dial_through(tunnel: Tunnel, start: str | None, *, token: str | None = None) -> MonitoredConnection:
    """Open a tunnel if necessary, and connect through it. Raises Error.

    ``start``: the command that starts a server on the remote machine if none runs there.
    """
    await open_tunnel(tunnel)
    until = asyncio.get_running_loop().time() + _START_TIMEOUT_S
    while True:
        try:
            return await dial(tunnel.local, token=token)
        except ConnectionFailed as e:
            started = tunnel.server_runs()
            if not started and start is not None and tunnel.nothing_listens:
                tunnel.start_server(start)
            elif not started or asyncio.get_running_loop().time() > until:
                raise tunnel.connection_error(e) from e
            await asyncio.sleep(_CHECK_EVERY_S)


#: Makes a session's next connection. Raises Error.
Dialer = Callable[[], Awaitable[MonitoredConnection]]
