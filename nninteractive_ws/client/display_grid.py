"""A volume on the axes of a viewer: to the patient's right, front and top (RAS)."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nninteractive_ws.geometry import Box, Index

#: The display axis perpendicular to a slice, by NiiVue's number of the view: axial, coronal, sagittal.
_NORMALS = (2, 1, 0)


class DisplayGrid:
    """The grid of a volume, with its axes flipped and permuted to those of the display.

    ``shape``: of the volume, (i, j, k). ``affine``: from voxels (i, j, k) to millimeters in RAS. The display shows an
    oblique volume along its own axes.

    ``bitmap``: labels of all voxels in the order of NiiVue's drawing, the axis to the right first. ``labels``: the same
    memory as an array (i, j, k).
    """

    def __init__(self, shape: Index, affine: npt.NDArray[np.float64]) -> None:
        self.shape, self._affine = shape, affine
        #: For each array axis, its display axis and direction.
        self._orientation = nib.orientations.io_orientation(affine)
        self._display_axes = [int(axis) for axis in self._orientation[:, 0]]
        self._display_shape = [shape[self._display_axes.index(axis)] for axis in range(3)]
        self.bitmap = np.zeros(np.prod(shape), np.uint8)
        self.labels: npt.NDArray[np.uint8] = self._turn_back(self.bitmap.reshape(self._display_shape, order="F"))

    def _turn_back(self, displayed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the array (i, j, k) of an array in display order, as a view."""
        flipped = tuple(axis for axis, direction in enumerate(self._orientation[:, 1]) if direction < 0)
        return np.flip(displayed.transpose(self._display_axes), flipped)

    def nifti(self, volume: npt.NDArray[Any]) -> bytes:
        """Return a NIfTI file of the volume in display order."""
        turned = nib.orientations.apply_orientation(volume, self._orientation)
        to_voxel = nib.orientations.inv_ornt_aff(self._orientation, self.shape)
        displayed = self._affine @ to_voxel
        # Without the rotation of an oblique volume, so that the viewer keeps the axes as they are.
        affine = np.diag([*np.linalg.norm(displayed[:3, :3], axis=0), 1.0])
        affine[:3, 3] = displayed[:3, 3]
        data: bytes = nib.Nifti1Image(turned, affine).to_bytes()
        return data

    def voxel(self, fractions: Sequence[float]) -> Index:
        """Return the voxel (i, j, k) at a position of the display, from 0 to 1 along each of its axes."""
        index = []
        for n, axis, direction in zip(self.shape, self._display_axes, self._orientation[:, 1], strict=True):
            position = min(max(int(fractions[axis] * n), 0), n - 1)
            index.append(position if direction > 0 else n - 1 - position)
        i, j, k = index
        return i, j, k

    def normal(self, view: int) -> int:
        """Return the array axis perpendicular to the slices of a view: 0 axial, 1 coronal, 2 sagittal."""
        return self._display_axes.index(_NORMALS[view])

    def offsets(self, box: Box, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
        """Return the positions in ``bitmap`` of the set voxels of a mask, (i, j, k) inside ``box``."""
        voxels = np.argwhere(mask) + box.start
        return (voxels @ self._strides + self._first).astype(np.uint32)

    @cached_property
    def _strides(self) -> npt.NDArray[np.int64]:
        return np.array(self.labels.strides)  # in bytes, and a label is a byte

    @cached_property
    def _first(self) -> int:
        """Position of the voxel (0, 0, 0) in ``bitmap``."""
        return sum(-stride * (n - 1) for stride, n in zip(self.labels.strides, self.shape, strict=True) if stride < 0)
