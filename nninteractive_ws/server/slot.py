"""A slot for one worker: its connections, its state, and, if this server starts it, its process."""

import asyncio
from collections.abc import Callable, Sequence
import contextlib
from enum import StrEnum
import hmac
import logging
import os
import re
import secrets
import time
from typing import Protocol

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import worker_protocol
from nninteractive_ws.background_tasks import BackgroundTasks
from nninteractive_ws.errors import WorkerLost
from nninteractive_ws.logs import write_to_stderr
from nninteractive_ws.processes import end_async_process, own_process_group
from nninteractive_ws.server.launchers import ENVIRONMENT, Endpoints, Launcher

_log = logging.getLogger(__name__)

#: Delay before a worker is started again after it had loaded the model. Without that, the delay doubles each time.
RESTART_AFTER_S, LONGEST_DELAY_S = 1.0, 60.0
#: Timeout for a worker to end by itself before it is killed.
END_TIMEOUT_S = 3.0

# Messages of Slurm's srun and of launch_ray, which tell the user what a worker waits for.
_SRUN_QUEUED = re.compile(r"srun: job (\d+) queued")
_SRUN_ALLOCATED = re.compile(r"srun: job (\d+) has been allocated")
_RAY_WAITING = "ray: waiting for a node"
_MAX_LINE = 300


class SlotState(StrEnum):
    """The state of a slot."""

    STOPPED = "stopped"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class SlotOwner(Protocol):
    """Listener of a slot: the pool."""

    def on_message(self, message: worker_protocol.WorkerMessage) -> None:
        """Take a message about a session."""

    def on_state(self, slot: "WorkerSlot") -> None:
        """Note that the state or the status of a slot has changed."""

    def on_ending(self, slot: "WorkerSlot") -> None:
        """Note that a worker was asked to end."""

    def on_lost(self, slot: "WorkerSlot") -> None:
        """Note that a worker has disconnected. Its sessions have ended."""


class WorkerSlot:
    """A worker that connected, by itself or because this server started it. ``name``: for logs and metrics."""

    def __init__(self, name: str, owner: SlotOwner) -> None:
        self.name, self._owner = name, owner
        #: Number for metrics, which no other slot of the pool has, and which stays when the worker restarts.
        self.number = 0
        self._control: ServerConnection | None = None
        self._sessions: set[ServerConnection] = set()
        self.state = SlotState.STOPPED
        #: A sentence about the state for waiting clients; empty if there is nothing to say.
        self.status = ""
        #: Whether the worker was asked to end. The slot ends with it, and a launched one has a successor.
        self.is_ending = False
        #: When a session of it was last opened or used.
        self.last_used = time.monotonic()
        #: Model and device, once the model is loaded.
        self.description: worker_protocol.ModelReady | None = None
        #: Bytes in use on its device, and bytes charged to its sessions, by purpose.
        self.memory = 0
        self.charged: dict[str, int] = {}

    @property
    def launcher_name(self) -> str:
        """Name of the launcher, for metrics."""
        return "joined"

    def set_state(self, state: SlotState, status: str = "") -> None:
        """Change the state."""
        self.state, self.status = state, status
        self._owner.on_state(self)

    async def serve(self, connection: ServerConnection) -> None:
        """Serve the worker's control connection until it closes."""
        self._control = connection
        self.set_state(SlotState.LOADING)
        try:
            async for data in connection:
                assert isinstance(data, bytes)
                message = worker_protocol.decode_worker(data)
                if isinstance(message, worker_protocol.ModelLoadFailed):
                    self._on_load_failed(message.message)
                    return
                self._on_message(message)
        except ConnectionClosed:
            pass  # the process has ended, or its machine cannot be reached
        finally:
            self._control = self.description = None
            self._abort_sessions()
            self._on_disconnected()
            self._owner.on_lost(self)

    def _on_message(self, message: worker_protocol.WorkerMessage) -> None:
        if isinstance(message, worker_protocol.ModelReady):
            _log.info("the model %s is loaded", message.model.name, extra={"worker": message.device})
            self.description = message
            self.set_state(SlotState.DRAINING if self.is_ending else SlotState.READY)
        elif isinstance(message, worker_protocol.MemoryUsage):
            self.memory, self.charged = message.used, message.charged
        elif isinstance(message, worker_protocol.EndingSoon):
            self._on_ending_soon(message.reason)
        else:
            self._owner.on_message(message)

    def _on_ending_soon(self, reason: str) -> None:
        if self.is_ending:
            return
        _log.info("the worker is about to end: %s", reason, extra={"worker": self.name})
        self.is_ending = True
        if self.state is SlotState.READY:
            self.set_state(SlotState.DRAINING)
        self._owner.on_ending(self)

    def _on_load_failed(self, message: str) -> None:
        _log.error("%s", message, extra={"worker": self.name})

    def _on_disconnected(self) -> None:
        self.set_state(SlotState.STOPPED)

    async def send(self, message: worker_protocol.GatewayMessage) -> None:
        """Send a message on the control connection. Raises WorkerLost."""
        if self._control is None:
            raise WorkerLost("The worker process just ended. Try again in a moment.")
        try:
            await self._control.send(worker_protocol.encode(message))
        except ConnectionClosed as e:
            raise WorkerLost("The worker process does not answer. Try again in a moment.") from e

    async def hold_session(self, connection: ServerConnection) -> None:
        """Wait until a session's connection closes. It is closed with the worker."""
        self._sessions.add(connection)
        try:
            await connection.wait_closed()
        finally:
            self._sessions.discard(connection)

    def disconnect(self) -> None:
        """Close all connections at once. A machine that cannot be reached would never answer a close frame."""
        self._abort_sessions()
        if self._control is not None:
            self._control.transport.abort()

    def _abort_sessions(self) -> None:
        for connection in list(self._sessions):
            connection.transport.abort()


class LaunchedSlot(WorkerSlot):
    """A worker that this server starts, as long as it is :attr:`wanted`, and starts again if it ends.

    ``arguments``: of the worker. ``on_start``, ``on_failure``: called with the launcher's name.
    """

    def __init__(
        self,
        name: str,
        launcher: Launcher,
        arguments: Sequence[str],
        owner: SlotOwner,
        on_start: Callable[[str], None],
        on_failure: Callable[[str], None],
    ) -> None:
        super().__init__(name, owner)
        self.launcher, self._arguments = launcher, arguments
        self._on_start, self._on_failure = on_start, on_failure
        #: Whether there is to be a worker.
        self.wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        #: Consecutive starts that did not load the model, and why the last one failed.
        self.failures, self.reason = 0, ""
        #: Whether the worker said that it cannot load the model.
        self.refused_model = False
        self._secret = self._used_secret = ""
        self._disconnected = asyncio.Event()
        self._was_ready = False
        self._last_line = ""
        self._ending = BackgroundTasks()

    @property
    def launcher_name(self) -> str:
        return self.launcher.name

    def want(self, wanted: bool) -> None:
        """Start the worker, or end it."""
        if wanted:
            self.wanted.set()
            self._unwanted.clear()
        else:
            self.wanted.clear()
            self._unwanted.set()

    async def run(self, endpoints: Endpoints) -> None:
        """Keep a worker running while it is wanted, forever."""
        try:
            while True:
                await self.wanted.wait()
                await self._run_process(endpoints)
                if self.is_ending:
                    return
                if not self.wanted.is_set():
                    self.failures = 0
                    self.set_state(SlotState.STOPPED)
                    continue
                self.failures = 0 if self._was_ready else self.failures + 1
                delay = min(RESTART_AFTER_S * 2 ** max(0, self.failures - 1), LONGEST_DELAY_S)
                self._on_failure(self.launcher.name)
                retry = f"{self.reason} The next attempt is in {delay:.0f} seconds."
                self.set_state(SlotState.FAILED, retry if self.failures else "")
                _log.error("%s", retry, extra={"worker": self.name})
                await _wait(self._unwanted, delay)
        finally:
            await self._ending.wait()

    async def _run_process(self, endpoints: Endpoints) -> None:
        """Start a worker, and wait until it ends, disconnects, or is no longer wanted."""
        self._disconnected.clear()
        self._was_ready, self.refused_model = False, False
        self._last_line = self.reason = ""
        self._on_start(self.launcher.name)
        self.set_state(
            SlotState.STARTING, "" if self.launcher.is_local else f"Starting a worker ({self.launcher.name})."
        )
        try:
            process = await self._start(endpoints)
        except OSError as e:
            self.reason = f"The worker cannot be started: {self.launcher.name}: {e.strerror or e}."
            return
        watching = asyncio.ensure_future(self._watch_stderr(process))
        ends = [
            asyncio.ensure_future(event) for event in (process.wait(), self._disconnected.wait(), self._unwanted.wait())
        ]
        gently = True
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            gently = False
            raise
        finally:
            for task in ends:
                task.cancel()
            self.disconnect()
            self._secret = ""
            # In parallel, because a process on a machine that cannot be reached takes long to end.
            self._ending.spawn(_end(process, watching, gently))
        if not self.reason:
            status = "" if process.returncode is None else f" with status {process.returncode}"
            self.reason = f"The worker ended{status}{'' if self._was_ready else ' before it was ready'}."
            if self._last_line and not self._was_ready:
                self.reason += f" Its last line: {self._last_line}."

    async def _start(self, endpoints: Endpoints) -> asyncio.subprocess.Process:
        self._secret = self._used_secret = secrets.token_urlsafe(32)
        command = self.launcher.command(endpoints, self._arguments)
        # Libraries print to standard output, which the gateway reserves for its address, so it is discarded.
        process = await asyncio.create_subprocess_exec(
            *command.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=None if self.launcher.is_local else asyncio.subprocess.PIPE,
            env={**ENVIRONMENT, **os.environ},
            **own_process_group(),
        )
        assert process.stdin is not None
        # The pipe stays open. The worker ends when it closes, which it does when this process ends for any reason.
        process.stdin.write(worker_protocol.encode_credentials(self._secret, command.certificate))
        return process

    async def _watch_stderr(self, process: asyncio.subprocess.Process) -> None:
        """Log what a launcher prints, and tell clients what it waits for."""
        if process.stderr is None:
            return
        while line := await _read_line(process.stderr):
            text = line.decode(errors="replace").rstrip()
            write_to_stderr(f"{text}\n")
            if self.state is not SlotState.STARTING:
                continue
            self._last_line = text[:_MAX_LINE]
            if (match := _SRUN_QUEUED.match(text)) is not None:
                self.set_state(SlotState.STARTING, f"Waiting for the cluster: job {match[1]} is pending.")
            elif (match := _SRUN_ALLOCATED.match(text)) is not None:
                self.set_state(SlotState.STARTING, f"The cluster has started job {match[1]}.")
            elif text.startswith(_RAY_WAITING):
                self.set_state(SlotState.STARTING, "Waiting for the cluster: no GPU is free.")

    def accept_secret(self, secret: str) -> bool:
        """Return whether a secret is that of the started process. It is accepted once."""
        if self._used_secret and not self._secret and hmac.compare_digest(self._used_secret.encode(), secret.encode()):
            _log.critical(
                "A worker presented a secret that was used before. Either it connected twice, or somebody else has "
                "the secret. The connected worker is disconnected.",
                extra={"worker": self.name},
            )
            self.disconnect()
            return False
        if not self._secret or not hmac.compare_digest(self._secret.encode(), secret.encode()):
            return False
        self._secret = ""
        return True

    def set_state(self, state: SlotState, status: str = "") -> None:
        self._was_ready |= state is SlotState.READY
        super().set_state(state, status)

    def _on_load_failed(self, message: str) -> None:
        self.reason, self.refused_model = message, True

    def _on_disconnected(self) -> None:
        self._disconnected.set()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Read a line. One that is too long is returned in parts."""
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as e:
        return e.partial
    except asyncio.LimitOverrunError as e:
        return await stream.read(e.consumed)


async def _end(process: asyncio.subprocess.Process, watching: "asyncio.Task[None]", gently: bool) -> None:
    """End a process. ``gently``: give it time to end by itself, which it does at the end of its standard input."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    if gently:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_TIMEOUT_S)
    if process.returncode is None:
        await end_async_process(process, END_TIMEOUT_S)
    watching.cancel()
