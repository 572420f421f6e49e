"""The process that answers nnInteractive's HTTP API: its start and end, and the relay of connections to it."""

import asyncio
from collections.abc import Iterator, Sequence
import contextlib
import json
import logging
import secrets

from nninteractive_ws.background_tasks import BackgroundTasks
from nninteractive_ws.processes import end_async_process, own_process_group, python_module
from nninteractive_ws.server.admission import Admission

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 256 * 1024
# The beginning of an answer without an error.
_ACCEPTED = b"HTTP/1.1 2"
#: Timeout for a client to read a part of an answer.
READ_TIMEOUT_S = 60.0
#: Timeouts for the process to start and to end.
START_TIMEOUT_S, END_TIMEOUT_S = 30.0, 3.0
#: Delay after a failed start, so that clients without a process do not start many.
RETRY_AFTER_S = 5.0
# Timeout for noticing that the process has ended, if it refuses a connection.
_END_NOTICED_S = 1.0


class CannotStart(Exception):
    """The process does not start. ``str()`` is a sentence for the user."""


class OfficialApiProcess:
    """The process, which is started by the first connection, and again if it has ended.

    ``arguments``: its own. ``admission``: of its clients. Up to ``max_protected`` connections of clients that the
    process has accepted are not dropped in favor of others.
    """

    def __init__(self, arguments: Sequence[str], admission: Admission, max_protected: int) -> None:
        self._arguments, self._admission = arguments, admission
        self._unprotected = max_protected
        self._secret = secrets.token_urlsafe(32)
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0
        self._gateway_port = 0
        self._starting = asyncio.Lock()
        self._failed_at: float | None = None
        self._relays = BackgroundTasks()
        self._closed = False

    def listen_for(self, gateway_port: int) -> None:
        """Set the port of the gateway, on loopback, to which the process connects."""
        self._gateway_port = gateway_port

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay a client's connection until one side closes it."""
        if self._closed:
            writer.transport.abort()
        else:
            self._relays.spawn(self._relay(reader, writer))

    async def close(self) -> None:
        """End all connections and the process, and refuse further connections."""
        self._closed = True
        await self._relays.cancel()
        if self._process is not None:
            await end_async_process(self._process, END_TIMEOUT_S)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = writer.get_extra_info("peername")
            up_reader, up_writer = await self._connect(str(peer[0]) if peer else "?")
        except CannotStart as e:
            _log.error("%s", e)
            writer.write(_unavailable(str(e)))
        else:
            try:
                await self._relay_both(reader, writer, up_reader, up_writer)
            finally:
                up_writer.close()
        finally:
            writer.close()

    async def _relay_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Relay bytes both ways until one side closes its connection."""
        down = self._relay_answers(up_reader, writer)
        tasks = [asyncio.ensure_future(_pump(reader, up_writer)), asyncio.ensure_future(down)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay_answers(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Relay answers. After a first one without an error, the client's connection is protected.

        The first request of a connection is a POST or needs a lease, and such an answer needs a valid token.
        """
        first = await source.read(_CHUNK_BYTES)
        sink.write(first)
        with self._protected(sink.transport) if first.startswith(_ACCEPTED) else contextlib.nullcontext():
            # The process keeps an answer until the client has read it.
            await _pump(source, sink, READ_TIMEOUT_S)

    @contextlib.contextmanager
    def _protected(self, transport: asyncio.BaseTransport) -> Iterator[None]:
        if self._unprotected == 0:
            yield
            return
        self._unprotected -= 1
        try:
            with self._admission.with_session(transport):
                yield
        finally:
            self._unprotected += 1

    async def _connect(self, peer: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            reader, writer = await self._open_connection()
        except OSError as e:
            raise CannotStart("The process of the HTTP API does not answer. Try again in a moment.") from e
        writer.write(f"{self._secret} {peer}\n".encode())
        return reader, writer

    async def _open_connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the process. Raises CannotStart or OSError."""
        process = await self._running_process()
        try:
            return await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            # It may have ended just now, before asyncio has noticed it. TimeoutError is an OSError.
            await asyncio.wait_for(process.wait(), _END_NOTICED_S)
        await self._running_process()
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _running_process(self) -> asyncio.subprocess.Process:
        """Return the process, which is started if necessary. Raises CannotStart."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
            assert self._process is not None
            return self._process

    async def _start(self) -> None:
        """Raises CannotStart."""
        clock = asyncio.get_running_loop().time
        if self._failed_at is not None and clock() - self._failed_at < RETRY_AFTER_S:
            raise CannotStart("The process of the HTTP API has just failed to start. The server's log says why.")
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *python_module("nninteractive_ws.official_api.process"),
                *("--gateway", f"ws://127.0.0.1:{self._gateway_port}", *self._arguments),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, **own_process_group(),
            )  # fmt: skip
        except OSError as e:  # such as too many open files
            self._failed_at = clock()
            raise CannotStart(f"The process of the HTTP API could not be started ({e}). Try again later.") from e
        assert process.stdin is not None
        assert process.stdout is not None
        # The pipe stays open. The process ends when it closes, which it does when this process ends for any reason.
        process.stdin.write(self._secret.encode() + b"\n")
        with contextlib.suppress(TimeoutError, ValueError):
            self._port = int(await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S))
            self._failed_at = None
            return
        await end_async_process(process, END_TIMEOUT_S)
        self._failed_at = clock()  # not the time of the start, because a start may take longer than the delay
        raise CannotStart(
            f"The process of the HTTP API ended with status {process.returncode} while it started. The server's log "
            "says why."
        )


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, timeout_s: float | None = None) -> None:
    """Relay bytes until the source ends, a connection is lost, or the sink does not take them within ``timeout_s``."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_CHUNK_BYTES):
            sink.write(data)
            try:
                async with asyncio.timeout(timeout_s):
                    await sink.drain()
            except TimeoutError:
                sink.transport.abort()
                return


def _unavailable(message: str) -> bytes:
    body = json.dumps({"detail": message}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {RETRY_AFTER_S:.0f}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
