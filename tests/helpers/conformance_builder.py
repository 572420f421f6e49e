"""Parts of conformance scenarios: their steps, and a server that sends what protocol.md says.

Frames are packed here without the code of the package, so that both must agree.
"""

from collections.abc import Iterable, Sequence
import itertools
import struct
from typing import Any
import zlib

import msgpack
import numpy as np
import numpy.typing as npt

from helpers.conformance import Json, to_json, volume_of

Voxel = tuple[int, int, int]
Mask = npt.NDArray[np.bool_]

LIMITS = {"message_bytes": 2**26, "image_voxels": 2**30, "segments": 256, "steps": 10_000, "unacknowledged_bricks": 8,
          "session_bytes": 0}  # fmt: skip
MODEL = {
    "name": "demo", "license": "Apache-2.0", "patch_size": [4, 4, 4],
    "prompts": ["point", "scribble", "lasso", "bbox2d", "bbox3d", "mask"], "scribble_thickness": [1.0, 1.0, 1.0],
}  # fmt: skip
#: Image of most scenarios, a single brick. The statistics follow from its voxels.
CT: Json = {"shape": [4, 4, 4], "dtype": "int16", "factors": [3, 5, 7], "modulus": 11, "offset": -2}
#: The answer to a request without a segment.
NO_SEGMENT: Json = {"segment": None, "revision": 0, "voxels": 0, "changed": None}
#: Image of four bricks, three of them smaller than 32^3.
MR: Json = {"shape": [33, 2, 35], "dtype": "float32", "factors": [3, 5, 7], "modulus": 11, "offset": 0.5}


def with_statistics(image: Json) -> Json:
    """Add mean and standard deviation, computed as protocol.md's Python block does."""
    volume = volume_of(image)
    at = np.argwhere(volume)
    inside = volume[tuple(slice(a, b + 1) for a, b in zip(at.min(axis=0), at.max(axis=0), strict=True))]
    inside = inside.astype(np.float64)
    return {**image, "mean": float(inside.mean()), "std": float(inside.std(ddof=1))}


# ---- masks ------------------------------------------------------------------------------------------------


def mask_of(shape: Sequence[int], voxels: Iterable[Voxel]) -> Mask:
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def numbers(mask: Mask, box: Sequence[Sequence[int]] | None = None) -> Json | None:
    """Return a mask as box and run lengths, in the smallest box unless another one is given."""
    at = np.argwhere(mask)
    if box is None:
        if not len(at):
            return None
        box = [[int(a), int(b) + 1] for a, b in zip(at.min(axis=0), at.max(axis=0), strict=True)]
    flat = mask[tuple(slice(*pair) for pair in box)].ravel().tolist()
    runs = [len(list(group)) for _, group in itertools.groupby(flat)]
    return {"box": [list(pair) for pair in box], "runs": [0, *runs] if flat[0] else runs}


def stored(data: bytes) -> bytes:
    """Return a zlib stream of one stored block, the same with every implementation of zlib."""
    header = struct.pack("<BHH", 1, len(data), len(data) ^ 0xFFFF)
    return b"\x78\x01" + header + data + struct.pack(">I", zlib.adler32(data))


def packed(mask: Mask, encoding: str = "raw", box: Sequence[Sequence[int]] | None = None) -> Json:
    """Return a RunLengthMask."""
    plain = numbers(mask, box)
    assert plain is not None
    return run_lengths(plain["box"], plain["runs"], encoding)


def run_lengths(box: Sequence[Sequence[int]], runs: Sequence[int], encoding: str = "raw") -> Json:
    """Return a RunLengthMask with these runs, valid or not."""
    data = struct.pack(f"<{len(runs)}I", *runs)
    data = stored(data) if encoding == "deflate" else data
    return {"box": [list(pair) for pair in box], "runs": len(runs), "encoding": encoding, "data": data}


def checksum(mask: Mask, box: Sequence[Sequence[int]]) -> int:
    flat = mask[tuple(slice(*pair) for pair in box)].ravel().tolist()
    flat += [False] * (-len(flat) % 8)
    octets = (flat[n : n + 8] for n in range(0, len(flat), 8))
    return zlib.crc32(bytes(sum(bit << n for n, bit in enumerate(octet)) for octet in octets))


# ---- a server's segment -----------------------------------------------------------------------------------


class ServerSegment:
    """A segment as the server has it. Its methods return the messages that follow from changes."""

    def __init__(self, name: str = "liver", shape: Sequence[int] = (4, 4, 4), revision: int = 0) -> None:
        self.name, self.revision = name, revision
        self.mask = np.zeros(shape, bool)

    @property
    def voxels(self) -> int:
        return int(self.mask.sum())

    def flip(self, request: int, *voxels: Voxel, final: bool = False, encoding: str = "raw") -> Json:
        """Flip voxels, and return the mask_delta."""
        change = mask_of(self.mask.shape, voxels)
        self.mask = self.mask ^ change
        self.revision += 1
        bits = packed(change, encoding)
        return {
            "type": "mask_delta", "segment": self.name, "request": request, "base_revision": self.revision - 1,
            "revision": self.revision, "change": bits, "checksum": checksum(self.mask, bits["box"]),
            "voxels": self.voxels, "final": final,
        }  # fmt: skip

    def done(self, request: int, *changed: Voxel) -> Json:
        """Return the answer to a request. ``changed``: the changed voxels."""
        bits = numbers(mask_of(self.mask.shape, changed))
        return {
            "type": "done", "id": request, "segment": self.name, "revision": self.revision,
            "changed": None if bits is None else bits["box"], "voxels": self.voxels,
            "timings": {"queued": 0.0, "waiting_for_image": 0.0, "network": 0.25, "passes": 1, "total": 0.5},
        }  # fmt: skip

    def snapshot(self, request: int) -> Json:
        return {
            "type": "mask_snapshot", "segment": self.name, "request": request, "revision": self.revision,
            "mask": packed(self.mask) if self.voxels else None, "voxels": self.voxels,
        }  # fmt: skip

    def state(self) -> Json:
        """Return the expectation that the client has the same mask."""
        return {"revision": self.revision, "voxels": self.voxels, "mask": numbers(self.mask)}

    def answer(self, label: str, *changed: Voxel) -> Json:
        """Return the expected answer to a command."""
        box = self.done(1, *changed)["changed"]
        done = {"segment": self.name, "revision": self.revision, "voxels": self.voxels, "changed": box}
        return {"label": label, "done": done}


# ---- messages ---------------------------------------------------------------------------------------------


def hello(session: str | None = None) -> Json:
    """Return the first message. ``session``: the one to resume, or ANY_SESSION."""
    named = {} if session is None else {"session_id": session, "session_secret": f"{session} secret"}
    return {"type": "hello", "version": 1, "encodings": ["deflate", "raw"], **named}


def welcome(session: str = "s1", *, limit: int = LIMITS["unacknowledged_bricks"], **fields: Any) -> Json:
    return {
        "type": "welcome", "version": 1, "server_version": "a server", "features": [], "encoding": "deflate",
        "session_id": session, "session_secret": f"{session} secret", "resumed": False, "last_id": 0, "revisions": {},
        "image": None, "present_bricks": b"", "limits": {**LIMITS, "unacknowledged_bricks": limit}, "model": MODEL,
        "device": "cpu", "memory": None, **fields,
    }  # fmt: skip


def set_image(request: int, image: Json, name: str = "ct") -> Json:
    fields = {key: image[key] for key in ("shape", "dtype", "mean", "std")}
    return {"type": "set_image", "id": request, "image": name, **fields}


def image_progress(received: Sequence[int], present: int, total: int = 1, name: str = "ct") -> Json:
    return {"type": "image_progress", "image": name, "received": list(received), "present": present, "total": total}


def resumed(last_id: int, **revisions: int) -> Json:
    """Return the welcome of a session that is resumed, with its only brick."""
    return welcome(resumed=True, last_id=last_id, revisions=revisions, image="ct", present_bricks=b"\x01")


def progress(request: int, state: str, done: int = 0, total: int = 0) -> Json:
    return {"type": "progress", "id": request, "state": state, "done": done, "total": total, "box": None}


def done(request: int) -> Json:
    return {"type": "done", "id": request}


def error(code: str, request: int | None = None) -> Json:
    return {"type": "error", "code": code, "message": f"A sentence about {code}.", "id": request}


def notice(code: str) -> Json:
    return {"type": "notice", "code": code, "message": f"A sentence about {code}."}


def add_point(request: int, point: Voxel, segment: str = "liver", **fields: Any) -> Json:
    return {"type": "add_point", "id": request, "segment": segment, "point": list(point), **fields}


def request(kind: str, number: int, segment: str = "liver", **fields: Any) -> Json:
    return {"type": kind, "id": number, "segment": segment, **fields}


def step_of(message: Json, change: Mask | None = None) -> Json:
    """Return a step of a history."""
    plain = {key: value for key, value in message.items() if key != "id"}
    return {"request": plain, "change": None if change is None else numbers(change)}


def history(*steps: Json, undone: Sequence[Json] = ()) -> Json:
    return {"steps": list(steps), "undone": list(undone)}


# ---- scenarios --------------------------------------------------------------------------------------------


class Scenario:
    """A scenario in the making."""

    def __init__(self, title: str, *rules: str, **images: Json) -> None:
        self.title, self.rules = title, rules
        self.images = {name: with_statistics(image) for name, image in (images or {"ct": CT}).items()}
        self.steps: list[Json] = []

    def _add(self, action: Json, expect: Json) -> None:
        self.steps.append({**action, "expect": expect} if expect else action)

    def start(self, session: str | None = None, **expect: Any) -> None:
        """Begin a connection, and expect hello."""
        self._add({"start": True}, {"sends": [hello(session)], **expect})

    def command(self, command: str, label: str | None = None, /, expect: Json | None = None, **arguments: Any) -> None:
        named = {} if label is None else {"label": label}
        self._add({"command": {"name": command, **named, **arguments}}, expect or {})

    def receive(self, message: Json | None, *, frame: str | None = None, **expect: Any) -> None:
        """Receive a message. ``frame``: the bytes, for a frame that is no message."""
        frame = msgpack.packb(message).hex() if frame is None else frame
        self._add({"receive": to_json(message), "frame": frame}, expect)

    def upload(self, bricks: Sequence[int], first: Sequence[int] = (), present: int = 0) -> None:
        fields: Json = {"bricks": list(bricks)}
        fields |= {"first": list(first)} if first else {}
        self._add({"upload": {**fields, "present": present} if present else fields}, {})

    def expect(self, **expect: Any) -> None:
        self._add({}, expect)

    def open(self, name: str = "ct", bricks: Sequence[int] = (0,)) -> None:
        """Connect, set an image, and send its bricks. The request has the id 1."""
        self.start()
        self.receive(welcome())
        self.command("set_image", "image", expect={"sends": [set_image(1, self.images[name], name)]}, image=name)
        self.receive(image_progress([], 0, len(bricks), name))
        self.receive(done(1), answers=[{"label": "image", "done": NO_SEGMENT}])
        self.upload(bricks)

    def click(self, number: int, label: str, point: Voxel, segment: ServerSegment, *changed: Voxel) -> None:
        """Add a point, and get its result."""
        sends = [add_point(number, point, segment.name)]
        self.command("add_point", label, expect={"sends": sends}, segment=segment.name, point=list(point))
        self.receive(segment.flip(number, *changed))
        self.receive(segment.done(number, *changed), answers=[segment.answer(label, *changed)])

    def ask(self, command: str, number: int, segment: ServerSegment, **arguments: Any) -> None:
        """Give a command whose message has the same fields, and which changes nothing."""
        sent = request(command, number, segment.name, **arguments)
        self.command(command, command, expect={"sends": [sent]}, segment=segment.name, **arguments)
        self.receive(segment.done(number), answers=[segment.answer(command)])

    def move(self, command: str, number: int, segment: ServerSegment, *changed: Voxel) -> None:
        """Give a command without arguments, and get its change."""
        self.command(command, command, expect={"sends": [request(command, number, segment.name)]}, segment=segment.name)
        self.receive(segment.flip(number, *changed, final=True))
        self.receive(segment.done(number, *changed), answers=[segment.answer(command, *changed)])

    def to_json(self) -> Json:
        return {"title": self.title, "rules": list(self.rules), "images": self.images, "steps": self.steps}
