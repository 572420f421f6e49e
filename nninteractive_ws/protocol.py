"""Bytes to messages and back, and what two ends agree on. No I/O.

The codec is msgpack; msgspec checks what it decoded against :mod:`nninteractive_ws.messages`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import msgpack
import msgspec

from nninteractive_ws.errors import BadMessage, Error, InternalError, TooLarge, UnsupportedVersion
from nninteractive_ws.messages import (
    ClientMessage,
    Encoding,
    ErrorMessage,
    Hello,
    Message,
    Request,
    ServerMessage,
)

#: Of the protocol, not of the package. A change that an older peer would misunderstand makes a new one.
PROTOCOL_VERSION = 1

#: What this release can do beyond the messages of its version; both ends list theirs in the handshake.
FEATURES: tuple[str, ...] = ()

#: A message carries at most a few bricks (64^3 four-byte voxels: 1 MiB each) or one mask.
MAX_MESSAGE_BYTES = 64 * 1024**2

M = TypeVar("M")


def encode(message: Message) -> bytes:
    """The bytes of one WebSocket message."""
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    packed: bytes = msgpack.packb(fields)
    return packed


def decode_client(data: bytes) -> "ClientMessage | None":
    """A message from a client, or None where its type is not known. Raises BadMessage or TooLarge."""
    return _decode(data, _CLIENT_TYPES, ClientMessage)


def decode_server(data: bytes) -> "ServerMessage | None":
    """A message from a server, or None where its type is not known. Raises BadMessage or TooLarge."""
    return _decode(data, _SERVER_TYPES, ServerMessage)


def _tags(union: Any) -> frozenset[str]:
    return frozenset(str(kind.__struct_config__.tag) for kind in get_args(union))


_CLIENT_TYPES, _SERVER_TYPES = _tags(ClientMessage), _tags(ServerMessage)


def _decode(data: bytes, known: frozenset[str], union: Any) -> Any:
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLarge(f"A message of {len(data):,} bytes came; at most {MAX_MESSAGE_BYTES:,} are accepted.")
    try:
        fields = msgpack.unpackb(data)
    except Exception as e:  # msgpack raises many kinds, among them RecursionError's kin
        raise BadMessage(f"Bytes that are not msgpack came ({type(e).__name__}: {e}).") from e
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise BadMessage('A message must be a msgpack map with a string "type".')
    if fields["type"] not in known:
        return None
    try:
        return msgspec.convert(fields, union)
    except (msgspec.ValidationError, RecursionError) as e:
        raise BadMessage(f'A message of type "{fields["type"]}" is wrong: {e}.') from e


def request_id(data: bytes) -> int | None:
    """The request id in bytes that may be a wrong message: so that the error can name its request."""
    try:
        found = msgpack.unpackb(data)["id"]
    except Exception:  # anything at all may be in there
        return None
    return found if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= 2**53 else None


def to_error_message(error: Error, request: int | None) -> ErrorMessage:
    """How an error travels."""
    code = error.code if type(error) is not Error else InternalError.code
    return ErrorMessage(code=code, message=str(error)[:4096], id=request)


def check_version(hello: Hello) -> None:
    """Raises UnsupportedVersion with a sentence that says who is to be updated."""
    if hello.version == PROTOCOL_VERSION:
        return
    older = "client" if hello.version < PROTOCOL_VERSION else "server"
    raise UnsupportedVersion(
        f"The client speaks version {hello.version} of the protocol and the server version {PROTOCOL_VERSION}. "
        f"Update the {older} (pip install --upgrade nninteractive-ws)."
    )


def agree_on_encoding(theirs: Sequence[str], ours: Sequence[Encoding]) -> Encoding:
    """The first encoding of the client's list that the server has too. Raises UnsupportedVersion if none."""
    for name in theirs:
        for encoding in ours:
            if name == encoding:
                return encoding
    raise UnsupportedVersion(f"The client offers the array encodings {list(theirs)}; the server has {list(ours)}.")


def is_request(message: object) -> bool:
    """Whether a client's message has an id and gets one answer."""
    return isinstance(message, Request)
