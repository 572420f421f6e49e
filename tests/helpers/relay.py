"""A TCP relay between a client and a server that limits the bandwidth and can break connections."""

import asyncio
from contextlib import AbstractContextManager, suppress
import socket
import threading
from urllib.parse import urlsplit

from helpers.threads import serving

_CHUNK_BYTES = 16 * 1024


class Relay:
    """Forwards connections to a server. ``bytes_per_second``: limit from client to server."""

    def __init__(self, server: str, bytes_per_second: float) -> None:
        parts = urlsplit(server)
        self._target = parts.hostname, parts.port
        self.bytes_per_second = bytes_per_second
        self.bytes_up = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        # Bytes in a buffer of the system can no longer be delayed.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * _CHUNK_BYTES)
        self.address = f"ws://127.0.0.1:{self._listening.getsockname()[1]}"
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break all connections, from any thread."""
        self._loop.call_soon_threadsafe(self._abort)

    def stop(self) -> None:
        """Break all connections and stop listening, from any thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._join, sock=self._listening, limit=_CHUNK_BYTES):
            started.set()
            await self._stop.wait()
            self._abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(*self._target)
        self._writers |= {writer, to_server}
        try:
            await asyncio.gather(self._up(reader, to_server), self._down(from_server, writer))
        finally:
            self._writers -= {writer, to_server}

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                await asyncio.sleep(len(data) / self.bytes_per_second)
                self.bytes_up += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
        writer.close()


def relay(server: str, bytes_per_second: float = float("inf")) -> AbstractContextManager[Relay]:
    """A relay to a server, on a separate thread."""
    return serving(Relay(server, bytes_per_second))
