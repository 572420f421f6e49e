"""A WebSocket connection for the asyncio driver, which notices when the other end is gone."""

import asyncio
from collections.abc import Awaitable, Callable
import socket
import ssl
from typing import Any, NoReturn

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.protocol import State

from nninteractive_ws import protocol
from nninteractive_ws.client import reconnect
from nninteractive_ws.client.address import Address, explain
from nninteractive_ws.client.proxies import proxy_url
from nninteractive_ws.client.reconnect import Silence
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.errors import ConnectionFailed, Error

#: A farewell is a courtesy: closing does not wait for a server that takes in nothing more.
FAREWELL_WITHIN_S = 2.0
#: How often it is looked whether a tunnel is there, and a server that was started; and for how long for the latter.
_LOOK_AGAIN_S, _START_WITHIN_S = 0.1, 60.0
#: How often it is looked whether there were signs of life, of the time after which one is asked for.
_LOOKS = 8


class _Connect(websocket_connect):
    """Does not follow redirects: a token goes only to its server, and only over the requested scheme."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class Connection(ClientConnection):
    """A connection that knows when the other end was last heard. websockets' own keepalive knows only of pongs,
    and a pong that waits behind a large mask on a slow link comes too late for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._silence = Silence(self.loop.time)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, reconnect.SEND_BUFFER_BYTES)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._silence.broken()
        super().data_received(data)
        # Pongs of pings that a server sends without reading their answers: beyond one message there are no others.
        if self.transport.get_write_buffer_size() > protocol.MAX_MESSAGE_BYTES + reconnect.SEND_BUFFER_BYTES:
            self.transport.abort()

    async def watch(self) -> NoReturn:
        """Wait until the other end is silent for too long, and then end the connection. Raises ConnectionFailed."""
        unsent = 0
        try:
            while True:
                await asyncio.sleep(reconnect.PING_EVERY_S / _LOOKS)
                if self.transport.get_write_buffer_size() != unsent:
                    self._silence.broken()
                if self._silence.ask_now() and self.protocol.state is State.OPEN:
                    # Not by ping(), which waits until the system takes the bytes. That may be never.
                    self.protocol.send_ping(b"")
                    self.send_data()
                unsent = self.transport.get_write_buffer_size()
        except ConnectionFailed:
            self.transport.abort()  # a polite end would be waited for
            raise


async def dial(where: Address, *, token: str | None = None, trusting: ssl.SSLContext | None = None) -> Connection:
    """Connect. ``trusting``: see :func:`~nninteractive_ws.client.address.trust`. Raises a sentence, as an Error."""
    try:
        connection = await _Connect(
            where.url,
            create_connection=Connection,
            additional_headers={"Authorization": f"Bearer {token}"} if token else None,
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            open_timeout=reconnect.OPEN_WITHIN_S,
            ping_interval=None,
            close_timeout=FAREWELL_WITHIN_S,
            ssl=trusting,
            logger=reconnect.websocket_log,
            **await _route(where),
        )
    except Error:  # it is explained already
        raise
    except Exception as e:
        raise explain(e, where, token) from e
    assert isinstance(connection, Connection)
    return connection


async def _route(where: Address) -> dict[str, Any]:
    """Options of the connection: a connected Unix socket, or the proxy, if the settings name one."""
    if where.unix_socket is None:
        return {"proxy": proxy_url(where)}
    connected = socket.socket(socket.AF_UNIX)
    connected.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connected, where.unix_socket)
    except BaseException:
        connected.close()
        raise
    return {"sock": connected, "proxy": None}


async def open_tunnel(tunnel: Tunnel) -> None:
    """Wait until a tunnel is there; it is opened where it is not. Raises a sentence, as an Error."""
    while not tunnel.ready():
        await asyncio.sleep(_LOOK_AGAIN_S)


async def dial_through(tunnel: Tunnel, start: str | None, *, token: str | None = None) -> Connection:
    """Connect through a tunnel, which is opened where it is not. ``start``: the command that starts a server on the
    other side where none answers. Raises a sentence, as an Error."""
    await open_tunnel(tunnel)
    until = asyncio.get_running_loop().time() + _START_WITHIN_S
    while True:
        try:
            return await dial(tunnel.local, token=token)
        except ConnectionFailed as e:
            started = tunnel.server_runs()
            if not started and start is not None and tunnel.nothing_listens:
                tunnel.start_server(start)
            elif not started or asyncio.get_running_loop().time() > until:
                raise tunnel.explain(e) from e
            await asyncio.sleep(_LOOK_AGAIN_S)


#: Makes a session's next connection. Raises what :func:`dial` does.
Dialler = Callable[[], Awaitable[Connection]]
