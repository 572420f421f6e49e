"""The gateway: accepts clients, shakes hands, and joins each with its session on the worker."""

import asyncio
from collections.abc import Callable
import contextlib
from dataclasses import dataclass
from functools import partial
import gc
from http import HTTPStatus
from importlib.metadata import version
import json
import logging
from pathlib import Path
import re
import ssl
from typing import Any, Literal
import uuid

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.typing import Origin

from nninteractive_ws import arrays, protocol
from nninteractive_ws.errors import AtCapacity, BadMessage, Error, ServerError, ShuttingDown, Unauthorized, WorkerLost
from nninteractive_ws.messages import Encoding, Hello, Message, Notice, Welcome
from nninteractive_ws.processes import trim_memory
from nninteractive_ws.server import link
from nninteractive_ws.server.access import TokenFile, bearer_token
from nninteractive_ws.server.admission import ListeningSocket, admission_limits, bound_port, listen
from nninteractive_ws.server.buffers import BoundedConnection, IncomingBytes
from nninteractive_ws.server.hosts import AllowedHosts
from nninteractive_ws.server.metrics import Metrics, Now
from nninteractive_ws.server.sessions import IDLE_S, Entry, Registry
from nninteractive_ws.server.workers import Worker, WorkerPool

_log = logging.getLogger(__name__)

#: Timeouts of the TLS handshake and of the HTTP request, each, and then of hello.
OPEN_TIMEOUT_S, HELLO_TIMEOUT_S = 5.0, 5.0
#: After a connection that held so much, unreachable objects are collected: once its handler has returned.
_MUCH_BYTES, _COLLECT_AFTER_S = 1024**2, 1.0
#: Size limit of the first message.
HELLO_BYTES = 64 * 1024
#: A worker's or client's process may be held up by a long computation; it is not dead for that.
PING_EVERY_S, PONG_WITHIN_S = 20.0, 60.0
#: A client that does not answer a goodbye does not hold up the end of the server.
CLOSE_WITHIN_S = 3.0
#: What one side said last is in this process already when the other has gone.
PASS_ON_WITHIN_S = 3.0


@dataclass(frozen=True)
class Settings:
    """How to serve. ``port`` 0 takes a free one. ``worker``: arguments of the worker processes, one for each of
    ``devices``. ``linger``: seconds a session is kept without a connection; ``idle``: seconds after which one that is
    not used may be given up for another. ``origins``: of the web pages that may use the server. ``allowed_hosts``:
    further DNS names of a server without tokens."""

    worker: tuple[str, ...]
    model_name: str
    devices: tuple[str, ...] = ("auto",)
    host: str = "127.0.0.1"
    port: int = 1528
    max_sessions: int = 16
    max_sessions_per_user: int = 16
    linger: float = 600.0
    idle: float = IDLE_S
    token_file: Path | None = None
    tls: ssl.SSLContext | None = None
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()


class Gateway:
    """See the module. Raises BadTokenFile."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokens = None if settings.token_file is None else TokenFile(settings.token_file)
        self._metrics = Metrics(self._now)
        self._workers = WorkerPool(
            settings.devices,
            (*settings.worker, "--idle", str(settings.idle), "--workers", str(len(settings.devices))),
            self._hear,
            self._lose,
            self._metrics.worker_restarted,
        )
        self._sessions = Registry(
            settings.max_sessions,
            settings.max_sessions_per_user,
            settings.linger,
            self._tell_to_forget,
        )
        # With tokens, DNS rebinding reveals only /healthz (status, model, device, number of sessions): all else needs a
        # token. Such servers have many names, through reverse proxies or from outside a container, and nobody should
        # have to list them.
        self._hosts = AllowedHosts((settings.host, *settings.allowed_hosts)) if self._tokens is None else None
        # Every user of this machine can reach the workers' port.
        self._client_admission, self._worker_admission = admission_limits(settings.max_sessions)
        self._incoming_bytes = IncomingBytes()
        self._conversations: set[asyncio.Task[None]] = set()
        self._dialling: dict[uuid.UUID, Worker] = {}

    async def run(self, started: Callable[[int], None]) -> None:
        """Serve until cancelled; ``started`` is told the port. Raises WorkerFailed or OSError."""
        async with contextlib.AsyncExitStack() as stack:
            listening = listen(self._settings.host, self._settings.port, self._client_admission)
            for one in listening:
                await stack.enter_async_context(self._serve_clients_at(one))
            (internal,) = listen("127.0.0.1", 0, self._worker_admission)
            await stack.enter_async_context(self._serve_workers_at(internal))
            # Objects that live as long as the process are excluded from the collection of closed connections.
            gc.collect()
            gc.freeze()
            started(bound_port(listening[0]))
            try:
                await self._workers.run(bound_port(internal))
            finally:
                # The workers have ended, and whoever was joined with one is being told.
                if self._conversations:
                    await asyncio.wait(self._conversations, timeout=CLOSE_WITHIN_S)

    def _serve_clients_at(self, listening: ListeningSocket) -> contextlib.AbstractAsyncContextManager[Server]:
        return serve(
            self._serve_client,
            sock=listening,
            create_connection=partial(BoundedConnection, incoming_bytes=self._incoming_bytes),  # type: ignore[arg-type]
            backlog=self._client_admission.accept_batch,
            ssl=self._settings.tls,
            process_request=self._process_request,
            # No page in a browser, which could reach a server on loopback too, unless it is named.
            origins=[None, *(Origin(origin) for origin in self._settings.origins)],
            compression=None,  # what is large is packed already, and an inflate bomb is impossible
            max_size=HELLO_BYTES,
            max_queue=2,  # each may be as large as a message may be
            open_timeout=OPEN_TIMEOUT_S,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_WITHIN_S,
            close_timeout=CLOSE_WITHIN_S,
            server_header=None,
        )

    def _serve_workers_at(self, listening: ListeningSocket) -> contextlib.AbstractAsyncContextManager[Server]:
        return serve(
            self._serve_worker,
            sock=listening,
            backlog=self._worker_admission.accept_batch,
            process_request=self._admit_worker,
            compression=None,
            max_size=protocol.MAX_MESSAGE_BYTES,
            max_queue=2,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_WITHIN_S,
            close_timeout=CLOSE_WITHIN_S,
        )

    # ---- workers ------------------------------------------------------------------------------------------

    def _admit_worker(self, connection: ServerConnection, request: Request) -> Response | None:
        secret = bearer_token(request.headers)
        if request.path == link.WORKER_PATH and (worker := self._workers.worker_of(secret)) is not None:
            self._dialling[connection.id] = worker
            return None
        if request.path == link.SESSION_PATH and self._workers.admits_session(secret):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "This port is for this server's own workers.\n")

    async def _serve_worker(self, connection: ServerConnection) -> None:
        worker = self._dialling.pop(connection.id, None)
        with self._worker_admission.with_session(connection):
            if worker is not None:
                await worker.serve(connection)
            else:
                assert connection.request is not None
                await self._workers.serve_session(connection, bearer_token(connection.request.headers))

    def _hear(self, message: link.WorkerMessage) -> None:
        if isinstance(message, link.Answered):
            self._metrics.answered(message.kind, message.code, message.timings)
            if message.code is None:
                self._sessions.mark_used(message.session)
        elif isinstance(message, link.EvictionRefused):
            self._sessions.eviction_refused(message.session)
        elif isinstance(message, link.Gone):
            _log.info("evicted" if message.evicted else "over", extra={"session": message.session})
            if message.evicted:
                self._metrics.evicted()
            self._sessions.drop(message.session)

    def _lose(self, worker: Worker) -> None:
        self._sessions.drop_all_on(worker)

    async def _tell_to_forget(self, entry: Entry, idle: bool) -> None:
        if entry.worker is not None and entry.worker.description is not None:
            with contextlib.suppress(WorkerLost):  # and the session with it
                await entry.worker.send(link.Forget(entry.name, idle))

    def _now(self) -> Now:
        connected = self._sessions.connected
        loaded = self._workers.loaded
        described = {f"{n} {w.description.device}": w for n, w in enumerate(loaded) if w.description is not None}
        return Now(
            connected,
            len(self._sessions) - connected,
            len(loaded),
            {name: worker.memory for name, worker in described.items()},
            {name: worker.charged for name, worker in described.items()},
        )

    # ---- plain HTTP ---------------------------------------------------------------------------------------

    def _user(self, request: Request) -> str | None:
        """Who asks: "" where there are no tokens, None where there are and this is none."""
        return "" if self._tokens is None else self._tokens.user_of(bearer_token(request.headers))

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if (refusal := self._refuse_web_page(connection, request)) is not None:
            return refusal
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return _answer("application/json", (json.dumps(self._health()) + "\n").encode())
        if self._user(request) is None:
            return self._refuse_without_token(connection, request)
        if path == "/metrics":
            body, content_type = self._metrics.render()
            return _answer(content_type, body)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return connection.respond(HTTPStatus.UPGRADE_REQUIRED, self._in_words())
        if self._workers.stopping:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The server is being stopped.\n")
        return None

    def _refuse_web_page(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a request that a foreign web page makes a browser send: by its Host or its Origin; None: accepted."""
        if self._hosts is not None and (host := self._hosts.refused(request.headers)) is not None:
            name = host if re.fullmatch(r"[\w.:-]{1,260}", host, re.ASCII) else "NAME"
            _log.warning("refused: unknown host %.260s", host, extra={"peer": _peer(connection)})
            message = (
                f"This server does not accept {name} as its name. Connect by IP address or as localhost, or start the "
                f"server with --allow-host {name.partition(':')[0]}.\n"
            )
            return connection.respond(HTTPStatus.MISDIRECTED_REQUEST, message)
        foreign = [origin for origin in request.headers.get_all("Origin") if origin not in self._settings.origins]
        if foreign:
            _log.warning("refused: web page of %.260s", foreign[0], extra={"peer": _peer(connection)})
            self._metrics.failed("forbidden_origin")
            message = "Web pages of this origin may not use this server. To allow them, start it with --allow-origin.\n"
            return connection.respond(HTTPStatus.FORBIDDEN, message)
        return None

    def _refuse_without_token(self, connection: ServerConnection, request: Request) -> Response:
        _log.warning("refused: no token, or a wrong one", extra={"peer": _peer(connection)})
        self._metrics.failed("unauthorized")
        message = "This server wants a token: ask whoever runs it for one (nninteractive-ws token NAME).\n"
        response = connection.respond(HTTPStatus.UNAUTHORIZED, message)
        wrong = ', error="invalid_token"' if "Authorization" in request.headers else ""
        response.headers["WWW-Authenticate"] = f'Bearer realm="nninteractive-ws"{wrong}'
        return response

    def _health(self) -> dict[str, object]:
        loaded = self._workers.loaded
        devices = [worker.description.device for worker in loaded if worker.description is not None]
        return {
            "status": "ready" if loaded else "loading",
            "server": f"nninteractive-ws {version('nninteractive-ws')}",
            "protocol": protocol.PROTOCOL_VERSION,
            "model": self._settings.model_name,
            "device": ", ".join(devices) or None,
            "sessions": len(self._sessions),
            "max_sessions": self._settings.max_sessions,
        }

    def _in_words(self) -> str:
        state = "is ready" if self._workers.loaded else "is loading its model"
        return (
            f"This is an nninteractive-ws server, and it {state}. It speaks WebSocket, not plain HTTP: "
            "enter this address in the nninteractive-ws module of 3D Slicer or in the Python client. "
            "GET /healthz answers whether it is ready.\n"
        )

    # ---- clients ------------------------------------------------------------------------------------------

    async def _serve_client(self, client: ServerConnection) -> None:
        assert client.request is not None
        user = self._user(client.request)
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            hello, encoding = await self._shake_hands(client)
            if user is None:
                raise Unauthorized("The token was withdrawn at this very moment.")
            await self._serve_session(client, hello, encoding, user)
        except Error as e:
            self._metrics.failed(e.code)
            await _say_goodbye(client, e)
        except ConnectionClosed:
            pass  # the client went; there is nobody to tell
        finally:
            self._conversations.discard(task)
            if isinstance(client, BoundedConnection) and client.largest_incoming > _MUCH_BYTES:
                # A closed connection is a reference cycle, which holds the parts of a message that was not finished.
                asyncio.get_running_loop().call_later(_COLLECT_AFTER_S, _collect)

    async def _shake_hands(self, client: ServerConnection) -> tuple[Hello, Encoding]:
        try:
            first = await asyncio.wait_for(client.recv(), HELLO_TIMEOUT_S)
        except TimeoutError as e:
            raise BadMessage(f"No hello came within {HELLO_TIMEOUT_S:g} seconds of connecting.") from e
        hello = protocol.decode_client(first) if isinstance(first, bytes) else None
        if not isinstance(hello, Hello):
            raise BadMessage('The first message must be "hello", in msgpack in a binary frame.')
        protocol.check_version(hello)
        client.protocol.max_message_size = protocol.MAX_MESSAGE_BYTES
        return hello, protocol.agree_on_encoding(hello.encodings, arrays.ENCODINGS)

    async def _serve_session(self, client: ServerConnection, hello: Hello, encoding: Encoding, user: str) -> None:
        """Take up the session that the client names, or open one."""
        entry = self._sessions.find(hello.session, hello.secret, user, encoding)
        while True:
            if entry is None:
                entry = await self._sessions.open(user, encoding, hello.make_room)
                fields = {"session": entry.name, "user": user, "peer": _peer(client), "client": hello.client}
                _log.info("opened", extra=fields)
            held = entry

            async def work(superseded: asyncio.Event, entry: Entry = held) -> bool:
                return await self._serve_connection(client, hello, entry, superseded)

            with self._client_admission.with_session(client):
                if await self._sessions.hold(entry, work):
                    return
            entry = None

    async def _serve_connection(
        self, client: ServerConnection, hello: Hello, entry: Entry, superseded: asyncio.Event
    ) -> bool:
        """Carry one connection of a session; False, and nothing said, where the session is over by now."""
        take_up = entry.worker is not None
        if entry.worker is None:
            entry.worker = await self._wait_for_worker(client)
        worker = entry.worker
        peer, attached = await self._workers.open_session(
            worker, entry.name, entry.encoding, take_up=take_up, make_room=hello.make_room
        )
        try:
            if take_up and attached.fresh:
                self._sessions.drop(entry.name)
                return False
            await _send(client, _welcome(entry, hello, worker, attached))
            await self._join(client, peer, entry, superseded)
            return True
        finally:
            await link.close(peer)
            await asyncio.to_thread(trim_memory)  # messages may have been large
            _log.info("connection closed", extra={"session": entry.name, "code": client.close_code})

    async def _wait_for_worker(self, client: ServerConnection) -> Worker:
        if not self._workers.loaded:
            words = f"The server is loading the model {self._settings.model_name}; this takes from seconds to a minute."
            await _send(client, Notice(code="loading_model", message=words))
        ready = asyncio.ensure_future(self._workers.wait_ready(self._sessions.load))
        gone = asyncio.ensure_future(client.wait_closed())
        try:
            await asyncio.wait({ready, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise client.protocol.close_exc
            return await ready
        finally:
            ready.cancel()
            gone.cancel()

    async def _join(
        self, client: ServerConnection, peer: ServerConnection, entry: Entry, superseded: asyncio.Event
    ) -> None:
        """Pass every message on, both ways, until one side closes or another connection takes this one's place.

        Raises WorkerLost or ShuttingDown.
        """

        async def pump(source: ServerConnection, sink: ServerConnection, direction: Literal["up", "down"]) -> None:
            try:
                async for message in source:
                    self._metrics.moved(direction, len(message))
                    await sink.send(message)
                    if isinstance(source, BoundedConnection):
                        source.passed_on(len(message))
            except ConnectionClosed:
                pass  # both ends' close codes are looked at below

        up, down = asyncio.ensure_future(pump(client, peer, "up")), asyncio.ensure_future(pump(peer, client, "down"))
        replaced = asyncio.ensure_future(superseded.wait())
        try:
            await asyncio.wait({up, down, replaced}, return_when=asyncio.FIRST_COMPLETED)
            if client.close_code:
                await _end(down)
                await _pass_on_the_rest(up, peer)
            if client.close_code or replaced.done():
                return
            await asyncio.wait({down}, timeout=PASS_ON_WITHIN_S)
            if self._workers.stopping:
                raise ShuttingDown("The server is being stopped.")
            if peer.close_code != CloseCode.NORMAL_CLOSURE:
                raise WorkerLost("The process that computed for this session ended unexpectedly.")
            self._sessions.drop(entry.name)  # before the client knows, who may want another
        finally:
            await _end(up, down, replaced)


def _collect() -> None:
    gc.collect()
    asyncio.get_running_loop().run_in_executor(None, trim_memory)


async def _pass_on_the_rest(up: "asyncio.Future[None]", peer: ServerConnection) -> None:
    """The client went; what it said before is still being passed on, and may end with a bye."""
    unheard = asyncio.ensure_future(link.read_out(peer))
    await asyncio.wait({up, unheard}, timeout=PASS_ON_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
    await _end(unheard)


async def _end(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _welcome(entry: Entry, hello: Hello, worker: Worker, attached: link.Attached) -> Welcome:
    description = worker.description
    if description is None:
        raise WorkerLost("The process that computes has just ended; try again in a moment.")
    return Welcome(
        version=protocol.PROTOCOL_VERSION,
        server=f"nninteractive-ws {version('nninteractive-ws')}",
        features=[feature for feature in protocol.FEATURES if feature in hello.features],
        encoding=entry.encoding,
        session=entry.name,
        secret=entry.secret,
        resumed=not attached.fresh,
        last_id=attached.last_id,
        revisions=attached.revisions,
        image=attached.image,
        bricks=attached.bricks,
        limits=description.limits,
        model=description.model,
        device=description.device,
        memory=attached.memory,
    )


async def _send(client: ServerConnection, message: Message) -> None:
    await client.send(protocol.encode(message))


async def _say_goodbye(client: ServerConnection, error: Error) -> None:
    try:
        if isinstance(error, WorkerLost | ShuttingDown):
            await _send(client, Notice(code=error.code, message=str(error)))  # type: ignore[arg-type]
        await _send(client, protocol.to_error_message(error, None))
        again = isinstance(error, ServerError | AtCapacity)
        await client.close(CloseCode.TRY_AGAIN_LATER if again else CloseCode.POLICY_VIOLATION, error.code)
    except ConnectionClosed:
        pass  # it went by itself


def _answer(content_type: str, body: bytes) -> Response:
    headers = Headers({"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"})
    return Response(HTTPStatus.OK, "OK", headers, body)


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return str(address[0]) if address else "?"
