"""Connections from the gateway: the line with the secret, and timeouts."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
import functools
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn import Config, Server

from nninteractive_ws.official_api import bodies, process
from nninteractive_ws.official_api.process import MAX_PREAMBLE_BYTES, GatewayConnection
from nninteractive_ws.server.admission import Admission, bound_port, listen

SECRET = b"s3cret"
PREAMBLE = SECRET + b" 192.0.2.7\n"
REQUEST = b"POST /peer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


async def _peer(request: Request) -> JSONResponse:
    assert request.client is not None
    try:
        body = await request.body()
    except ClientDisconnect:
        body = b""
    return JSONResponse({"peer": request.client.host, "body": body.decode()})


async def _ignore_body(request: Request) -> JSONResponse:
    return JSONResponse({})


@asynccontextmanager
async def listening(admission: Admission | None = None) -> Any:
    """Serve HTTP for the gateway. Returns the port."""
    app = Starlette(routes=[Route("/peer", _peer, methods=["POST"]), Route("/none", _ignore_body, methods=["POST"])])
    admission = admission or Admission(10, 10, 10)
    (bound,) = listen("127.0.0.1", 0, admission)
    http: Any = functools.partial(GatewayConnection, secret=SECRET, admission=admission)
    server = Server(Config(app, http=http, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    try:
        yield bound_port(bound)
    finally:
        server.should_exit = True
        await serving


def run(work: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))  # type: ignore[arg-type]


async def send(port: int, *parts: bytes, within: float = 10) -> bytes:
    """Send bytes in parts that arrive one by one. Return the body of the answer, or nothing if it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.002)
        async with asyncio.timeout(within):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        (length,) = (int(line.split(b":")[1]) for line in head.splitlines() if line.startswith(b"content-length"))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    finally:
        writer.close()


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Send data now and then, and return whether the server closes the connection within seconds."""
    try:
        for _ in range(100):
            await asyncio.sleep(0.02)
            writer.write(data)
            await writer.drain()
            if reader.at_eof():
                return True
    except ConnectionError:
        return True
    return False


def test_the_right_line() -> None:
    async def work() -> None:
        async with listening() as port:
            assert json.loads(await send(port, PREAMBLE + REQUEST)) == {"peer": "192.0.2.7", "body": "{}"}

    run(work)


def test_the_right_line_in_any_split() -> None:
    data = PREAMBLE + REQUEST

    async def work() -> None:
        async with listening() as port:
            for cut in range(1, len(data)):
                assert json.loads(await send(port, data[:cut], data[cut:]))["peer"] == "192.0.2.7"
            single = [data[n : n + 1] for n in range(len(data))]
            assert json.loads(await send(port, *single))["peer"] == "192.0.2.7"

    run(work)


@pytest.mark.parametrize(
    "first",
    [
        b"s3creT 192.0.2.7\n", b"s3cre 192.0.2.7\n", b"s3cretx 192.0.2.7\n", b"\n", b" 192.0.2.7\n", b"", b"\xff\n",
        b"x" * (MAX_PREAMBLE_BYTES + 1), b"x" * 100_000,
    ],
    ids=lambda first: repr(first[:12]),
)  # fmt: skip
def test_any_other_line_closes_the_connection(first: bytes) -> None:
    async def work() -> None:
        async with listening() as port:
            assert await send(port, first + REQUEST) == b""
            assert await send(port, PREAMBLE + REQUEST)

    run(work)


@pytest.mark.parametrize("first", [b"", b"s3", SECRET + b" 192.0.2.7"])
def test_a_connection_without_the_line_in_time_is_closed(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(process, "PREAMBLE_TIMEOUT_S", 0.1)

    async def work() -> None:
        async with listening() as port:
            assert await send(port, first) == b""

    run(work)


@pytest.mark.parametrize("start", [b"P", REQUEST[:20], REQUEST.partition(b"\r\n\r\n")[0]])
def test_headers_that_do_not_end_in_time_close_the_connection(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(process, "HEADER_TIMEOUT_S", 0.3)

    async def work() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREAMBLE + start)
            assert await closes(reader, writer, b"x")
            writer.close()

    run(work)


def test_a_slow_body_and_a_slow_answer_are_no_slow_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "HEADER_TIMEOUT_S", 0.1)

    async def work() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREAMBLE)
            for _ in range(2):
                await asyncio.sleep(0.2)
                writer.write(REQUEST[:-1])
                await asyncio.sleep(0.2)
                writer.write(REQUEST[-1:])
                assert b"192.0.2.7" in await reader.readuntil(b'"{}"}')
            writer.close()

    run(work)


def test_the_rest_of_a_body_that_nobody_reads_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.2)

    async def work() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREAMBLE + b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n")
            await reader.readuntil(b"{}")
            assert await closes(reader, writer, bytes(1000))
            writer.close()

    run(work)


@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
def test_the_rest_of_a_body_that_nobody_reads_may_be_slow(monkeypatch: pytest.MonkeyPatch, framing: bytes) -> None:
    monkeypatch.setattr(process, "HEADER_TIMEOUT_S", 0.05)
    body = b"5\r\nabcde\r\n0\r\n\r\n" if b"chunked" in framing else bytes(10)

    async def work() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREAMBLE + b"POST /none HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
            await reader.readuntil(b"{}")
            for n in range(len(body)):
                writer.write(body[n : n + 1])
                await asyncio.sleep(0.02)
            writer.write(REQUEST)
            assert b"192.0.2.7" in await reader.readuntil(b'"{}"}')
            writer.close()

    run(work)


def test_an_early_answer_can_be_read_after_the_body() -> None:
    """Even if the connection is closed then. Many clients read no answer before they have sent the whole body."""

    async def work() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 20000000\r\n\r\n"
            writer.write(PREAMBLE + head)
            for _ in range(20):
                writer.write(bytes(1_000_000))
                await writer.drain()
            assert (await reader.read()).endswith(b"{}")
            writer.close()

    run(work)


@pytest.mark.parametrize("header", ["X-Forwarded-For: 192.0.2.9", "Forwarded: for=192.0.2.9", "via: 1.1 proxy"])
@pytest.mark.parametrize("path", ["/peer", "/none"])
def test_a_connection_of_a_proxy_has_one_request(header: str, path: str) -> None:
    """The next one may be of another client, and not for this process."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{header}\r\nContent-Length: 2\r\n\r\n"

    async def work() -> None:
        assert await only_answer(PREAMBLE + head.encode() + b"{}") == 200

    run(work)


@pytest.mark.parametrize(
    ("request_line", "status"), [("POST /other", 404), ("GET /", 404), ("GET /peer", 405), ("HEAD /none", 405)]
)
def test_a_connection_ends_with_a_request_that_is_not_for_this_process(request_line: str, status: int) -> None:
    async def work() -> None:
        assert await only_answer(PREAMBLE + f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) == status

    run(work)


async def only_answer(data: bytes) -> int:
    """Send two requests at once, the second a valid one. Return the status of the first, and check that only it is
    answered."""
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data + REQUEST)
        answer = await reader.read()
        writer.close()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in answer.lower()
    return int(answer.split()[1])


def test_connections_with_the_line_are_not_dropped_for_others() -> None:
    async def work() -> None:
        async with listening(Admission(2, 2, 10)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREAMBLE)
            await asyncio.sleep(0.05)
            others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            writer.write(REQUEST)
            assert b"192.0.2.7" in await reader.readuntil(b'"{}"}')
            for _, other in (*others, (reader, writer)):
                other.close()

    run(work)


@pytest.mark.parametrize("path", [b"/peer", b"/none"])
@pytest.mark.parametrize("body", [b"zz\r\n", b"3\r\nabcX", b"3\r\nabc\r\nzz\r\n", b"0\r\n\r\n\xff\xff\r\n\r\n"])
def test_an_invalid_chunk_is_answered_once(caplog: pytest.LogCaptureFixture, path: bytes, body: bytes) -> None:
    head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def work() -> None:
        async with listening() as port:
            for pause in (0.0, 0.05):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(PREAMBLE + head)
                await asyncio.sleep(pause)
                writer.write(body)
                answer = await asyncio.wait_for(reader.read(), 10)
                assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))
                assert answer.count(b"HTTP/1.1") <= 2
                writer.close()
            assert json.loads(await send(port, PREAMBLE + REQUEST))

    run(work)
    assert not [record for record in caplog.records if record.exc_info]
