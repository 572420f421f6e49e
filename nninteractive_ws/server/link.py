"""What gateway and worker say to each other beside the clients' messages.

A worker dials in twice: once for itself, on ``WORKER_PATH`` with the secret it was started with, and then once
for every session it is asked to open, on ``SESSION_PATH`` with that session's token. What travels on a
session's connection is what the client and the session say, unchanged.
"""

import msgspec

from nninteractive_ws.messages import Encoding, Limits, Model

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


class Open(msgspec.Struct, frozen=True, tag="open"):
    """Gateway to worker: dial in for a session."""

    token: str
    encoding: Encoding


WorkerMessage = Ready | Failed


def encode(message: WorkerMessage | Open) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_worker(data: bytes) -> WorkerMessage:
    message: WorkerMessage = msgspec.msgpack.decode(data, type=WorkerMessage)
    return message


def decode_gateway(data: bytes) -> Open:
    return msgspec.msgpack.decode(data, type=Open)


def bearer(secret: str) -> dict[str, str]:
    """The header that carries a secret: headers are in no log and no process list."""
    return {"Authorization": f"Bearer {secret}"}
