"""The sessions there are: who may take one up again, for how long it is kept, and whose place another may take."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import hmac
import secrets
import time

from nninteractive_ws.errors import AtCapacity
from nninteractive_ws.messages import Encoding
from nninteractive_ws.server.access import new_token
from nninteractive_ws.server.workers import Worker

#: A connected session that was used in this time is not given up for another: two would take turns at it.
IDLE_S = 30.0
#: Timeout for a worker's answer when it is asked to evict a session. Only a stuck worker exceeds it.
_EVICTION_TIMEOUT_S = 2.0


@dataclass(eq=False)
class Entry:
    """A session. ``user``: who opened it, "" without tokens. ``worker``: where it is, once it is somewhere.
    ``connected``: whether it has a connection."""

    user: str
    encoding: Encoding
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    secret: str = field(default_factory=new_token)
    worker: Worker | None = None
    last_used: float = field(default_factory=time.monotonic)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _eviction_refused: asyncio.Event = field(default_factory=asyncio.Event)  # by its worker
    connected: bool = False
    _next: asyncio.Event | None = None  # of the connection that came last; set when another takes its place
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _expiry: asyncio.TimerHandle | None = None


class Registry:
    """See the module. ``linger``: seconds a session is kept without a connection; ``forget(entry, idle)`` tells the
    session's worker, which decides whether the session is idle."""

    def __init__(
        self,
        most: int,
        most_of_a_user: int,
        linger: float,
        forget: Callable[[Entry, bool], Awaitable[None]],
    ) -> None:
        self._most, self._most_of_a_user, self._linger = most, most_of_a_user, linger
        self._forget = forget
        self._entries: dict[str, Entry] = {}
        self._forgetting: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def connected(self) -> int:
        """How many have a connection."""
        return sum(entry.connected for entry in self._entries.values())

    def load(self, worker: Worker) -> int:
        """How many sessions a worker has."""
        return sum(entry.worker is worker for entry in self._entries.values())

    # ---- the beginning ------------------------------------------------------------------------------------

    def find(self, name: str | None, secret: str | None, user: str, encoding: Encoding) -> Entry | None:
        """The session that a client asks for, where it is there and its own."""
        entry = self._entries.get(name or "")
        if entry is None or secret is None or entry.user != user or entry.encoding != encoding:
            return None
        return entry if hmac.compare_digest(entry.secret.encode(), secret.encode()) else None

    async def open(self, user: str, encoding: Encoding, make_room: bool) -> Entry:
        """A new session; with ``make_room`` in the place of another that is idle if need be. Raises AtCapacity."""
        while (full := self._full_for(user)) is not None:
            candidates, words = full
            if not make_room or not await self._give_up_one(candidates):
                raise AtCapacity(words)
        entry = Entry(user, encoding)
        self._entries[entry.name] = entry
        return entry

    def _full_for(self, user: str) -> tuple[list[Entry], str] | None:
        """Where there is no place: the sessions of which one would have to go, and what to say if none can."""
        if len(self._entries) >= self._most:
            words = f"The server has all of its {self._most} sessions in use; try again later."
            return list(self._entries.values()), words
        own = [entry for entry in self._entries.values() if entry.user == user]
        if len(own) >= self._most_of_a_user:
            return own, f"You have all of the {self._most_of_a_user} sessions in use that a user may have; close one."
        return None

    async def _give_up_one(self, candidates: list[Entry]) -> bool:
        """Let go of the session that was used longest ago, those without a connection first; whether one went."""
        for entry in sorted(candidates, key=lambda e: (e.connected, e.last_used)):
            if entry.worker is not None and await self._evict(entry):
                return True
        return False

    async def _evict(self, entry: Entry) -> bool:
        """Ask a worker to evict a session if it is idle. Return whether it did."""
        entry._eviction_refused.clear()
        await self._forget(entry, True)
        answers = [asyncio.ensure_future(event.wait()) for event in (entry.gone, entry._eviction_refused)]
        try:
            await asyncio.wait(answers, timeout=_EVICTION_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for answer in answers:
                answer.cancel()
        return entry.gone.is_set()

    def eviction_refused(self, name: str) -> None:
        """Note that a worker refused to evict a session, because it is not idle."""
        if (entry := self._entries.get(name)) is not None:
            entry._eviction_refused.set()

    def mark_used(self, name: str) -> None:
        """Note that a request of a session was done."""
        if (entry := self._entries.get(name)) is not None:
            entry.last_used = time.monotonic()

    # ---- connections --------------------------------------------------------------------------------------

    @contextmanager
    def _held(self, entry: Entry) -> Iterator[None]:
        if entry._expiry is not None:
            entry._expiry.cancel()
            entry._expiry = None
        entry.connected = True
        try:
            yield
        finally:
            entry.connected = False
            entry.last_used = time.monotonic()
            if entry.name in self._entries:
                self._keep_for_a_while(entry)

    async def hold(self, entry: Entry, work: Callable[[asyncio.Event], Awaitable[bool]]) -> bool:
        """Do ``work`` as the connection of a session; False where the session is over before, as ``work`` may find.

        The connection there was before is told by its event, and waited for.
        """
        if entry._next is not None:
            entry._next.set()
        entry._next = superseded = asyncio.Event()
        async with entry._turn:
            if superseded.is_set():
                return True
            if entry.name not in self._entries:
                return False
            with self._held(entry):
                return await work(superseded)

    def _keep_for_a_while(self, entry: Entry) -> None:
        if entry.worker is None:
            self.drop(entry.name)  # it never came to be
        else:
            entry._expiry = asyncio.get_running_loop().call_later(self._linger, self._expire, entry)

    def _expire(self, entry: Entry) -> None:
        task = asyncio.ensure_future(self._forget(entry, False))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)
        self.drop(entry.name)

    # ---- the end ------------------------------------------------------------------------------------------

    def drop(self, name: str) -> None:
        """A session is over."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.gone.set()
            if entry._expiry is not None:
                entry._expiry.cancel()

    def drop_all_on(self, worker: Worker) -> None:
        """A worker is lost, and its sessions with it."""
        for entry in [e for e in self._entries.values() if e.worker is worker]:
            self.drop(entry.name)
