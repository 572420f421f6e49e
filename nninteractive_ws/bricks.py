"""The image as bricks: which there are, which come first, which have arrived; and its statistics.

The volume is cut into cubes of 32 voxels, smaller at the far borders, numbered in C order of their grid.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
import hashlib
import itertools
import math

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage, TooLarge
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.messages import MAX_BRICKS

BRICK = 32
#: Voxels of an image, at most: 1024^3. With its interaction channels, such an image takes about 24 GB.
MAX_VOXELS = 2**30
# The voxels are looked at in larger cubes, which takes fewer calls; a cube's doubles still fit into a cache.
_LOOKED_AT = 64

#: How the voxels travel, by numpy dtype name. The network computes in float32, so wider types are cut to it.
_WIRE_DTYPES = {
    "bool": "uint8",
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32")},
    **dict.fromkeys(("int64", "uint64", "float64", "float128", "float96", "longdouble"), "float32"),
}


@dataclass(frozen=True)
class Grid:
    """The bricks of a volume of ``shape``, or cubes of another ``edge``."""

    shape: Index
    edge: int = BRICK

    @cached_property
    def counts(self) -> Index:
        """Bricks along each axis."""
        i, j, k = (-(-n // self.edge) for n in self.shape)
        return i, j, k

    def __len__(self) -> int:
        return math.prod(self.counts)

    def box(self, index: int) -> Box:
        """The voxels of a brick. Raises IndexError where there is no such brick."""
        if not 0 <= index < len(self):
            raise IndexError(f"brick {index} of {len(self)}")
        _, nj, nk = self.counts
        at = index // (nj * nk), index // nk % nj, index % nk
        edge = self.edge
        return Box.from_pairs([(edge * a, min(edge * (a + 1), n)) for a, n in zip(at, self.shape, strict=True)])

    def within(self, box: Box) -> list[int]:
        """The bricks that hold voxels of ``box``; parts of it outside the volume are ignored."""
        clipped = box.clip(self.shape)
        if clipped is None:
            return []
        _, nj, nk = self.counts
        ranges = [range(a // self.edge, (b - 1) // self.edge + 1) for a, b in clipped.pairs]
        return [(i * nj + j) * nk + k for i, j, k in itertools.product(*ranges)]

    def nearest_first(self, focus: Index, before: Sequence[int] = ()) -> list[int]:
        """All bricks by the distance of their closest voxel to ``focus``; equal ones in grid order. Those of ``before``
        come before all others."""
        axes = []
        for n, count, f in zip(self.shape, self.counts, focus, strict=True):
            low = np.arange(count) * self.edge
            high = np.minimum(low + self.edge, n) - 1
            axes.append(np.maximum(0, np.maximum(low - f, f - high)).astype(np.int64) ** 2)
        distance = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]
        others = np.ones(len(self), bool)
        others[list(before)] = False
        order: list[int] = np.lexsort((distance.ravel(), others)).tolist()
        return order


class Presence:
    """Which bricks of a grid are there."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._there = np.zeros(len(grid), bool)

    def add(self, index: int) -> None:
        self._there[index] = True

    def missing(self, indices: npt.NDArray[np.intp]) -> int:
        """How many of these are not there."""
        return int(np.count_nonzero(~self._there[indices]))

    def __contains__(self, index: int) -> bool:
        return bool(self._there[index])

    def indices(self) -> list[int]:
        """The numbers of the bricks that are there."""
        found: list[int] = np.flatnonzero(self._there).tolist()
        return found

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


def check_size(shape: Index) -> None:
    """Raise TooLarge for an image of too many voxels, or so thin that it has too many bricks."""
    # Not len(Grid(shape)): Python's len ends at 2^63, and a shape from the wire may have up to 2^78 bricks.
    voxels, count = math.prod(shape), math.prod(Grid(shape).counts)
    size = " × ".join(map(str, shape))
    if voxels > MAX_VOXELS:
        raise TooLarge(
            f"The image of {size} has {voxels:,} voxels; at most {MAX_VOXELS:,} are accepted. Send a crop around the "
            "object."
        )
    if count > MAX_BRICKS:
        raise TooLarge(
            f"The image of {size} voxels is so thin that it has {count:,} bricks of {BRICK}^3 voxels; at most "
            f"{MAX_BRICKS:,} are accepted. Send a crop around the object."
        )


@dataclass(frozen=True)
class Statistics:
    """What the network's input is normalised with: (voxel - mean) / std, computed in float32."""

    mean: float
    std: float


def checked_volume(image: npt.ArrayLike) -> npt.NDArray[np.generic]:
    """The image as an array that can be sent: 3-D, real, not empty. Not copied.

    Raises BadImage with what is wrong, and TooLarge.
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
    i, j, k = volume.shape
    check_size((i, j, k))
    return volume


def wire_dtype(volume: npt.NDArray[np.generic]) -> str:
    """The dtype in which the voxels travel."""
    return _as_sent(volume.dtype).name


@cache  # numpy takes longer to name a type than to copy a brick
def _as_sent(dtype: "np.dtype[np.generic]") -> "np.dtype[np.generic]":
    return np.dtype(_WIRE_DTYPES[dtype.name]).newbyteorder("<")


def as_sent(voxels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Voxels in the type and the order in which they travel: C order, little-endian; not copied where they are that
    already. What is too large for the type becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.ascontiguousarray(voxels, _as_sent(voxels.dtype))


@dataclass(frozen=True)
class Look:
    """What one cube of a volume says of the whole.

    ``total``, ``squares``: sums of the voxels and of their squares. ``low``, ``high``: the least and the greatest.
    ``occupied``: for every axis, which planes of the cube have a voxel that is not zero; None where all have.
    ``digest``: of the voxels as they travel.
    """

    box: Box
    total: float
    squares: float
    low: float
    high: float
    occupied: tuple[npt.NDArray[np.bool_], ...] | None
    digest: bytes


def cubes(volume: npt.NDArray[np.generic]) -> Iterator[Box]:
    """The cubes in which a volume is looked at, each a millisecond's work or less."""
    i, j, k = volume.shape
    grid = Grid((i, j, k), _LOOKED_AT)
    return map(grid.box, range(len(grid)))


def look(volume: npt.NDArray[np.generic], box: Box) -> Look:
    """Look at every voxel of a cube. Raises BadImage for voxels that are not finite, or not once they travel."""
    sent = as_sent(volume[box.slices])
    # In C order whatever the volume's, so that the same voxels always give the same sums. Those of integers of one or
    # two bytes are exact: less than 2^53.
    values = sent.ravel().astype(np.float64)
    squares = float(np.einsum("i,i", values, values))
    if not math.isfinite(squares):
        raise BadImage(_describe_not_finite(volume[box.slices], sent, box.start))
    low, high = sent.min().item(), sent.max().item()
    occupied = _planes(sent != 0) if low <= 0 <= high else None
    return Look(box, float(values.sum()), squares, low, high, occupied, hashlib.sha256(sent.data).digest())


def _planes(nonzero: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], ...]:
    """For every axis, which planes have a voxel that is set."""
    # By bits of whole planes, which takes a fifth of the time of any() over the first axes.
    onto_first = np.bitwise_or.reduce(nonzero.view(np.uint8), axis=0).view(bool)
    return tuple(np.logical_or.reduce(*args) for args in ((nonzero, (1, 2)), (onto_first, 1), (onto_first, 0)))


def combine(looks: Sequence[Look]) -> Statistics:
    """Mean and standard deviation of a volume from looks at all of its cubes.

    As nnInteractive 2.6 normalises (``_background_set_image``): of the voxels as they travel, over the smallest
    box around those that are not zero, the deviation with n - 1. Voxels outside that box are zero and add
    nothing to a sum, so one pass serves. Raises BadImage for a volume of (almost) one value.
    """
    low, high = min(one.low for one in looks), max(one.high for one in looks)
    if low == high:
        raise BadImage(f"Every voxel of the image is {low:g}; there is nothing to segment in it.")
    n = math.prod(int(np.ptp(np.flatnonzero(planes))) + 1 for planes in _occupied(looks))
    # In fractions, so that the sums of the cubes are the only places where digits can be lost.
    total = sum(Fraction(one.total) for one in looks)
    squares = sum(Fraction(one.squares) for one in looks)
    mean = total / n
    variance = (squares - mean * total) / max(1, n - 1)
    std = math.sqrt(max(float(variance), 0.0))
    limits = np.finfo(np.float32)
    if not float(limits.smallest_normal) <= std <= float(limits.max):
        raise BadImage(
            f"The image cannot be normalised: inside the box around its voxels that are not zero, the standard "
            f"deviation is {std:g} (its voxels go from {low:g} to {high:g})."
        )
    return Statistics(float(mean), std)


def _occupied(looks: Sequence[Look]) -> list[npt.NDArray[np.bool_]]:
    """For every axis of the volume, which planes have a voxel that is not zero."""
    planes = [np.zeros(n, bool) for n in looks[-1].box.stop]
    for one in looks:
        for axis, span in enumerate(one.box.slices):
            planes[axis][span] |= True if one.occupied is None else one.occupied[axis]
    return planes


def statistics(volume: npt.NDArray[np.generic]) -> Statistics:
    """Mean and standard deviation of a volume: see :func:`combine`. Raises BadImage."""
    return combine([look(volume, box) for box in cubes(volume)])


def _describe_not_finite(brick: npt.NDArray[np.generic], sent: npt.NDArray[np.generic], origin: Index) -> str:
    first = tuple(int(x) for x in np.argwhere(~np.isfinite(sent.astype(np.float64)))[0])
    value, at = brick[first], tuple(map(sum, zip(first, origin, strict=True)))
    if np.isfinite(value):
        return f"The image has voxels too large for {sent.dtype}, the first at {at}: {value}. Scale the image down."
    return (
        f"The image has NaN or infinite voxels, the first at {at}: {value}. "
        "Replace them (numpy.nan_to_num) and set the image again."
    )
