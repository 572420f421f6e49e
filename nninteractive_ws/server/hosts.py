"""Requests of web pages: the host names and origins that a server accepts.

A server without tokens accepts only some host names, as protection against DNS rebinding.

A web page of ``attacker.example`` can read the responses of a local server once that name resolves to 127.0.0.1,
because the browser then takes both for one site. The page cannot change the Host header, which still has that name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
import re
import socket
import threading

from websockets.datastructures import Headers

from nninteractive_ws.ip_addresses import parse_ip

_HOST = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::\d*)?", re.ASCII)


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
        name = _normalize(match["v6"] or match["name"] or "")
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

    ``hosts``: allowed host names of a server without tokens, in addition to those of :class:`AllowedHosts`; None: all.
    With tokens, DNS rebinding reveals only /healthz (status, model, device, number of sessions), because all else needs
    a token. Such servers have many names, through reverse proxies or from outside a container, and nobody should have
    to list them. ``origins``: allowed origins.
    """

    def __init__(self, hosts: Iterable[str] | None, origins: Iterable[str]) -> None:
        self._hosts = None if hosts is None else AllowedHosts(hosts)
        self._origins = frozenset(origins)

    def refusal(self, headers: Headers) -> Refusal | None:
        """Return why a request is refused; None: it is accepted."""
        if self._hosts is not None and (host := self._hosts.refused(headers)) is not None:
            return Refusal(HTTPStatus.MISDIRECTED_REQUEST, _host_message(host), f"unknown host {host:.260}")
        foreign = [origin for origin in headers.get_all("Origin") if origin not in self._origins]
        if foreign:
            message = (
                "This server does not accept web pages of this origin. To allow them, start it with --allow-origin.\n"
            )
            return Refusal(HTTPStatus.FORBIDDEN, message, f"web page of {foreign[0]:.260}")
        return None


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
