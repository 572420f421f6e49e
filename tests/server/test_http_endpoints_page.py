"""The web page over real HTTP: its files, its WebSocket and its token."""

from collections.abc import Iterator
from dataclasses import dataclass
import gzip
from pathlib import Path
import ssl

from helpers.end_to_end import PlainClient, hello, run, server_process
from helpers.nginx import UPGRADE as FORWARD_WEBSOCKETS
from helpers.nginx import nginx, nginx_server
from helpers.web_page import INDEX, SCRIPT, UPGRADE, HttpResponse, send, upgrade, write_page
import nibabel as nib
import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.typing import Origin, Subprotocol

from nninteractive_ws import messages as wire
from nninteractive_ws.demo.phantom import DEFAULT_SHAPE
from nninteractive_ws.server.access import add_user

#: No worker runs until a session needs it.
IDLE = ("--workers", "0..1")


@dataclass
class Served:
    """A server with a page. ``log``: the file of its log."""

    address: str
    log: Path
    token: str = ""
    other_token: str = ""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str, *headers: tuple[str, str], method: str = "GET") -> HttpResponse:
        return send(self.port, path, ("Host", self.host), *headers, method=method)

    def open_websocket(self, *tokens: str, more: tuple[tuple[str, str], ...] = ()) -> HttpResponse:
        return send(self.port, "/", *upgrade(self.host, f"http://{self.host}", *tokens), *more)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("web") / "page")


@pytest.fixture(scope="module")
def served(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without tokens."""
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as stderr, server_process(*IDLE, "--allow-host", "gpu-box", page=page, stderr=stderr) as own:
        yield Served(own.address, log)


@pytest.fixture(scope="module")
def locked(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the tokens of two users, which logs as much as possible."""
    folder = tmp_path_factory.mktemp("locked")
    tokens = [add_user(folder / "tokens", name) for name in ("alice", "bob")]
    options = (*IDLE, "--token-file", str(folder / "tokens"), "--log-level", "debug")
    with (folder / "log").open("w") as stderr, server_process(*options, page=page, stderr=stderr) as own:
        yield Served(own.address, folder / "log", *tokens)


# ---- files ------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_are_served(served: Served) -> None:
    index = served.get("/")
    assert (index.status, index.text) == (200, INDEX)
    assert index.headers["Cache-Control"] == "no-cache"
    assert served.get("/?example").text == INDEX
    plain, packed = served.get(f"/{SCRIPT}"), served.get(f"/{SCRIPT}?x", ("Accept-Encoding", "gzip"))
    assert plain.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert gzip.decompress(packed.body) == plain.body
    assert served.get(f"/{SCRIPT}", ("If-None-Match", plain.headers["ETag"])).status == 304
    assert "the web page is at http://127.0.0.1:" in served.log.read_text()


@pytest.mark.parametrize("path", ["/", f"/{SCRIPT}", "/healthz", "/metrics", "/none"])
def test_head_is_answered_without_a_body(served: Served, path: str) -> None:
    got, head = served.get(path), served.get(path, method="HEAD")
    assert (head.status, head.body) == (got.status, b"")
    for name in ("ETag", "Content-Type", "Content-Security-Policy"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize("path", ["/", "/none", "/metrics", "/healthz", "/capabilities", f"/{SCRIPT}", f"/{SCRIPT}x"])
def test_every_response_has_the_headers_for_security(served: Served, path: str) -> None:
    for answer in (served.get(path), served.get(path, ("Origin", "https://attacker.example"))):
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "get"])
@pytest.mark.parametrize("path", ["/", f"/{SCRIPT}", "/metrics"])
def test_other_methods_are_refused(served: Served, path: str, method: str) -> None:
    answer = served.get(path, method=method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", [f"/{SCRIPT}.map", f"/{SCRIPT}/../index.html", "/page.js", "/index.html", "/..%2f"])
def test_other_paths_are_no_files(served: Served, path: str) -> None:
    assert served.get(path).status in (404, 426)


def test_the_example_is_a_volume(served: Served) -> None:
    answer = served.get("/example.nii.gz")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/gzip")
    assert "Content-Encoding" not in answer.headers
    assert nib.Nifti1Image.from_bytes(gzip.decompress(answer.body)).shape == DEFAULT_SHAPE
    assert served.get("/example.nii.gz", ("If-None-Match", answer.headers["ETag"])).status == 304


@pytest.mark.parametrize("path", ["/", f"/{SCRIPT}", "/example.nii.gz"])
def test_foreign_pages_get_no_file(served: Served, path: str) -> None:
    assert send(served.port, path, ("Host", "attacker.example")).status == 421
    assert served.get(path, ("Origin", "https://attacker.example")).status == 403


def test_a_websocket_client_behind_a_proxy_gets_the_hint(served: Served) -> None:
    """Proxies remove the header Upgrade unless they forward WebSockets."""
    answer = served.get("/", ("Sec-WebSocket-Key", UPGRADE["Sec-WebSocket-Key"]))
    assert answer.status == 426
    assert answer.text.startswith("This is an nninteractive-ws server")


def test_where_the_page_could_not_connect_it_says_why(served: Served) -> None:
    answer = send(served.port, "/", ("Host", "gpu-box"))
    assert answer.status == 403
    assert "--allow-origin http://gpu-box" in answer.text
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("origin", [None, "own"])
def test_the_page_may_ask_for_the_capabilities(served: Served, origin: str | None) -> None:
    headers = () if origin is None else (("Origin", f"http://{served.host}"),)
    answer = served.get("/capabilities", *headers)
    assert (answer.status, answer.text) == (503, "The server is loading its model.\n")


def test_no_page_is_served_if_it_is_switched_off(server: str) -> None:
    port = int(server.rpartition(":")[2])
    host = f"127.0.0.1:{port}"
    assert send(port, "/", ("Host", host), ("Accept", "text/html")).status == 426
    assert send(port, "/example.nii.gz", ("Host", host)).status == 426
    assert send(port, "/", *upgrade(host, f"http://{host}")).status == 403


def test_a_missing_page_is_explained(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w") as stderr,
        server_process(*IDLE, page=tmp_path / "page", stderr=stderr) as own,
    ):
        missing = Served(own.address, tmp_path / "log")
        answer = missing.get("/", ("Accept", "text/html"))
        assert (answer.status, "built without one" in answer.text) == (404, True)
        assert missing.get("/").status == 426
        assert missing.open_websocket().status == 403
    assert "built without one" in (tmp_path / "log").read_text()


# ---- the WebSocket of the page ----------------------------------------------------------------------------


def test_the_page_may_open_a_websocket(served: Served) -> None:
    answer = served.open_websocket()
    assert (answer.status, answer.headers["Sec-WebSocket-Protocol"]) == (101, "nninteractive.v1")


def test_a_page_through_a_tunnel_may_open_a_websocket(served: Served) -> None:
    """With ``ssh -L 9:127.0.0.1:1528``, the page is at another port than the server."""
    assert send(served.port, "/", *upgrade("localhost:9", "http://localhost:9")).status == 101


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("attacker.example", "http://attacker.example", 421),  # DNS rebinding
        ("127.0.0.1:1528", "http://127.0.0.1:8888", 403),  # a page of another local server
        ("127.0.0.1:1528", "https://attacker.example", 403),
        ("127.0.0.1:1528", "null", 403),
        ("gpu-box", "http://gpu-box", 403),
    ],
)
def test_no_other_page_may_open_a_websocket(served: Served, host: str, origin: str, status: int) -> None:
    assert send(served.port, "/", *upgrade(host, origin)).status == status


def test_two_origins_are_refused(served: Served) -> None:
    more = (("Origin", "https://attacker.example"),)
    assert served.open_websocket(more=more).status in (400, 403)


def test_the_http_api_accepts_no_page(served: Served) -> None:
    """The page does not use it."""
    answer = served.get("/claim", ("Origin", f"http://{served.host}"), ("Content-Length", "0"), method="POST")
    assert answer.status == 403
    assert "--allow-origin" in answer.text


@pytest.mark.parametrize("offered", ["", "other", "nninteractive.v2"])
def test_an_unknown_subprotocol_is_not_confirmed(served: Served, offered: str) -> None:
    headers = [h for h in upgrade(served.host, f"http://{served.host}") if h[0] != "Sec-WebSocket-Protocol"]
    answer = send(served.port, "/", *headers, *([("Sec-WebSocket-Protocol", offered)] if offered else []))
    assert (answer.status, answer.headers["Sec-WebSocket-Protocol"]) == (101, None)


# ---- tokens -----------------------------------------------------------------------------------------------


def test_the_page_loads_without_a_token(locked: Served) -> None:
    for path in ("/", f"/{SCRIPT}", "/example.nii.gz"):
        assert locked.get(path).status == 200
    assert send(locked.port, "/", ("Host", "gpu-box.example.org")).status == 200
    assert locked.get("/metrics").status == 401


def test_a_subprotocol_carries_the_token(locked: Served) -> None:
    answer = locked.open_websocket(locked.token)
    assert (answer.status, answer.headers["Sec-WebSocket-Protocol"]) == (101, "nninteractive.v1")
    assert locked.token not in str(answer.headers)
    same = (("Authorization", f"Bearer {locked.token}"),)
    assert locked.open_websocket(locked.token, locked.token, more=same).status == 101
    # The login of a proxy.
    assert locked.open_websocket(locked.token, more=(("Authorization", "Basic YTpi"),)).status == 101


def test_other_tokens_are_refused(locked: Served) -> None:
    other = (("Authorization", f"Bearer {locked.other_token}"),)
    refused = [
        locked.open_websocket(),
        locked.open_websocket("nws_wrong"),
        locked.open_websocket(""),
        locked.open_websocket(locked.token + "x"),
        locked.open_websocket(locked.token, locked.other_token),
        locked.open_websocket(locked.token, more=other),
        locked.open_websocket(locked.token, "nws_wrong"),
    ]
    assert [answer.status for answer in refused] == [401] * len(refused)
    assert refused[0].text.startswith("This server needs a token.")
    assert refused[1].text.startswith("The server refused this token.")


@pytest.mark.parametrize(("token", "status"), [("", 401), ("nws_wrong", 401), ("right", 503)])
def test_the_capabilities_tell_the_page_why_it_was_refused(locked: Served, token: str, status: int) -> None:
    token = locked.token if token == "right" else token
    answer = locked.get("/capabilities", *([("Authorization", f"Bearer {token}")] if token else []))
    assert answer.status == status
    assert answer.text.endswith(".\n")


@pytest.mark.slow
def test_a_session_belongs_to_the_user_of_the_token(locked: Served) -> None:
    async def work() -> wire.Welcome:
        offered = ("nninteractive.v1", f"nninteractive.v1.bearer.{locked.token}")
        websocket = await connect(
            locked.address,
            origin=Origin(f"http://{locked.host}"),
            subprotocols=[Subprotocol(name) for name in offered],
            compression=None,
            proxy=None,
        )
        assert websocket.subprotocol == "nninteractive.v1"
        client = PlainClient(websocket)
        await client.send(hello())
        welcome = await client.receive_until(wire.Welcome)
        await client.leave()
        return welcome

    assert run(work()).session_id
    assert "user=alice" in locked.log.read_text()


def test_no_token_is_logged(locked: Served) -> None:
    for token in (locked.token, "nws_wrong", "without-a-prefix"):
        locked.open_websocket(token)
        send(locked.port, "/", *upgrade("127.0.0.1", "https://attacker.example", token))
        send(locked.port, f"/{SCRIPT}", *upgrade(locked.host, f"http://{locked.host}", token))
        send(locked.port, "/", *upgrade(locked.host, f"http://{locked.host}", token, subprotocol="in valid"))
    log = locked.log.read_text()
    assert "refused: wrong token" in log
    for secret in (locked.token, locked.other_token, "nws_wrong", "without-a-prefix"):
        assert secret not in log


# ---- TLS and proxies --------------------------------------------------------------------------------------


def test_a_server_with_tls_serves_the_page(page: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    files = ("--tls-cert", str(tmp_path / "pem"), "--tls-key", str(tmp_path / "pem"), "--log-level", "error")
    with server_process(*IDLE, *files, page=page) as own:
        port = int(own.address.rpartition(":")[2])
        host = f"127.0.0.1:{port}"
        assert send(port, "/", ("Host", host), tls=trusted).text == INDEX
        assert len(send(port, f"/{SCRIPT}", ("Host", host), tls=trusted).body) == (page / SCRIPT).stat().st_size
        # A file that is sent in parts.
        assert len(send(port, "/example.nii.gz", ("Host", host), tls=trusted).body) > 1_000_000
        assert send(port, "/", *upgrade(host, f"https://{host}"), tls=trusted).status == 101
        assert send(port, "/", *upgrade(host, f"http://{host}"), tls=trusted).status == 403


@pytest.mark.nginx
def test_the_page_behind_nginx_with_a_prefix(served: Served, tmp_path: Path) -> None:
    settings = f"{FORWARD_WEBSOCKETS} proxy_set_header Host $http_host;"
    with nginx(tmp_path, served.host, settings) as address:
        host, _, path = address.partition("/")
        port, prefix = int(host.rpartition(":")[2]), f"/{path}"
        own = ("Host", host)
        assert send(port, prefix, own).text == INDEX
        packed = send(port, f"{prefix}{SCRIPT}", own, ("Accept-Encoding", "gzip"))
        assert packed.headers["Content-Encoding"] == "gzip"
        assert len(send(port, f"{prefix}example.nii.gz", own).body) > 1_000_000
        assert send(port, f"{prefix}capabilities", own).status == 503
        opened = send(port, prefix, *upgrade(host, f"http://{host}", "nws_secret"))
        assert (opened.status, opened.headers["Sec-WebSocket-Protocol"]) == (101, "nninteractive.v1")
        assert send(port, prefix, *upgrade(host, "http://127.0.0.1:8888")).status == 403
        assert send(port, prefix, ("Host", "attacker.example")).status == 421
    assert "nws_secret" not in (tmp_path / "access").read_text()


@pytest.mark.nginx
def test_the_page_behind_nginx_that_keeps_connections(served: Served, tmp_path: Path) -> None:
    """Requests of the HTTP API and of the page use the same connections."""
    settings = f"{FORWARD_WEBSOCKETS} proxy_set_header Host $http_host; proxy_set_header X-Real-IP $remote_addr;"
    locations = f"location / {{ proxy_pass http://kept; {settings} }}"
    upstream = f"upstream kept {{ server {served.host}; keepalive 1; }}"
    with nginx_server(tmp_path, locations, upstream=upstream) as port:
        own = ("Host", f"127.0.0.1:{port}")
        for _ in range(2):
            assert send(port, "/release", own, method="POST").status == 200
            assert send(port, "/", own).text == INDEX
            assert send(port, "/release", own, method="POST").status == 200
            assert send(port, "/", *upgrade(own[1], f"http://{own[1]}")).status == 101


@pytest.mark.nginx
def test_nginx_that_does_not_forward_the_host_needs_an_allowed_origin(page: Path, tmp_path: Path) -> None:
    with server_process(*IDLE, "--allow-origin", "https://gpu-box", "--log-level", "critical", page=page) as own:
        target = f"127.0.0.1:{own.address.rpartition(':')[2]}"
        with nginx(tmp_path, target, FORWARD_WEBSOCKETS) as address:
            port = int(address.partition("/")[0].rpartition(":")[2])
            assert send(port, "/nn/", *upgrade("gpu-box", "https://gpu-box")).status == 101
            assert send(port, "/nn/", *upgrade("gpu-box", "http://gpu-box")).status == 403
