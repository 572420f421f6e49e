"""The session's masks in the scene's segments, together with other segments and manual edits.

The Segment Editor's own logic, applied to a second copy of the segmentation, is the reference.
"""

from base64 import b64encode
import itertools
import tracemalloc
import zlib

from nninteractive_ws import Box
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.labelmaps import BINARY, SURFACE, Labelmaps
from NNInteractiveWSLib.segments import LOCKED_TAG, Segments
from NNInteractiveWSLib.sparseMask import SparseMask
import numpy as np
import pytest
from scenes import OBLIQUE
import slicer
from vtk.util.numpy_support import vtk_to_numpy

SHAPE = (20, 24, 28)
WHOLE = Box.whole(SHAPE)
Editor = slicer.vtkMRMLSegmentEditorNode
Node = slicer.vtkMRMLSegmentationNode


def ball(center, radius):
    grid = np.indices(SHAPE)
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) < radius**2


def block(*pairs):
    mask = np.zeros(SHAPE, bool)
    mask[Box.from_pairs(pairs).slices] = True
    return mask


A, B, C = ball((8, 9, 10), 5), ball((12, 15, 20), 4), block((1, 4), (2, 9), (3, 20))
S = block((6, 15), (5, 14), (8, 22))


@pytest.fixture
def add_segmentation(scene, add_volume):
    """Add a segmentation with the segments A, B and C, which share a labelmap, and an empty segment S."""

    def add(volume=None, transform=None, **how):
        if volume is None:
            values = np.random.default_rng(1).integers(0, 100, SHAPE).astype(np.int16)
            volume = add_volume(values, transform=transform, **how)
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.CreateDefaultDisplayNodes()
        if transform is not None:
            node.SetAndObserveTransformNodeID(transform.GetID())
        maps = Labelmaps(node, volume)
        for name in "ABCS":
            node.GetSegmentation().AddEmptySegment(name, name)
        for name, mask in {"A": A, "B": B, "C": C}.items():
            maps.add(name, WHOLE, mask)
        return maps

    return add


@pytest.fixture
def maps(add_segmentation):
    return add_segmentation()


@pytest.fixture
def editor(scene):
    return scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")


def shown(maps, name):
    return maps.read(name, WHOLE)


def everything(maps):
    return {name: shown(maps, name) for name in maps.ids()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def whole(segments, name, mask, **how):
    """Apply a whole mask."""
    return segments.apply(name, WHOLE, mask, **how)


# ---- reading and writing boxes ------------------------------------------------------------------------------------


def test_a_node_that_gets_another_segmentation(add_segmentation, add_transform):
    """Slicer's functions, which write the empty segment and find the editable voxels, take a node."""
    maps = add_segmentation(transform=add_transform())
    node, other = maps.node, slicer.vtkSegmentation()
    other.DeepCopy(maps.segmentation)
    node.SetAndObserveSegmentation(other)
    maps.detach()
    maps.erase("A", WHOLE, A)
    maps.add("S", WHOLE, S)
    np.testing.assert_array_equal(maps.read("S", WHOLE), S)
    np.testing.assert_array_equal(maps.editable("S", WHOLE, Node.EditAllowedInsideSingleSegment, "A"), A & False)
    again = Labelmaps(node, maps.volume)
    assert again.segmentation is other
    assert not again.read("S", WHOLE).any()
    np.testing.assert_array_equal(again.read("A", WHOLE), A)


def test_segments_share_a_labelmap_and_stay_apart(maps):
    assert maps.segmentation.GetNumberOfLayers() == 1
    assert len({maps.segmentation.GetSegment(name).GetLabelValue() for name in "ABCS"}) == 4
    assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": np.zeros(SHAPE, bool)})
    box = Box((3, 2, 1), (12, 17, 19))
    np.testing.assert_array_equal(maps.read("A", box), A[box.slices])


def test_erasing_leaves_the_others(maps):
    maps.erase("A", WHOLE, np.ones(SHAPE, bool))
    assert_same(everything(maps), {"A": A & False, "B": B, "C": C, "S": A & False})


def test_erasing_around_others_leaves_them(maps):
    """Other segments keep their voxels in the box of the erased ones."""
    mask = block((0, 1), (0, 1), (0, 1)) | (B & block((12, 13), (0, 24), (0, 28)))
    maps.erase("B", WHOLE, mask)
    assert_same(everything(maps), {"A": A, "B": B & ~mask, "C": C, "S": A & False})
    assert maps.segmentation.GetNumberOfLayers() == 1


def test_adding_over_others_makes_a_layer(maps):
    maps.add("S", WHOLE, S)
    assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": S})
    assert maps.segmentation.GetNumberOfLayers() == 2
    maps.erase("S", WHOLE, S & A)
    assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": S & ~A})


def test_voxels_lie_where_the_volume_has_them(add_segmentation, add_transform):
    """Slicer finds a voxel at the world coordinates at which this module wrote it."""
    maps = add_segmentation(spacing=(0.5, 2, 3), directions=OBLIQUE, origin=(5, 6, 7), transform=add_transform())
    maps.add("S", WHOLE, block((15, 16), (3, 4), (24, 25)))
    center = maps.node.GetSegmentCenterRAS("S")
    np.testing.assert_allclose(center, geometry.ijkToWorld(maps.volume, (15, 3, 24)), atol=1e-6)


def test_under_different_transforms(scene, add_segmentation, add_transform, add_volume):
    volume = add_volume(np.zeros(SHAPE, np.int16), spacing=(1, 2, 3), transform=add_transform(90, (0, 0, 1)))
    maps = add_segmentation(volume)
    assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": A & False})
    np.testing.assert_allclose(maps.node.GetSegmentCenterRAS("C"), geometry.ijkToWorld(volume, (2, 5, 11)), atol=1e-6)
    # After another transform, it is read at its new position in the volume.
    maps.node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    assert not np.array_equal(shown(maps, "A"), A)


def test_a_labelmap_of_another_geometry(scene, add_volume, add_segmentation):
    fine = add_volume(np.zeros((40, 48, 56), np.int16), spacing=(0.5, 0.5, 0.5), origin=(-0.25, -0.25, -0.25))
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.GetSegmentation().AddEmptySegment("A", "A")
    Labelmaps(node, fine).add("A", Box.whole((40, 48, 56)), A.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    coarse = Labelmaps(node, add_volume(np.zeros(SHAPE, np.int16)))
    np.testing.assert_array_equal(shown(coarse, "A"), A)


def test_a_segmentation_of_surfaces(scene, add_segmentation):
    made = add_segmentation()
    made.segmentation.CreateRepresentation(SURFACE)
    made.segmentation.SetSourceRepresentationName(SURFACE)
    made.segmentation.RemoveRepresentation(BINARY)
    again = Labelmaps(made.node, made.volume)
    assert made.segmentation.GetSourceRepresentationName() == SURFACE, "reading converted the segmentation"
    assert not shown(again, "A").any()
    again.prepare()
    found = shown(again, "A")
    assert np.count_nonzero(found ^ A) < 0.1 * A.sum()


def test_surfaces_are_updated_on_request(maps):
    maps.segmentation.CreateRepresentation(SURFACE)
    segment = maps.segmentation.GetSegment("A")
    points = {name: maps.segmentation.GetSegment(name).GetRepresentation(SURFACE).GetNumberOfPoints() for name in "AB"}
    maps.add("A", WHOLE, ball((8, 9, 10), 7))
    assert segment.GetRepresentation(SURFACE).GetNumberOfPoints() == points["A"]
    maps.refreshSurface("A")
    assert segment.GetRepresentation(SURFACE).GetNumberOfPoints() > points["A"]
    assert maps.segmentation.GetSegment("B").GetRepresentation(SURFACE).GetNumberOfPoints() == points["B"]
    maps.segmentation.RemoveRepresentation(SURFACE)
    maps.refreshSurface("A")
    assert segment.GetRepresentation(SURFACE) is None


def test_the_version_changes_with_the_voxels(maps):
    before = maps.version("A")
    assert maps.version("A") == before
    labelmap = maps.segmentation.GetSegment("A").GetRepresentation(BINARY)
    vtk_to_numpy(labelmap.GetPointData().GetScalars())[0] = 1
    labelmap.GetPointData().GetScalars().Modified()
    assert maps.version("A") != before


# ---- the Segment Editor as reference ------------------------------------------------------------------------------


class TheEditor:
    """The Segment Editor's own logic on a segmentation."""

    def __init__(self, scene, maps, settings):
        self.logic, self.maps = slicer.vtkSlicerSegmentEditorLogic(), maps
        self.logic.SetMRMLScene(scene)
        self.logic.SetSegmentEditorNode(settings)
        self.logic.SetSegmentationNode(maps.node)
        self.logic.SetSourceVolumeNode(maps.volume)
        settings.SetSelectedSegmentID("S")
        self.logic.UpdateReferenceGeometryImage()
        self.logic.ResetModifierLabelmapToDefault()
        self.logic.UpdateAlignedSourceVolume()

    def modify(self, mask, mode):
        image = self.maps._image(WHOLE)
        image.AllocateScalars(3, 1)
        vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask.transpose(2, 1, 0).ravel()
        self.logic.ModifySegmentByLabelmap(self.maps.node, "S", image, mode, image.GetExtent(), False, False)


MASKING = {
    "everywhere": Node.EditAllowedEverywhere,
    "inside all": Node.EditAllowedInsideAllSegments,
    "inside visible": Node.EditAllowedInsideVisibleSegments,
    "outside all": Node.EditAllowedOutsideAllSegments,
    "outside visible": Node.EditAllowedOutsideVisibleSegments,
    "inside A": Node.EditAllowedInsideSingleSegment,
}
OVERWRITE = {
    "all": Editor.OverwriteAllSegments,
    "visible": Editor.OverwriteVisibleSegments,
    "none": Editor.OverwriteNone,
}


@pytest.mark.parametrize("masking", MASKING)
@pytest.mark.parametrize("overwrite", OVERWRITE)
@pytest.mark.parametrize("intensity", [None, (20, 60)])
def test_results_are_written_as_the_editor_writes(scene, add_segmentation, editor, masking, overwrite, intensity):
    ours = add_segmentation()
    theirs = add_segmentation(ours.volume)
    for maps in (ours, theirs):
        maps.node.GetDisplayNode().SetSegmentVisibility("B", False)
    editor.SetMaskMode(MASKING[masking])
    editor.SetMaskSegmentID("A")
    editor.SetOverwriteMode(OVERWRITE[overwrite])
    if intensity is not None:
        editor.SetSourceVolumeIntensityMask(True)
        editor.SetSourceVolumeIntensityMaskRange(intensity)
    editor.SetAndObserveSegmentationNode(theirs.node)
    editor.SetAndObserveSourceVolumeNode(theirs.volume)
    whole(Segments(ours, editor), "S", S)
    reference = TheEditor(scene, theirs, editor)
    reference.modify(S, reference.logic.ModificationModeAdd)
    assert_same(everything(ours), everything(theirs))


def test_locked_segments_keep_their_voxels(maps, editor):
    maps.segmentation.GetSegment("A").SetTag(LOCKED_TAG, "1")
    segments = Segments(maps, editor)
    whole(segments, "S", S)
    assert_same(everything(maps), {"A": A, "B": B & ~S, "C": C & ~S, "S": S & ~A})
    whole(segments, "S", S & False)
    assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": S & False})


# ---- voxels taken from other segments -----------------------------------------------------------------------------


def test_taken_voxels_are_returned(maps):
    segments = Segments(maps)
    assert sorted(whole(segments, "S", S)) == ["A", "B", "S"]
    assert_same(everything(maps), {"A": A & ~S, "B": B & ~S, "C": C, "S": S})
    smaller = S & ball((10, 9, 14), 5)
    whole(segments, "S", smaller)
    assert_same(everything(maps), {"A": A & ~smaller, "B": B & ~smaller, "C": C, "S": smaller})
    whole(segments, "S", S & False, undoing=True)
    assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": S & False})


def test_small_boxes_give_the_same_result(maps):
    segments = Segments(maps)
    for mask in (S, S & ~A, S | B, S & False):
        for i, k in itertools.product(range(0, 20, 5), range(0, 28, 14)):
            box = Box((i, 0, k), (i + 5, 24, k + 14))
            segments.apply("S", box, mask[box.slices])
        np.testing.assert_array_equal(shown(maps, "S"), mask)
        assert_same(everything(maps), {"A": A & ~mask, "B": B & ~mask, "C": C & ~mask, "S": mask})


def test_two_segments_of_the_session(maps):
    """Each segment keeps the session's mask, regardless of overlaps and of the order of removals."""
    segments = Segments(maps)
    maps.segmentation.AddEmptySegment("T", "T")
    t = block((8, 18), (8, 20), (10, 24))
    for first in "ST":
        whole(segments, "S", S)
        whole(segments, "T", t)
        assert_same(everything(maps), {"A": A & ~S & ~t, "B": B & ~S & ~t, "C": C, "S": S & ~t, "T": t})
        np.testing.assert_array_equal(segments.mask("S", WHOLE), S)
        if first == "T":
            whole(segments, "T", t & False)
            assert_same(everything(maps), {"A": A & ~S, "B": B & ~S, "C": C, "S": S, "T": t & False})
            whole(segments, "S", S & False)
        else:
            whole(segments, "S", S & False)
            assert_same(everything(maps), {"A": A & ~t, "B": B & ~t, "C": C, "S": S & False, "T": t})
            whole(segments, "T", t & False)
        assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": S & False, "T": t & False})


def test_masking_does_not_change_the_session(maps, editor):
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(0, 49)
    allowed = geometry.volumeArray(maps.volume) <= 49
    segments = Segments(maps, editor)
    whole(segments, "S", S)
    np.testing.assert_array_equal(shown(maps, "S"), S & allowed)
    np.testing.assert_array_equal(segments.mask("S", WHOLE), S)
    assert segments.findEdits("S") is None
    # Voxels that the session did not change keep their mismatch after a change of the setting.
    editor.SetSourceVolumeIntensityMask(False)
    whole(segments, "S", S | B)
    np.testing.assert_array_equal(shown(maps, "S"), (S & allowed) | (B & ~S))
    whole(segments, "S", S & False)
    assert not shown(maps, "S").any()


def test_undo_is_not_stopped_by_masking(maps, editor):
    segments = Segments(maps, editor)
    whole(segments, "S", S)
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(0, 10)
    whole(segments, "S", S & False, undoing=True)
    assert_same(everything(maps), {"A": A, "B": B, "C": C, "S": S & False})


def test_a_removed_segment_gets_nothing_back(maps):
    segments = Segments(maps)
    whole(segments, "S", S)
    maps.segmentation.RemoveSegment("A")
    whole(segments, "S", S & False)
    assert_same(everything(maps), {"B": B, "C": C, "S": S & False})


# ---- manual edits -------------------------------------------------------------------------------------------------


def test_existing_voxels_are_an_edit(maps):
    segments = Segments(maps)
    change = segments.findEdits("A")
    np.testing.assert_array_equal(change.read(WHOLE), A)
    segments.acceptEdits("A", change)
    assert segments.findEdits("A") is None
    np.testing.assert_array_equal(segments.mask("A", WHOLE), A)


def test_only_manual_edits_are_found(maps):
    segments = Segments(maps)
    assert segments.findEdits("S") is None
    whole(segments, "S", S)
    assert segments.findEdits("S") is None
    painted = block((0, 2), (0, 3), (25, 28))
    maps.add("S", WHOLE, painted)
    maps.erase("S", WHOLE, A)
    # A preview before the scan does not overwrite the edits.
    more = S | block((15, 17), (5, 14), (8, 22))
    whole(segments, "S", more)
    np.testing.assert_array_equal(shown(maps, "S"), (more | painted) & ~(A & S))
    change = segments.findEdits("S")
    found = change.read(WHOLE)
    np.testing.assert_array_equal(found, painted | (A & S))
    segments.acceptEdits("S", change)
    assert segments.findEdits("S") is None
    np.testing.assert_array_equal(segments.mask("S", WHOLE), shown(maps, "S"))
    # Only voxels that S loses now return to A, and not those that the edit removed from S.
    whole(segments, "S", S & False)
    np.testing.assert_array_equal(shown(maps, "A"), A & ~S)


def test_own_writes_are_not_scanned(maps, monkeypatch):
    """Neither the segment nor those that share its labelmap are read again."""
    segments = Segments(maps)
    for name in "ABS":
        if (change := segments.findEdits(name)) is not None:
            segments.acceptEdits(name, change)
    whole(segments, "S", S)
    whole(segments, "S", S & ~B)
    monkeypatch.setattr(maps, "read", None)
    assert [segments.findEdits(name) for name in "ABS"] == [None] * 3


def test_painted_voxels_return_to_their_segment(maps):
    segments = Segments(maps)
    segments.findEdits("A")  # not accepted: the session does not know of it
    segments.forget("A")
    whole(segments, "A", block((0, 2), (0, 2), (0, 2)))
    maps.add("A", WHOLE, B)
    whole(segments, "S", S)
    whole(segments, "S", S & False)
    np.testing.assert_array_equal(shown(maps, "A"), A | B | block((0, 2), (0, 2), (0, 2)))
    found = segments.findEdits("A").read(WHOLE)
    np.testing.assert_array_equal(found, A | B)


def test_painted_voxels_are_found_after_they_were_overwritten(maps):
    segments = Segments(maps)
    segments.acceptEdits("A", segments.findEdits("A"))
    maps.add("A", WHOLE, B)  # a manual edit
    whole(segments, "S", S)
    assert not (segments.findEdits("A").read(WHOLE) & S).any(), "the voxels belong to S now"
    maps.erase("A", WHOLE, B)
    assert segments.findEdits("A") is None
    whole(segments, "S", S & False)
    np.testing.assert_array_equal(segments.findEdits("A").read(WHOLE), B & S)


def test_starting_from_a_mask_in_the_scene(maps):
    segments = Segments(maps)
    assert segments.scanForEdits("A"), "the scan is incomplete"
    segments.expect("A", A, WHOLE)
    assert segments.findEdits("A") is None
    segments.expect("A", A & ~S, WHOLE)
    np.testing.assert_array_equal(segments.findEdits("A").read(WHOLE), A & S)


# ---- sparse masks -------------------------------------------------------------------------------------------------


def test_sparse_masks_are_masks():
    shape = (70, 130, 66)  # several bricks
    rng, whole = np.random.default_rng(3), Box.whole(shape)
    sparse, dense = SparseMask(), np.zeros(shape, bool)
    for _ in range(60):
        start = rng.integers(0, [n - 1 for n in shape])
        stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, shape, strict=True)]
        box = Box.from_pairs(list(zip(start.tolist(), stop, strict=True)))
        values = rng.random(box.shape) < 0.4
        kind = rng.choice(["write", "flip", "set", "clear"])
        getattr(sparse, kind)(box, values)
        was = dense[box.slices]
        dense[box.slices] = {"write": values, "flip": was ^ values, "set": was | values, "clear": was & ~values}[kind]
        np.testing.assert_array_equal(sparse.read(whole), dense)
    again = SparseMask.unpacked(sparse.packed(), shape)
    np.testing.assert_array_equal(again.read(whole), dense)
    assert SparseMask.unpacked(SparseMask().packed(), shape).bounds() is None


@pytest.mark.parametrize(
    ("box", "content"),
    [
        (((0, 9), (0, 8), (0, 8)), bytes(72)),
        (((-1, 7), (0, 8), (0, 8)), bytes(64)),
        (((0, 2**15), (0, 2**15), (0, 2**15)), bytes(2**20)),
        (((0, 8), (0, 8), (0, 8)), bytes(2**26)),
        (((0, 8), (0, 8), (0, 8)), bytes(63)),
    ],
    ids=["outside", "before the first", "huge", "bomb", "short"],
)
def test_a_mask_that_does_not_fit_its_volume_is_refused_before_it_is_unpacked(box, content):
    packed = {"box": box, "bits": b64encode(zlib.compress(content, 9)).decode()}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"volume|bytes"):
            SparseMask.unpacked(packed, (8, 8, 8))
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()
