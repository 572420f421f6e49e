"""Encoding and decoding of messages, and negotiation between client and server, without I/O.

Messages are msgpack. The package msgpack writes them and msgspec reads them, so that every message is written by one
implementation and read by another. msgspec decodes straight into :mod:`nninteractive_ws.messages` and skips unknown
fields. Decoding into plain objects first would let a message of 64 MiB, full of empty maps, take 4 GiB.
"""

from collections.abc import Sequence
from typing import Any, get_args

import msgpack
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

#: Version of the protocol, not of the package. It increases with every change that an older peer would misunderstand.
PROTOCOL_VERSION = 1

#: The feature of bricks in two layers.
LAYERED_BRICKS = "layered_bricks"
#: Features of this release beyond the messages of its protocol version. Both ends list theirs in the handshake.
FEATURES: tuple[str, ...] = (LAYERED_BRICKS,)

#: Limit of a message, which has a few bricks (32^3 four-byte voxels, 128 KiB each) or one mask.
MAX_MESSAGE_BYTES = 64 * 1024**2


class _Head(msgspec.Struct):
    type: str


class _Identified(msgspec.Struct):
    id: RequestId


def encode(message: Message) -> bytes:
    """Encode a message as the bytes of one WebSocket message."""
    return to_msgpack(message)


def to_msgpack(value: msgspec.Struct) -> bytes:
    """Encode a struct as a msgpack map of its tag and fields."""
    data: bytes = msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)))
    return data


def decode_client(data: bytes) -> "ClientMessage | None":
    """Decode a message from a client. Return None if its type is unknown. Raises BadMessage or TooLarge."""
    message: ClientMessage | None = _decode(data, _CLIENT_TYPES, _CLIENT_DECODER)
    return message


def decode_server(data: bytes) -> "ServerMessage | None":
    """Decode a message from a server. Return None if its type is unknown. Raises BadMessage or TooLarge."""
    message: ServerMessage | None = _decode(data, _SERVER_TYPES, _SERVER_DECODER)
    return message


def _tags(union: Any) -> frozenset[str]:
    return frozenset(str(kind.__struct_config__.tag) for kind in get_args(union))


_CLIENT_TYPES, _SERVER_TYPES = _tags(ClientMessage), _tags(ServerMessage)
_CLIENT_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ClientMessage)
_SERVER_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ServerMessage)
_HEAD_DECODER = msgspec.msgpack.Decoder(_Head)
_ID_DECODER = msgspec.msgpack.Decoder(_Identified)
# UnicodeDecodeError and msgspec's errors are ValueErrors. Deep nesting raises RecursionError.
_DECODING_ERRORS = (ValueError, RecursionError)


def _decode(data: bytes, known: frozenset[str], decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLarge(
            f"A message of {len(data):,} bytes was received, but at most {MAX_MESSAGE_BYTES:,} are accepted. Send "
            "fewer bricks at once, or a smaller mask."
        )
    try:
        kind = _HEAD_DECODER.decode(data).type
    except msgspec.ValidationError as e:
        raise BadMessage(f'A message must be a msgpack map with a string "type" ({e}).') from e
    except _DECODING_ERRORS as e:
        raise BadMessage(f"The message is not msgpack ({e}). Send one msgpack map in each WebSocket message.") from e
    if kind not in known:
        return None
    try:
        return decoder.decode(data)
    except _DECODING_ERRORS as e:
        raise BadMessage(f'The message of type "{kind}" is invalid ({e}). Check it against protocol.md.') from e


def request_id(data: bytes) -> int | None:
    """Return the request id of a message that may be invalid otherwise, so that the error can name its request."""
    try:
        return _ID_DECODER.decode(data).id
    except _DECODING_ERRORS:
        return None


def to_error_message(error: Error, request: int | None) -> ErrorMessage:
    """Convert an error to its message."""
    code = error.code if error.code in WIRE_ERRORS else InternalError.code
    # A path or a name of the operating system may hold characters that UTF-8 cannot encode.
    sentence = str(error)[:4096].encode(errors="replace").decode()
    return ErrorMessage(code=code, message=sentence, id=request)


def check_version(hello: Hello) -> None:
    """Raise UnsupportedVersion, with a sentence that names the side to update, if the versions differ."""
    if hello.version == PROTOCOL_VERSION:
        return
    older = "client" if hello.version < PROTOCOL_VERSION else "server"
    raise UnsupportedVersion(
        f"The client speaks version {hello.version} of the protocol and the server version {PROTOCOL_VERSION}. "
        f"Update the {older} (pip install --upgrade nninteractive-ws)."
    )


def agree_on_encoding(theirs: Sequence[str], ours: Sequence[Encoding]) -> Encoding:
    """Return the first encoding of the client's list that the server has, too. Raises UnsupportedVersion if none."""
    for name in theirs:
        for encoding in ours:
            if name == encoding:
                return encoding
    raise UnsupportedVersion(
        f"The client offers the array encodings {list(theirs)}, but the server supports {list(ours)}. Offer one of the "
        "latter."
    )
