"""Bytes to messages and back, and what two ends agree on. No I/O.

The codec is msgpack, by msgspec: it decodes straight into :mod:`nninteractive_ws.messages` and skips what they do
not name. Decoding into plain objects first would let a message of 64 MiB, full of empty maps, take 4 GiB.
"""

from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from nninteractive_ws.errors import WIRE_ERRORS, BadMessage, Error, InternalError, TooLarge, UnsupportedVersion
from nninteractive_ws.messages import (
    ClientMessage,
    Encoding,
    ErrorMessage,
    Hello,
    Message,
    RequestId,
    ServerMessage,
)

#: Of the protocol, not of the package. A change that an older peer would misunderstand makes a new one.
PROTOCOL_VERSION = 1

#: What this release can do beyond the messages of its version; both ends list theirs in the handshake.
FEATURES: tuple[str, ...] = ()

#: A message carries at most a few bricks (32^3 four-byte voxels: 128 KiB each) or one mask.
MAX_MESSAGE_BYTES = 64 * 1024**2


class _Head(msgspec.Struct):
    type: str


class _Identified(msgspec.Struct):
    id: RequestId


def encode(message: Message) -> bytes:
    """The bytes of one WebSocket message."""
    return msgspec.msgpack.encode(message)


def decode_client(data: bytes) -> "ClientMessage | None":
    """A message from a client, or None where its type is not known. Raises BadMessage or TooLarge."""
    message: ClientMessage | None = _decode(data, _CLIENT_TYPES, _CLIENT_DECODER)
    return message


def decode_server(data: bytes) -> "ServerMessage | None":
    """A message from a server, or None where its type is not known. Raises BadMessage or TooLarge."""
    message: ServerMessage | None = _decode(data, _SERVER_TYPES, _SERVER_DECODER)
    return message


def _tags(union: Any) -> frozenset[str]:
    return frozenset(str(kind.__struct_config__.tag) for kind in get_args(union))


_CLIENT_TYPES, _SERVER_TYPES = _tags(ClientMessage), _tags(ServerMessage)
_CLIENT_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ClientMessage)
_SERVER_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ServerMessage)
_HEAD_DECODER = msgspec.msgpack.Decoder(_Head)
_ID_DECODER = msgspec.msgpack.Decoder(_Identified)
# UnicodeDecodeError is a ValueError, and so are msgspec's own errors; RecursionError comes of deep nesting.
_DECODING_ERRORS = (ValueError, RecursionError)


def _decode(data: bytes, known: frozenset[str], decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLarge(f"A message of {len(data):,} bytes came; at most {MAX_MESSAGE_BYTES:,} are accepted.")
    try:
        kind = _HEAD_DECODER.decode(data).type
    except msgspec.ValidationError as e:
        raise BadMessage(f'A message must be a msgpack map with a string "type" ({e}).') from e
    except _DECODING_ERRORS as e:
        raise BadMessage(f"Bytes that are not msgpack came ({e}).") from e
    if kind not in known:
        return None
    try:
        return decoder.decode(data)
    except _DECODING_ERRORS as e:
        raise BadMessage(f'A message of type "{kind}" is wrong: {e}.') from e


def request_id(data: bytes) -> int | None:
    """The request id in bytes that may be a wrong message: so that the error can name its request."""
    try:
        return _ID_DECODER.decode(data).id
    except _DECODING_ERRORS:
        return None


def to_error_message(error: Error, request: int | None) -> ErrorMessage:
    """How an error travels."""
    code = error.code if error.code in WIRE_ERRORS else InternalError.code
    # A path or a name of the operating system may hold what UTF-8 cannot.
    sentence = str(error)[:4096].encode(errors="replace").decode()
    return ErrorMessage(code=code, message=sentence, id=request)


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
