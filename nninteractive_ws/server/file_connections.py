"""Connections that request a file of the web page.

websockets closes a connection some seconds after its HTTP response, which would cut off large files on a slow link.
"""

import asyncio
from collections.abc import Awaitable, Callable
import logging

from websockets.exceptions import WebSocketException
from websockets.http11 import Request, Response
from websockets.streams import StreamReader

from nninteractive_ws.background_tasks import BackgroundTasks

_log = logging.getLogger(__name__)

#: Timeouts for the head of a request, and for each part of the response.
HEAD_TIMEOUT_S, PART_TIMEOUT_S = 5.0, 20.0
_PART_BYTES = 64 * 1024

#: Returns the response to a request from an address.
Respond = Callable[[Request, str], Awaitable[Response]]


class FileConnections:
    """Open connections, each with one request. ``respond``: makes the responses."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._tasks = BackgroundTasks()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the request of a connection, and close it."""
        self._tasks.spawn(self._serve(reader, writer))

    async def close(self) -> None:
        """End all connections."""
        await self._tasks.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                request = _parse(await reader.readuntil(b"\r\n\r\n"))
            response = await self._respond(request, str(peer[0]) if peer else "?")
            await _send(writer, response, with_body=request.method != "HEAD")
        except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError) as e:
            # The client sent no valid request, or does not read, or has disconnected.
            _log.debug("closed a connection that requested a file: %r", e)
        finally:
            writer.transport.abort()


def _parse(head: bytes) -> Request:
    """Return a request. Raises ValueError for an invalid one."""
    lines = StreamReader()
    lines.feed_data(head)
    try:
        next(Request.parse(lines.read_line))
    except StopIteration as done:
        request: Request = done.value
        return request
    except (WebSocketException, NotImplementedError) as e:
        raise ValueError(str(e)) from e
    raise ValueError("the request has no end")


async def _send(writer: asyncio.StreamWriter, response: Response, with_body: bool) -> None:
    """Send a response, and wait until the client has it or stops reading. Raises TimeoutError or OSError."""
    head = Response(response.status_code, response.reason_phrase, response.headers)
    # So that drain waits until all is sent. With a limit of 0, asyncio's TLS stays paused with an empty buffer.
    writer.transport.set_write_buffer_limits(high=1, low=0)
    writer.write(head.serialize())
    body = memoryview(response.body if with_body else b"")
    for start in range(0, len(body), _PART_BYTES):
        writer.write(body[start : start + _PART_BYTES])
        async with asyncio.timeout(PART_TIMEOUT_S):
            await writer.drain()
    writer.close()
    async with asyncio.timeout(PART_TIMEOUT_S):
        await writer.wait_closed()
