"""Points, boxes and masks of users, validated."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.client.array_like import ArrayLike, to_array
from nninteractive_ws.errors import BadMask, OutOfBounds
from nninteractive_ws.geometry import Box, Index, box_in_volume
from nninteractive_ws.masks import Delta, Mask

Boxlike = Sequence[Sequence[int]] | Box

_EXPECTED = "Expected bool, whole numbers from 0 of an integer type, or floats that are 0 or 1."
#: Maximum number of values in an error message.
_MAX_VALUES = 3


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


def to_mask(mask: ArrayLike, box: Boxlike | None, shape: Index) -> Delta:
    """Return the set voxels of a mask of the volume's shape, or of ``box``'s. Raises OutOfBounds or BadMask."""
    frame = Box.whole(shape) if box is None else box_inside(box, shape)
    values = to_array(mask, "mask", BadMask)
    if values.shape != frame.shape:
        raise OutOfBounds(
            f"The mask has the shape {values.shape}. Expected {frame.shape}, the shape of the volume or of box=."
        )
    return masks.to_delta(_set_voxels(values), frame.start)


def _set_voxels(values: npt.NDArray[Any]) -> Mask:
    """Return the voxels of a mask that are set. Raises BadMask for values that are neither set nor unset."""
    if values.dtype.kind == "b":
        return values.astype(bool, copy=False)
    if values.dtype.kind not in "iuf":
        value = '"1"' if values.dtype.kind in "SU" else "1"
        raise BadMask(
            f"The mask has voxels of type {values.dtype}. {_EXPECTED} Pass a comparison, such as mask == {value}."
        )
    is_set: Mask = np.asarray(values != 0)
    if values.dtype.kind != "u":
        invalid = is_set & (values != 1) if values.dtype.kind == "f" else values < 0
        if invalid.any():
            raise BadMask(_describe_invalid(values, invalid))
    return is_set


def _describe_invalid(values: npt.NDArray[Any], invalid: Mask) -> str:
    # Of one plane only, because it takes long to sort the values of a volume.
    plane = int(invalid.any(axis=(1, 2)).argmax())
    found = np.unique(values[plane][invalid[plane]])
    listed = ", ".join(str(value) for value in found[:_MAX_VALUES]) + (", ..." if len(found) > _MAX_VALUES else "")
    return f"The mask has the values {listed}, which are neither set nor unset. {_EXPECTED} {_remedy(found)}"


def _remedy(invalid: npt.NDArray[Any]) -> str:
    if not np.isfinite(invalid).all():
        return "Replace NaN and infinity, for instance with numpy.nan_to_num(mask) > 0.5."
    if (invalid < 0).any():
        return "Pass a comparison, such as mask > 0."
    if (invalid < 1).all():
        return "For probabilities, pass mask > 0.5."
    if (np.rint(invalid) == invalid).all():
        return f"For a label map, pass mask == {invalid[0]:.0f}, or mask > 0 for all labels."
    return "Pass a comparison, such as mask > 0.5."


def middle(box: Box) -> Index:
    """Return the voxel in the middle of a box."""
    i, j, k = ((a + b - 1) // 2 for a, b in box)
    return i, j, k
