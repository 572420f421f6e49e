"""Bytes in transit: limits of unfinished messages and of clients that do not read."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
import socket
import struct
import time
from typing import Any

from helpers.end_to_end import PlainClient, hello, run, wait_until
from helpers.fast_server import QuickServer, quick_server
from helpers.neighbor import undisturbed
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import messages as wire
from nninteractive_ws import protocol
from nninteractive_ws.server.buffers import MAX_INCOMING_BYTES, MAX_OUTGOING_BYTES, BoundedConnection, IncomingBytes

MIB = 2**20

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server("--memory", "2", "--max-sessions", "32") as server:
        yield server


def masked(opcode: int, data: bytes, length: int | None = None) -> bytes:
    """Return a client's frame with a mask of zeros. ``length``: the stated length."""
    size = len(data) if length is None else length
    stated = bytes([0x80 | size]) if size < 126 else b"\xff" + struct.pack(">Q", size)
    return bytes([opcode]) + stated + bytes(4) + data


def raw_client(server: QuickServer) -> socket.socket:
    """A connection that has sent hello, and never reads."""
    port = int(server.address.rpartition(":")[2])
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(UPGRADE)
    assert b"101" in client.recv(4096)
    client.sendall(masked(0x82, protocol.encode(hello())))
    assert client.recv(4096)
    return client


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frame", "fragment"])
def test_the_total_size_of_unfinished_messages_is_limited(quick: QuickServer, kind: str) -> None:
    size = 60 * MIB
    clients = []
    with undisturbed(quick, gateway=2 * MAX_INCOMING_BYTES + 200 * MIB):
        for _ in range(12):
            client = raw_client(quick)
            clients.append(client)
            part = masked(0x82, bytes(size - 10), size) if kind == "frame" else masked(0x02, bytes(size))
            try:
                client.sendall(part)
            except OSError:
                continue  # closed meanwhile, because it had the most bytes
        assert 12 * size > MAX_INCOMING_BYTES
        wait_until(lambda: sum(map(is_closed, clients)) >= 3, timeout=20)
        assert not all(map(is_closed, clients))
        for client in clients:
            client.close()


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.slow
def test_a_client_that_sends_pings_without_reading_is_disconnected(quick: QuickServer) -> None:
    with undisturbed(quick, gateway=MAX_OUTGOING_BYTES + 200 * MIB):
        client = raw_client(quick)
        pings = masked(0x89, bytes(125)) * 8192
        with pytest.raises(OSError, match=r"reset|pipe"):
            send_without_end(client, pings)
        client.close()


@pytest.mark.slow
def test_closed_connections_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a message of theirs is relayed after their end."""
    counter = IncomingBytes()

    async def work() -> None:
        left, release = asyncio.Event(), asyncio.Event()

        async def serve_client(connection: ServerConnection) -> None:
            await release.wait()
            with suppress(ConnectionClosed):
                async for message in connection:
                    connection.relayed(len(message))  # type: ignore[attr-defined]
            left.set()

        create = partial(BoundedConnection, incoming_bytes=counter)
        async with serve(serve_client, "127.0.0.1", 0, create_connection=create) as server:
            port = server.sockets[0].getsockname()[1]
            client = await connect(f"ws://127.0.0.1:{port}")
            await client.send(bytes(10 * MIB // 20))
            client.transport.abort()
            await asyncio.sleep(0.2)
            release.set()
            await left.wait()

    asyncio.run(asyncio.wait_for(work(), 30))
    assert not counter._connections
    assert counter._total == 0


@pytest.mark.slow
@pytest.mark.parametrize("trickles", [True, False])
def test_a_slow_upload_is_no_lost_connection(trickles: bool) -> None:
    """A pong waits behind the message of the client."""
    received: list[bytes] = []

    async def work() -> None:
        async def serve_client(connection: ServerConnection) -> None:
            with suppress(ConnectionClosed):
                async for message in connection:
                    received.append(message)  # type: ignore[arg-type]

        create = partial(BoundedConnection, incoming_bytes=IncomingBytes())
        options: dict[str, Any] = {"ping_interval": 0.2, "ping_timeout": 0.6}
        async with serve(serve_client, "127.0.0.1", 0, create_connection=create, **options) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(UPGRADE)
            await reader.readuntil(b"\r\n\r\n")
            frame = masked(0x82, bytes(30))
            for n in range(len(frame)):
                writer.write(frame[n : n + 1])
                await asyncio.sleep(0.1 if trickles or n else 3)
            writer.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    assert received == ([bytes(30)] if trickles else [])


def send_without_end(client: socket.socket, data: bytes) -> None:
    """Send repeatedly for two minutes."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        client.sendall(data)


@pytest.mark.slow
def test_relayed_messages_do_not_count_toward_the_limit(quick: QuickServer) -> None:
    """A client that sends more than the limit, one message after another, is not closed."""

    async def work() -> None:
        client = await PlainClient.open(quick.address)
        message = b"\x82\xa4type\xa4what\xa1x\xc6" + struct.pack(">I", 30 * MIB) + bytes(30 * MIB)
        for _ in range(MAX_INCOMING_BYTES // (30 * MIB) + 5):
            await client.websocket.send(message)
        await client.send(wire.GetMask(id=1, segment="a"))
        assert (await client.receive_answer(1))[1].code == "no_image"
        await client.leave()

    with undisturbed(quick):
        run(work(), 200)


@pytest.mark.parametrize("path", ["/healthz", "/", "/unknown"])
@pytest.mark.parametrize("rest", [b"\xff" * 9, b"GET / HTTP/1.1\r\n\r\n", masked(0x8F, b"x")])
def test_bytes_after_a_request_are_no_error_of_the_server(quick: QuickServer, path: str, rest: bytes) -> None:
    port = int(quick.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() + rest)
        try:
            while client.recv(4096):
                pass
        except ConnectionError:
            pass
    assert "Traceback" not in quick.log.read_text()
