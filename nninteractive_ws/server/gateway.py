"""The gateway: accepts clients, shakes hands, and joins each with its session on the worker."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
import json
import logging
import secrets

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from nninteractive_ws import arrays, protocol
from nninteractive_ws.errors import AtCapacity, BadMessage, Error, ServerError, ShuttingDown, WorkerLost
from nninteractive_ws.messages import Encoding, Hello, Message, Notice, Welcome
from nninteractive_ws.server.link import SESSION_PATH, WORKER_PATH, Ready
from nninteractive_ws.server.workers import WorkerPool

_log = logging.getLogger(__name__)

#: A client that opens a connection says hello at once.
HELLO_WITHIN_S = 10.0
#: A worker's or client's process may be held up by a long computation; it is not dead for that.
PING_EVERY_S, PONG_WITHIN_S = 20.0, 60.0
#: A client that does not answer a goodbye does not hold up the end of the server.
CLOSE_WITHIN_S = 5.0
#: What a session said last is in this process already when its connection is closed.
PASS_ON_WITHIN_S = 5.0


@dataclass(frozen=True)
class Settings:
    """How to serve. ``port`` 0 takes a free one. ``worker``: arguments of the worker process."""

    worker: tuple[str, ...]
    model_name: str
    host: str = "127.0.0.1"
    port: int = 1528
    max_sessions: int = 16


class Gateway:
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers = WorkerPool(settings.worker)
        self._sessions: set[str] = set()

    async def run(self, started: Callable[[int], None]) -> None:
        """Serve until cancelled; ``started`` is told the port. Raises WorkerFailed or OSError."""
        async with serve(
            self._serve_connection,
            self._settings.host,
            self._settings.port,
            process_request=self._process_request,
            origins=[None],  # no page in a browser, which could reach a server on loopback too
            compression=None,  # what is large is packed already, and an inflate bomb is impossible
            max_size=protocol.MAX_MESSAGE_BYTES,
            ping_interval=PING_EVERY_S,
            ping_timeout=PONG_WITHIN_S,
            close_timeout=CLOSE_WITHIN_S,
            server_header=None,
        ) as server:
            port = _port(server)
            started(port)
            await self._workers.run(port)

    # ---- plain HTTP ---------------------------------------------------------------------------------------

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == WORKER_PATH and self._workers.admits_worker(_bearer(request.headers)):
            return None
        if path == SESSION_PATH and self._workers.admits_session(_bearer(request.headers)):
            return None
        if path.startswith(WORKER_PATH):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "This path is for this server's own workers.\n")
        if path == "/healthz":
            return _json(self._health())
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return connection.respond(HTTPStatus.UPGRADE_REQUIRED, self._in_words())
        return None

    def _health(self) -> dict[str, object]:
        worker = self._workers.description
        return {
            "status": "ready" if worker else "loading",
            "server": f"nninteractive-ws {version('nninteractive-ws')}",
            "protocol": protocol.PROTOCOL_VERSION,
            "model": self._settings.model_name,
            "device": worker.device if worker else None,
            "sessions": len(self._sessions),
            "max_sessions": self._settings.max_sessions,
        }

    def _in_words(self) -> str:
        state = "is ready" if self._workers.ready else "is loading its model"
        return (
            f"This is an nninteractive-ws server, and it {state}. It speaks WebSocket, not plain HTTP: "
            "enter this address in the nninteractive-ws module of 3D Slicer or in the Python client. "
            "GET /healthz answers whether it is ready.\n"
        )

    # ---- WebSocket ----------------------------------------------------------------------------------------

    async def _serve_connection(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        path = connection.request.path.partition("?")[0]
        if path == WORKER_PATH:
            await self._workers.serve_worker(connection)
        elif path == SESSION_PATH:
            await self._workers.serve_session(connection, _bearer(connection.request.headers))
        else:
            await self._serve_client(connection)

    async def _serve_client(self, client: ServerConnection) -> None:
        session = secrets.token_hex(8)
        try:
            hello, encoding = await self._shake_hands(client)
            if len(self._sessions) >= self._settings.max_sessions:
                raise AtCapacity(
                    f"The server has all of its {self._settings.max_sessions} sessions in use; try again later."
                )
            self._sessions.add(session)
            _log.info("session %s: opened by %s", session, hello.client or "a client")
            worker = await self._wait_for_worker(client)
            peer = await self._workers.open_session(encoding)
            try:
                await _send(client, _welcome(session, hello, encoding, worker))
                await self._join(client, peer)
            finally:
                await peer.close()
        except Error as e:
            await _say_goodbye(client, e)
        except ConnectionClosed:
            pass  # the client went; there is nobody to tell
        finally:
            self._sessions.discard(session)
            _log.info("session %s: closed", session)

    async def _shake_hands(self, client: ServerConnection) -> tuple[Hello, Encoding]:
        try:
            first = await asyncio.wait_for(client.recv(), HELLO_WITHIN_S)
        except TimeoutError as e:
            raise BadMessage(f"No hello came within {HELLO_WITHIN_S:g} seconds of connecting.") from e
        hello = protocol.decode_client(first) if isinstance(first, bytes) else None
        if not isinstance(hello, Hello):
            raise BadMessage('The first message must be "hello", in msgpack in a binary frame.')
        protocol.check_version(hello)
        return hello, protocol.agree_on_encoding(hello.encodings, arrays.ENCODINGS)

    async def _wait_for_worker(self, client: ServerConnection) -> Ready:
        if not self._workers.ready:
            words = f"The server is loading the model {self._settings.model_name}; this takes from seconds to a minute."
            await _send(client, Notice(code="loading_model", message=words))
        ready, gone = asyncio.ensure_future(self._workers.wait_ready()), asyncio.ensure_future(client.wait_closed())
        try:
            await asyncio.wait({ready, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise client.protocol.close_exc
            return await ready
        finally:
            ready.cancel()
            gone.cancel()

    async def _join(self, client: ServerConnection, peer: ServerConnection) -> None:
        """Pass every message on, both ways, until one side closes. Raises WorkerLost or ShuttingDown."""
        up, down = asyncio.ensure_future(_pump(client, peer)), asyncio.ensure_future(_pump(peer, client))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if client.close_code:
                return
            await asyncio.wait({down}, timeout=PASS_ON_WITHIN_S)
            if self._workers.stopping:
                raise ShuttingDown("The server is being stopped.")
            if peer.close_code != CloseCode.NORMAL_CLOSURE:
                raise WorkerLost("The process that computed for this session ended unexpectedly.")
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)


async def _pump(source: ServerConnection, sink: ServerConnection) -> None:
    try:
        async for message in source:
            await sink.send(message)
    except ConnectionClosed:
        pass  # _join looks at both ends' close codes


def _welcome(session: str, hello: Hello, encoding: Encoding, worker: Ready) -> Welcome:
    return Welcome(
        version=protocol.PROTOCOL_VERSION,
        server=f"nninteractive-ws {version('nninteractive-ws')}",
        features=[feature for feature in protocol.FEATURES if feature in hello.features],
        encoding=encoding,
        session=session,
        secret=secrets.token_urlsafe(32),
        resumed=False,
        limits=worker.limits,
        model=worker.model,
        device=worker.device,
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


def _bearer(headers: Headers) -> str:
    scheme, _, secret = headers.get("Authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" and secret.isascii() else ""


def _json(content: dict[str, object]) -> Response:
    body = (json.dumps(content) + "\n").encode()
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
    return Response(HTTPStatus.OK, "OK", headers, body)


def _port(server: Server) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])
