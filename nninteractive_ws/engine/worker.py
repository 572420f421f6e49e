"""The worker process, which connects to the gateway, loads the model, and serves sessions.

``python -m nninteractive_ws.engine.worker --port N --model-name NAME --model-folder FOLDER --device DEVICE``,
with the gateway's secret as the first line of standard input. It ends when its standard input is closed.
"""

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, wait
import gc
import json
import logging
from pathlib import Path
import sys
from typing import Any

import msgspec
import torch
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import protocol, worker_protocol
from nninteractive_ws.engine.device_scheduler import DeviceScheduler, SchedulerSlot
from nninteractive_ws.engine.memory import MemoryPool, memory_pools, used_memory
from nninteractive_ws.engine.model_loader import LoadedModel, load_model, pick_device
from nninteractive_ws.engine.request_queue import RequestQueue
from nninteractive_ws.engine.session import LIMITS
from nninteractive_ws.engine.session_host import SessionHost
from nninteractive_ws.eviction import IDLE_S, eviction_order
from nninteractive_ws.logs import configure_logging
from nninteractive_ws.processes import wait_until_stdin_closes

_log = logging.getLogger(__name__)

# Timeout for an ending session to release its memory. It may still be in a forward pass.
_END_TIMEOUT_S = 5.0


class Worker:
    """One model on one device, and the sessions on it.

    ``memory``: bytes for sessions on the host; None: a share of the free memory, divided by ``workers``, the number of
    workers on this host. ``idle``: seconds without a useful message after which a connected session may be evicted.
    ``compiled``: see :func:`load_model`.
    """

    def __init__(self, port: int, secret: str, memory: int | None, workers: int, idle: float, compiled: bool) -> None:
        self._address, self._secret, self._memory, self._idle = f"ws://127.0.0.1:{port}", secret, memory, idle
        self._workers, self._compiled = workers, compiled
        self._sessions: dict[str, SessionHost] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._device: torch.device
        self._model: LoadedModel
        self._scheduler: DeviceScheduler
        self._pools: list[MemoryPool]
        self._loop = asyncio.get_running_loop()
        self._to_gateway: asyncio.Queue[worker_protocol.WorkerMessage] = asyncio.Queue()

    async def run(self, name: str, folder: Path, device_name: str) -> None:
        """Serve until the gateway closes the connection."""
        async with self._dial(worker_protocol.WORKER_PATH, self._secret) as control:
            try:
                self._device = pick_device(device_name)
            except ValueError as e:
                await control.send(worker_protocol.encode(worker_protocol.ModelLoadFailed(str(e))))
                return
            self._scheduler = DeviceScheduler(str(self._device))
            try:
                # On the thread that will run the model, because cuDNN keeps the results of the warm-up per thread.
                self._model = await asyncio.to_thread(
                    self._scheduler.run,
                    SchedulerSlot(lambda _: None),
                    lambda: load_model(name, folder, self._device, self._compiled),
                )
            except Exception as e:
                _log.exception("the model in %s could not be loaded", folder)
                await control.send(
                    worker_protocol.encode(
                        worker_protocol.ModelLoadFailed(f"The model {name} in {folder} could not be loaded ({e}).")
                    )
                )
                return
            # Objects that live as long as the process need not be scanned whenever a session's memory is freed.
            gc.collect()
            gc.freeze()
            self._pools = memory_pools(self._device, self._memory, self._workers, self._evict_idle_session)
            limits = msgspec.structs.replace(LIMITS, session_bytes=self._pools[-1].session_limit)
            self._to_gateway.put_nowait(
                worker_protocol.ModelReady(
                    self._model.description, str(self._device), limits, json.dumps(self._model.capabilities)
                )
            )
            self._spawn(self._send_reports(control))
            async for data in control:
                assert isinstance(data, bytes)
                self._handle_command(worker_protocol.decode_gateway(data))

    def _handle_command(self, command: worker_protocol.GatewayMessage) -> None:
        if isinstance(command, worker_protocol.OpenSession):
            self._spawn(self._serve_session(command))
            return
        session = self._sessions.get(command.session)
        if command.only_if_idle:
            self._spawn(self._evict(command.session, session))
        elif session is not None:
            session.over.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task, and keep a reference until it is done, because the event loop keeps none."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_reports(self, control: ClientConnection) -> None:
        try:
            while True:
                message = await self._to_gateway.get()
                await control.send(worker_protocol.encode(message))
                if isinstance(
                    message, worker_protocol.ModelReady | worker_protocol.RequestAnswered | worker_protocol.SessionEnded
                ):
                    charged = self._pools[-1].used_by_purpose()
                    await control.send(
                        worker_protocol.encode(worker_protocol.MemoryUsage(used_memory(self._device), charged))
                    )
        except ConnectionClosed:
            pass  # the gateway is gone; run() ends too

    async def _serve_session(self, command: worker_protocol.OpenSession) -> None:
        """Serve one connection of a session, which is created unless it is to be resumed."""
        try:
            async with self._dial(worker_protocol.SESSION_PATH, command.token) as connection:
                session = self._sessions.get(command.session)
                if command.resume and (session is None or session.over.is_set()):
                    await connection.send(worker_protocol.encode(worker_protocol.SessionAttached(created=True)))
                    return
                if session is None:
                    session = self._sessions[command.session] = self._new_session(command)
                    self._spawn(self._end_when_over(session))
                await session.serve(connection, created=not command.resume)
        except ConnectionClosed:
            pass  # the client is gone before the first message
        except Exception:
            _log.exception("could not serve a connection", extra={"session": command.session})

    def _new_session(self, command: worker_protocol.OpenSession) -> SessionHost:
        def make_queue(wake: Callable[[], None]) -> RequestQueue:
            return RequestQueue(command.session, self._model, self._scheduler, command.encoding, self._pools, wake)

        return SessionHost(command.session, command.allow_eviction, make_queue, self._to_gateway.put_nowait)

    async def _end_when_over(self, session: SessionHost) -> None:
        """Release a session as soon as it is over, regardless of its connection."""
        await session.over.wait()
        await session.end()
        del self._sessions[session.name]
        self._to_gateway.put_nowait(worker_protocol.SessionEnded(session.name, session.evicted))

    async def _evict(self, name: str, session: SessionHost | None) -> None:
        # None if the session is being opened.
        if session is None or not await asyncio.to_thread(session.evict_if_idle, self._idle):
            self._to_gateway.put_nowait(worker_protocol.EvictionRefused(name))

    def _evict_idle_session(self, requester: object) -> bool:
        """Free memory for a session, from any thread. Return whether any was freed.

        Wait for a session that is ending, or else evict the first idle one in :func:`eviction_order`.
        """
        sessions = list(self._sessions.values())  # other threads may add to them meanwhile
        ending = [s.ended for s in sessions if s.over.is_set() and not s.queue.is_session(requester)]
        if wait(ending, _END_TIMEOUT_S, FIRST_COMPLETED).done:
            return True
        if any(s.queue.is_session(requester) and not s.allows_eviction for s in sessions):
            return False
        others = (s for s in sessions if not s.queue.is_session(requester))
        return any(session.evict_if_idle(self._idle) for session in eviction_order(others))

    def _dial(self, path: str, secret: str) -> connect:
        return connect(
            self._address + path,
            additional_headers=worker_protocol.bearer(secret),
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            max_queue=2,  # messages, each up to max_size
            ping_interval=None,  # the gateway pings
            close_timeout=1,  # enough on loopback; unread messages must not delay the close
            proxy=None,
        )


async def _main(args: argparse.Namespace, secret: str) -> None:
    worker = Worker(args.port, secret, args.memory, args.workers, args.idle, args.compile)
    running = asyncio.ensure_future(worker.run(args.model_name, args.model_folder, args.device))
    parent = asyncio.ensure_future(wait_until_stdin_closes())
    await asyncio.wait({running, parent}, return_when=asyncio.FIRST_COMPLETED)
    for task in (running, parent):
        task.cancel()
    results = await asyncio.gather(running, parent, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
            raise result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--model-folder", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--idle", type=float, default=IDLE_S)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-json", action="store_true")
    args = parser.parse_args()
    configure_logging(f"worker {args.device}", args.log_level, args.log_json)
    secret = sys.stdin.readline().strip()
    asyncio.run(_main(args, secret))


if __name__ == "__main__":
    main()
