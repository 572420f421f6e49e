"""The image on its way: what is announced, which brick goes next, and how many may be under way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import hashlib

import numpy as np
import numpy.typing as npt

from nninteractive_ws import arrays, bricks
from nninteractive_ws.bricks import Grid, Presence, Statistics
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.messages import Brick, Encoding

#: A brick that is acknowledged later than this has waited in some buffer, and so would a prompt's message.
_LATE_S = 0.2
_SMALLEST_WINDOW = 2


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
        """Look at every voxel once, a brick of work between two ``next``; the last item is the source.

        Raises BadImage.
        """
        volume = bricks.checked_volume(image)
        digest = hashlib.blake2b(f"{bricks.wire_dtype(volume)} {volume.shape}".encode(), digest_size=16)
        grid = Grid(volume.shape)
        statistics = bricks.statistics_brick_by_brick(volume)
        for box in map(grid.box, range(len(grid))):
            next(statistics)
            digest.update(_on_the_wire(volume[box.slices]).data)
            yield None
        found = next(statistics)
        assert found is not None
        yield cls(volume, found, digest.hexdigest())

    @classmethod
    def of(cls, image: npt.ArrayLike) -> "ImageSource":
        """The source, at once. Raises BadImage."""
        *_, source = cls.prepare(image)
        assert source is not None
        return source

    @property
    def grid(self) -> Grid:
        i, j, k = self.volume.shape
        return Grid((i, j, k))

    @property
    def dtype(self) -> str:
        return bricks.wire_dtype(self.volume)

    def brick(self, index: int, encoding: Encoding) -> Brick:
        """One brick, packed: a few milliseconds of work."""
        voxels = _on_the_wire(self.volume[self.grid.box(index).slices])
        return Brick(index=index, encoding=encoding, data=arrays.pack(voxels, encoding))


def _on_the_wire(voxels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(voxels, np.dtype(bricks.wire_dtype(voxels)).newbyteorder("<"))


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
        self._needed: set[int] = set()
        i, j, k = grid.shape
        self._focus: Index = (i // 2, j // 2, k // 2)
        self._queue: list[int] = []

    def look_at(self, focus: Index) -> None:
        """Send the bricks around a voxel first."""
        self._focus = focus
        self._order()

    def need(self, box: Box) -> None:
        """Send the bricks of a box before all others: a prompt waits for them."""
        self._needed = set(self.grid.within(box))
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

    def next(self) -> int | None:
        """The brick to send now, or None while as many as may be are under way, or all are sent."""
        if self.presence is None or len(self._under_way) >= self._window:
            return None
        while self._queue:
            index = self._queue.pop()
            if index not in self.presence and index not in self._under_way:
                self._under_way[index] = self._clock()
                return index
        return None

    def _order(self) -> None:
        # Last first: next() pops from the end.
        nearest = self.grid.nearest_first(self._focus)
        self._queue = sorted(nearest, key=lambda index: index not in self._needed)[::-1]
