"""The gateway's process of the HTTP API: start, failures, relay and end. Small programs stand in for it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
import json
import os
from pathlib import Path
import signal
import sys
from typing import Any

import psutil
import pytest

from nninteractive_ws.server import official_api
from nninteractive_ws.server.admission import Admission
from nninteractive_ws.server.official_api import CannotStart, OfficialApiProcess

REQUEST = b"POST /claim HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
#: The start of each program writes a line to a file.
COUNT = "import os, sys, time; print(os.getpid(), file=open({starts!r}, 'a')); secret = sys.stdin.readline().strip()\n"
#: It ends with its standard input, and echoes the preamble's client address and all that follows.
ECHO = """
import socket, threading
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
def echo(connection):
    file = connection.makefile("rb")
    given, _, peer = file.readline().strip().decode().partition(" ")
    assert given == secret and " ".join(sys.argv[1:]) == "--gateway ws://127.0.0.1:1234 --tokens"
    connection.sendall(peer.encode() + b":")
    while data := file.read1(65536):
        connection.sendall(data)
    connection.close()
def accept():
    while True:
        threading.Thread(target=echo, args=(listening.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
sys.stdin.read()
"""
#: It sends only what it gets back.
ANSWER = ECHO.replace('connection.sendall(peer.encode() + b":")', "")
FAIL = "sys.exit(3)"
SILENT = "sys.stdin.read()"


class Program:
    """A program in place of the process. ``starts``: the process ids of its starts."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.code = ECHO

    def command(self, module: str, *arguments: str) -> list[str]:
        assert module == "nninteractive_ws.official_api.process"
        return [sys.executable, "-S", "-c", COUNT.format(starts=str(self._file)) + self.code]

    @property
    def starts(self) -> list[int]:
        return [int(line) for line in self._file.read_text().split()] if self._file.exists() else []


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    replaced = Program(tmp_path / "starts")
    monkeypatch.setattr(official_api, "python_module", replaced.command)
    return replaced


Connect = Callable[[], Any]


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[OfficialApiProcess, Connect]]:
    """A listening socket whose connections the process answers."""
    process = OfficialApiProcess(["--tokens"], Admission(9, 9, 9), 9)
    process.listen_for(1234)
    server = await asyncio.start_server(process.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield process, lambda: connection(port)
    finally:
        server.close()
        await process.close()


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def unavailable(connect: Connect) -> str:
    """Send a request, and return the message of its 503."""
    async with connect() as (reader, writer):
        writer.write(REQUEST)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 503 Service Unavailable"
        headers = dict(line.split(": ") for line in lines[1:])
        assert int(headers["Retry-After"]) > 0 or official_api.RETRY_AFTER_S < 1
        assert int(headers["Content-Length"]) == len(body)
        detail: str = json.loads(body)["detail"]
        return detail


async def check_echo(connect: Connect, data: bytes = REQUEST) -> None:
    async with connect() as (reader, writer):
        writer.write(data)
        expected = b"127.0.0.1:" + data
        assert await reader.readexactly(len(expected)) == expected


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_the_first_connection_starts_the_process(program: Program) -> None:
    """One for all. The bytes of each connection are relayed both ways, after the secret and the client's address."""

    async def work() -> None:
        async with gateway() as (_, connect):
            assert program.starts == []
            await asyncio.gather(*(check_echo(connect, REQUEST + bytes([n]) * 300_000) for n in range(8)))
            assert len(program.starts) == 1

    run(work())


def test_the_end_of_a_client_is_relayed(program: Program) -> None:
    async def work() -> None:
        async with gateway() as (process, connect):
            await check_echo(connect)
            while process._relays:
                await asyncio.sleep(0.01)
            assert psutil.Process(program.starts[0]).net_connections("tcp")[0].status == psutil.CONN_LISTEN

    run(work())


def test_a_failed_start_is_not_repeated_at_once(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official_api, "RETRY_AFTER_S", 1.0)
    program.code = FAIL

    async def work() -> None:
        async with gateway() as (_, connect):
            messages = await asyncio.gather(*(unavailable(connect) for _ in range(20)))
            assert len(program.starts) == 1
            assert sum("ended with status 3 while it started" in message for message in messages) == 1
            assert sum("has just failed to start" in message for message in messages) == 19
            await asyncio.sleep(1.1)
            program.code = ECHO
            await check_echo(connect)
            assert len(program.starts) == 2

    run(work())


def test_a_process_that_does_not_start_in_time_is_ended(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that waited for it do not start another at once, although the delay since its start is over."""
    monkeypatch.setattr(official_api, "START_TIMEOUT_S", 1.0)
    monkeypatch.setattr(official_api, "RETRY_AFTER_S", 0.9)
    program.code = SILENT

    async def work() -> None:
        async with gateway() as (_, connect):
            messages = await asyncio.gather(*(unavailable(connect) for _ in range(3)))
            assert all("The server's log says why" in message for message in messages)
            (pid,) = program.starts
            assert not psutil.pid_exists(pid)

    run(work())


def test_a_program_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official_api, "python_module", lambda module: ["/no/such/program"])

    async def work() -> None:
        process = OfficialApiProcess([], Admission(9, 9, 9), 9)
        for message in ("could not be started", "has just failed to start"):
            with pytest.raises(CannotStart, match=message):
                await process._connect("127.0.0.1")

    run(work())


def test_a_process_that_ended_is_started_again(program: Program) -> None:
    async def work() -> None:
        async with gateway() as (_, connect):
            await check_echo(connect)
            async with connect() as (reader, writer):
                writer.write(REQUEST)
                await reader.readexactly(10)
                os.kill(program.starts[0], signal.SIGKILL)
                with suppress(ConnectionResetError):
                    await reader.read()  # until the end: the client learns of it
                while psutil.pid_exists(program.starts[0]):
                    await asyncio.sleep(0.01)
            await check_echo(connect)
            assert len(program.starts) == 2

    run(work())


def test_the_end_of_the_gateway(program: Program) -> None:
    """It ends the process and its connections."""

    async def work() -> None:
        async with gateway() as (process, connect), connect() as (reader, writer):
            writer.write(REQUEST)
            await reader.readexactly(10)
            await process.close()
            with suppress(ConnectionResetError):
                await reader.read()
            assert not psutil.pid_exists(program.starts[0])

    run(work())


def test_no_connection_is_relayed_after_the_end(program: Program) -> None:
    async def work() -> None:
        async with gateway() as (process, connect):
            await check_echo(connect)
            await process.close()
            async with connect() as (reader, writer):
                writer.write(REQUEST)
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            assert len(program.starts) == 1

    run(work())


def test_a_client_that_does_not_read_is_disconnected(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official_api, "READ_TIMEOUT_S", 0.2)

    async def work() -> None:
        async with gateway() as (process, connect), connect() as (reader, writer):
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            with suppress(ConnectionError):
                while True:  # the program sends it back
                    writer.write(bytes(2**20))
                    await writer.drain()
            async with asyncio.timeout(10):
                while len(process._relays):
                    await asyncio.sleep(0.01)

    run(work())


def test_the_end_of_the_gateway_during_the_start(program: Program) -> None:
    program.code = SILENT

    async def work() -> None:
        async with gateway() as (process, connect), connect() as (reader, writer):
            writer.write(REQUEST)
            while not program.starts:
                await asyncio.sleep(0.01)
            await process.close()
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            assert not psutil.pid_exists(program.starts[0])

    run(work())


class RecordingAdmission(Admission):
    """Counts the connections that are protected at present."""

    protected = 0

    @contextmanager
    def with_session(self, transport: asyncio.BaseTransport) -> Iterator[None]:
        self.protected += 1
        try:
            yield
        finally:
            self.protected -= 1


@pytest.mark.parametrize(
    ("answer", "protected"), [(b"HTTP/1.1 200 OK", 2), (b"HTTP/1.1 401 Unauthorized", 0), (b"HTTP/1.1 410 Gone", 0)]
)
def test_connections_of_accepted_clients_are_protected(program: Program, answer: bytes, protected: int) -> None:
    """As many as there may be; later ones are served, but may be dropped in favor of others."""

    async def check() -> None:
        program.code = ANSWER
        admission = RecordingAdmission(9, 9, 9)
        process = OfficialApiProcess(["--tokens"], admission, 2)
        process.listen_for(1234)
        server = await asyncio.start_server(process.accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with connection(port) as one, connection(port) as two, connection(port) as three:
            for reader, writer in (one, two, three):  # the program sends back what it gets
                writer.write(answer)
                assert await reader.readexactly(len(answer)) == answer
            assert admission.protected == protected
        async with asyncio.timeout(10):
            while admission.protected:
                await asyncio.sleep(0.01)
        server.close()
        await process.close()

    run(check())
