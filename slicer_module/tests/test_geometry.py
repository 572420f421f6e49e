"""Coordinates under every kind of geometry, and strokes and outlines on all three planes."""

from NNInteractiveWSLib import geometry
import numpy as np
import pytest
from scenes import OBLIQUE
import vtk

SHAPE = (7, 11, 13)
GEOMETRIES = {
    "plain": {},
    "anisotropic": {"spacing": (0.5, 2.0, 5.0), "origin": (-3.0, 40.0, 7.0)},
    "oblique": {"spacing": (0.5, 2.0, 5.0), "directions": OBLIQUE, "origin": (-3.0, 40.0, 7.0)},
}


def numbered():
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def bend(scene):
    """Add a nonlinear transform: a thin plate spline that moves some points by millimeters."""
    corners = [(x, y, z) for x in (-60, 60) for y in (-60, 60) for z in (-60, 60)]
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in [*corners, (0, 0, 0)]:
        source.InsertNextPoint(*corner)
    for corner in [*corners, (6, -4, 3)]:
        target.InsertNextPoint(*corner)
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "bent")
    node.SetAndObserveTransformToParent(spline)
    return node


def test_array_is_ijk_and_a_view(add_volume):
    volume = add_volume(numbered())
    array = geometry.volumeArray(volume)
    assert array.shape == SHAPE
    np.testing.assert_array_equal(array, numbered())
    assert volume.GetImageData().GetScalarComponentAsDouble(1, 2, 3, 0) == array[1, 2, 3]
    array[1, 2, 3] = -5
    assert volume.GetImageData().GetScalarComponentAsDouble(1, 2, 3, 0) == -5


def test_volumes_without_scalar_voxels_are_rejected(scene, add_volume):
    with pytest.raises(ValueError, match="no voxels"):
        geometry.volumeArray(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))
    volume = add_volume(numbered())
    colors = vtk.vtkImageData()
    colors.SetDimensions(2, 2, 2)
    colors.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    volume.SetAndObserveImageData(colors)
    with pytest.raises(ValueError, match="several values"):
        geometry.volumeArray(volume)


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("parent", ["none", "linear", "bent"])
def test_there_and_back(scene, add_volume, add_transform, kind, parent):
    transform = {"none": lambda: None, "linear": add_transform, "bent": lambda: bend(scene)}[parent]()
    volume = add_volume(numbered(), transform=transform, **GEOMETRIES[kind])
    for ijk in [(0, 0, 0), (6, 10, 12), (1.25, 7.5, 3.75)]:
        world = geometry.ijkToWorld(volume, ijk)
        np.testing.assert_allclose(geometry.worldToIJK(volume, world), ijk, atol=2e-3)
    assert geometry.voxelAt(volume, geometry.ijkToWorld(volume, (1.4, 7.6, 2.6))) == (1, 8, 3)
    assert geometry.voxelAt(volume, geometry.ijkToWorld(volume, (-0.4, 10.4, 12.4))) == (0, 10, 12)
    assert geometry.voxelAt(volume, geometry.ijkToWorld(volume, (-0.6, 5, 5))) is None
    assert geometry.voxelAt(volume, geometry.ijkToWorld(volume, (3, 5, 12.6))) is None


def test_world_coordinates_match_slicer(add_volume, add_transform):
    node = add_transform()
    volume = add_volume(numbered(), transform=node, **GEOMETRIES["oblique"])
    toParent = geometry.matrixArray(node.GetMatrixTransformToParent())
    directions = OBLIQUE * (0.5, 2.0, 5.0)
    expected = toParent @ [*(directions @ (1, 2, 3) + (-3.0, 40.0, 7.0)), 1.0]
    np.testing.assert_allclose(geometry.ijkToWorld(volume, (1, 2, 3)), expected[:3], atol=1e-9)


# ---- slice views ------------------------------------------------------------------------------------------------


@pytest.fixture
def add_slice(scene):
    """Add a slice node of 200 x 100 pixels, orthogonal to an axis of a volume, through a point in voxels."""

    def add(volume, axis, through, tilt=0.0):
        node = scene.AddNewNodeByClass("vtkMRMLSliceNode", f"slice{axis}")
        node.SetDimensions(200, 100, 1)
        node.SetFieldOfView(100.0, 50.0, 1.0)
        origin = geometry.ijkToWorld(volume, through)
        columns = [geometry.ijkToWorld(volume, np.add(through, step)) - origin for step in np.eye(3)]
        right, up = (columns[a] / np.linalg.norm(columns[a]) for a in range(3) if a != axis)
        normal = np.cross(right, up)
        right = np.cos(tilt) * right + np.sin(tilt) * normal
        normal = np.cross(right, up)
        matrix = np.eye(4)
        matrix[:3] = np.stack([right, up, normal, origin], axis=1)
        for r in range(4):
            for c in range(4):
                node.GetSliceToRAS().SetElement(r, c, matrix[r, c])
        node.UpdateMatrices()
        return node

    return add


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_views(add_volume, add_transform, add_slice, kind, axis):
    volume = add_volume(numbered(), transform=add_transform(), **GEOMETRIES[kind])
    view = add_slice(volume, axis, (3, 5, 6))
    assert geometry.sliceAxis(view, volume) == axis
    np.testing.assert_allclose(geometry.xyToIJK(view, volume, 100, 50), (3, 5, 6), atol=1e-6)
    # Ten pixels to the right are five millimeters along the first axis of the slice.
    first = min(a for a in range(3) if a != axis)
    moved = geometry.xyToIJK(view, volume, 110, 50) - geometry.xyToIJK(view, volume, 100, 50)
    assert moved[first] == pytest.approx(5.0 / GEOMETRIES[kind].get("spacing", (1, 1, 1))[first])
    assert np.count_nonzero(np.abs(moved) > 1e-6) == 1


def test_oblique_views_are_recognized(scene, add_volume, add_slice):
    volume = add_volume(numbered(), **GEOMETRIES["anisotropic"])
    assert geometry.sliceAxis(add_slice(volume, 2, (3, 5, 6), tilt=0.05), volume) is None
    straight = add_slice(volume, 2, (3, 5, 6))
    assert geometry.sliceAxis(straight, volume) == 2
    volume.SetAndObserveTransformNodeID(bend(scene).GetID())
    assert geometry.sliceAxis(straight, volume) is None


def test_standard_views(scene, add_volume):
    """Axial, sagittal and coronal views of a volume with the orientation of a typical scan."""
    volume = add_volume(numbered(), directions=np.diag([-1.0, -1.0, 1.0]))
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode", "view")
    for orientation, axis in {"Axial": 2, "Sagittal": 0, "Coronal": 1}.items():
        getattr(node, f"SetOrientationTo{orientation}")()
        assert geometry.sliceAxis(node, volume) == axis


# ---- strokes ------------------------------------------------------------------------------------------------------


def full(shape, placed):
    mask = np.zeros(shape, bool)
    crop, box = placed
    assert crop.shape == box.shape
    mask[box.slices] = crop
    return mask


def in_slice(axis, index, points):
    """Points of a plane as voxel coordinates in the slice."""
    return [list(np.insert(np.asarray(p, float), axis, index)) for p in points]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_a_stroke_along_a_row_has_the_width(axis, width):
    shape = (30, 31, 32)
    stroke = full(shape, geometry.brushStroke(shape, axis, in_slice(axis, 9.3, [(15, 5), (15, 25)]), (width,) * 3))
    plane = stroke.take(9, axis)
    assert stroke.sum() == plane.sum()
    np.testing.assert_array_equal(plane[:, 8:22].sum(axis=0), width)
    assert plane[15, 8:22].all()


def test_a_stroke_has_the_thickness_of_each_axis():
    shape = (30, 31, 32)
    widths = (1, 3, 5)
    for axis in range(3):
        first, second = (a for a in range(3) if a != axis)
        dot = full(shape, geometry.brushStroke(shape, axis, in_slice(axis, 10, [(12, 14)]), widths)).take(10, axis)
        assert dot.any(axis=1).sum() == widths[first]
        assert dot.any(axis=0).sum() == widths[second]


def test_a_stroke_has_no_gaps_and_is_cut_at_the_border():
    shape = (20, 20, 20)
    stroke = full(shape, geometry.brushStroke(shape, 2, [(2, -5, 4), (17, 30, 4)], (2, 2, 2)))
    plane = stroke[:, :, 4]
    columns = np.flatnonzero(plane.any(axis=0))
    np.testing.assert_array_equal(columns, np.arange(20))
    assert geometry.brushStroke(shape, 2, [(-9, 5, 4), (-5, 5, 4)], (2, 2, 2)) is None
    assert geometry.brushStroke(shape, 2, [(5, 5, 20), (8, 5, 20)], (2, 2, 2)) is None


# ---- outlines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_outline_is_filled(axis):
    shape = (30, 31, 32)
    corners = [(4.5, 6.5), (4.5, 20.5), (15.5, 20.5), (15.5, 6.5)]
    filled = full(shape, geometry.filledOutline(shape, axis, in_slice(axis, 8, corners)))
    expected = np.zeros(shape, bool)
    np.moveaxis(expected, axis, 0)[8, 5:16, 7:21] = True
    np.testing.assert_array_equal(filled, expected)
    turned = geometry.filledOutline(shape, axis, in_slice(axis, 8, corners[::-1]))
    np.testing.assert_array_equal(full(shape, turned), expected)


def test_a_round_outline_has_the_area():
    shape = (100, 90, 3)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.stack([50 + 20 * np.cos(angles), 40 + 20 * np.sin(angles), np.ones(60)], axis=1)
    once = full(shape, geometry.filledOutline(shape, 2, circle))
    assert once.sum() == pytest.approx(np.pi * 400, rel=0.02)
    # A path that overlaps its start has winding number 2 there, which must not leave a hole.
    twice = full(shape, geometry.filledOutline(shape, 2, np.concatenate([circle, circle[:20]])))
    assert twice.sum() == pytest.approx(once.sum(), rel=0.02)


def test_an_outline_outside_or_too_small():
    assert geometry.filledOutline((9, 9, 9), 0, [(4, 10, 10), (4, 12, 10), (4, 12, 12)]) is None
    assert geometry.filledOutline((9, 9, 9), 0, [(4, 4.1, 4.1), (4, 4.3, 4.1), (4, 4.3, 4.3)]) is None
    crop, box = geometry.filledOutline((9, 9, 9), 0, [(4, -5, -5), (4, -5, 3.5), (4, 3.5, 3.5), (4, 3.5, -5)])
    assert box.pairs == ((4, 5), (0, 4), (0, 4))
    assert crop.all()


def test_boxes():
    assert geometry.boxBetween((20, 20, 20), (8.4, 3.6, 5), (2.6, 9.4, 5)).pairs == ((3, 9), (4, 10), (5, 6))
    assert geometry.boxBetween((20, 20, 20), (-8, 3, 5), (2, 30, 5)).pairs == ((0, 3), (3, 20), (5, 6))
    assert geometry.boxBetween((20, 20, 20), (2, 3, 20), (4, 5, 20)) is None
