"""Measures of a mask by which a wrong segmentation can be recognized."""

import msgspec
import numpy as np
import SimpleITK as sitk

from nninteractive_ws.files.pictures import Orientation
from nninteractive_ws.files.volume import Affine, voxel_ml
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Mask, bounding_box

#: Sides of the image at the start and at the end of each anatomical axis.
SIDES = (("right", "left"), ("anterior", "posterior"), ("inferior", "superior"))


class Measures(msgspec.Struct, frozen=True):
    """Measures of a segment with at least one voxel.

    ``share``: part of the voxels of the image. ``parts``: number of connected components, whose voxels touch by a face,
    an edge or a corner. ``largest``: share of the largest part in the segment. ``sides``: sides of the image that the
    segment touches, such as "superior".
    """

    ml: float
    share: float
    parts: int
    largest: float
    sides: tuple[str, ...]


def measure(mask: Mask, ijk_to_lps: Affine) -> Measures | None:
    """Measure a mask (i, j, k), or return None if it is empty."""
    extent = bounding_box(mask)
    if extent is None:
        return None
    sizes = _parts(mask[extent.slices])
    voxels = sum(sizes)
    return Measures(
        ml=voxels * voxel_ml(ijk_to_lps),
        share=voxels / mask.size,
        parts=len(sizes),
        largest=max(sizes) / voxels,
        sides=_touched_sides(extent, mask, Orientation.of(ijk_to_lps)),
    )


def _parts(mask: Mask) -> list[int]:
    """Return the number of voxels of each connected component. SimpleITK releases the GIL meanwhile."""
    components = sitk.ConnectedComponentImageFilter()
    components.SetFullyConnected(True)
    sizes = sitk.RelabelComponentImageFilter()
    sizes.SetSortByObjectSize(False)
    sizes.Execute(components.Execute(sitk.GetImageFromArray(np.ascontiguousarray(mask).view(np.uint8))))
    return list(sizes.GetSizeOfObjectsInPixels())


def _touched_sides(extent: Box, mask: Mask, orientation: Orientation) -> tuple[str, ...]:
    """Return the touched sides, without those of an axis with one voxel, which every segment touches."""
    shape = orientation.apply(mask).shape
    touched = []
    for (start, stop), length, (first, last) in zip(orientation.box(extent, mask.shape), shape, SIDES, strict=True):
        if length > 1:
            touched += [first] * (start == 0) + [last] * (stop == length)
    return tuple(touched)
