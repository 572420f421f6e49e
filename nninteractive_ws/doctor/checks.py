"""Check each connection step to a server, measure its speed, and report the first problem."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
import http.client
from pathlib import Path
import re
import socket
import ssl
import statistics
import time
from typing import Any, Literal, TypeVar, cast

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidUpgrade

from nninteractive_ws.client.address import Address, parse_address
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.client.connection_errors import NO_UPGRADE, connection_error, redirect_message, silent_message
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import dial, open_tunnel
from nninteractive_ws.client.dns import resolve
from nninteractive_ws.client.proxies import ProxySetting, proxy_for
from nninteractive_ws.client.reconnect import close_error
from nninteractive_ws.client.tls import ssl_context
from nninteractive_ws.client.tokens import checked_token
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.doctor.http_probe import HttpProbe
from nninteractive_ws.doctor.identify import IdentifiedServer, identify
from nninteractive_ws.doctor.results import StepFailed, StepOutput, StepResult
from nninteractive_ws.doctor.throughput import ThroughputTest
from nninteractive_ws.errors import ConnectionFailed, Error, Unauthorized
from nninteractive_ws.redaction import printable, redact
from nninteractive_ws.units import format_bytes

T = TypeVar("T")

#: Timeout of each step before the WebSocket: DNS lookup, connection, TLS and plain HTTP.
ANSWER_TIMEOUT_S = 10.0
_PINGS = 5
_EXPIRES_SOON = timedelta(days=14)

Step = Callable[[], Awaitable[StepOutput | None]]


class Doctor:
    """Connection checks of a server, in order.

    ``on_status``: called with the current activity. ``ssh_environment``: that of ssh; by default, this process's.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None,
        ca: Path | None,
        on_status: Callable[[str], object] = lambda _: None,
        ssh_environment: Mapping[str, str] | None = None,
    ) -> None:
        # Without white space, which no server repeats, so that every text is searched for the token itself.
        self._url, self._token, self._ca, self._on_status = address, (token or "").strip(), ca, on_status
        self._address: Address
        self._ssl_context: ssl.SSLContext | None = None
        self._ssh_environment = ssh_environment
        self._tunnel: Tunnel | None = None
        self._proxy: ProxySetting | None = None
        self._probe: HttpProbe | None = None
        self._server: IdentifiedServer | None = None
        self._session: AsyncSession | None = None
        self._round_trip = 0.0
        self._throughput: ThroughputTest

    async def run(self) -> AsyncIterator[StepResult]:
        """Yield the result of each step, up to the first that fails. Then close the session and the tunnel."""
        steps: dict[str, Step] = {
            "address": self._check_address,
            "ssh": self._open_tunnel,
            "proxy": self._check_proxy,
            "name": self._resolve,
            "connection": self._connect,
            "encryption": self._check_tls,
            "server": self._identify,
            "websocket": self._open_websocket,
            "session": self._open_session,
            "http_api": self._check_http_api,
            "upload": lambda: self._throughput.upload(),
            "download": lambda: self._throughput.download(),
            "prompt": lambda: self._throughput.prompt(),
            "first_mask": lambda: self._throughput.estimate(),
        }
        try:
            for step, check in steps.items():
                self._on_status(step.replace("_", " "))
                result = await self._run_step(step, check)
                if result is not None:
                    yield result
                    if result.status == "failed":
                        return
        finally:
            await self._close()

    async def _run_step(self, step: str, check: Step) -> StepResult | None:
        started = time.monotonic()
        try:
            output = await check()
        except (StepFailed, Error) as e:
            error = self._tunnel_error(step, e)
            data = self._redact(error.data) if isinstance(error, StepFailed) else {}
            return StepResult(step, "failed", self._redact(str(error)), time.monotonic() - started, error.code, data)
        if output is None:
            return None
        status: Literal["ok", "warning"] = "warning" if output.warning else "ok"
        message, data = self._redact(output.message), self._redact(output.data)
        return StepResult(step, status, message, time.monotonic() - started, data=data)

    def _redact(self, value: T) -> T:
        """Remove secrets and control characters that a server may have sent."""
        if isinstance(value, str):
            return cast("T", redact(printable(value), self._token))
        if isinstance(value, dict):
            return cast("T", {key: self._redact(item) for key, item in value.items()})
        if isinstance(value, list):
            return cast("T", [self._redact(item) for item in value])
        return value

    def _tunnel_error(self, step: str, error: StepFailed | Error) -> StepFailed | Error:
        """Replace an error behind a tunnel by ssh's reason. The local end of a tunnel accepts every connection, and
        only ssh knows whether a server listens at the other end."""
        if self._tunnel is None or step in ("ssh", "session") or not self._tunnel.nothing_listens:
            return error
        return StepFailed("refused", str(self._tunnel.connection_error(ConnectionFailed(str(error)))))

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._probe is not None:
            self._probe.close()
        if self._tunnel is not None:
            await asyncio.to_thread(self._tunnel.close)

    # ---- connection ---------------------------------------------------------------------------------------

    async def _check_address(self) -> StepOutput:
        self._address = address = parse_address(self._url)
        self._ssl_context = ssl_context(address, self._ca)
        data = {"url": address.url, "host": address.host, "port": address.port, "secure": address.secure}
        return StepOutput(str(address), data)

    async def _open_tunnel(self) -> StepOutput | None:
        if self._address.ssh is None:
            return None
        self._tunnel = Tunnel(self._address.ssh, self._ssh_environment)
        await open_tunnel(self._tunnel)
        target, self._address = self._tunnel.target, self._tunnel.local
        self._probe = HttpProbe(self._address, None, None, ANSWER_TIMEOUT_S)
        message = f"connected to {target.host}, forwarding to port {target.server_port} there"
        return StepOutput(message, {"host": target.host, "server_port": target.server_port})

    async def _check_proxy(self) -> StepOutput | None:
        if self._tunnel is not None:
            return None
        try:
            self._proxy = proxy = proxy_for(self._address)
        except ConnectionFailed as e:
            raise StepFailed("bad_proxy", str(e)) from e
        if proxy is None:
            reason = (
                "the server is on this computer" if self._address.is_loopback else "none in this computer's settings"
            )
            return StepOutput(f"not used: {reason}", {"proxy": None})
        message = (
            f"connections use {proxy.place}, set by {proxy.source} (except the polled client, and so 3D Slicer, which "
            "connect directly)"
        )
        return StepOutput(message, {"proxy": proxy.place})

    async def _resolve(self) -> StepOutput | None:
        proxy, address = self._proxy, self._address
        host, port = (address.host, address.port) if proxy is None else (proxy.proxy.host, proxy.proxy.port)
        if self._tunnel is not None or (proxy is None and address.is_literal):
            return None
        self._on_status(f"DNS lookup of {host}")
        try:
            lookup = asyncio.wrap_future(resolve(host, port, type=socket.SOCK_STREAM))
            infos = await asyncio.wait_for(lookup, ANSWER_TIMEOUT_S)
        except TimeoutError as e:
            if proxy is not None:
                raise StepFailed("proxy_unreachable", proxy.unreachable(address, "its DNS lookup timed out")) from e
            message = f'DNS lookup of "{host}" timed out. Check the name, or connect by IP address.'
            raise StepFailed("no_name_service", message) from e
        except (OSError, UnicodeError) as e:
            if proxy is not None:
                raise StepFailed("proxy_unreachable", str(connection_error(e, address, proxy=proxy))) from e
            raise StepFailed("unknown_name", str(connection_error(e, Address(False, host, port)))) from e
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        note = "" if proxy is None else " (the proxy, which looks up the server's name itself)"
        return StepOutput(f"{host} is {', '.join(addresses)}{note}", {"host": host, "addresses": addresses})

    async def _connect(self) -> StepOutput | None:
        if self._tunnel is not None:
            return None
        proxy, address = self._proxy, self._address
        self._on_status(f"connecting to {address.host}:{address.port}")
        if proxy is not None and proxy.proxy.scheme != "http":
            return StepOutput("not checked by itself, because the proxy connects to the server")
        self._probe = HttpProbe(address, self._ssl_context, None if proxy is None else proxy.proxy, ANSWER_TIMEOUT_S)
        try:
            peer = await asyncio.to_thread(self._probe.connect)
        except (OSError, http.client.HTTPException) as e:
            raise self._connect_error(e) from e
        if proxy is not None:
            return StepOutput(f"the proxy connects to {address.host}:{address.port}", {"peer": peer})
        return StepOutput(f"{peer} port {address.port} accepts connections", {"peer": peer})

    def _connect_error(self, error: Exception) -> StepFailed:
        proxy, address = self._proxy, self._address
        if proxy is not None:
            if status := re.match(r"Tunnel connection failed: (\d+)", str(error)):
                return StepFailed("proxy_refused", proxy.refused(address, int(status[1])))
            code = "proxy_unreachable" if isinstance(error, OSError) else "proxy_refused"
            return StepFailed(code, str(connection_error(error, address, proxy=proxy)))
        message = str(connection_error(error, address))
        if isinstance(error, ConnectionRefusedError):
            return StepFailed("refused", message)
        return StepFailed("no_answer" if isinstance(error, TimeoutError) else ConnectionFailed.code, message)

    async def _check_tls(self) -> StepOutput | None:
        address = self._address
        if self._tunnel is not None or (address.secure and self._probe is None):
            return None
        if self._ssl_context is None:
            if address.is_loopback:
                return StepOutput("none, because the data stays on this computer", {"tls": None})
            return StepOutput(
                "none. Others on the network can read the token and the images. Use wss:// or ssh:// in an untrusted "
                "network.",
                {"tls": None},
                warning=True,
            )
        assert self._probe is not None
        try:
            secured = await asyncio.to_thread(self._probe.secure, self._ssl_context)
        except OSError as e:
            error = connection_error(e, address, accepted=True)
            if type(error) is ConnectionFailed:
                code = "no_answer" if isinstance(e, TimeoutError) else "no_tls"
                raise StepFailed(code, str(error)) from e
            raise error from e
        return _certificate_output(secured)

    # ---- server -------------------------------------------------------------------------------------------

    async def _identify(self) -> StepOutput | None:
        if self._probe is None:
            return None
        try:
            server = self._server = await asyncio.to_thread(identify, self._probe.get)
        except (OSError, http.client.HTTPException) as e:
            raise await self._http_error(e) from e
        where, health = f"{self._address.host}:{self._address.port}", server.health
        if server.product == "nninteractive_ws":
            return _server_output(server)
        software = f" ({health.software})" if health.software else ""
        if server.product != "unknown":
            raise StepFailed(
                "other_server",
                f"The program at {where} is {server.name}, which uses another protocol. Use its own client, or the "
                "address of an nninteractive-ws server, which usually listens on port 1528.",
                product=server.product,
            )
        if health.status in (502, 503, 504):
            raise StepFailed(
                "no_server_behind_proxy",
                f"A proxy{software} answers at {where} (HTTP {health.status}), but cannot reach a server behind it. "
                "Start the server there (nninteractive-ws serve), or correct the address to which the proxy forwards.",
            )
        if health.status in (401, 407):
            raise StepFailed(
                "login_in_front",
                f"A proxy in front of the server{software} requires its own login (HTTP {health.status}). This step "
                "never needs the server's token. Ask the proxy's administrator to let this address through.",
            )
        if health.status == 421:  # from our server, for a host name that it does not allow
            raise StepFailed("host_refused", health.body.decode(errors="replace").strip())
        if 300 <= health.status < 400:
            raise StepFailed("redirected", redirect_message(health.headers.get("location", ""), self._address))
        if health.status == 400 and await asyncio.to_thread(self._speaks_tls):
            raise self._tls_expected()
        message = (
            f"{server.name or 'an unknown HTTP server'} (HTTP {health.status}), not identified as nninteractive-ws"
        )
        return StepOutput(message, {"product": server.product, "status": health.status}, warning=True)

    async def _http_error(self, error: Exception) -> StepFailed:
        where = f"{self._address.host}:{self._address.port}"
        if isinstance(error, TimeoutError):
            return StepFailed("silent", silent_message(where, ANSWER_TIMEOUT_S))
        if await asyncio.to_thread(self._speaks_tls):
            return self._tls_expected()
        return StepFailed(
            "not_http",
            f"The program at {where} does not use HTTP, so it is not an nninteractive-ws server. Check the port. "
            f"Details: {str(error) or type(error).__name__}.",
        )

    def _speaks_tls(self) -> bool:
        return self._probe is not None and self._ssl_context is None and self._probe.speaks_tls()

    def _tls_expected(self) -> StepFailed:
        where = f"{self._address.host}:{self._address.port}"
        return StepFailed("wants_tls", f"The server at {where} uses TLS. Write wss://{where} instead.")

    async def _open_websocket(self) -> StepOutput:
        try:
            self._token = checked_token(self._token) or ""
            websocket = await dial(self._address, token=self._token, ssl_context=self._ssl_context)
        except Unauthorized as e:
            raise StepFailed("token_wrong" if self._token else "token_missing", str(e)) from e
        except ConnectionFailed as e:
            if self._is_ours and isinstance(e.__cause__, InvalidStatus | InvalidUpgrade):
                raise StepFailed("no_websocket", NO_UPGRADE) from e
            if self._server is not None and not self._is_ours:
                raise StepFailed("not_ours", str(e)) from e
            raise
        try:
            times = [await (await websocket.ping()) for _ in range(_PINGS)]
        except ConnectionClosed as e:
            raise close_error(e.rcvd, e.sent, e.__cause__) from e
        finally:
            await websocket.close()
        self._round_trip = statistics.median(times)
        token = "token accepted" if self._token else "no token needed"
        data = {"round_trip_seconds": self._round_trip, "token_given": bool(self._token)}
        return StepOutput(f"open, {token}, round trip {1000 * self._round_trip:.1f} ms (median of {_PINGS})", data)

    @property
    def _is_ours(self) -> bool:
        return self._server is not None and self._server.product == "nninteractive_ws"

    # ---- session ------------------------------------------------------------------------------------------

    async def _open_session(self) -> StepOutput:
        # No other session is evicted. A full server is reported instead.
        dialer = partial(dial, self._address, token=self._token, ssl_context=self._ssl_context)
        self._session = AsyncSession(dialer, Core(allow_eviction=False), reconnect_for=0)
        self._session.on("notice", lambda notice: self._on_status(notice.message))
        welcome = await self._session.wait_open()
        same_host = self._tunnel is None and self._address.is_loopback
        self._throughput = ThroughputTest(self._session, self._round_trip, same_host, self._on_status)
        model, memory = welcome.model, welcome.memory
        patch = " x ".join(map(str, model.patch_size))
        message = (
            f"{welcome.server_version}, protocol {welcome.version}, model {model.name} (license {model.license}) on "
            f"{welcome.device}, patch {patch}, prompts: {', '.join(model.prompts)}"
        )
        if memory is not None:
            message += (
                f", {format_bytes(memory.device)} of {format_bytes(memory.device_total)} device memory free, "
                f"{format_bytes(memory.images)} for images"
            )
        data = {
            "server": welcome.server_version,
            "protocol": welcome.version,
            "model": model.name,
            "license": model.license,
            "device": welcome.device,
            "patch_size": list(model.patch_size),
            "prompts": model.prompts,
            "memory_free_bytes": None if memory is None else memory.device,
            "memory_total_bytes": None if memory is None else memory.device_total,
            "memory_for_images_bytes": None if memory is None else memory.images,
        }
        return StepOutput(message, data)

    async def _check_http_api(self) -> StepOutput | None:
        """Check whether clients of nnInteractive's own server can use this one. The request starts nothing there."""
        if self._probe is None:
            return None
        try:
            response = await asyncio.to_thread(self._probe.get, "/capabilities", self._token)
        except (OSError, http.client.HTTPException) as e:
            problem = str(e) or type(e).__name__
        else:
            if response.status == HTTPStatus.OK and "supported_interactions" in response.json:
                message = "answered too, for clients of nnInteractive's own server such as napari's plug-in"
                return StepOutput(message, {"answered": True})
            problem = f"HTTP {response.status}"
        return StepOutput(
            f"no answer to GET /capabilities ({problem}), so clients of nnInteractive's own server cannot use this "
            "address. A proxy in front of the server has to forward all paths. WebSocket clients are not affected.",
            {"answered": False},
            warning=True,
        )


def _certificate_output(secured: ssl.SSLSocket) -> StepOutput:
    """Return the TLS version, issuer and expiry of a connection with a valid certificate."""
    certificate: dict[str, Any] = dict(secured.getpeercert() or {})
    issuer = {name: value for part in certificate.get("issuer", ()) for name, value in part}
    authority = issuer.get("organizationName") or issuer.get("commonName") or "an unnamed authority"
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    message = f"{secured.version()}, certificate issued by {authority}, valid until {expires:%Y-%m-%d}"
    soon = expires - datetime.now(UTC) < _EXPIRES_SOON
    if soon:
        message += ", which is soon: renew it"
    data = {"tls": secured.version(), "issuer": authority, "expires": expires.isoformat()}
    return StepOutput(message, data, warning=soon)


def _server_output(server: IdentifiedServer) -> StepOutput:
    """Return the status of a server of this project."""
    health, software = server.health.json, server.health.software
    message = f"{server.name}, {health['status']}"
    if isinstance(health.get("sessions"), int) and isinstance(health.get("max_sessions"), int):
        message += f", {health['sessions']} of {health['max_sessions']} sessions in use"
    if software:
        message += f", behind a proxy ({software})"
    status = {name: health.get(name) for name in ("status", "protocol", "sessions", "max_sessions")}
    return StepOutput(message, {"product": server.product, "server": server.name, **status, "behind": software or None})
