"""Resample sheared or unevenly spaced volumes to an orthogonal grid, by linear interpolation."""

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.volume import Affine

#: A grid that is so sheared or so uneven that it needs more times its voxels is refused.
_MAX_GROWTH = 4


def straighten(voxels: npt.NDArray[Any], affine: Affine) -> tuple[npt.NDArray[Any], Affine]:
    """Return the volume on the smallest orthogonal grid that covers it. Voxels outside it get the lowest value.

    The first axis and the plane of the first two are kept, and so is the volume of a voxel. Raises BadImage.
    """
    q, r = np.linalg.qr(affine[:3, :3])
    grid = affine.copy()
    grid[:3, :3] = q * np.diag(r)
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in voxels.shape))]).T
    covered = (np.linalg.inv(grid) @ affine @ corners)[:3]
    start, stop = np.floor(covered.min(1) + 1e-6), np.ceil(covered.max(1) - 1e-6)
    grid[:3, 3] = (grid @ (*start, 1))[:3]
    shape = (stop - start + 1).astype(int)
    if np.prod(shape, dtype=float) > _MAX_GROWTH * voxels.size:
        raise BadImage(
            f"The image is too sheared: an orthogonal grid has {' x '.join(map(str, shape))} voxels, more than "
            f"{_MAX_GROWTH} times as many. Correct the header."
        )
    return _resample(voxels, np.linalg.inv(affine) @ grid, shape.tolist()), grid


def _resample(voxels: npt.NDArray[Any], new_to_old: Affine, shape: list[int]) -> npt.NDArray[Any]:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(), dtype=_interpolation_dtype(voxels.dtype)))
    transform = sitk.AffineTransform(new_to_old[:3, :3].ravel().tolist(), new_to_old[:3, 3].tolist())
    lowest = float(voxels.min())
    # Both grids are in voxels: origin 0, spacing 1, no rotation.
    unit = ((0.0,) * 3, (1.0,) * 3, np.eye(3).ravel().tolist())
    new = sitk.Resample(image, shape, transform, sitk.sitkLinear, *unit, lowest)
    interpolated = sitk.GetArrayFromImage(new).transpose()
    return _rounded(interpolated, np.dtype("uint8") if voxels.dtype == bool else voxels.dtype)


def _interpolation_dtype(dtype: "np.dtype[Any]") -> "np.dtype[Any]":
    """Return the type in which SimpleITK interpolates. Integers would be truncated."""
    return np.dtype("float32" if dtype.itemsize <= 2 or dtype == np.float32 else "float64")


def _rounded(interpolated: npt.NDArray[Any], dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    """Return interpolated voxels in the type of the image."""
    return (np.rint(interpolated) if dtype.kind in "iu" else interpolated).astype(dtype.newbyteorder("="))


def even_out(voxels: npt.NDArray[Any], positions: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], float]:
    """Interpolate slices (along k, at increasing ``positions`` in millimeters) at even distances.

    Return the volume, and the distance: the smallest one of the slices. Raises BadImage.
    """
    step = float(np.diff(positions).min())
    count = int((positions[-1] - positions[0]) / step + 1e-6) + 1
    if count > _MAX_GROWTH * len(positions):
        raise BadImage(
            f"The slices are too uneven: some are only {step:.3g} mm apart, and even distances would need {count:,} "
            f"slices in place of {len(positions)}. The series may have several acquisitions. Export them separately."
        )
    wanted = positions[0] + step * np.arange(count)
    above = np.clip(np.searchsorted(positions, wanted), 1, len(positions) - 1)
    weights = (wanted - positions[above - 1]) / (positions[above] - positions[above - 1])
    even = np.empty((*voxels.shape[:2], count), voxels.dtype)
    for k, (upper, weight) in enumerate(zip(above, weights, strict=True)):
        interpolated = (1 - weight) * voxels[:, :, upper - 1] + weight * voxels[:, :, upper]
        even[:, :, k] = _rounded(interpolated, voxels.dtype)
    return even, step
