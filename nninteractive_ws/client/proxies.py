"""The proxy for a server, from the computer's settings."""

from websockets.exceptions import InvalidProxy
from websockets.proxy import Proxy, get_proxy, parse_proxy
from websockets.uri import parse_uri

from nninteractive_ws.client.address import Address
from nninteractive_ws.errors import ConnectionFailed


def proxy_url(address: Address) -> str | None:
    """The URL of the proxy for an address, from the settings. It may hold a password. None: no proxy.

    Raises ConnectionFailed if the URL is invalid.
    """
    named = None if address.is_loopback else get_proxy(parse_uri(address.url))
    if named is not None and _parse(named) is None:
        # Raised here, because the parser's own error repeats the URL.
        raise ConnectionFailed(
            "This computer's settings name a proxy by an invalid address, which is not repeated here because it may "
            "hold a password. One looks like http://proxy:3128. Correct it in the settings, or in the environment "
            f"variable HTTPS_PROXY or ALL_PROXY. {no_proxy_hint(address)}"
        )
    return named


def proxy_for(address: Address) -> Proxy | None:
    """The parts of :func:`proxy_url`."""
    named = proxy_url(address)
    return None if named is None else _parse(named)


def no_proxy_hint(address: Address) -> str:
    """The hint for a server that is reached without a proxy."""
    return f"If the server is reached without a proxy, except it: NO_PROXY={address.host}."


def _parse(url: str) -> Proxy | None:
    try:
        return parse_proxy(url)
    except (InvalidProxy, ValueError):
        return None
