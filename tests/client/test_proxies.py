"""Proxies from the environment, with a real proxy: the variable that is used, and the errors."""

import socket
import sys

from helpers.connect_proxy import connect_proxy, unset_proxies
from helpers.end_to_end import run
from helpers.http import free_port
from helpers.threads import greeting_server
import pytest

import nninteractive_ws as nni
from nninteractive_ws.client import reconnect
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.proxies import proxy_for
from nninteractive_ws.errors import ConnectionFailed, Unauthorized

SERVER, SECRET = "gpu-box.invalid:1528", "hunter2-S3cret"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    unset_proxies(monkeypatch)


def failure(address: str = SERVER) -> str:
    """Return the error of a connection. Neither the message nor its cause contains the password."""
    with pytest.raises(ConnectionFailed) as refused:
        run(nni.aconnect(address))
    assert SECRET not in f"{refused.value!r} {refused.value.__cause__!r}"
    return str(refused.value)


# ---- the variable ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "WS_PROXY"])
def test_the_error_of_an_unreachable_proxy_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    place = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv(variable, f"http://anna:{SECRET}@{place}")
    assert failure() == (
        f"The proxy http://{place} (set by the environment variable {variable}) cannot be reached (connection "
        "refused). Correct or remove it. If the server is reached without a proxy, set NO_PROXY=gpu-box.invalid."
    )


def test_the_lower_case_variable_is_preferred_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://other:1")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    setting = proxy_for(parse_address(SERVER))
    assert setting is not None
    assert (setting.place, setting.source) == ("http://proxy:3128", "the environment variable http_proxy")


def test_a_variable_of_the_scheme_is_preferred_to_all_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://secure:2")
    for address in (SERVER, f"wss://{SERVER}"):
        setting = proxy_for(parse_address(address))
        assert setting is not None
        assert setting.proxy.host == "secure"


@pytest.mark.parametrize(
    ("no_proxy", "address"),
    [("gpu-box.invalid", SERVER), (".invalid", SERVER), ("*", SERVER), ("", "127.0.0.1:1528"), ("", "localhost")],
)
def test_a_server_that_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str, address: str) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(parse_address(address)) is None


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_the_hint_keeps_other_exceptions(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv(name, "localhost")
    assert failure().endswith(f"add gpu-box.invalid to the environment variable {name}.")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("proxy:3128", "it has no scheme"),
        ("proxy", "it has no scheme"),
        (f"anna:{SECRET}@proxy:3128", "it has no scheme"),
        ("ftp://proxy:3128", "its scheme is none of http"),
        ("ws://proxy:3128", "its scheme is none of http"),
        ("http://proxy:3128/path", "it has more than a host and a port"),
        (f"http://anna:{SECRET}#1@proxy", "it has"),
        ("http://anna@proxy:3128", "it has a user name, but no password"),
        ("http://:3128", "it has no host"),
        ("http://proxy:port", "its host, port, user name or password is invalid"),
        ("http://proxy:99999", "its host, port, user name or password is invalid"),
        (f"http://anna:%ff{SECRET}@proxy:1", "its host, port, user name or password is invalid"),
    ],
)
def test_an_invalid_proxy_is_explained(monkeypatch: pytest.MonkeyPatch, url: str, fault: str) -> None:
    monkeypatch.setenv("all_proxy", url)
    message = failure()
    assert message.startswith(f"The proxy address in the environment variable all_proxy is invalid, because {fault}")
    assert "Expected one such as http://proxy:3128." in message


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4"])
def test_a_socks_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://anna:{SECRET}@proxy:1080")
    message = failure()
    assert message.startswith(f"The SOCKS proxy {scheme}://proxy:1080 (set by the environment variable ALL_PROXY)")
    assert "pip install python-socks" in message


# ---- behavior of the proxy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "user", "expected"),
    [
        (407, "", "It requires a user name and a password."),
        (407, f"anna:{SECRET}@", "It does not accept the user name and password"),
        (403, "", "Ask its administrator to allow it."),
        (405, "", "Ask its administrator to allow it."),
        (502, "", "It cannot reach the server."),
        (504, "", "It cannot reach the server."),
    ],
)
def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch, status: int, user: str, expected: str) -> None:
    with connect_proxy(answer=f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()) as proxy:
        monkeypatch.setenv("https_proxy", f"http://{user}{proxy.place}")
        message = failure()
    assert f"The proxy http://{proxy.place} (set by the environment variable https_proxy) refuses" in message
    assert f"{SERVER} (HTTP {status}). {expected}" in message
    assert "NO_PROXY=gpu-box.invalid" in message


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x01\x02", b"HTTP/1.1 "])
def test_a_proxy_of_another_protocol(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(reconnect, "OPEN_TIMEOUT_S", 0.3)
    with connect_proxy(answer=answer) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
        message = failure()
    assert f"The proxy http://{proxy.place} (set by the environment variable http_proxy) did not connect to" in message


def test_a_proxy_whose_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://no-such-proxy.invalid:3128")
    assert "The proxy http://no-such-proxy.invalid:3128 (set by" in failure()


@pytest.mark.parametrize("address", [SERVER, f"wss://{SERVER}"])
def test_a_proxy_without_tls(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with connect_proxy(answer=b"HTTP/1.1 400 Bad Request\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", f"https://{proxy.place}")
        # The proxy waits for a request, which the first bytes of TLS are not.
        monkeypatch.setattr(reconnect, "OPEN_TIMEOUT_S", 0.3)
        assert f"The proxy https://{proxy.place} (set by" in failure(address)


def test_errors_of_the_server_behind_a_proxy_do_not_name_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with greeting_server(b"SSH-2.0-OpenSSH_9.6\r\n") as target, connect_proxy(target) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
        message = failure()
    assert message.startswith(f"The program at {SERVER} is not an nninteractive-ws server.")
    assert f"The connection went through the proxy http://{proxy.place} (set by" in message
    monkeypatch.setattr(reconnect, "OPEN_TIMEOUT_S", 0.3)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, connect_proxy(f"127.0.0.1:{silent.getsockname()[1]}") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
        assert failure().startswith(f"A program at {SERVER} accepts connections, but does not answer as")


@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
def test_a_session_through_a_proxy(monkeypatch: pytest.MonkeyPatch, server: str, variable: str) -> None:
    with connect_proxy(server.removeprefix("ws://")) as proxy:
        monkeypatch.setenv(variable, f"http://anna:{SECRET}@{proxy.place}")
        with nni.connect("gpu-box:1528") as session:
            assert session.server.model.name == "demo"
    (request,) = proxy.requests
    assert request.startswith("CONNECT gpu-box:1528 ")
    assert "Proxy-Authorization: Basic" in request


def test_an_invalid_token_is_reported_before_connecting_to_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_proxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
        with pytest.raises(Unauthorized):
            run(nni.aconnect(SERVER, token="a\nb"))
    assert proxy.requests == []
