"""The gateway over plain HTTP: /healthz, /metrics, and error responses to requests that are not WebSockets."""

from http import HTTPStatus
from importlib.metadata import version
import json
import logging

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from nninteractive_ws import protocol
from nninteractive_ws.server.access import TokenFile, bearer_token
from nninteractive_ws.server.hosts import WebPageGuard
from nninteractive_ws.server.metrics import Metrics
from nninteractive_ws.server.pool import WorkerPool
from nninteractive_ws.server.sessions import Registry
from nninteractive_ws.server.settings import Settings

_log = logging.getLogger(__name__)


class HttpEndpoints:
    """HTTP responses of the gateway. Raises BadTokenFile."""

    def __init__(self, settings: Settings, sessions: Registry, workers: WorkerPool, metrics: Metrics) -> None:
        self._settings, self._sessions, self._workers, self._metrics = settings, sessions, workers, metrics
        self._tokens = None if settings.token_file is None else TokenFile(settings.token_file)
        hosts = None if self._tokens is not None else (settings.host, *settings.allowed_hosts)
        self._guard = WebPageGuard(hosts, settings.origins)

    def user(self, request: Request) -> str | None:
        """Return the user's name: "" on a server without tokens, None for a missing or wrong token."""
        return "" if self._tokens is None else self._tokens.user_of(bearer_token(request.headers))

    def respond(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the HTTP response to a request; None: upgrade it to a WebSocket."""
        if (refusal := self._refuse_web_page(connection, request)) is not None:
            return refusal
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return _http_response("application/json", (json.dumps(self._health()) + "\n").encode())
        if self.user(request) is None:
            return self._refuse_without_token(connection, request)
        if path == "/capabilities":
            return self._capabilities(connection)
        if path == "/metrics":
            body, content_type = self._metrics.render()
            return _http_response(content_type, body)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return connection.respond(HTTPStatus.UPGRADE_REQUIRED, self._http_hint())
        if self._workers.stopping:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The server is shutting down. Try again later.\n")
        return None

    def _refuse_web_page(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the refusal of a request from a foreign web page, by its Host or Origin; None: accepted."""
        refusal = self._guard.refusal(request.headers)
        if refusal is None:
            return None
        _log.warning("refused: %s", refusal.reason, extra={"peer": peer_address(connection)})
        if refusal.status is HTTPStatus.FORBIDDEN:
            self._metrics.error_sent("forbidden_origin")
        return connection.respond(refusal.status, refusal.message)

    def _refuse_without_token(self, connection: ServerConnection, request: Request) -> Response:
        given = "Authorization" in request.headers
        _log.warning("refused: %s token", "wrong" if given else "no", extra={"peer": peer_address(connection)})
        self._metrics.error_sent("unauthorized")
        problem, wanted = (
            ("The server refused this token", "a new one") if given else ("This server needs a token", "one")
        )
        message = f"{problem}. Ask the server's administrator for {wanted} (nninteractive-ws token NAME).\n"
        response = connection.respond(HTTPStatus.UNAUTHORIZED, message)
        error = ', error="invalid_token"' if given else ""
        response.headers["WWW-Authenticate"] = f'Bearer realm="nninteractive-ws"{error}'
        return response

    def _capabilities(self, connection: ServerConnection) -> Response:
        """Describe the model as nnInteractive's own server does, for clients of its HTTP API."""
        description = self._workers.description
        if description is None:
            response = connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The server is loading its model.\n")
            response.headers["Retry-After"] = "10"
            return response
        return _http_response("application/json", description.capabilities.encode())

    def _health(self) -> dict[str, object]:
        devices = [slot.description.device for slot in self._workers.ready if slot.description is not None]
        return {
            "ok": True,  # as nnInteractive's own server answers
            "status": self._status(),
            "server": f"nninteractive-ws {version('nninteractive-ws')}",
            "protocol": protocol.PROTOCOL_VERSION,
            "model": self._settings.model_name,
            "device": ", ".join(devices) or None,
            "sessions": len(self._sessions),
            "max_sessions": self._settings.max_sessions,
        }

    def _status(self) -> str:
        if self._workers.ready:
            return "ready"
        return "loading" if self._workers.is_wanted else "idle"

    def _http_hint(self) -> str:
        states = {"ready": "is ready", "loading": "is loading its model", "idle": "starts a worker when it is used"}
        state = states[self._status()]
        return (
            f"This is an nninteractive-ws server, and it {state}. Enter this address in the nninteractive-ws module of "
            "3D Slicer, in the Python client, or in a client of nnInteractive's own server such as napari's plug-in. "
            "GET /healthz returns the status.\n"
        )


def peer_address(connection: ServerConnection) -> str:
    """Return the client's IP address, for the log."""
    address = connection.remote_address
    return str(address[0]) if address else "?"


def _http_response(content_type: str, body: bytes) -> Response:
    headers = Headers({"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"})
    return Response(HTTPStatus.OK, "OK", headers, body)
