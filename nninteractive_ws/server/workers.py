"""Workers: started, watched, started again; and the sessions they are asked to open."""

import asyncio
from collections.abc import Sequence
import hmac
import logging
import secrets
import sys
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws.errors import WorkerLost
from nninteractive_ws.messages import Encoding
from nninteractive_ws.server import link

_log = logging.getLogger(__name__)

#: A worker that was asked for a session dials in at once; one that does not is stuck.
DIAL_IN_S = 30.0
RESTART_AFTER_S = 1.0
#: A worker that ends while it loads its model may have had bad luck, with the memory for instance; but not for ever.
MOST_ENDS_WHILE_LOADING = 3


class WorkerFailed(Exception):
    """The worker cannot load its model; starting another one would not help."""


class WorkerPool:
    """The worker of this gateway. ``arguments``: of ``python -m nninteractive_ws.engine.worker``."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)
        self._secret: str | None = None
        self._control: ServerConnection | None = None
        self._awaited: dict[str, asyncio.Future[ServerConnection]] = {}
        self._ready = asyncio.Event()
        self._over: asyncio.Future[str | None] | None = None
        self.description: link.Ready | None = None
        self.stopping = False

    async def run(self, port: int) -> None:
        """Keep a worker running that dials in at ``port``; for ever. Raises WorkerFailed."""
        ends_while_loading = 0
        while True:
            was_ready, status = await self._run_one(port)
            ends_while_loading = 0 if was_ready else ends_while_loading + 1
            if ends_while_loading == MOST_ENDS_WHILE_LOADING:
                raise WorkerFailed(
                    f"The worker process ended {ends_while_loading} times while it loaded the model, the last time "
                    f"with status {status}; what it said is above."
                )
            _log.error("the worker ended with status %s; starting another", status)
            await asyncio.sleep(RESTART_AFTER_S)

    async def _run_one(self, port: int) -> tuple[bool, int | None]:
        """Start a worker and wait for its end; whether it had loaded its model, and its exit status."""
        self._over = over = asyncio.get_running_loop().create_future()
        self._was_ready = False
        process = await self._start(port)
        ended = asyncio.ensure_future(process.wait())
        waited_for: set[asyncio.Future[Any]] = {ended, over}
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.stopping = True
            raise
        finally:
            await self._stop(process, ended)
        if over.done() and (reason := over.result()) is not None:
            raise WorkerFailed(reason)
        return self._was_ready, process.returncode

    async def _start(self, port: int) -> asyncio.subprocess.Process:
        self._secret = secrets.token_urlsafe(32)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "nninteractive_ws.engine.worker", "--port", str(port), *self._arguments,
            stdin=asyncio.subprocess.PIPE,
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
            await asyncio.wait_for(asyncio.shield(ended), 5)
        except TimeoutError:
            process.kill()
            await ended

    def admits_worker(self, secret: str) -> bool:
        """Whether a dialling worker has the secret of the one that was started; it serves once."""
        if self._secret is None or not hmac.compare_digest(self._secret.encode(), secret.encode()):
            return False
        self._secret = None
        return True

    def admits_session(self, token: str) -> bool:
        """Whether a session of this token is waited for."""
        return token in self._awaited and not self._awaited[token].done()

    async def serve_worker(self, connection: ServerConnection) -> None:
        """The worker's own connection, as long as it lasts; the worker is not of use for longer."""
        self._control, over, failure = connection, self._over, None
        try:
            async for data in connection:
                assert isinstance(data, bytes)
                message = link.decode_worker(data)
                if isinstance(message, link.Failed):
                    failure = message.message
                    return
                _log.info("the model %s is loaded on %s", message.model.name, message.device)
                self.description = message
                self._was_ready = True
                self._ready.set()
        except ConnectionClosed:
            pass  # run() says so
        finally:
            self._control = None
            self._ready.clear()
            self.description = None
            if over is not None and not over.done():
                over.set_result(failure)

    async def serve_session(self, connection: ServerConnection, token: str) -> None:
        """A session's connection, handed to whoever asked for it, until it closes."""
        dialled = self._awaited.pop(token, None)
        if dialled is not None and not dialled.done():
            dialled.set_result(connection)
            await connection.wait_closed()

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    async def wait_ready(self) -> link.Ready:
        """Wait for the worker; what it runs."""
        while self.description is None:
            await self._ready.wait()
        return self.description

    async def open_session(self, encoding: Encoding) -> ServerConnection:
        """A connection to a new session on the worker. Raises WorkerLost."""
        token = secrets.token_urlsafe(32)
        self._awaited[token] = dialled = asyncio.get_running_loop().create_future()
        try:
            if self._control is None:
                raise WorkerLost("The process that computes has just ended; try again in a moment.")
            await self._control.send(link.encode(link.Open(token, encoding)))
            return await asyncio.wait_for(dialled, DIAL_IN_S)
        except (TimeoutError, ConnectionClosed) as e:
            raise WorkerLost("The process that computes does not answer; try again in a moment.") from e
        finally:
            self._awaited.pop(token, None)
