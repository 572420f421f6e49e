"""Addresses as people write them, and what is said about one that cannot be reached: by real sockets and servers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
import socket
import ssl

import pytest
from threads import on_a_thread, saying
from websockets.asyncio.client import connect

from nninteractive_ws.client.address import Address, explain, parse_address
from nninteractive_ws.errors import (
    AtCapacity,
    BadAddress,
    ConnectionFailed,
    Error,
    ForbiddenOrigin,
    InternalError,
    ShuttingDown,
    Unauthorized,
)


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("gpu-box", "ws://gpu-box:1528/"),
        ("gpu-box:99", "ws://gpu-box:99/"),
        ("  gpu-box:99\n", "ws://gpu-box:99/"),
        ("GPU-Box", "ws://gpu-box:1528/"),
        ("10.1.2.3", "ws://10.1.2.3:1528/"),
        ("ws://gpu-box", "ws://gpu-box:1528/"),
        ("ws://gpu-box/", "ws://gpu-box:1528/"),
        ("ws://gpu-box:99/a/b", "ws://gpu-box:99/a/b"),
        ("http://gpu-box:99", "ws://gpu-box:99/"),
        ("wss://gpu-box", "wss://gpu-box:443/"),
        ("https://gpu-box/lab", "wss://gpu-box:443/lab"),
        ("wss://gpu-box:1528", "wss://gpu-box:1528/"),
        ("WS://gpu-box", "ws://gpu-box:1528/"),
        ("0.0.0.0:99", "ws://127.0.0.1:99/"),
        ("[::]:99", "ws://127.0.0.1:99/"),
        ("::1", "ws://[::1]:1528/"),
        ("[::1]", "ws://[::1]:1528/"),
        ("[fe80::2]:99", "ws://[fe80::2]:99/"),
        ("ws://[::1]:99/x", "ws://[::1]:99/x"),
        ("[fe80::2%eth0]:99", "ws://[fe80::2%eth0]:99/"),
        ("gpu_box/a%20b/größe", "ws://gpu_box:1528/a%20b/gr%C3%B6%C3%9Fe"),
        ("größe.example", "ws://größe.example:1528/"),
    ],
)
def test_an_address(written: str, url: str) -> None:
    assert parse_address(written).url == url
    assert str(parse_address(url)) == url


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "No server address"),
        ("   ", "No server address"),
        ("gpu-box:port", "not an address"),
        ("gpu-box:99999", "not an address"),
        ("gpu-box:0", "not an address"),
        ("gpu-box:-1", "not an address"),
        ("my gpu box", "not an address"),
        ("ftp://gpu-box", "not an address"),
        ("ws://", "not an address"),
        ("://", "not an address"),
        (":1528", "not an address"),
        ("http://[::1", "not an address"),
        ("ws:/gpu-box", "not an address"),
        ("gpu-box:", "not an address"),
        ("gpu;box", "not an address"),
        ("-gpu-box", "not an address"),
        ("ws://gpu\tbox", "not an address"),
        ("ws://[fe80::1%a;b]", "not an address"),
        ("ws://gpu-box/?token=secret", "token"),
        ("gpu-box/#secret", "token"),
        ("gpu-box/nws_secret", "token"),
        ("user:secret@gpu-box", "token"),
        ("ws://:secret@gpu-box:1528", "token"),
    ],
)
def test_no_address(written: str, said: str) -> None:
    with pytest.raises(BadAddress, match=r'^[A-Z"]') as caught:
        parse_address(written)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("10.0.0.1", False), ("box", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert Address(False, host, 1).is_loopback is loopback
    assert Address(False, host, 1).is_literal is (host not in ("localhost", "box"))


# ---- why not ----------------------------------------------------------------------------------------------


def why_not(written: str, timeout: float = 10) -> Error:
    """Try to connect as the clients do; what is said of it."""
    address = parse_address(written)

    async def attempt() -> None:
        async with connect(address.url, open_timeout=timeout, proxy=None):
            pass

    with pytest.raises(Exception) as caught:  # noqa: PT011 - of every kind; what they become is looked at
        asyncio.run(attempt())
    return explain(caught.value, address)


def answers(status: int, body: str, kind: str = "text/plain") -> type[BaseHTTPRequestHandler]:
    """A server's behaviour: one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with (
        HTTPServer(("127.0.0.1", 0), handler) as server,
        on_a_thread(lambda: server.serve_forever(poll_interval=0.02), server.shutdown),
    ):
        yield f"127.0.0.1:{server.server_port}"


@contextmanager
def listening(backlog: int = 5) -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server, f"127.0.0.1:{server.getsockname()[1]}"


def test_nothing_listens() -> None:
    with listening() as (_, address):
        pass
    error = why_not(address)
    assert type(error) is ConnectionFailed
    assert f"Nothing listens at {address}" in str(error)
    # A name that stands for several addresses, all of which refuse.
    assert "Nothing listens" in str(why_not(address.replace("127.0.0.1", "localhost")))


def test_a_name_that_is_not_known() -> None:
    error = why_not("no-such-machine.invalid")
    assert type(error) is ConnectionFailed
    assert 'The name "no-such-machine.invalid" is not known' in str(error)


def test_a_server_that_never_answers() -> None:
    with listening() as (_, address):
        error = why_not(address, timeout=0.2)
    assert type(error) is ConnectionFailed
    assert f"{address} does not answer" in str(error)


def test_a_web_server() -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http_server(Quiet) as address:
        error = why_not(address)
    assert type(error) is ConnectionFailed
    assert f"What answers at {address} is not an nninteractive-ws server" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (502, "Bad Gateway", ConnectionFailed, "A proxy answers at"),
        (503, "", ConnectionFailed, "reaches no server behind it"),
        (503, "The server has all of its 16 sessions in use; try again later.\n", AtCapacity, "all of its 16 sessions"),
        (503, "The server is being stopped.\n", ShuttingDown, "The server is being stopped."),
        (504, "", ConnectionFailed, "is the server running?"),
        (404, '{"detail":"Not Found"}', ConnectionFailed, "looks like the official nnInteractive server"),
        (404, "nothing here", ConnectionFailed, "is not an nninteractive-ws server: HTTP 404. nothing here"),
        (401, "A token is needed.", Unauthorized, "wants a token, or does not know this one. A token is needed."),
        (403, "This origin may not.", ForbiddenOrigin, "This origin may not."),
        (403, "No.", ConnectionFailed, "HTTP 403. No."),
        (403, "The name evil is not allowed: start it with --allow-host evil.", ConnectionFailed, "The name evil"),
        (421, "The name evil is not allowed: start it with --allow-host evil.", ConnectionFailed, "The name evil"),
        (421, "No.", ConnectionFailed, "is not an nninteractive-ws server: HTTP 421. No."),
        (200, "hello", ConnectionFailed, "HTTP 200. hello"),
    ],
)
def test_an_http_status(status: int, body: str, kind: type[Error], said: str) -> None:
    with http_server(answers(status, body)) as address:
        error = why_not(address)
    assert type(error) is kind
    assert said in str(error)


@pytest.mark.parametrize("status", [403, 421])
def test_a_host_that_is_not_allowed(status: int) -> None:
    said = "The host name evil.example is not allowed for any origin. Add --allow-host evil.example to serve."
    with http_server(answers(status, said)) as address:
        error = why_not(address)
    assert type(error) is ConnectionFailed
    assert str(error) == said


def test_a_proxys_own_page_is_not_the_servers_word() -> None:
    with http_server(answers(503, "<html>Service Unavailable</html>", "text/html")) as address:
        error = why_not(address)
    assert type(error) is ConnectionFailed
    assert "A proxy answers at" in str(error)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"\x15\x03\x01\x00\x02\x02\x16"])
def test_something_else_entirely(greeting: bytes) -> None:
    with saying(greeting) as address:
        error = why_not(address)
    assert type(error) is ConnectionFailed
    assert f"What answers at {address} is not an nninteractive-ws server" in str(error)


def test_no_tls_there() -> None:
    with saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        error = why_not(f"wss://{address}")
    assert type(error) is ConnectionFailed
    assert f"No secure connection to {address} could be made" in str(error)


def test_other_errors() -> None:
    address = Address(False, "box", 99)
    mine = InternalError("as it is")
    assert explain(mine, address) is mine
    assert str(explain(OSError("the cable was eaten"), address)) == (
        "The connection to box:99 failed: the cable was eaten."
    )
    assert "box:99 could be made: handshake failure" in str(explain(ssl.SSLError(1, "handshake failure"), address))
    assert str(explain(ssl.SSLCertVerificationError("odd"), address)).startswith("The certificate of the server")
    assert 'The name "box" is not known' in str(explain(UnicodeError("label too long"), address))
