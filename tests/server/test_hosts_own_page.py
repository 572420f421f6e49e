"""The page that a server has itself may use it, and no other page: the rules of the guard."""

from http import HTTPStatus

import pytest
from websockets.datastructures import Headers

from nninteractive_ws.server.hosts import WebPageGuard, page_schemes

PLAIN, TLS = page_schemes(has_tls=False), page_schemes(has_tls=True)


def headers(*fields: tuple[str, str]) -> Headers:
    found = Headers()
    for name, value in fields:
        found[name] = value
    return found


def status(guard: WebPageGuard, host: str, origin: str) -> HTTPStatus | None:
    refusal = guard.refusal(headers(("Host", host), ("Origin", origin)))
    return None if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:1528", "http://127.0.0.1:1528"),
        ("localhost:1528", "http://localhost:1528"),
        ("LOCALHOST.:1528", "http://localhost:1528"),
        ("[::1]:1528", "http://[::1]:1528"),
        ("127.0.0.1:40123", "http://127.0.0.1:40123"),  # the port of an SSH tunnel
        ("127.0.0.1", "http://127.0.0.1"),
        ("127.0.0.1:80", "http://127.0.0.1"),
        ("localhost", "https://localhost"),  # behind a proxy with TLS
        ("localhost:443", "https://localhost"),
    ],
)
def test_the_own_page_is_accepted_on_loopback(host: str, origin: str) -> None:
    assert status(WebPageGuard(["127.0.0.1"], [], PLAIN), host, origin) is None
    assert status(WebPageGuard(None, [], PLAIN), host, origin) is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:1528", "http://127.0.0.1:8888"),  # a page at another port of this machine
        ("127.0.0.1:1528", "http://127.0.0.1"),
        ("127.0.0.1", "http://127.0.0.1:1528"),
        ("127.0.0.1:1528", "http://localhost:1528"),
        ("localhost:80", "https://localhost"),
        ("127.0.0.1:1528", "https://attacker.example"),
        ("127.0.0.1:1528", "http://127.0.0.1.attacker.example:1528"),
        ("127.0.0.1:1528", "http://attacker.example@127.0.0.1:1528"),
        ("127.0.0.1:1528", "http://127.0.0.1:1528/"),
        ("127.0.0.1:1528", "http://127.0.0.1:1528 http://127.0.0.1:1528"),
        ("127.0.0.1:1528", "file://127.0.0.1:1528"),
        ("127.0.0.1:1528", "ws://127.0.0.1:1528"),
        ("127.0.0.1:1528", "chrome-extension://127.0.0.1:1528"),
        ("127.0.0.1:1528", "null"),
        ("127.0.0.1:1528", ""),
        ("", "http://"),
        ("null", "null"),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_foreign_pages_are_refused(host: str, origin: str, tokens: bool) -> None:
    assert status(WebPageGuard(None if tokens else ["127.0.0.1"], [], PLAIN), host, origin) in (403, 421)


@pytest.mark.parametrize("host", ["attacker.example:1528", "localhost.attacker.example:1528"])
def test_dns_rebinding_is_refused(host: str) -> None:
    """The page and the request have the same name, which the attacker's DNS server resolves to this machine."""
    assert status(WebPageGuard(["127.0.0.1"], [], PLAIN), host, f"http://{host}") == 421


@pytest.mark.parametrize("host", ["gpu-box:1528", "192.168.3.4:1528", "0.0.0.0:1528", "app.localhost:1528"])
def test_without_tokens_the_own_page_is_accepted_only_on_loopback(host: str) -> None:
    """Whoever controls the names of a network could open a page of their own at each allowed name."""
    guard = WebPageGuard(["gpu-box"], [], PLAIN)
    refusal = guard.refusal(headers(("Host", host), ("Origin", f"http://{host}")))
    assert refusal is not None
    assert refusal.status == 403
    assert f"--allow-origin http://{host}." in refusal.message
    assert "--token-file" in refusal.message
    assert guard.page_refusal(headers(("Host", host))) == refusal.message


@pytest.mark.parametrize(
    ("host", "origin"),
    [("gpu-box:1528", "http://gpu-box:1528"), ("gpu-box.example.org", "https://gpu-box.example.org")],
)
def test_with_tokens_the_own_page_is_accepted_at_every_name(host: str, origin: str) -> None:
    guard = WebPageGuard(None, [], PLAIN)
    assert status(guard, host, origin) is None
    assert guard.page_refusal(headers(("Host", host))) is None


def test_a_server_with_tls_accepts_only_its_page_over_tls() -> None:
    guard = WebPageGuard(None, [], TLS)
    assert status(guard, "gpu-box", "https://gpu-box") is None
    assert status(guard, "gpu-box", "http://gpu-box") == 403
    assert status(guard, "gpu-box:1528", "http://gpu-box:1528") == 403


@pytest.mark.parametrize("tokens", [False, True])
def test_a_server_without_a_page_accepts_none(tokens: bool) -> None:
    guard = WebPageGuard(None if tokens else ["127.0.0.1"], ["https://viewer.example"])
    assert status(guard, "127.0.0.1:1528", "http://127.0.0.1:1528") == 403
    assert status(guard, "127.0.0.1:1528", "https://viewer.example") is None


def test_allowed_origins_are_accepted_whatever_the_host() -> None:
    guard = WebPageGuard(["gpu-box"], ["https://viewer.example", "https://gpu-box"], PLAIN)
    assert status(guard, "127.0.0.1:1528", "https://viewer.example") is None
    assert status(guard, "gpu-box", "https://gpu-box") is None
    assert guard.page_refusal(headers(("Host", "gpu-box"))) is None
    assert guard.page_refusal(headers(("Host", "gpu-box:8443"))) is not None


@pytest.mark.parametrize(
    "fields",
    [
        (("Host", "127.0.0.1:1"), ("Host", "127.0.0.1:1"), ("Origin", "http://127.0.0.1:1")),
        (("Host", "127.0.0.1:1"), ("Origin", "http://127.0.0.1:1"), ("Origin", "http://127.0.0.1:1")),
        (("Host", "127.0.0.1:1"), ("Origin", "http://127.0.0.1:1"), ("Origin", "https://viewer.example")),
        (("Host", "127.0.0.1:1"), ("Origin", "https://attacker.example"), ("X-Forwarded-Host", "attacker.example")),
        (("Origin", "http://127.0.0.1:1"),),
    ],
)
def test_ambiguous_requests_are_refused(fields: tuple[tuple[str, str], ...]) -> None:
    refusal = WebPageGuard(None, ["https://viewer.example"], PLAIN).refusal(headers(*fields))
    assert refusal is not None
    assert refusal.status == 403


def test_requests_without_an_origin_are_accepted() -> None:
    assert WebPageGuard(["127.0.0.1"], [], PLAIN).refusal(headers(("Host", "127.0.0.1:1528"))) is None


@pytest.mark.parametrize("origin", ["https://x.example/<script>", "https://x y", "https://caf\u00e9.example"])
def test_unusual_origins_are_not_repeated(origin: str) -> None:
    refusal = WebPageGuard(["127.0.0.1"], [], PLAIN).refusal(headers(("Host", "localhost"), ("Origin", origin)))
    assert refusal is not None
    assert origin not in refusal.message
