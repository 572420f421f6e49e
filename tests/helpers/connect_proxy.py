"""An HTTP proxy with the method CONNECT, on its own thread."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
import socket
import threading

import pytest

from helpers.threads import serving

#: Environment variables of proxies, in lower case.
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ws_proxy", "wss_proxy", "socks_proxy")


class ConnectProxy:
    """Connects every client to ``target`` (host:port), or sends ``answer``. ``requests``: the headers of requests."""

    def __init__(self, target: str | None, answer: bytes) -> None:
        self._target, self._answer = target, answer
        self.requests: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self._listening.getsockname()[1]}"

    async def serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._join, sock=self._listening):
            started.set()
            await self._stop.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self._target is not None:
                host, _, port = self._target.rpartition(":")
                other, to_target = await asyncio.open_connection(host, int(port))
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await asyncio.gather(_pump(reader, to_target), _pump(other, writer))
            elif self._answer:
                writer.write(self._answer)
            else:
                await self._stop.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side has closed
        finally:
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def connect_proxy(target: str | None = None, answer: bytes = b"") -> Iterator[ConnectProxy]:
    """A proxy. Without a target and an answer, it stays silent."""
    with serving(ConnectProxy(target, answer)) as proxy:
        yield proxy


def unset_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxy settings of the machine that runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
