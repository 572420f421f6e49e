"""The worker process, which connects to the gateway, loads the model, and serves sessions.

``python -m nninteractive_ws.engine.worker --gateway ws://HOST:PORT --model-name NAME --device DEVICE``, with a secret
and the gateway's certificate as the first two lines of standard input. It ends when its standard input is closed.
"""

import argparse
import asyncio
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
import gc
import json
import logging
from pathlib import Path
import signal
import ssl
import sys

import msgspec
import torch
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from nninteractive_ws import protocol, worker_protocol
from nninteractive_ws.background_tasks import BackgroundTasks
from nninteractive_ws.engine.device_scheduler import DeviceScheduler, SchedulerSlot
from nninteractive_ws.engine.memory import MemoryPool, memory_pools, used_memory
from nninteractive_ws.engine.model_loader import LoadedModel, load_model, pick_device
from nninteractive_ws.engine.model_registry import ModelNotFound, find_model
from nninteractive_ws.engine.request_queue import RequestQueue
from nninteractive_ws.engine.session import LIMITS
from nninteractive_ws.engine.session_host import SessionHost
from nninteractive_ws.eviction import IDLE_S, eviction_order
from nninteractive_ws.logs import configure_logging
from nninteractive_ws.processes import wait_until_stdin_closes

_log = logging.getLogger(__name__)

#: Keepalive of the control connection. The gateway answers at once, so a worker without an answer has lost it. Without
#: pings, a worker behind a tunnel whose other end is gone would stay.
PING_EVERY_S, PONG_TIMEOUT_S = 10.0, 20.0
# Timeout for an ending session to release its memory. It may still be in a forward pass.
_END_TIMEOUT_S = 5.0


class NotConnected(Exception):
    """The worker cannot connect to its gateway. ``str()`` is a sentence."""


class Worker:
    """One model on one device, and the sessions on it.

    ``gateway``: its address. ``certificate``: the one to trust (DER); empty: no TLS. ``memory``: bytes for sessions on
    the host; None: a share of the free memory, divided by ``workers``, the number of workers on this host.
    ``workers_on_device``: the number of those on the same device. ``idle``: seconds without a useful message after
    which a connected session may be evicted. ``compiled``: see :func:`load_model`.
    """

    def __init__(
        self,
        gateway: str,
        secret: str,
        certificate: bytes,
        memory: int | None,
        workers: int,
        workers_on_device: int,
        idle: float,
        compiled: bool,
    ) -> None:
        self._address, self._secret, self._memory, self._idle = gateway, secret, memory, idle
        self._tls = _pinned(certificate) if certificate else None
        self._workers, self._workers_on_device, self._compiled = workers, workers_on_device, compiled
        self._sessions: dict[str, SessionHost] = {}
        self._tasks = BackgroundTasks()
        self._device: torch.device
        self._model: LoadedModel
        self._scheduler: DeviceScheduler
        self._pools: list[MemoryPool]
        self._loop = asyncio.get_running_loop()
        self._to_gateway: asyncio.Queue[worker_protocol.WorkerMessage] = asyncio.Queue()

    async def run(self, name: str, folder: Path | None, device_name: str) -> None:
        """Serve until the gateway closes the connection. ``folder``: of the model; None: it is found by its name.

        Raises NotConnected.
        """
        async with await self._connect() as control:
            worker_protocol.watch_connection(control)
            try:
                self._device = pick_device(device_name)
                name, found = (name, folder) if folder is not None else await asyncio.to_thread(find_model, name)
            except (ValueError, ModelNotFound) as e:
                await control.send(worker_protocol.encode(worker_protocol.ModelLoadFailed(str(e))))
                return
            self._scheduler = DeviceScheduler(str(self._device))
            try:
                # On the thread that will run the model, because cuDNN keeps the results of the warm-up per thread.
                self._model = await asyncio.to_thread(
                    self._scheduler.run,
                    SchedulerSlot(lambda _: None),
                    lambda: load_model(name, found, self._device, self._compiled),
                )
            except Exception as e:
                _log.exception("the model in %s could not be loaded", found)
                await control.send(
                    worker_protocol.encode(
                        worker_protocol.ModelLoadFailed(f"The model {name} in {found} could not be loaded ({e}).")
                    )
                )
                return
            # Objects that live as long as the process need not be scanned whenever a session's memory is freed.
            gc.collect()
            gc.freeze()
            self._pools = memory_pools(
                self._device, self._memory, self._workers, self._workers_on_device, self._evict_idle_session
            )
            limits = msgspec.structs.replace(LIMITS, session_bytes=self._pools[-1].session_limit)
            self._to_gateway.put_nowait(
                worker_protocol.ModelReady(
                    self._model.description, str(self._device), limits, json.dumps(self._model.capabilities)
                )
            )
            self._tasks.spawn(self._send_reports(control))
            async for data in control:
                assert isinstance(data, bytes)
                self._handle_command(worker_protocol.decode_gateway(data))

    def _handle_command(self, command: worker_protocol.GatewayMessage) -> None:
        if isinstance(command, worker_protocol.OpenSession):
            self._tasks.spawn(self._serve_session(command))
            return
        session = self._sessions.get(command.session)
        if command.idle_s is not None:
            self._tasks.spawn(self._evict(command.session, session, command.idle_s))
        elif session is not None:
            session.over.set()

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
        except Exception:
            # The device may be unusable, as after an illegal access on a GPU. The gateway starts another worker.
            _log.exception("the worker ends, because it cannot report its state")
            await control.close()

    async def _serve_session(self, command: worker_protocol.OpenSession) -> None:
        """Serve one connection of a session, which is created unless it is to be resumed."""
        try:
            async with self._dial(worker_protocol.SESSION_PATH, command.token, None) as connection:
                worker_protocol.watch_connection(connection)
                session = self._sessions.get(command.session)
                if command.resume and (session is None or session.over.is_set()):
                    await connection.send(worker_protocol.encode(worker_protocol.SessionAttached(created=True)))
                    return
                if session is None:
                    session = self._sessions[command.session] = self._new_session(command)
                    self._tasks.spawn(self._end_when_over(session))
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

    async def _evict(self, name: str, session: SessionHost | None, idle_s: float) -> None:
        # None if the session is being opened.
        if session is None or not await asyncio.to_thread(session.evict_if_idle, idle_s):
            self._to_gateway.put_nowait(worker_protocol.EvictionRefused(name))

    def _evict_idle_session(self, requester: object, pool: MemoryPool, missing: int, connected: bool) -> bool:
        """Free memory in a pool for a session, from any thread. Return whether any was freed.

        Wait for a session that is ending, or else evict the first idle one in :func:`eviction_order`, of those with
        memory in the pool. ``missing``, ``connected``: see :data:`~nninteractive_ws.engine.memory.Evict`.
        """
        sessions = list(self._sessions.values())  # other threads may add to them meanwhile
        others = [s for s in sessions if not s.queue.is_session(requester) and s.queue.memory_in(pool)]
        ending = [s.ended for s in others if s.over.is_set()]
        if wait(ending, _END_TIMEOUT_S, FIRST_COMPLETED).done:
            return True
        if any(s.queue.is_session(requester) and not s.allows_eviction for s in sessions):
            return False
        candidates = [s for s in others if (connected or not s.connected) and s.is_idle(self._idle)]
        if sum(s.queue.memory_in(pool) for s in candidates) < missing:
            return False
        return any(session.evict_if_idle(self._idle) for session in eviction_order(candidates))

    def end_soon(self, reason: str) -> None:
        """Tell the gateway that this worker was asked to end. The gateway closes the connection when it is unused."""
        self._to_gateway.put_nowait(worker_protocol.EndingSoon(reason))

    async def _connect(self) -> ClientConnection:
        """Open the control connection."""
        try:
            return await self._dial(worker_protocol.WORKER_PATH, self._secret, PING_EVERY_S)
        except ssl.SSLCertVerificationError as e:
            raise NotConnected(
                f"The server at {self._address} has another certificate than this worker trusts. Copy the server's "
                "worker token file again, and check the address."
            ) from e
        except InvalidStatus as e:
            raise NotConnected(
                f"The server at {self._address} refused this worker (HTTP {e.response.status_code}). Copy the server's "
                "worker token file again."
            ) from e
        except (OSError, InvalidHandshake) as e:
            raise NotConnected(f"The server at {self._address} cannot be reached ({e}).") from e

    def _dial(self, path: str, secret: str, ping_every_s: float | None) -> connect:
        return connect(
            self._address + path,
            additional_headers=worker_protocol.bearer(secret),
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            max_queue=2,  # messages, each up to max_size
            ping_interval=ping_every_s,
            ping_timeout=PONG_TIMEOUT_S,
            close_timeout=1,  # unread messages must not delay the close
            proxy=None,
            ssl=self._tls,
        )


def _pinned(certificate: bytes) -> ssl.SSLContext:
    """Trust one certificate (DER) alone, with any name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate)
    return context


async def _main(args: argparse.Namespace, secret: str, certificate: bytes) -> None:
    shares = args.memory, args.workers, args.workers_on_device
    worker = Worker(args.gateway, secret, certificate, *shares, args.idle, args.compile)
    running = asyncio.ensure_future(worker.run(args.model_name, args.model_folder, args.device))
    parent = asyncio.ensure_future(wait_until_stdin_closes())
    if args.drain and sys.platform != "win32":  # Windows ends processes without a signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.end_soon, "it received SIGTERM")
    await asyncio.wait({running, parent}, return_when=asyncio.FIRST_COMPLETED)
    for task in (running, parent):
        task.cancel()
    results = await asyncio.gather(running, parent, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
            raise result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--model-folder", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--workers-on-device", type=int, default=1)
    parser.add_argument("--idle", type=float, default=IDLE_S)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-json", action="store_true")
    args = parser.parse_args()
    configure_logging(f"worker {args.device}", args.log_level, args.log_json)
    try:
        asyncio.run(_main(args, *worker_protocol.read_credentials(sys.stdin)))
    except NotConnected as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
