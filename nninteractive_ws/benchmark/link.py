"""A link between a client and a server: a relay, in a process of its own, with a rate and a delay, that counts bytes.

What it holds back is on its way, as in a real link: at most what fits in rate times delay, and a queue before it.
"""

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
import socket
import subprocess
import sys
import time

from nninteractive_ws.processes import python_module

_CHUNK_BYTES = 32 * 1024
#: What waits before the link, in its sender's router.
_QUEUE_BYTES = 256 * 1024


@dataclass(frozen=True)
class LinkSpeed:
    """``bits_per_s``: each way; ``delay_s``: one way."""

    name: str
    bits_per_s: float
    delay_s: float


class Link:
    """A link's process, on whose standard output is first the ``port`` that it listens on."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.port = int(self._line())

    def count(self) -> tuple[int, int]:
        """How many bytes have come, from the client and from the server."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        up, down = self._line().split()
        return int(up), int(down)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the link ended with status {self._process.wait()}")
        return line


@contextmanager
def link(port: int, speed: LinkSpeed, listen: int = 0) -> Iterator[Link]:
    """A link to a port on this machine, from the port ``listen`` (0: a free one); it ends afterwards, with all its
    connections."""
    command = python_module("nninteractive_ws.benchmark.link", str(port))
    command += [str(speed.bits_per_s), str(speed.delay_s), str(listen)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Link(process)
        finally:
            process.terminate()


async def _relay(port: int, speed: LinkSpeed, listen: int) -> None:
    """Until standard input ends; for every line of it, the counts are printed."""
    # One wire for all connections, each way.
    up, down = _Wire(speed), _Wire(speed)

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK_BYTES)
        await asyncio.gather(up.carry(reader, to_server), down.carry(from_server, writer))
        writer.close()
        to_server.close()

    listening = socket.create_server(("127.0.0.1", listen))
    # What waits in a buffer of the system's is not held back any more.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    async with await asyncio.start_server(join, sock=listening, limit=_CHUNK_BYTES):
        print(listening.getsockname()[1], flush=True)
        while await asked.readline():
            print(up.count, down.count, flush=True)


class _Wire:
    """One way of a link: bytes leave one after the other at its rate, and arrive a delay later."""

    def __init__(self, speed: LinkSpeed) -> None:
        self._bytes_per_s, self._delay_s = speed.bits_per_s / 8, speed.delay_s
        self.count = 0
        self._free_at = 0.0
        on_its_way = self._bytes_per_s * self._delay_s + _QUEUE_BYTES
        self._room = asyncio.Semaphore(max(2, int(min(on_its_way, 64e6)) // _CHUNK_BYTES))

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.ensure_future(self._deliver(arriving, writer))
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._room.acquire()
                self._free_at = max(self._free_at, time.monotonic()) + len(data) / self._bytes_per_s
                arriving.put_nowait((self._free_at + self._delay_s, data))
                self.count += len(data)
        arriving.put_nowait((self._free_at + self._delay_s, b""))
        await delivering

    async def _deliver(self, arriving: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            at, data = await arriving.get()
            # What is due within the resolution of the loop's clock need not wait.
            if (wait := at - time.monotonic()) > 1e-3:
                await asyncio.sleep(wait)
            with suppress(OSError):
                if not data:
                    writer.write_eof()  # the other way may have more to carry
                    return
                self._room.release()
                writer.write(data)
                await writer.drain()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("bits_per_s", type=float)
    parser.add_argument("delay_s", type=float)
    parser.add_argument("listen", type=int)
    args = parser.parse_args()
    with suppress(KeyboardInterrupt):  # in a terminal it reaches this process too
        asyncio.run(_relay(args.port, LinkSpeed("", args.bits_per_s, args.delay_s), args.listen))


if __name__ == "__main__":
    main()
