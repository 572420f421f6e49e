"""A simulated user: where somebody who knows the truth would click, draw and correct."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nninteractive_ws.geometry import Box, Index

Mask = npt.NDArray[np.bool_]


def dice(a: Mask, b: Mask) -> float:
    """2 |a and b| / (|a| + |b|); 1 for two empty masks."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 1.0 if total == 0 else float(2 * np.count_nonzero(a & b) / total)


def largest_part(mask: Mask) -> Mask:
    """The largest face-connected part of a mask that is not empty."""
    parts, n = ndimage.label(mask)
    return np.asarray(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())) if n > 1 else mask


def middle(mask: Mask) -> Index:
    """The voxel of the largest part that is farthest from its border."""
    # The border of the volume counts as a border of the object.
    depth = ndimage.distance_transform_edt(np.pad(largest_part(mask), 1))[1:-1, 1:-1, 1:-1]
    i, j, k = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(i), int(j), int(k)


def correction(truth: Mask, mask: Mask) -> tuple[Index, bool] | None:
    """A point in the middle of the largest error, and whether it is positive; None without an error."""
    error = truth ^ mask
    if not error.any():
        return None
    point = middle(error)
    return point, bool(truth[point])


def largest_slice(truth: Mask) -> Box:
    """The box, one voxel thick along k, around the object in the slice where it is largest."""
    k = int(truth.sum((0, 1)).argmax())
    ij = np.argwhere(truth[:, :, k])
    (i0, j0), (i1, j1) = ij.min(0), ij.max(0) + 1
    return Box((int(i0), int(j0), k), (int(i1), int(j1), k + 1))


def lasso(truth: Mask) -> tuple[Mask, Box]:
    """The object in its largest slice, drawn round a little generously, and the box that it fills."""
    box = largest_slice(truth)
    (i0, i1), (j0, j1), (k0, k1) = box
    grown = Box((max(0, i0 - 2), max(0, j0 - 2), k0), (i1 + 2, j1 + 2, k1)).clip(truth.shape)
    assert grown is not None
    inside = truth[grown.slices][:, :, 0]
    return ndimage.binary_dilation(inside, iterations=1)[:, :, None], grown


def scribble(truth: Mask) -> tuple[Mask, Box]:
    """A stroke two voxels wide along the longer side of the object in its largest slice, and its box."""
    box = largest_slice(truth)
    inside = ndimage.binary_erosion(truth[box.slices][:, :, 0], iterations=2, border_value=0)
    if not inside.any():
        inside = truth[box.slices][:, :, 0]
    longer = 0 if inside.shape[0] >= inside.shape[1] else 1
    stroke = np.zeros_like(inside)
    for at in np.flatnonzero(inside.any(axis=1 - longer)):
        across = np.flatnonzero(np.take(inside, at, axis=longer))
        centre = int(np.median(across))
        stroke[(at, centre) if longer == 0 else (centre, at)] = True
    stroke = ndimage.binary_dilation(stroke, np.ones((2, 2)))
    return stroke[:, :, None], box
