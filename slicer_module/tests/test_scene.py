"""What happens in the scene while one works: selections, removals, files; and anything in any order."""

from contextlib import contextmanager

from conftest import new_scene
from desk import SHAPE, WHOLE, blobs
from nninteractive_ws import Box
from nninteractive_ws.client import events
from NNInteractiveWSLib import geometry, prompts, sceneState
from NNInteractiveWSLib.labelmaps import SURFACE
import numpy as np
import pytest
import slicer

# ---- the scene changes --------------------------------------------------------------------------------------------


def test_segments_keep_their_marks_and_lose_them_with_themselves(desk):
    first = desk.logic.segmentID
    desk.click(20, 20, 20)
    second = desk.logic.nextSegment()
    assert desk.marks() == []
    desk.click(50, 40, 30)
    desk.click(50, 40, 33, positive=False)
    assert [prompts.segmentOf(n) for n in desk.marks()] == [second] * 2
    desk.logic.segmentation.GetSegmentation().GetSegment(second).SetName("renamed")
    desk.click(50, 42, 30)
    desk.check()
    desk.logic.segmentation.GetSegmentation().RemoveSegment(second)
    assert desk.logic.segmentID is None
    assert "removed" in desk.logic.status.words
    desk.logic.selectSegment(desk.logic.segmentation, first)
    desk.wait()
    assert len(desk.logic._work.prompts.marks()) == len(desk.marks()) == 1
    assert list(desk.logic.session.core.segments) == [first]
    desk.click(24, 20, 20)
    desk.check()


def test_a_hidden_segment_is_shown_with_a_prompt(desk):
    display, first = desk.logic.segmentation.GetDisplayNode(), desk.logic.segmentID
    desk.logic.nextSegment()
    for name in (first, desk.logic.segmentID):
        display.SetSegmentVisibility(name, False)
    desk.click(20, 20, 20)
    assert display.GetSegmentVisibility(desk.logic.segmentID)
    assert not display.GetSegmentVisibility(first)
    desk.check()


def test_a_segment_removed_while_it_predicts(desk):
    assert desk.logic.addPoint(desk.at(20, 20, 20))
    desk.wait(lambda: desk.logic._conversation._requests)
    desk.logic.segmentation.GetSegmentation().RemoveSegment(desk.logic.segmentID)
    desk.wait()
    desk.click(20, 20, 20)
    desk.check()


def test_another_volume_and_back(desk, add_volume):
    first, segmentation, name = desk.logic.volume, desk.logic.segmentation, desk.logic.segmentID
    desk.click(20, 20, 20)
    shown = desk.shown()
    assert desk.logic.addPoint(desk.at(24, 20, 20))  # and changes one's mind
    other = add_volume(blobs()[::-1, :, :40].copy())
    desk.logic.selectVolume(other)
    desk.logic.selectSegment(None, None)
    desk.logic.nextSegment()
    desk.click(51, 20, 20)
    desk.check()
    desk.logic.selectVolume(first)
    desk.logic.selectSegment(segmentation, name)
    np.testing.assert_array_equal(desk.shown(), shown)
    assert len(desk.marks()) == 1
    desk.click(20, 24, 20)
    desk.check()
    for _ in range(2):
        desk.logic.undo()
    desk.wait()
    assert not desk.shown().any()


def test_the_volumes_voxels_change(desk):
    desk.click(20, 20, 20)
    shown = desk.shown()
    geometry.volumeArray(desk.logic.volume)[:5] = 50
    desk.logic.volume.GetImageData().GetPointData().GetScalars().Modified()
    desk.click(50, 40, 30)
    desk.check()
    assert (desk.shown() & shown).sum() > 0.5 * shown.sum()
    assert len(desk.marks()) == 1


def test_the_volume_is_removed(scene, desk):
    segmentation, name = desk.logic.segmentation, desk.logic.segmentID
    desk.click(20, 20, 20)
    assert desk.logic.addPoint(desk.at(24, 20, 20))
    scene.RemoveNode(desk.logic.volume)
    assert desk.logic.volume is None
    assert "removed" in desk.logic.status.words
    assert segmentation.GetSegmentation().GetSegment(name) is not None
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0
    desk.poll()
    assert not desk.logic.addPoint((0, 0, 0))


def test_the_scene_is_closed(scene, desk, add_volume):
    desk.click(20, 20, 20)
    assert desk.logic.addPoint(desk.at(24, 20, 20))
    scene.Clear(False)
    assert desk.logic.session is None
    assert "closed" in desk.logic.status.words
    desk.poll()
    desk.use(add_volume(blobs()), "new")
    desk.click(20, 20, 20)
    desk.check()


def test_a_transform_that_is_not_linear(scene, desk):
    """What is under way is finished as it was asked for, nothing new begins, and with the volume there too it does."""
    desk.click(20, 20, 20)
    shown = desk.shown()
    assert desk.logic.addPoint(desk.at(24, 20, 20))
    desk.wait(lambda: desk.logic._conversation._requests)
    spline = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    spline.SetAndObserveTransformToParent(slicer.vtkOrientedBSplineTransform())
    desk.logic.segmentation.SetAndObserveTransformNodeID(spline.GetID())
    desk.wait()
    assert (desk.shown() ^ shown).any()
    assert not desk.logic.addPoint(desk.at(20, 24, 20))
    assert "not linear" in desk.logic.status.words
    desk.logic.volume.SetAndObserveTransformNodeID(spline.GetID())
    desk.click(20, 24, 20)
    desk.check()


def test_frames_of_a_sequence(desk, add_volume):
    """Browsing a sequence puts another image into the same volume; to and fro without a prompt loses nothing."""
    desk.click(20, 20, 20)
    first, other = desk.logic.volume.GetImageData(), add_volume(blobs()[::-1].copy()).GetImageData()
    for image in (other, first):
        desk.logic.volume.SetAndObserveImageData(image)
        desk.poll()
    desk.click(24, 20, 20)
    assert len(desk.logic.session.core.segments[desk.logic.segmentID].steps) == len(desk.marks()) == 2
    desk.logic.volume.SetAndObserveImageData(other)
    desk.click(51, 20, 20)
    assert any("The volume has changed" in words for words in desk.said)
    assert len(desk.marks()) == 1
    desk.check()


def test_a_colour_image_is_refused(desk):
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(3, 3)
    desk.logic.volume.SetAndObserveImageData(image)
    assert not desk.logic.addPoint(desk.at(1, 1, 1))
    assert "several values" in desk.logic.status.words


def test_a_constant_image_is_refused(sit, add_volume):
    desk = sit()
    desk.use(add_volume(np.zeros(SHAPE, np.int16)), "A")
    assert desk.logic.addPoint(desk.at(20, 20, 20))
    desk.wait()
    assert desk.logic.status.state == "error"
    assert desk.marks() == []


def test_surfaces_wait_until_it_is_quiet(desk):
    desk.click(20, 20, 20)
    segmentation = desk.logic.segmentation.GetSegmentation()
    segmentation.CreateRepresentation(SURFACE)
    surface = segmentation.GetSegment(desk.logic.segmentID).GetRepresentation(SURFACE)
    desk.click(24, 20, 20)
    assert segmentation.GetSegment(desk.logic.segmentID).GetRepresentation(SURFACE) is surface
    desk.wait(lambda: segmentation.GetSegment(desk.logic.segmentID).GetRepresentation(SURFACE) is not surface)


# ---- saved, and taken up ------------------------------------------------------------------------------------------


@contextmanager
def loaded(path):
    scene = new_scene(path.parent)
    assert scene.ReadFromMRB(str(path))
    yield scene
    scene.Clear(True)


def test_a_saved_scene_goes_on(scene, desk, sit, tmp_path):
    """As if one had never left: marks, undo, and what was taken from others."""
    other = desk.logic.segmentation.GetSegmentation().AddEmptySegment("")
    theirs = np.zeros(SHAPE, bool)
    theirs[14:27, 12:28, 12:28] = True
    desk.maps.add(other, WHOLE, theirs)
    name = desk.logic.segmentID
    desk.click(20, 20, 20)
    one = desk.shown()
    desk.click(24, 20, 20)
    desk.click(20, 26, 20)
    desk.logic.undo()
    desk.wait()
    two = desk.shown()
    desk.logic.storeState()
    assert scene.WriteToMRB(str(tmp_path / "saved.mrb"))
    desk.logic.redo()
    desk.wait()
    three = desk.shown()
    with loaded(tmp_path / "saved.mrb") as again:
        late = sit(at=again)
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


def test_the_journal_is_stored_by_itself(scene, desk):
    desk.click(20, 20, 20)
    logic = desk.logic
    desk.wait(lambda: sceneState.find(scene, logic.segmentation, logic.volume) is not None)
    journal, _books = sceneState.load(scene, logic.segmentation, logic.volume, SHAPE)
    np.testing.assert_array_equal(journal.masks[logic.segmentID], desk.shown())


def test_a_journal_of_another_image_or_a_damaged_one(scene, desk, sit):
    for damage in ("image", "text"):
        desk.click(20, 20, 20)
        volume, segmentation, name = desk.logic.volume, desk.logic.segmentation, desk.logic.segmentID
        desk.logic.close()
        shown = desk.shown()
        if damage == "image":
            geometry.volumeArray(volume)[0, 0, 0] += 1
        else:
            sceneState.find(scene, segmentation, volume).SetText('{"journal": "bm8="}')
        desk = sit()
        desk.logic.selectVolume(volume)
        desk.logic.selectSegment(segmentation, name)
        desk.click(24, 20, 20)
        desk.check()
        assert (desk.shown() & shown).sum() > 0.5 * shown.sum()
        assert len(desk.marks()) == 1


def caught_in_a_preview(desk):
    """Click until a preview is seen whose answer is not there yet; how many steps were done before."""
    for n in range(20):
        done = len(desk.logic.session.core.segments[desk.logic.segmentID].steps)
        assert desk.logic.addPoint(desk.at(14 + n % 12, 20 + n % 5, 20))
        while desk.logic.busy:
            previews = [e for e in desk.logic.poll(0) if isinstance(e, events.MaskDelta) and not e.final]
            if previews and desk.logic.busy:
                return done
    raise AssertionError("no preview was seen before its answer")


def test_a_scene_saved_while_it_predicts(scene, desk, sit, tmp_path):
    """What was done is there; what was not done leaves nothing behind."""
    name = desk.logic.segmentID
    desk.click(20, 20, 20)
    done = caught_in_a_preview(desk)
    opacity = desk.logic.segmentation.GetDisplayNode().GetSegmentOpacity2DFill
    assert opacity(name) < 1
    desk.logic.storeState()
    assert scene.WriteToMRB(str(tmp_path / "saved.mrb"))
    desk.wait()
    with loaded(tmp_path / "saved.mrb") as again:
        late = sit(at=again)
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


# ---- anything, in any order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_user_does(scene, sit, add_volume, seed):
    """The client's masks stay the server's; the scene shows them but for what other segments took."""
    rng = np.random.default_rng(seed)
    desk = sit()
    desk.use(add_volume(blobs()), "A", "B", "C")
    names = list(desk.logic.segmentation.GetSegmentation().GetSegmentIDs())
    for _ in range(40):
        desk.logic.selectSegment(desk.logic.segmentation, str(rng.choice(names)))
        act = rng.choice(["point", "point", "point", "undo", "redo", "reset", "paint", "cancel", "wait"])
        if act == "point":
            assert desk.logic.addPoint(desk.at(*rng.integers(14, 27, 3)), bool(rng.random() < 0.7))
        elif act == "paint":
            low = rng.integers(10, 40, 3)
            box = Box.from_pairs([(int(n), int(n) + 4) for n in low])
            change = desk.maps.add if rng.random() < 0.5 else desk.maps.erase
            change(desk.logic.segmentID, box, np.ones(box.shape, bool))
        elif act == "wait":
            desk.wait()
        else:
            getattr(desk.logic, act)()
        desk.poll()
    desk.wait()
    for name in names:
        desk.logic.selectSegment(desk.logic.segmentation, name)
        desk.click(20, 20, 20)  # so that what was painted is with the server too
    owners = sum(desk.shown(name).astype(int) for name in names)
    books = desk.logic._work.segments
    for name in names:
        core = desk.logic.session.core
        core._ask_for_snapshot(core.segments[name])
        before = desk.mask(name).copy()
        desk.wait(lambda name=name: name not in desk.logic.session.core._stale)
        np.testing.assert_array_equal(desk.mask(name), before)
        np.testing.assert_array_equal(books.mask(name, WHOLE), before)
        assert not (desk.shown(name) & ~before & ~painted_since(desk, name)).any()
        assert (owners[before] > 0).all() or not before.any()


def painted_since(desk, name):
    change = desk.logic._work.segments.changedByHand(name)
    return np.zeros(SHAPE, bool) if change is None else change.read(WHOLE)
