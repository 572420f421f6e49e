"""Workers: one for each device, started, watched, started again; and the sessions they are asked to open."""

import asyncio
from collections.abc import Callable, Sequence
import hmac
import logging
import os
import secrets

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws.errors import WorkerLost
from nninteractive_ws.messages import Encoding
from nninteractive_ws.processes import python_module
from nninteractive_ws.server import link

_log = logging.getLogger(__name__)

#: A worker that was asked for a session dials in at once; one that does not is stuck.
DIAL_IN_S = 30.0
RESTART_AFTER_S = 1.0
#: What a worker is given to end by itself.
END_WITHIN_S = 3.0
#: A worker that ends while it loads its model may have had bad luck, with the memory for instance; but not for ever.
MOST_ENDS_WHILE_LOADING = 3


# glibc's malloc gives every thread an arena of its own, which keeps what was freed: with a thread for each session that
# comes and goes, memory would grow by hundreds of megabytes.
# PYTHONSAFEPATH keeps the working folder off sys.path in processes that a worker starts, such as torch.compile's.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "PYTHONSAFEPATH": "1"}


class WorkerFailed(Exception):
    """The worker cannot load its model; starting another one would not help."""


class Worker:
    """The worker of a device: a process, and when it ended another one."""

    def __init__(self, device: str, arguments: Sequence[str], pool: "WorkerPool") -> None:
        self.device = device
        self._arguments, self._pool = [*arguments, "--device", device], pool
        self._secret: str | None = None
        self._control: ServerConnection | None = None
        self._over: asyncio.Future[str | None] | None = None
        self._was_ready = False
        #: What it runs, once the model is loaded.
        self.description: link.Ready | None = None
        #: Bytes in use on its device, and bytes charged to its sessions, by purpose.
        self.memory = 0
        self.charged: dict[str, int] = {}

    async def run(self, port: int) -> None:
        """Keep a process running that dials in at ``port``; for ever. Raises WorkerFailed."""
        ends_while_loading = 0
        while True:
            status = await self._run_one(port)
            ends_while_loading = 0 if self._was_ready else ends_while_loading + 1
            if ends_while_loading == MOST_ENDS_WHILE_LOADING:
                raise WorkerFailed(
                    f"The worker process ended {ends_while_loading} times while it loaded the model, the last time "
                    f"with status {status}; what it said is above."
                )
            _log.error("the worker ended with status %s; starting another", status, extra={"worker": self.device})
            self._pool.restarted()
            await asyncio.sleep(RESTART_AFTER_S)

    async def _run_one(self, port: int) -> int | None:
        """Start a process and wait for its end; its exit status."""
        self._over = over = asyncio.get_running_loop().create_future()
        self._was_ready = False
        process = await self._start(port)
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({ended, over}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._pool.stopping = True
            raise
        finally:
            await self._stop(process, ended)
        if over.done() and (reason := over.result()) is not None:
            raise WorkerFailed(reason)
        return process.returncode

    async def _start(self, port: int) -> asyncio.subprocess.Process:
        self._secret = secrets.token_urlsafe(32)
        # Libraries print to standard output, which is for the gateway's address alone. It is not passed on to standard
        # error: where nobody reads that, printing would block the worker.
        process = await asyncio.create_subprocess_exec(
            *python_module("nninteractive_ws.engine.worker", "--port", str(port), *self._arguments),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, env={**_ENVIRONMENT, **os.environ},
        )  # fmt: skip
        assert process.stdin is not None
        # Through the pipe, which stays open: the worker ends when it closes, however this process ends.
        process.stdin.write(self._secret.encode() + b"\n")
        return process

    @staticmethod
    async def _stop(process: asyncio.subprocess.Process, ended: "asyncio.Future[int]") -> None:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(ended), END_WITHIN_S)
        except TimeoutError:
            process.kill()
            await ended

    def admits(self, secret: str) -> bool:
        """Whether a dialling worker has the secret of the process that was started; it serves once."""
        if self._secret is None or not hmac.compare_digest(self._secret.encode(), secret.encode()):
            return False
        self._secret = None
        return True

    async def serve(self, connection: ServerConnection) -> None:
        """The process's own connection, as long as it lasts; the process is not of use for longer."""
        self._control, over, failure = connection, self._over, None
        try:
            async for data in connection:
                assert isinstance(data, bytes)
                message = link.decode_worker(data)
                if isinstance(message, link.Failed):
                    failure = message.message
                    return
                self._hear(message)
        except ConnectionClosed:
            pass  # run() says so
        finally:
            self._control = self.description = None
            self._pool.lost(self)
            if over is not None and not over.done():
                over.set_result(failure)

    def _hear(self, message: link.WorkerMessage) -> None:
        if isinstance(message, link.Ready):
            _log.info("the model %s is loaded", message.model.name, extra={"worker": message.device})
            self.description = message
            self._was_ready = True
            self._pool.ready.set()
        elif isinstance(message, link.Memory):
            self.memory, self.charged = message.used, message.charged
        else:
            self._pool.on_message(message)

    async def send(self, message: link.GatewayMessage) -> None:
        """Raises WorkerLost."""
        if self._control is None:
            raise WorkerLost("The process that computes has just ended; try again in a moment.")
        try:
            await self._control.send(link.encode(message))
        except ConnectionClosed as e:
            raise WorkerLost("The process that computes does not answer; try again in a moment.") from e


class WorkerPool:
    """The workers of a gateway. ``arguments``: of ``python -m nninteractive_ws.engine.worker``.

    ``on_message`` is told what a worker says of its sessions, ``on_lost`` that a worker ended with all of its
    sessions, ``on_restart`` that another is started in its place.
    """

    def __init__(
        self,
        devices: Sequence[str],
        arguments: Sequence[str],
        on_message: Callable[[link.WorkerMessage], None],
        on_lost: Callable[[Worker], None],
        on_restart: Callable[[], None],
    ) -> None:
        self.workers = [Worker(device, arguments, self) for device in devices]
        self.on_message, self._on_lost, self.restarted = on_message, on_lost, on_restart
        self._awaited: dict[str, asyncio.Future[ServerConnection]] = {}
        self.ready = asyncio.Event()
        self.stopping = False

    async def run(self, port: int) -> None:
        """Keep the workers running; for ever. Raises WorkerFailed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker in self.workers:
                    tasks.create_task(worker.run(port))
        except asyncio.CancelledError:
            raise
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def lost(self, worker: Worker) -> None:
        """A worker's connection ended."""
        if not self.loaded:
            self.ready.clear()
        self._on_lost(worker)

    @property
    def loaded(self) -> list[Worker]:
        """The workers that have loaded the model."""
        return [worker for worker in self.workers if worker.description is not None]

    async def wait_ready(self, load: Callable[[Worker], int]) -> Worker:
        """Wait for a worker that has loaded the model; of several the one with the least ``load``."""
        while not self.loaded:
            await self.ready.wait()
        return min(self.loaded, key=load)

    # ---- connections of workers ---------------------------------------------------------------------------

    def worker_of(self, secret: str) -> Worker | None:
        """The worker whose process dials in with this secret."""
        return next((worker for worker in self.workers if worker.admits(secret)), None)

    def admits_session(self, token: str) -> bool:
        """Whether a session's connection with this token is waited for."""
        return token in self._awaited and not self._awaited[token].done()

    async def serve_session(self, connection: ServerConnection, token: str) -> None:
        """A session's connection, handed to whoever asked for it, until it closes."""
        dialled = self._awaited.pop(token, None)
        if dialled is not None and not dialled.done():
            dialled.set_result(connection)
            await connection.wait_closed()

    async def open_session(
        self, worker: Worker, session: str, encoding: Encoding, *, take_up: bool, make_room: bool
    ) -> tuple[ServerConnection, link.Attached]:
        """A connection to a session on a worker, and what the worker says of it. Raises WorkerLost."""
        token = secrets.token_urlsafe(32)
        self._awaited[token] = dialled = asyncio.get_running_loop().create_future()
        try:
            await worker.send(link.Open(token, session, encoding, take_up, make_room))
            connection = await asyncio.wait_for(dialled, DIAL_IN_S)
            first = await connection.recv()
            assert isinstance(first, bytes)
            return connection, link.decode_attached(first)
        except (TimeoutError, ConnectionClosed) as e:
            raise WorkerLost("The process that computes does not answer; try again in a moment.") from e
        finally:
            self._awaited.pop(token, None)
