"""Plain HTTP to where a server is said to be: step by step, so that it can be told which step fails."""

import base64
from dataclasses import dataclass
import http.client
import json
import socket
import ssl
from typing import Any

from websockets.proxy import Proxy

from nninteractive_ws.client.address import Address

#: The descriptions that servers give of themselves have some hundred kilobytes.
_MOST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Answer:
    """An answer. ``headers``: by names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body, where it is a JSON object; else nothing."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def software(self) -> str:
        """What the answering program, or a proxy in front of it, calls itself."""
        return self.headers.get("via") or self.headers.get("server", "")


class Route:
    """The way to a server: TCP, where there is a proxy through it, and TLS. All methods wait, and raise OSError or
    ``http.client.HTTPException``."""

    def __init__(self, address: Address, trusting: ssl.SSLContext | None, proxy: Proxy | None, timeout: float) -> None:
        self._address, self._trusting, self._proxy, self._timeout = address, trusting, proxy, timeout
        self._connection: http.client.HTTPConnection | None = None

    def connect(self) -> str:
        """By TCP; the address of the machine that took it."""
        at, proxy = self._address, self._proxy
        self._connection = made = http.client.HTTPConnection(
            at.host if proxy is None else proxy.host, at.port if proxy is None else proxy.port, timeout=self._timeout
        )
        if proxy is not None:
            made.set_tunnel(at.host, at.port, headers=_authorization(proxy))
        if at.unix_socket is not None:
            made.sock = socket.socket(socket.AF_UNIX)
            made.sock.settimeout(self._timeout)
            made.sock.connect(at.unix_socket)
            return at.host
        made.connect()
        return str(made.sock.getpeername()[0])

    def secure(self, trusting: ssl.SSLContext) -> ssl.SSLSocket:
        """Agree on TLS."""
        assert self._connection is not None
        self._connection.sock = agreed = trusting.wrap_socket(self._connection.sock, server_hostname=self._address.host)
        return agreed

    def get(self, path: str) -> Answer:
        """GET of a path below that of the address."""
        if self._connection is None or self._connection.sock is None:
            self.connect()
            if self._trusting is not None:
                self.secure(self._trusting)
        assert self._connection is not None
        self._connection.request("GET", self._address.path.rstrip("/") + path, headers={"Connection": "close"})
        with self._connection.getresponse() as response:
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read(_MOST_BYTES))

    def speaks_tls(self) -> bool:
        """Whether TLS is spoken there, whatever the certificate."""
        unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        self.close()
        try:
            self.connect()
            self.secure(unchecked)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _authorization(proxy: Proxy) -> dict[str, str]:
    if proxy.user_info is None:
        return {}
    name, password = proxy.user_info
    return {"Proxy-Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}
