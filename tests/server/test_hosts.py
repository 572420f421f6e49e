"""Requests that a web page can cause in a browser: foreign hosts and origins, over real HTTP."""

from collections.abc import Iterator
import http.client
from pathlib import Path
import socket
from typing import Any

from helpers.end_to_end import PlainClient, run, server_process
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from nninteractive_ws.server.access import add_user

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def ask(address: str, path: str, *headers: tuple[str, str]) -> tuple[int, http.client.HTTPMessage, str]:
    """Send a request. Return status, headers and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", int(address.rpartition(":")[2]), timeout=30)
    try:
        connection.putrequest("GET", path, skip_host=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, "" if answer.status == 101 else answer.read().decode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def named() -> Iterator[str]:
    with server_process("--allow-host", "gpu-box.example.org", "--allow-host", "Ward7", "--log-level", "error") as own:
        yield own.address


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/", "/healthz?x"])
@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "attacker.example:1528",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example:80",
        "attackerlocalhost",
        "127.0.0.1@attacker.example",
        "[attacker.example]:1528",
        "[::1]attacker.example",
        "localhost:1528:1528",
        "2130706433.example",
        "caf\u00e9.example",
        "gpu-box.example.org",
        "a b",
    ],
)
def test_a_foreign_host_is_refused(server: str, host: str, path: str, upgrade: bool) -> None:
    status, _, output = ask(server, path, ("Host", host), *(UPGRADE.items() if upgrade else ()))
    assert status == 421
    assert "--allow-host" in output
    assert "origin" not in output.lower()  # another error


@pytest.mark.parametrize("host", ["", " ", ":1528"])
def test_an_empty_host_is_refused(server: str, host: str) -> None:
    status, _, output = ask(server, "/healthz", ("Host", host))
    assert status == 421
    assert output == (
        "The Host header of this request has no host name. Set it to the server's IP address or to localhost.\n"
    )


def test_one_foreign_host_of_two_is_refused(server: str) -> None:
    for hosts in (["localhost", "attacker.example"], ["attacker.example", "localhost"]):
        status, _, _ = ask(server, "/healthz", *(("Host", host) for host in hosts))
        assert status in (400, 421)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:1528",
        "localhost.:1528",
        "a.localhost",
        "127.0.0.1",
        "127.0.0.1:9",
        "[::1]:1528",
        "[::1]",
        "192.168.3.4:1528",
        "[fe80::1%25eth0]:1528",
        socket.gethostname(),
        f"{socket.gethostname().upper()}:1528",
    ],
)
def test_own_names_and_addresses_are_accepted(server: str, host: str) -> None:
    assert ask(server, "/healthz", ("Host", host))[0] == 200


def test_a_missing_host_is_accepted(server: str) -> None:
    """Some health probes do. A browser cannot."""
    assert ask(server, "/healthz")[0] == 200


@pytest.mark.parametrize("host", ["gpu-box.example.org", "GPU-box.example.org.:443", "ward7", "localhost"])
def test_allowed_hosts_are_accepted(named: str, host: str) -> None:
    assert ask(named, "/healthz", ("Host", host))[0] == 200
    assert ask(named, "/", ("Host", host), *UPGRADE.items())[0] == 101
    assert ask(named, "/healthz", ("Host", f"x{host}"))[0] == 421


@pytest.mark.slow
def test_any_host_is_accepted_with_tokens(tmp_path: Path) -> None:
    token = add_user(tmp_path / "tokens", "alice")
    with server_process("--token-file", str(tmp_path / "tokens"), "--log-level", "error") as own:
        assert ask(own.address, "/healthz", ("Host", "gpu-box.example.org"))[0] == 200
        authorization = ("Authorization", f"Bearer {token}")
        assert ask(own.address, "/metrics", ("Host", "gpu-box.example.org"), authorization)[0] == 200
        assert ask(own.address, "/metrics", ("Host", "gpu-box.example.org"))[0] == 401


@pytest.mark.parametrize("origin", ["https://attacker.example", "null", "http://127.0.0.1:1528", ""])
@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/"])
def test_a_page_of_a_foreign_origin_is_refused(server: str, path: str, origin: str) -> None:
    status, _, output = ask(server, path, ("Host", "127.0.0.1"), ("Origin", origin))
    assert status == 403
    assert "--allow-origin" in output


@pytest.mark.slow
def test_a_page_of_an_allowed_origin_is_accepted() -> None:
    with server_process("--allow-origin", "https://viewer.example", "--log-level", "error") as own:
        host, allowed = ("Host", "localhost"), ("Origin", "https://viewer.example")
        assert ask(own.address, "/healthz", host, allowed)[0] == 200
        assert ask(own.address, "/", host, allowed, *UPGRADE.items())[0] == 101
        assert ask(own.address, "/healthz", host, allowed, ("Origin", "https://b.example"))[0] == 403


# ---- 401 --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("upgrade", [False, True])
def test_a_401_names_the_authentication_scheme(tmp_path: Path, upgrade: bool) -> None:
    """RFC 6750, section 3."""
    add_user(tmp_path / "tokens", "alice")
    more: list[Any] = list(UPGRADE.items()) if upgrade else []
    with server_process("--token-file", str(tmp_path / "tokens"), "--log-level", "critical") as own:
        for path in ("/metrics", "/"):
            status, headers, output = ask(own.address, path, ("Host", "localhost"), *more)
            assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="nninteractive-ws"')
            assert output.startswith("This server needs a token.")
            wrong = ("Authorization", "Bearer nws_wrong")
            status, headers, output = ask(own.address, path, ("Host", "localhost"), wrong, *more)
            expected = 'Bearer realm="nninteractive-ws", error="invalid_token"'
            assert (status, headers["WWW-Authenticate"]) == (401, expected)
            assert output.startswith("The server refused this token.")


def test_a_client_gets_the_reason_for_a_refused_host(server: str) -> None:
    async def dial() -> None:
        async with connect(f"ws://attacker.example:{server.rpartition(':')[2]}", host="127.0.0.1", proxy=None):
            pass

    with pytest.raises(InvalidStatus) as refused:
        run(dial())
    assert refused.value.response.status_code == 421
    assert b"--allow-host attacker.example" in bytes(refused.value.response.body or b"")


def test_a_client_connects_by_an_allowed_name(named: str) -> None:
    async def dial() -> None:
        address = f"ws://ward7:{named.rpartition(':')[2]}"
        async with connect(address, host="127.0.0.1", proxy=None) as websocket:
            await PlainClient(websocket).leave()

    run(dial())
