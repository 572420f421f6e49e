"""Emulation of a network link: a relay in a process of its own, with a bit rate and a delay, that counts bytes.

Bytes held by the relay are in flight, as on a real link. They are limited to the product of rate and delay, and the
queue in front of the link.
"""

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
import socket
import subprocess
import time

from nninteractive_ws.processes import python_module, stdin_stream

_CHUNK_BYTES = 32 * 1024
#: Size of the queue in front of the link, as in the sender's router.
_QUEUE_BYTES = 256 * 1024


@dataclass(frozen=True)
class LinkSpeed:
    """``bits_per_s``: in each direction. ``delay_s``: one-way."""

    name: str
    bits_per_s: float
    delay_s: float


class Link:
    """The process of a link. Its first line of standard output is the ``port`` on which it listens."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.port = int(self._line())

    def count(self) -> tuple[int, int]:
        """Return the number of bytes received from the client and from the server."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        up, down = self._line().split()
        return int(up), int(down)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The link process ended with status {self._process.wait()}.")
        return line


@contextmanager
def link(port: int, speed: LinkSpeed, listen: int = 0) -> Iterator[Link]:
    """Start a link to a port on this machine. ``listen``: its own port; 0: a free one.

    All its connections are closed at the end of the context.
    """
    command = python_module("nninteractive_ws.benchmark.network_emulation", str(port))
    command += [str(speed.bits_per_s), str(speed.delay_s), str(listen)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Link(process)
        finally:
            process.terminate()


async def _relay(port: int, speed: LinkSpeed, listen: int) -> None:
    """Relay until standard input ends. Print the counts at each line of it."""
    # One pipe in each direction, shared by all connections.
    up, down = _ThrottledPipe(speed), _ThrottledPipe(speed)

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK_BYTES)
        await asyncio.gather(up.carry(reader, to_server), down.carry(from_server, writer))
        writer.close()
        to_server.close()

    listener = socket.create_server(("127.0.0.1", listen))
    # Limit the receive buffer, because its content is beyond the relay's control.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
    requests = stdin_stream()
    async with await asyncio.start_server(join, sock=listener, limit=_CHUNK_BYTES):
        print(listener.getsockname()[1], flush=True)
        while await requests.readline():
            print(up.count, down.count, flush=True)


class _ThrottledPipe:
    """One direction of a link: chunks are sent one after another at its rate, and arrive after its delay."""

    def __init__(self, speed: LinkSpeed) -> None:
        self._bytes_per_s, self._delay_s = speed.bits_per_s / 8, speed.delay_s
        self.count = 0
        self._free_at = 0.0
        in_flight = self._bytes_per_s * self._delay_s + _QUEUE_BYTES
        self._capacity = asyncio.Semaphore(max(2, int(min(in_flight, 64e6)) // _CHUNK_BYTES))

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.ensure_future(self._deliver(queue, writer))
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._capacity.acquire()
                self._free_at = max(self._free_at, time.monotonic()) + len(data) / self._bytes_per_s
                queue.put_nowait((self._free_at + self._delay_s, data))
                self.count += len(data)
        queue.put_nowait((self._free_at + self._delay_s, b""))
        await delivering

    async def _deliver(self, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            at, data = await queue.get()
            # Do not sleep for less than the clock resolution of the event loop.
            if (wait := at - time.monotonic()) > 1e-3:
                await asyncio.sleep(wait)
            with suppress(OSError):
                if not data:
                    writer.write_eof()  # the other direction may still be open
                    return
                self._capacity.release()
                writer.write(data)
                await writer.drain()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("bits_per_s", type=float)
    parser.add_argument("delay_s", type=float)
    parser.add_argument("listen", type=int)
    args = parser.parse_args()
    with suppress(KeyboardInterrupt):  # Ctrl-C in a terminal reaches this process too
        asyncio.run(_relay(args.port, LinkSpeed("", args.bits_per_s, args.delay_s), args.listen))


if __name__ == "__main__":
    main()
