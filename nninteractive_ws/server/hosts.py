"""Requests of web pages: the host names and origins that a server accepts.

A server without tokens accepts only some host names, as protection against DNS rebinding.

A web page of ``attacker.example`` can read the responses of a local server once that name resolves to 127.0.0.1,
because the browser then takes both for one site. The page cannot change the Host header, which still has that name.

The page that the gateway serves may use this gateway. It is recognized by an Origin that is the server's own, which is
the address in the Host header.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from http import HTTPStatus
import re
import socket
import threading

from websockets.datastructures import Headers

from nninteractive_ws.ip_addresses import is_loopback, parse_ip

_HOST = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>\d*))?", re.ASCII)
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[\w.:\[\]-]{1,253})", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class AllowedHosts:
    """Allowed hosts: loopback names, IP addresses (rebinding needs a name), this machine's names, and given names."""

    def __init__(self, names: Iterable[str]) -> None:
        own = socket.gethostname().lower()
        self._names = {*(_normalize(name) for name in names if name), own, f"{own.partition('.')[0]}.local"}
        # On a thread, because without a network a DNS lookup can take longer than the start of the server should.
        threading.Thread(target=self._add_full_name, name="own full name", daemon=True).start()

    def _add_full_name(self) -> None:
        self._names = self._names | {_normalize(socket.getfqdn())}

    def refused(self, headers: Headers) -> str | None:
        """Return a Host header that is not allowed, or None. Browsers always send the header."""
        return next((host for host in headers.get_all("Host") if not self._allows(host)), None)

    def _allows(self, host: str) -> bool:
        if (match := _HOST.fullmatch(host)) is None:
            return False
        name = _name(match)
        return name in self._names or name == "localhost" or name.endswith(".localhost") or parse_ip(name) is not None


def _normalize(name: str) -> str:
    return name.strip().lower().removesuffix(".")


@dataclass(frozen=True)
class Refusal:
    """The refusal of a request. ``message``: for the client. ``reason``: for the log."""

    status: HTTPStatus
    message: str
    reason: str


class WebPageGuard:
    """Refuses requests of foreign web pages, because a page in a browser could reach even a server on loopback.

    ``hosts``: allowed host names of a server without tokens, in addition to those of :class:`AllowedHosts`; None: all,
    on a server with tokens. With tokens, DNS rebinding reveals only /healthz (status, model, device, number of
    sessions), because all else needs a token. Such servers have many names, through reverse proxies or from outside a
    container, and nobody should have to list them. ``origins``: allowed origins. ``page_schemes``: schemes at which
    this server's own page may be open, see :func:`page_schemes`; empty: the server has no page.
    """

    def __init__(self, hosts: Iterable[str] | None, origins: Iterable[str], page_schemes: Collection[str] = ()) -> None:
        self._hosts = None if hosts is None else AllowedHosts(hosts)
        self._origins = frozenset(origins)
        self._page_schemes = page_schemes

    def refusal(self, headers: Headers) -> Refusal | None:
        """Return why a request is refused; None: it is accepted."""
        if self._hosts is not None and (host := self._hosts.refused(headers)) is not None:
            return Refusal(HTTPStatus.MISDIRECTED_REQUEST, _host_message(host), f"unknown host {host:.260}")
        foreign = [origin for origin in headers.get_all("Origin") if origin not in self._origins]
        if not foreign:
            return None
        own = self._is_own_origin(headers)
        if own and self._is_safe_page_host(headers["Host"]):
            return None
        message = _own_page_message(foreign[0]) if own else _origin_message(foreign[0])
        return Refusal(HTTPStatus.FORBIDDEN, message, f"web page of {foreign[0]:.260}")

    def page_refusal(self, headers: Headers) -> str | None:
        """Return why this server's page, loaded by a request, could not use the server; None: it could.

        A request for a page has no Origin. Behind a proxy that passes on another Host, the answer may be wrong.
        """
        (host, *_) = headers.get_all("Host") or [""]
        # The scheme of the page is unknown behind a proxy, so that of any allowed origin counts.
        pages = [f"{scheme}://{host.lower()}" for scheme in self._page_schemes]
        if self._is_safe_page_host(host) or not self._origins.isdisjoint(pages):
            return None
        return _own_page_message(pages[0])

    def _is_own_origin(self, headers: Headers) -> bool:
        """Return whether a request is from a page at the address that its Host header has.

        Only hosts and ports are compared with the Host header. Its scheme is not known: a proxy may have decrypted TLS,
        and X-Forwarded-Proto may be from anybody. So a plain server also accepts a page at the other default port of
        its host. Such a page gains nothing without a token, because browsers send no credentials by themselves here.
        """
        hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
        if len(hosts) != 1 or len(origins) != 1 or (origin := _ORIGIN.fullmatch(origins[0])) is None:
            return False
        if origin["scheme"] not in self._page_schemes:
            return False
        own = _host_and_port(hosts[0], origin["scheme"])
        return own is not None and own == _host_and_port(origin["host"], origin["scheme"])

    def _is_safe_page_host(self, host: str) -> bool:
        """Return whether a page at this host is this server's own, and not one that reached it by DNS rebinding.

        With tokens it does not matter, because a foreign page has none. Without tokens, only loopback addresses and
        localhost are safe. A hostile DNS server can resolve any other name to this server.
        """
        match = _HOST.fullmatch(host)
        return self._hosts is None or (match is not None and is_loopback(_name(match)))


def page_schemes(has_tls: bool) -> tuple[str, ...]:
    """Return the schemes at which the page of a server may be open. A proxy may add TLS to a server without it."""
    return ("https",) if has_tls else ("http", "https")


def _name(host: re.Match[str]) -> str:
    return _normalize(host["v6"] or host["name"] or "")


def _host_and_port(host: str, scheme: str) -> tuple[str, str] | None:
    """Return the name and the port of a Host header or of an origin with a scheme; None: invalid."""
    if (match := _HOST.fullmatch(host)) is None or not _name(match):
        return None
    return _name(match), match["port"] or _DEFAULT_PORTS[scheme]


def _origin_message(origin: str) -> str:
    """Return the sentence for an origin that is not allowed. Unusual characters are not repeated."""
    name = f" {origin}" if _ORIGIN.fullmatch(origin) else ""
    return f"This server does not accept web pages of this origin. To allow them, start it with --allow-origin{name}.\n"


def _own_page_message(origin: str) -> str:
    """Return the sentence for the page of a server without tokens at a host that is not loopback."""
    name = f" {origin}" if _ORIGIN.fullmatch(origin) else ""
    return (
        "A server without tokens accepts its own page only at localhost or 127.0.0.1, not at this address. Start the "
        f"server with --token-file, or allow the page's origin, as in --allow-origin{name}.\n"
    )


def _host_message(host: str) -> str:
    """Return the sentence for a Host header that is not allowed. Unusual characters are not repeated."""
    if not host.partition(":")[0].strip():
        return "The Host header of this request has no host name. Set it to the server's IP address or to localhost.\n"
    valid = re.fullmatch(r"([\w.-]{1,253})(?::\d*)?", host, re.ASCII)
    problem, name = (f"the host name {valid[1]}", valid[1]) if valid else ("the host name of this request", "NAME")
    return (
        f"This server does not accept {problem}. Connect by IP address or as localhost, or start the server with "
        f"--allow-host {name}.\n"
    )
