"""The bricks of an image: their grid, their order, and which of them are present.

The volume is cut into cubes of 32^3 voxels, which are smaller at the far borders, and numbered in C order of their
grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
import itertools
import math

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import TooLarge
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.messages import MAX_BRICKS

#: Edge of a brick in voxels.
BRICK = 32
#: Limit of an image's voxels, 1024^3. With its interaction channels, such an image takes about 24 GB.
MAX_VOXELS = 2**30


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
        """Return the box of a brick. Raises IndexError if there is no such brick."""
        if not 0 <= index < len(self):
            raise IndexError(f"Brick {index} is not in the grid. Use a number from 0 to {len(self) - 1}.")
        _, nj, nk = self.counts
        edge, shape = self.edge, self.shape
        i, j, k = edge * (index // (nj * nk)), edge * (index // nk % nj), edge * (index % nk)
        return Box((i, j, k), (min(i + edge, shape[0]), min(j + edge, shape[1]), min(k + edge, shape[2])))

    def within(self, box: Box) -> list[int]:
        """Return the bricks that intersect ``box``. Parts of the box outside the volume are ignored."""
        clipped = box.clip(self.shape)
        if clipped is None:
            return []
        _, nj, nk = self.counts
        ranges = [range(a // self.edge, (b - 1) // self.edge + 1) for a, b in clipped.pairs]
        return [(i * nj + j) * nk + k for i, j, k in itertools.product(*ranges)]

    def distance(self, index: int, focus: Index) -> float:
        """Return the distance of a brick's closest voxel from ``focus``, in voxels."""
        box = self.box(index)
        return math.dist(focus, [min(max(f, a), b - 1) for f, (a, b) in zip(focus, box, strict=True)])

    def nearest_first(self, focus: Index, before: Sequence[int] = ()) -> list[int]:
        """Sort all bricks by the distance of their closest voxel to ``focus``, and equal ones in grid order.

        Those of ``before`` come before all others.
        """
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
    """The set of bricks of a grid that are present."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._present = np.zeros(len(grid), bool)

    def add(self, index: int) -> None:
        self._present[index] = True

    def missing(self, indices: npt.NDArray[np.intp]) -> int:
        """Return the number of these bricks that are not present."""
        return int(np.count_nonzero(~self._present[indices]))

    def __contains__(self, index: int) -> bool:
        return bool(self._present[index])

    def indices(self) -> list[int]:
        """Return the numbers of the present bricks."""
        indices: list[int] = np.flatnonzero(self._present).tolist()
        return indices

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self._present))

    def to_bytes(self) -> bytes:
        """Return one bit per brick, the first in the lowest bit of the first byte."""
        return np.packbits(self._present, bitorder="little").tobytes()

    @classmethod
    def from_bytes(cls, grid: Grid, data: bytes) -> "Presence":
        """Read the format of :meth:`to_bytes`. Raises ValueError if ``data`` does not have one bit per brick."""
        if len(data) != -(-len(grid) // 8):
            raise ValueError(
                f"The bits of {len(grid)} bricks must have {-(-len(grid) // 8)} bytes, not {len(data)}. Pass those of "
                "the same grid."
            )
        presence = cls(grid)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=len(grid), bitorder="little")
        presence._present = bits.astype(bool)
        return presence


def check_size(shape: Index) -> None:
    """Raise TooLarge if an image has too many voxels, or is so thin that it has too many bricks."""
    # Not len(Grid(shape)), because Python's len is limited to 2^63, and a shape from the wire may have up to 2^78
    # bricks.
    voxels, count = math.prod(shape), math.prod(Grid(shape).counts)
    size = " × ".join(map(str, shape))
    if voxels > MAX_VOXELS:
        raise TooLarge(
            f"The image of {size} has {voxels:,} voxels, but at most {MAX_VOXELS:,} are accepted. Send a crop around "
            "the object."
        )
    if count > MAX_BRICKS:
        raise TooLarge(
            f"The image of {size} voxels is so thin that it has {count:,} bricks of {BRICK}^3 voxels, but at most "
            f"{MAX_BRICKS:,} are accepted. Send a crop around the object."
        )


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of an image. The network's input is (voxel - mean) / std, computed in float32."""

    mean: float
    std: float
