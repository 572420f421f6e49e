"""Changes of the scene during a session: selections, removals and files; and random user actions."""

from contextlib import contextmanager

from logic_harness import SHAPE, WHOLE, blobs
from nninteractive_ws import Box
from nninteractive_ws.client import events
from nninteractive_ws.client.image_source import ImageSource
from NNInteractiveWSLib import geometry, prompts, sceneState, sessionController
from NNInteractiveWSLib.labelmaps import SURFACE, Labelmaps
import numpy as np
import pytest
from scenes import new_scene
import slicer
from vtk.util.numpy_support import vtk_to_numpy

# ---- the scene changes --------------------------------------------------------------------------------------------


def test_marks_belong_to_their_segment(harness):
    first = harness.logic.segmentID
    harness.click(20, 20, 20)
    second = harness.logic.nextSegment()
    assert harness.marks() == []
    harness.click(50, 40, 30)
    harness.click(50, 40, 33, positive=False)
    assert [prompts.segmentOf(n) for n in harness.marks()] == [second] * 2
    harness.logic.segmentation.GetSegmentation().GetSegment(second).SetName("renamed")
    harness.click(50, 42, 30)
    harness.check()
    harness.logic.segmentation.GetSegmentation().RemoveSegment(second)
    assert harness.logic.segmentID is None
    assert "removed" in harness.logic.status.message
    harness.logic.selectSegment(harness.logic.segmentation, first)
    harness.wait()
    assert len(harness.logic._binding.prompts.marks()) == len(harness.marks()) == 1
    assert list(harness.logic.session.histories) == [first]
    harness.click(24, 20, 20)
    harness.check()


def test_a_hidden_segment_is_shown_with_a_prompt(harness):
    display, first = harness.logic.segmentation.GetDisplayNode(), harness.logic.segmentID
    harness.logic.nextSegment()
    for name in (first, harness.logic.segmentID):
        display.SetSegmentVisibility(name, False)
    harness.click(20, 20, 20)
    assert display.GetSegmentVisibility(harness.logic.segmentID)
    assert not display.GetSegmentVisibility(first)
    harness.check()


def test_a_segment_removed_during_a_prediction(harness):
    assert harness.logic.addPoint(harness.at(20, 20, 20))
    harness.wait(lambda: harness.logic._controller._requests)
    harness.logic.segmentation.GetSegmentation().RemoveSegment(harness.logic.segmentID)
    harness.wait()
    harness.click(20, 20, 20)
    harness.check()


def test_another_volume_and_back(harness, add_volume):
    first, segmentation, name = harness.logic.volume, harness.logic.segmentation, harness.logic.segmentID
    harness.click(20, 20, 20)
    shown = harness.shown()
    assert harness.logic.addPoint(harness.at(24, 20, 20))  # abandoned before its answer
    other = add_volume(blobs()[::-1, :, :40].copy())
    harness.logic.selectVolume(other)
    harness.logic.selectSegment(None, None)
    harness.logic.nextSegment()
    harness.click(51, 20, 20)
    harness.check()
    harness.logic.selectVolume(first)
    harness.logic.selectSegment(segmentation, name)
    np.testing.assert_array_equal(harness.shown(), shown)
    assert len(harness.marks()) == 1
    harness.click(20, 24, 20)
    harness.check()
    for _ in range(2):
        harness.logic.undo()
    harness.wait()
    assert not harness.shown().any()


def test_the_volumes_voxels_change(harness):
    harness.click(20, 20, 20)
    shown = harness.shown()
    geometry.volumeArray(harness.logic.volume)[:5] = 50
    harness.logic.volume.GetImageData().GetPointData().GetScalars().Modified()
    harness.click(50, 40, 30)
    harness.check()
    assert (harness.shown() & shown).sum() > 0.5 * shown.sum()
    assert len(harness.marks()) == 1


def test_the_volume_is_removed(scene, harness):
    segmentation, name = harness.logic.segmentation, harness.logic.segmentID
    harness.click(20, 20, 20)
    assert harness.logic.addPoint(harness.at(24, 20, 20))
    scene.RemoveNode(harness.logic.volume)
    assert harness.logic.volume is None
    assert "removed" in harness.logic.status.message
    assert segmentation.GetSegmentation().GetSegment(name) is not None
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0
    harness.poll()
    assert not harness.logic.addPoint((0, 0, 0))


def test_the_scene_is_closed(scene, harness, add_volume):
    harness.click(20, 20, 20)
    assert harness.logic.addPoint(harness.at(24, 20, 20))
    scene.Clear(False)
    assert harness.logic.session is None
    assert "closed" in harness.logic.status.message
    harness.poll()
    harness.use(add_volume(blobs()), "new")
    harness.click(20, 20, 20)
    harness.check()


def test_a_transform_that_is_not_linear(scene, harness):
    """Running prompts finish, and new ones are rejected until the volume is under the same transform."""
    harness.click(20, 20, 20)
    shown = harness.shown()
    assert harness.logic.addPoint(harness.at(24, 20, 20))
    harness.wait(lambda: harness.logic._controller._requests)
    spline = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    spline.SetAndObserveTransformToParent(slicer.vtkOrientedBSplineTransform())
    harness.logic.segmentation.SetAndObserveTransformNodeID(spline.GetID())
    harness.wait()
    assert (harness.shown() ^ shown).any()
    assert not harness.logic.addPoint(harness.at(20, 24, 20))
    assert "not linear" in harness.logic.status.message
    harness.logic.volume.SetAndObserveTransformNodeID(spline.GetID())
    harness.click(20, 24, 20)
    harness.check()


def test_frames_of_a_sequence(harness, add_volume):
    """Browsing a sequence replaces the image of a volume. Back and forth without a prompt loses nothing."""
    harness.click(20, 20, 20)
    first, other = harness.logic.volume.GetImageData(), add_volume(blobs()[::-1].copy()).GetImageData()
    for image in (other, first):
        harness.logic.volume.SetAndObserveImageData(image)
        harness.poll()
    harness.click(24, 20, 20)
    assert len(harness.logic.session.histories[harness.logic.segmentID].steps) == len(harness.marks()) == 2
    harness.logic.volume.SetAndObserveImageData(other)
    harness.click(51, 20, 20)
    assert any("The volume has changed" in message for message in harness.messages)
    assert len(harness.marks()) == 1
    harness.check()


@pytest.fixture
def browse(scene):
    """Browse a sequence of two segmentations, each with a segment A. The node in the scene shares their voxels, as
    changes are saved in the sequence. ``browse.node``: this node. ``browse.items``: those of the sequence."""
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLApplicationLogic(scene.kept[0])
    logic.SetMRMLScene(scene)
    sequence, browser = (scene.AddNewNodeByClass(f"vtkMRML{name}Node") for name in ("Sequence", "SequenceBrowser"))
    for index in "01":
        item = slicer.vtkMRMLSegmentationNode()
        item.GetSegmentation().AddEmptySegment("A")
        sequence.SetDataNodeAtValue(item, index)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSaveChanges(sequence, True)

    def browse(index):
        browser.SetSelectedItemNumber(index)
        logic.UpdateProxyNodesFromSequences(browser)

    browse(0)
    browse.node, browse.items = browser.GetProxyNode(sequence), [sequence.GetNthDataNode(n) for n in range(2)]
    yield browse
    logic.SetMRMLScene(None)


@pytest.mark.parametrize("unanswered", [False, True])
def test_a_sequence_of_segmentations(make_harness, add_volume, browse, unanswered):
    harness = make_harness()
    volume = add_volume(blobs())
    harness.logic.selectVolume(volume)
    harness.logic.selectSegment(browse.node, "A")

    def shown():
        return [Labelmaps(item, volume).read("A", WHOLE) for item in browse.items]

    harness.click(20, 20, 20)
    expected = shown()
    assert expected[0].sum() > 100 > expected[1].sum()
    if unanswered:
        caught_in_a_preview(harness, lambda harness: (shown()[0] ^ harness.composed()).any())
        expected[0] = harness.composed()
    browse(1)
    assert harness.logic.segmentID == "A"
    np.testing.assert_array_equal(shown(), expected)
    harness.click(50, 40, 30)
    harness.check()
    np.testing.assert_array_equal(shown()[0], expected[0])
    assert shown()[1][50, 40, 30]
    browse(0)
    np.testing.assert_array_equal(harness.shown(), expected[0])
    harness.click(20, 26, 20)
    harness.check()


def test_a_color_image_is_rejected(harness):
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(3, 3)
    harness.logic.volume.SetAndObserveImageData(image)
    assert not harness.logic.addPoint(harness.at(1, 1, 1))
    assert "several values" in harness.logic.status.message


def test_a_constant_image_is_rejected(make_harness, add_volume):
    harness = make_harness()
    harness.use(add_volume(np.zeros(SHAPE, np.int16)), "A")
    assert harness.logic.addPoint(harness.at(20, 20, 20))
    harness.wait()
    assert harness.logic.status.state == "error"
    assert harness.marks() == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_replaced_in_a_copy(make_harness, add_volume, dtype):
    """The server gets the voxels that a command gets from a file with the same voxels."""
    voxels = blobs().astype(dtype)
    voxels[20:22, 20, 20] = np.nan
    voxels[0, 0, 0], voxels[-1, -1, -1] = np.inf, -np.inf
    harness = make_harness()
    volume = add_volume(voxels)
    scalars = volume.GetImageData().GetPointData().GetScalars()
    before = scalars.GetMTime()
    harness.use(volume, "A")
    harness.click(24, 20, 20)
    finite = np.isfinite(voxels)
    lowest = voxels[finite].min()
    expected = ImageSource.of(np.where(finite, voxels, lowest))
    assert harness.logic.session.image.name == expected.name
    assert harness.logic.imageNote == f"4 voxels are NaN or infinite. They were set to {lowest:g}."
    np.testing.assert_array_equal(geometry.volumeArray(volume), voxels)
    assert scalars.GetMTime() == before
    harness.check()
    harness.logic.disconnect()
    harness.click(24, 24, 20)
    assert len(harness.logic.session.histories[harness.logic.segmentID].steps) == 2, "the session did not resume"
    harness.use(add_volume(blobs()), "B")
    assert harness.logic.imageNote is None


def test_a_volume_without_a_finite_voxel_is_rejected(make_harness, add_volume):
    harness = make_harness()
    harness.use(add_volume(np.full(SHAPE, np.nan, np.float32)), "A")
    assert harness.logic.addPoint(harness.at(20, 20, 20))
    harness.wait()
    assert harness.logic.status.state == "error"
    assert "The volume has no finite voxel" in harness.logic.status.message
    assert harness.marks() == []


def test_finite_values_that_are_too_large_are_rejected(make_harness, add_volume):
    voxels = blobs().astype(np.float64)
    voxels[0, 0, 0] = 1e300
    harness = make_harness()
    harness.use(add_volume(voxels), "A")
    assert harness.logic.addPoint(harness.at(20, 20, 20))
    harness.wait()
    assert "too large for float32" in harness.logic.status.message


def test_surfaces_are_updated_when_idle(harness):
    harness.click(20, 20, 20)
    segmentation = harness.logic.segmentation.GetSegmentation()
    segmentation.CreateRepresentation(SURFACE)
    surface = segmentation.GetSegment(harness.logic.segmentID).GetRepresentation(SURFACE)
    harness.click(24, 20, 20)
    assert segmentation.GetSegment(harness.logic.segmentID).GetRepresentation(SURFACE) is surface
    harness.wait(lambda: segmentation.GetSegment(harness.logic.segmentID).GetRepresentation(SURFACE) is not surface)


@pytest.mark.parametrize("change", ["volume", "segmentation"])
def test_surfaces_are_updated_before_another_selection(harness, add_volume, change):
    """The surface equals one that Slicer makes from the labelmap, also if a preview was reverted."""
    harness.click(20, 20, 20)
    segmentation, name = harness.logic.segmentation.GetSegmentation(), harness.logic.segmentID
    segmentation.CreateRepresentation(SURFACE)
    harness.click(20, 26, 20)
    assert harness.logic.addPoint(harness.at(24, 20, 20))
    harness.wait(lambda: harness.logic._controller._requests)
    if change == "volume":
        harness.logic.selectVolume(add_volume(blobs()))
    else:
        harness.logic.selectSegment(None, None)
    shown = points(segmentation, name)
    segmentation.GetSegment(name).RemoveRepresentation(SURFACE)
    segmentation.CreateRepresentation(SURFACE)
    np.testing.assert_array_equal(shown, points(segmentation, name))


def points(segmentation, name):
    return vtk_to_numpy(segmentation.GetSegment(name).GetRepresentation(SURFACE).GetPoints().GetData()).copy()


# ---- saving and loading -------------------------------------------------------------------------------------------


def is_stored(harness):
    """Whether the scene has the prompts and masks that it shows."""
    controller = harness.logic._controller
    return not controller._unstored and not controller.binding.hasPendingWrites()


@contextmanager
def loaded(path):
    scene = new_scene(path.parent)
    assert scene.ReadFromMRB(str(path))
    yield scene
    scene.Clear(True)


def test_a_saved_scene_resumes(scene, harness, make_harness, tmp_path):
    """After loading, marks, undo and voxels taken from other segments are restored."""
    other = harness.logic.segmentation.GetSegmentation().AddEmptySegment("")
    theirs = np.zeros(SHAPE, bool)
    theirs[14:27, 12:28, 12:28] = True
    harness.maps.add(other, WHOLE, theirs)
    name = harness.logic.segmentID
    harness.click(20, 20, 20)
    one = harness.shown()
    harness.click(24, 20, 20)
    harness.click(20, 26, 20)
    harness.logic.undo()
    harness.wait()
    two = harness.shown()
    harness.wait(lambda: is_stored(harness))
    assert scene.WriteToMRB(str(tmp_path / "saved.mrb"))
    harness.logic.redo()
    harness.wait()
    three = harness.shown()
    with loaded(tmp_path / "saved.mrb") as again:
        late = make_harness(at=again)
        volume, segmentation = (again.GetFirstNodeByClass(f"vtkMRML{n}Node") for n in ("ScalarVolume", "Segmentation"))
        late.logic.selectVolume(volume)
        late.logic.selectSegment(segmentation, name)
        assert len(late.marks()) == 2
        np.testing.assert_array_equal(late.shown(), two)
        late.logic.redo()
        late.wait()
        np.testing.assert_array_equal(late.shown(), three)
        late.check()
        assert len(late.marks()) == 3
        for expected in (two, one, one & False):
            late.logic.undo()
            late.wait()
            np.testing.assert_array_equal(late.shown(), expected)
            np.testing.assert_array_equal(late.shown(other), theirs & ~expected)
        late.logic.close()


def test_the_journal_is_stored_by_itself(scene, harness):
    harness.click(20, 20, 20)
    logic = harness.logic
    harness.wait(lambda: is_stored(harness))
    journal, _ledgers = sceneState.load(scene, logic.segmentation, logic.volume, SHAPE)
    np.testing.assert_array_equal(journal.masks[logic.segmentID], harness.shown())


def test_a_journal_of_another_image_or_a_damaged_one(scene, harness, make_harness):
    for damage in ("image", "text"):
        harness.click(20, 20, 20)
        volume, segmentation, name = harness.logic.volume, harness.logic.segmentation, harness.logic.segmentID
        harness.logic.close()
        shown = harness.shown()
        if damage == "image":
            geometry.volumeArray(volume)[0, 0, 0] += 1
        else:
            sceneState.find(scene, segmentation, volume).SetText('{"journal": "bm8="}')
        harness = make_harness()
        harness.logic.selectVolume(volume)
        harness.logic.selectSegment(segmentation, name)
        harness.click(24, 20, 20)
        harness.check()
        assert (harness.shown() & shown).sum() > 0.5 * shown.sum()
        assert len(harness.marks()) == 1


def caught_in_a_preview(harness, reached):
    """Click until a preview arrives and a condition holds before its answer. Return the number of completed steps."""
    for n in range(20):
        done = len(harness.logic.session.histories[harness.logic.segmentID].steps)
        assert harness.logic.addPoint(harness.at(14 + n % 12, 20 + n % 5, 20))
        isPreview = False
        while harness.logic.busy:
            for event in harness.logic.poll(0):
                if isinstance(event, events.MaskDelta):
                    isPreview = not event.final
            if isPreview and harness.logic._controller._requests and reached(harness):
                return done
    raise AssertionError("no preview was seen before its answer")


def test_a_scene_saved_during_a_prediction(scene, harness, make_harness, tmp_path, monkeypatch):
    """Completed steps are restored, and the pending prompt leaves no trace."""
    # The test's server is faster than the interval between stores.
    monkeypatch.setattr(sessionController, "IDLE_S", 0.0)
    monkeypatch.setattr(sessionController, "_MAX_STORE_LOAD", float("inf"))
    name = harness.logic.segmentID
    harness.click(20, 20, 20)
    done = caught_in_a_preview(harness, is_stored)
    opacity = harness.logic.segmentation.GetDisplayNode().GetSegmentOpacity2DFill
    assert opacity(name) < 1
    assert scene.WriteToMRB(str(tmp_path / "saved.mrb"))
    harness.wait()
    with loaded(tmp_path / "saved.mrb") as again:
        late = make_harness(at=again)
        volume, segmentation = (again.GetFirstNodeByClass(f"vtkMRML{n}Node") for n in ("ScalarVolume", "Segmentation"))
        late.logic.selectVolume(volume)
        late.logic.selectSegment(segmentation, name)
        assert len(late.marks()) == done
        assert segmentation.GetDisplayNode().GetSegmentOpacity2DFill(name) == 1
        for _ in range(done):
            late.logic.undo()
        late.wait()
        assert not late.shown().any()
        late.logic.close()


# ---- random actions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_random_user_actions(scene, make_harness, add_volume, seed):
    """Client and server keep equal masks, and the scene shows them except for voxels that other segments took."""
    rng = np.random.default_rng(seed)
    harness = make_harness()
    harness.use(add_volume(blobs()), "A", "B", "C")
    names = list(harness.logic.segmentation.GetSegmentation().GetSegmentIDs())
    for _ in range(40):
        harness.logic.selectSegment(harness.logic.segmentation, str(rng.choice(names)))
        act = rng.choice(["point", "point", "point", "undo", "redo", "reset", "paint", "cancel", "wait"])
        if act == "point":
            assert harness.logic.addPoint(harness.at(*rng.integers(14, 27, 3)), bool(rng.random() < 0.7))
        elif act == "paint":
            low = rng.integers(10, 40, 3)
            box = Box.from_pairs([(int(n), int(n) + 4) for n in low])
            change = harness.maps.add if rng.random() < 0.5 else harness.maps.erase
            change(harness.logic.segmentID, box, np.ones(box.shape, bool))
        elif act == "wait":
            harness.wait()
        else:
            getattr(harness.logic, act)()
        harness.poll()
    harness.wait()
    for name in names:
        harness.logic.selectSegment(harness.logic.segmentation, name)
        harness.click(20, 20, 20)  # sends the manual edits to the server
    owners = sum(harness.shown(name).astype(int) for name in names)
    segments = harness.logic._binding.segments
    for name in names:
        core = harness.logic.session._core
        core._request_snapshot(core.segments[name])
        before = harness.mask(name).copy()
        harness.wait(lambda name=name: name not in harness.logic.session._core._stale)
        np.testing.assert_array_equal(harness.mask(name), before)
        np.testing.assert_array_equal(segments.mask(name, WHOLE), before)
        assert not (harness.shown(name) & ~before & ~painted_since(harness, name)).any()
        assert (owners[before] > 0).all() or not before.any()


def painted_since(harness, name):
    change = harness.logic._binding.segments.findEdits(name)
    return np.zeros(SHAPE, bool) if change is None else change.read(WHOLE)
