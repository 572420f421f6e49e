"""Hostile and invalid requests for a server's HTTP API from a seed: mutations of requests of nnInteractive's client."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
import json
import random
import re
import struct
from typing import Any

import httpx
from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession
import numpy as np

from helpers.end_to_end import health, http, wait_until
from helpers.hostile_chunks import mutated

SHAPE = (40, 36, 32)
IMAGE = np.random.default_rng(0).integers(-9, 9, (1, *SHAPE), np.int16)
#: Placeholder for the lease of the client that sends an input.
LEASE = b"f" * 32

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class RecordedRequest:
    """A request. ``headers``: without Content-Length, which :func:`encode` adds."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def with_header(self, name: bytes, value: bytes) -> "RecordedRequest":
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return replace(self, headers=(*kept, (name, value)))


@dataclass(frozen=True)
class HttpInput:
    """One input. ``parts``: bytes that are sent one after another. ``ends``: whether the server has all of the request,
    so that it must answer."""

    kind: str
    parts: tuple[bytes, ...]
    ends: bool


def record(address: str) -> list[RecordedRequest]:
    """Return one request of each route, as nnInteractive's client sends it."""
    wait_until(lambda: health(address)["status"] == "ready")
    found: list[RecordedRequest] = []

    def keep(request: httpx.Request) -> None:
        skipped = (b"content-length", b"x-lease-token", b"accept-encoding", b"user-agent")
        headers = [(key, value) for key, value in request.headers.raw if key.lower() not in skipped]
        headers.append((b"X-Lease-Token", LEASE))
        found.append(RecordedRequest(request.method.encode(), request.url.raw_path, tuple(headers), request.read()))

    session = nnInteractiveRemoteInferenceSession(http(address))
    session._http.event_hooks = {"request": [keep]}
    session.set_image(IMAGE)
    session.set_target_buffer(np.zeros(SHAPE, np.uint8))
    session.set_do_autozoom(True)
    session.add_point_interaction((20, 18, 16), True)
    session.add_bbox_interaction(((4, 20), (5, 20), (16, 17)), False)
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[5:20, 10, 8] = 1
    session.add_scribble_interaction(strokes, True)
    session.add_scribble_interaction(strokes[4:22, 8:12, 6:10], True, interaction_bbox=[[4, 22], [8, 12], [6, 10]])
    session.add_lasso_interaction(strokes, False, run_prediction=False)
    session._predict()
    session.undo()
    session.add_initial_seg_interaction(strokes)
    session.reset_interactions()
    session.heartbeat()
    session._http.get("/lease_status")
    session._http.get("/healthz")
    session._http.get("/capabilities")
    session.close()
    found.append(RecordedRequest(b"POST", b"/claim", found[0].headers, b""))
    assert len({request.target for request in found}) == 17
    return found


def encode(request: RecordedRequest, length: int | None = None, body: bytes | None = None) -> bytes:
    """Return the bytes of a request. ``length``: another one than the body's. ``body``: another one to send."""
    lines = [request.method + b" " + request.target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers]
    if request.method == b"POST":
        lines.append(b"Content-Length: %d" % (len(request.body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (request.body if body is None else body)


def http_inputs(seed: int, recorded: Sequence[RecordedRequest]) -> Iterator[HttpInput]:
    """Yield inputs endlessly."""
    rng = random.Random(seed)
    # Those of the gateway itself are rare, because the other tests send invalid requests to it.
    weights = [0.2 if request.target in (b"/healthz", b"/capabilities") else 1 for request in recorded]
    makers, shares = zip(*_MAKERS.items(), strict=True)
    while True:
        (make,), (request,) = rng.choices(makers, shares), rng.choices(recorded, weights)
        made = make(rng, request)
        if rng.random() < 0.3:
            made = replace(made, parts=_split(rng, b"".join(made.parts)))
        yield made


def _split(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    # Most cuts are in the first bytes and in the headers, which are decisive.
    ends = [min(len(data), limit) for limit in (20, 400, len(data))]
    cuts = sorted({rng.randrange(rng.choice(ends) or 1) for _ in range(rng.randint(1, 5))} - {0})
    return tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))


def _input(kind: str, *requests: RecordedRequest, ends: bool = True) -> HttpInput:
    return HttpInput(kind, (b"".join(map(encode, requests)),), ends)


# ---- methods, paths and headers -----------------------------------------------------------------------------


def _valid(rng: random.Random, request: RecordedRequest) -> HttpInput:
    return _input("valid", request)


def _method(rng: random.Random, request: RecordedRequest) -> HttpInput:
    method = rng.choice((b"POST", b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"post", b"P", b"BREW"))
    if method == b"GET":
        request = replace(request, target=rng.choice((b"/lease_status", b"/lease_statusx", b"/lease_status?x=1")))
    return _input("method", replace(request, method=method), ends=False)


_TARGETS = (
    b"/", b"/claim/", b"//claim", b"/claim?x=%00&y", b"/%63laim", b"/claim%00", b"/../claim", b"/claim/../undo", b"*",
    b"http://attacker.example/claim", b"/\xc3\xa9", b"/%ff", b"/" + b"x" * 3000, b"/undo#x", b"/docs", b"/metrics",
    b"/openapi.json", b"/lease_status", b"/healthz", b"/capabilities", b"", b"claim", b"/claim HTTP/1.1 ", b"/a\\b",
)  # fmt: skip


def _path(rng: random.Random, request: RecordedRequest) -> HttpInput:
    return _input("path", replace(request, target=rng.choice(_TARGETS)), ends=False)


_VALUES: dict[bytes, tuple[bytes, ...]] = {
    b"X-Lease-Token": (b"", b"0" * 32, LEASE[:-1], LEASE + b"f", LEASE + b", " + LEASE, b"\xe9", b"x" * 9000),
    b"Authorization": (b"Bearer x", b"Bearer \xff\xfe", b"Basic eDp5", b"Bearer", b"", b"Bearer " + b"x" * 9000),
    b"Host": (b"attacker.example", b"", b"[", b"a/b?c#d", b"127.0.0.1:99999999", b"\xe9", b"localhost", b"x y"),
    b"Origin": (b"https://attacker.example", b"null", b"", b"\xff"),
    b"Expect": (b"100-continue", b"x"),
    b"Connection": (b"close", b"Upgrade", b"keep-alive, x", b""),
    b"Upgrade": (b"websocket", b"h2c"),
    b"Content-Type": (b"text/plain", b"multipart/form-data; boundary=x", b""),
    b"Content-Encoding": (b"gzip", b"br"),
    b"X-Forwarded-For": (b"192.0.2.1", b"x"),
}


def _header(rng: random.Random, request: RecordedRequest) -> HttpInput:
    """Change, repeat or omit a header."""
    name = rng.choice(list(_VALUES))
    if rng.random() < 0.2:
        kept = list(request.headers)
        del kept[rng.randrange(len(kept))]
        return _input("missing header", replace(request, headers=tuple(kept)))
    changed = (name, rng.choice(_VALUES[name]))
    if rng.random() < 0.3:
        return _input("repeated header", replace(request, headers=(*request.headers, changed)), ends=False)
    return _input("header", request.with_header(*changed), ends=False)


_LENGTHS = (
    b"-1", b"+5", b"0x10", b"5, 6", b"5,5", b"abc", b"", b"1e3", b" 7 ", b"99999999999999999999", b"9" * 5000,
    b"9223372036854775807", b"4294967296", b"68719476736", b"65537", b"2147483648", b"0", b"1",
)  # fmt: skip


def _length(rng: random.Random, request: RecordedRequest) -> HttpInput:
    """A Content-Length that is wrong, missing or repeated, or beside chunked encoding."""
    head, _, body = encode(request).partition(b"\r\n\r\n")
    stated = b"Content-Length: %d" % len(request.body)
    wrong = b"Content-Length: " + rng.choice(_LENGTHS)
    choice = rng.randrange(4)
    if choice == 0:
        head = head.replace(b"\r\n" + stated, b"")
    elif choice == 1:
        head += b"\r\n" + wrong
    elif choice == 2:
        head += b"\r\nTransfer-Encoding: " + rng.choice((b"chunked", b"gzip", b"chunked, chunked", b"identity"))
    else:
        head = head.replace(stated, wrong)
    return HttpInput("length", (head + b"\r\n\r\n" + body,), False)


# ---- JSON and X-Meta ----------------------------------------------------------------------------------------

_WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "nan", "inf", "é" * 99,
    [], [[]], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [-1, -1, -1], [1e9, 1e9, 1e9], ["nan"] * 3, [[0, 1]] * 3,
    [[0, 0]] * 3, [[5, 1]] * 3, [[-9, 99]] * 3, [["nan", "inf"]] * 3, [["-inf", 4]] * 3, [[0.5, 1.5]] * 3, {}, {"a": 1},
    [2**62] * 3, "uint8", "float32", "u1,u1", "(2,u1", "((((", "O", ">i2", "a", "bool", "V" * 99, "\ud800", "\0",
)  # fmt: skip


def _wrong_field(rng: random.Random, fields: dict[str, Any]) -> bytes:
    changed = dict(fields)
    for _ in range(rng.randint(1, 2)):
        name = rng.choice([*changed, "later"])
        if rng.random() < 0.15:
            changed.pop(name, None)
        else:
            changed[name] = rng.choice(_WRONG)
    data = json.dumps(rng.choice(_WRONG) if rng.random() < 0.05 else changed).encode()
    choice = rng.randrange(12)
    if choice == 0:
        return data[: rng.randrange(len(data))]
    if choice == 1:
        depth = rng.choice((10, 5_000, 30_000))
        return b"[" * depth if rng.random() < 0.5 else b'{"a":' * (depth // 3)
    if choice == 2:
        return _flipped(rng, data)
    return data


def _json(rng: random.Random, request: RecordedRequest) -> HttpInput:
    """JSON with a wrong field, in the body or in X-Meta."""
    meta = request.header(b"X-Meta")
    if meta is not None:
        value = re.sub(rb"[\r\n\0]", b"?", _wrong_field(rng, json.loads(meta)))
        return _input("meta", request.with_header(b"X-Meta", value), ends=False)
    fields = json.loads(request.body) if request.body.startswith(b"{") else {"do_autozoom": 1}
    return _input("json", replace(request, body=_wrong_field(rng, fields)))


# ---- packed arrays ------------------------------------------------------------------------------------------


def _array(rng: random.Random, request: RecordedRequest) -> HttpInput:
    """A packed array with a forged header, or with other chunks."""
    body = bytearray(request.body)
    if not body.startswith(b"NNIA"):
        return _input("array", replace(request, body=rng.randbytes(rng.choice((0, 3, 8, 60, 3000)))))
    dimensions, name = body[6], body[7]
    shape_at = 8 + name
    chunks_at = shape_at + 8 * dimensions
    choice = rng.randrange(8)
    if choice == 0:
        body[rng.randrange(8)] = rng.choice((0, 1, 2, 4, 5, 255, rng.randrange(256)))
    elif choice == 1:
        names = (b"int16", b"uint8", b"bool", b"object", b"float16", b"float64", b"complex128", b"V8", b"\xff", b"")
        other = rng.choice(names)
        body[7:shape_at] = bytes([len(other)]) + other
    elif choice in (2, 3):
        size = rng.choice((0, -1, 1, 2, 40, 41, 2**31, 2**40, 2**62, -(2**63)))
        struct.pack_into("<q", body, shape_at + 8 * rng.randrange(dimensions), size)
    elif choice == 4:
        struct.pack_into("<I", body, chunks_at, rng.choice((0, 2, 1000, 2**32 - 1)))
    elif choice == 5:
        size = rng.choice((0, 1, 31, 32, 2**30, 2**31, 2**63, 2**64 - 1, len(body)))
        struct.pack_into("<Q", body, chunks_at + rng.choice((4, 12)), size)
    elif choice == 6:
        chunk = mutated(bytes(body[chunks_at + 20 :]), rng)
        body[chunks_at + 20 :] = chunk
        struct.pack_into("<Q", body, chunks_at + 12, len(chunk))
    else:
        at = rng.randrange(len(body))
        body[at:] = rng.choice((b"", body[at:] * 2, rng.randbytes(50)))
    return _input("array", replace(request, body=bytes(body)))


# ---- lengths and order of bytes -----------------------------------------------------------------------------


def _truncated(rng: random.Random, request: RecordedRequest) -> HttpInput:
    data = encode(request)
    head = data.index(b"\r\n\r\n") + 4
    end = rng.choice((rng.randrange(1, len(data) + 1), rng.randrange(head, len(data) + 1)))
    return HttpInput("truncated", (data[:end],), False)


def _overlong(rng: random.Random, request: RecordedRequest) -> HttpInput:
    tail = rng.choice((b"x", b"\0" * 9, rng.randbytes(400), b"\r\n\r\n", b"GET / HTTP/1.1\r\n", b"{}", b"x" * 100_000))
    return HttpInput("overlong", (encode(request) + tail,), False)


def _pipelined(rng: random.Random, request: RecordedRequest) -> HttpInput:
    heartbeat = RecordedRequest(b"POST", b"/heartbeat", request.headers, b"")
    others = [rng.choice((heartbeat, request, replace(request, target=b"/none"))) for _ in range(rng.randint(1, 5))]
    return _input("pipelined", *others, request)


def _chunked(rng: random.Random, request: RecordedRequest) -> HttpInput:
    chunks = []
    for at in range(0, len(request.body), 1000):
        part = request.body[at : at + 1000]
        chunks.append(b"%x\r\n" % len(part) + part + b"\r\n")
    data = b"".join([*chunks, b"0\r\n\r\n"])
    if rng.random() < 0.5:
        data = data.replace(b"\r\n", rng.choice((b"\n", b"\r\nx", b";a=b\r\n", b"")), 1)
    if rng.random() < 0.2:
        data = rng.choice((b"ffffffffffffffff\r\n", b"-1\r\n", b"zz\r\n", b"0" * 999)) + data
    request = request.with_header(b"Transfer-Encoding", b"chunked")
    head = encode(request).partition(b"\r\n\r\n")[0]
    if rng.random() < 0.7:
        head = re.sub(rb"\r\nContent-Length: \d+", b"", head)
    return HttpInput("chunked", (head + b"\r\n\r\n" + data,), False)


def _flipped(rng: random.Random, data: bytes, end: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(end or len(changed)) if changed else 0
        choice = rng.randrange(3)
        if choice == 0 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            changed[at:at] = rng.randbytes(rng.randint(1, 3))
        else:
            del changed[at : at + rng.randint(1, 3)]
    return bytes(changed)


def _bytes(rng: random.Random, request: RecordedRequest) -> HttpInput:
    """Changed bytes anywhere, half of them in the headers."""
    data = encode(request)
    return HttpInput("bytes", (_flipped(rng, data, rng.choice((None, data.index(b"\r\n\r\n")))),), False)


_NOT_HTTP = (
    b"POST \r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"POST /\r\n\r\n", b"POST / HTTP/1.1\n\n", b"POST " + b"x" * 70_000,
    b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", b"POST / HTTP/1.1\r\nHost\r\n\r\n", b"POST \x00\xff",
    b"POST / HTTP/1.1\r\n: x\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", b"GET /lease_status",
    b"POST / HTTP/1.1\r\nA: \x00\r\n\r\n", b"POST /claim HTTP/1.0\r\n\r\n", b"POST / HTTP/1.1\r\nB: " + b"c" * 70_000,
    b"GET /lease_status HTTP/1.1\r\n\r\n", b"POST POST", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\0",
)  # fmt: skip


def _not_http(rng: random.Random, request: RecordedRequest) -> HttpInput:
    data = rng.choice((*_NOT_HTTP, b"POST " + rng.randbytes(rng.randint(1, 300))))
    return HttpInput("not http", (data,), False)


_MAKERS: dict[Callable[[random.Random, RecordedRequest], HttpInput], float] = {
    _valid: 12,
    _method: 4,
    _path: 6,
    _header: 14,
    _length: 8,
    _json: 24,
    _array: 24,
    _truncated: 6,
    _overlong: 5,
    _pipelined: 5,
    _chunked: 6,
    _bytes: 8,
    _not_http: 4,
}
