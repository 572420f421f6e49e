"""A volume: its voxels, and where they are in space."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage
from nninteractive_ws.geometry import Index

Affine = npt.NDArray[np.float64]

#: Tolerance in voxels between the corners of two equal grids. Formats round positions: NIfTI stores float32, and some
#: scanners write tenths of a millimeter.
_GRID_TOLERANCE = 0.01
#: A grid is orthogonal if straightening it moves no corner by more than this many voxels.
_SHEAR_TOLERANCE = 0.1


@dataclass(frozen=True)
class Volume:
    """A volume. ``voxels`` are indexed (i, j, k) as in ITK and Slicer, the reverse of SimpleITK's numpy arrays.

    ``ijk_to_lps``: affine matrix (4, 4) from voxel indices to LPS millimeters, with orthogonal axes. ``series``: the
    files of a DICOM image. ``nifti``: the header of a NIfTI file. ``notes``: sentences for the user about what was
    unusual in the file.
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

    def index_of(self, lps: tuple[float, float, float]) -> Index:
        """Return the voxel nearest to a position in LPS millimeters. It may be outside the volume."""
        i, j, k = np.linalg.solve(self.ijk_to_lps, (*lps, 1))[:3].tolist()
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
    if other.voxels.shape != volume.voxels.shape:
        raise BadImage(f"{name} has {other.voxels.shape} voxels. Expected {volume.voxels.shape}, as in the image.")
    distance = grid_distance(volume.ijk_to_lps, other.ijk_to_lps, volume.voxels.shape)
    if distance > _GRID_TOLERANCE:
        raise BadImage(
            f"{name} is not on the grid of the image. Its voxels are up to {distance:.2f} voxels away. Resample "
            "it to the image."
        )


def _format_matrix(matrix: npt.NDArray[np.float64]) -> str:
    return ", ".join("(" + ", ".join(f"{x:g}" for x in column) + ")" for column in matrix.T)
