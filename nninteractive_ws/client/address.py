"""Addresses as people write them, and why one could not be reached, in words."""

from dataclasses import dataclass
import errno
import ipaddress
import socket
import ssl
from urllib.parse import urlsplit

from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus

from nninteractive_ws.errors import BadAddress, ConnectionFailed, Error, ForbiddenOrigin, Unauthorized

DEFAULT_PORT = 1528
# Where the official nnInteractive server listens; its clients and ours are easily mixed up.
_OFFICIAL_PORT = 1527

_SCHEMES = {"": "ws", "ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}


@dataclass(frozen=True)
class Address:
    """Where a server is. ``path`` begins with a slash."""

    secure: bool
    host: str
    port: int
    path: str = "/"

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.port}{self.path}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return self.url


def parse_address(text: str) -> Address:
    """An address from ``host``, ``host:port``, ``ws://…``, ``wss://…``, ``http://…`` or ``https://…``.

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
        target = parts.netloc if port is None else f"-p {port} {parts.netloc.rpartition(':')[0]}"
        raise BadAddress(
            f"This release does not open SSH tunnels by itself. Open one with `ssh -N -L {DEFAULT_PORT}:127.0.0.1:"
            f"{DEFAULT_PORT} {target}` and connect to 127.0.0.1:{DEFAULT_PORT}."
        )
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


def _is_ipv6(text: str) -> bool:
    """Whether it is such an address as it stands, without the brackets that an address with a port needs."""
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def explain(error: BaseException, address: Address) -> Error:
    """What went wrong while connecting, as an error whose sentence says what to do."""
    where = f"{address.host}:{address.port}"
    if isinstance(error, Error):
        return error
    if isinstance(error, InvalidStatus):
        return _explain_status(error, where)
    if isinstance(error, socket.gaierror):
        return ConnectionFailed(f'The name "{address.host}" is not known ({error}). Check its spelling, or the VPN.')
    if isinstance(error, ssl.SSLError):
        return ConnectionFailed(f"No secure connection to {where} could be made: {error}.")
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) == errno.ETIMEDOUT:
        return ConnectionFailed(f"{where} does not answer. A firewall may be in between, or the machine is off.")
    # Where a name has several addresses and all of them refuse, asyncio names the errors in one sentence.
    if isinstance(error, ConnectionRefusedError) or f" {errno.ECONNREFUSED}]" in str(error):
        return ConnectionFailed(
            f"Nothing listens at {where}. Start the server there (nninteractive-ws serve), or correct the port."
        )
    if isinstance(error, InvalidMessage | InvalidHandshake | EOFError):
        return ConnectionFailed(f"What answers at {where} is not an nninteractive-ws server ({error}).")
    return ConnectionFailed(f"The connection to {where} failed: {error}.")


def _explain_status(error: InvalidStatus, where: str) -> Error:
    status, body = error.response.status_code, bytes(error.response.body or b"")
    said = body.decode(errors="replace").strip()[:300]
    if status == 401:
        return Unauthorized(f"{where} wants a token, or does not know this one. {said}".strip())
    if status == 403 and "origin" in said.lower():
        return ForbiddenOrigin(said)
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
