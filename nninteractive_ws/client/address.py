"""Addresses as people write them, whom to trust behind one, and why one could not be reached, in words."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
import errno
import ipaddress
from pathlib import Path
import re
import socket
import ssl
import threading
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, ProxyError

from nninteractive_ws.errors import (
    AtCapacity,
    BadAddress,
    ConnectionFailed,
    Error,
    ForbiddenOrigin,
    ShuttingDown,
    Unauthorized,
    Untrusted,
)
from nninteractive_ws.redaction import TOKEN_PREFIX, printable, redact

T = TypeVar("T")

DEFAULT_PORT = 1528
# Where the official nnInteractive server listens; its clients and ours are easily mixed up.
_OFFICIAL_PORT = 1527

_SCHEMES = {"": "ws", "ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}


@dataclass(frozen=True)
class SshTarget:
    """A machine that ssh knows. ``host``: as ssh takes it, with ``user@`` or not; ``port``: of its ssh server, None:
    as ssh has it; ``server_port``: where our server listens on that machine's loopback."""

    host: str
    port: int | None = None
    server_port: int = DEFAULT_PORT


@dataclass(frozen=True)
class Address:
    """Where a server is. ``path`` begins with a slash. ``ssh``: where it is only reached through a tunnel; ``host``
    and ``port`` are then those on the other side. ``unix_socket``: connections go to this Unix socket, and ``host``
    and ``port`` only name the server."""

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
            return f"ssh://{user}{at}{_bracketed(host)}{port}/{self.ssh.server_port}"
        return f"{'wss' if self.secure else 'ws'}://{_bracketed(self.host)}:{self.port}{self.path}"

    @property
    def is_literal(self) -> bool:
        """Whether ``host`` is an address as it stands, and no name."""
        return _literal(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        literal = _literal(self.host)
        return self.host == "localhost" if literal is None else literal.is_loopback

    def __str__(self) -> str:
        return self.url


#: Host names: letters of any script, digits, dots, hyphens and underscores. ssh's configuration may hand a host and a
#: user to a shell (%h and %r in ProxyCommand and Match exec), so characters that are special to a shell, to ssh's
#: patterns or to its percent tokens are refused.
_HOST = re.compile(r"(?![-.])[\w.-]{1,253}")
_USER = re.compile(r"(?![-.])[\w.+-]{1,128}(@(?![-.])[\w.-]{1,128})?")
_ZONE = re.compile(r"[\w.-]{1,32}", re.ASCII)


def parse_address(text: str) -> Address:
    """An address from ``host``, ``host:port``, ``ws://…``, ``wss://…``, ``http://…``, ``https://…`` or
    ``ssh://[user@]host[:ssh-port][/server-port]``, which is reached through OpenSSH.

    No scheme means ws; no port means 1528, or 443 behind https and wss without one; 0.0.0.0, which is where a
    server listens and not where it can be reached, means this machine. Raises BadAddress, which does not repeat the
    text, as it may hold a token or a password.
    """
    given = text.strip()
    if not given:
        raise BadAddress("No server address was given. One looks like gpu-box:1528 or ws://127.0.0.1:1528.")
    if given.lower().startswith("ssh://"):
        target = _ssh_target(given)
        return Address(False, "127.0.0.1", target.server_port, ssh=target)
    if "@" in given or "?" in given or "#" in given or TOKEN_PREFIX in given.lower():
        raise BadAddress(
            "A password or token does not belong in the address: take it out. A token is given as the argument token, "
            "or in the environment variable NNINTERACTIVE_WS_TOKEN; it is not shown in logs."
        )
    parts = _split(given if "://" in given else f"//[{given}]" if _is_ipv6(given) else f"//{given}")
    if parts is None:
        raise _not_an_address("it cannot be split into a host and a port from 1 to 65535")
    host, port = parts.hostname or "", parts.port
    if parts.scheme not in _SCHEMES:
        raise _not_an_address("it begins with another scheme than ws, wss, http, https and ssh")
    if port == 0 or not _is_host(host):
        raise _not_an_address("it lacks a valid host name or port")
    secure = _SCHEMES[parts.scheme] == "wss"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    path = quote(parts.path or "/", safe="/:@!$&'()*+,;=%~")
    return Address(secure, host, port or (443 if secure else DEFAULT_PORT), path)


def printable_address(text: str) -> str:
    """An address for a message; one that is invalid is not repeated, as it may hold a password."""
    try:
        return str(parse_address(text))
    except BadAddress:
        return "the given address"


def _not_an_address(reason: str) -> BadAddress:
    return BadAddress(
        f"This is not an address of a server: {reason}. One looks like gpu-box:1528 or ws://127.0.0.1:1528. The text "
        "is not repeated here, because it may hold a password."
    )


def _split(text: str) -> SplitResult | None:
    """The parts of a URL; None if it is invalid. The standard library's errors would repeat the text."""
    if any(c.isspace() or not c.isprintable() for c in text):
        return None  # urlsplit removes some of these silently
    try:
        parts = urlsplit(text)
        # A colon without a port is a typo, such as that of "ws:/host", whose host would be "ws".
        return None if (parts.port is not None and parts.hostname is None) or parts.netloc.endswith(":") else parts
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    address, percent, zone = host.partition("%")
    if ":" in host:
        return _is_ipv6(address) and (not percent or _ZONE.fullmatch(zone) is not None)
    return _HOST.fullmatch(host) is not None


def _ssh_target(given: str) -> SshTarget:
    parts = None if TOKEN_PREFIX in given.lower() else _split(given)
    if parts is not None and _is_ssh(parts):
        host, user = parts.hostname or "", parts.username
        return SshTarget(f"{user}@{host}" if user else host, parts.port, int(parts.path.strip("/") or DEFAULT_PORT))
    raise BadAddress(
        "This is not an address of a server behind ssh. One looks like ssh://user@gpu-box, or "
        f"ssh://user@gpu-box:22/{DEFAULT_PORT} with the ports of ssh and of the server. User and host have only "
        "letters, digits, dots, hyphens and underscores; another name can be given an alias in ~/.ssh/config. "
        "Passwords and tokens have no place in it, so the text is not repeated here."
    )


def _is_ssh(parts: SplitResult) -> bool:
    host, port = parts.hostname or "", parts.path.strip("/")
    return (
        _is_host(host)
        and "%" not in host  # a percent sign would begin one of ssh's tokens
        and parts.port != 0
        and parts.password is None
        and (parts.username is None or _USER.fullmatch(parts.username) is not None)
        and not parts.query
        and not parts.fragment
        and re.fullmatch(r"[0-9]{0,5}", port) is not None
        and 0 < int(port or DEFAULT_PORT) < 65536
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _literal(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_ipv6(text: str) -> bool:
    """Whether it is such an address as it stands, without the brackets that an address with a port needs."""
    return isinstance(_literal(text), ipaddress.IPv6Address)


def trust(address: Address, ca: str | Path | None) -> ssl.SSLContext | None:
    """What a server's certificate is checked with; None for ``ws://``, which has none.

    ``ca``: a file of certificates (PEM) to trust instead of the system's. Raises Untrusted where it cannot be
    used, BadAddress where it would not be.
    """
    if not address.secure:
        if ca is not None:
            raise BadAddress(
                f"Certificates to trust were given, but {address} is not encrypted. Write wss:// in front of the "
                "address, or leave the certificates out."
            )
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as e:  # ssl.SSLError is one
        raise Untrusted(f"{ca} cannot be used as a file of certificates to trust, in PEM format: {e}.") from e
    if ca is not None:
        # The server's own certificate, or that of the authority right above it, is enough: it was given by hand.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


#: What :func:`socket.getaddrinfo` returns.
Found = list[tuple[Any, ...]]


def look_up(host: str, port: int, **hints: int) -> "Future[Found]":
    """:func:`socket.getaddrinfo` on a thread that nobody has to wait for: without a network it can take a minute."""
    return on_a_thread(f"looking up {host}", lambda: socket.getaddrinfo(host, port, **hints))


def on_a_thread(name: str, work: Callable[[], T]) -> "Future[T]":
    """What ``work()`` returns or raises, from a thread that nobody has to wait for."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # whoever no longer waits just leaves

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as e:
            outcome.set_exception(e)

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome


#: What it means that a server of ours answers, but not with a WebSocket.
NO_UPGRADE = (
    "A proxy in front of the server passes on plain HTTP, but no WebSocket. Whoever runs it has to let it pass on the "
    "headers Upgrade and Connection; nginx with: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    'proxy_set_header Connection "upgrade"; proxy_read_timeout 1h;'
)


# ---- why not ----------------------------------------------------------------------------------------------


def explain(error: BaseException, address: Address, token: str | None = None) -> Error:
    """What went wrong while connecting, as an error whose sentence says what to do. ``token``: removed from the
    sentence, because a server may repeat it."""
    explained = _explain(error, address)
    message = redact(str(explained), token)
    return explained if message == str(explained) else type(explained)(message)


def _explain(error: BaseException, address: Address) -> Error:
    where = f"{address.host}:{address.port}"
    said = printable(str(error))
    if isinstance(error, Error):
        return error
    if isinstance(error, InvalidStatus):
        return _explain_status(error, address)
    if isinstance(error, socket.gaierror | UnicodeError):
        return ConnectionFailed(f'The name "{address.host}" is not known ({said}). Check its spelling, or the VPN.')
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, address, where)
    # A server without TLS takes the beginning of it for nonsense, and hangs up.
    hung_up = isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)
    if isinstance(error, ssl.SSLError) or (address.secure and hung_up):
        return ConnectionFailed(
            f"No secure connection to {where} could be made: {said or 'the server hung up'}. Does the server speak "
            "TLS at this port? One that does not is reached with ws://."
        )
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) == errno.ETIMEDOUT:
        return ConnectionFailed(f"{where} does not answer. A firewall may be in between, or the machine is off.")
    # Where a name has several addresses and all of them refuse, asyncio names the errors in one sentence.
    if isinstance(error, ConnectionRefusedError) or f" {errno.ECONNREFUSED}]" in said:
        return ConnectionFailed(
            f"Nothing listens at {where}. Start the server there (nninteractive-ws serve), or correct the port."
        )
    if isinstance(error, ProxyError):
        return ConnectionFailed(
            f"The proxy that this computer's settings name does not let connections through to {where} ({said}). Ask "
            f"whoever runs it to allow it; or, if the server is reached without it, except it: NO_PROXY={address.host}."
        )
    if isinstance(error, InvalidMessage | InvalidHandshake | EOFError):
        hint = "" if address.secure else " If it is one that speaks TLS, write wss:// in front of the address."
        return ConnectionFailed(f"What answers at {where} is not an nninteractive-ws server ({said}).{hint}")
    return ConnectionFailed(f"The connection to {where} failed: {said or type(error).__name__}.")


# OpenSSL's X509_V_ERR_…
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST, _OTHER_IP = 9, 10, 62, 64


def _explain_certificate(error: ssl.SSLCertVerificationError, address: Address, where: str) -> Error:
    code, said = getattr(error, "verify_code", None), getattr(error, "verify_message", "") or str(error)
    if code in (_OTHER_HOST, _OTHER_IP):
        return Untrusted(
            f'The certificate of the server at {where} was not made for the name "{address.host}". Connect by the '
            "name that it was made for, or ask whoever runs the server for a certificate with this name."
        )
    if code == _EXPIRED:
        return Untrusted(
            f"The certificate of the server at {where} has expired: whoever runs the server has to renew it. "
            "(Or the clock of this computer is wrong.)"
        )
    if code == _NOT_YET_VALID:
        return Untrusted(
            f"The certificate of the server at {where} is not valid yet. Check the date and time of this computer "
            "and of the server."
        )
    return Untrusted(
        f"The certificate of the server at {where} was not issued by an authority that is trusted here ({said}). If "
        "your hospital or laboratory has its own authority, ask for its certificate as a PEM file and pass that as "
        "ca (on the command line, --ca FILE). If not, somebody else may be answering in the server's place."
    )


def redirect_target(location: str, address: Address) -> str:
    """The origin and path of a redirect's target, for a message. The rest may hold secrets of a login page."""
    base = address.url.replace("ws", "http", 1)
    parts = _split(urljoin(base, location)) if _split(location) else None
    if parts is None or not parts.hostname:
        return "an invalid address"
    port = f":{parts.port}" if parts.port is not None else ""
    return redact(f"{parts.scheme}://{_bracketed(parts.hostname)}{port}{parts.path}")


def redirect_message(location: str, address: Address) -> str:
    """A message that names a redirect. It is not followed, because a token goes only to the server it was given for."""
    return (
        f"What answers at {address.host}:{address.port} redirects to {redirect_target(location, address)}. Redirects "
        "are not followed, so that a token reaches no other server. If that is where the server is, use it as the "
        "address."
    )


def _explain_status(error: InvalidStatus, address: Address) -> Error:
    where, headers = f"{address.host}:{address.port}", error.response.headers
    status, body = error.response.status_code, bytes(error.response.body or b"")
    said = printable(body.decode(errors="replace")).strip()[:300]
    if locations := headers.get_all("Location") if 300 <= status < 400 else []:
        return ConnectionFailed(redirect_message(locations[0], address))
    if status == 401:
        return Unauthorized(f"{where} wants a token, or does not know this one. {said}".strip())
    if status == 426:  # of our own gateway, to which the wish for a WebSocket did not come through
        return ConnectionFailed(NO_UPGRADE)
    plain = any(kind.startswith("text/plain") for kind in headers.get_all("Content-Type"))
    # Of our own gateway, at a name that it does not accept as its own.
    if status in (403, 421) and plain and "--allow-host" in said:
        return ConnectionFailed(said)
    if status == 403 and "origin" in said.lower():
        return ForbiddenOrigin(said)
    if status == 503 and plain and said:
        # Of our own gateway; a proxy's is a page.
        return ShuttingDown(said) if "stopp" in said else AtCapacity(said)
    if status in (502, 503, 504):
        return ConnectionFailed(
            f"A proxy answers at {where} (HTTP {status}) but reaches no server behind it; is the server running?"
        )
    if address.port == _OFFICIAL_PORT or b'"detail"' in body:
        return ConnectionFailed(
            f"What answers at {where} (HTTP {status}) looks like the official nnInteractive server, which speaks "
            f"another protocol. Ours listens on port {DEFAULT_PORT}."
        )
    return ConnectionFailed(f"What answers at {where} is not an nninteractive-ws server: HTTP {status}. {said}".strip())
