"""Marks of prompts: position, segment and visibility."""

import re

from NNInteractiveWSLib import geometry, prompts
from NNInteractiveWSLib.prompts import Prompts
import numpy as np
import pytest
from scenes import OBLIQUE, new_scene
import slicer

SHAPE = (20, 24, 28)


@pytest.fixture
def volume(add_volume, add_transform):
    geometry_ = {"spacing": (0.5, 2, 3), "directions": OBLIQUE, "origin": (5, 6, 7)}
    return add_volume(np.zeros(SHAPE, np.int16), transform=add_transform(), **geometry_)


@pytest.fixture
def marks(scene, volume):
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    made = Prompts(scene, segmentation, volume)
    made.select("A")
    return made


def visible(marks):
    return [prompts.stepOf(n) for n in marks.marks() if n.GetDisplayNode().GetVisibility()]


def placed(marks, segment="A", count=3):
    for number in range(count):
        marks.append(segment, number, marks.place("point", segment, True, [(number, 2, 3)]))


def point(node, n):
    return np.array(node.GetNthControlPointPositionWorld(n))


def test_marks_are_saved_in_files_of_their_own(marks, scene):
    """Slicer 5.10 saves hidden nodes of a ``.mrml`` scene as ``Private/<name>.<extension>``, without special
    characters (qSlicerSaveDataDialog.cxx, qSlicerCoreIOManager.cxx)."""
    for segment in "AB":
        placed(marks, segment)
        marks.place("point", segment, False, [(1, 2, 3)])
        marks.place("scribble", segment, False, [(1, 2, 3), (4, 5, 3)], 2)
    files = [re.sub(r"[^\w ._-]", "", node.GetName()) + ".mrk.json" for node in marks.marks()]
    assert len(files) == 10
    assert len({file.casefold() for file in files}) == 10


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", ["point", "box"])
def test_the_user_never_places_points_into_a_mark(marks, scene, kind, own):
    """Slicer makes each new markups node the one to which its Markups toolbar adds points."""
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    if own:
        scene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", "of the user")
    before = selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()
    assert (before == ("vtkMRMLMarkupsLineNode", "vtkMRMLMarkupsLineNode1")) == own
    node = marks.place(kind, "A", True, [(3, 4, 5), (6, 8, 5)])
    assert (selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()) == before
    count = node.GetNumberOfControlPoints()
    node.AddControlPoint(0, 0, 0)
    assert node.GetNumberOfControlPoints() == count


@pytest.mark.parametrize("kind", ["point", "scribble", "lasso"])
def test_marks_lie_where_the_prompt_is(volume, marks, kind):
    path = [(3, 4, 5), (6, 4, 9), (3, 4, 12)][: 1 if kind == "point" else 3]
    node = marks.place(kind, "A", True, path)
    if kind == "lasso":
        path.append(path[0])
    assert node.GetNumberOfControlPoints() == len(path)
    for n, ijk in enumerate(path):
        np.testing.assert_allclose(point(node, n), geometry.ijkToWorld(volume, ijk), atol=1e-6)


def test_a_box_lies_around_its_voxels(volume, marks):
    node = marks.place("box", "A", True, [(3, 4, 5), (7, 9, 5)])
    line = np.array(
        [geometry.worldToIJK(volume, p) for p in slicer.util.arrayFromMarkupsControlPoints(node, world=True)]
    )
    np.testing.assert_allclose(line.min(axis=0), (2.5, 3.5, 5), atol=1e-6)
    np.testing.assert_allclose(line.max(axis=0), (7.5, 9.5, 5), atol=1e-6)
    on = (np.abs(line - (2.5, 3.5, 9)) < 1e-6) | (np.abs(line - (7.5, 9.5, 9)) < 1e-6)
    assert on.any(axis=1).all()
    np.testing.assert_allclose(line[0], line[-1], atol=1e-6)


def test_a_line_lies_in_the_middle_of_its_slice(volume, marks):
    for path, axis in (([(3.2, 4.4, 5), (6, 4.4, 9), (3, 4.4, 12)], None), ([(3.2, 4.4, 5), (6, 4.4, 5)], 1)):
        node = marks.place("scribble", "A", True, path, axis)
        for n, (i, _j, k) in enumerate(path):
            np.testing.assert_allclose(geometry.worldToIJK(volume, point(node, n)), (i, 4, k), atol=1e-6)


def test_marks_follow_the_volume(volume, marks, add_transform):
    node = marks.place("point", "A", True, [(3, 4, 5)])
    volume.SetAndObserveTransformNodeID(add_transform(77).GetID())
    marks.updateTransform()
    np.testing.assert_allclose(point(node, 0), geometry.ijkToWorld(volume, (3, 4, 5)), atol=1e-6)


def test_polarity_determines_color_and_shape(marks):
    for kind in ("point", "box", "scribble", "lasso"):
        yes, no = (marks.place(kind, "A", p, [(3, 4, 5), (5, 4, 30), (3, 4, 9)]) for p in (True, False))
        colors = [node.GetDisplayNode().GetSelectedColor() for node in (yes, no)]
        assert colors == [prompts.POSITIVE, prompts.NEGATIVE]
        assert shape(yes) != shape(no)


def shape(node):
    """The glyph type, and the number of visible glyphs."""
    seen = sum(node.GetNthControlPointVisibility(n) for n in range(node.GetNumberOfControlPoints()))
    return node.GetDisplayNode().GetGlyphType() if seen else None, seen


def test_a_long_line_has_few_points(marks):
    node = marks.place("scribble", "A", True, [(n / 100, 3, 4) for n in range(1500)])
    assert 100 < node.GetNumberOfControlPoints() <= 200


def test_marks_cannot_be_moved_and_do_not_fill_the_lists(marks):
    node = marks.place("point", "A", True, [(3, 4, 5)])
    assert node.GetLocked()
    assert node.GetHideFromEditors()


def test_only_the_selected_segments_marks_are_shown(marks):
    placed(marks, "A", 2)
    placed(marks, "B", 3)
    assert visible(marks) == [0, 1]
    marks.select("B")
    assert visible(marks) == [0, 1, 2]
    marks.select(None)
    assert visible(marks) == []


def test_removed_marks_leave_no_nodes(scene, marks):
    before = scene.GetNumberOfNodes()
    marks.remove(marks.place("box", "A", True, [(3, 4, 5), (7, 9, 5)]))
    placed(marks)
    marks.append("A", 0)
    placed(marks)
    marks.forget("A")
    assert scene.GetNumberOfNodes() == before


def test_undo_and_redo(marks):
    placed(marks)
    marks.sync("A", 0, 3, 0)
    assert visible(marks) == [0, 1, 2]
    marks.sync("A", 0, 1, 2)
    assert visible(marks) == [0]
    marks.select(None)
    marks.select("A")
    assert visible(marks) == [0]
    marks.sync("A", 0, 2, 1)
    assert visible(marks) == [0, 1]
    # A new step discards the undone steps.
    marks.append("A", 2, marks.place("point", "A", False, [(9, 9, 9)]))
    marks.sync("A", 0, 3, 0)
    assert visible(marks) == [0, 1, 2]
    np.testing.assert_allclose(point(marks.marks()[-1], 0), geometry.ijkToWorld(marks.volume, (9, 9, 9)), atol=1e-6)
    # A step without a mark does so, too.
    marks.sync("A", 0, 1, 2)
    marks.append("A", 1)
    marks.sync("A", 0, 2, 0)
    assert visible(marks) == [0]


def test_a_reset_hides_earlier_marks(marks):
    placed(marks)
    marks.sync("A", 4, 4, 0)
    assert visible(marks) == []
    marks.sync("A", 0, 3, 1)
    assert visible(marks) == [0, 1, 2]


def test_pending_prompts(scene, marks):
    node = marks.place("point", "A", True, [(1, 2, 3)])
    marks.sync("A", 0, 0, 0)
    marks.forgetAnswered()
    assert scene.IsNodePresent(node)
    marks.forgetUnanswered()
    assert not scene.IsNodePresent(node)


def test_segmentations_do_not_share_marks(scene, volume, marks):
    other = Prompts(scene, scene.AddNewNodeByClass("vtkMRMLSegmentationNode"), volume)
    placed(marks)
    placed(other, count=1)
    other.forgetAnswered()
    assert len(marks.marks()) == 3
    assert other.marks() == []


def test_marks_are_saved_with_the_scene(scene, volume, marks, tmp_path):
    placed(marks)
    marks.append("A", 3, marks.place("box", "A", False, [(3, 4, 5), (7, 9, 5)]))
    marks.append("A", 4, marks.place("lasso", "A", False, [(3, 4, 5), (7, 9, 5), (3, 9, 5)]))
    marks.sync("A", 0, 4, 1)
    assert scene.WriteToMRB(str(tmp_path / "saved.mrb"))
    loaded = new_scene(tmp_path)
    assert loaded.ReadFromMRB(str(tmp_path / "saved.mrb"))
    segmentation, image = (loaded.GetFirstNodeByClass(f"vtkMRML{n}Node") for n in ("Segmentation", "ScalarVolume"))
    again = Prompts(loaded, segmentation, image)
    again.select("A")
    assert visible(again) == [0, 1, 2, 3]
    for before, after in zip(marks.marks(), again.marks(), strict=True):
        assert before.GetClassName() == after.GetClassName()
        np.testing.assert_allclose(point(after, 0), point(before, 0), atol=1e-3)
        assert after.GetDisplayNode().GetSelectedColor() == pytest.approx(before.GetDisplayNode().GetSelectedColor())
    loaded.Clear(True)


def test_slicer_has_the_classes():
    assert {c for c in prompts._NODES.values() if not hasattr(slicer, c)} == set()
