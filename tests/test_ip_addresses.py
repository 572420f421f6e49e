"""IP addresses as hosts."""

from ipaddress import ip_address

import pytest

from nninteractive_ws.ip_addresses import is_loopback, parse_ip


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "gpu-box"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_names_are_not_addresses() -> None:
    assert parse_ip("10.0.0.1") == ip_address("10.0.0.1")
    assert parse_ip("gpu-box") is None
