"""The image on its way: what is announced, which brick goes next, and how many may be under way."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
import hashlib
import os

import numpy as np
import numpy.typing as npt

from nninteractive_ws import arrays, bricks
from nninteractive_ws.bricks import Grid, Look, Presence, Statistics
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.messages import Brick, Encoding

#: A brick that is acknowledged later than this has waited in some buffer, and so would a prompt's message.
_LATE_S = 0.2
_SMALLEST_WINDOW = 16
#: So many bricks go in one message: some hundred thousand bytes, which take a few milliseconds to pack.
_TOGETHER = 8
#: Looking at a volume is bound by memory; more threads than these are not faster.
_MOST_THREADS = 8


@dataclass(frozen=True)
class ImageSource:
    """A volume ready to be announced. ``name``: a digest of its voxels, shape and type, hexadecimal.

    The voxels are read when their brick is sent, so the array must not change meanwhile.
    """

    volume: npt.NDArray[np.generic]
    statistics: Statistics
    name: str

    @classmethod
    def prepare(cls, image: npt.ArrayLike) -> "Iterator[ImageSource | None]":
        """Look at every voxel once, a millisecond of work between two ``next``; the last item is the source.

        Raises BadImage.
        """
        volume = bricks.checked_volume(image)
        looks = []
        for box in bricks.cubes(volume):
            looks.append(bricks.look(volume, box))
            yield None
        yield cls._of(volume, looks)

    @classmethod
    def of(cls, image: npt.ArrayLike) -> "ImageSource":
        """The source, at once, with as many threads as there are processors. Raises BadImage."""
        volume = bricks.checked_volume(image)
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            return cls._of(volume, list(pool.map(partial(bricks.look, volume), bricks.cubes(volume))))

    @classmethod
    def _of(cls, volume: npt.NDArray[np.generic], looks: Sequence[Look]) -> "ImageSource":
        digest = hashlib.sha256(f"{bricks.wire_dtype(volume)} {volume.shape}".encode())
        for one in looks:
            digest.update(one.digest)
        return cls(volume, bricks.combine(looks), digest.hexdigest()[:32])

    @cached_property
    def grid(self) -> Grid:
        i, j, k = self.volume.shape
        return Grid((i, j, k))

    @property
    def dtype(self) -> str:
        return bricks.wire_dtype(self.volume)

    def brick(self, index: int, encoding: Encoding) -> Brick:
        """One brick, packed: less than a millisecond of work."""
        voxels = bricks.as_sent(self.volume[self.grid.box(index).slices])
        return Brick(index=index, encoding=encoding, data=arrays.pack(voxels, encoding))


class Upload:
    """Which brick of an image goes next: those a prompt waits for, then the nearest to the user's focus.

    Few are under way at a time: the window grows while acknowledgements come quickly and shrinks when they are
    late, so that a prompt never waits behind the image, whatever the link.
    """

    def __init__(self, grid: Grid, most_under_way: int, clock: Callable[[], float]) -> None:
        self.grid = grid
        self.presence: Presence | None = None  # not known before the server has said what it has
        self._clock = clock
        self._most = max(1, most_under_way)
        self._window = min(_SMALLEST_WINDOW, self._most)
        self._under_way: dict[int, float] = {}
        self._needed: list[int] = []
        i, j, k = grid.shape
        self._focus: Index = (i // 2, j // 2, k // 2)
        self._queue: list[int] = []

    def look_at(self, focus: Index) -> None:
        """Send the bricks around a voxel first."""
        self._focus = focus
        self._order()

    def need(self, box: Box) -> None:
        """Send the bricks of a box before all others: a prompt waits for them."""
        self._needed = self.grid.within(box)
        self._order()

    def bricks_in(self, presence: bytes) -> list[int]:
        """The bricks that a welcome says are there. Raises ValueError where it is of another grid."""
        there = Presence.from_bytes(self.grid, presence)
        return [index for index in range(len(self.grid)) if index in there]

    def acknowledged(self, received: list[int]) -> None:
        """The server has these bricks; its first acknowledgement says what it had before."""
        now = self._clock()
        if self.presence is None:
            self.presence = Presence(self.grid)
            self._order()
        for index in received:
            if index < len(self.grid):
                self.presence.add(index)
            sent = self._under_way.pop(index, None)
            if sent is not None:
                late = now - sent > _LATE_S
                self._window = max(_SMALLEST_WINDOW, self._window - 1) if late else self._window + 1
        self._window = min(self._window, self._most)

    def next(self) -> list[int]:
        """The bricks to send now, in one message; none while as many as may be are under way, or all are sent."""
        chosen: list[int] = []
        if self.presence is None:
            return chosen
        most = min(_TOGETHER, self._window - len(self._under_way))
        while self._queue and len(chosen) < most:
            index = self._queue.pop()
            if index not in self.presence and index not in self._under_way:
                chosen.append(index)
        self._under_way.update(dict.fromkeys(chosen, self._clock()))
        return chosen

    def _order(self) -> None:
        # Last first: next() pops from the end.
        self._queue = self.grid.nearest_first(self._focus, self._needed)[::-1]
