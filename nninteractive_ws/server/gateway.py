"""The gateway, which accepts clients, performs the handshake, and relays each client to its session on a worker."""

import asyncio
from collections import Counter
from collections.abc import Callable
import contextlib
from dataclasses import dataclass
from functools import partial
import gc
from http import HTTPStatus
from importlib.metadata import version
import logging
import socket
import ssl
import time
from typing import Any, Literal
import weakref

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from nninteractive_ws import arrays, protocol, worker_protocol
from nninteractive_ws.background_tasks import BackgroundTasks
from nninteractive_ws.errors import AtCapacity, BadMessage, Error, ServerError, ShuttingDown, Unauthorized, WorkerLost
from nninteractive_ws.messages import Encoding, Hello, Message, Notice, Welcome
from nninteractive_ws.processes import trim_memory
from nninteractive_ws.server.access import bearer_token
from nninteractive_ws.server.admission import (
    HTTP_CONNECTIONS,
    MAX_PENDING,
    Admission,
    ListeningSocket,
    admission_limits,
    bound_port,
    listen,
)
from nninteractive_ws.server.buffers import BoundedConnection, IncomingBytes
from nninteractive_ws.server.file_connections import FileConnections
from nninteractive_ws.server.http_endpoints import HttpEndpoints, peer_address
from nninteractive_ws.server.launchers import Endpoints
from nninteractive_ws.server.metrics import GaugeSnapshot, Metrics
from nninteractive_ws.server.official_api import OfficialApiProcess
from nninteractive_ws.server.pool import Usage, WorkerPool
from nninteractive_ws.server.port_sharing import OFFICIAL_API_REQUESTS, HttpHandler, SharedPort
from nninteractive_ws.server.sessions import Api, Registry, SessionRecord
from nninteractive_ws.server.settings import Settings
from nninteractive_ws.server.slot import WorkerSlot

_log = logging.getLogger(__name__)

#: Timeouts of the TLS handshake and of the HTTP request, each, and then of hello.
OPEN_TIMEOUT_S, HELLO_TIMEOUT_S = 5.0, 5.0
#: Incoming bytes of a connection after which garbage is collected, and the delay, so that its handler has returned.
_LARGE_BYTES, _COLLECT_AFTER_S = 1024**2, 1.0
#: Size limit of the first message.
HELLO_BYTES = 64 * 1024
#: Keepalive of both kinds of connections. A long computation may delay the pong of a live worker or client.
PING_EVERY_S, PONG_TIMEOUT_S = 20.0, 60.0
#: Timeout for the peer's close frame, so that a client without one does not delay the server's shutdown.
CLOSE_TIMEOUT_S = 3.0
# Hosts to listen on that are no addresses to connect to.
_EVERY_ADDRESS = ("", "0.0.0.0", "::")
#: Timeout to relay the messages that one side sent before the other disconnected. They are already in this process.
DRAIN_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class _Listener:
    """A listening socket for sessions. ``make_connection``: makes the protocol of a connection."""

    api: Api
    admission: Admission
    make_connection: Callable[..., asyncio.Protocol]
    tls: ssl.SSLContext | None


class Gateway:
    """The server's front end for clients and workers. Raises BadTokenFile."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics(self._gauges)
        self._workers = WorkerPool(settings.pool, (*settings.worker, "--idle", str(settings.idle)), self)
        self._moving: set[str] = set()
        self._sessions = Registry(
            settings.max_sessions,
            settings.max_sessions_per_user,
            settings.linger,
            self._request_close,
        )
        self._http = HttpEndpoints(settings, self._sessions, self._workers, self._metrics)
        # The workers' port has limits too, because every user of this machine can reach it.
        self._client_admission, self._worker_admission = admission_limits(settings.max_sessions)
        self._official_api = OfficialApiProcess(
            _official_api_arguments(settings), self._client_admission, HTTP_CONNECTIONS * settings.max_sessions
        )
        self._files = FileConnections(self._http.respond_with_file)
        self._shared_port = SharedPort(self._http_handlers(), OPEN_TIMEOUT_S)
        self._incoming_bytes = IncomingBytes()
        self._connections: set[asyncio.Task[None]] = set()
        self._connecting: weakref.WeakKeyDictionary[ServerConnection, WorkerSlot] = weakref.WeakKeyDictionary()
        self._tasks = BackgroundTasks()

    @property
    def has_page(self) -> bool:
        """Whether the server has its web page."""
        return self._http.has_page

    def _http_handlers(self) -> dict[bytes, HttpHandler]:
        """Return the handlers of connections that are not WebSockets, by their first bytes."""
        files = [f"{method} /{name}".encode() for name in self._http.file_names for method in ("GET", "HEAD")]
        official = dict.fromkeys(OFFICIAL_API_REQUESTS, self._official_api.accept)
        return {**official, **dict.fromkeys(files, self._files.accept)}

    async def run(self, started: Callable[[int], None]) -> None:
        """Serve until cancelled, and call ``started`` with the port. Raises WorkerStartupError or CannotListen."""
        async with contextlib.AsyncExitStack() as stack:
            listening = listen(self._settings.host, self._settings.port, self._client_admission)
            if self._settings.official_port is not None:
                listening += listen(
                    self._settings.host,
                    self._settings.official_port,
                    self._client_admission,
                    port_option="--official-port",
                )
            # First, because the first client may start the process of the HTTP API.
            await self._serve_official_api(stack)
            listener = _Listener(Api.WEBSOCKET, self._client_admission, self._make_connection, self._settings.tls)
            for client_socket in listening:
                await stack.enter_async_context(self._serve_clients_at(client_socket, listener))
            endpoints = await self._serve_workers(stack)
            # The end of a listening socket waits for its connections, so these end first.
            stack.push_async_callback(self._official_api.close)
            stack.push_async_callback(self._files.close)
            stack.callback(self._shared_port.close)
            # Garbage collection of closed connections skips the objects that live as long as the process.
            gc.collect()
            gc.freeze()
            started(bound_port(listening[0]))
            try:
                await self._workers.run(endpoints)
            finally:
                # The workers have ended, and their clients receive an error.
                if self._connections:
                    await asyncio.wait(self._connections, timeout=CLOSE_TIMEOUT_S)

    async def _serve_official_api(self, stack: contextlib.AsyncExitStack) -> None:
        """Listen for the process of the HTTP API."""
        admission = Admission(MAX_PENDING, MAX_PENDING, MAX_PENDING + self._settings.max_sessions)
        (internal,) = listen("127.0.0.1", 0, admission)
        lease_listener = _Listener(Api.OFFICIAL, admission, self._make_websocket, tls=None)
        await stack.enter_async_context(self._serve_clients_at(internal, lease_listener))
        self._official_api.listen_for(bound_port(internal))

    def _make_websocket(self, *arguments: Any, **options: Any) -> BoundedConnection:
        return BoundedConnection(*arguments, incoming_bytes=self._incoming_bytes, **options)

    def _make_connection(self, *arguments: Any, **options: Any) -> asyncio.Protocol:
        return self._shared_port.connection(partial(self._make_websocket, *arguments, **options))

    def _serve_clients_at(
        self, listening: ListeningSocket, listener: _Listener
    ) -> contextlib.AbstractAsyncContextManager[Server]:
        return serve(
            partial(self._serve_client, listener=listener),
            sock=listening,
            create_connection=listener.make_connection,  # type: ignore[arg-type]
            backlog=listener.admission.accept_batch,
            ssl=listener.tls,
            # It checks the Origin. The check of websockets does not know the Host.
            process_request=self._http.respond,
            process_response=self._http.confirm_subprotocol,
            compression=None,  # large fields are already compressed, and this makes an inflate bomb impossible
            max_size=HELLO_BYTES,
            max_queue=2,  # messages, each of at most the maximum size
            open_timeout=OPEN_TIMEOUT_S,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            server_header=None,
        )

    async def _serve_workers(self, stack: contextlib.AsyncExitStack) -> Endpoints:
        """Listen for workers on this machine, and on others if there are any."""
        (local,) = listen("127.0.0.1", 0, self._worker_admission)
        await stack.enter_async_context(self._serve_workers_at(local, None))
        remote = self._settings.remote_workers
        if remote is None:
            return Endpoints(bound_port(local))
        listening = listen(remote.host, remote.port, self._worker_admission, "--worker-host", "--worker-port")
        context = remote.certificate.server_context()
        for remote_socket in listening:
            await stack.enter_async_context(self._serve_workers_at(remote_socket, context))
        host = socket.gethostname() if remote.host in _EVERY_ADDRESS else remote.host
        return Endpoints(bound_port(local), host, bound_port(listening[0]), remote.certificate.der)

    def _serve_workers_at(
        self, listening: ListeningSocket, tls: ssl.SSLContext | None
    ) -> contextlib.AbstractAsyncContextManager[Server]:
        return serve(
            self._serve_worker,
            sock=listening,
            backlog=self._worker_admission.accept_batch,
            ssl=tls,
            process_request=self._admit_worker,
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            max_queue=2,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
        )

    # ---- workers ------------------------------------------------------------------------------------------

    def _admit_worker(self, connection: ServerConnection, request: Request) -> Response | None:
        secret = bearer_token(request.headers)
        if request.path == worker_protocol.WORKER_PATH and (slot := self._workers.admit(secret)) is not None:
            self._connecting[connection] = slot
            return None
        if request.path == worker_protocol.SESSION_PATH and self._workers.expects_session(secret):
            return None
        return connection.respond(
            HTTPStatus.UNAUTHORIZED, "This port accepts only the worker processes of this server.\n"
        )

    async def _serve_worker(self, connection: ServerConnection) -> None:
        slot = self._connecting.pop(connection, None)
        worker_protocol.watch_connection(connection)
        with self._worker_admission.with_session(connection.transport):
            if slot is not None:
                self._workers.add(slot)
                await slot.serve(connection)
            else:
                assert connection.request is not None
                await self._workers.serve_session(connection, bearer_token(connection.request.headers))

    def on_worker_message(self, message: worker_protocol.WorkerMessage) -> None:
        if isinstance(message, worker_protocol.RequestAnswered):
            self._metrics.request_answered(message.kind, message.code, message.timings)
            if message.used:
                self._sessions.mark_used(message.session)
        elif isinstance(message, worker_protocol.EvictionRefused):
            self._moving.discard(message.session)
            self._sessions.eviction_refused(message.session)
        elif isinstance(message, worker_protocol.SessionEnded):
            _log.info("evicted" if message.evicted else "ended", extra={"session": message.session})
            if message.evicted and message.session in self._moving:
                self._metrics.session_moved()
            elif message.evicted:
                self._metrics.evicted()
            self._moving.discard(message.session)
            self._sessions.drop(message.session)

    def on_worker_lost(self, slot: WorkerSlot) -> None:
        self._sessions.drop_all_on(slot)
        self._moving.intersection_update(self._sessions.names)

    def on_worker_start(self, launcher: str) -> None:
        self._metrics.worker_started(launcher)

    def on_worker_failure(self, launcher: str) -> None:
        self._metrics.worker_failed(launcher)

    def usage(self, slot: WorkerSlot) -> Usage:
        return self._sessions.usage(slot)

    def release_idle_sessions(self, slot: WorkerSlot, count: int) -> None:
        # A session that stays on an ending worker is lost with it, so there every pause will do.
        idle_s = 0.0 if slot.is_ending else self._settings.idle
        for record in self._sessions.least_recently_used(slot)[:count]:
            if record.name not in self._moving:
                self._moving.add(record.name)
                self._tasks.spawn(_send_close(record, idle_s))

    async def _request_close(self, record: SessionRecord, only_if_idle: bool) -> None:
        await _send_close(record, self._settings.idle if only_if_idle else None)

    def _gauges(self) -> GaugeSnapshot:
        slots = self._workers.slots
        loaded = {f"{s.number} {s.description.device}": s for s in slots if s.description is not None}
        return GaugeSnapshot(
            self._sessions.count(),
            Counter((slot.launcher_name, slot.state) for slot in slots),
            {name: slot.memory for name, slot in loaded.items()},
            {name: slot.charged for name, slot in loaded.items()},
        )

    # ---- clients ------------------------------------------------------------------------------------------

    async def _serve_client(self, client: ServerConnection, listener: _Listener) -> None:
        assert client.request is not None
        user = self._http.user(client.request)
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            hello, encoding = await self._handshake(client)
            if user is None:
                raise Unauthorized(
                    "The token was revoked during the handshake. Ask the server's administrator for a new one."
                )
            await self._serve_session(client, hello, encoding, user, listener)
        except Error as e:
            self._metrics.error_sent(e.code)
            await _close_with_error(client, e)
        except ConnectionClosed:
            pass  # the client has disconnected
        finally:
            self._connections.discard(task)
            if isinstance(client, BoundedConnection) and client.largest_incoming > _LARGE_BYTES:
                # A closed connection is a reference cycle that holds the parts of an incomplete message.
                asyncio.get_running_loop().call_later(_COLLECT_AFTER_S, _collect)

    async def _handshake(self, client: ServerConnection) -> tuple[Hello, Encoding]:
        try:
            first = await asyncio.wait_for(client.recv(), HELLO_TIMEOUT_S)
        except TimeoutError:
            # Without an error message, after which clients do not retry: a slow network may be the cause.
            await client.close(CloseCode.TRY_AGAIN_LATER, f"no hello within {HELLO_TIMEOUT_S:g} seconds")
            raise client.protocol.close_exc from None
        hello = protocol.decode_client(first) if isinstance(first, bytes) else None
        if not isinstance(hello, Hello):
            raise BadMessage('The first message must be a "hello", as msgpack in a binary frame.')
        protocol.check_version(hello)
        client.protocol.max_message_size = protocol.MAX_MESSAGE_BYTES
        return hello, protocol.agree_on_encoding(hello.encodings, arrays.ENCODINGS)

    async def _serve_session(
        self, client: ServerConnection, hello: Hello, encoding: Encoding, user: str, listener: _Listener
    ) -> None:
        """Resume the session that the client names, or open one."""
        record = self._sessions.find(hello.session_id, hello.session_secret, user, encoding)
        while True:
            if record is None:
                record = await self._sessions.open(user, encoding, hello.allow_eviction, listener.api)
                fields = {"session": record.name, "user": user, "peer": peer_address(client), "client": hello.client}
                _log.info("opened", extra=fields)
            current = record

            async def work(superseded: asyncio.Event, record: SessionRecord = current) -> bool:
                return await self._serve_connection(client, hello, record, superseded)

            with listener.admission.with_session(client.transport):
                if await self._sessions.attach(record, work):
                    return
            record = None

    async def _serve_connection(
        self, client: ServerConnection, hello: Hello, record: SessionRecord, superseded: asyncio.Event
    ) -> bool:
        """Serve one connection of a session. Return False, and send nothing, if the session to resume has ended."""
        resume = record.worker is not None
        if record.worker is None:
            record.worker = await self._wait_for_worker(client)
        worker = record.worker
        with contextlib.ExitStack() as before_welcome:
            if not resume:
                # No client has its secret.
                before_welcome.callback(self._sessions.end, record)
            peer, attached = await self._workers.open_session(
                worker, record.name, record.encoding, resume=resume, allow_eviction=hello.allow_eviction
            )
            try:
                if resume and attached.created:
                    self._sessions.drop(record.name)
                    return False
                await _send(client, _welcome(record, hello, worker, attached))
                before_welcome.pop_all()
                await self._relay(client, peer, record, superseded)
                return True
            finally:
                await worker_protocol.close(peer)
                await asyncio.to_thread(trim_memory)  # frees the buffers of large messages
                _log.info("connection closed", extra={"session": record.name, "code": client.close_code})

    async def _wait_for_worker(self, client: ServerConnection) -> WorkerSlot:
        """Wait for a worker, and notify the client of what is waited for."""
        started = time.monotonic()

        async def notify(status: str) -> None:
            loading = (
                f"The server is loading the model {self._settings.model_name}. This takes from seconds to a minute."
            )
            await _send(client, Notice(code="loading_model", message=status or loading))

        ready = asyncio.ensure_future(self._workers.choose(notify))
        closed = asyncio.ensure_future(client.wait_closed())
        try:
            await asyncio.wait({ready, closed}, return_when=asyncio.FIRST_COMPLETED)
            if closed.done():
                raise client.protocol.close_exc
            slot = await ready
            self._metrics.worker_chosen(time.monotonic() - started)
            return slot
        finally:
            ready.cancel()
            closed.cancel()

    async def _relay(
        self, client: ServerConnection, peer: ServerConnection, record: SessionRecord, superseded: asyncio.Event
    ) -> None:
        """Relay messages both ways until one side closes or another connection replaces this one.

        Raises WorkerLost or ShuttingDown.
        """

        async def pump(source: ServerConnection, sink: ServerConnection, direction: Literal["up", "down"]) -> None:
            try:
                async for message in source:
                    self._metrics.bytes_transferred(direction, len(message))
                    await sink.send(message)
                    if isinstance(source, BoundedConnection):
                        source.relayed(len(message))
            except ConnectionClosed:
                pass  # the close codes of both ends are checked below

        up, down = asyncio.ensure_future(pump(client, peer, "up")), asyncio.ensure_future(pump(peer, client, "down"))
        replaced = asyncio.ensure_future(superseded.wait())
        try:
            await asyncio.wait({up, down, replaced}, return_when=asyncio.FIRST_COMPLETED)
            if client.close_code:
                await _cancel_all(down)
                await _drain_client(up, peer)
            if client.close_code or replaced.done():
                return
            await asyncio.wait({down}, timeout=DRAIN_TIMEOUT_S)
            if self._workers.stopping:
                raise ShuttingDown("The server is shutting down. Try again later.")
            if peer.close_code != CloseCode.NORMAL_CLOSURE:
                if record.worker is not None and record.worker.is_ending:
                    # Not WorkerLost, because this was announced: no request is the cause.
                    raise ShuttingDown(
                        "The worker process of this session was ended. Reconnect to restore the session."
                    )
                raise WorkerLost(
                    "The worker process of this session ended unexpectedly. Reconnect to restore the session."
                )
            self._sessions.drop(record.name)  # before the client is notified, because it may open another
        finally:
            await _cancel_all(up, down, replaced)


async def _send_close(record: SessionRecord, idle_s: float | None) -> None:
    if record.worker is not None and record.worker.description is not None:
        with contextlib.suppress(WorkerLost):  # the session ended with its worker
            await record.worker.send(worker_protocol.CloseSession(record.name, idle_s))


def _official_api_arguments(settings: Settings) -> list[str]:
    """Return the arguments of the process of the HTTP API."""
    arguments = ["--max-sessions", str(settings.max_sessions)]
    arguments += ["--max-sessions-per-user", str(settings.max_sessions_per_user)]
    arguments += ["--tokens"] if settings.token_file is not None else []
    for host in (settings.host, *settings.allowed_hosts):
        arguments += ["--host", host]
    for origin in settings.origins:
        arguments += ["--origin", origin]
    return [*arguments, *settings.log_arguments]


def _collect() -> None:
    gc.collect()
    asyncio.get_running_loop().run_in_executor(None, trim_memory)


async def _drain_client(up: "asyncio.Future[None]", peer: ServerConnection) -> None:
    """Relay the messages that a disconnected client sent before. The last may be a bye."""
    discarded = asyncio.ensure_future(worker_protocol.drain(peer))
    await asyncio.wait({up, discarded}, timeout=DRAIN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    await _cancel_all(discarded)


async def _cancel_all(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _welcome(
    record: SessionRecord, hello: Hello, worker: WorkerSlot, attached: worker_protocol.SessionAttached
) -> Welcome:
    description = worker.description
    if description is None:
        raise WorkerLost("The worker process of this session just ended. Try again in a moment.")
    return Welcome(
        version=protocol.PROTOCOL_VERSION,
        server_version=f"nninteractive-ws {version('nninteractive-ws')}",
        features=[feature for feature in protocol.FEATURES if feature in hello.features],
        encoding=record.encoding,
        session_id=record.name,
        session_secret=record.secret,
        resumed=not attached.created,
        last_id=attached.last_id,
        revisions=attached.revisions,
        image=attached.image,
        present_bricks=attached.present_bricks,
        limits=description.limits,
        model=description.model,
        device=description.device,
        memory=attached.memory,
    )


async def _send(client: ServerConnection, message: Message) -> None:
    await client.send(protocol.encode(message))


async def _close_with_error(client: ServerConnection, error: Error) -> None:
    try:
        if isinstance(error, WorkerLost | ShuttingDown):
            await _send(client, Notice(code=error.code, message=str(error)))  # type: ignore[arg-type]
        await _send(client, protocol.to_error_message(error, None))
        retryable = isinstance(error, ServerError | AtCapacity)
        await client.close(CloseCode.TRY_AGAIN_LATER if retryable else CloseCode.POLICY_VIOLATION, error.code)
    except ConnectionClosed:
        pass  # the client has disconnected
