"""Registry of sessions: ownership, resuming, expiry, and eviction."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
import hmac
import secrets
import time
from typing import Any

from nninteractive_ws.background_tasks import BackgroundTasks
from nninteractive_ws.errors import AtCapacity
from nninteractive_ws.eviction import eviction_order
from nninteractive_ws.messages import Encoding
from nninteractive_ws.server.access import new_token
from nninteractive_ws.server.pool import ACTIVE_FOR_S, Usage
from nninteractive_ws.server.slot import WorkerSlot

#: Timeout for a worker's answer when it is asked to evict a session. Only a stuck worker exceeds it.
_EVICTION_TIMEOUT_S = 2.0


class Api(StrEnum):
    """The API that a client speaks: this project's protocol, or nnInteractive's HTTP API."""

    WEBSOCKET = "websocket"
    OFFICIAL = "official"


@dataclass(eq=False)
class SessionRecord:
    """A session.

    ``user``: its owner, "" without tokens. ``api``: that of its client. ``worker``: the worker that has it; None before
    there is one. ``connected``: whether it has a connection.
    """

    user: str
    encoding: Encoding
    api: Api = Api.WEBSOCKET
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    secret: str = field(default_factory=new_token)
    worker: WorkerSlot | None = None
    last_used: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _eviction_refused: asyncio.Event = field(default_factory=asyncio.Event)  # by its worker
    connected: bool = False
    _superseded: asyncio.Event | None = None  # of the latest connection; set when another replaces it
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _expiry: asyncio.TimerHandle | None = None


class Registry:
    """All sessions of a server, with their owners and workers.

    ``linger``: seconds a session is kept without a connection. ``close(record, only_if_idle)`` asks the session's
    worker, which decides whether the session is idle.
    """

    def __init__(
        self,
        max_sessions: int,
        max_sessions_per_user: int,
        linger: float,
        close: Callable[[SessionRecord, bool], Coroutine[Any, Any, None]],
    ) -> None:
        self._max_sessions, self._max_sessions_per_user, self._linger = max_sessions, max_sessions_per_user, linger
        self._close = close
        self._records: dict[str, SessionRecord] = {}
        self._closing = BackgroundTasks()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def names(self) -> set[str]:
        """The names of all sessions."""
        return set(self._records)

    def count(self) -> Counter[tuple[Api, bool]]:
        """Return the number of sessions by API, and by whether they have a connection."""
        return Counter((record.api, record.connected) for record in self._records.values())

    def usage(self, worker: WorkerSlot) -> Usage:
        """Return the number of sessions on a worker, and of those that were used recently."""
        now = time.monotonic()
        records = [record for record in self._records.values() if record.worker is worker]
        return Usage(len(records), sum(now - record.last_used < ACTIVE_FOR_S for record in records))

    def least_recently_used(self, worker: WorkerSlot) -> list[SessionRecord]:
        """Return the sessions on a worker, the least recently used first."""
        return sorted((r for r in self._records.values() if r.worker is worker), key=lambda record: record.last_used)

    # ---- opening and eviction ------------------------------------------------------------------------------

    def find(self, name: str | None, secret: str | None, user: str, encoding: Encoding) -> SessionRecord | None:
        """Return the session that a client wants to resume, if it exists and belongs to the client; else None."""
        record = self._records.get(name or "")
        if record is None or secret is None or record.user != user or record.encoding != encoding:
            return None
        return record if hmac.compare_digest(record.secret.encode(), secret.encode()) else None

    async def open(self, user: str, encoding: Encoding, allow_eviction: bool, api: Api) -> SessionRecord:
        """Open a session. If there is no free one, ``allow_eviction`` evicts an idle one. Raises AtCapacity."""
        while (at_limit := self._eviction_candidates(user)) is not None:
            candidates, message = at_limit
            if not allow_eviction or not await self._evict_one(candidates):
                raise AtCapacity(message)
        record = SessionRecord(user, encoding, api)
        self._records[record.name] = record
        return record

    def _eviction_candidates(self, user: str) -> tuple[list[SessionRecord], str] | None:
        """At a limit, return the sessions to evict one of, and the error message if none is idle; else None."""
        if len(self._records) >= self._max_sessions:
            message = f"All {self._max_sessions} sessions of the server are in use. Try again later."
            return list(self._records.values()), message
        own = [record for record in self._records.values() if record.user == user]
        if len(own) >= self._max_sessions_per_user:
            return (
                own,
                f"All {self._max_sessions_per_user} sessions that a user may have are in use. Close one of them.",
            )
        return None

    async def _evict_one(self, candidates: list[SessionRecord]) -> bool:
        """Evict the first idle session, and return whether there was one."""
        for record in eviction_order(candidates):
            if record.worker is not None and await self._evict(record):
                return True
        return False

    async def _evict(self, record: SessionRecord) -> bool:
        """Ask a worker to evict a session if it is idle, and return whether it did."""
        record._eviction_refused.clear()
        await self._close(record, True)
        answers = [asyncio.ensure_future(event.wait()) for event in (record.ended, record._eviction_refused)]
        try:
            await asyncio.wait(answers, timeout=_EVICTION_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for answer in answers:
                answer.cancel()
        return record.ended.is_set()

    def eviction_refused(self, name: str) -> None:
        """Note that a worker refused to evict a session, because it is not idle."""
        if (record := self._records.get(name)) is not None:
            record._eviction_refused.set()

    def mark_used(self, name: str) -> None:
        """Note that a request of a session was answered."""
        if (record := self._records.get(name)) is not None:
            record.last_used = time.monotonic()
            if record.worker is not None:
                record.worker.last_used = record.last_used

    # ---- connections --------------------------------------------------------------------------------------

    @contextmanager
    def _attached(self, record: SessionRecord) -> Iterator[None]:
        if record._expiry is not None:
            record._expiry.cancel()
            record._expiry = None
        record.connected = True
        try:
            yield
        finally:
            record.connected = False
            record.last_used = time.monotonic()
            if record.worker is not None:
                record.worker.last_used = record.last_used
            if record.name in self._records:
                self._start_linger(record)

    async def attach(self, record: SessionRecord, work: Callable[[asyncio.Event], Awaitable[bool]]) -> bool:
        """Run ``work`` as the connection of a session. Return False if the session has ended, or if ``work`` does.

        A previous connection is first ended by its event, and waited for.
        """
        if record._superseded is not None:
            record._superseded.set()
        record._superseded = superseded = asyncio.Event()
        async with record._lock:
            if superseded.is_set():
                return True
            if record.name not in self._records:
                return False
            with self._attached(record):
                return await work(superseded)

    def _start_linger(self, record: SessionRecord) -> None:
        if record.worker is None:
            self.drop(record.name)  # it never reached a worker
        elif record.api is Api.OFFICIAL:
            # Its client is a process on this machine, which has ended. Nobody will resume the session.
            self.end(record)
        else:
            record._expiry = asyncio.get_running_loop().call_later(self._linger, self.end, record)

    def end(self, record: SessionRecord) -> None:
        """End a session on its worker, and remove it."""
        self._closing.spawn(self._close(record, False))
        self.drop(record.name)

    # ---- ending --------------------------------------------------------------------------------------------

    def drop(self, name: str) -> None:
        """Remove a session that has ended."""
        record = self._records.pop(name, None)
        if record is not None:
            record.ended.set()
            if record._expiry is not None:
                record._expiry.cancel()

    def drop_all_on(self, worker: WorkerSlot) -> None:
        """Remove the sessions of a lost worker."""
        for record in [one for one in self._records.values() if one.worker is worker]:
            self.drop(record.name)
