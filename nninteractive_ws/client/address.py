"""Server addresses: parsing and printing."""

from dataclasses import dataclass
import ipaddress
import re
import socket
from typing import TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from nninteractive_ws.errors import (
    BadAddress,
)
from nninteractive_ws.ip_addresses import is_loopback, parse_ip
from nninteractive_ws.redaction import TOKEN_PREFIX, redact

T = TypeVar("T")

DEFAULT_PORT = 1528

#: Address family of Unix sockets. Python has none on Windows, where no Address has a ``unix_socket``.
AF_UNIX: int = getattr(socket, "AF_UNIX", -1)

_SCHEMES = {"": "ws", "ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}


@dataclass(frozen=True)
class SshTarget:
    """A destination of ssh. ``host``: as passed to ssh, optionally with ``user@``; ``port``: of the ssh server, None:
    ssh's default; ``server_port``: of our server on that machine's loopback."""

    host: str
    port: int | None = None
    server_port: int = DEFAULT_PORT


@dataclass(frozen=True)
class Address:
    """Address of a server. ``path`` begins with a slash. ``ssh``: of a server behind a tunnel, whose ``host`` and
    ``port`` are then those at the remote end. ``unix_socket``: connections use this Unix socket, and ``host`` and
    ``port`` only name the server."""

    secure: bool
    host: str
    port: int
    path: str = "/"
    ssh: SshTarget | None = None
    unix_socket: str | None = None

    @property
    def url(self) -> str:
        if self.ssh is not None:
            user, at, host = self.ssh.host.rpartition("@")
            port = f":{self.ssh.port}" if self.ssh.port is not None else ""
            return f"ssh://{user}{at}{bracketed(host)}{port}/{self.ssh.server_port}"
        return f"{'wss' if self.secure else 'ws'}://{bracketed(self.host)}:{self.port}{self.path}"

    @property
    def is_literal(self) -> bool:
        """Whether ``host`` is an IP address and not a name."""
        return parse_ip(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return self.url


#: Host names: letters of any script, digits, dots, hyphens and underscores. ssh's configuration may pass host and user
#: to a shell (%h and %r in ProxyCommand and Match exec). So characters that are special to a shell, to ssh's patterns
#: or to its percent tokens are refused.
_HOST = re.compile(r"(?![-.])[\w.-]{1,253}")
_USER = re.compile(r"(?![-.])[\w.+-]{1,128}(@(?![-.])[\w.-]{1,128})?")
_ZONE = re.compile(r"[\w.-]{1,32}", re.ASCII)


def parse_address(text: str) -> Address:
    """Parse ``host``, ``host:port``, ``ws://…``, ``wss://…``, ``http://…``, ``https://…`` or
    ``ssh://[user@]host[:ssh-port][/server-port]``, which is reached through OpenSSH.

    The default scheme is ws. The default port is 1528, or 443 for https and wss. 0.0.0.0, a bind address that clients
    cannot connect to, means this machine. Raises BadAddress, which does not repeat the text, because it may hold a
    token or a password.
    """
    if not isinstance(text, str):
        raise BadAddress(f"The server address is of type {type(text).__name__}. Expected a text such as gpu-box:1528.")
    text = text.strip()
    if not text:
        raise BadAddress("The server address is empty. Enter one such as gpu-box:1528 or ws://127.0.0.1:1528.")
    if text.lower().startswith("ssh://"):
        target = _ssh_target(text)
        return Address(False, "127.0.0.1", target.server_port, ssh=target)
    if "@" in text or "?" in text or "#" in text or TOKEN_PREFIX in text.lower():
        raise BadAddress(
            "The server address contains a password or a token. Remove it from the address. Pass a token as the "
            "argument token, or in the environment variable NNINTERACTIVE_WS_TOKEN, which are not shown in logs."
        )
    parts = _split(text if "://" in text else f"//[{text}]" if _is_ipv6(text) else f"//{text}")
    if parts is None:
        raise _bad_address("it cannot be split into a host and a port from 1 to 65535")
    host, port = parts.hostname or "", parts.port
    if parts.scheme not in _SCHEMES:
        raise _bad_address("its scheme is none of ws, wss, http, https and ssh")
    if port == 0 or not _is_host(host):
        raise _bad_address("it has no valid host name or port")
    secure = _SCHEMES[parts.scheme] == "wss"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    path = quote(parts.path or "/", safe="/:@!$&'()*+,;=%~")
    return Address(secure, host, port or (443 if secure else DEFAULT_PORT), path)


def printable_address(text: str) -> str:
    """Return an address for a message. An invalid one is not repeated, because it may hold a password."""
    try:
        return str(parse_address(text))
    except BadAddress:
        return "the given address"


def _bad_address(reason: str) -> BadAddress:
    return BadAddress(
        f"The server address is invalid, because {reason}. Enter one such as gpu-box:1528 or ws://127.0.0.1:1528. The "
        "address is not repeated here, because it may hold a password."
    )


def _split(text: str) -> SplitResult | None:
    """Return the parts of a URL; None if it is invalid. The standard library's errors would repeat the text."""
    if any(c.isspace() or not c.isprintable() for c in text):
        return None  # urlsplit removes some of these silently
    try:
        parts = urlsplit(text)
        # A colon without a port is a typo, as in "ws:/host", whose host would be "ws".
        return None if (parts.port is not None and parts.hostname is None) or parts.netloc.endswith(":") else parts
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    address, percent, zone = host.partition("%")
    if ":" in host:
        return _is_ipv6(address) and (not percent or _ZONE.fullmatch(zone) is not None)
    return _HOST.fullmatch(host) is not None


def _ssh_target(text: str) -> SshTarget:
    parts = None if TOKEN_PREFIX in text.lower() else _split(text)
    if parts is not None and _is_ssh(parts):
        host, user = _host_as_written(parts), parts.username
        return SshTarget(f"{user}@{host}" if user else host, parts.port, int(parts.path.strip("/") or DEFAULT_PORT))
    raise BadAddress(
        "The ssh:// address is invalid. Enter one such as ssh://user@gpu-box, or "
        f"ssh://user@gpu-box:22/{DEFAULT_PORT} with the ports of ssh and of the server. User and host may contain "
        "letters, digits, dots, hyphens and underscores. For another name, define an alias in ~/.ssh/config. The "
        "address must not contain a password or a token, and is not repeated here because it may."
    )


def _host_as_written(parts: SplitResult) -> str:
    """Return the host with its case, which counts in ~/.ssh/config."""
    host = parts.netloc.rpartition("@")[2]
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_ssh(parts: SplitResult) -> bool:
    host, port = parts.hostname or "", parts.path.strip("/")
    return (
        _is_host(host)
        and "%" not in host  # a percent sign begins one of ssh's tokens
        and parts.port != 0
        and parts.password is None
        and (parts.username is None or _USER.fullmatch(parts.username) is not None)
        and not parts.query
        and not parts.fragment
        and re.fullmatch(r"[0-9]{0,5}", port) is not None
        and 0 < int(port or DEFAULT_PORT) < 65536
    )


def bracketed(host: str) -> str:
    """Return a host for a URL, in which an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host else host


def _is_ipv6(text: str) -> bool:
    """Return whether a text is an IPv6 address without brackets."""
    return isinstance(parse_ip(text), ipaddress.IPv6Address)


def redirect_target(location: str, address: Address) -> str:
    """Return origin and path of a redirect's target, for a message. The query may hold secrets of a login page."""
    base = address.url.replace("ws", "http", 1)
    parts = _split(urljoin(base, location)) if _split(location) else None
    if parts is None or not parts.hostname:
        return "an invalid address"
    port = f":{parts.port}" if parts.port is not None else ""
    return redact(f"{parts.scheme}://{bracketed(parts.hostname)}{port}{parts.path}")
