"""A volume: its voxels, and where they are in space."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage, OutOfBounds
from nninteractive_ws.geometry import Index

Affine = npt.NDArray[np.float64]

#: Tolerance in voxels between the corners of two equal grids. Formats round positions: NIfTI stores float32, and some
#: scanners write tenths of a millimeter.
GRID_TOLERANCE = 0.01
#: A grid is orthogonal if straightening it moves no corner by more than this many voxels.
_SHEAR_TOLERANCE = 0.1


@dataclass(frozen=True)
class Volume:
    """A volume. ``voxels`` are indexed (i, j, k) as in ITK and Slicer, the reverse of SimpleITK's numpy arrays.

    ``ijk_to_lps``: affine matrix (4, 4) from voxel indices to LPS millimeters. Its axes are orthogonal, except for some
    label maps. ``series``: the files of a DICOM image. ``nifti``: the header of a NIfTI file. ``notes``: sentences for
    the user about what was unusual in the file.
    """

    voxels: npt.NDArray[Any]
    ijk_to_lps: Affine
    series: tuple[str, ...] = ()
    nifti: Any = None
    notes: tuple[str, ...] = ()

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """Millimeters from one voxel to the next, along i, j and k."""
        return np.asarray(np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0))

    @property
    def direction(self) -> npt.NDArray[np.float64]:
        """Matrix (3, 3) whose columns are the unit vectors of i, j and k in LPS."""
        return np.asarray(self.ijk_to_lps[:3, :3] / self.spacing)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in milliliters."""
        return voxel_ml(self.ijk_to_lps)

    @property
    def shape(self) -> Index:
        """Number of voxels along (i, j, k)."""
        i, j, k = self.voxels.shape
        return i, j, k

    def index_of(self, lps: tuple[float, float, float]) -> Index:
        """Return the voxel nearest to a position in LPS millimeters. It may be outside the volume.

        Raises OutOfBounds if it is not finite, or so far outside that its voxel is not.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            i, j, k = np.linalg.solve(self.ijk_to_lps, (*lps, 1))[:3].tolist()
        if not all(map(math.isfinite, (i, j, k))):
            x, y, z = lps
            raise OutOfBounds(f"The position ({x:g}, {y:g}, {z:g}) in LPS millimeters is outside any volume.")
        return math.floor(i + 0.5), math.floor(j + 0.5), math.floor(k + 0.5)


def voxel_ml(ijk_to_lps: Affine) -> float:
    """Return the volume of a voxel in milliliters, also of a sheared grid."""
    return abs(float(np.linalg.det(ijk_to_lps[:3, :3]))) / 1000


def grid_distance(a: Affine, b: Affine, shape: Sequence[int]) -> float:
    """Return the largest distance between the corners of two grids of the same shape, in voxels of ``a``."""
    difference = np.linalg.inv(a) @ b - np.eye(4)
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape), [1], indexing="ij")).reshape(4, -1)
    return float(np.abs(difference @ corners).max())


def orthogonal(ijk_to_lps: Affine, shape: Sequence[int]) -> Affine | None:
    """Return the nearest affine with orthogonal axes, or None if the axes are sheared. Raises BadImage if singular."""
    matrix = ijk_to_lps[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(ijk_to_lps).all() or not spacing.all() or abs(np.linalg.det(matrix / spacing)) < 1e-6:
        raise BadImage(
            f"The axes of the image are {_format_matrix(matrix)}. Expected three finite directions that are not in one "
            "plane. Correct the header."
        )
    left, _, right = np.linalg.svd(matrix / spacing)  # the nearest orthogonal matrix (polar decomposition)
    straight = ijk_to_lps.copy()
    straight[:3, :3] = left @ right * spacing
    return straight if grid_distance(ijk_to_lps, straight, shape) <= _SHEAR_TOLERANCE else None


def check_same_grid(other: Volume, volume: Volume, name: object) -> None:
    """Raise BadImage unless ``other``, the volume of the file ``name``, has the voxel grid of ``volume``."""
    affine = np.linalg.inv(volume.ijk_to_lps) @ other.ijk_to_lps  # from voxels of other to voxels of volume
    if (order := _reordered_axes(affine, other.shape, volume.shape)) is not None:
        raise BadImage(
            f"{name} has the grid of the image, but {order}. Resample it to the image, for instance with "
            "SimpleITK.Resample(labels, image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)."
        )
    if other.shape != volume.shape:
        raise BadImage(
            f"{name} has {other.shape} voxels. Expected {volume.shape}, as in the image. Resample it to the image."
        )
    distance = grid_distance(volume.ijk_to_lps, other.ijk_to_lps, volume.shape)
    if distance > GRID_TOLERANCE:
        raise BadImage(
            f"{name} is not on the grid of the image. Its voxels are up to {distance:.2f} voxels away. Resample "
            "it to the image."
        )


def _reordered_axes(affine: Affine, other: Index, shape: Index) -> str | None:
    """Return how a grid differs from another one that has the same voxels in another order, or None."""
    axes = np.rint(affine[:3, :3])
    if not (np.abs(axes).sum(0) == 1).all() or not (np.abs(axes).sum(1) == 1).all() or (axes == np.eye(3)).all():
        return None
    ends = np.stack([np.zeros(3), np.array(other) - 1])
    mapped = ends @ affine[:3, :3].T + affine[:3, 3]
    expected = np.stack([np.zeros(3), np.array(shape) - 1])
    if np.abs(np.sort(mapped, axis=0) - expected).max() > GRID_TOLERANCE:
        return None
    names = ["ijk"[int(np.abs(column).argmax())] for column in axes.T]
    flipped = [name for name, column in zip(names, axes.T, strict=True) if column.sum() < 0]
    flips = f"flipped along {' and '.join(sorted(flipped))}" if flipped else ""
    permutation = "" if names == [*"ijk"] else f"with its axes in the order {', '.join(names)}"
    return " and ".join(filter(None, (permutation, flips)))


def notes_on_size(found: int, announced: int) -> list[str]:
    """Return a note if a file has more bytes of voxels than its header announces."""
    if found <= announced:
        return []
    return [
        f"The file has {found - announced:,} bytes more than its header announces. If the header is wrong, so is the "
        "image."
    ]


def _format_matrix(matrix: npt.NDArray[np.float64]) -> str:
    return ", ".join("(" + ", ".join(f"{x:g}" for x in column) + ")" for column in matrix.T)
