"""A failing network: a TCP proxy between a client and a server that breaks, stalls and delays connections.

It counts the forwarded bytes, so that a fault occurs in the middle of a handshake, an upload or a delta, and at the
same byte for the same seed. It runs on a separate thread.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
import random
import socket
import struct
import threading
from typing import Literal
from urllib.parse import urlsplit

from helpers.threads import serving

Direction = Literal["up", "down"]
#: ``cut``: both ends get a reset. ``truncate``: the last bytes arrive, and then both ends are closed. ``stall``:
#: nothing passes any more, without a close. ``late``: the client gets a reset, and its last bytes reach the
#: server on the old connection after the client has reconnected. ``early``: the same, before it has reconnected.
#: ``trickle``: some bytes pass one by one. ``delay``: some bytes wait.
Kind = Literal["cut", "truncate", "stall", "late", "early", "trickle", "delay"]
#: Faults that end the connection.
LOSSES: tuple[Kind, ...] = ("cut", "truncate", "late", "early")

_CHUNK_BYTES = 16 * 1024
_TRICKLED_BYTES, _TRICKLE_S = 60, 0.001
_DELAY_S = 0.05
# The answer to the upgrade request is shorter. The welcome follows it.
_UPGRADE_BYTES = 300
# Timeout for the client's reconnect, after which the last bytes of the old connection are sent.
_LATE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Fault:
    """A fault after ``after`` more bytes in a direction, just before the next one."""

    kind: Kind
    direction: Direction
    after: int


@dataclass
class _Armed:
    fault: Fault
    at: int


@dataclass(eq=False)
class _Link:
    """A connection of a client, and the corresponding one to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    armed: list[_Armed] = field(default_factory=list)
    stalled: bool = False
    client_is_lost: bool = False
    # The other direction closes only after the faults are finished.
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def arm(self, fault: Fault) -> None:
        self.armed.append(_Armed(fault, self.passed[fault.direction] + fault.after))

    def due(self, direction: Direction, to_come: int) -> _Armed | None:
        """Return the next fault in a direction within the next bytes."""
        end = self.passed[direction] + to_come
        here = [a for a in self.armed if a.fault.direction == direction and a.at < end]
        return min(here, key=lambda a: a.at, default=None)

    def writer(self, direction: Direction) -> asyncio.StreamWriter:
        return self.server if direction == "up" else self.client

    async def write(self, direction: Direction, data: bytes) -> None:
        self.passed[direction] += len(data)
        if self.stalled:
            await self.over.wait()
            raise ConnectionResetError
        if self.client_is_lost and direction == "down":
            return
        self.writer(direction).write(data)
        await self.writer(direction).drain()


class FaultProxy:
    """Forwards every connection to ``address`` to a server.

    ``plan``: returns the fault of each new connection, on the proxy's thread. ``refusing``: new connections get a
    reset. ``happened``: the faults that occurred.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._target = parts.hostname, parts.port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"ws://127.0.0.1:{self._listening.getsockname()[1]}"
        self.plan: Callable[[], Fault | None] = lambda: None
        self.refusing = False
        self.happened: list[Fault] = []
        self._links: set[_Link] = set()
        self._opening = 0
        self._joined = asyncio.Event()

    # ---- from any thread ----------------------------------------------------------------------------------

    def arm(self, fault: Fault) -> None:
        """Add a fault to the open connections."""

        def work() -> None:
            for link in self._links:
                link.arm(fault)

        self._call(work)

    def disarm(self) -> None:
        """Remove the pending faults of the open connections."""

        def work() -> None:
            for link in self._links:
                link.armed.clear()

        self._call(work)

    def cut(self) -> None:
        """Break all connections now."""

        def work() -> None:
            for link in self._links:
                _reset(link.client)
                _reset(link.server)

        self._call(work)

    def _call(self, function: Callable[[], object]) -> None:
        done = threading.Event()

        def work() -> None:
            try:
                function()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(work)
        done.wait()

    def stop(self) -> None:
        self._call(self._stop.set)

    # ---- on its thread ------------------------------------------------------------------------------------

    async def serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._join, sock=self._listening, limit=_CHUNK_BYTES):
            started.set()
            await self._stop.wait()
            self.refusing = True
            # They end by themselves, because asyncio reports a cancelled connection as an error. One that was being
            # opened may still be added.
            while self._links or self._opening:
                for link in list(self._links):
                    _reset(link.client)
                    _reset(link.server)
                    link.over.set()
                await asyncio.sleep(0.01)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            return _reset(writer)
        self._opening += 1
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:  # as during a restart of the server
            return _reset(writer)
        finally:
            self._opening -= 1
        link = _Link(writer, to_server)
        if (fault := self.plan()) is not None:
            link.arm(fault)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(link, "up", reader), self._pump(link, "down", from_server))
        finally:
            self._links.discard(link)
        return None

    async def _pump(self, link: _Link, direction: Direction, reader: asyncio.StreamReader) -> None:
        """Forward bytes until one end closes, then close the other one."""
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                while (armed := link.due(direction, len(data))) is not None:
                    link.armed.remove(armed)
                    head = armed.at - link.passed[direction]
                    await link.write(direction, data[:head])
                    data = data[head:]
                    self.happened.append(armed.fault)
                    data = await self._happen(link, armed.fault, data)
                await link.write(direction, data)
                if link.passed["down"] > _UPGRADE_BYTES:
                    self._joined.set()
        if link.stalled or link.client_is_lost:
            await link.over.wait()
        for writer in (link.client, link.server):
            writer.close()

    async def _happen(self, link: _Link, fault: Fault, data: bytes) -> bytes:
        """Execute a fault before ``data``. Return the bytes of it that were not forwarded."""
        if fault.kind == "cut":
            _reset(link.client)
            _reset(link.server)
        elif fault.kind == "truncate":
            link.client.close()
            link.server.close()
        elif fault.kind == "stall":
            link.armed.clear()
            link.stalled = True
            await link.over.wait()
        elif fault.kind == "delay":
            await asyncio.sleep(_DELAY_S)
            return data
        elif fault.kind == "trickle":
            for i in range(min(_TRICKLED_BYTES, len(data))):
                await link.write(fault.direction, data[i : i + 1])
                await asyncio.sleep(_TRICKLE_S)
            return data[_TRICKLED_BYTES:]
        else:
            await self._be_late(link, fault, data)
        raise ConnectionResetError

    async def _be_late(self, link: _Link, fault: Fault, data: bytes) -> None:
        """Drop the client, and send its last bytes to the server. The server's bytes are dropped."""
        self._joined.clear()
        link.client_is_lost = True
        _reset(link.client)
        try:
            if fault.kind == "late":
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._joined.wait(), _LATE_TIMEOUT_S)
            if fault.direction == "up":
                await link.write("up", data)
                await asyncio.sleep(_DELAY_S)
        finally:
            link.over.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def fault_proxy(server: str) -> AbstractContextManager[FaultProxy]:
    """A proxy in front of a server."""
    return serving(FaultProxy(server))


def handshake_faults(rng: random.Random, share: float) -> Callable[[], Fault | None]:
    """A plan in which this share of new connections fails during the handshake (about 600 bytes up, 1,000 down)."""

    def plan() -> Fault | None:
        if rng.random() >= share:
            return None
        direction: Direction = rng.choice(("up", "down"))
        return Fault(rng.choice(("cut", "truncate")), direction, rng.randrange(600 if direction == "up" else 1000))

    return plan
