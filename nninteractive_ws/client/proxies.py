"""Proxy for a server, from the computer's settings."""

from dataclasses import dataclass, field
import importlib.util
import os
from urllib.parse import urlsplit
import urllib.request

from websockets.exceptions import InvalidProxy
from websockets.proxy import Proxy, parse_proxy

from nninteractive_ws.client.address import Address, bracketed
from nninteractive_ws.errors import ConnectionFailed
from nninteractive_ws.redaction import printable

_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


@dataclass(frozen=True)
class ProxySetting:
    """A proxy, and the setting that names it. ``url`` and ``proxy`` may hold a password, ``str()`` does not."""

    url: str = field(repr=False)
    source: str
    proxy: Proxy = field(repr=False)

    @property
    def place(self) -> str:
        """The proxy's address without user name and password."""
        return printable(f"{self.proxy.scheme}://{bracketed(self.proxy.host)}:{self.proxy.port}")

    @property
    def is_socks(self) -> bool:
        return self.proxy.scheme.startswith("socks")

    def __str__(self) -> str:
        return f"{self.place} (set by {self.source})"

    # ---- error messages -------------------------------------------------------------------------------------------

    def unreachable(self, address: Address, reason: str) -> str:
        """Return the message for a proxy to which there is no connection."""
        return f"The proxy {self} cannot be reached ({reason}). Correct or remove it. {no_proxy_hint(address)}"

    def refused(self, address: Address, status: int) -> str:
        """Return the message for a proxy that answers with this HTTP status instead of connecting to the server."""
        where = f"{address.host}:{address.port}"
        if status == 407:
            remedy = (
                "It does not accept the user name and password of that setting."
                if self.proxy.username
                else f"It requires a user name and a password. Add them to its URL: USER:PASSWORD@{self.proxy.host}."
            )
        elif status in (502, 503, 504):
            remedy = (
                "It cannot reach the server. Check the server's address, and that the proxy can resolve its name and "
                "reach its machine."
            )
        else:
            remedy = "Ask its administrator to allow it."
        return f"The proxy {self} refuses connections to {where} (HTTP {status}). {remedy} {no_proxy_hint(address)}"

    def failed(self, address: Address, reason: str) -> str:
        """Return the message for a proxy that did not connect to the server for another reason."""
        where = f"{address.host}:{address.port}"
        return (
            f"The proxy {self} did not connect to {where} ({reason}). Check that it is a proxy of this kind, and that "
            f"it can reach the server. {no_proxy_hint(address)}"
        )


def proxy_for(address: Address) -> ProxySetting | None:
    """Return the proxy for an address, or None. Raises ConnectionFailed if the setting cannot be used."""
    if address.is_loopback or urllib.request.proxy_bypass(f"{address.host}:{address.port}"):
        return None
    kinds = ("wss", "socks", "https", "all") if address.secure else ("ws", "socks", "https", "http", "all")
    settings = urllib.request.getproxies()
    kind = next((kind for kind in kinds if settings.get(kind)), None)
    if kind is None:
        return None
    url, source = settings[kind].strip(), _source(kind)
    if kind == "socks" and url.startswith("http://"):  # as macOS and Windows write it
        url = f"socks5h://{url.removeprefix('http://')}"
    setting = ProxySetting(url, source, _parse(url, source, address))
    if setting.is_socks and importlib.util.find_spec("python_socks") is None:
        raise ConnectionFailed(
            f"The SOCKS proxy {setting} needs the package python-socks. Run: pip install python-socks. "
            f"{no_proxy_hint(address)}"
        )
    return setting


def no_proxy_hint(address: Address) -> str:
    """Return the hint for a server that is reached without a proxy."""
    # The lower-case name is preferred, so that a change of the other one would have no effect.
    name = next((name for name in ("no_proxy", "NO_PROXY") if os.environ.get(name)), None)
    if name is not None:
        return f"If the server is reached without a proxy, add {address.host} to the environment variable {name}."
    return f"If the server is reached without a proxy, set NO_PROXY={address.host}."


def _source(kind: str) -> str:
    """Return the name of the setting that urllib uses for a kind of URL."""
    name = f"{kind}_proxy"
    candidates = [name, *(variable for variable in os.environ if variable.lower() == name)]
    variable = next((candidate for candidate in candidates if os.environ.get(candidate)), None)
    return "this computer's settings" if variable is None else f"the environment variable {variable}"


def _parse(url: str, source: str, address: Address) -> Proxy:
    try:
        if (fault := _fault(url)) is None:
            return parse_proxy(url)
    except (InvalidProxy, ValueError):
        fault = "its host, port, user name or password is invalid"
    # Outside of the except clause, because the parser's error repeats the URL.
    raise ConnectionFailed(
        f"The proxy address in {source} is invalid, because {fault}. Expected one such as http://proxy:3128. It is not "
        f"repeated here, because it may hold a password. {no_proxy_hint(address)}"
    )


def _fault(url: str) -> str | None:
    """Return what is wrong with a proxy's URL, without any part of it; None if nothing is. Raises ValueError."""
    if "://" not in url:
        return "it has no scheme such as http://"
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        return f"its scheme is none of {', '.join(_SCHEMES)}"
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return "it has more than a host and a port (in a password, write / as %2F, ? as %3F and # as %23)"
    if parts.username is not None and parts.password is None:
        return "it has a user name, but no password"
    return None if parts.hostname and parts.port != 0 else "it has no host, or no valid port"
