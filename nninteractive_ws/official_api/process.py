"""The process that answers nnInteractive's HTTP API.

The gateway starts it with ``python -m nninteractive_ws.official_api.process``, and a secret as the first line of
standard input. It prints the port on which it listens, on loopback only. Each connection there begins with a line from
the gateway: the secret and the client's address. What follows is HTTP. The process ends when its standard input is
closed.
"""

import argparse
import asyncio
from contextlib import ExitStack
import functools
import hmac
from http import HTTPStatus
import logging
import sys
from typing import Any

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from nninteractive_ws.host_resources import available_memory
from nninteractive_ws.logs import configure_logging
from nninteractive_ws.official_api.app import OfficialApi
from nninteractive_ws.official_api.bodies import BodyTimer
from nninteractive_ws.official_api.leases import Leases, Limits
from nninteractive_ws.processes import wait_until_stdin_closes
from nninteractive_ws.server.admission import MAX_PENDING, Admission, bound_port, listen
from nninteractive_ws.server.hosts import WebPageGuard

#: Share of the free memory at the start for the images of clients. The workers take 80 % by default.
MEMORY_SHARE = 0.2
#: Timeout for the first line of a connection, and its size limit.
PREAMBLE_TIMEOUT_S, MAX_PREAMBLE_BYTES = 5.0, 256
#: Timeout for a request up to the end of its headers, from its first byte.
HEADER_TIMEOUT_S = 20.0
#: Seconds that an unused connection is kept. nnInteractive's client sends a heartbeat every 30 seconds.
KEEP_ALIVE_S = 75
#: Size limit of the headers of a request.
MAX_HEADER_BYTES = 64 * 1024
_SHUTDOWN_TIMEOUT_S = 2
# Headers that proxies add to requests.
_PROXY_HEADERS = frozenset((b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"))


class GatewayConnection(H11Protocol):
    """An HTTP connection that is relayed by the gateway."""

    def __init__(self, *arguments: Any, secret: bytes, admission: Admission, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._secret, self._admission = secret, admission
        self._preamble: bytes | None = b""
        self._accepted = ExitStack()
        self._timer: asyncio.TimerHandle | None = None
        self._app, self.app = self.app, self._answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(PREAMBLE_TIMEOUT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._accepted.close()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._preamble is None:
            self._receive(data)
            return
        self._preamble += data
        line, newline, rest = self._preamble.partition(b"\n")
        if not newline:
            if len(line) > MAX_PREAMBLE_BYTES:
                self.transport.abort()
            return
        secret, _, peer = line.partition(b" ")
        if not hmac.compare_digest(secret, self._secret):
            self.transport.abort()
            return
        self._stop_timer()
        self._preamble, self.client = None, (peer.decode("ascii", "replace"), 0)
        self._accepted.enter_context(self._admission.with_session(self.transport))
        if rest:  # empty data would mean the end of the connection
            self._receive(rest)

    def _receive(self, data: bytes) -> None:
        super().data_received(data)
        is_idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if is_idle or (self.cycle is not None and not self.cycle.response_complete):
            self._stop_timer()
        elif self._timer is None:
            # uvicorn has no timeout for headers.
            self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. The answer ends once the body of the request has arrived, even if the body is not used.

        Otherwise uvicorn may close the connection at the end of the answer, which a client that is still sending its
        body cannot read then.
        """
        arriving = True

        async def receive_part() -> Message:
            nonlocal arriving
            message = await receive()
            arriving = message.get("more_body", False)
            return message

        async def send_part(message: Message) -> None:
            if message["type"] == "http.response.start" and _closes_connection(scope, message["status"]):
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                timer = BodyTimer(_body_length(scope))
                try:
                    while arriving:
                        async with timer.next_part():
                            await receive_part()
                except TimeoutError:
                    self.transport.abort()
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, receive_part, send_part)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP. If they are in a body, this is the answer to its request."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _closes_connection(scope: Scope, status: int) -> bool:
    """Return whether an answer is the last one of its connection.

    The gateway relays all requests of a connection to this process, and the connections of a proxy have requests of
    several clients, such as browsers. A proxy that does not announce itself is recognized when one of them fails.
    """
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        return True
    return any(name in _PROXY_HEADERS for name, _ in scope["headers"])


def _body_length(scope: Scope) -> int | None:
    """Return the length of a request's body; None if it is unknown."""
    headers = dict(scope["headers"])
    # A chunked body may have any length, even in a request with a Content-Length.
    return None if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0))


async def _serve(args: argparse.Namespace, secret: str) -> None:
    max_bytes = int(available_memory() * MEMORY_SHARE)
    leases = Leases(args.gateway, Limits(args.max_sessions, args.max_sessions_per_user, max_bytes))
    guard = WebPageGuard(None if args.tokens else args.host, args.origin)
    admission = Admission(MAX_PENDING, MAX_PENDING, 4 * MAX_PENDING)
    (listening,) = listen("127.0.0.1", 0, admission)
    config = Config(
        OfficialApi(args.gateway, leases, guard).make_app(),
        http=functools.partial(GatewayConnection, secret=secret.encode(), admission=admission),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        backlog=admission.accept_batch,
    )
    server = Server(config)
    print(bound_port(listening), flush=True)
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    parent = asyncio.ensure_future(wait_until_stdin_closes())
    await asyncio.wait({serving, parent}, return_when=asyncio.FIRST_COMPLETED)
    parent.cancel()
    server.should_exit = True
    await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--max-sessions", type=int, required=True)
    parser.add_argument("--max-sessions-per-user", type=int, required=True)
    parser.add_argument("--tokens", action="store_true")
    parser.add_argument("--host", action="append", default=[])
    parser.add_argument("--origin", action="append", default=[])
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-json", action="store_true")
    args = parser.parse_args()
    configure_logging("official API", args.log_level, args.log_json)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    asyncio.run(_serve(args, sys.stdin.readline().strip()))


if __name__ == "__main__":
    main()
