"""A session as the worker keeps it: longer than any of its client's connections."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import logging

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws.engine.dialogue import Dialogue
from nninteractive_ws.messages import Notice
from nninteractive_ws.processes import return_freed_memory
from nninteractive_ws.server import link
from nninteractive_ws.server.link import Answered

_log = logging.getLogger(__name__)

#: What was said last is sent before a connection is closed, to a client that reads.
_FLUSH_WITHIN_S = 5.0


class HostedSession:
    """A dialogue, its two threads, and the connection there is, if any. One thread receives its messages, the other
    does its requests, so that no session blocks another's messages. ``makes_room``: whether others may be forgotten
    for its sake. ``over``: set once nobody wants it any more; ``ended``: done once it holds nothing any more."""

    def __init__(
        self,
        name: str,
        makes_room: bool,
        make_dialogue: Callable[[Callable[[], None]], Dialogue],
        report: Callable[[Answered], None],
    ) -> None:
        self.name, self.makes_room = name, makes_room
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._to_send, self._to_do, self._room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.over, self.ended = asyncio.Event(), Future[None]()
        self.evicted = False
        self._one_at_a_time = asyncio.Lock()
        self._stopping = False
        self._receiving = ThreadPoolExecutor(1, f"session {name} in")
        self._thread = ThreadPoolExecutor(1, f"session {name}")
        self.dialogue = make_dialogue(self._wake)
        self._work = asyncio.ensure_future(self._do_requests())

    @property
    def connected(self) -> bool:
        return self._one_at_a_time.locked()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._to_send.set)

    async def serve(self, connection: ClientConnection, fresh: bool) -> None:
        """Carry the dialogue over a connection until it closes, or the session is over."""
        async with self._one_at_a_time:
            await connection.send(link.encode(self.dialogue.attach(fresh)))
            writing = asyncio.ensure_future(self._write(connection))
            writing.add_done_callback(lambda _: self._room.set())
            reading = asyncio.ensure_future(self._read(connection, writing))
            over = asyncio.ensure_future(self.over.wait())
            try:
                await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
                if self.over.is_set():
                    await self._flush(writing)
                    await asyncio.wait([asyncio.wrap_future(self.ended)])
            finally:
                for task in (reading, writing, over):
                    task.cancel()
                await asyncio.gather(reading, writing, over, return_exceptions=True)
                self.dialogue.outbox.hang_up()
                self._room.set()
                await link.close(connection)

    async def _read(self, connection: ClientConnection, writing: "asyncio.Future[None]") -> None:
        try:
            async for data in connection:
                if not await self._loop.run_in_executor(self._receiving, self.dialogue.receive, data):
                    self.over.set()
                    return
                self._to_do.set()
                # Who does not read is not listened to either: what it asks for would only pile up.
                while self.dialogue.outbox.full and not writing.done():
                    await self._wait_for_room()
        except ConnectionClosed:
            pass  # the client went, or the gateway; the session waits for the next connection

    async def _write(self, connection: ClientConnection) -> None:
        try:
            while True:
                self._to_send.clear()
                while (data := self.dialogue.outbox.take()) is not None:
                    await connection.send(data)
                    self._room.set()
                await self._to_send.wait()
        except ConnectionClosed:
            pass  # the reader sees it too

    async def _flush(self, writing: "asyncio.Future[None]") -> None:
        async def until_empty() -> None:
            while not self.dialogue.outbox.empty:
                await self._wait_for_room()

        empty = asyncio.ensure_future(until_empty())
        await asyncio.wait({empty, writing}, timeout=_FLUSH_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        empty.cancel()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        await self._room.wait()

    async def _do_requests(self) -> None:
        while not self._stopping:
            self._to_do.clear()
            if self.dialogue.outbox.full:
                await self._wait_for_room()
            elif self.dialogue.has_work:
                answered = await self._loop.run_in_executor(self._thread, self.dialogue.work)
                if answered is not None:
                    self._report(answered)
            else:
                await self._to_do.wait()

    def evict_if_idle(self, idle: float) -> bool:
        """Evict the session if it is idle, from any thread. Return whether it was. Its client is told, and the
        connection ends.

        A session with a queued or running request is not idle, nor is a connected one with a useful message in the last
        ``idle`` seconds: two such sessions would evict each other by turns.
        """
        if self.over.is_set() or not self.dialogue.close_if_idle(idle if self.connected else 0.0):
            return False
        self.evicted = True
        return_freed_memory()
        words = "The server needs the room for others; the session comes back with the next request."
        self.dialogue.outbox.put_aside(Notice(code="evicted", message=words))
        self._loop.call_soon_threadsafe(self.over.set)
        return True

    async def end(self) -> None:
        """Cancel what runs, and let go of everything; the session is over."""
        try:
            self.dialogue.stop()
            self._stopping = True
            self._to_do.set()
            self._room.set()
            # Not on a thread of a shared pool: the running request may take long to notice the cancellation.
            (failure,) = await asyncio.gather(self._work, return_exceptions=True)
            if failure is not None:
                _log.error("the requests of a session failed", exc_info=failure, extra={"session": self.name})
            await self._loop.run_in_executor(self._thread, self._close)
        finally:
            self._thread.shutdown(wait=False)
            self._receiving.shutdown(wait=False)
            self.ended.set_result(None)

    def _close(self) -> None:
        self.dialogue.close()
        return_freed_memory()
