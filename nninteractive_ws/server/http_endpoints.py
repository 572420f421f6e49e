"""The gateway over plain HTTP: /healthz, /metrics, and error responses to requests that are not WebSockets."""

from http import HTTPStatus
from importlib.metadata import version
import json
import logging
import re

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from nninteractive_ws import protocol
from nninteractive_ws.server.access import TokenFile, bearer_token
from nninteractive_ws.server.hosts import AllowedHosts
from nninteractive_ws.server.metrics import Metrics
from nninteractive_ws.server.sessions import Registry
from nninteractive_ws.server.settings import Settings
from nninteractive_ws.server.workers import WorkerPool

_log = logging.getLogger(__name__)


class HttpEndpoints:
    """HTTP responses of the gateway. Raises BadTokenFile."""

    def __init__(self, settings: Settings, sessions: Registry, workers: WorkerPool, metrics: Metrics) -> None:
        self._settings, self._sessions, self._workers, self._metrics = settings, sessions, workers, metrics
        self._tokens = None if settings.token_file is None else TokenFile(settings.token_file)
        # With tokens, DNS rebinding reveals only /healthz (status, model, device, number of sessions), because all else
        # needs a token. Such servers have many names, through reverse proxies or from outside a container, and nobody
        # should have to list them.
        self._hosts = AllowedHosts((settings.host, *settings.allowed_hosts)) if self._tokens is None else None

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
        if self._hosts is not None and (host := self._hosts.refused(request.headers)) is not None:
            _log.warning("refused: unknown host %.260s", host, extra={"peer": peer_address(connection)})
            return connection.respond(HTTPStatus.MISDIRECTED_REQUEST, _host_message(host))
        foreign = [origin for origin in request.headers.get_all("Origin") if origin not in self._settings.origins]
        if foreign:
            _log.warning("refused: web page of %.260s", foreign[0], extra={"peer": peer_address(connection)})
            self._metrics.error_sent("forbidden_origin")
            message = (
                "This server does not accept web pages of this origin. To allow them, start it with --allow-origin.\n"
            )
            return connection.respond(HTTPStatus.FORBIDDEN, message)
        return None

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

    def _http_hint(self) -> str:
        state = "is ready" if self._workers.loaded else "is loading its model"
        return (
            f"This is an nninteractive-ws server, and it {state}. It needs a WebSocket connection. Enter this address "
            "in the nninteractive-ws module of 3D Slicer or in the Python client. GET /healthz returns the status.\n"
        )


def peer_address(connection: ServerConnection) -> str:
    """Return the client's IP address, for the log."""
    address = connection.remote_address
    return str(address[0]) if address else "?"


def _host_message(host: str) -> str:
    """Return the sentence for a Host header that is not allowed. Unusual characters are not repeated."""
    if not host.partition(":")[0].strip():
        return "The Host header of this request has no host name. Set it to the server's IP address or to localhost.\n"
    valid = re.fullmatch(r"([\w.-]{1,253})(?::\d*)?", host, re.ASCII)
    problem, name = (f"the host name {valid[1]}", valid[1]) if valid else ("the host name of this request", "NAME")
    return (
        f"This server does not accept {problem}. Connect by IP address or as localhost, or start the server with "
        f"--allow-host {name}.\n"
    )


def _http_response(content_type: str, body: bytes) -> Response:
    headers = Headers({"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"})
    return Response(HTTPStatus.OK, "OK", headers, body)
