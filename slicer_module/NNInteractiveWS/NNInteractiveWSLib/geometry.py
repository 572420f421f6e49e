"""Geometry of a volume: world and voxel coordinates, slice views, strokes and outlines as masks.

Array indices are IJK everywhere in this module. ``volumeArray(volume)[i, j, k]`` is Slicer's voxel (i, j, k), although
Slicer's own arrays are KJI. It is a transposed view of the same memory, never a copy, and nninteractive_ws accepts any
memory order. Voxel centers have integer coordinates. World coordinates are RAS, in millimeters.
"""

from collections.abc import Sequence

from nninteractive_ws import Box
import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

#: A slice is orthogonal to an axis if the index along it changes by at most this fraction of the others.
_TILT = 1e-3


def volumeArray(volume):
    """A view of a volume node's voxels, indexed (i, j, k). Raise ValueError if it has none or several components."""
    image = volume.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        raise ValueError("The volume has no voxels. Select another one.")
    if scalars.GetNumberOfComponents() != 1:
        raise ValueError("The volume has several values for each voxel, like a color image. Select a scalar volume.")
    return vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1]).T


def matrixArray(matrix):
    """A copy of a vtkMatrix4x4 as a 4 x 4 float array."""
    return np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])


def ijkToLocal(volume):
    """The 4 x 4 array from IJK to the volume's local coordinates, before any parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrixArray(matrix)


def transformBetween(source, target):
    """The vtkGeneralTransform from one parent transform node to another. None stands for the world."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    return transform


def linearBetween(source, target):
    """The transform between two parent transform nodes as a 4 x 4 array, or None if it is not linear."""
    for node in (source, target):
        if node is not None and not node.IsTransformToWorldLinear():
            return None
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, matrix)
    return matrixArray(matrix)


def worldToIJK(volume, point):
    """Convert world coordinates to voxel coordinates (floats)."""
    local = transformBetween(None, volume.GetParentTransformNode()).TransformPoint(tuple(point))
    return (np.linalg.inv(ijkToLocal(volume)) @ [*local, 1.0])[:3]


def ijkToWorld(volume, ijk):
    """Convert voxel coordinates to world coordinates."""
    local = (ijkToLocal(volume) @ [*ijk, 1.0])[:3]
    return np.array(transformBetween(volume.GetParentTransformNode(), None).TransformPoint(tuple(local)))


def voxelAt(volume, point):
    """The voxel (i, j, k) at world coordinates, or None outside the volume."""
    voxel = tuple(int(n) for n in np.floor(worldToIJK(volume, point) + 0.5))
    return voxel if all(0 <= v < n for v, n in zip(voxel, volume.GetImageData().GetDimensions(), strict=True)) else None


def underSurface(volume, point, normal):
    """Move a point on a segment's surface, given with its outward normal, to the inside of the segment.

    A smoothed surface deviates from the segment's voxels by up to half a voxel. A point three quarters of a voxel below
    it is inside, even if the segment is only one voxel thick.
    """
    at = worldToIJK(volume, point)
    inward = worldToIJK(volume, np.subtract(point, normal)) - at
    return ijkToWorld(volume, at + 0.75 * inward / np.linalg.norm(inward))


# ---- slice views ----------------------------------------------------------------------------------------------


def xyToWorld(sliceNode, x, y):
    """The world coordinates of a pixel of a slice view, counted from its lower left corner."""
    return (matrixArray(sliceNode.GetXYToRAS()) @ [x, y, 0.0, 1.0])[:3]


def xyToIJK(sliceNode, volume, x, y):
    """The voxel coordinates (floats) of a pixel of a slice view."""
    return worldToIJK(volume, xyToWorld(sliceNode, x, y))


def sliceAxis(sliceNode, volume):
    """The axis (0, 1, 2) of the volume that a slice view is orthogonal to, or None if it is oblique to all of them.

    It is also None if the volume is under a nonlinear transform, as its slices are not planar then.
    """
    worldToLocal = linearBetween(None, volume.GetParentTransformNode())
    if worldToLocal is None:
        return None
    toIJK = np.linalg.inv(ijkToLocal(volume)) @ worldToLocal @ matrixArray(sliceNode.GetXYToRAS())
    right, up = np.abs(toIJK[:3, 0]), np.abs(toIJK[:3, 1])
    for axis in range(3):
        if right[axis] <= _TILT * right.max() and up[axis] <= _TILT * up.max():
            return axis
    return None


# ---- prompts as boxes and masks in a slice ----------------------------------------------------------------------


def boxBetween(shape, corner, opposite):
    """The box between two corners in voxel coordinates, clipped to the volume. None if it is outside the volume."""
    a, b = (np.floor(np.asarray(p, float) + 0.5).astype(int) for p in (corner, opposite))
    low, high = np.minimum(a, b), np.maximum(a, b) + 1
    return Box.from_pairs(list(zip(low.tolist(), high.tolist(), strict=True))).clip(shape)


def brushStroke(shape, axis, points, thickness: Sequence[float]):
    """Draw a stroke in the slice orthogonal to ``axis``. Return a mask, bool, and its box, or None outside the volume.

    ``points``: the path in voxel coordinates, (n, 3), all in the slice of the first point. ``thickness``: voxels along
    each axis of the volume. Along ``axis``, a stroke is one voxel thick. A stroke along a row has exactly this width.
    """
    points = np.asarray(points, float)
    across = [a for a in range(3) if a != axis]
    width = np.array([max(1, round(thickness[a])) for a in across])
    # The center of an even number of voxels lies between two of them.
    path = np.where(width % 2, np.floor(points[:, across] + 0.5), np.floor(points[:, across]) + 0.5)
    start = np.floor(path.min(axis=0) - width / 2).astype(int)
    plane = np.zeros(np.ceil(path.max(axis=0) + width / 2).astype(int) + 1 - start, bool)
    ends = path if len(path) > 1 else np.repeat(path, 2, axis=0)
    for a, b in zip(ends[:-1] - start, ends[1:] - start, strict=True):
        _drawLine(plane, a, b, width / 2)
    return _placeInVolume(shape, axis, points, plane, start)


def filledOutline(shape, axis, points):
    """Fill an outline in the slice orthogonal to ``axis``. Return a mask and its box as :func:`brushStroke` does.

    The result is also None if the outline encloses no voxel center. Regions that the outline encloses twice are inside.
    """
    points = np.asarray(points, float)
    path = points[:, [a for a in range(3) if a != axis]]
    start = np.floor(path.min(axis=0)).astype(int)
    plane = _windings(path - start, np.ceil(path.max(axis=0)).astype(int) + 1 - start) != 0
    return _placeInVolume(shape, axis, points, plane, start)


def _drawLine(plane, a, b, radii):
    """Set the pixels within an ellipse of these radii around the line from a to b."""
    low = np.maximum(np.floor(np.minimum(a, b) - radii).astype(int), 0)
    high = np.minimum(np.ceil(np.maximum(a, b) + radii).astype(int) + 1, plane.shape)
    u = (np.arange(low[0], high[0])[:, None] - a[0]) / radii[0]
    v = (np.arange(low[1], high[1])[None, :] - a[1]) / radii[1]
    du, dv = (b - a) / radii
    length = du * du + dv * dv
    along = np.clip((u * du + v * dv) / length, 0, 1) if length else 0.0
    distance = (u - along * du) ** 2 + (v - along * dv) ** 2
    plane[low[0] : high[0], low[1] : high[1]] |= distance < 1


def _windings(path, size):
    """Winding number of a closed path around the center of each pixel."""
    windings = np.zeros(size, int)
    rows = np.arange(size[0])
    columns = np.arange(size[1])
    for (u0, v0), (u1, v1) in zip(path, np.roll(path, -1, axis=0), strict=True):
        direction = 1 if u1 > u0 else -1
        crossed = rows[(rows >= min(u0, u1)) & (rows < max(u0, u1))]
        if len(crossed):
            crossing = v0 + (crossed - u0) / (u1 - u0) * (v1 - v0)
            windings[crossed] += direction * (columns[None, :] < crossing[:, None])
    return windings


def _placeInVolume(shape, axis, points, plane, start):
    """Convert a mask in a plane to a mask in the volume, cropped to its set voxels and clipped to the volume."""
    index = int(np.floor(points[0, axis] + 0.5))
    set_ = [np.flatnonzero(plane.any(axis=1 - a)) for a in range(2)]
    if len(set_[0]) == 0:
        return None
    spans = [(int(s[0] + o), int(s[-1] + 1 + o)) for s, o in zip(set_, start, strict=True)]
    spans.insert(axis, (index, index + 1))
    box = Box.from_pairs(spans).clip(shape)
    if box is None:
        return None
    inPlane = [slice(lo, hi) for lo, hi in box.pairs]
    del inPlane[axis]
    crop = plane[tuple(slice(s.start - o, s.stop - o) for s, o in zip(inPlane, start, strict=True))]
    return (np.expand_dims(crop, axis), box) if crop.any() else None
