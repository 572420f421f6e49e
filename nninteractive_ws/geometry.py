"""Boxes of voxels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import math

from nninteractive_ws.errors import OutOfBounds

# Of positions in millimeters that were converted to voxels.
_ROUNDING_ERROR = 1e-3

Index = tuple[int, int, int]
#: A box as users write it, and on the wire: ((i0, i1), (j0, j1), (k0, k1)).
Pairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Box:
    """An end-exclusive box of voxels. Never empty.

    Parameters
    ----------
    start : tuple of 3 int
        First voxel (i, j, k).
    stop : tuple of 3 int
        One beyond the last voxel, along each axis.

    Raises
    ------
    ValueError
        If ``stop`` is not greater than ``start`` along every axis.

    Examples
    --------
    >>> box = nni.Box.from_pairs(((2, 4), (0, 3), (5, 6)))
    >>> box.shape, box.voxels
    ((2, 3, 1), 6)
    """

    start: Index
    stop: Index

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(
                f"This is an empty box, with start {self.start} and stop {self.stop}. Each stop must be greater than "
                "its start."
            )

    @classmethod
    def from_pairs(cls, pairs: Sequence[Sequence[int]]) -> "Box":
        """Make a box from ranges.

        Parameters
        ----------
        pairs : nested sequence of int
            End-exclusive ranges ((i0, i1), (j0, j1), (k0, k1)).

        Returns
        -------
        Box
            The box of these ranges.

        Raises
        ------
        ValueError
            If a range is empty, or not of whole numbers. Numbers may differ from them by rounding errors.
        """
        (i0, i1), (j0, j1), (k0, k1) = ((_whole(start), _whole(stop)) for start, stop in pairs)
        return cls((i0, j0, k0), (i1, j1, k1))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Box":
        """Make the box of all voxels of a volume.

        Parameters
        ----------
        shape : sequence of 3 int
            Shape of the volume, (i, j, k).

        Returns
        -------
        Box
            From (0, 0, 0) to ``shape``.
        """
        i, j, k = shape
        return cls((0, 0, 0), (int(i), int(j), int(k)))

    @property
    def pairs(self) -> Pairs:
        """End-exclusive ranges ((i0, i1), (j0, j1), (k0, k1))."""
        (i0, j0, k0), (i1, j1, k1) = self.start, self.stop
        return (i0, i1), (j0, j1), (k0, k1)

    @property
    def shape(self) -> Index:
        """Number of voxels along (i, j, k)."""
        (i0, i1), (j0, j1), (k0, k1) = self.pairs
        return i1 - i0, j1 - j0, k1 - k0

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices for indexing a numpy array of the volume."""
        a, b, c = (slice(lo, hi) for lo, hi in self.pairs)
        return a, b, c

    def clip(self, shape: Sequence[int]) -> "Box | None":
        """Return the part inside a volume.

        Parameters
        ----------
        shape : sequence of 3 int
            Shape of the volume, (i, j, k).

        Returns
        -------
        Box or None
            None if no voxel is inside.
        """
        return self.intersection(Box.whole(shape))

    def intersection(self, other: "Box") -> "Box | None":
        """Return the common part of two boxes.

        Parameters
        ----------
        other : Box
            The other box.

        Returns
        -------
        Box or None
            None if they have no voxel in common.
        """
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def union(self, other: "Box | None") -> "Box":
        """Return the bounding box of two boxes.

        Parameters
        ----------
        other : Box or None
            The other box. None counts as empty.

        Returns
        -------
        Box
            The smallest box that holds both.
        """
        if other is None:
            return self
        start, stop = tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def shift(self, by: Sequence[int]) -> "Box":
        """Return the box moved.

        Parameters
        ----------
        by : sequence of 3 int
            Voxels (di, dj, dk).

        Returns
        -------
        Box
            A box of the same shape.
        """
        (i0, j0, k0), (i1, j1, k1), (di, dj, dk) = self.start, self.stop, by
        return Box((i0 + di, j0 + dj, k0 + dk), (i1 + di, j1 + dj, k1 + dk))

    def relative_to(self, frame: "Box") -> "Box":
        """Return the box in the indices of a crop.

        Parameters
        ----------
        frame : Box
            The box that the crop covers.

        Returns
        -------
        Box
            The same voxels, relative to ``frame.start``.
        """
        i, j, k = frame.start
        return self.shift((-i, -j, -k))

    def inside(self, shape: Sequence[int]) -> bool:
        """Return whether all of the box is inside a volume.

        Parameters
        ----------
        shape : sequence of 3 int
            Shape of the volume, (i, j, k).

        Returns
        -------
        bool
            True if no voxel is outside.
        """
        return min(self.start) >= 0 and all(b <= n for b, n in zip(self.stop, shape, strict=True))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs)


def _whole(number: float) -> int:
    """Return a number without its rounding error. Raises ValueError if it is not a whole number."""
    nearest = round(number)
    if abs(number - nearest) > _ROUNDING_ERROR:
        raise ValueError(f"{number} is not a whole number. Round it first.")
    return int(nearest)


def box_in_volume(pairs: Sequence[Sequence[int]], shape: Sequence[int]) -> Box:
    """Return the box of ranges ((i0, i1), (j0, j1), (k0, k1)) in a volume of ``shape``.

    Raises OutOfBounds if it is no box, empty, or partly outside.
    """
    try:
        box = Box.from_pairs(pairs)
    except (TypeError, ValueError, OverflowError) as e:
        raise OutOfBounds(
            f"{pairs} is not a box. Use the format ((i0, i1), (j0, j1), (k0, k1)) with whole numbers, in which each "
            "stop is greater than its start."
        ) from e
    if not box.inside(shape):
        raise OutOfBounds(
            f"The box {box.pairs} is not inside the volume of shape {tuple(shape)}. Clip it to the volume."
        )
    return box
