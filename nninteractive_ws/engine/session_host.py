"""Hosting of a session on the worker, with its threads. A session outlives the connections of its client."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import logging

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import worker_protocol
from nninteractive_ws.engine.request_queue import RequestQueue
from nninteractive_ws.messages import Notice
from nninteractive_ws.processes import return_freed_memory
from nninteractive_ws.worker_protocol import RequestAnswered

_log = logging.getLogger(__name__)

# Timeout for sending the last messages before a connection is closed.
_FLUSH_TIMEOUT_S = 5.0


class SessionHost:
    """A session's request queue, its two threads, and its connection, if any.

    One thread receives messages and the other runs requests, so that no session blocks the messages of another.

    ``allows_eviction``: whether other sessions may be evicted for this one. ``over``: set once the session has to end.
    ``ended``: done once everything is released.
    """

    def __init__(
        self,
        name: str,
        allows_eviction: bool,
        make_queue: Callable[[Callable[[], None]], RequestQueue],
        report: Callable[[RequestAnswered], None],
    ) -> None:
        self.name, self.allows_eviction = name, allows_eviction
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._frames_waiting = asyncio.Event()
        self._requests_waiting = asyncio.Event()
        self._outbox_space = asyncio.Event()
        self.over, self.ended = asyncio.Event(), Future[None]()
        self.evicted = False
        self._connection_lock = asyncio.Lock()
        self._stopping = False
        self._receive_executor = ThreadPoolExecutor(1, f"session {name} in")
        self._request_executor = ThreadPoolExecutor(1, f"session {name}")
        self.queue = make_queue(self._wake)
        self._request_loop = asyncio.ensure_future(self._run_requests())

    @property
    def connected(self) -> bool:
        return self._connection_lock.locked()

    @property
    def last_used(self) -> float:
        return self.queue.last_used

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._frames_waiting.set)

    async def serve(self, connection: ClientConnection, created: bool) -> None:
        """Serve a connection until it closes or the session is over. ``created``: whether the session is new."""
        async with self._connection_lock:
            await connection.send(worker_protocol.encode(self.queue.attach(created)))
            writing = asyncio.ensure_future(self._write(connection))
            writing.add_done_callback(lambda _: self._outbox_space.set())
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
                self.queue.outbox.disconnect()
                self._outbox_space.set()
                await worker_protocol.close(connection)

    async def _read(self, connection: ClientConnection, writing: "asyncio.Future[None]") -> None:
        try:
            async for data in connection:
                if not await self._loop.run_in_executor(self._receive_executor, self.queue.receive, data):
                    self.over.set()
                    return
                self._requests_waiting.set()
                # Nothing is read from a client that does not read, because answers to it would only accumulate.
                while self.queue.outbox.full and not writing.done():
                    await self._wait_for_outbox_space()
        except ConnectionClosed:
            pass  # the client or the gateway is gone; the session waits for the next connection

    async def _write(self, connection: ClientConnection) -> None:
        try:
            while True:
                self._frames_waiting.clear()
                while (data := self.queue.outbox.take()) is not None:
                    await connection.send(data)
                    self._outbox_space.set()
                await self._frames_waiting.wait()
        except ConnectionClosed:
            pass  # _read gets the same exception

    async def _flush(self, writing: "asyncio.Future[None]") -> None:
        async def until_empty() -> None:
            while not self.queue.outbox.empty:
                await self._wait_for_outbox_space()

        empty = asyncio.ensure_future(until_empty())
        await asyncio.wait({empty, writing}, timeout=_FLUSH_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        empty.cancel()

    async def _wait_for_outbox_space(self) -> None:
        self._outbox_space.clear()
        await self._outbox_space.wait()

    async def _run_requests(self) -> None:
        while not self._stopping:
            self._requests_waiting.clear()
            if self.queue.outbox.full:
                await self._wait_for_outbox_space()
            elif self.queue.has_work:
                answered = await self._loop.run_in_executor(self._request_executor, self.queue.run_next)
                if answered is not None:
                    self._report(answered)
            else:
                await self._requests_waiting.wait()

    def is_idle(self, idle: float) -> bool:
        """Whether :meth:`evict_if_idle` would evict the session now."""
        return not self.over.is_set() and self.queue.is_idle(idle if self.connected else 0.0)

    def evict_if_idle(self, idle: float) -> bool:
        """Evict the session if it is idle, from any thread. Return whether it was evicted.

        The client gets a notice, and the connection is closed. A session with a queued or running request is not idle.
        Neither is a connected session with a useful message in the last ``idle`` seconds.
        """
        if self.over.is_set() or not self.queue.close_if_idle(idle if self.connected else 0.0):
            return False
        self.evicted = True
        return_freed_memory()
        message = "The server evicted this session because it was idle. The next request restores it."
        self.queue.outbox.put_unsolicited(Notice(code="evicted", message=message))
        self._loop.call_soon_threadsafe(self.over.set)
        return True

    async def end(self) -> None:
        """Cancel all requests, wait for the running one, and release everything."""
        try:
            self.queue.stop()
            self._stopping = True
            self._requests_waiting.set()
            self._outbox_space.set()
            # Not on a thread of a shared pool, because the running request may take long to notice the cancellation.
            (failure,) = await asyncio.gather(self._request_loop, return_exceptions=True)
            if failure is not None:
                _log.error("request loop of a session failed", exc_info=failure, extra={"session": self.name})
            await self._loop.run_in_executor(self._request_executor, self._close)
        finally:
            self._request_executor.shutdown(wait=False)
            self._receive_executor.shutdown(wait=False)
            self.ended.set_result(None)

    def _close(self) -> None:
        self.queue.close()
        return_freed_memory()
