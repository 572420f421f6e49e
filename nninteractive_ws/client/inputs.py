"""Points, boxes and masks of users, validated."""

from collections.abc import Sequence
import math

import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.errors import OutOfBounds
from nninteractive_ws.geometry import Box, Index, box_in_volume
from nninteractive_ws.masks import Delta

Boxlike = Sequence[Sequence[int]] | Box


def to_index(point: Sequence[float], shape: Index) -> Index:
    """Return the voxel (i, j, k) of a point in a volume of ``shape``. Fractions are rounded. Raises OutOfBounds."""
    if len(point) != 3:
        raise OutOfBounds(f"A point has three indices (i, j, k), not {len(point)}.")
    if not all(math.isfinite(p) for p in point):
        raise OutOfBounds(f"The point {tuple(point)} is not a voxel: its indices must be finite.")
    i, j, k = (round(float(p)) for p in point)
    if not all(0 <= p < n for p, n in zip((i, j, k), shape, strict=True)):
        raise OutOfBounds(f"The point {(i, j, k)} is outside the volume of shape {shape}.")
    return i, j, k


def box_inside(box: Boxlike, shape: Index) -> Box:
    """Return an end-exclusive box inside a volume of ``shape``. Raises OutOfBounds."""
    return box_in_volume(box.pairs if isinstance(box, Box) else box, shape)


def to_mask(mask: npt.ArrayLike, box: Boxlike | None, shape: Index) -> Delta:
    """Return the nonzero voxels of a mask of the volume's shape, or of ``box``'s. Raises OutOfBounds."""
    frame = Box.whole(shape) if box is None else box_inside(box, shape)
    values = np.asarray(mask)
    if values.shape != frame.shape:
        raise OutOfBounds(
            f"The mask has the shape {values.shape}. Expected {frame.shape}, the shape of the volume or of box=."
        )
    return masks.to_delta(values != 0, frame.start)


def middle(box: Box) -> Index:
    """Return the voxel in the middle of a box."""
    i, j, k = ((a + b - 1) // 2 for a, b in box)
    return i, j, k
