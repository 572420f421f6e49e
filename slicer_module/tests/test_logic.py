"""Prompts and their results in the scene's segments, with a real server and a network that predicts in milliseconds.

After each prompt, the segment in the scene equals the server's mask.
"""

import time

from logic_harness import SHAPE, TISSUE, WHOLE, add_view, blobs
from nninteractive_ws import masks
from nninteractive_ws.client import events
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.segments import LOCKED_TAG
import numpy as np
import pytest
from scenes import OBLIQUE

# ---- prompts ------------------------------------------------------------------------------------------------------

GEOMETRIES = {
    "plain": {},
    "anisotropic": {"spacing": (0.5, 2.0, 5.0), "origin": (-3.0, 40.0, 7.0)},
    "oblique": {"spacing": (0.5, 2.0, 5.0), "directions": OBLIQUE, "origin": (-3.0, 40.0, 7.0)},
}


def in_slice(harness, axis, index, points):
    return [harness.at(*np.insert(np.asarray(p, float), axis, index)) for p in points]


@pytest.mark.parametrize("moved", [False, True], ids=["", "moved"])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_every_prompt_in_every_geometry(scene, make_harness, add_volume, add_transform, kind, moved):
    harness = make_harness()
    volume = add_volume(blobs(), transform=add_transform() if moved else None, **GEOMETRIES[kind])
    harness.use(volume, "B", "A")
    logic = harness.logic
    harness.click(20, 20, 20)
    harness.check()
    assert harness.shown()[20, 20, 20]
    for axis in range(3):
        view = add_view(scene, volume, axis, (20, 20, 20))
        line = in_slice(harness, axis, 20, [(16, 18), (24, 22)])
        loop = in_slice(harness, axis, 20, [(15.5, 15.5), (24.5, 15.5), (24.5, 24.5), (15.5, 24.5)])
        ends = in_slice(harness, axis, 20, [(16, 16), (24.3, 23.8)])
        for positive in (True, False):
            assert logic.addScribble(view, line, positive), logic.status
            assert logic.addLasso(view, loop, positive), logic.status
            assert logic.addBox(*ends, positive, view), logic.status
            harness.wait()
            harness.check()
    harness.click(20, 20, 20, positive=False)
    harness.check()
    assert not any(isinstance(e, events.Failed) for e in harness.seen)
    requests = [step.request for step in logic.session.histories[logic.segmentID].steps]
    assert len(requests) == 1 + 3 * 2 * 3 + 1
    assert requests[3].box == ((20, 21), (16, 25), (16, 25)), "the box of the first slice"


def test_outside_the_volume_nothing_is_sent(scene, harness):
    view = add_view(scene, harness.logic.volume, 2, (20, 20, 20))
    far = [harness.at(-20, -20, 20), harness.at(-25, -20, 20), harness.at(-25, -28, 20)]
    logic = harness.logic
    for sent in (
        logic.addPoint(far[0]),
        logic.addBox(far[0], far[2]),
        logic.addScribble(view, far),
        logic.addLasso(view, far),
    ):
        assert not sent
        assert logic.status.state == "error"
        assert "volume" in logic.status.message
    assert logic.session is None
    assert harness.marks() == []


def test_an_oblique_view_accepts_only_points(scene, harness):
    view = add_view(scene, harness.logic.volume, 2, (20, 20, 20))
    tilt = geometry.matrixArray(view.GetSliceToRAS())
    view.GetSliceToRAS().SetElement(2, 0, tilt[2, 0] + 0.2)
    view.UpdateMatrices()
    line = [harness.at(18, 20, 20), harness.at(22, 20, 20), harness.at(22, 24, 20)]
    for sent in (
        harness.logic.addScribble(view, line),
        harness.logic.addLasso(view, line),
        harness.logic.addBox(line[0], line[2], True, view),
    ):
        assert not sent
        assert "oblique" in harness.logic.status.message
    harness.click(20, 20, 20)
    harness.check()


def test_without_a_volume_or_a_segment(make_harness, add_volume):
    harness = make_harness()
    assert not harness.logic.addPoint((0, 0, 0))
    assert "volume" in harness.logic.status.message
    harness.use(add_volume(blobs()))
    assert not harness.logic.undo()
    # A prompt adds a segment and a segmentation if there are none.
    harness.click(20, 20, 20)
    assert harness.logic.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    harness.check()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_volumes_of_other_types(make_harness, add_volume, dtype):
    harness = make_harness()
    harness.use(add_volume(np.clip(blobs() // 4, 0, 255).astype(dtype)), "A")
    harness.click(*TISSUE["A"])
    assert harness.shown()[TISSUE["A"]]
    harness.check()


def test_a_volume_without_voxels(scene, make_harness):
    harness = make_harness()
    harness.logic.selectVolume(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))
    assert not harness.logic.addPoint((0, 0, 0))
    assert "no voxels" in harness.logic.status.message
    assert harness.logic.segmentation is None


def test_several_prompts_and_then_one_run(harness):
    harness.logic.live = False
    harness.click(20, 20, 20)
    harness.click(24, 20, 20)
    assert not harness.shown().any()
    assert harness.logic.run()
    harness.wait()
    assert harness.shown().any()
    harness.check()


def test_nothing_is_sent_without_consent(harness, server):
    harness.agrees = False
    assert not harness.logic.addPoint(harness.at(20, 20, 20))
    assert harness.asked == [server.address]
    assert harness.logic.session is None
    assert "agree" in harness.logic.status.message
    assert harness.marks() == []
    harness.agrees = True
    harness.click(20, 20, 20)
    harness.click(21, 20, 20)
    assert len(harness.asked) == 2


# ---- undo ---------------------------------------------------------------------------------------------------------


def test_undo_redo_reset(harness):
    harness.click(20, 20, 20)
    first = harness.shown()
    harness.click(24, 20, 20)
    second = harness.shown()
    assert (first != second).any()
    assert len(harness.marks()) == 2
    harness.logic.undo()
    harness.wait()
    np.testing.assert_array_equal(harness.shown(), first)
    assert (len(harness.marks()), harness.logic.canRedo) == (1, True)
    harness.logic.redo()
    harness.wait()
    np.testing.assert_array_equal(harness.shown(), second)
    harness.logic.reset()
    harness.wait()
    assert not harness.shown().any()
    assert harness.marks() == []
    harness.logic.undo()
    harness.wait()
    np.testing.assert_array_equal(harness.shown(), second)
    assert len(harness.marks()) == 2
    for _ in range(2):
        harness.logic.undo()
    harness.wait()
    assert not harness.shown().any()
    assert (harness.marks(), harness.logic.canUndo) == ([], False)
    harness.check()
    harness.logic.undo()
    harness.wait()
    assert harness.logic.status.state == "error"


def test_undo_restores_every_overwritten_segment(harness):
    """In a shared labelmap, a result overwrites voxels of two segments, and undo returns them."""
    logic = harness.logic
    others = {}
    for low in (14, 21):
        name = logic.segmentation.GetSegmentation().AddEmptySegment("")
        others[name] = np.zeros(SHAPE, bool)
        others[name][low : low + 6, 12:28, 12:28] = True
        harness.maps.add(name, WHOLE, others[name])
    assert logic.segmentation.GetSegmentation().GetNumberOfLayers() == 1
    harness.click(20, 20, 20)
    harness.check()
    for name, mask in others.items():
        assert (mask & harness.shown()).sum() > 0
        np.testing.assert_array_equal(harness.shown(name), mask & ~harness.shown())
    logic.undo()
    harness.wait()
    for name, mask in others.items():
        np.testing.assert_array_equal(harness.shown(name), mask)
    logic.redo()
    harness.wait()
    for name, mask in others.items():
        np.testing.assert_array_equal(harness.shown(name), mask & ~harness.shown())


@pytest.mark.parametrize("overlap", [True, False])
def test_segments_of_the_session_with_and_without_overlap(scene, make_harness, add_volume, overlap):
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetOverwriteMode(editor.OverwriteNone if overlap else editor.OverwriteAllSegments)
    harness = make_harness(editorNode=editor)
    harness.use(add_volume(blobs()), "first")
    first = harness.logic.segmentID
    harness.click(20, 20, 20)
    alone = harness.shown()
    second = harness.logic.nextSegment()
    harness.click(22, 20, 20)
    harness.check(second)
    assert (harness.mask(second) & alone).any()
    np.testing.assert_array_equal(harness.shown(first), alone if overlap else alone & ~harness.mask(second))
    # The first segment continues from its own mask, including the voxels that the second one overwrote.
    harness.logic.selectSegment(harness.logic.segmentation, first)
    np.testing.assert_array_equal(harness.mask(first), alone)
    harness.click(18, 20, 20)
    assert [type(s.request).__name__ for s in harness.logic.session.histories[first].steps] == ["AddPoint"] * 2
    harness.logic.undo()
    harness.logic.selectSegment(harness.logic.segmentation, second)
    harness.logic.undo()
    harness.wait()
    np.testing.assert_array_equal(harness.shown(first), alone)
    assert not harness.shown(second).any()


def test_locked_and_masked(scene, make_harness, add_volume):
    editor = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    harness = make_harness(editorNode=editor)
    harness.use(add_volume(blobs()), "locked", "A")
    logic = harness.logic
    locked = logic.segmentation.GetSegmentation().GetNthSegmentID(0)
    half = np.zeros(SHAPE, bool)
    half[:20] = True
    harness.maps.add(locked, WHOLE, half)
    logic.segmentation.GetSegmentation().GetSegment(locked).SetTag(LOCKED_TAG, "1")
    editor.SetSourceVolumeIntensityMask(True)
    editor.SetSourceVolumeIntensityMaskRange(380, 2000)
    harness.click(21, 20, 20)
    allowed = ~half & (blobs() >= 380)
    np.testing.assert_array_equal(harness.shown(), harness.mask() & allowed)
    np.testing.assert_array_equal(harness.shown(locked), half)
    harness.click(24, 20, 20)  # a mismatch from masking is no manual edit
    assert len(logic.session.histories[logic.segmentID].steps) == 2
    logic.selectSegment(logic.segmentation, locked)
    assert not logic.addPoint(harness.at(5, 5, 5))
    assert "locked" in logic.status.message


# ---- manual edits -------------------------------------------------------------------------------------------------


def test_manual_edits_are_sent_before_the_next_prompt(harness):
    harness.click(20, 20, 20)
    painted = np.zeros(SHAPE, bool)
    painted[60:64, 50:55, 40:44] = True
    harness.maps.add(harness.logic.segmentID, WHOLE, painted)
    before = harness.shown()
    harness.click(24, 20, 20)
    harness.check()
    assert harness.shown()[painted].all()
    harness.logic.undo()
    harness.wait()
    np.testing.assert_array_equal(harness.shown(), before)
    harness.logic.undo()
    harness.wait()
    np.testing.assert_array_equal(harness.shown(), before & ~painted)
    harness.check()


def test_a_preview_that_arrives_with_its_answer_is_a_result(make_harness, add_volume):
    harness = make_harness()
    harness.use(add_volume(blobs()), "A")
    harness.click(*TISSUE["A"])
    shown = harness.logic.segmentation.GetDisplayNode().GetSegmentOpacity2DFill
    for offset in (1, 2):
        assert harness.logic.addPoint(harness.at(*np.add(TISSUE["A"], offset)))
        harness.logic.poll()  # sends the prompt
        time.sleep(0.5)  # while the window blocks, the preview and the answer arrive
        harness.wait()
        assert shown(harness.logic.segmentID) == 1


def test_painting_during_a_prediction_is_kept(harness):
    harness.click(20, 20, 20)
    assert harness.logic.addPoint(harness.at(24, 20, 20))
    painted = np.zeros(SHAPE, bool)
    painted[60:64, 50:55, 40:44] = True
    before = harness.shown()
    harness.maps.add(harness.logic.segmentID, WHOLE, painted)
    assert harness.logic.addPoint(harness.at(20, 24, 20))
    harness.wait()
    harness.check()
    assert harness.shown()[painted].all()
    steps = harness.logic.session.histories[harness.logic.segmentID].steps
    assert [type(s.request).__name__ for s in steps] == ["AddPoint", "AddPoint", "SetMask", "AddPoint"]
    assert masks.unpack(steps[2].change, SHAPE).voxels == (painted & ~before).sum(), (
        "the step contains more than the painted voxels"
    )


def test_a_session_starts_from_a_painted_segment(harness):
    painted = np.zeros(SHAPE, bool)
    painted[10:14, 50:55, 40:44] = True
    harness.maps.add(harness.logic.segmentID, WHOLE, painted)
    harness.click(20, 20, 20)
    harness.check()
    assert harness.shown()[painted].all()


def test_a_snapshot_does_not_enlarge_the_labelmap(harness):
    """A snapshot of a mask covers the whole volume, but the labelmap does not grow to that size."""
    harness.click(20, 20, 20)
    before = harness.maps.extent(harness.logic.segmentID)
    harness.check()
    assert harness.maps.extent(harness.logic.segmentID) == before
    assert before.voxels < WHOLE.voxels / 2
