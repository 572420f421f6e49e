"""The gateway over plain HTTP: /healthz, /metrics, the web page, and error responses to other requests."""

from http import HTTPStatus
from importlib.metadata import version
import json
import logging

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from nninteractive_ws import protocol
from nninteractive_ws.server.access import SUBPROTOCOL, TokenFile, client_token, has_client_token, offers_subprotocol
from nninteractive_ws.server.example_volume import ExampleVolume, NoExample
from nninteractive_ws.server.hosts import WebPageGuard, page_schemes
from nninteractive_ws.server.metrics import Metrics
from nninteractive_ws.server.pool import WorkerPool
from nninteractive_ws.server.sessions import Registry
from nninteractive_ws.server.settings import Settings
from nninteractive_ws.server.web_page import EXAMPLE, PageFile, WebPage, explanation, http_response, text_response

_log = logging.getLogger(__name__)


class HttpEndpoints:
    """HTTP responses of the gateway. Raises BadTokenFile, and OSError if the web page cannot be read."""

    def __init__(self, settings: Settings, sessions: Registry, workers: WorkerPool, metrics: Metrics) -> None:
        self._settings, self._sessions, self._workers, self._metrics = settings, sessions, workers, metrics
        self._tokens = None if settings.token_file is None else TokenFile(settings.token_file)
        self._page = None if settings.page is None else WebPage(settings.page)
        self._example = ExampleVolume()
        self._example_file: PageFile | None = None
        hosts = None if self._tokens is not None else (settings.host, *settings.allowed_hosts)
        self._guard = WebPageGuard(
            hosts, settings.origins, page_schemes(settings.tls is not None) if self.has_page else ()
        )

    @property
    def has_page(self) -> bool:
        """Whether the server has its web page."""
        return self._page is not None and self._page.is_built

    @property
    def file_names(self) -> list[str]:
        """The files of the page that :meth:`respond_with_file` returns."""
        return [] if self._page is None or not self._page.is_built else [EXAMPLE, *self._page.file_names]

    def user(self, request: Request) -> str | None:
        """Return the user's name: "" on a server without tokens, None for a missing or wrong token."""
        return "" if self._tokens is None else self._tokens.user_of(client_token(request.headers))

    def respond(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the HTTP response to a request; None: upgrade it to a WebSocket."""
        response = self._respond(request, peer_address(connection))
        if response is not None and request.method == "HEAD":
            response.body = b""
        return response

    def confirm_subprotocol(self, _: ServerConnection, request: Request, response: Response) -> None:
        """Add the subprotocol of web pages to the response. It is never the one with a token, which may be logged."""
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS and offers_subprotocol(request.headers):
            response.headers["Sec-WebSocket-Protocol"] = SUBPROTOCOL

    async def respond_with_file(self, request: Request, peer: str) -> Response:
        """Return the response to a request for a file of :attr:`file_names` from the address ``peer``."""
        if (refusal := self._refuse_web_page(request, peer)) is not None:
            return refusal
        name = _path(request).removeprefix("/")
        try:
            file = await self._file(name)
        except NoExample as e:
            return text_response(HTTPStatus.SERVICE_UNAVAILABLE, f"{e}\n")
        if file is None:
            return text_response(HTTPStatus.NOT_FOUND, "The web page has no such file. Reload the page.\n")
        return file.respond(request.headers)

    async def _file(self, name: str) -> PageFile | None:
        if name == EXAMPLE:
            content = await self._example.content()
            if self._example_file is None:
                self._example_file = PageFile(EXAMPLE, content)
            return self._example_file
        return None if self._page is None else self._page.file(name)

    def _respond(self, request: Request, peer: str) -> Response | None:
        if (refusal := self._refuse_web_page(request, peer)) is not None:
            return refusal
        if request.method not in ("GET", "HEAD"):
            return _refuse_method()
        path = _path(request)
        if path == "/healthz":
            return _ok("application/json", (json.dumps(self._health()) + "\n").encode())
        if path == "/" and not _is_websocket(request) and (page := self._index(request)) is not None:
            return page
        if self.user(request) is None:
            return self._refuse_without_token(request, peer)
        if path == "/capabilities":
            return self._capabilities()
        if path == "/metrics":
            body, content_type = self._metrics.render()
            return _ok(content_type, body)
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return text_response(HTTPStatus.UPGRADE_REQUIRED, self._http_hint())
        if self._workers.stopping:
            return text_response(HTTPStatus.SERVICE_UNAVAILABLE, "The server is shutting down. Try again later.\n")
        return None

    def _index(self, request: Request) -> Response | None:
        """Return the page, or a sentence that says why there is none; None: the server has no page for a program."""
        if self._page is None:
            return None
        if self.has_page and (refusal := self._guard.page_refusal(request.headers)) is not None:
            return explanation(HTTPStatus.FORBIDDEN, refusal)
        return self._page.index(request.headers)

    def _refuse_web_page(self, request: Request, peer: str) -> Response | None:
        """Return the refusal of a request from a foreign web page, by its Host or Origin; None: accepted."""
        refusal = self._guard.refusal(request.headers)
        if refusal is None:
            return None
        _log.warning("refused: %s", refusal.reason, extra={"peer": peer})
        if refusal.status is HTTPStatus.FORBIDDEN:
            self._metrics.error_sent("forbidden_origin")
        return text_response(refusal.status, refusal.message)

    def _refuse_without_token(self, request: Request, peer: str) -> Response:
        given = has_client_token(request.headers)
        _log.warning("refused: %s token", "wrong" if given else "no", extra={"peer": peer})
        self._metrics.error_sent("unauthorized")
        problem, wanted = (
            ("The server refused this token", "a new one") if given else ("This server needs a token", "one")
        )
        message = f"{problem}. Ask the server's administrator for {wanted} (nninteractive-ws token NAME).\n"
        response = text_response(HTTPStatus.UNAUTHORIZED, message)
        error = ', error="invalid_token"' if given else ""
        response.headers["WWW-Authenticate"] = f'Bearer realm="nninteractive-ws"{error}'
        return response

    def _capabilities(self) -> Response:
        """Describe the model as nnInteractive's own server does, for clients of its HTTP API."""
        description = self._workers.description
        if description is None:
            response = text_response(HTTPStatus.SERVICE_UNAVAILABLE, "The server is loading its model.\n")
            response.headers["Retry-After"] = "10"
            return response
        return _ok("application/json", description.capabilities.encode())

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


def _refuse_method() -> Response:
    response = text_response(HTTPStatus.METHOD_NOT_ALLOWED, "This server accepts GET and HEAD here.\n")
    response.headers["Allow"] = "GET, HEAD"
    return response


def _path(request: Request) -> str:
    return request.path.partition("?")[0]


def _is_websocket(request: Request) -> bool:
    """Return whether a request is of a WebSocket client, also behind a proxy that removes the Upgrade header."""
    return "Upgrade" in request.headers or "Sec-WebSocket-Key" in request.headers


def _ok(content_type: str, body: bytes) -> Response:
    return http_response(HTTPStatus.OK, content_type, body)
