"""Errors of failed connections, by real sockets and servers."""

import asyncio
from collections.abc import Iterator
import contextlib
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler
import socket
import ssl

from helpers.end_to_end import run
from helpers.http import answers, http_server
from helpers.threads import greeting_server
import pytest
from websockets.asyncio.client import connect
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

import nninteractive_ws as nni
from nninteractive_ws.client import reconnect
from nninteractive_ws.client.address import Address, parse_address
from nninteractive_ws.client.connection_errors import connection_error
from nninteractive_ws.errors import (
    AtCapacity,
    ConnectionFailed,
    Error,
    ForbiddenOrigin,
    InternalError,
    ShuttingDown,
    Unauthorized,
)

BOX = Address(False, "box", 99)


def why_not(written: str, timeout: float = 10) -> Error:
    """Try to connect as the clients do. Return the error."""
    address = parse_address(written)

    async def attempt() -> None:
        async with connect(address.url, open_timeout=timeout, proxy=None):
            pass

    with pytest.raises(Exception) as caught:  # noqa: PT011 - of every kind; what they become is looked at
        asyncio.run(attempt())
    return connection_error(caught.value, address)


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
    # A name with several addresses, all of which refuse.
    assert "Nothing listens" in str(why_not(address.replace("127.0.0.1", "localhost")))


def test_an_unknown_name() -> None:
    error = why_not("no-such-machine.invalid")
    assert type(error) is ConnectionFailed
    assert 'DNS lookup of "no-such-machine.invalid" failed' in str(error)


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
    assert f"The program at {address} is not an nninteractive-ws server" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "kind", "expected"),
    [
        (502, "Bad Gateway", ConnectionFailed, "A proxy answers at"),
        (503, "", ConnectionFailed, "cannot reach a server behind it"),
        (
            503,
            "All 16 sessions of the server are in use. Try again later.\n",
            AtCapacity,
            "All 16 sessions of the server",
        ),
        (503, "The server is shutting down. Try again later.\n", ShuttingDown, "The server is shutting down."),
        (504, "", ConnectionFailed, "Check that the server is running."),
        (404, '{"detail":"Not Found"}', ConnectionFailed, "seems to be the official nnInteractive server"),
        (404, "nothing here", ConnectionFailed, 'Details: HTTP 404, "nothing here".'),
        (401, "A token is needed.", Unauthorized, "This server needs a token."),
        (403, "This origin may not.", ForbiddenOrigin, "This origin may not."),
        (403, "No.", ConnectionFailed, 'HTTP 403, "No.".'),
        (403, "The name evil is not allowed: start it with --allow-host evil.", ConnectionFailed, "The name evil"),
        (421, "The name evil is not allowed: start it with --allow-host evil.", ConnectionFailed, "The name evil"),
        (421, "No.", ConnectionFailed, 'Details: HTTP 421, "No.".'),
        (200, "hello", ConnectionFailed, 'HTTP 200, "hello".'),
    ],
)
def test_an_http_status(status: int, body: str, kind: type[Error], expected: str) -> None:
    with http_server(answers(status, body)) as address:
        error = why_not(address)
    assert type(error) is kind
    assert expected in str(error)


@pytest.mark.parametrize(
    ("challenge", "expected"),
    [
        ('Bearer realm="nninteractive-ws"', "This server needs a token. Pass it as the argument token"),
        ('Bearer realm="nninteractive-ws", error="invalid_token"', "The server refused this token. Check that"),
        ('Basic realm="hospital"', "requires its own login (HTTP 401)"),
    ],
)
def test_a_401_by_its_challenge(challenge: str, expected: str) -> None:
    error = connection_error(InvalidStatus(Response(401, "", Headers({"WWW-Authenticate": challenge}))), BOX)
    assert type(error) is Unauthorized
    assert expected in str(error)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_silent_port(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "OPEN_TIMEOUT_S", 0.3)
    with listening() as (_, address), pytest.raises(ConnectionFailed) as refused:
        run(nni.aconnect(f"{scheme}://{address}"))
    assert str(refused.value).startswith(f"A program at {address} accepts connections, but does not answer as an nnint")


def test_a_full_accept_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "OPEN_TIMEOUT_S", 0.5)
    with listening(backlog=0) as (_, address), contextlib.ExitStack() as stack:
        host, _, port = address.rpartition(":")
        for _ in range(4):  # the queue is full then, and further requests are dropped
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, int(port)))
        with pytest.raises(ConnectionFailed, match=r"does not answer\. Check that the machine is on"):
            run(nni.aconnect(address))


@pytest.mark.parametrize("status", [403, 421])
def test_a_host_that_is_not_allowed(status: int) -> None:
    output = "The host name evil.example is not allowed for any origin. Add --allow-host evil.example to serve."
    with http_server(answers(status, output)) as address:
        error = why_not(address)
    assert type(error) is ConnectionFailed
    assert str(error) == output


def test_an_error_page_of_a_proxy_is_attributed_to_the_proxy() -> None:
    with http_server(answers(503, "<html>Service Unavailable</html>", "text/html")) as address:
        error = why_not(address)
    assert type(error) is ConnectionFailed
    assert "A proxy answers at" in str(error)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"\x15\x03\x01\x00\x02\x02\x16"])
def test_a_server_of_another_protocol(greeting: bytes) -> None:
    with greeting_server(greeting) as address:
        error = why_not(address)
    assert type(error) is ConnectionFailed
    assert f"The program at {address} is not an nninteractive-ws server" in str(error)


def test_no_tls_on_the_server() -> None:
    with greeting_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        error = why_not(f"wss://{address}")
    assert type(error) is ConnectionFailed
    assert str(error).startswith(
        f"The TLS handshake with {address} failed. If the server does not use TLS, write ws://"
    )


def test_other_errors() -> None:
    mine = InternalError("as it is")
    assert connection_error(mine, BOX) is mine
    assert str(connection_error(OSError("the cable was eaten"), BOX)) == (
        "The connection to box:99 failed. Details: the cable was eaten."
    )
    assert str(connection_error(ssl.SSLError(1, "handshake failure"), BOX)).endswith("Details: handshake failure.")
    assert str(connection_error(ssl.SSLCertVerificationError("odd"), BOX)).startswith("The certificate of the server")
    assert 'DNS lookup of "box" failed (label too long)' in str(connection_error(UnicodeError("label too long"), BOX))
