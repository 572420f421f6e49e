"""WebSocket and HTTP on one port: whatever the splits of the first bytes, each connection reaches its handler."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
import ssl
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from nninteractive_ws.server.port_sharing import OFFICIAL_API_REQUESTS, SharedPort

POST = b"POST /claim HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
STATUS = b"GET /lease_status HTTP/1.1\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LEASE = b"GET /lease HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Server:
    """A shared port. HTTP requests and WebSocket messages are echoed, and other GET requests get "hello"."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.shared = SharedPort(dict.fromkeys(OFFICIAL_API_REQUESTS, self._accept), timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self.websockets = 0

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        async with serve(
            self._echo_messages, "127.0.0.1", 0, create_connection=self._connection, process_request=self._respond,
            ssl=tls, max_size=None,
        ) as server:  # fmt: skip
            yield next(iter(server.sockets)).getsockname()[1]
            self.shared.close()
            await asyncio.gather(*self._tasks)

    def _connection(self, *arguments: Any, **options: Any) -> asyncio.Protocol:
        return self.shared.connection(partial(self._websocket, *arguments, **options))

    def _websocket(self, *arguments: Any, **options: Any) -> ServerConnection:
        self.websockets += 1
        return ServerConnection(*arguments, **options)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._echo_bytes(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _echo_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        await close(writer)

    @staticmethod
    async def _echo_messages(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    @staticmethod
    def _respond(connection: ServerConnection, request: Any) -> Any:
        return None if "Upgrade" in request.headers else connection.respond(HTTPStatus.OK, "hello")


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def stream(
    port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the port."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        yield reader, writer
    finally:
        await close(writer)


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return what arrives before the connection ends or is reset."""
    with suppress(ConnectionResetError):
        return await reader.read()
    return b""


async def exchange(port: int, parts: list[bytes], tls: ssl.SSLContext | None = None) -> bytes:
    """Send parts one by one. Return as many bytes of the answer as were sent, or the whole one if it is shorter."""
    async with stream(port, tls) as (reader, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)  # for a packet of its own
        try:
            return await reader.readexactly(sum(map(len, parts)))
        except asyncio.IncompleteReadError as e:
            return e.partial


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def splits(data: bytes, until: int) -> list[list[bytes]]:
    """All splits into two parts within the first bytes, and one into single bytes."""
    single = [data[n : n + 1] for n in range(until)] + [data[until:]]
    return [*([data[:n], data[n:]] for n in range(1, until + 1)), single, [data]]


@pytest.mark.parametrize("data", [POST, STATUS], ids=["POST", "lease_status"])
def test_http_requests_reach_the_handler_in_any_split(data: bytes) -> None:
    async def work() -> None:
        server = Server()
        async with server.listening() as port:
            for parts in splits(data, 20):
                assert await exchange(port, parts) == data
            assert server.websockets == 0
            assert not server.shared.undecided

    run(work())


@pytest.mark.parametrize("data", [HEALTH, LEASE], ids=["healthz", "lease"])
def test_other_requests_reach_the_websocket_server_in_any_split(data: bytes) -> None:
    async def work() -> None:
        server = Server()
        async with server.listening() as port:
            for n, parts in enumerate(splits(data, 20), 1):
                assert (await exchange(port, parts)).startswith(b"HTTP/1.1 200 OK")
                assert server.websockets == n
            assert not server.shared.undecided

    run(work())


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"PUT /claim", b"POSTER", b"post /claim", b"\r\n", b"\x00"])
def test_any_other_bytes_reach_the_websocket_server(data: bytes) -> None:
    async def work() -> None:
        server = Server()
        async with server.listening() as port, stream(port) as (reader, writer):
            writer.write(data + b"\r\n\r\n")
            assert not (await rest(reader)).startswith(data)
            assert server.websockets == 1

    run(work())


def test_many_bytes_at_once_are_relayed_whole() -> None:
    """More than a stream's buffer holds."""

    async def work() -> None:
        async with Server().listening() as port, stream(port) as (reader, writer):
            data = POST + bytes(range(256)) * 40_000
            writer.write(data)
            assert await reader.readexactly(len(data)) == data

    run(work())


@pytest.mark.parametrize("sent", [b"", b"P", b"GET /lease_statu"])
def test_a_silent_connection_is_dropped_after_the_timeout(sent: bytes) -> None:
    async def work() -> None:
        server = Server(timeout_s=0.2)
        async with server.listening() as port, stream(port) as (reader, writer):
            started = asyncio.get_running_loop().time()
            writer.write(sent)
            assert await rest(reader) == b""
            assert asyncio.get_running_loop().time() - started >= 0.15
            assert not server.shared.undecided

    run(work())


def test_a_decided_connection_may_be_silent() -> None:
    async def work() -> None:
        async with Server(timeout_s=0.1).listening() as port, stream(port) as (reader, writer):
            for part in (b"POST ", b"/claim"):
                writer.write(part)
                assert await reader.readexactly(len(part)) == part
                await asyncio.sleep(0.3)

    run(work())


def test_a_client_that_leaves_early_is_forgotten() -> None:
    async def work() -> None:
        server = Server()
        async with server.listening() as port:
            async with stream(port) as (_, writer):
                writer.write(b"PO")
                while not server.shared.undecided:
                    await asyncio.sleep(0.01)
            while server.shared.undecided:
                await asyncio.sleep(0.01)
            assert server.websockets == 0

    run(work())


def test_the_end_of_the_server_drops_undecided_connections() -> None:
    async def work() -> None:
        server = Server(timeout_s=60)
        listening = server.listening()
        async with stream(await listening.__aenter__()) as (reader, writer):
            writer.write(b"GET /lease")
            while not server.shared.undecided:
                await asyncio.sleep(0.01)
            await listening.__aexit__(None, None, None)
            assert await rest(reader) == b""

    run(work())


def test_a_websocket_client_is_unaffected() -> None:
    """Messages of all sizes beside HTTP requests on the same port."""

    async def work() -> None:
        async with Server().listening() as port, connect(f"ws://127.0.0.1:{port}", max_size=None) as client:
            for message in (b"", b"POST ", bytes(range(256)), bytes(2**22)):
                await client.send(message)
                assert await exchange(port, [POST]) == POST
                assert await client.recv() == message

    run(work())


def test_tls() -> None:
    """Both kinds of connections, with the bytes in parts."""
    authority = trustme.CA()
    context, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusting)

    async def work() -> None:
        async with Server().listening(context) as port:
            for parts in ([POST], [POST[:3], POST[3:]], [STATUS[:10], STATUS[10:]]):
                assert await exchange(port, parts, trusting) == b"".join(parts)
            assert (await exchange(port, [HEALTH[:9], HEALTH[9:]], trusting)).startswith(b"HTTP/1.1 200 OK")
            async with connect(f"wss://127.0.0.1:{port}", ssl=trusting) as client:
                await client.send("POST ")
                assert await client.recv() == "POST "

    run(work())
