"""Worker processes, one per device: start, supervision and restart, and their connections for sessions."""

import asyncio
from collections.abc import Callable, Sequence
import hmac
import logging
import os
import secrets

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import worker_protocol
from nninteractive_ws.errors import WorkerLost
from nninteractive_ws.messages import Encoding
from nninteractive_ws.processes import end_async_process, own_process_group, python_module

_log = logging.getLogger(__name__)

#: Timeout for a worker's connection for a new session. A live worker connects at once.
CONNECT_TIMEOUT_S = 30.0
RESTART_AFTER_S = 1.0
#: Timeout for a worker to end by itself before it is killed.
END_TIMEOUT_S = 3.0
#: Number of consecutive worker exits during model loading after which the server stops. A single exit may have a
#: temporary cause, such as a lack of memory.
MAX_ENDS_WHILE_LOADING = 3


# glibc's malloc gives every thread its own arena, which keeps freed memory. With a thread for each session, memory
# would grow by hundreds of megabytes as sessions open and close.
# PYTHONSAFEPATH keeps the working folder off sys.path in processes that a worker starts, such as torch.compile's.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "PYTHONSAFEPATH": "1"}


class WorkerStartupError(Exception):
    """The worker cannot load its model, and a restart would not help."""


class WorkerProcess:
    """The worker of a device. It restarts its process when that ends."""

    def __init__(self, device: str, arguments: Sequence[str], pool: "WorkerPool") -> None:
        self.device = device
        self._arguments, self._pool = [*arguments, "--device", device], pool
        self._secret: str | None = None
        self._control: ServerConnection | None = None
        self._disconnected: asyncio.Future[str | None] | None = None
        self._was_ready = False
        #: Model and device, once the model is loaded.
        self.description: worker_protocol.ModelReady | None = None
        #: Bytes in use on its device, and bytes charged to its sessions, by purpose.
        self.memory = 0
        self.charged: dict[str, int] = {}

    async def run(self, port: int) -> None:
        """Keep a process running that connects to ``port``, forever. Raises WorkerStartupError."""
        ends_while_loading = 0
        while True:
            status = await self._run_process(port)
            ends_while_loading = 0 if self._was_ready else ends_while_loading + 1
            if ends_while_loading == MAX_ENDS_WHILE_LOADING:
                raise WorkerStartupError(
                    f"The worker process ended {ends_while_loading} times while it loaded the model, the last time "
                    f"with status {status}. Its messages above say why."
                )
            _log.error("the worker ended with status %s and is restarted", status, extra={"worker": self.device})
            self._pool.restarted()
            await asyncio.sleep(RESTART_AFTER_S)

    async def _run_process(self, port: int) -> int | None:
        """Start a process, wait until it ends, and return its exit status."""
        self._disconnected = disconnected = asyncio.get_running_loop().create_future()
        self._was_ready = False
        process = await self._start(port)
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({ended, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._pool.stopping = True
            raise
        finally:
            await end_async_process(process, END_TIMEOUT_S)
        if disconnected.done() and (reason := disconnected.result()) is not None:
            raise WorkerStartupError(reason)
        return process.returncode

    async def _start(self, port: int) -> asyncio.subprocess.Process:
        self._secret = secrets.token_urlsafe(32)
        # Libraries print to standard output, which the gateway reserves for its address. It is discarded, because
        # printing to a standard error that nobody reads would block the worker.
        process = await asyncio.create_subprocess_exec(
            *python_module("nninteractive_ws.engine.worker", "--port", str(port), *self._arguments),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, env={**_ENVIRONMENT, **os.environ},
            **own_process_group(),
        )  # fmt: skip
        assert process.stdin is not None
        # The pipe stays open. The worker ends when it closes, which it does when this process ends for any reason.
        process.stdin.write(self._secret.encode() + b"\n")
        return process

    def accept_secret(self, secret: str) -> bool:
        """Return whether a secret is that of the started process. It is accepted once."""
        if self._secret is None or not hmac.compare_digest(self._secret.encode(), secret.encode()):
            return False
        self._secret = None
        return True

    async def serve(self, connection: ServerConnection) -> None:
        """Serve the process's control connection until it closes, after which the process is ended."""
        self._control, disconnected, failure = connection, self._disconnected, None
        try:
            async for data in connection:
                assert isinstance(data, bytes)
                message = worker_protocol.decode_worker(data)
                if isinstance(message, worker_protocol.ModelLoadFailed):
                    failure = message.message
                    return
                self._on_message(message)
        except ConnectionClosed:
            pass  # run() logs it
        finally:
            self._control = self.description = None
            self._pool.lost(self)
            if disconnected is not None and not disconnected.done():
                disconnected.set_result(failure)

    def _on_message(self, message: worker_protocol.WorkerMessage) -> None:
        if isinstance(message, worker_protocol.ModelReady):
            _log.info("the model %s is loaded", message.model.name, extra={"worker": message.device})
            self.description = message
            self._was_ready = True
            self._pool.ready.set()
        elif isinstance(message, worker_protocol.MemoryUsage):
            self.memory, self.charged = message.used, message.charged
        else:
            self._pool.on_message(message)

    async def send(self, message: worker_protocol.GatewayMessage) -> None:
        """Send a message on the control connection. Raises WorkerLost."""
        if self._control is None:
            raise WorkerLost("The worker process just ended. Try again in a moment.")
        try:
            await self._control.send(worker_protocol.encode(message))
        except ConnectionClosed as e:
            raise WorkerLost("The worker process does not answer. Try again in a moment.") from e


class WorkerPool:
    """The workers of a gateway. ``arguments``: of ``python -m nninteractive_ws.engine.worker``.

    ``on_message``: called with each message about a session. ``on_lost``: called if a worker ended, and all of its
    sessions with it. ``on_restart``: called before a worker is restarted.
    """

    def __init__(
        self,
        devices: Sequence[str],
        arguments: Sequence[str],
        on_message: Callable[[worker_protocol.WorkerMessage], None],
        on_lost: Callable[[WorkerProcess], None],
        on_restart: Callable[[], None],
    ) -> None:
        self.workers = [WorkerProcess(device, arguments, self) for device in devices]
        self.on_message, self._on_lost, self.restarted = on_message, on_lost, on_restart
        self._expected: dict[str, asyncio.Future[ServerConnection]] = {}
        self.ready = asyncio.Event()
        self.stopping = False

    async def run(self, port: int) -> None:
        """Keep the workers running, forever. Raises WorkerStartupError."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker in self.workers:
                    tasks.create_task(worker.run(port))
        except asyncio.CancelledError:
            raise
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def lost(self, worker: WorkerProcess) -> None:
        """Handle the end of a worker's control connection."""
        if not self.loaded:
            self.ready.clear()
        self._on_lost(worker)

    @property
    def loaded(self) -> list[WorkerProcess]:
        """Workers that have loaded the model."""
        return [worker for worker in self.workers if worker.description is not None]

    async def wait_ready(self, load: Callable[[WorkerProcess], int]) -> WorkerProcess:
        """Wait for a worker that has loaded the model. Of several, return the one with the least ``load``."""
        while not self.loaded:
            await self.ready.wait()
        return min(self.loaded, key=load)

    # ---- connections of workers ---------------------------------------------------------------------------

    def worker_of(self, secret: str) -> WorkerProcess | None:
        """Return the worker with this secret, or None."""
        return next((worker for worker in self.workers if worker.accept_secret(secret)), None)

    def expects_session(self, token: str) -> bool:
        """Return whether a session's connection with this token is expected."""
        return token in self._expected and not self._expected[token].done()

    async def serve_session(self, connection: ServerConnection, token: str) -> None:
        """Hand a session's connection to :meth:`open_session`, and wait until it closes."""
        connected = self._expected.pop(token, None)
        if connected is not None and not connected.done():
            connected.set_result(connection)
            await connection.wait_closed()

    async def open_session(
        self, worker: WorkerProcess, session: str, encoding: Encoding, *, resume: bool, allow_eviction: bool
    ) -> tuple[ServerConnection, worker_protocol.SessionAttached]:
        """Open or resume a session on a worker. Return its connection and its state. Raises WorkerLost."""
        token = secrets.token_urlsafe(32)
        self._expected[token] = connected = asyncio.get_running_loop().create_future()
        try:
            await worker.send(worker_protocol.OpenSession(token, session, encoding, resume, allow_eviction))
            connection = await asyncio.wait_for(connected, CONNECT_TIMEOUT_S)
            first = await connection.recv()
            assert isinstance(first, bytes)
            return connection, worker_protocol.decode_attached(first)
        except (TimeoutError, ConnectionClosed) as e:
            raise WorkerLost("The worker process does not answer. Try again in a moment.") from e
        finally:
            self._expected.pop(token, None)
