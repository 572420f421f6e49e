"""Boxes of voxels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import math

from nninteractive_ws.errors import OutOfBounds

Index = tuple[int, int, int]
#: ((i0, i1), (j0, j1), (k0, k1)): how a box is written by users and on the wire.
Pairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxel indices: ``start`` is inside, ``stop`` is not. Never empty.

    Raises ValueError where ``stop`` is not greater than ``start`` on every axis.
    """

    start: Index
    stop: Index

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"an empty box: start {self.start}, stop {self.stop}")

    @classmethod
    def from_pairs(cls, pairs: Sequence[Sequence[int]]) -> "Box":
        """From ((i0, i1), (j0, j1), (k0, k1))."""
        (i0, i1), (j0, j1), (k0, k1) = pairs
        return cls((int(i0), int(j0), int(k0)), (int(i1), int(j1), int(k1)))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Box":
        """All voxels of a volume of ``shape``."""
        i, j, k = shape
        return cls((0, 0, 0), (int(i), int(j), int(k)))

    @property
    def pairs(self) -> Pairs:
        (i0, j0, k0), (i1, j1, k1) = self.start, self.stop
        return (i0, i1), (j0, j1), (k0, k1)

    @property
    def shape(self) -> Index:
        (i0, i1), (j0, j1), (k0, k1) = self.pairs
        return i1 - i0, j1 - j0, k1 - k0

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing a numpy array."""
        a, b, c = (slice(lo, hi) for lo, hi in self.pairs)
        return a, b, c

    def clip(self, shape: Sequence[int]) -> "Box | None":
        """The part inside a volume of ``shape``, or None."""
        return self.intersection(Box.whole(shape))

    def intersection(self, other: "Box") -> "Box | None":
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def union(self, other: "Box | None") -> "Box":
        """The smallest box around both."""
        if other is None:
            return self
        start, stop = tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def shift(self, by: Sequence[int]) -> "Box":
        (i0, j0, k0), (i1, j1, k1), (di, dj, dk) = self.start, self.stop, by
        return Box((i0 + di, j0 + dj, k0 + dk), (i1 + di, j1 + dj, k1 + dk))

    def within(self, frame: "Box") -> "Box":
        """The same box in the indices of an array that holds ``frame``."""
        i, j, k = frame.start
        return self.shift((-i, -j, -k))

    def inside(self, shape: Sequence[int]) -> bool:
        """Whether all of it lies in a volume of ``shape``."""
        return min(self.start) >= 0 and all(b <= n for b, n in zip(self.stop, shape, strict=True))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs)


def box_in_volume(pairs: Sequence[Sequence[int]], shape: Sequence[int]) -> Box:
    """The box of ((i0, i1), (j0, j1), (k0, k1)) in a volume of ``shape``.

    Raises OutOfBounds where it is no such box, empty, or not all inside.
    """
    try:
        box = Box.from_pairs(pairs)
    except (TypeError, ValueError) as e:
        raise OutOfBounds(
            f"{pairs} is not a box ((i0, i1), (j0, j1), (k0, k1)) in which each stop is greater than its start."
        ) from e
    if not box.inside(shape):
        raise OutOfBounds(f"The box {box.pairs} is not inside the volume of shape {tuple(shape)}.")
    return box
