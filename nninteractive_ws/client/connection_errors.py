"""Exceptions of a failed connection, translated into errors that say what to do."""

import errno
import socket
import ssl

from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidProxyStatus, InvalidStatus, ProxyError

from nninteractive_ws.client.address import DEFAULT_PORT, Address, redirect_target
from nninteractive_ws.client.proxies import ProxySetting
from nninteractive_ws.client.reconnect import OPEN_TIMEOUT_S
from nninteractive_ws.errors import (
    AtCapacity,
    ConnectionFailed,
    Error,
    ForbiddenOrigin,
    ShuttingDown,
    Unauthorized,
    Untrusted,
)
from nninteractive_ws.redaction import printable, redact

# Default port of the official nnInteractive server, which is easily confused with ours.
_OFFICIAL_PORT = 1527

#: Message for a server of ours that answers plain HTTP, but no WebSocket handshake.
NO_UPGRADE = (
    "A proxy in front of the server forwards plain HTTP, but no WebSockets. Ask its administrator to forward the "
    "headers Upgrade and Connection, in nginx with `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    'proxy_set_header Connection "upgrade"; proxy_read_timeout 1h;`.'
)


def connection_error(
    error: BaseException,
    address: Address,
    token: str | None = None,
    *,
    proxy: ProxySetting | None = None,
    accepted: bool = False,
) -> Error:
    """Translate an exception from connecting into an error that says what to do.

    ``token``: removed from the message, because a server may repeat it. ``proxy``: through which it was tried.
    ``accepted``: whether the TCP connection to the server was made, for which a proxy connects to it.
    """
    translated = _connection_error(error, address, proxy, accepted)
    message = redact(str(translated), token)
    return translated if message == str(translated) else type(translated)(message)


def _connection_error(error: BaseException, address: Address, proxy: ProxySetting | None, accepted: bool) -> Error:
    if isinstance(error, Error):
        return error
    if proxy is None:
        return _server_error(error, address, accepted)
    if not accepted:
        return ConnectionFailed(_proxy_message(error, address, proxy))
    translated = _server_error(error, address, accepted)
    if type(translated) is ConnectionFailed:
        return ConnectionFailed(f"{translated} The connection went through the proxy {proxy}.")
    return translated


def _proxy_message(error: BaseException, address: Address, proxy: ProxySetting) -> str:
    """Return the message for a proxy that has not connected to the server."""
    if isinstance(error, InvalidProxyStatus):
        return proxy.refused(address, error.response.status_code)
    if isinstance(error, ProxyError):
        return proxy.failed(address, _detail(error.__cause__ or error))
    if isinstance(error, TimeoutError):
        return proxy.failed(address, "it did not answer in time")
    if isinstance(error, ssl.SSLError):
        return proxy.failed(address, f"TLS handshake failed: {_detail(error)}")
    if isinstance(error, OSError | UnicodeError):
        return proxy.unreachable(address, "connection refused" if _is_refused(error) else _detail(error))
    return proxy.failed(address, _detail(error))


def _detail(error: BaseException) -> str:
    return printable(str(error)).rstrip(".") or type(error).__name__


def _is_closed(error: BaseException) -> bool:
    return isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError)


def _is_refused(error: BaseException) -> bool:
    # If a name has several addresses and all of them refuse, asyncio joins the errors in one message.
    return isinstance(error, ConnectionRefusedError) or f" {errno.ECONNREFUSED}]" in str(error)


def silent_message(where: str, timeout_s: float) -> str:
    """Return the message for a program that accepts connections, and then sends nothing."""
    return (
        f"A program at {where} accepts connections, but does not answer as an nninteractive-ws server within "
        f"{timeout_s:g} seconds. It is another program, or it hangs. Check the port (a server listens on "
        f"{DEFAULT_PORT} by default), or restart the server."
    )


def _server_error(error: BaseException, address: Address, accepted: bool) -> Error:
    where = f"{address.host}:{address.port}"
    detail = printable(str(error)).rstrip(".")
    if isinstance(error, InvalidStatus):
        return _status_error(error, address)
    if isinstance(error, socket.gaierror | UnicodeError):
        return ConnectionFailed(
            f'DNS lookup of "{address.host}" failed ({detail}). Check the name and the VPN, or connect by IP address.'
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_error(error, address, where)
    # A server without TLS takes the handshake for an invalid request, and closes the connection.
    if isinstance(error, ssl.SSLError) or (address.secure and _is_closed(error)):
        return ConnectionFailed(
            f"The TLS handshake with {where} failed. If the server does not use TLS, write ws:// instead of wss://. "
            f"Details: {detail or 'the server closed the connection'}."
        )
    if isinstance(error, TimeoutError) or getattr(error, "errno", None) == errno.ETIMEDOUT:
        if accepted:
            return ConnectionFailed(silent_message(where, OPEN_TIMEOUT_S))
        return ConnectionFailed(
            f"The server at {where} does not answer. Check that the machine is on, and that no firewall is in between."
        )
    if _is_refused(error):
        return ConnectionFailed(
            f"Nothing listens at {where}. Start the server there (nninteractive-ws serve), or correct the port."
        )
    if isinstance(error, InvalidMessage | InvalidHandshake | EOFError):
        hint = (
            "Check the port."
            if address.secure
            else "Check the port. If the server uses TLS, write wss:// in the address."
        )
        return ConnectionFailed(f"The program at {where} is not an nninteractive-ws server. {hint} Details: {detail}.")
    return ConnectionFailed(f"The connection to {where} failed. Details: {detail or type(error).__name__}.")


# OpenSSL's X509_V_ERR_…
_NOT_YET_VALID, _EXPIRED, _OTHER_HOST, _OTHER_IP = 9, 10, 62, 64


def _certificate_error(error: ssl.SSLCertVerificationError, address: Address, where: str) -> Error:
    code, detail = getattr(error, "verify_code", None), getattr(error, "verify_message", "") or str(error)
    if code in (_OTHER_HOST, _OTHER_IP):
        return Untrusted(
            f'The certificate of the server at {where} is not valid for the name "{address.host}". Connect by a name '
            "in the certificate, or ask the server's administrator for a certificate with this name."
        )
    if code == _EXPIRED:
        return Untrusted(
            f"The certificate of the server at {where} has expired. Ask the server's administrator to renew it, and "
            "check the date and time of this computer."
        )
    if code == _NOT_YET_VALID:
        return Untrusted(
            f"The certificate of the server at {where} is not valid yet. Check the date and time of this computer "
            "and of the server."
        )
    return Untrusted(
        f"The certificate of the server at {where} was not issued by an authority that is trusted here ({detail}). If "
        "your hospital or laboratory has its own authority, ask for its certificate as a PEM file and pass it as ca "
        "(on the command line, --ca FILE). Otherwise, another machine may be impersonating the server."
    )


def redirect_message(location: str, address: Address) -> str:
    """Return the message for a redirect. It is not followed, because a token is sent only to the server it is for."""
    return (
        f"The program at {address.host}:{address.port} redirects to {redirect_target(location, address)}. Redirects "
        "are not followed, so that a token reaches no other server. If the server is there, use it as the address."
    )


def _status_error(error: InvalidStatus, address: Address) -> Error:
    where, headers = f"{address.host}:{address.port}", error.response.headers
    status, body = error.response.status_code, bytes(error.response.body or b"")
    text = printable(body.decode(errors="replace")).strip()[:300]
    if locations := headers.get_all("Location") if 300 <= status < 400 else []:
        return ConnectionFailed(redirect_message(locations[0], address))
    if status == 401:
        return _unauthorized(", ".join(headers.get_all("WWW-Authenticate")))
    if status == 426:  # from our gateway, behind a proxy that does not forward the Upgrade header
        return ConnectionFailed(NO_UPGRADE)
    plain = any(kind.startswith("text/plain") for kind in headers.get_all("Content-Type"))
    # From our gateway, for a host name that it does not allow.
    if status in (403, 421) and plain and "--allow-host" in text:
        return ConnectionFailed(text)
    if status == 403 and "origin" in text.lower():
        return ForbiddenOrigin(text)
    if status == 503 and plain and text:
        # From our gateway. A proxy sends an HTML page.
        return ShuttingDown(text) if "shutting down" in text else AtCapacity(text)
    if status in (502, 503, 504):
        return ConnectionFailed(
            f"A proxy answers at {where} (HTTP {status}), but cannot reach a server behind it. Check that the server "
            "is running."
        )
    if address.port == _OFFICIAL_PORT or b'"detail"' in body:
        return ConnectionFailed(
            f"The program at {where} (HTTP {status}) seems to be the official nnInteractive server, which uses another "
            f"protocol. Connect to an nninteractive-ws server, which usually listens on port {DEFAULT_PORT}."
        )
    response = f'HTTP {status}, "{text}"' if text else f"HTTP {status}"
    return ConnectionFailed(
        f"The program at {where} is not an nninteractive-ws server. Check the port. Details: {response}."
    )


def _unauthorized(challenge: str) -> Unauthorized:
    """Return the error for a 401 response with this WWW-Authenticate header."""
    if challenge and "bearer" not in challenge.lower():
        return Unauthorized(
            "A proxy in front of the server requires its own login (HTTP 401). Ask the proxy's administrator to let "
            "this address through."
        )
    if 'error="invalid_token"' in challenge:
        return Unauthorized(
            "The server refused this token. Check that it is complete and was not revoked, or ask the server's "
            "administrator for a new one (nninteractive-ws token NAME)."
        )
    return Unauthorized(
        "This server needs a token. Pass it as the argument token in Python, in the environment variable "
        "NNINTERACTIVE_WS_TOKEN on the command line, or in the server settings of 3D Slicer. The server's "
        "administrator creates one with nninteractive-ws token NAME."
    )
