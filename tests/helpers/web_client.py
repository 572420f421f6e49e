"""The browser's client in Node.js, as a driver of ``helpers/fault_script.py``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import struct
import subprocess
from typing import Any

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt

from helpers.engine import bar_in_a_box
from helpers.fault_script import SHAPE, Outcome, Prompt
from nninteractive_ws import masks
from nninteractive_ws import messages as wire
from nninteractive_ws.client.image_source import to_wire
from nninteractive_ws.client.inputs import to_mask
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.history import Segment
from nninteractive_ws.messages import Encoding, RunLengthMask

#: Source of the client's program, see ``helpers.web_sources``.
PROGRAM = "test/client/endToEnd.ts"
#: Encoding of the Python client, in which the masks of both are compared.
_ENCODING: Encoding = "blosc2"


@dataclass(frozen=True)
class WebCore:
    """A snapshot of the client's core, with the attributes that the tests read."""

    state: dict[str, Any]

    @cached_property
    def welcome(self) -> wire.Welcome | None:
        return msgspec.convert(self.state["welcome"], wire.Welcome | None)

    @cached_property
    def segments(self) -> dict[str, Segment]:
        return {segment["name"]: _segment(segment) for segment in self.state["segments"]}


def _segment(state: dict[str, Any]) -> Segment:
    i, j, k = shape = state["shape"]
    mask = np.frombuffer(state["mask"], bool).reshape(shape).copy()
    steps, undone = ([_step(step, (i, j, k)) for step in state[key]] for key in ("steps", "undone"))
    return Segment(state["name"], (i, j, k), state["revision"], state["voxels"], steps, undone, mask)


def _step(state: dict[str, Any], shape: Index) -> wire.Step:
    """Return a step with its masks in the encoding of the Python client."""
    step = msgspec.convert(state, wire.Step)
    if isinstance(step.request, wire.SetMask | wire.AddScribble | wire.AddLasso):
        request = msgspec.structs.replace(step.request, mask=_repack(step.request.mask, shape))
        step = msgspec.structs.replace(step, request=request)
    return step


def _repack(mask: RunLengthMask, shape: Index) -> RunLengthMask:
    unpacked = masks.unpack(mask, shape)
    assert unpacked.box is not None
    return masks.pack(masks.to_delta(unpacked.flips, unpacked.box.start), _ENCODING)


class WebClient:
    """The client in a process, as a driver of ``helpers/fault_script.py``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def core(self) -> WebCore:
        return WebCore(self._call("state"))

    @property
    def fetched(self) -> int:
        fetched: int = self.core.state["fetched"]
        return fetched

    @property
    def first_preview(self) -> dict[str, int]:
        """The ``voxels`` of the first preview, and the complete bricks ``present`` on the server at that time."""
        preview: dict[str, int] = self.core.state["first_preview"]
        return preview

    @property
    def session_id(self) -> str:
        welcome = self.core.welcome
        assert welcome is not None
        return welcome.session_id

    def connect(self, address: str) -> None:
        self._call("connect", address=address)

    def set_image(self, image: npt.NDArray[np.generic] | None = None) -> None:
        """Send an image, by default that of ``helpers/fault_script.py``."""
        voxels = to_wire(bar_in_a_box() if image is None else image)
        self._call("set_image", shape=voxels.shape, dtype=voxels.dtype.name, voxels=voxels.tobytes())

    def do(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        outcomes = self._call("prompts", prompts=[_to_plain(prompt) for prompt in prompts])
        return [outcome if isinstance(outcome, str) else _outcome(*outcome) for outcome in outcomes]

    def close(self) -> None:
        self._call("close")

    def _call(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        data = msgpack.packb({"command": command, **arguments})
        self._process.stdin.write(struct.pack("<I", len(data)) + data)
        self._process.stdin.flush()
        head = self._process.stdout.read(4)
        assert len(head) == 4, "the client ended; its error is above"
        return msgpack.unpackb(self._process.stdout.read(struct.unpack("<I", head)[0]))


def _outcome(voxels: int, changed: Any) -> Outcome:
    return voxels, None if changed is None else Box.from_pairs(changed)


def _to_plain(prompt: Prompt) -> dict[str, Any]:
    plain: dict[str, Any] = {"method": prompt.method, "segment": prompt.segment, "options": dict(prompt.options)}
    if prompt.method == "add_point":
        plain["point"] = prompt.arguments[0]
    elif prompt.method == "add_bbox":
        plain["box"] = prompt.arguments[0]
    elif prompt.arguments:
        drawn = to_mask(prompt.arguments[0], None, SHAPE)
        assert drawn.box is not None
        plain.update(box=drawn.box.pairs, mask=drawn.flips.tobytes())
    return plain


@contextmanager
def web_client(address: str, program: Path) -> Iterator[WebClient]:
    """Run the client with a session at a server. ``program``: the bundle of ``PROGRAM``."""
    command = ["node", "--experimental-websocket", "--no-warnings", str(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            client = WebClient(process)
            client.connect(address)
            yield client
            client.close()
        finally:
            process.kill()
