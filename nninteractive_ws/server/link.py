"""What gateway and worker say to each other beside the clients' messages.

A worker dials in twice, at a port of the gateway's that is on loopback and for workers alone: once for itself, on
``WORKER_PATH`` with the secret it was started with, and then once for every connection of a client, on
``SESSION_PATH`` with that connection's token. There its first message is :class:`Attached`; what follows is what the
client and the session say, unchanged. It closes normally where the session is over, and is closed where the client
went.
"""

import asyncio
import contextlib

import msgspec
from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed

from nninteractive_ws.messages import Encoding, FreeMemory, Limits, Model, Timings

WORKER_PATH = "/worker"
SESSION_PATH = "/worker/session"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker to gateway: the model is loaded."""

    model: Model
    device: str
    limits: Limits


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Worker to gateway: the model cannot be loaded; ``message`` says why."""

    message: str


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """Worker to gateway: a session is over. ``evicted``: in favour of another, while its client may come back."""

    session: str
    evicted: bool


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """Worker to gateway: a request of type ``kind`` was answered. ``code``: of the error; ``timings``: of a done."""

    session: str
    kind: str
    code: str | None = None
    timings: Timings | None = None


class EvictionRefused(msgspec.Struct, frozen=True, tag="kept"):
    """Worker to gateway: a session that was to be evicted is not idle, and stays."""

    session: str


class Memory(msgspec.Struct, frozen=True, tag="memory"):
    """Worker to gateway: bytes in use on its device, and bytes charged to its sessions, by purpose."""

    used: int
    charged: dict[str, int] = {}


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Gateway to worker: dial in for a session. ``take_up``: for one that is there; where it is over by now, the answer
    is an :class:`Attached` that is fresh, and nothing else. ``make_room``: whether others may be forgotten for its
    sake."""

    token: str
    session: str
    encoding: Encoding
    take_up: bool
    make_room: bool


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Gateway to worker: forget a session. ``idle``: only if it is idle, and then for another's sake; the answer is
    :class:`Gone` or :class:`EvictionRefused`."""

    session: str
    idle: bool = False


class Attached(msgspec.Struct, frozen=True):
    """Worker to gateway, first on a session's connection: what ``welcome`` says of the session."""

    fresh: bool = False
    last_id: int = 0
    revisions: dict[str, int] = {}
    image: str | None = None
    bricks: bytes = b""
    memory: FreeMemory | None = None


WorkerMessage = Ready | Failed | Gone | Answered | EvictionRefused | Memory
GatewayMessage = Open | Forget


def encode(message: WorkerMessage | GatewayMessage | Attached) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_worker(data: bytes) -> WorkerMessage:
    message: WorkerMessage = msgspec.msgpack.decode(data, type=WorkerMessage)
    return message


def decode_gateway(data: bytes) -> GatewayMessage:
    message: GatewayMessage = msgspec.msgpack.decode(data, type=GatewayMessage)
    return message


def decode_attached(data: bytes) -> Attached:
    return msgspec.msgpack.decode(data, type=Attached)


async def read_out(connection: Connection) -> None:
    """Read and drop what the other side says, until it has closed."""
    with contextlib.suppress(ConnectionClosed):
        async for _ in connection:
            pass


async def close(connection: Connection) -> None:
    """Close a session's connection, whatever the other side is still saying.

    While messages wait to be read, nothing more is read from the socket, and the end would not be seen before
    the close timeout (websockets issue 1555).
    """
    reading = asyncio.ensure_future(read_out(connection))
    await connection.close()
    await reading


def bearer(secret: str) -> dict[str, str]:
    """The header that carries a secret: headers are in no log and no process list."""
    return {"Authorization": f"Bearer {secret}"}
