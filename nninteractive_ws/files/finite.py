"""Replacement of voxels that are not finite, which no network can use."""

from collections.abc import Generator
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage


def replace_non_finite(voxels: npt.NDArray[Any], name: str) -> tuple[npt.NDArray[Any], str | None]:
    """Replace voxels that are NaN or infinite by the lowest finite value, in a copy.

    Return the voxels themselves and None if all are finite, else the copy and a note with their number. ``name``: of
    the image, for the error. Raises BadImage if no voxel is finite.
    """
    steps = replace_in_steps(voxels, name)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: tuple[npt.NDArray[Any], str | None] = end.value
            return result


def replace_in_steps(voxels: npt.NDArray[Any], name: str) -> Generator[None, None, tuple[npt.NDArray[Any], str | None]]:
    """Do the same in steps of one slice each, for callers that must not block. The generator returns the result."""
    if voxels.dtype.kind != "f":
        return voxels, None
    axis = int(np.argmax(np.abs(voxels.strides)))  # its slices are contiguous
    lowest, count = math.inf, 0
    for plane in np.moveaxis(voxels, axis, 0):
        finite = np.isfinite(plane)
        count += plane.size - int(np.count_nonzero(finite))
        lowest = min(lowest, float(plane.min(where=finite, initial=np.inf)))
        yield
    if not count:
        return voxels, None
    if count == voxels.size:
        raise BadImage(f"{name} has no finite voxel: all are NaN or infinite. Export it again.")
    replaced = np.empty_like(voxels)
    for plane, target in zip(np.moveaxis(voxels, axis, 0), np.moveaxis(replaced, axis, 0), strict=True):
        target[...] = np.where(np.isfinite(plane), plane, lowest)
        yield
    return replaced, f"{count:,} voxels are NaN or infinite. They were set to {lowest:g}."
