"""Parsing of hosts as IP addresses."""

from ipaddress import IPv4Address, IPv6Address, ip_address


def parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    """Return a host as an IP address, or None if it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether a host is on loopback, which only this machine reaches. "", 0.0.0.0 and :: are not."""
    address = parse_ip(host)
    return host.lower() == "localhost" if address is None else address.is_loopback
