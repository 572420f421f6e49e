"""The workers of a gateway: which of them run, and which one takes a new session."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
import hmac
import itertools
import math
import secrets
import time
from typing import Protocol

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import worker_protocol
from nninteractive_ws.errors import WorkerLost
from nninteractive_ws.messages import Encoding
from nninteractive_ws.server.launchers import Endpoints, Launcher
from nninteractive_ws.server.slot import LaunchedSlot, SlotState, WorkerSlot

#: Timeout for a worker's connection for a new session. A live worker connects at once.
CONNECT_TIMEOUT_S = 30.0
#: Number of consecutive failures before any worker has loaded the model, after which a server with workers on this
#: machine alone stops. A single one may have a temporary cause, such as a lack of memory.
MAX_FAILURES_AT_START = 3
#: Sessions that were used recently, per worker, above which another worker is started. Measured in a simulation:
#: tools/placement.py.
ACTIVE_SESSIONS_PER_WORKER = 8
#: A session is active for this long after a request.
ACTIVE_FOR_S = 60.0
_CHECK_EVERY_S = 1.0


class WorkerStartupError(Exception):
    """The worker cannot load its model, and a restart would not help."""


@dataclass(frozen=True)
class Usage:
    """The use of a worker: the number of its sessions, and of those that were used recently."""

    sessions: int
    active: int


@dataclass(frozen=True)
class PoolSettings:
    """Which workers there are.

    ``launchers``: one for each worker. At least ``min_workers`` of them run always; the others end when they were not
    used for ``idle_end_s`` seconds. ``join_token``: with it, further workers connect by themselves; empty: none may.
    """

    launchers: Sequence[Launcher]
    min_workers: int
    idle_end_s: float = math.inf
    join_token: str = ""


class PoolOwner(Protocol):
    """Listener of the pool: the gateway."""

    def on_worker_message(self, message: worker_protocol.WorkerMessage) -> None:
        """Take a message about a session."""

    def on_worker_lost(self, slot: WorkerSlot) -> None:
        """Note that a worker has ended, and its sessions with it."""

    def on_worker_start(self, launcher: str) -> None:
        """Note that a worker is started."""

    def on_worker_failure(self, launcher: str) -> None:
        """Note that a worker ended although it was wanted."""

    def usage(self, slot: WorkerSlot) -> Usage:
        """Return the use of a worker."""
        ...

    def release_idle_sessions(self, slot: WorkerSlot, count: int) -> None:
        """Ask a worker to evict up to ``count`` idle sessions. Their next request restores them, here or elsewhere."""


class WorkerPool:
    """The workers of a gateway. ``arguments``: of ``python -m nninteractive_ws.engine.worker``."""

    def __init__(self, settings: PoolSettings, arguments: Sequence[str], owner: PoolOwner) -> None:
        self._settings, self._arguments, self._owner = settings, arguments, owner
        self._numbers = itertools.count(1)
        self._launched: list[LaunchedSlot] = []
        self._joined: list[WorkerSlot] = []
        for launcher in settings.launchers:
            self._add_launched(launcher)
        self._expected: dict[str, tuple[WorkerSlot, asyncio.Future[ServerConnection]]] = {}
        self._waiting: set[asyncio.Event] = set()
        #: The description of the worker that was ready last.
        self.description: worker_protocol.ModelReady | None = None
        self._startup_error: WorkerStartupError | None = None
        self._failed_at_start = asyncio.Event()
        self._run_slot: Callable[[LaunchedSlot], object] = lambda slot: None
        self.stopping = False

    def _add_launched(self, launcher: Launcher) -> LaunchedSlot:
        name = launcher.name if launcher.is_local else f"{launcher.name} {next(self._numbers)}"
        owner = self._owner
        slot = LaunchedSlot(name, launcher, self._arguments, self, owner.on_worker_start, owner.on_worker_failure)
        slot.number = self._free_number()
        self._launched.append(slot)
        return slot

    def _free_number(self) -> int:
        """Return the smallest number that no slot has, so that metrics have few different labels."""
        taken = {slot.number for slot in self.slots}
        return next(number for number in itertools.count() if number not in taken)

    @property
    def slots(self) -> list[WorkerSlot]:
        """All workers, running or not."""
        return [*self._launched, *self._joined]

    @property
    def ready(self) -> list[WorkerSlot]:
        """Workers that have loaded the model and take new sessions."""
        return [slot for slot in self.slots if slot.state is SlotState.READY]

    @property
    def is_wanted(self) -> bool:
        """Whether a worker runs, or is being started."""
        return bool(self._joined) or any(slot.wanted.is_set() for slot in self._launched)

    @property
    def _is_starting(self) -> bool:
        return any(slot.state in (SlotState.STARTING, SlotState.LOADING) for slot in self.slots)

    # ---- running ------------------------------------------------------------------------------------------

    async def run(self, endpoints: Endpoints) -> None:
        """Keep the workers running, forever. Raises WorkerStartupError."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._run_slot = lambda slot: tasks.create_task(self._run_until_retired(slot, endpoints))
                for slot in self._launched:
                    self._run_slot(slot)
                tasks.create_task(self._adjust_forever())
                try:
                    await self._failed_at_start.wait()
                except asyncio.CancelledError:
                    self.stopping = True  # before the workers end
                    raise
                assert self._startup_error is not None
                raise self._startup_error
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _run_until_retired(self, slot: LaunchedSlot, endpoints: Endpoints) -> None:
        try:
            await slot.run(endpoints)
        finally:
            self._launched.remove(slot)

    async def _adjust_forever(self) -> None:
        while True:
            self.adjust()
            await asyncio.sleep(_CHECK_EVERY_S)

    def adjust(self) -> None:
        """Start and end workers according to their use."""
        wanted = [slot for slot in self._launched if slot.wanted.is_set() and not slot.is_ending]
        running = [slot for slot in (*wanted, *self._joined) if slot.state is not SlotState.FAILED]
        active = sum(self._owner.usage(slot).active for slot in self.slots)
        needed = self._settings.min_workers - len(wanted)
        if (self._waiting and not running) or active > ACTIVE_SESSIONS_PER_WORKER * len(running) > 0:
            needed = max(needed, 1)
        stopped = (slot for slot in self._launched if not slot.wanted.is_set())
        for slot in itertools.islice(stopped, max(0, needed)):
            slot.want(True)
        for launched in wanted[self._settings.min_workers :]:
            self._end_if_unused(launched)
        for each in self.slots:
            if each.state is SlotState.DRAINING:
                self._drain(each)

    def _end_if_unused(self, slot: LaunchedSlot) -> None:
        unused = time.monotonic() - slot.last_used > self._settings.idle_end_s and not self._waiting
        if slot.state is SlotState.READY and unused:
            slot.set_state(SlotState.DRAINING)
        elif slot.state is SlotState.DRAINING and not unused:
            slot.set_state(SlotState.READY)  # somebody uses it again

    def _drain(self, slot: WorkerSlot) -> None:
        """Move idle sessions away from a worker that is to end, and end it once it has none."""
        if slot.is_ending and not self.ready and self._is_starting:
            return  # its sessions can use it until another worker is ready
        usage = self._owner.usage(slot)
        if usage.sessions:
            self._owner.release_idle_sessions(slot, usage.sessions)
        elif isinstance(slot, LaunchedSlot):
            slot.want(False)
        else:
            slot.disconnect()

    # ---- reports of slots ---------------------------------------------------------------------------------

    def on_message(self, message: worker_protocol.WorkerMessage) -> None:
        self._owner.on_worker_message(message)

    def on_state(self, slot: WorkerSlot) -> None:
        if slot.state is SlotState.READY:
            slot.last_used = time.monotonic()
            self.description = slot.description
            self._even_out()
        elif slot.state is SlotState.FAILED:
            self._check_start(slot)
        for event in self._waiting:
            event.set()

    def on_ending(self, slot: WorkerSlot) -> None:
        """Start the successor of a worker that was asked to end."""
        if isinstance(slot, LaunchedSlot):
            successor = self._add_launched(slot.launcher)
            successor.want(True)
            self._run_slot(successor)

    def on_lost(self, slot: WorkerSlot) -> None:
        if slot in self._joined:
            self._joined.remove(slot)
        for expected_slot, connected in self._expected.values():
            if expected_slot is slot and not connected.done():
                connected.set_exception(WorkerLost("The worker process just ended. Try again in a moment."))
        self._owner.on_worker_lost(slot)

    def _check_start(self, slot: WorkerSlot) -> None:
        """End the server if its workers are on this machine, and none can load the model."""
        are_local = all(other.launcher.is_local for other in self._launched)
        if self.description is not None or not isinstance(slot, LaunchedSlot) or not are_local:
            return
        if slot.refused_model:
            self._startup_error = WorkerStartupError(slot.reason)
        elif slot.failures >= MAX_FAILURES_AT_START:
            self._startup_error = WorkerStartupError(
                f"The worker process ended {slot.failures} times while it loaded the model. {slot.reason} Its messages "
                "above say why."
            )
        if self._startup_error is not None:
            self._failed_at_start.set()

    def _even_out(self) -> None:
        """Ask the workers with the most sessions to release idle ones, which then go to others with their next use."""
        usage = {slot: self._owner.usage(slot).sessions for slot in self.ready}
        share = math.ceil(sum(usage.values()) / len(usage))
        for slot, sessions in usage.items():
            if sessions > share:
                self._owner.release_idle_sessions(slot, sessions - share)

    # ---- choice -------------------------------------------------------------------------------------------

    async def choose(self, on_status: Callable[[str], Awaitable[None]]) -> WorkerSlot:
        """Wait for a worker that is ready, and return the one with the fewest sessions that were used recently.

        ``on_status``: called with a sentence about what is waited for, whenever it changes; empty: a model is loading.
        """
        changed, status = asyncio.Event(), None
        self._waiting.add(changed)
        try:
            while not self.ready:
                self.adjust()
                await asyncio.sleep(0)  # in which a worker is started
                changed.clear()
                if (now := self._status()) != status:
                    status = now
                    await on_status(now)
                elif not self.ready:
                    await changed.wait()
        finally:
            self._waiting.discard(changed)
        chosen = min(self.ready, key=self._load)
        chosen.last_used = time.monotonic()
        return chosen

    def _load(self, slot: WorkerSlot) -> tuple[int, int]:
        usage = self._owner.usage(slot)
        return usage.active, usage.sessions

    def _status(self) -> str:
        """Return what the worker that will be ready first is doing."""
        if not self.slots:
            return "The server waits for a worker to join."
        order = (SlotState.LOADING, SlotState.STARTING, SlotState.FAILED)
        found = [slot for state in order for slot in self.slots if slot.state is state]
        return found[0].status if found else ""

    # ---- connections of workers ---------------------------------------------------------------------------

    def admit(self, secret: str) -> WorkerSlot | None:
        """Return the worker with this secret, or None. A worker that joins is added by :meth:`add`."""
        for slot in self._launched:
            if slot.accept_secret(secret):
                return slot
        token = self._settings.join_token
        if not token or not hmac.compare_digest(token.encode(), secret.encode()):
            return None
        return WorkerSlot(f"joined {next(self._numbers)}", self)

    def add(self, slot: WorkerSlot) -> None:
        """Add a worker that has connected."""
        if not isinstance(slot, LaunchedSlot):
            slot.number = self._free_number()
            self._joined.append(slot)

    def expects_session(self, token: str) -> bool:
        """Return whether a session's connection with this token is expected."""
        return token in self._expected and not self._expected[token][1].done()

    async def serve_session(self, connection: ServerConnection, token: str) -> None:
        """Hand a session's connection to :meth:`open_session`, and wait until it closes."""
        slot, connected = self._expected.pop(token, (None, None))
        if slot is not None and connected is not None and not connected.done():
            connected.set_result(connection)
            await slot.hold_session(connection)

    async def open_session(
        self, slot: WorkerSlot, session: str, encoding: Encoding, *, resume: bool, allow_eviction: bool
    ) -> tuple[ServerConnection, worker_protocol.SessionAttached]:
        """Open or resume a session on a worker. Return its connection and its state. Raises WorkerLost."""
        token = secrets.token_urlsafe(32)
        connected: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()
        self._expected[token] = slot, connected
        try:
            await slot.send(worker_protocol.OpenSession(token, session, encoding, resume, allow_eviction))
            connection = await asyncio.wait_for(connected, CONNECT_TIMEOUT_S)
            first = await connection.recv()
            assert isinstance(first, bytes)
            return connection, worker_protocol.decode_attached(first)
        except (TimeoutError, ConnectionClosed) as e:
            raise WorkerLost("The worker process does not answer. Try again in a moment.") from e
        finally:
            self._expected.pop(token, None)
