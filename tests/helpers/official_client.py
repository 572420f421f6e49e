"""A sequence of all calls of nnInteractive's own client, and what the client has after each.

As a program, it runs the sequence with the client that Python finds first:
``python -m helpers.official_client URL IMAGE.npy RESULT.pickle``.
"""

from collections.abc import Iterable, Iterator, Sequence
import copy
from dataclasses import asdict, dataclass, field
import json
from pathlib import Path
import pickle
import sys
import threading
from typing import Any

import httpx
from nnInteractive.inference import remote
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]

#: The dtypes of target buffers, of which the sequence uses one after the other.
DTYPES = ("uint8", "int16", "bool")


#: Methods of the client that write the whole target buffer, or replace it.
_WRITES_ITSELF = ("set_target_buffer", "reset_interactions", "add_initial_seg_interaction")


@dataclass(frozen=True)
class Call:
    """A call of the client, by the name of its method."""

    method: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = [f"array of {a.shape}" if isinstance(a, np.ndarray) else repr(a) for a in self.arguments]
        return f"{self.method}({', '.join([*arguments, *(f'{k}={v}' for k, v in self.options.items())])})"


@dataclass(frozen=True)
class Result:
    """The state of a client after a call.

    ``status``: of each response. ``ran``: X-Meta's ran_prediction, if the last response has it. ``returned``: the part
    of the call's result that two servers must agree on. ``buffer``: the target buffer.
    """

    call: str
    status: list[int]
    ran: bool | None
    returned: Any
    buffer: Array | None


def call(method: str, *arguments: Any, **options: Any) -> Call:
    return Call(method, arguments, options)


def point(at: Sequence[int], positive: bool = True, **options: Any) -> Call:
    return call("add_point_interaction", at, positive, **options)


def with_image(url: str, image: Array, **options: Any) -> "RecordingClient":
    """A new client with an image and an empty target buffer."""
    client = RecordingClient(url, **options)
    client.do(call("set_image", image[None]))
    client.do(call("set_target_buffer", np.zeros(image.shape, np.uint8)))
    return client


def _comparable(returned: Any) -> Any:
    """Return the part of a call's result that two servers must agree on: no boxes, and of times only the sign."""
    if isinstance(returned, dict):
        return sorted(returned)
    if isinstance(returned, list):
        return None
    return returned > 0 if isinstance(returned, float) else returned


class RecordingClient:
    """nnInteractive's client, whose responses are recorded.

    It keeps a second buffer as graphical clients do: of each change, only the returned box is copied. Both buffers must
    be equal at all times.
    """

    def __init__(self, url: str, **options: Any) -> None:
        kind = remote.nnInteractiveRemoteInferenceSession
        self.session = kind.__new__(kind)
        try:
            self.session.__init__(url, **options)
        except BaseException:
            self.session._http.close()  # it does not close it itself
            raise
        self._responses: list[httpx.Response] = []
        self.session._http.event_hooks = {"response": [self._record]}
        self._copy: Array | None = None

    def close(self) -> None:
        self.session.close()

    @property
    def buffer(self) -> Array:
        """A copy of the target buffer."""
        return np.array(self.session.target_buffer)

    def do(self, request: Call) -> Result:
        """Call the client. Raises its errors."""
        self._responses.clear()
        arguments = copy.deepcopy(request.arguments)  # the client writes into its target buffer
        returned = getattr(self.session, request.method)(*arguments, **request.options)
        self._update_copy(request)
        meta = self._responses[-1].headers.get("X-Meta")
        return Result(
            str(request),
            [response.status_code for response in self._responses],
            None if meta is None else json.loads(meta)["ran_prediction"],
            _comparable(returned),
            None if self.session.target_buffer is None else self.buffer,
        )

    def _record(self, response: httpx.Response) -> None:
        if threading.current_thread() is not self.session._heartbeat_thread:
            self._responses.append(response)

    def _update_copy(self, request: Call) -> None:
        if self.session.target_buffer is None:
            return
        box = self.session._last_paste_bbox
        if self._copy is None or request.method in _WRITES_ITSELF:
            self._copy = self.buffer
        elif box is not None:
            part = tuple(slice(start, stop) for start, stop in box)
            self._copy[part] = self.session.target_buffer[part]
        assert np.array_equal(self._copy, self.buffer), f"{request} changed voxels outside of the box {box}"


def all_calls(image: Array, dtypes: Sequence[str] = DTYPES) -> Iterator[Call]:
    """All calls, with both polarities and all kinds of arguments. ``dtypes``: those of the target buffers.

    An undo never follows an undo, because nnInteractive's own server has one level.
    """
    shape: Shape = image.shape
    rng = np.random.default_rng(11)
    yield call("ping")
    yield call("lease_status")
    yield call("set_image", image[None], {"spacing": np.array([1.0, 2.0, 3.0])})
    yield call("undo")
    yield call("_predict")
    for dtype in dtypes:
        yield call("set_target_buffer", np.zeros(shape, dtype))
        yield from _prompts(shape, rng)
        yield call("reset_interactions")
        yield call("undo")
    other = image[::-1, :, 2:]
    yield call("set_image", other[None])
    yield call("set_target_buffer", np.zeros(other.shape, np.uint8))
    yield call("_predict")
    yield call("undo")
    yield call("add_point_interaction", [n // 2 for n in other.shape], True)


def _prompts(shape: Shape, rng: np.random.Generator) -> Iterator[Call]:
    """Prompts of one segment, which begin without any."""

    def at(low: float = 0.2, high: float = 0.8) -> tuple[int, ...]:
        return tuple(int(n * rng.uniform(low, high)) for n in shape)

    first = at()
    yield call("set_do_autozoom", False)
    yield call("add_point_interaction", first, True)
    yield call("undo")
    yield call("add_point_interaction", list(first), include_interaction=True)
    yield call("add_point_interaction", at(), False)
    yield call("_predict")
    yield call("add_bbox_interaction", _flat_box(shape, at(), 2), True)
    yield call("add_scribble_interaction", _stroke(shape, at(), at()), True)
    yield call("undo")
    yield call("add_lasso_interaction", _disc(shape, at(), 2), True, run_prediction=False)
    yield call("add_point_interaction", at(), True, run_prediction=False)
    yield call("_predict")
    yield call("heartbeat")
    yield call("add_bbox_interaction", _flat_box(shape, at(), 0), False)
    yield call("set_do_autozoom", True)
    yield _cropped("add_scribble_interaction", _stroke(shape, (0, 0, 0), at(0.8, 1.0)), True)
    yield _cropped("add_lasso_interaction", _disc(shape, at(), 1), False)
    yield call("undo")
    yield _cropped("add_lasso_interaction", _disc(shape, at(), 0), True)
    yield _cropped("add_scribble_interaction", _stroke(shape, at(), at()), False)
    yield call("add_bbox_interaction", _flat_box(shape, at(), 1), True, run_prediction=False)
    yield call("undo")
    yield call("_predict")
    # Parts of a box outside of the image, and of a voxel.
    i, j, k = shape
    yield call("add_bbox_interaction", [[-4.0, 0.4 * i], [0.3 * j, j + 3.5], [k // 2, k // 2 + 1]], True)
    yield call("add_scribble_interaction", np.zeros(shape, np.uint8), True)
    yield call("add_initial_seg_interaction", _ball(shape, at(0.4, 0.6)))
    yield call("add_point_interaction", at(), False)
    yield call("undo")
    yield call("add_point_interaction", at(), True)
    yield call("add_initial_seg_interaction", _ball(shape, at(0.4, 0.6)), run_prediction=True)
    yield call("add_lasso_interaction", _disc(shape, at(), 2), False)
    yield call("add_initial_seg_interaction", _ball(shape, at(0.4, 0.6)), run_prediction=True)
    yield call("undo")
    yield call("reset_interactions")
    yield call("_predict")
    yield call("add_scribble_interaction", _stroke(shape, at(), at()), True)


# ---- arguments ----------------------------------------------------------------------------------------------


def _flat_box(shape: Shape, center: Sequence[int], axis: int) -> list[list[int]]:
    """A box of one slice."""
    return [
        [c, c + 1] if a == axis else [max(0, c - n // 5), min(n, c + n // 5 + 1)]
        for a, (c, n) in enumerate(zip(center, shape, strict=True))
    ]


def _stroke(shape: Shape, start: Sequence[int], stop: Sequence[int]) -> Array:
    drawn = np.zeros(shape, np.uint8)
    for place in np.rint(np.linspace(start, stop, 2 * max(shape))).astype(int):
        drawn[tuple(np.clip(place, 0, np.array(shape) - 1))] = 1
    return drawn


def _disc(shape: Shape, center: Sequence[int], axis: int) -> Array:
    """A filled circle in one slice."""
    flat = np.zeros(shape, np.uint8)
    part = tuple(slice(c, c + 1) if a == axis else slice(None) for a, c in enumerate(center))
    flat[part] = _ball(shape, center)[part]
    return flat


def _ball(shape: Shape, center: Sequence[int]) -> Array:
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    distance = sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True))
    return np.asarray(distance <= (min(shape) / 5) ** 2, np.uint8)


def _cropped(method: str, mask: Array, positive: bool) -> Call:
    """The call with the part of the mask that has the set voxels, and some more."""
    places = np.argwhere(mask)
    first, last = np.maximum(places.min(0) - 2, 0), np.minimum(places.max(0) + 3, mask.shape)
    box = [[int(a), int(b)] for a, b in zip(first, last, strict=True)]
    part = mask[tuple(slice(a, b) for a, b in box)]
    return call(method, part, positive, interaction_bbox=box)


# ---- a program ----------------------------------------------------------------------------------------------


def results(url: str, calls: Iterable[Call], **options: Any) -> list[Result]:
    """Return the results of calls by a new client with these options."""
    client = RecordingClient(url, **options)
    try:
        return [client.do(request) for request in calls]
    finally:
        client.close()


def main() -> None:
    url, image, result = sys.argv[1:]
    found = [asdict(one) for one in results(url, all_calls(np.load(image)))]
    Path(result).write_bytes(pickle.dumps((remote.__file__, found)))


if __name__ == "__main__":
    main()
