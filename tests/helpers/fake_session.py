"""A session without a server, for tests of the HTTP API: prompts change cubes, and every step can be undone."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.client.events import Failed, MaskDelta
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.errors import ConnectionFailed
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Mask

#: Prompts of the fake model.
PROMPTS = ("point", "bbox2d", "bbox3d", "scribble", "lasso")
#: Distance from a point to the faces of its cube.
REACH = 2


class FakeSession:
    """The part of ``AsyncSession`` that leases use.

    ``error``: raised by the next request. ``hold``: requests wait for it if it is set to an event.
    """

    def __init__(self, prompts: Sequence[str] = PROMPTS) -> None:
        self.server = SimpleNamespace(model=SimpleNamespace(prompts=tuple(prompts)))
        self.image: npt.NDArray[Any] | None = None
        self.options: dict[str, bool | None] = {}
        self.closed = False
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self._callbacks: dict[str, list[Callable[[Any], object]]] = {}
        self._segments: dict[str, FakeSegment] = {}

    def on(self, name: str, callback: Callable[[Any], object]) -> None:
        self._callbacks.setdefault(name, []).append(callback)

    def emit(self, event: MaskDelta | Failed) -> None:
        for callback in self._callbacks.get(event.name, []):
            callback(event)

    def fail(self) -> None:
        """End the session, as a server that is gone does."""
        self.emit(Failed(None, ConnectionFailed("The server is gone.")))

    @property
    def segments(self) -> list[str]:
        return [name for name, segment in self._segments.items() if segment.exists]

    def segment(self, name: str) -> "FakeSegment":
        shape = (1, 1, 1) if self.image is None else self.image.shape
        return self._segments.setdefault(name, FakeSegment(self, shape))

    async def request(self) -> None:
        """Wait as a request does, or raise its error."""
        await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    async def set_image(self, source: ImageSource) -> None:
        await self.request()
        self.image = source.volume
        self._segments.clear()

    async def set_options(self, *, autozoom: bool | None = None, previews: bool | None = None) -> None:
        await self.request()
        self.options |= {"autozoom": autozoom, "previews": previews}

    async def close(self) -> None:
        self.closed = True


class FakeSegment:
    """The part of ``AsyncSegment`` that leases use."""

    def __init__(self, session: FakeSession, shape: tuple[int, ...]) -> None:
        self._session, self.mask, self.exists = session, np.zeros(shape, bool), False
        self._steps: list[Mask] = []
        self._pending: list[tuple[Box, bool]] = []

    @property
    def can_undo(self) -> int:
        return len(self._steps)

    async def add_point(self, point: Sequence[float], *, positive: bool, run: bool) -> None:
        i, j, k = (round(p) for p in point)
        cube = Box((i - REACH, j - REACH, k - REACH), (i + REACH + 1, j + REACH + 1, k + REACH + 1))
        await self._add(cube.clip(self.mask.shape), positive, run)

    async def add_bbox(self, box: Box, *, positive: bool, run: bool) -> None:
        await self._add(box, positive, run)

    async def add_scribble(self, flips: Mask, *, box: Box, positive: bool, run: bool) -> None:
        assert flips.shape == box.shape
        await self._add(box, positive, run)

    add_lasso = add_scribble

    async def run(self) -> None:
        await self._session.request()
        if self._pending:
            self._predict()

    async def set_mask(self, flips: Mask, *, box: Box, run: bool) -> None:
        await self._session.request()
        new = np.zeros_like(self.mask)
        new[box.slices] = flips
        if run:
            new = ~new
        self._pending = []
        self._step(new)

    async def undo(self) -> None:
        await self._session.request()
        self._replace(self._steps.pop())

    async def remove(self) -> None:
        await self._session.request()
        self._replace(np.zeros_like(self.mask))
        self._steps, self._pending, self.exists = [], [], False

    async def _add(self, box: Box | None, positive: bool, run: bool) -> None:
        await self._session.request()
        assert box is not None
        self.exists = True
        self._pending.append((box, positive))
        if run:
            self._predict()
        else:
            self._steps.append(self.mask.copy())

    def _predict(self) -> None:
        new = self.mask.copy()
        for box, positive in self._pending:
            new[box.slices] = positive
        self._pending = []
        self._step(new)

    def _step(self, new: Mask) -> None:
        self.exists = True
        self._steps.append(self.mask.copy())
        self._replace(new)

    def _replace(self, new: Mask) -> None:
        box = masks.diff(self.mask, new).box
        self.mask = new
        if box is not None:
            self._session.emit(MaskDelta(1, "object", box, 1, int(new.sum()), True))
