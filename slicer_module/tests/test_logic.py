"""From prompts in the scene to voxels in its segments, against a real server process with a network that answers in
milliseconds: after each prompt the segment in the scene is the server's mask."""

import time

from conftest import OBLIQUE
from desk import SHAPE, TISSUE, WHOLE, add_view, blobs
from nninteractive_ws import masks
from nninteractive_ws.client import events
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.segments import LOCKED_TAG
import numpy as np
import pytest

# ---- prompts ------------------------------------------------------------------------------------------------------

GEOMETRIES = {
    "plain": {},
    "anisotropic": {"spacing": (0.5, 2.0, 5.0), "origin": (-3.0, 40.0, 7.0)},
    "oblique": {"spacing": (0.5, 2.0, 5.0), "directions": OBLIQUE, "origin": (-3.0, 40.0, 7.0)},
}


def in_slice(desk, axis, index, points):
    return [desk.at(*np.insert(np.asarray(p, float), axis, index)) for p in points]


@pytest.mark.parametrize("moved", [False, True], ids=["", "moved"])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_every_prompt_in_every_geometry(scene, sit, add_volume, add_transform, kind, moved):
    desk = sit()
    volume = add_volume(blobs(), transform=add_transform() if moved else None, **GEOMETRIES[kind])
    desk.use(volume, "B", "A")
    logic = desk.logic
    desk.click(20, 20, 20)
    desk.check()
    assert desk.shown()[20, 20, 20]
    for axis in range(3):
        view = add_view(scene, volume, axis, (20, 20, 20))
        line = in_slice(desk, axis, 20, [(16, 18), (24, 22)])
        loop = in_slice(desk, axis, 20, [(15.5, 15.5), (24.5, 15.5), (24.5, 24.5), (15.5, 24.5)])
        ends = in_slice(desk, axis, 20, [(16, 16), (24.3, 23.8)])
        for positive in (True, False):
            assert logic.addScribble(view, line, positive), logic.status
            assert logic.addLasso(view, loop, positive), logic.status
            assert logic.addBox(*ends, positive, view), logic.status
            desk.wait()
            desk.check()
    desk.click(20, 20, 20, positive=False)
    desk.check()
    assert not any(isinstance(e, events.Failed) for e in desk.seen)
    requests = [step.request for step in logic.session.core.segments[logic.segmentID].steps]
    assert len(requests) == 1 + 3 * 2 * 3 + 1
    assert requests[3].box == ((20, 21), (16, 25), (16, 25)), "the box of the first slice"


def test_outside_the_volume_nothing_is_sent(scene, desk):
    view = add_view(scene, desk.logic.volume, 2, (20, 20, 20))
    far = [desk.at(-20, -20, 20), desk.at(-25, -20, 20), desk.at(-25, -28, 20)]
    logic = desk.logic
    for sent in (
        logic.addPoint(far[0]),
        logic.addBox(far[0], far[2]),
        logic.addScribble(view, far),
        logic.addLasso(view, far),
    ):
        assert not sent
        assert logic.status.state == "error"
        assert "volume" in logic.status.words
    assert logic.session is None
    assert desk.marks() == []


def test_an_oblique_view_takes_points_alone(scene, desk):
    view = add_view(scene, desk.logic.volume, 2, (20, 20, 20))
    tilt = geometry.matrixArray(view.GetSliceToRAS())
    view.GetSliceToRAS().SetElement(2, 0, tilt[2, 0] + 0.2)
    view.UpdateMatrices()
    line = [desk.at(18, 20, 20), desk.at(22, 20, 20), desk.at(22, 24, 20)]
    for sent in (
        desk.logic.addScribble(view, line),
        desk.logic.addLasso(view, line),
        desk.logic.addBox(line[0], line[2], True, view),
    ):
        assert not sent
        assert "oblique" in desk.logic.status.words
    desk.click(20, 20, 20)
    desk.check()


def test_without_a_volume_or_a_segment(sit, add_volume):
    desk = sit()
    assert not desk.logic.addPoint((0, 0, 0))
    assert "volume" in desk.logic.status.words
    desk.use(add_volume(blobs()))
    assert not desk.logic.undo()
    # A prompt makes the segment that is missing, and the segmentation.
    desk.click(20, 20, 20)
    assert desk.logic.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    desk.check()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_volumes_of_other_types(sit, add_volume, dtype):
    desk = sit()
    desk.use(add_volume(np.clip(blobs() // 4, 0, 255).astype(dtype)), "A")
    desk.click(*TISSUE["A"])
    assert desk.shown()[TISSUE["A"]]
    desk.check()


def test_a_volume_without_voxels(scene, sit):
    desk = sit()
    desk.logic.selectVolume(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))
    assert not desk.logic.addPoint((0, 0, 0))
    assert "no voxels" in desk.logic.status.words
    assert desk.logic.segmentation is None


def test_several_prompts_and_then_one_run(desk):
    desk.logic.live = False
    desk.click(20, 20, 20)
    desk.click(24, 20, 20)
    assert not desk.shown().any()
    assert desk.logic.run()
    desk.wait()
    assert desk.shown().any()
    desk.check()


def test_nothing_is_sent_without_agreement(desk, server):
    desk.agrees = False
    assert not desk.logic.addPoint(desk.at(20, 20, 20))
    assert desk.asked == [server.address]
    assert desk.logic.session is None
    assert "agree" in desk.logic.status.words
    assert desk.marks() == []
    desk.agrees = True
    desk.click(20, 20, 20)
    desk.click(21, 20, 20)
    assert len(desk.asked) == 2


# ---- undo ---------------------------------------------------------------------------------------------------------


def test_undo_redo_reset(desk):
    desk.click(20, 20, 20)
    first = desk.shown()
    desk.click(24, 20, 20)
    second = desk.shown()
    assert (first != second).any()
    assert len(desk.marks()) == 2
    desk.logic.undo()
    desk.wait()
    np.testing.assert_array_equal(desk.shown(), first)
    assert (len(desk.marks()), desk.logic.canRedo) == (1, True)
    desk.logic.redo()
    desk.wait()
    np.testing.assert_array_equal(desk.shown(), second)
    desk.logic.reset()
    desk.wait()
    assert not desk.shown().any()
    assert desk.marks() == []
    desk.logic.undo()
    desk.wait()
    np.testing.assert_array_equal(desk.shown(), second)
    assert len(desk.marks()) == 2
    for _ in range(2):
        desk.logic.undo()
    desk.wait()
    assert not desk.shown().any()
    assert (desk.marks(), desk.logic.canUndo) == ([], False)
    desk.check()
    desk.logic.undo()
    desk.wait()
    assert desk.logic.status.state == "error"


def test_undo_restores_every_segment_that_was_touched(desk):
    """Segments that share a labelmap: a result takes voxels from two others and gives them back."""
    logic = desk.logic
    others = {}
    for low in (14, 21):
        name = logic.segmentation.GetSegmentation().AddEmptySegment("")
        others[name] = np.zeros(SHAPE, bool)
        others[name][low : low + 6, 12:28, 12:28] = True
        desk.maps.add(name, WHOLE, others[name])
    assert logic.segmentation.GetSegmentation().GetNumberOfLayers() == 1
    desk.click(20, 20, 20)
    desk.check()
    for name, mask in others.items():
        assert (mask & desk.shown()).sum() > 0
        np.testing.assert_array_equal(desk.shown(name), mask & ~desk.shown())
    logic.undo()
    desk.wait()
    for name, mask in others.items():
        np.testing.assert_array_equal(desk.shown(name), mask)
    logic.redo()
    desk.wait()
    for name, mask in others.items():
        np.testing.assert_array_equal(desk.shown(name), mask & ~desk.shown())


@pytest.mark.parametrize("overlap", [True, False])
def test_segments_of_the_session_with_and_without_overlap(scene, sit, add_volume, overlap):
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetOverwriteMode(editor.OverwriteNone if overlap else editor.OverwriteAllSegments)
    desk = sit(editorNode=editor)
    desk.use(add_volume(blobs()), "first")
    first = desk.logic.segmentID
    desk.click(20, 20, 20)
    alone = desk.shown()
    second = desk.logic.nextSegment()
    desk.click(22, 20, 20)
    desk.check(second)
    assert (desk.mask(second) & alone).any()
    np.testing.assert_array_equal(desk.shown(first), alone if overlap else alone & ~desk.mask(second))
    # The first goes on where it was: the server has not lost what the second took.
    desk.logic.selectSegment(desk.logic.segmentation, first)
    np.testing.assert_array_equal(desk.mask(first), alone)
    desk.click(18, 20, 20)
    assert [type(s.request).__name__ for s in desk.logic.session.core.segments[first].steps] == ["AddPoint"] * 2
    desk.logic.undo()
    desk.logic.selectSegment(desk.logic.segmentation, second)
    desk.logic.undo()
    desk.wait()
    np.testing.assert_array_equal(desk.shown(first), alone)
    assert not desk.shown(second).any()


def test_locked_and_masked(scene, sit, add_volume):
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    desk = sit(editorNode=editor)
    desk.use(add_volume(blobs()), "locked", "A")
    logic = desk.logic
    locked = logic.segmentation.GetSegmentation().GetNthSegmentID(0)
    half = np.zeros(SHAPE, bool)
    half[:20] = True
    desk.maps.add(locked, WHOLE, half)
    logic.segmentation.GetSegmentation().GetSegment(locked).SetTag(LOCKED_TAG, "1")
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(380, 2000)
    desk.click(21, 20, 20)
    allowed = ~half & (blobs() >= 380)
    np.testing.assert_array_equal(desk.shown(), desk.mask() & allowed)
    np.testing.assert_array_equal(desk.shown(locked), half)
    desk.click(24, 20, 20)  # what was withheld is no change by hand
    assert len(logic.session.core.segments[logic.segmentID].steps) == 2
    logic.selectSegment(logic.segmentation, locked)
    assert not logic.addPoint(desk.at(5, 5, 5))
    assert "locked" in logic.status.words


# ---- by hand ------------------------------------------------------------------------------------------------------


def test_what_was_painted_by_hand_goes_before_the_next_prompt(desk):
    desk.click(20, 20, 20)
    painted = np.zeros(SHAPE, bool)
    painted[60:64, 50:55, 40:44] = True
    desk.maps.add(desk.logic.segmentID, WHOLE, painted)
    before = desk.shown()
    desk.click(24, 20, 20)
    desk.check()
    assert desk.shown()[painted].all()
    desk.logic.undo()
    desk.wait()
    np.testing.assert_array_equal(desk.shown(), before)
    desk.logic.undo()
    desk.wait()
    np.testing.assert_array_equal(desk.shown(), before & ~painted)
    desk.check()


def test_a_preview_and_its_answer_at_once_are_a_result(sit, add_volume):
    desk = sit()
    desk.use(add_volume(blobs()), "A")
    desk.click(*TISSUE["A"])
    shown = desk.logic.segmentation.GetDisplayNode().GetSegmentOpacity2DFill
    for offset in (1, 2):
        assert desk.logic.addPoint(desk.at(*np.add(TISSUE["A"], offset)))
        desk.logic.poll()  # it is sent
        time.sleep(0.5)  # the window stands still, and all that comes of it comes at once
        desk.wait()
        assert shown(desk.logic.segmentID) == 1


def test_painting_while_it_predicts_is_kept(desk):
    desk.click(20, 20, 20)
    assert desk.logic.addPoint(desk.at(24, 20, 20))
    painted = np.zeros(SHAPE, bool)
    painted[60:64, 50:55, 40:44] = True
    before = desk.shown()
    desk.maps.add(desk.logic.segmentID, WHOLE, painted)
    assert desk.logic.addPoint(desk.at(20, 24, 20))
    desk.wait()
    desk.check()
    assert desk.shown()[painted].all()
    steps = desk.logic.session.core.segments[desk.logic.segmentID].steps
    assert [type(s.request).__name__ for s in steps] == ["AddPoint", "AddPoint", "SetMask", "AddPoint"]
    assert masks.unpack(steps[2].change, SHAPE).voxels == (painted & ~before).sum(), (
        "what was painted, and nothing of the second result"
    )


def test_a_segment_painted_before_is_where_it_begins(desk):
    painted = np.zeros(SHAPE, bool)
    painted[10:14, 50:55, 40:44] = True
    desk.maps.add(desk.logic.segmentID, WHOLE, painted)
    desk.click(20, 20, 20)
    desk.check()
    assert desk.shown()[painted].all()


def test_a_segment_takes_no_more_room_than_it_needs(desk):
    """A snapshot of a mask is of the whole volume, and the labelmap is not made as large."""
    desk.click(20, 20, 20)
    before = desk.maps.extent(desk.logic.segmentID)
    desk.check()
    assert desk.maps.extent(desk.logic.segmentID) == before
    assert before.voxels < WHOLE.voxels / 2
