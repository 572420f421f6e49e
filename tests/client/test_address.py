"""Server addresses as users write them."""

import pytest

from nninteractive_ws.client.address import Address, parse_address
from nninteractive_ws.errors import (
    BadAddress,
)

BOX = Address(False, "box", 99)


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
def test_valid_addresses(written: str, url: str) -> None:
    assert parse_address(written).url == url
    assert str(parse_address(url)) == url


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", "address is empty"),
        ("   ", "address is empty"),
        ("gpu-box:port", "address is invalid"),
        ("gpu-box:99999", "address is invalid"),
        ("gpu-box:0", "address is invalid"),
        ("gpu-box:-1", "address is invalid"),
        ("my gpu box", "address is invalid"),
        ("ftp://gpu-box", "address is invalid"),
        ("ws://", "address is invalid"),
        ("://", "address is invalid"),
        (":1528", "address is invalid"),
        ("http://[::1", "address is invalid"),
        ("ws:/gpu-box", "address is invalid"),
        ("gpu-box:", "address is invalid"),
        ("gpu;box", "address is invalid"),
        ("-gpu-box", "address is invalid"),
        ("ws://gpu\tbox", "address is invalid"),
        ("ws://[fe80::1%a;b]", "address is invalid"),
        ("ws://gpu-box/?token=secret", "token"),
        ("gpu-box/#secret", "token"),
        ("gpu-box/nws_secret", "token"),
        ("user:secret@gpu-box", "token"),
        ("ws://:secret@gpu-box:1528", "token"),
    ],
)
def test_invalid_addresses(written: str, expected: str) -> None:
    with pytest.raises(BadAddress, match=r'^[A-Z"]') as caught:
        parse_address(written)
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("10.0.0.1", False), ("box", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert Address(False, host, 1).is_loopback is loopback
    assert Address(False, host, 1).is_literal is (host not in ("localhost", "box"))
