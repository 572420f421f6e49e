"""A runner of the conformance suite for the Python client. The format is described in tests/conformance/README.md."""

from collections.abc import Iterable, Sequence
import json
import math
from pathlib import Path
import re
from typing import Any
import zlib

import msgpack
import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.bricks import Grid
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.errors import BadMessage, TooLarge
from nninteractive_ws.geometry import Index
from nninteractive_ws.masks import Mask

FOLDER = Path(__file__).parents[1] / "conformance"
ENCODINGS: tuple[wire.Encoding, ...] = ("deflate", "raw")
DEFAULTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "defaults.json").read_text())
_FREE_FIELDS: dict[str, tuple[str, ...]] = {"hello": ("client", "features")}
#: Session of a hello that may name the last session, or none.
ANY_SESSION = "any"
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_MAX_BRICKS_PER_MESSAGE = 64
_RELATIVE_DIFFERENCE = 1e-9

Json = dict[str, Any]


def scenarios() -> list[Path]:
    return sorted((FOLDER / "scenarios").glob("*.json"))


def to_json(value: Any) -> Any:
    """Return a decoded message with byte strings in hexadecimal, as in the files."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list) else value


def from_json(value: Any, key: str = "") -> Any:
    """Return a message of the files with its byte strings."""
    if isinstance(value, dict):
        return {name: from_json(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return bytes.fromhex(value) if key in ("data", "present_bricks") and _HEX.fullmatch(value) else value


def run_lengths_to_mask(numbers: Json | None) -> tuple[wire.Pairs, Mask] | None:
    """Return the box and the voxels of a mask of the files."""
    if numbers is None:
        return None
    box, runs = numbers["box"], np.array(numbers["runs"], int)
    is_set = np.arange(len(runs)) % 2 == 1
    return box, np.repeat(is_set, runs).reshape([stop - start for start, stop in box])


def volume_of(image: Json) -> npt.NDArray[np.generic]:
    """Return the voxels of an image of the files."""
    grid = np.ogrid[tuple(slice(0, n) for n in image["shape"])]
    total = sum(factor * axis for factor, axis in zip(image["factors"], grid, strict=True))
    return np.asarray(total % image["modulus"] + image["offset"], image["dtype"])


class Runner:
    """Drives a core through a scenario. Raises AssertionError if it does not conform."""

    def __init__(self, scenario: Json) -> None:
        self._steps = scenario["steps"]
        self._images = {name: _source(name, image) for name, image in scenario["images"].items()}
        self._core = Core(encodings=ENCODINGS)
        self._shape: Index = (0, 0, 0)
        self._labels: dict[str, int] = {}
        self._ids: dict[int, int] = {}  # the client's ids by the scenario's
        self._sent: list[Json] = []
        self._answers: list[Json] = []
        self._progress: list[Json] = []
        self._notices: list[str] = []
        self._limit = 0
        self._image = ""
        self._refused = False

    def run(self) -> None:
        for number, step in enumerate(self._steps):
            try:
                self._act(step)
                self._check(step.get("expect", {}))
            except AssertionError as e:
                raise AssertionError(f"step {number}: {e}") from e
        assert not self._refused or step["expect"].get("refused"), "only the last message may be refused"
        self._drain()
        assert (self._sent, self._answers) == ([], []), "more happened than was expected"

    # ---- actions ------------------------------------------------------------------------------------------

    def _act(self, step: Json) -> None:
        if step.get("start"):
            self._drain()
            self._core.start()
        elif "command" in step:
            self._command(step["command"])
        elif "receive" in step:
            self._receive(step["receive"], bytes.fromhex(step["frame"]))
        elif "upload" in step:
            self._upload(**step["upload"])
        self._drain()

    def _command(self, command: Json) -> None:
        arguments = dict(command)
        name, label = arguments.pop("name"), arguments.pop("label", None)
        if name == "cancel":
            self._core.cancel(self._labels[label])
        elif name == "bye":
            self._core.bye()
        else:
            number = getattr(self._core, name)(**self._converted(name, arguments))
            if label is not None:
                self._labels[label] = number

    def _converted(self, name: str, arguments: Json) -> Json:
        if "image" in arguments:
            source = self._images[arguments.pop("image")]
            self._shape = source.grid.shape
            return {"source": source}
        if "mask" in arguments:
            drawn = run_lengths_to_mask(arguments.pop("mask"))
            box, voxels = drawn if drawn is not None else (None, np.zeros(self._shape, bool))
            return {**arguments, "box": box, "flips" if name == "flip_mask" else "mask": voxels}
        return arguments

    def _receive(self, message: Json | None, frame: bytes) -> None:
        if message is not None and message.get("type") == "welcome":
            self._limit = message["limits"]["unacknowledged_bricks"]
        if message is not None and (translated := self._translated(message)) != message:
            frame = msgpack.packb(from_json(translated))
        try:
            self._note(self._core.receive(frame))
        except (BadMessage, TooLarge):
            self._refused = True

    def _translated(self, message: Json) -> Json:
        """Return a message with the ids of the client."""
        keys = [key for key in ("id", "request", "last_id") if key in message]
        return {**message, **{key: self._ids.get(message[key], message[key]) for key in keys}}

    def _upload(self, bricks: list[int], first: Sequence[int] = (), present: int = 0) -> None:
        sent: list[int] = []
        while batch := self._take_bricks():
            assert len(batch) <= self._limit, f"{len(batch)} bricks are in flight"
            sent += batch
            progress = {
                "type": "image_progress",
                "image": self._image,
                "received": batch,
                "present": present + len(sent),
                "total": len(Grid(self._shape)),
            }
            self._note(self._core.receive(msgpack.packb(progress)))
        assert sorted(sent) == sorted(bricks), f"the bricks {sent} were sent"
        assert set(sent[: len(first)]) == set(first), f"the bricks were sent in the order {sent}"

    def _take_bricks(self) -> list[int]:
        """Take bricks until the client has none to send. Return their numbers."""
        taken: list[int] = []
        while (make := self._core.next_brick()) is not None:
            message = protocol.decode_client(make())
            assert isinstance(message, wire.ImageBricks)
            assert len(message.bricks) <= _MAX_BRICKS_PER_MESSAGE
            self._image = message.image
            source = self._images[message.image]
            for brick in message.bricks:
                assert brick.encoding in ENCODINGS
                assert brick.layer == "whole", "no welcome of the suite has the feature of layers"
                box = source.grid.box(brick.index)
                expected = np.ascontiguousarray(source.volume[box.slices])
                data = expected.astype(expected.dtype.newbyteorder("<")).tobytes()
                assert _unpacked(brick.encoding, brick.data) == data, f"brick {brick.index} has other voxels"
                taken.append(brick.index)
        return taken

    # ---- what the core does -------------------------------------------------------------------------------

    def _drain(self) -> None:
        frames = [msgpack.unpackb(frame) for frame in iter(self._core.next_control, None)]
        # A driver sends nothing on a connection that the core has ended.
        self._sent += frames if self._core.ended is None else []

    def _note(self, happened: Iterable[events.Event]) -> None:
        names = {number: label for label, number in self._labels.items()}
        for event in happened:
            if isinstance(event, events.Done):
                result = event.result
                changed = None if result.changed is None else _to_lists(result.changed.pairs)
                done = {"segment": result.segment, "revision": result.revision, "voxels": result.voxels}
                self._answers.append({"label": names.get(result.request), "done": {**done, "changed": changed}})
            elif isinstance(event, events.Failed):
                self._answers.append({"label": names.get(event.request or 0), "error": event.error.code})
            elif isinstance(event, events.Progress):
                progress = {"state": event.state, "done": event.done, "total": event.total}
                self._progress.append({"label": names.get(event.request), **progress})
            elif isinstance(event, events.Notice):
                self._notices.append(event.code)

    # ---- expectations -------------------------------------------------------------------------------------

    def _check(self, expect: Json) -> None:
        assert self._refused == expect.get("refused", False), "refused" if self._refused else "not refused"
        for key, expected in expect.items():
            if key == "sends":
                self._check_sends(expected)
            elif key == "masks":
                for name, mask in expected.items():
                    self._check_mask(name, mask)
            elif key == "histories":
                for name, history in expected.items():
                    self._check_history(name, history)
            elif key == "bricks_wait":
                assert self._take_bricks() == []
            elif key == "closed":
                assert self._closed() == expected
            elif key != "refused":
                lists: dict[str, list[Any]] = {
                    "answers": self._answers, "progress": self._progress, "notices": self._notices,
                }  # fmt: skip
                happened = lists[key]
                assert happened == expected, f"{key}: {happened}, not {expected}"
                happened.clear()

    def _closed(self) -> str | None:
        if self._core.ended is None:
            return None
        return "evicted" if self._core.is_dormant else self._core.ended.code

    def _check_sends(self, expected: list[Json]) -> None:
        for item in expected:
            left = list(item["any_order"]) if "any_order" in item else [item]
            while left:
                assert self._sent, f"{left[0]} was not sent"
                message = self._sent.pop(0)
                found = next((e for e in left if self._matches(e, message)), None)
                assert found is not None, f"{to_json(message)} was sent, not {left}"
                left.remove(found)
                if "id" in found:
                    self._ids[found["id"]] = message["id"]
        assert self._sent == [], f"{to_json(self._sent)} was sent, too"

    def _matches(self, expected: Json, sent: Json) -> bool:
        kind = expected["type"]
        ours, theirs = _without_defaults(expected), _without_defaults(sent)
        free = _FREE_FIELDS.get(kind, ())
        if ours.get("session_id") == ANY_SESSION:
            free += ("session_id", "session_secret")
        for field in free:
            ours.pop(field, None)
            theirs.pop(field, None)
        if "id" in ours:
            theirs_id, known = theirs.pop("id", 0), self._ids.get(ours.pop("id"))
            if known is None and theirs_id <= max(self._ids.values(), default=0):
                return False
            if known is not None and theirs_id != known:
                return False
        if "request" in ours:
            ours["request"] = self._ids[ours["request"]]
        return _equal(ours, theirs)

    def _check_mask(self, name: str, expected: Json | None) -> None:
        segment = self._core.segments.get(name)
        if expected is None:
            assert segment is None or (segment.revision, segment.voxels, segment.is_empty) == (0, 0, True), name
            return
        assert segment is not None, f"there is no segment {name}"
        found = masks.to_delta(segment.mask)
        ours = None if found.box is None else (found.box.pairs, found.flips)
        assert _same_voxels(run_lengths_to_mask(expected["mask"]), ours), f"the mask of {name} differs"
        assert (segment.revision, segment.voxels) == (expected["revision"], expected["voxels"]), name

    def _check_history(self, name: str, expected: Json) -> None:
        segment = self._core.segments[name]
        for key, ours in (("steps", segment.steps), ("undone", segment.undone)):
            theirs = [_without_id(_decoded(step)) for step in ours]
            wanted = [_without_defaults_of_step(step) for step in expected[key]]
            assert _equal(wanted, [_without_defaults_of_step(step) for step in theirs]), f"{key}: {to_json(theirs)}"


def _to_lists(value: Any) -> Any:
    return [_to_lists(item) for item in value] if isinstance(value, tuple) else value


def _decoded(step: wire.Step) -> Json:
    """Return a step as it is sent."""
    decoded: Json = msgpack.unpackb(protocol.to_msgpack(step))
    return decoded


def _source(name: str, image: Json) -> ImageSource:
    source = ImageSource.of(volume_of(image))
    source.name = name
    mine = source.statistics
    assert _equal([image["mean"], image["std"]], [mine.mean, mine.std]), f"{mine} is announced"
    return source


def _unpacked(encoding: str, data: bytes) -> bytes:
    assert encoding in ENCODINGS
    return zlib.decompress(data) if encoding == "deflate" else data


def _without_id(step: Json) -> Json:
    return {**step, "request": {key: value for key, value in step["request"].items() if key != "id"}}


def _without_defaults_of_step(step: Json) -> Json:
    request = _without_defaults(_without_id(step)["request"])
    return {"request": request, "change": step.get("change")}


def _without_defaults(message: Json) -> Json:
    """Return a message without the fields that have their defaults."""
    defaults = DEFAULTS.get(message["type"], {})
    kept = {key: value for key, value in message.items() if key not in defaults or value != defaults[key]}
    for key in ("steps", "undone"):
        if key in kept:
            kept[key] = [_without_defaults_of_step(step) for step in kept[key]]
    return kept


def _equal(ours: Any, theirs: Any) -> bool:
    """Compare values of the files (``ours``) with decoded ones. Masks are equal if their voxels are."""
    if _is_mask(theirs) and (ours is None or _is_mask(ours)):
        return _same_voxels(run_lengths_to_mask(ours), run_lengths_to_mask(_plain_run_lengths(theirs)))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if isinstance(ours, float) or isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=_RELATIVE_DIFFERENCE)
    return type(ours) is type(theirs) and bool(ours == theirs)


def _is_mask(value: Any) -> bool:
    return isinstance(value, dict) and "runs" in value


def _plain_run_lengths(packed: Json) -> Json:
    runs = np.frombuffer(_unpacked(packed["encoding"], packed["data"]), "<u4").tolist()
    assert len(runs) == packed["runs"]
    return {"box": packed["box"], "runs": runs}


def _same_voxels(a: tuple[Any, Mask] | None, b: tuple[Any, Mask] | None) -> bool:
    """Whether two masks, each with its box, have the same set voxels."""
    tight = [masks.NO_CHANGE if m is None else masks.to_delta(m[1], [start for start, _ in m[0]]) for m in (a, b)]
    return tight[0].box == tight[1].box and np.array_equal(tight[0].flips, tight[1].flips)
