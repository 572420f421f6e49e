"""Redirects: no driver follows one, so that a token reaches only its own server."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import ssl
from typing import Any

from helpers.end_to_end import run, wait_until
from helpers.threads import run_in_thread
import pytest
import trustme

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.doctor.checks import Doctor
from nninteractive_ws.doctor.results import StepResult

TOKEN = "nws_of-the-first-server"


class Server(ThreadingHTTPServer):
    """Redirects every request to ``locations``, and records connections and tokens."""

    def __init__(self, status: int = 302) -> None:
        super().__init__(("127.0.0.1", 0), _Redirect)
        self.status = status
        self.locations: list[str] = []
        self.connections = 0
        self.tokens: list[str | None] = []

    def get_request(self) -> tuple[Any, Any]:
        request = super().get_request()
        self.connections += 1
        return request

    def handle_error(self, *_: object) -> None: ...  # a client that disconnects is no error


class _Redirect(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        for location in self.server.locations:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    with server, run_in_thread(lambda: server.serve_forever(0.02), server.shutdown):
        yield server


def by_asyncio(address: str, **options: Any) -> errors.Error:
    with pytest.raises(errors.Error) as refused:
        run(nni.aconnect(address, token=TOKEN, **options))
    return refused.value


def by_polling(address: str, **options: Any) -> errors.Error:
    session = nni.PolledSession(address, token=TOKEN, **options)
    happened: list[Any] = []
    wait_until(lambda: happened.extend(session.poll()) or session.closed, 30)
    (failed,) = [e for e in happened if isinstance(e, events.Failed)]
    assert isinstance(failed.error, errors.Error)
    return failed.error


def by_doctor(address: str, ca: Path | None = None) -> StepResult:
    async def work() -> list[StepResult]:
        return [finding async for finding in Doctor(address, token=TOKEN, ca=ca).run()]

    last = asyncio.run(asyncio.wait_for(work(), 60))[-1]
    assert last.status == "failed"
    return last


Driver = Callable[..., errors.Error]
DRIVERS = pytest.mark.parametrize("driver", [by_asyncio, by_polling])


@DRIVERS
@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "form", ["ws://{}/x", "http://{}/x", "//{}/x", "http://anna:hunter2@{}/x", "http://{}/x?k=hunter2#f"]
)
def test_a_redirect_to_another_origin_is_not_followed(driver: Driver, status: int, form: str) -> None:
    with serving(Server(status)) as first, serving(Server()) as second:
        first.locations = [form.format(f"127.0.0.1:{second.server_port}")]
        error = driver(f"127.0.0.1:{first.server_port}")
    assert type(error) is errors.ConnectionFailed
    assert f"://127.0.0.1:{second.server_port}/x." in str(error)
    assert "hunter2" not in str(error)
    assert (second.connections, second.tokens) == (0, [])
    assert first.tokens == [f"Bearer {TOKEN}"]


@DRIVERS
def test_a_redirect_within_the_server_is_named(driver: Driver) -> None:
    with serving(Server(301)) as first:
        first.locations = ["/lab/"]
        error = driver(f"127.0.0.1:{first.server_port}/lab")
    assert f"http://127.0.0.1:{first.server_port}/lab/" in str(error)
    assert "use it as the address" in str(error)
    assert len(first.tokens) == 1


@DRIVERS
@pytest.mark.parametrize(
    "locations",
    [["http://[::1"], ["http://a:port/"], ["javascript:alert(1)"], ["ws://127.0.0.1:{0}/", "ws://127.0.0.1:{0}/y"],
     [""]],
)  # fmt: skip
def test_odd_redirects(driver: Driver, locations: list[str]) -> None:
    with serving(Server()) as first, serving(Server()) as second:
        first.locations = [location.format(second.server_port) for location in locations]
        error = driver(f"127.0.0.1:{first.server_port}")
    assert isinstance(error, errors.ConnectionFailed)
    assert "redirects to" in str(error)
    assert str(error).isprintable()
    assert second.connections == 0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@DRIVERS
def test_a_redirect_from_tls_to_plain_is_refused(driver: Driver, authority: trustme.CA, tmp_path: Path) -> None:
    """To a plain port of the same machine, where the token could be read in transit."""
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(Server()) as first, serving(Server()) as second:
        first.socket = context.wrap_socket(first.socket, server_side=True)
        first.locations = [f"http://127.0.0.1:{second.server_port}/"]
        error = driver(f"wss://127.0.0.1:{first.server_port}", ca=ca)
        failed = by_doctor(f"wss://127.0.0.1:{first.server_port}", ca)
    assert f"redirects to http://127.0.0.1:{second.server_port}/" in str(error)
    assert (failed.step, failed.code) == ("server", "redirected")
    assert second.connections == 0
    assert first.tokens == [f"Bearer {TOKEN}", None]


@pytest.mark.parametrize("form", ["http://{}/x?k=hunter2", "//anna:hunter2@{}/x", "ws://{}/x"])
def test_doctor_follows_no_redirect(form: str) -> None:
    with serving(Server()) as first, serving(Server()) as second:
        first.locations = [form.format(f"127.0.0.1:{second.server_port}")]
        failed = by_doctor(f"127.0.0.1:{first.server_port}")
    assert (failed.step, failed.code) == ("server", "redirected")
    assert f"127.0.0.1:{second.server_port}/x." in failed.found
    assert "hunter2" not in failed.found
    assert second.connections == 0
    assert TOKEN not in str(first.tokens)
