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
from urllib.parse import SplitResult, urlsplit

from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI, ProxyError

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
    and ``port`` are then those on the other side."""

    secure: bool
    host: str
    port: int
    path: str = "/"
    ssh: SshTarget | None = None

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


def parse_address(text: str) -> Address:
    """An address from ``host``, ``host:port``, ``ws://…``, ``wss://…``, ``http://…``, ``https://…`` or
    ``ssh://[user@]host[:ssh-port][/server-port]``, which is reached through OpenSSH.

    No scheme means ws; no port means 1528, or 443 behind https and wss without one; 0.0.0.0, which is where a
    server listens and not where it can be reached, means this machine. Raises BadAddress.
    """
    given = text.strip()
    if not given:
        raise BadAddress("No server address was given. One looks like gpu-box:1528 or ws://127.0.0.1:1528.")
    with_scheme = given if "://" in given else f"//[{given}]" if _is_ipv6(given) else f"//{given}"
    try:
        parts = urlsplit(with_scheme)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise BadAddress(f'"{given}" is not an address: {e}. One looks like gpu-box:1528.') from e
    if parts.scheme == "ssh":
        target = _ssh_target(given, parts)
        return Address(False, "127.0.0.1", target.server_port, ssh=target)
    if parts.scheme not in _SCHEMES or not host or port == 0 or any(c.isspace() for c in host):
        raise BadAddress(
            f'"{given}" is not an address of a server. One looks like gpu-box:1528 or ws://127.0.0.1:1528.'
        )
    if parts.username or parts.password:
        raise BadAddress("A token does not belong in the address: pass it as the token, which is not shown in logs.")
    secure = _SCHEMES[parts.scheme] == "wss"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return Address(secure, host, port or (443 if secure else DEFAULT_PORT), parts.path or "/")


def _ssh_target(given: str, parts: SplitResult) -> SshTarget:
    host, user, path = parts.hostname or "", parts.username or "", parts.path.strip("/")
    # What begins with a hyphen would be an option of ssh's.
    wrong = not host or parts.port == 0 or any(w.startswith("-") or re.search(r"\s", w) for w in (host, user))
    if wrong or parts.password or not re.fullmatch(r"\d{0,5}", path) or int(path or 1) not in range(1, 65536):
        raise BadAddress(
            f'"{given if not parts.password else "ssh://…"}" is not an address of a server. Behind ssh one looks like '
            f"ssh://user@gpu-box, or ssh://user@gpu-box:22/{DEFAULT_PORT} with the ports of ssh and of the server; a "
            "password has no place in it."
        )
    return SshTarget(f"{user}@{host}" if user else host, parts.port, int(path or DEFAULT_PORT))


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


def explain(error: BaseException, address: Address) -> Error:
    """What went wrong while connecting, as an error whose sentence says what to do."""
    where = f"{address.host}:{address.port}"
    if isinstance(error, Error):
        return error
    if isinstance(error, InvalidStatus):
        return _explain_status(error, where)
    if isinstance(error, socket.gaierror | UnicodeError):
        return ConnectionFailed(f'The name "{address.host}" is not known ({error}). Check its spelling, or the VPN.')
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(error, address, where)
    # A server without TLS takes the beginning of it for nonsense, and hangs up.
    hung_up = isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)
    if isinstance(error, ssl.SSLError) or (address.secure and hung_up):
        said = str(error) or "the server hung up"
        return ConnectionFailed(
            f"No secure connection to {where} could be made: {said}. Does the server speak TLS at this port? "
            "One that does not is reached with ws://."
        )
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) == errno.ETIMEDOUT:
        return ConnectionFailed(f"{where} does not answer. A firewall may be in between, or the machine is off.")
    # Where a name has several addresses and all of them refuse, asyncio names the errors in one sentence.
    if isinstance(error, ConnectionRefusedError) or f" {errno.ECONNREFUSED}]" in str(error):
        return ConnectionFailed(
            f"Nothing listens at {where}. Start the server there (nninteractive-ws serve), or correct the port."
        )
    if isinstance(error, InvalidURI):  # that of a redirection; the address itself has been looked at
        return ConnectionFailed(
            f"What answers at {where} sends one on to {error.uri}. If that is where the server is, use it as the "
            "address."
        )
    if isinstance(error, ProxyError):
        return ConnectionFailed(
            f"The proxy that this computer's settings name does not let connections through to {where} ({error}). Ask "
            f"whoever runs it to allow it; or, if the server is reached without it, except it: NO_PROXY={address.host}."
        )
    if isinstance(error, InvalidMessage | InvalidHandshake | EOFError):
        hint = "" if address.secure else " If it is one that speaks TLS, write wss:// in front of the address."
        return ConnectionFailed(f"What answers at {where} is not an nninteractive-ws server ({error}).{hint}")
    return ConnectionFailed(f"The connection to {where} failed: {str(error) or type(error).__name__}.")


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


def _explain_status(error: InvalidStatus, where: str) -> Error:
    status, body = error.response.status_code, bytes(error.response.body or b"")
    said = body.decode(errors="replace").strip()[:300]
    if status == 401:
        return Unauthorized(f"{where} wants a token, or does not know this one. {said}".strip())
    if status == 426:  # of our own gateway, to which the wish for a WebSocket did not come through
        return ConnectionFailed(NO_UPGRADE)
    if status == 403 and "origin" in said.lower():
        return ForbiddenOrigin(said)
    if status == 503 and error.response.headers.get("Content-Type", "").startswith("text/plain") and said:
        # Of our own gateway; a proxy's is a page.
        return ShuttingDown(said) if "stopp" in said else AtCapacity(said)
    if status in (502, 503, 504):
        return ConnectionFailed(
            f"A proxy answers at {where} (HTTP {status}) but reaches no server behind it; is the server running?"
        )
    if where.endswith(f":{_OFFICIAL_PORT}") or b'"detail"' in body:
        return ConnectionFailed(
            f"What answers at {where} (HTTP {status}) looks like the official nnInteractive server, which speaks "
            f"another protocol. Ours listens on port {DEFAULT_PORT}."
        )
    return ConnectionFailed(f"What answers at {where} is not an nninteractive-ws server: HTTP {status}. {said}".strip())
