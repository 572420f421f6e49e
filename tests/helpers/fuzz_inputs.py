"""Hostile and invalid inputs for a server from a seed: bytes, messages, arrays, orders of messages, and frames.

Inputs derived from the message structs follow changes of these.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import random
import struct
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin
import zlib

import msgpack
import msgspec
import numpy as np

from helpers.strategies import CLIENT_TYPES, PARTS, fields_of
from nninteractive_ws import arrays, protocol
from nninteractive_ws import messages as wire

#: The image and the segment of a session that inputs are sent to.
IMAGE, SEGMENT = "fuzzed", "a"
SHAPE = (40, 36, 32)

Frame = bytes | str

#: Placeholder for an unused request id, see :func:`with_id`.
_FRESH_ID = 0x3ADEFACE


State = Literal["tcp", "handshake", "open", "image"]


@dataclass(frozen=True)
class Input:
    """One input. ``state``: the required state of the connection, which is nothing, the handshake, or the handshake and
    an image with a segment. ``frames``: WebSocket messages, or with ``tcp`` the bytes of a TCP connection."""

    kind: str
    state: State
    frames: tuple[Frame, ...]


def inputs(seed: int) -> Iterator[Input]:
    """Yield inputs endlessly."""
    rng = random.Random(seed)
    makers, weights = zip(*_MAKERS.items(), strict=True)
    while True:
        (make,) = rng.choices(makers, weights)
        yield make(rng)


def huge_inputs() -> Iterator[Input]:
    """Yield inputs of the maximum message size and above."""
    mebibyte = 2**20
    head = b"\x82\xa4type\xa4undo\xa1x"
    for state in ("handshake", "open"):
        empty_maps = b"\x80" * (60 * mebibyte)
        yield Input("empty maps", state, (head + b"\xdd" + struct.pack(">I", len(empty_maps)) + empty_maps,))
        yield Input("zeros", state, (bytes(protocol.MAX_MESSAGE_BYTES),))
        yield Input("too long", state, (bytes(protocol.MAX_MESSAGE_BYTES + 1),))
        yield Input("long name", state, (_encode({"type": "undo", "id": _FRESH_ID, "segment": "x" * (60 * mebibyte)}),))
        yield Input("maps in maps", state, (head + b"\x81\xa1x" * (20 * mebibyte),))
        deep = b"\x91" * (30 * mebibyte)
        yield Input("arrays in arrays", state, (head + deep, b"\x91" * (60 * mebibyte)))
    points = [{"type": "add_point", "id": 1, "segment": SEGMENT, "point": [1, 1, 1], "run": False}] * 100_001
    yield Input("too many steps", "image", (_encode(_restore([{"request": p} for p in points])),))
    yield Input("many steps", "image", (_encode(_restore([{"request": p} for p in points[:100_000]])),))
    names = ["x" * 64] * 900_000
    yield Input("many words", "handshake", (_encode({"type": "hello", "version": 1, "encodings": names}),))


def _restore(steps: list[Any]) -> dict[str, Any]:
    return {"type": "restore", "id": _FRESH_ID, "segment": "many", "revision": 1, "steps": steps}


def with_id(frame: bytes, number: int) -> bytes:
    """Return the frame with a new request id if it has a valid one, so that it is not ignored as an old request."""
    return frame.replace(msgpack.packb(_FRESH_ID), b"\xce" + struct.pack(">I", number))


# ---- valid messages -----------------------------------------------------------------------------------------


def value_of(rng: random.Random, annotation: Any, meta: msgspec.Meta | None = None) -> Any:
    """Return a valid value of a field, as decoded msgpack."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation == wire.RequestId:
        return _FRESH_ID
    if origin is Annotated:
        return value_of(rng, args[0], args[1])
    if origin is Literal:
        return rng.choice(args)
    if origin is tuple:
        return [value_of(rng, a) for a in args]
    if origin is list:
        return [value_of(rng, args[0]) for _ in range(rng.randint(1, 3))]
    if origin in (Union, types.UnionType):
        return value_of(rng, rng.choice(args))
    if annotation is types.NoneType:
        return None
    if annotation is bool:
        return rng.random() < 0.5
    if annotation is int:
        low, high = getattr(meta, "ge", None), getattr(meta, "le", None)
        small = rng.randint(max(0, low or 0), 40)
        return rng.choice((small, small, small, low if low is not None else -1, high if high is not None else 2**62))
    if annotation is float:
        return rng.choice((0.5, 1.0, 300.0, 2.0**-126))
    if annotation is str:
        return rng.choice((SEGMENT, IMAGE, "b", "ä" * rng.randint(1, 20)))
    if annotation is bytes:
        return rng.randbytes(rng.randint(0, 60))
    return message_of(rng, annotation)


def message_of(rng: random.Random, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return a valid message or part of a type, independent of the image and arrays on the server."""
    tag = kind.__struct_config__.tag
    found: dict[str, Any] = {} if tag is None else {"type": tag}
    found |= {name: value_of(rng, annotation) for name, annotation in fields_of(kind).items()}
    if kind is wire.Hello:
        found |= {"version": 1, "encodings": ["blosc2"]}
    elif kind is wire.SetImage:
        # A valid shape. Hostile ones are created elsewhere.
        found["shape"] = [rng.randint(1, 40) for _ in range(3)]
    elif kind in (wire.RunLengthMask, wire.AddBbox):
        found["box"] = box = _box(rng)
        found |= bits(rng, box) if kind is wire.RunLengthMask else {}
    elif kind is wire.AddPoint:
        found["point"] = [rng.randrange(n) for n in SHAPE]
    return found


def _box(rng: random.Random) -> list[list[int]]:
    box = []
    for n in SHAPE:
        start = rng.randrange(n)
        box.append([start, rng.randint(start + 1, min(n, start + 9))])
    return box


def bits(rng: random.Random, box: list[list[int]]) -> dict[str, Any]:
    """Return some voxels of a box."""
    voxels = int(np.prod([stop - start for start, stop in box]))
    cuts = sorted(rng.sample(range(1, voxels), min(voxels - 1, rng.randint(0, 6))))
    runs = np.diff([0, *cuts, voxels]).astype("<u4")
    encoding: Any = rng.choice(arrays.ENCODINGS)
    return {"box": box, "runs": len(runs), "encoding": encoding, "data": arrays.pack(runs, encoding)}


def _encode(message: Any) -> bytes:
    packed: bytes = msgpack.packb(message)
    return packed


def _some_message(rng: random.Random) -> dict[str, Any]:
    kinds = [k for k in CLIENT_TYPES if k is not wire.Bye]
    return message_of(rng, rng.choice(kinds))


# ---- bytes --------------------------------------------------------------------------------------------------


def _random_bytes(rng: random.Random) -> Input:
    return Input("random bytes", rng.choice(("handshake", "open")), (rng.randbytes(rng.choice((0, 1, 7, 90, 3000))),))


def _truncated(rng: random.Random) -> Input:
    data = _encode(_some_message(rng))
    return Input("truncated", rng.choice(("handshake", "open", "image")), (data[: rng.randrange(len(data))],))


def _mutated(rng: random.Random) -> Input:
    data = bytearray(_encode(_some_message(rng)))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        change = rng.randrange(3)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at:at] = rng.randbytes(rng.randint(1, 4))
        else:
            del data[at : at + rng.randint(1, 4)]
        data = data or bytearray(b"\x80")
    return Input("mutated", rng.choice(("handshake", "open", "image", "image")), (bytes(data),))


def _valid(rng: random.Random) -> Input:
    """Messages of an honest client in random order."""
    return Input("valid", rng.choice(("handshake", "open", "image", "image")), (_encode(_some_message(rng)),))


# ---- wrong fields -------------------------------------------------------------------------------------------

_WRONG: list[Callable[[random.Random], Any]] = [
    lambda rng: None,
    lambda rng: True,
    lambda rng: rng.choice((-1, 0, 2**31, 2**53 + 1, 2**64 - 1, -(2**63))),
    lambda rng: rng.choice((1.5, float("nan"), float("inf"), -float("inf"), 1e308)),
    lambda rng: rng.choice(("", "x" * 5000, "\udcff".encode("utf-8", "surrogatepass"), "blosc2", "add_point")),
    lambda rng: rng.randbytes(rng.choice((0, 1, 500))),
    lambda rng: rng.choice(([], [[]], [[[]]] * 3, [1, 2], [1, 2, 3, 4], [[0, 0]] * 3, [[5, 1]] * 3, [["a"]] * 3)),
    lambda rng: rng.choice(([[-1, 2]] * 3, [[0, 10**6]] * 3, [[0, 2**31 - 1]] * 3, [10**6] * 3, [-1] * 3)),
    lambda rng: rng.choice(([2**31 - 1] * 3, [2**31 - 1, 1, 1], [2**16, 2**16, 1], [0, 1, 1], [1, 1, 1])),
    lambda rng: rng.choice(({}, {"a": {}}, {1: 2}, {"type": "reset", "id": 1, "segment": SEGMENT})),
    lambda rng: msgpack.ExtType(rng.randrange(128), rng.randbytes(rng.choice((0, 1, 16, 200)))),
    lambda rng: msgpack.Timestamp(rng.randrange(2**32), rng.randrange(10**9)),
]


def _wrong_type(rng: random.Random) -> Input:
    """A message with a field that is missing, out of bounds, or of another type."""
    message = _some_message(rng)
    target = message
    while inner := [v for v in _children(target) if isinstance(v, dict)]:
        if rng.random() < 0.4:
            break
        target = rng.choice(inner)
    name = rng.choice(list(target))
    if rng.random() < 0.12:
        del target[name]
    elif rng.random() < 0.1:
        target[rng.choice(("", "ID", "x" * 300))] = rng.choice(_WRONG)(rng)
    else:
        target[name] = rng.choice(_WRONG)(rng)
    return Input("wrong field", rng.choice(("open", "image", "image", "handshake")), (_encode(message),))


def _children(message: dict[str, Any]) -> Iterator[Any]:
    for value in message.values():
        yield from value if isinstance(value, list) else [value]


def every_wrong_field() -> Iterator[Input]:
    """Yield messages with each field in turn replaced by each kind of invalid value."""
    rng = random.Random(0)
    for kind in CLIENT_TYPES:
        for name in ("type", *kind.__struct_fields__):
            for wrong in _WRONG:
                message = message_of(rng, kind)
                message[name] = wrong(rng)
                yield Input(f"{name} of {kind.__name__}", "image", (_encode(message),))
    for part, wrap in _WRAPPED.items():
        for name in part.__struct_fields__:
            for wrong in _WRONG:
                inner = message_of(rng, part) | {name: wrong(rng)}
                yield Input(f"{name} of {part.__name__}", "image", (_encode(wrap(rng, inner)),))


_WRAPPED: dict[type[msgspec.Struct], Callable[[random.Random, Any], dict[str, Any]]] = {
    wire.RunLengthMask: lambda rng, bits: message_of(rng, wire.AddScribble) | {"mask": bits},
    wire.Brick: lambda rng, brick: {"type": "image_bricks", "image": IMAGE, "bricks": [brick]},
    wire.Step: lambda rng, step: _restore([step]),
}
_FROM_THE_SERVER = {wire.Timings, wire.Model, wire.Limits, wire.FreeMemory}
assert set(_WRAPPED) == set(PARTS) - _FROM_THE_SERVER


# ---- hostile arrays -----------------------------------------------------------------------------------------


def _hostile_blosc2(rng: random.Random) -> bytes:
    """A chunk with a false header or false blocks. The header has version, format, flags and type size, then the sizes
    of the array, of a block and of the chunk (4 bytes each), then the filters, and last the special value."""
    values = np.arange(rng.choice((1, 40, 5000)), dtype="<u4")
    chunk = bytearray(arrays.pack(values, "blosc2"))
    kind = rng.randrange(9)
    if kind == 0:  # claims to contain much more, less, or nothing
        struct.pack_into("<i", chunk, 4, rng.choice((0, 4, 2**31 - 1, -1, 256 * 2**20, len(values) * 4 + 4)))
    elif kind == 1:
        struct.pack_into("<i", chunk, 8, rng.choice((0, 1, 2**31 - 1, -1, 7)))
    elif kind == 2:
        struct.pack_into("<i", chunk, 12, rng.choice((0, 32, 2**31 - 1, -1, len(chunk) + 1)))
    elif kind == 3:  # zeros, NaNs, one value, uninitialized, and unknown values
        chunk[31] = rng.randrange(8) << 4 | chunk[31] & 0x0F
        if rng.random() < 0.5:
            del chunk[32:]
            struct.pack_into("<i", chunk, 12, len(chunk))
    elif kind == 4:
        chunk[rng.choice((0, 1, 2, 3))] = rng.randrange(256)
    elif kind == 5:  # codec and filters
        chunk[rng.randrange(16, 32)] = rng.randrange(256)
    elif kind == 6:  # offsets of the blocks
        for at in range(32, min(40, len(chunk) - 3), 4):
            struct.pack_into("<i", chunk, at, rng.choice((0, -1, 2**31 - 1, 33, len(chunk))))
    elif kind == 7:
        del chunk[rng.randrange(len(chunk)) :]
    else:
        for _ in range(rng.randint(1, 5)):
            chunk[rng.randrange(len(chunk))] = rng.randrange(256)
    return bytes(chunk)


def _hostile_deflate(rng: random.Random) -> bytes:
    stream = bytearray(zlib.compress(bytes(rng.choice((4, 4000, 10**7))), 9))
    change = rng.randrange(4)
    if change == 0:
        del stream[rng.randrange(len(stream)) :]
    elif change == 1:
        stream += bytes(stream)
    elif change == 2:
        stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
    return bytes(stream)


def _hostile_runs(rng: random.Random) -> dict[str, Any]:
    """Validly packed run lengths with a wrong or excessive sum."""
    runs = np.array([rng.choice((0, 1, 5, 2**31, 2**32 - 1)) for _ in range(rng.choice((1, 2, 9, 4000)))], dtype="<u4")
    return {"runs": len(runs), "encoding": "raw", "data": runs.tobytes()}


def _hostile_bits(rng: random.Random) -> dict[str, Any]:
    made = bits(rng, _box(rng))
    kind = rng.randrange(4)
    if kind == 0:
        made |= {"encoding": "blosc2", "data": _hostile_blosc2(rng)}
        made["runs"] = rng.choice((made["runs"], 1, 40, 5000, 64 * 2**20))
    elif kind == 1:
        made |= {"encoding": "deflate", "data": _hostile_deflate(rng), "runs": rng.choice((1, 1000, 64 * 2**20))}
    elif kind == 2:
        made |= _hostile_runs(rng)
    else:
        made["runs"] = rng.choice((1, 2, 10**9, 2**31 - 1, 64 * 2**20 + 1))
    if rng.random() < 0.2:
        made["box"] = rng.choice(([[0, 40], [0, 36], [0, 32]], [[0, 2**31 - 1]] * 3, [[0, 41], [0, 1], [0, 1]]))
    return made


def _hostile_array(rng: random.Random) -> Input:
    if rng.random() < 0.3:
        encoding = rng.choice(arrays.ENCODINGS)
        makers: dict[str, Callable[[random.Random], bytes]] = {
            "blosc2": _hostile_blosc2,
            "deflate": _hostile_deflate,
            "raw": lambda r: r.randbytes(r.randrange(99)),
        }
        brick = {"index": rng.choice((0, 0, 1, 2**53)), "encoding": encoding, "data": makers[encoding](rng)}
        count = rng.choice((1, 1, 3, 64, 65))
        message: dict[str, Any] = {"type": "image_bricks", "image": IMAGE, "bricks": [brick] * count}
    else:
        kind = rng.choice((wire.AddScribble, wire.AddLasso, wire.SetMask, wire.Restore))
        message = message_of(rng, kind)
        if kind is wire.Restore:
            step = {"request": message_of(rng, wire.AddPoint), "change": _hostile_bits(rng)}
            message["steps"] = [step, {"request": message_of(rng, wire.SetMask) | {"mask": _hostile_bits(rng)}}]
        else:
            message["mask"] = _hostile_bits(rng)
    return Input("hostile array", "image", (_encode(message),))


# ---- deep nesting and false lengths -------------------------------------------------------------------------


def _deep(rng: random.Random) -> Input:
    depth = rng.choice((10, 1000, 100_000))
    inside = rng.choice((b"\x91" * depth, b"\x81\xa1x" * depth, b"\x91\x81\xa1x" * depth, b"\xdd\0\0\0\1" * depth))
    tail = rng.choice((b"", b"\xc0"))
    head = rng.choice((b"", b"\x82\xa4type\xa4undo\xa1x", b"\x81\xa4type", b"\x82\xa4type\xa7restore\xa5steps"))
    return Input("deep", rng.choice(("handshake", "open")), (head + inside + tail,))


def _lying_length(rng: random.Random) -> Input:
    head = rng.choice((b"", b"\x82\xa4type\xa4undo\xa1x", b"\x82\xa4type\xacimage_bricks\xa6bricks"))
    what = rng.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"))
    length = rng.choice((2**32 - 1, 2**31, 2**26, 3))
    state: State = rng.choice(("handshake", "open", "image"))
    return Input("lying length", state, (head + what + struct.pack(">I", length) + rng.randbytes(rng.randrange(60)),))


# ---- orders of messages -------------------------------------------------------------------------------------


def _wrong_order(rng: random.Random) -> Input:
    hello = _encode({"type": "hello", "version": 1, "encodings": ["blosc2"]})
    undo = {"type": "undo", "segment": SEGMENT}
    kind = rng.randrange(8)
    if kind == 0:
        return Input("hello twice", rng.choice(("open", "image")), (hello, hello))
    if kind == 1:
        return Input("a prompt before hello", "handshake", (_encode(message_of(rng, wire.AddPoint)), hello))
    if kind == 2:
        return Input("a prompt before the image", "open", (_encode(message_of(rng, wire.AddPoint)),))
    if kind == 3:
        return Input("bricks before the image", "open", (_encode(message_of(rng, wire.ImageBricks)),))
    if kind == 4:
        ids = rng.choice(((5, 4), (7, 7), (2**53, 1), (9, 9, 9, 8)))
        return Input("ids that do not grow", "open", tuple(_encode(undo | {"id": i}) for i in ids))
    if kind == 5:
        cancels = (None, 1, 2**53, rng.randrange(1, 100))
        return Input("cancel nothing", "image", tuple(_encode({"type": "cancel", "request": c}) for c in cancels))
    if kind == 6:
        guess = {
            "session_id": rng.choice(("", "0" * 16, "x" * 4096)),
            "session_secret": rng.choice(("", "é", "x" * 4096, None)),
        }
        return Input("a guessed session", "handshake", (_encode({**msgpack.unpackb(hello), **guess}),))
    after = rng.choice((_encode(undo | {"id": _FRESH_ID}), rng.randbytes(9)))
    return Input("bye and more", rng.choice(("open", "image")), (_encode({"type": "bye"}), after))


def _text(rng: random.Random) -> Input:
    output = rng.choice(("", "hello", '{"type": "hello", "version": 1}', "\0", "ä" * 3000))
    return Input("text", rng.choice(("handshake", "open")), (output,))


# ---- below WebSocket ----------------------------------------------------------------------------------------

_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _below(rng: random.Random) -> Input:
    """Bytes instead of an HTTP request, and invalid frames after a valid handshake."""
    kind = rng.randrange(8)
    if kind == 0:
        data: tuple[bytes, ...] = (rng.randbytes(rng.randint(1, 300)),)
    elif kind == 1:
        data = (_UPGRADE[: rng.randrange(len(_UPGRADE))] + b"\xff\r\n\r\n",)
    elif kind == 2:
        data = (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",)
    elif kind == 3:
        data = (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",)
    elif kind == 4:  # a frame of 2^63 bytes
        data = (_UPGRADE, b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4) + rng.randbytes(50))
    elif kind == 5:  # unmasked, or with an unknown opcode
        data = (_UPGRADE, bytes([rng.choice((0x82, 0x83, 0x8B, 0xF2)), rng.choice((5, 0x85))]) + rng.randbytes(9))
    elif kind == 6:  # fragments without a start, or a fragmented ping
        data = (_UPGRADE, rng.choice((b"\x80\x81", b"\x09\x81", b"\x00\x81")) + bytes(4) + b"x")
    else:
        data = (_UPGRADE, rng.randbytes(rng.randint(2, 400)))
    return Input("below", "tcp", data)


_MAKERS: dict[Callable[[random.Random], Input], float] = {
    _random_bytes: 6,
    _truncated: 8,
    _mutated: 22,
    _valid: 14,
    _wrong_type: 28,
    _hostile_array: 28,
    _deep: 3,
    _lying_length: 4,
    _wrong_order: 6,
    _text: 1,
    _below: 5,
}
