"""The protocol between gateway and workers.

A worker connects to a port of the gateway that is only on loopback, and only for workers. Its control connection is on
``WORKER_PATH``, with the secret it was started with. It makes a further connection for every connection of a client, on
``SESSION_PATH``, with that connection's token. The first message there is :class:`SessionAttached`. After it, the
messages of client and session are relayed unchanged. The worker closes the connection normally when the session is
over, and the gateway closes it when the client is gone.
"""

import asyncio
import base64
import contextlib
import socket
from typing import TextIO

import msgspec
from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws.messages import Encoding, FreeMemory, Limits, Model, Timings
from nninteractive_ws.protocol import to_msgpack

# A probe every 3 seconds after 5 seconds of silence. Three lost probes end the connection, and so does data that is not
# acknowledged for 14 seconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 14_000}

WORKER_PATH = "/worker"
SESSION_PATH = "/worker/session"


class ModelReady(msgspec.Struct, frozen=True, tag="model_ready"):
    """Worker to gateway: the model is loaded.

    ``capabilities``: its JSON description in nnInteractive's HTTP API. ``host``: the name of the worker's machine.
    """

    model: Model
    device: str
    limits: Limits
    capabilities: str = "{}"
    host: str = ""


class ModelLoadFailed(msgspec.Struct, frozen=True, tag="model_load_failed"):
    """Worker to gateway: the model cannot be loaded. ``message``: a sentence for the user."""

    message: str


class SessionEnded(msgspec.Struct, frozen=True, tag="session_ended"):
    """Worker to gateway: a session is over. ``evicted``: it was evicted for another session."""

    session: str
    evicted: bool


class RequestAnswered(msgspec.Struct, frozen=True, tag="request_answered"):
    """Worker to gateway: a request of type ``kind`` was answered. ``code``: of an error; ``timings``: of a done.

    ``used``: whether it counts as use of the session, because it succeeded and was no heartbeat.
    """

    session: str
    kind: str
    code: str | None = None
    timings: Timings | None = None
    used: bool = False


class EvictionRefused(msgspec.Struct, frozen=True, tag="eviction_refused"):
    """Worker to gateway: a session was not evicted, because it is not idle."""

    session: str


class EndingSoon(msgspec.Struct, frozen=True, tag="ending_soon"):
    """Worker to gateway: the worker was asked to end, for instance by a scheduler. It takes no new sessions."""

    reason: str


class MemoryUsage(msgspec.Struct, frozen=True, tag="memory_usage"):
    """Worker to gateway: ``used`` bytes on its device, and the bytes ``charged`` to its sessions, by purpose."""

    used: int
    charged: dict[str, int] = {}


class OpenSession(msgspec.Struct, frozen=True, tag="open_session"):
    """Gateway to worker: connect for a session, with ``token``.

    ``resume``: for an existing session. If that is over by now, the worker only sends :class:`SessionAttached` with
    ``created`` true. ``allow_eviction``: whether other sessions may be evicted for this one.
    """

    token: str
    session: str
    encoding: Encoding
    resume: bool
    allow_eviction: bool


class CloseSession(msgspec.Struct, frozen=True, tag="close_session"):
    """Gateway to worker: close a session.

    ``idle_s``: evict it, but only if it has been idle for this many seconds. The answer is :class:`SessionEnded` or
    :class:`EvictionRefused`. None: close it in any case.
    """

    session: str
    idle_s: float | None = None


class SessionAttached(msgspec.Struct, frozen=True):
    """Worker to gateway, as the first message on a session's connection: the session's fields of ``welcome``."""

    created: bool = False
    last_id: int = 0
    revisions: dict[str, int] = {}
    image: str | None = None
    present_bricks: bytes = b""
    memory: FreeMemory | None = None


WorkerMessage = (
    ModelReady | ModelLoadFailed | SessionEnded | RequestAnswered | EvictionRefused | EndingSoon | MemoryUsage
)
GatewayMessage = OpenSession | CloseSession


def encode(message: WorkerMessage | GatewayMessage | SessionAttached) -> bytes:
    return to_msgpack(message)


def decode_worker(data: bytes) -> WorkerMessage:
    message: WorkerMessage = msgspec.msgpack.decode(data, type=WorkerMessage)
    return message


def decode_gateway(data: bytes) -> GatewayMessage:
    message: GatewayMessage = msgspec.msgpack.decode(data, type=GatewayMessage)
    return message


def decode_attached(data: bytes) -> SessionAttached:
    return msgspec.msgpack.decode(data, type=SessionAttached)


def encode_credentials(secret: str, certificate: bytes) -> bytes:
    """Return the first two lines of a worker's standard input: its secret, and the certificate (DER) to trust.

    Standard input is neither in arguments, nor in environments, nor in the description of a job.
    """
    return f"{secret}\n{base64.b64encode(certificate).decode()}\n".encode()


def read_credentials(stream: TextIO) -> tuple[str, bytes]:
    """Read secret and certificate. Without a certificate, the connection has no TLS."""
    return stream.readline().strip(), base64.b64decode(stream.readline())


def watch_connection(connection: Connection) -> None:
    """Let the system notice within seconds that the other machine is gone.

    Unlike a ping, this does not ask the other process, which a long computation may delay.
    """
    transport_socket = connection.transport.get_extra_info("socket")
    if transport_socket is None:  # a TLS connection that was lost
        return
    transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # these exist on Linux; other systems have some of them
            transport_socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def drain(connection: Connection) -> None:
    """Read and discard messages until the other side has closed the connection."""
    with contextlib.suppress(ConnectionClosed):
        async for _ in connection:
            pass


async def close(connection: Connection) -> None:
    """Close a session's connection, even if the other side is still sending.

    While received messages are unread, nothing more is read from the socket. Without draining, the end of the
    connection would not be noticed before the close timeout (websockets issue 1555).
    """
    reading = asyncio.ensure_future(drain(connection))
    await connection.close()
    await reading


def bearer(secret: str) -> dict[str, str]:
    """Return the header for a secret. Headers appear neither in logs nor in process lists."""
    return {"Authorization": f"Bearer {secret}"}
