"""The image as bricks: which there are, which come first, which have arrived; and its statistics.

The volume is cut into cubes of 64 voxels, smaller at the far borders, numbered in C order of their grid.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage
from nninteractive_ws.geometry import Box, Index

BRICK = 64

#: How the voxels travel, by numpy dtype name. The network computes in float32, so wider types are cut to it.
_WIRE_DTYPES = {
    "bool": "uint8",
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32")},
    **dict.fromkeys(("int64", "uint64", "float64", "float128", "float96", "longdouble"), "float32"),
}


@dataclass(frozen=True)
class Grid:
    """The bricks of a volume of ``shape``."""

    shape: Index

    @property
    def counts(self) -> Index:
        """Bricks along each axis."""
        i, j, k = (-(-n // BRICK) for n in self.shape)
        return i, j, k

    def __len__(self) -> int:
        return math.prod(self.counts)

    def box(self, index: int) -> Box:
        """The voxels of a brick. Raises IndexError where there is no such brick."""
        if not 0 <= index < len(self):
            raise IndexError(f"brick {index} of {len(self)}")
        _, nj, nk = self.counts
        at = index // (nj * nk), index // nk % nj, index % nk
        return Box.from_pairs([(BRICK * a, min(BRICK * (a + 1), n)) for a, n in zip(at, self.shape, strict=True)])

    def within(self, box: Box) -> list[int]:
        """The bricks that hold voxels of ``box``; parts of it outside the volume are ignored."""
        clipped = box.clip(self.shape)
        if clipped is None:
            return []
        _, nj, nk = self.counts
        ranges = [range(a // BRICK, (b - 1) // BRICK + 1) for a, b in clipped.pairs]
        return [(i * nj + j) * nk + k for i, j, k in itertools.product(*ranges)]

    def nearest_first(self, focus: Index) -> list[int]:
        """All bricks by the distance of their closest voxel to ``focus``; equal ones in grid order."""
        axes = []
        for n, count, f in zip(self.shape, self.counts, focus, strict=True):
            low = np.arange(count) * BRICK
            high = np.minimum(low + BRICK, n) - 1
            axes.append(np.maximum(0, np.maximum(low - f, f - high)).astype(np.int64) ** 2)
        distance = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]
        return [int(i) for i in np.argsort(distance.ravel(), kind="stable")]


class Presence:
    """Which bricks of a grid are there."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._there = np.zeros(len(grid), bool)

    def add(self, index: int) -> None:
        self._there[index] = True

    def missing(self, indices: Iterable[int]) -> list[int]:
        return [i for i in indices if not self._there[i]]

    def __contains__(self, index: int) -> bool:
        return bool(self._there[index])

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self._there))

    def to_bytes(self) -> bytes:
        """One bit a brick, the first in the lowest bit of the first byte."""
        return np.packbits(self._there, bitorder="little").tobytes()

    @classmethod
    def from_bytes(cls, grid: Grid, data: bytes) -> "Presence":
        """Raises ValueError where ``data`` has not one bit for each brick."""
        if len(data) != -(-len(grid) // 8):
            raise ValueError(f"{len(data)} bytes for {len(grid)} bricks")
        presence = cls(grid)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=len(grid), bitorder="little")
        presence._there = bits.astype(bool)
        return presence


@dataclass(frozen=True)
class Statistics:
    """What the network's input is normalised with: (voxel - mean) / std, computed in float32."""

    mean: float
    std: float


def checked_volume(image: npt.ArrayLike) -> npt.NDArray[np.generic]:
    """The image as an array that can be sent: 3-D, real, not empty. Not copied.

    Raises BadImage with what is wrong.
    """
    try:
        volume = np.asarray(image)
    except ValueError as e:
        raise BadImage(f"The image is not an array ({e}).") from e
    if volume.ndim != 3:
        advice = "Take one channel or time point of it." if volume.ndim > 3 else "A slice is image[:, :, None]."
        raise BadImage(
            f"The image has {volume.ndim} dimensions (shape {volume.shape}); a volume of 3 is needed. {advice}"
        )
    if volume.dtype.name not in _WIRE_DTYPES:
        raise BadImage(f"The image's voxels are of type {volume.dtype}; real numbers are needed.")
    if volume.size == 0:
        raise BadImage(f"The image is empty (shape {volume.shape}).")
    return volume


def wire_dtype(volume: npt.NDArray[np.generic]) -> str:
    """The dtype in which the voxels travel."""
    return _WIRE_DTYPES[volume.dtype.name]


def statistics_brick_by_brick(volume: npt.NDArray[np.generic]) -> Iterator[Statistics | None]:
    """Mean and standard deviation of a volume, a brick of work between two ``next``; the last item has them.

    As nnInteractive 2.6 normalises (``_background_set_image``): of the voxels as they travel, over the smallest
    box around those that are not zero, the deviation with n - 1. Voxels outside that box are zero and add
    nothing to a sum, so one pass serves. Sums are exact for integers of one or two bytes and float64 otherwise.
    Raises BadImage for voxels that are not finite in the wire's type and for a volume of (almost) one value.
    """
    wire = np.dtype(wire_dtype(volume))
    total: float = 0
    squares: float = 0
    occupied = [np.zeros(n, bool) for n in volume.shape]
    low, high = math.inf, -math.inf
    exact = wire.kind in "iu" and wire.itemsize <= 2
    grid = Grid(volume.shape)
    for box in map(grid.box, range(len(grid))):
        brick = volume[box.slices]
        # What overflows or is not a number is looked for below.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            sent = brick.astype(wire, copy=False)
            # In C order whatever the volume's, so that the same voxels always give the same sums.
            values: npt.NDArray[Any] = sent.astype(np.int64 if exact else np.float64, order="C")
            part, part_squares = values.sum().item(), np.vdot(values, values).item()
        if not math.isfinite(part_squares):
            raise BadImage(_describe_not_finite(brick, sent, box.start))
        total, squares = total + part, squares + part_squares
        low, high = min(low, values.min().item()), max(high, values.max().item())
        nonzero = values != 0
        for axis, span in enumerate(box.slices):
            occupied[axis][span] |= nonzero.any(axis=tuple(a for a in range(3) if a != axis))
        yield None
    if low == high:
        raise BadImage(f"Every voxel of the image is {low:g}; there is nothing to segment in it.")
    n = math.prod(int(np.ptp(np.flatnonzero(o))) + 1 for o in occupied)
    # In fractions, so that the two sums are the only places where digits can be lost.
    mean = Fraction(total) / n
    variance = (Fraction(squares) - mean * Fraction(total)) / max(1, n - 1)
    std = math.sqrt(max(float(variance), 0.0))
    limits = np.finfo(np.float32)
    if not float(limits.smallest_normal) <= std <= float(limits.max):
        raise BadImage(
            f"The image cannot be normalised: inside the box around its voxels that are not zero, the standard "
            f"deviation is {std:g} (its voxels go from {low:g} to {high:g})."
        )
    yield Statistics(float(mean), std)


def statistics(volume: npt.NDArray[np.generic]) -> Statistics:
    """Mean and standard deviation of a volume: see :func:`statistics_brick_by_brick`."""
    *_, found = statistics_brick_by_brick(volume)
    assert found is not None
    return found


def _describe_not_finite(brick: npt.NDArray[np.generic], sent: npt.NDArray[np.generic], origin: Index) -> str:
    first = tuple(int(x) for x in np.argwhere(~np.isfinite(sent.astype(np.float64)))[0])
    value, at = brick[first], tuple(map(sum, zip(first, origin, strict=True)))
    if np.isfinite(value):
        return f"The image has voxels too large for {sent.dtype}, the first at {at}: {value}. Scale the image down."
    return (
        f"The image has NaN or infinite voxels, the first at {at}: {value}. "
        "Replace them (numpy.nan_to_num) and set the image again."
    )
