"""Proxy for a server, from the computer's settings."""

from websockets.exceptions import InvalidProxy
from websockets.proxy import Proxy, get_proxy, parse_proxy
from websockets.uri import parse_uri

from nninteractive_ws.client.address import Address
from nninteractive_ws.errors import ConnectionFailed


def proxy_url(address: Address) -> str | None:
    """Return the URL of the proxy for an address, or None. It may hold a password.

    Raises ConnectionFailed if the URL is invalid.
    """
    url = None if address.is_loopback else get_proxy(parse_uri(address.url))
    if url is not None and _parse(url) is None:
        # Raised here, because the parser's own error repeats the URL.
        raise ConnectionFailed(
            "The proxy address in this computer's settings is invalid. It is not repeated here, because it may hold a "
            "password. Enter one such as http://proxy:3128 in the settings, or in the environment variable HTTPS_PROXY "
            f"or ALL_PROXY. {no_proxy_hint(address)}"
        )
    return url


def proxy_for(address: Address) -> Proxy | None:
    """Return the parsed proxy for an address, or None. Raises as :func:`proxy_url`."""
    url = proxy_url(address)
    return None if url is None else _parse(url)


def no_proxy_hint(address: Address) -> str:
    """Return the hint for a server that is reached without a proxy."""
    return f"If the server is reached without a proxy, set NO_PROXY={address.host}."


def _parse(url: str) -> Proxy | None:
    try:
        return parse_proxy(url)
    except (InvalidProxy, ValueError):
        return None
