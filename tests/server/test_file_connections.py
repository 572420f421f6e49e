"""Connections that request a file: over slow links, with invalid requests, and at the end of the server."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from websockets.http11 import Request, Response

from nninteractive_ws.server import file_connections
from nninteractive_ws.server.file_connections import FileConnections
from nninteractive_ws.server.web_page import http_response

BODY = bytes(range(256)) * 40_000


class Server:
    """A server whose every file is BODY."""

    def __init__(self) -> None:
        self.requests: list[tuple[Request, str]] = []
        self.connections = FileConnections(self._respond)

    async def _respond(self, request: Request, peer: str) -> Response:
        self.requests.append((request, peer))
        return http_response(HTTPStatus.OK, "text/plain", BODY)

    @asynccontextmanager
    async def client(self, limit: int = 2**16) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with await asyncio.start_server(self.connections.accept, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
            try:
                yield reader, writer
            finally:
                writer.close()
                await self.connections.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return what arrives before the connection ends or is reset."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_is_sent_after_its_headers(method: str) -> None:
    async def work() -> None:
        server = Server()
        async with server.client() as (reader, writer):
            writer.write(f"{method} /a.js?x HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(BODY)}".encode() in head
        assert body == (BODY if method == "GET" else b"")
        ((request, peer),) = server.requests
        assert (request.path, request.headers["Accept-Encoding"], peer) == ("/a.js?x", "gzip", "127.0.0.1")

    run(work())


def test_a_slow_client_gets_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file takes longer than the timeout of a part."""
    monkeypatch.setattr(file_connections, "PART_TIMEOUT_S", 1)

    async def work() -> None:
        async with Server().client(limit=2**14) as (reader, writer):
            writer.write(b"GET /a.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            started = asyncio.get_running_loop().time()
            await reader.readuntil(b"\r\n\r\n")
            for start in range(0, len(BODY), len(BODY) // 40):
                await asyncio.sleep(0.03)
                assert await reader.readexactly(len(BODY) // 40) == BODY[start : start + len(BODY) // 40]
            assert asyncio.get_running_loop().time() - started > file_connections.PART_TIMEOUT_S

    run(work())


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_connections, "PART_TIMEOUT_S", 0.1)

    async def work() -> None:
        server = Server()
        async with server.client(limit=2**14) as (reader, writer):
            writer.write(b"GET /a.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.sleep(1)
            assert len(await rest(reader)) < len(BODY)

    run(work())


@pytest.mark.parametrize(
    "head",
    [
        b"GET /a.js\r\n\r\n",
        b"GET /a.js HTTP/3\r\n\r\n",
        b"GET /a.js HTTP/1.1\r\nnot a header\r\n\r\n",
        b"GET /a.js HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /a.js HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"GET /a.js HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /a.js HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"GET /a.js HTTP/1.1\r\nHost: localhost\r\n",  # without an end
    ],
)
def test_an_invalid_request_ends_its_connection(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_connections, "HEAD_TIMEOUT_S", 0.5)

    async def work() -> None:
        server = Server()
        async with server.client() as (reader, writer):
            writer.write(head)
            assert await rest(reader) == b""
        assert server.requests == []

    run(work())


def test_open_connections_end_with_the_server() -> None:
    async def work() -> None:
        server = Server()
        async with server.client(limit=2**14) as (reader, writer):
            writer.write(b"GET /a.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await reader.read(10) == b"HTTP/1.1 2"
            await server.connections.close()
            assert len(await rest(reader)) < len(BODY)

    run(work())
