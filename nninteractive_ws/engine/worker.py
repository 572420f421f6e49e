"""The worker process: dials in to the gateway, loads the model, and serves the sessions it is asked to open.

``python -m nninteractive_ws.engine.worker --port N --model-name NAME --model-folder FOLDER --device DEVICE``,
with the gateway's secret as the first line of standard input. It ends when its standard input does.
"""

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, wait
import contextlib
import gc
import logging
from pathlib import Path
import sys
from typing import Any

import msgspec
import torch
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import protocol
from nninteractive_ws.engine.device import DeviceThread, Seat
from nninteractive_ws.engine.dialogue import Dialogue
from nninteractive_ws.engine.hosted import HostedSession
from nninteractive_ws.engine.memory import MemoryPool, memory_pools, used_memory
from nninteractive_ws.engine.models import LoadedModel, load_model, pick_device
from nninteractive_ws.engine.session import LIMITS
from nninteractive_ws.server import link
from nninteractive_ws.server.logs import configure_logging

_log = logging.getLogger(__name__)

# A session that is over has let go of its memory within this: it may still be in a forward pass.
_ENDS_WITHIN_S = 5.0


class Worker:
    """One model on one device, and the sessions on it. ``memory``: bytes for sessions on the host; None: a share of
    what is free, divided by ``workers``, their number on this host. ``idle``: seconds after which a connected
    session that is not used may be given up for another. ``compiled``: as :func:`load_model` takes it."""

    def __init__(self, port: int, secret: str, memory: int | None, workers: int, idle: float, compiled: bool) -> None:
        self._address, self._secret, self._memory, self._idle = f"ws://127.0.0.1:{port}", secret, memory, idle
        self._workers, self._compiled = workers, compiled
        self._sessions: dict[str, HostedSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._device: torch.device
        self._model: LoadedModel
        self._thread: DeviceThread
        self._pools: list[MemoryPool]
        self._loop = asyncio.get_running_loop()
        self._to_gateway: asyncio.Queue[link.WorkerMessage] = asyncio.Queue()

    async def run(self, name: str, folder: Path, device_name: str) -> None:
        """Serve until the gateway closes the connection."""
        async with self._dial(link.WORKER_PATH, self._secret) as control:
            try:
                self._device = pick_device(device_name)
            except ValueError as e:
                await control.send(link.encode(link.Failed(str(e))))
                return
            self._thread = DeviceThread(str(self._device))
            try:
                # On the thread that will run it: cuDNN keeps what the warm-up finds per thread.
                self._model = await asyncio.to_thread(
                    self._thread.run,
                    Seat(lambda _: None),
                    lambda: load_model(name, folder, self._device, self._compiled),
                )
            except Exception as e:
                _log.exception("the model in %s could not be loaded", folder)
                await control.send(link.encode(link.Failed(f"The model {name} in {folder} could not be loaded: {e}")))
                return
            # What lives as long as the process need not be looked at whenever a session's memory is freed.
            gc.collect()
            gc.freeze()
            self._pools = memory_pools(self._device, self._memory, self._workers, self._make_room)
            limits = msgspec.structs.replace(LIMITS, session_bytes=self._pools[-1].session_limit)
            self._to_gateway.put_nowait(link.Ready(self._model.description, str(self._device), limits))
            self._keep(self._report(control))
            async for data in control:
                assert isinstance(data, bytes)
                self._obey(link.decode_gateway(data))

    def _obey(self, order: link.GatewayMessage) -> None:
        if isinstance(order, link.Open):
            self._keep(self._serve_session(order))
            return
        session = self._sessions.get(order.session)
        if order.idle:
            self._keep(self._evict(order.session, session))
        elif session is not None:
            session.over.set()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task, and refer to it until it is done: the event loop does not."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _report(self, control: ClientConnection) -> None:
        try:
            while True:
                message = await self._to_gateway.get()
                await control.send(link.encode(message))
                if isinstance(message, link.Ready | link.Answered | link.Gone):
                    charged = self._pools[-1].used_by_purpose()
                    await control.send(link.encode(link.Memory(used_memory(self._device), charged)))
        except ConnectionClosed:
            pass  # the gateway went; run() ends too

    async def _serve_session(self, order: link.Open) -> None:
        """Carry one connection of a session, which is made unless it is to be taken up."""
        try:
            async with self._dial(link.SESSION_PATH, order.token) as connection:
                session = self._sessions.get(order.session)
                if order.take_up and (session is None or session.over.is_set()):
                    await connection.send(link.encode(link.Attached(fresh=True)))
                    return
                if session is None:
                    session = self._sessions[order.session] = self._new_session(order)
                    self._keep(self._see_out(session))
                await session.serve(connection, fresh=not order.take_up)
        except ConnectionClosed:
            pass  # the client was gone before it could be told anything
        except Exception:
            _log.exception("a connection could not be served", extra={"session": order.session})

    def _new_session(self, order: link.Open) -> HostedSession:
        def make(wake: Callable[[], None]) -> Dialogue:
            return Dialogue(order.session, self._model, self._thread, order.encoding, self._pools, wake)

        return HostedSession(order.session, order.make_room, make, self._to_gateway.put_nowait)

    async def _see_out(self, session: HostedSession) -> None:
        """Let go of a session as soon as it is over, whatever its connection still does."""
        await session.over.wait()
        await session.end()
        del self._sessions[session.name]
        self._to_gateway.put_nowait(link.Gone(session.name, session.evicted))

    async def _evict(self, name: str, session: HostedSession | None) -> None:
        # None: the session is being opened.
        if session is None or not await asyncio.to_thread(session.evict_if_idle, self._idle):
            self._to_gateway.put_nowait(link.EvictionRefused(name))

    def _make_room(self, requester: object) -> bool:
        """Wait for a session that ends, or else give up the one that was used longest ago, from any thread; whether
        there was one."""
        sessions = list(self._sessions.values())  # other threads may add to them meanwhile
        ending = [s.ended for s in sessions if s.over.is_set() and not s.dialogue.is_session(requester)]
        if wait(ending, _ENDS_WITHIN_S, FIRST_COMPLETED).done:
            return True
        if any(s.dialogue.is_session(requester) and not s.makes_room for s in sessions):
            return False
        others = (s for s in sessions if not s.dialogue.is_session(requester))
        return any(s.evict_if_idle(self._idle) for s in sorted(others, key=lambda s: s.dialogue.last_used))

    def _dial(self, path: str, secret: str) -> connect:
        return connect(
            self._address + path,
            additional_headers=link.bearer(secret),
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            max_queue=2,  # each may be as large as that
            ping_interval=None,  # the gateway pings
            close_timeout=1,  # on loopback; who has more to say than is listened to does not hold up the end
            proxy=None,
        )


async def _until_stdin_closes() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def _main(args: argparse.Namespace, secret: str) -> None:
    worker = Worker(args.port, secret, args.memory, args.workers, args.idle, args.compile)
    work = asyncio.ensure_future(worker.run(args.model_name, args.model_folder, args.device))
    parent = asyncio.ensure_future(_until_stdin_closes())
    await asyncio.wait({work, parent}, return_when=asyncio.FIRST_COMPLETED)
    for task in (work, parent):
        task.cancel()
    results = await asyncio.gather(work, parent, return_exceptions=True)
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
    parser.add_argument("--idle", type=float, default=30.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-json", action="store_true")
    args = parser.parse_args()
    configure_logging(f"worker {args.device}", args.log_level, args.log_json)
    secret = sys.stdin.readline().strip()
    # Ctrl-C in the terminal reaches the gateway too, which says what there is to say.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(args, secret))


if __name__ == "__main__":
    main()
