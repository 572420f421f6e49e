"""Plain HTTP requests to a server, in separate steps, so that doctor can report the step that fails."""

import base64
from dataclasses import dataclass
import http.client
import json
import socket
import ssl
from typing import Any

from websockets.proxy import Proxy

from nninteractive_ws.client.address import AF_UNIX, Address

#: Size limit of a response. The /openapi.json of a server has some hundred kilobytes.
_MAX_BYTES = 4 * 2**20


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response. ``headers``: by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body if it is a JSON object, else an empty dict."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    @property
    def software(self) -> str:
        """Name of the program that answers, or of a proxy in front of it, from the response headers."""
        return self.headers.get("via") or self.headers.get("server", "")


class HttpProbe:
    """A connection to a server by TCP, through a proxy if there is one, and TLS.

    All methods block, and raise OSError or ``http.client.HTTPException``.
    """

    def __init__(
        self, address: Address, ssl_context: ssl.SSLContext | None, proxy: Proxy | None, timeout: float
    ) -> None:
        self._address, self._ssl_context, self._proxy, self._timeout = address, ssl_context, proxy, timeout
        self._connection: http.client.HTTPConnection | None = None

    def connect(self) -> str:
        """Connect by TCP, and return the IP address of the peer."""
        address, proxy = self._address, self._proxy
        host, port = (address.host, address.port) if proxy is None else (proxy.host, proxy.port)
        self._connection = connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        if proxy is not None:
            connection.set_tunnel(address.host, address.port, headers=_authorization(proxy))
        if address.unix_socket is not None:
            connection.sock = socket.socket(AF_UNIX)
            connection.sock.settimeout(self._timeout)
            connection.sock.connect(address.unix_socket)
            return address.host
        connection.connect()
        return str(connection.sock.getpeername()[0])

    def secure(self, ssl_context: ssl.SSLContext) -> ssl.SSLSocket:
        """Perform the TLS handshake."""
        assert self._connection is not None
        self._connection.sock = secured = ssl_context.wrap_socket(
            self._connection.sock, server_hostname=self._address.host
        )
        return secured

    def get(self, path: str, token: str = "") -> HttpResponse:
        """Send a GET request for a path below that of the address. ``token``: sent with it, if there is one."""
        if self._connection is None or self._connection.sock is None:
            self.connect()
            if self._ssl_context is not None:
                self.secure(self._ssl_context)
        assert self._connection is not None
        headers = {"Connection": "close"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._connection.request("GET", self._address.path.rstrip("/") + path, headers=headers)
        with self._connection.getresponse() as response:
            headers = {name.lower(): value for name, value in response.getheaders()}
            return HttpResponse(response.status, headers, response.read(_MAX_BYTES))

    def speaks_tls(self) -> bool:
        """Return whether the server accepts a TLS handshake, without a check of its certificate."""
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
