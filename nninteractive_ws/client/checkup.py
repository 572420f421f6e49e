"""Can a server be used from here, how well, and if not, what is wrong: step by step, each in words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
import http.client
import importlib.util
from pathlib import Path
import socket
import ssl
import statistics
import time
from typing import Any, Literal, TypeVar, cast

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidUpgrade
from websockets.proxy import Proxy

from nninteractive_ws.client.address import (
    NO_UPGRADE,
    Address,
    explain,
    look_up,
    parse_address,
    redirect_message,
    trust,
)
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.dial import dial, open_tunnel
from nninteractive_ws.client.finding import Finding, Look, Trouble
from nninteractive_ws.client.http import Route
from nninteractive_ws.client.proxies import no_proxy_hint, proxy_for
from nninteractive_ws.client.recognise import Answerer, recognise
from nninteractive_ws.client.reconnect import why_closed
from nninteractive_ws.client.speed import Speed
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.errors import ConnectionFailed, Error, Unauthorized
from nninteractive_ws.redaction import printable, redact

T = TypeVar("T")

#: Name, connection, TLS and plain HTTP are there within this, each.
ANSWER_WITHIN_S = 10.0
_PINGS = 5
_EXPIRES_SOON = timedelta(days=14)

Step = Callable[[], Awaitable[Look | None]]


class Checkup:
    """The steps, each with what those before it have found out. ``say`` is told what is being done."""

    def __init__(
        self, address: str, *, token: str | None, ca: Path | None, say: Callable[[str], object] = lambda _: None
    ) -> None:
        self._given, self._token, self._ca, self._say = address, token, ca, say
        self._address: Address
        self._trusting: ssl.SSLContext | None = None
        self._tunnel: Tunnel | None = None
        self._proxy: Proxy | None = None
        self._route: Route | None = None
        self._answerer: Answerer | None = None
        self._session: AsyncSession | None = None
        self._round_trip = 0.0
        self._speed: Speed

    async def run(self) -> AsyncIterator[Finding]:
        """The findings, as they come; the first that failed is the last. The session and the tunnel end with it."""
        steps: dict[str, Step] = {
            "address": self._look_at_address,
            "ssh": self._open_tunnel,
            "proxy": self._look_for_proxy,
            "name": self._look_up,
            "connection": self._connect,
            "encryption": self._secure,
            "server": self._ask_who,
            "websocket": self._ping,
            "session": self._open_session,
            "upload": lambda: self._speed.upload(),
            "download": lambda: self._speed.download(),
            "prompt": lambda: self._speed.prompt(),
            "first_mask": lambda: self._speed.estimate(),
        }
        try:
            for step, look in steps.items():
                self._say(step.replace("_", " "))
                finding = await self._take(step, look)
                if finding is not None:
                    yield finding
                    if finding.status == "failed":
                        return
        finally:
            await self._close()

    async def _take(self, step: str, look: Step) -> Finding | None:
        started = time.monotonic()
        try:
            seen = await look()
        except (Trouble, Error) as e:
            trouble = self._through_ssh(step, e)
            data = self._redacted(trouble.data) if isinstance(trouble, Trouble) else {}
            return Finding(step, "failed", self._redacted(str(trouble)), time.monotonic() - started, trouble.code, data)
        if seen is None:
            return None
        status: Literal["ok", "warning"] = "warning" if seen.warning else "ok"
        return Finding(
            step, status, self._redacted(seen.found), time.monotonic() - started, data=self._redacted(seen.data)
        )

    def _redacted(self, found: T) -> T:
        """The same without secrets and control characters: a server may have sent them."""
        if isinstance(found, str):
            return cast("T", redact(printable(found), self._token))
        if isinstance(found, dict):
            return cast("T", {key: self._redacted(value) for key, value in found.items()})
        if isinstance(found, list):
            return cast("T", [self._redacted(value) for value in found])
        return found

    def _through_ssh(self, step: str, trouble: Trouble | Error) -> Trouble | Error:
        """The tunnel's end here takes every connection; whether there is something at its other end, ssh knows."""
        if self._tunnel is None or step in ("ssh", "session") or not self._tunnel.nothing_listens:
            return trouble
        return Trouble("refused", str(self._tunnel.explain(ConnectionFailed(str(trouble)))))

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._route is not None:
            self._route.close()
        if self._tunnel is not None:
            await asyncio.to_thread(self._tunnel.close)

    # ---- the way there ------------------------------------------------------------------------------------

    async def _look_at_address(self) -> Look:
        self._address = address = parse_address(self._given)
        self._trusting = trust(address, self._ca)
        data = {"url": address.url, "host": address.host, "port": address.port, "secure": address.secure}
        return Look(str(address), data)

    async def _open_tunnel(self) -> Look | None:
        if self._address.ssh is None:
            return None
        self._tunnel = Tunnel(self._address.ssh)
        await open_tunnel(self._tunnel)
        target, self._address = self._tunnel.target, self._tunnel.local
        self._route = Route(self._address, None, None, ANSWER_WITHIN_S)
        words = f"lets {target.host} be reached, and forwards to port {target.server_port} there"
        return Look(words, {"host": target.host, "server_port": target.server_port})

    async def _look_for_proxy(self) -> Look | None:
        if self._tunnel is not None:
            return None
        try:
            self._proxy = proxy = proxy_for(self._address)
        except ConnectionFailed as e:
            raise Trouble("bad_proxy", str(e)) from e
        if proxy is None:
            why = "this machine needs none" if self._address.is_loopback else "this computer's settings name none"
            return Look(f"none: {why}", {"proxy": None})
        if proxy.scheme.startswith("socks") and importlib.util.find_spec("python_socks") is None:
            raise Trouble(
                "bad_proxy",
                f"This computer's settings name a SOCKS proxy ({proxy.host}:{proxy.port}), for which a package is "
                f"missing: pip install python-socks. {no_proxy_hint(self._address)}",
            )
        words = (
            f"connections go through {proxy.scheme}://{proxy.host}:{proxy.port}, as this computer's settings say (but "
            "not those of the polled client, and so of 3D Slicer: it goes directly)"
        )
        return Look(words, {"proxy": f"{proxy.scheme}://{proxy.host}:{proxy.port}"})

    async def _look_up(self) -> Look | None:
        proxy, address = self._proxy, self._address
        host, port = (address.host, address.port) if proxy is None else (proxy.host, proxy.port)
        if self._tunnel is not None or (proxy is None and address.is_literal):
            return None
        self._say(f"looking up {host}")
        try:
            looking = asyncio.wrap_future(look_up(host, port, type=socket.SOCK_STREAM))
            found = await asyncio.wait_for(looking, ANSWER_WITHIN_S)
        except TimeoutError as e:
            raise Trouble(
                "no_name_service",
                f'Nobody answers what machine "{host}" is. Check the network, and the VPN.',
            ) from e
        except (OSError, UnicodeError) as e:
            raise Trouble("unknown_name", str(explain(e, Address(False, host, port)))) from e
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        whose = "" if proxy is None else " (the proxy; it looks up the server's name)"
        return Look(f"{host} is {', '.join(addresses)}{whose}", {"host": host, "addresses": addresses})

    async def _connect(self) -> Look | None:
        if self._tunnel is not None:
            return None
        proxy, address = self._proxy, self._address
        self._say(f"connecting to {address.host}:{address.port}")
        if proxy is not None and proxy.scheme != "http":
            return Look("left to the proxy; what is there is seen below")
        self._route = Route(address, self._trusting, proxy, ANSWER_WITHIN_S)
        try:
            peer = await asyncio.to_thread(self._route.connect)
        except (OSError, http.client.HTTPException) as e:
            raise self._no_connection(e) from e
        if proxy is not None:
            return Look(f"the proxy lets connections through to {address.host}:{address.port}", {"peer": peer})
        return Look(f"{peer} port {address.port} accepts connections", {"peer": peer})

    def _no_connection(self, error: Exception) -> Trouble:
        proxy, address = self._proxy, self._address
        if proxy is not None:
            named, said = f"The proxy {proxy.host}:{proxy.port}", str(error)
            if said.startswith("Tunnel connection failed"):
                said = said.removeprefix("Tunnel connection failed: ")
                cure = "It wants a name and a password" if said.startswith("407") else "Ask whoever runs it to allow it"
                words = f"{named} does not let connections through to {address.host}:{address.port} (HTTP {said}). "
                return Trouble("proxy_refused", f"{words}{cure}. {no_proxy_hint(self._address)}")
            words = f"{named}, which this computer's settings name, cannot be reached ({said})."
            return Trouble("proxy_unreachable", f"{words} {no_proxy_hint(self._address)}")
        words = str(explain(error, address))
        if isinstance(error, ConnectionRefusedError):
            return Trouble("refused", words)
        return Trouble("no_answer" if isinstance(error, TimeoutError) else ConnectionFailed.code, words)

    async def _secure(self) -> Look | None:
        address = self._address
        if self._tunnel is not None or (address.secure and self._route is None):
            return None
        if self._trusting is None:
            if address.is_loopback:
                return Look("none; it does not leave this machine", {"tls": None})
            return Look(
                "none: token and images can be read on the way. Use wss:// or ssh:// where the network is not trusted.",
                {"tls": None},
                warning=True,
            )
        assert self._route is not None
        try:
            agreed = await asyncio.to_thread(self._route.secure, self._trusting)
        except OSError as e:
            explained = explain(e, address)
            if type(explained) is ConnectionFailed:
                code = "no_answer" if isinstance(e, TimeoutError) else "no_tls"
                raise Trouble(code, str(explained)) from e
            raise explained from e
        return _certificate(agreed)

    # ---- who answers --------------------------------------------------------------------------------------

    async def _ask_who(self) -> Look | None:
        if self._route is None:
            return None
        try:
            who = self._answerer = await asyncio.to_thread(recognise, self._route.get)
        except (OSError, http.client.HTTPException) as e:
            raise await self._no_http(e) from e
        where, health = f"{self._address.host}:{self._address.port}", who.health
        if who.product == "nninteractive_ws":
            return _ours(who)
        software = f" ({health.software})" if health.software else ""
        if who.product != "unknown":
            raise Trouble(
                "other_server",
                f"What answers at {where} is {who.name}, which speaks another protocol. Use its own client, or the "
                "address of an nninteractive-ws server; those usually listen on port 1528.",
                product=who.product,
            )
        if health.status in (502, 503, 504):
            raise Trouble(
                "no_server_behind_proxy",
                f"A proxy{software} answers at {where} (HTTP {health.status}) but reaches no server behind it. Start "
                "the server there (nninteractive-ws serve), or correct the address to which the proxy passes on.",
            )
        if health.status in (401, 407):
            raise Trouble(
                "login_in_front",
                f"Something in front of the server{software} wants a login of its own (HTTP {health.status}): the "
                "server's own token is never asked for here. Ask whoever runs it for a way past it.",
            )
        if health.status == 421:  # of this server, to a name that it was not told of
            raise Trouble("host_refused", health.body.decode(errors="replace").strip())
        if 300 <= health.status < 400:
            raise Trouble("redirected", redirect_message(health.headers.get("location", ""), self._address))
        if health.status == 400 and await asyncio.to_thread(self._wants_tls):
            raise self._tls_wanted()
        words = f"{who.name or 'something that speaks HTTP'} (HTTP {health.status}), and no nninteractive-ws so far"
        return Look(words, {"product": who.product, "status": health.status}, warning=True)

    async def _no_http(self, error: Exception) -> Trouble:
        where = f"{self._address.host}:{self._address.port}"
        if isinstance(error, TimeoutError):
            return Trouble(
                "silent",
                f"{where} accepts connections, but says nothing within {ANSWER_WITHIN_S:g} seconds. The program there "
                "hangs, or is none that speaks HTTP; is the port right?",
            )
        if await asyncio.to_thread(self._wants_tls):
            return self._tls_wanted()
        said = str(error) or type(error).__name__
        return Trouble(
            "not_http",
            f"What answers at {where} does not speak HTTP, as an nninteractive-ws server does ({said}). Is the port "
            "right?",
        )

    def _wants_tls(self) -> bool:
        return self._route is not None and self._trusting is None and self._route.speaks_tls()

    def _tls_wanted(self) -> Trouble:
        where = f"{self._address.host}:{self._address.port}"
        words = f"The server at {where} speaks TLS. Write wss://{where} instead."
        return Trouble("wants_tls", words)

    async def _ping(self) -> Look:
        try:
            websocket = await dial(self._address, token=self._token, trusting=self._trusting)
        except Unauthorized as e:
            raise self._no_token() from e
        except ConnectionFailed as e:
            if self._is_ours and isinstance(e.__cause__, InvalidStatus | InvalidUpgrade):
                raise Trouble("no_websocket", NO_UPGRADE) from e
            if self._answerer is not None and not self._is_ours:
                raise Trouble("not_ours", str(e)) from e
            raise
        try:
            times = [await (await websocket.ping()) for _ in range(_PINGS)]
        except ConnectionClosed as e:
            raise why_closed(e.rcvd, e.sent, e.__cause__) from e
        finally:
            await websocket.close()
        self._round_trip = statistics.median(times)
        token = "the token is accepted" if self._token else "no token is needed"
        data = {"round_trip_seconds": self._round_trip, "token_given": bool(self._token)}
        return Look(f"open, {token}; round trip {1000 * self._round_trip:.1f} ms (median of {_PINGS})", data)

    @property
    def _is_ours(self) -> bool:
        return self._answerer is not None and self._answerer.product == "nninteractive_ws"

    def _no_token(self) -> Trouble:
        how = (
            "on the command line as the environment variable NNINTERACTIVE_WS_TOKEN, in Python as the argument token "
            "of connect()"
        )
        who = "Whoever runs the server makes one with nninteractive-ws token NAME."
        if self._token:
            return Trouble("token_wrong", f"The server does not know this token. Is it complete, and current? {who}")
        return Trouble("token_missing", f"The server wants a token, and none was given: it is given {how}. {who}")

    # ---- in a session -------------------------------------------------------------------------------------

    async def _open_session(self) -> Look:
        # Others keep their place: at capacity, that is what there is to say.
        dialler = partial(dial, self._address, token=self._token, trusting=self._trusting)
        self._session = AsyncSession(dialler, Core(make_room=False), reconnect_for=0)
        self._session.on("notice", lambda notice: self._say(notice.message))
        welcome = await self._session.wait_open()
        here = self._tunnel is None and self._address.is_loopback
        self._speed = Speed(self._session, self._round_trip, here, self._say)
        model, memory = welcome.model, welcome.memory
        patch = " x ".join(map(str, model.patch_size))
        words = (
            f"{welcome.server}, protocol {welcome.version}, model {model.name} (licence {model.license}) on "
            f"{welcome.device}, patch {patch}, prompts: {', '.join(model.prompts)}"
        )
        if memory is not None:
            words += (
                f"; {_gb(memory.device)} of {_gb(memory.device_total)} memory free there, {_gb(memory.images)} for "
                "images"
            )
        data = {
            "server": welcome.server,
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
        return Look(words, data)


def _certificate(agreed: ssl.SSLSocket) -> Look:
    """What there is to say of a connection with a certificate that was found good."""
    certificate: dict[str, Any] = dict(agreed.getpeercert() or {})
    issuer = {name: value for part in certificate.get("issuer", ()) for name, value in part}
    named = issuer.get("organizationName") or issuer.get("commonName") or "an authority without a name"
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    words = f"{agreed.version()}, certificate of {named}, valid until {expires:%Y-%m-%d}"
    soon = expires - datetime.now(UTC) < _EXPIRES_SOON
    if soon:
        words += ": it has to be renewed soon"
    data = {"tls": agreed.version(), "issuer": named, "expires": expires.isoformat()}
    return Look(words, data, warning=soon)


def _ours(who: Answerer) -> Look:
    said, software = who.health.json, who.health.software
    words = f"{who.name}, {said['status']}"
    if isinstance(said.get("sessions"), int) and isinstance(said.get("max_sessions"), int):
        words += f", {said['sessions']} of {said['max_sessions']} sessions in use"
    if software:
        words += f"; behind a proxy ({software})"
    kept = {name: said.get(name) for name in ("status", "protocol", "sessions", "max_sessions")}
    return Look(words, {"product": who.product, "server": who.name, **kept, "behind": software or None})


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"
