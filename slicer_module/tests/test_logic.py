"""The whole way, from prompts in the scene to voxels in its segments, against real server processes.

After each prompt the segment in the scene is the server's mask. Most tests use a server with a network that answers in
milliseconds; those of real images use the embedded model.
"""

from contextlib import contextmanager
import gzip
from pathlib import Path
import time

from conftest import OBLIQUE, new_scene
from nninteractive_ws import Box, errors
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
from NNInteractiveWSLib import geometry, prompts, sceneState
from NNInteractiveWSLib.labelmaps import SURFACE, Labelmaps
from NNInteractiveWSLib.logic import Logic
from NNInteractiveWSLib.segments import LOCKED_TAG
import numpy as np
import pytest
from relay import relay
import slicer

SHAPE = (72, 60, 48)
WHOLE = Box.whole(SHAPE)
CT = Path(__file__).parents[3] / "shared" / "data" / "ct_abdomen.nii.gz"
TISSUE = {"A": (20, 20, 20), "B": (50, 40, 30)}


@pytest.fixture(scope="module")
def server():
    """A server with a network that answers in milliseconds."""
    quick = pytest.importorskip("quick_server", reason="the server's packages are not installed")
    with quick.quick_server() as made:
        yield made


def blobs():
    """Two blobs in noise, at A and B: the image."""
    rng = np.random.default_rng(5)
    grid = np.indices(SHAPE)
    image = rng.normal(0, 20, SHAPE)
    for centre, value in ((TISSUE["A"], 400), (TISSUE["B"], 900)):
        image[sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < 81] += value
    return image.astype(np.int16)


class Desk:
    """A user at a desk: a logic that is polled until it is quiet."""

    def __init__(self, scene, address, **how):
        self.scene, self.asked, self.seen = scene, [], []
        self.agrees = True
        self.logic = Logic(scene, self._agree, **how)
        self.logic.setServer(address)

    def _agree(self, address):
        self.asked.append(address)
        return self.agrees

    def poll(self):
        happened = self.logic.poll()
        self.seen += happened
        return happened

    def wait(self, until=None, timeout=60):
        """Poll until nothing is under way, or until something is so."""
        end = time.monotonic() + timeout
        while not until() if until is not None else self.logic.busy:
            assert time.monotonic() < end, self.logic.status
            if not self.poll():
                time.sleep(0.002)

    def use(self, volume, *names):
        """Select a volume, and segments made in it; the last is selected."""
        self.logic.selectVolume(volume)
        for name in names:
            self.logic.nextSegment()
            self.logic.segmentation.GetSegmentation().GetSegment(self.logic.segmentID).SetName(name)

    def at(self, *ijk):
        return geometry.ijkToWorld(self.logic.volume, ijk)

    def click(self, *ijk, positive=True):
        assert self.logic.addPoint(self.at(*ijk), positive), self.logic.status
        self.wait()

    @property
    def maps(self):
        return Labelmaps(self.logic.segmentation, self.logic.volume)

    def shown(self, name=None):
        return self.maps.read(name or self.logic.segmentID, Box.whole(self.maps.shape))

    def mask(self, name=None):
        return self.logic.session.core.segments[name or self.logic.segmentID].mask

    def check(self, name=None):
        """The scene shows the client's mask, which is the server's."""
        name = name or self.logic.segmentID
        np.testing.assert_array_equal(self.shown(name), self.mask(name))
        core = self.logic.session.core
        before = self.mask(name).copy()
        core._ask_for_snapshot(core.segments[name])
        self.wait(lambda: name not in core._stale)
        np.testing.assert_array_equal(self.mask(name), before)

    def marks(self):
        return [n for n in self.logic._work.prompts.marks() if n.GetDisplayNode().GetVisibility()]


@pytest.fixture
def sit(scene, server):
    """Sit down at a desk, by default at the quick server's."""
    desks = []

    def make(address=None, at=None, **how):
        desks.append(Desk(at or scene, address or server.address, **how))
        return desks[-1]

    yield make
    for desk in desks:
        desk.logic.close()


@pytest.fixture
def desk(sit, add_volume):
    made = sit()
    made.use(add_volume(blobs()), "A")
    return made


def add_view(scene, volume, axis, through):
    """A slice view along an axis of a volume."""
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode", f"view{axis}")
    origin = geometry.ijkToWorld(volume, through)
    columns = [geometry.ijkToWorld(volume, np.add(through, step)) - origin for step in np.eye(3)]
    right, up = (columns[a] / np.linalg.norm(columns[a]) for a in range(3) if a != axis)
    for c, column in enumerate((right, up, np.cross(right, up), origin)):
        for r in range(3):
            node.GetSliceToRAS().SetElement(r, c, column[r])
    node.UpdateMatrices()
    return node


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


def test_painting_while_it_predicts_is_kept(desk):
    desk.click(20, 20, 20)
    assert desk.logic.addPoint(desk.at(24, 20, 20))
    painted = np.zeros(SHAPE, bool)
    painted[60:64, 50:55, 40:44] = True
    desk.maps.add(desk.logic.segmentID, WHOLE, painted)
    assert desk.logic.addPoint(desk.at(20, 24, 20))
    desk.wait()
    desk.check()
    assert desk.shown()[painted].all()


def test_a_segment_painted_before_is_where_it_begins(desk):
    painted = np.zeros(SHAPE, bool)
    painted[10:14, 50:55, 40:44] = True
    desk.maps.add(desk.logic.segmentID, WHOLE, painted)
    desk.click(20, 20, 20)
    desk.check()
    assert desk.shown()[painted].all()


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
    journal, _books = sceneState.load(scene, logic.segmentation, logic.volume)
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
    found = np.zeros(SHAPE, bool)
    if change is not None:
        found[change.box.slices] = change.flips
    return found


# ---- connections ---------------------------------------------------------------------------------------------------


def test_the_connection_is_cut(sit, server, add_volume):
    with relay(server.address) as way:
        desk = sit(way.address)
        desk.use(add_volume(blobs()), "A")
        desk.click(20, 20, 20)
        for ijk in ((24, 20, 20), (20, 24, 20), (20, 20, 24)):
            assert desk.logic.addPoint(desk.at(*ijk))
            desk.poll()
            way.cut()
            desk.wait(lambda: desk.logic.status.state == "lost")
            assert desk.logic.status.words
            desk.wait()
            desk.check()
        assert len(desk.marks()) == 4
        assert not any(isinstance(e, events.Failed) for e in desk.seen)
        desk.logic.close()


def test_the_worker_is_killed(desk, server):
    desk.click(20, 20, 20)
    assert desk.logic.addPoint(desk.at(24, 20, 20))
    desk.poll()
    server.kill_worker()
    desk.wait(timeout=100)
    desk.check()
    assert len(desk.logic.session.core.segments[desk.logic.segmentID].steps) == 2


def test_the_server_is_not_there(sit, add_volume):
    desk = sit("ws://127.0.0.1:9")
    desk.use(add_volume(blobs()), "A")
    assert desk.logic.addPoint(desk.at(20, 20, 20))
    desk.wait()
    assert desk.logic.session is None
    assert desk.marks() == []
    assert desk.logic.status.words
    desk.logic.setServer("nonsense://")
    assert not desk.logic.addPoint(desk.at(20, 20, 20))
    assert desk.logic.status.state == "error"


def test_cancelled(desk):
    desk.click(20, 20, 20)
    shown = desk.shown()
    for ijk in ((24, 20, 20), (20, 24, 20), (20, 20, 24)):
        assert desk.logic.addPoint(desk.at(*ijk))
    desk.logic.cancel()
    desk.wait()
    answered = [e for e in desk.seen if isinstance(e, events.Failed)]
    assert all(isinstance(e.error, errors.Cancelled) for e in answered)
    assert answered
    desk.check()
    assert len(desk.marks()) == 4 - len(answered)
    if len(answered) == 3:
        np.testing.assert_array_equal(desk.shown(), shown)


# ---- the embedded model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    from nninteractive_ws.server.local import local_server

    with local_server("--model", "demo", "--log-level", "warning") as address:
        yield address


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_phantoms_liver(scene, sit, demo, add_volume):
    phantom = make_phantom(seed=1, shape=(80, 64, 56), spacing=(5.0, 5.0, 5.0))
    desk = sit(demo)
    desk.use(add_volume(phantom.image, spacing=phantom.spacing, directions=OBLIQUE), "liver")
    liver = phantom.mask("liver")
    middle = np.argwhere(liver)[np.abs(np.argwhere(liver) - np.argwhere(liver).mean(axis=0)).sum(axis=1).argmin()]
    desk.click(*middle)
    desk.check()
    assert dice(desk.shown(), liver) > 0.5
    pale = []
    opacity = desk.logic.segmentation.GetDisplayNode().GetSegmentOpacity2DFill
    assert desk.logic.addPoint(desk.at(*np.add(middle, (0, 0, 4))))
    while desk.logic.busy:
        if any(isinstance(e, events.MaskDelta) and not e.final for e in desk.poll()):
            pale.append(opacity(desk.logic.segmentID))
    desk.check()
    assert all(p < 1 for p in pale)
    assert opacity(desk.logic.segmentID) == 1
    assert desk.logic.status.timings.passes > 0
    view = add_view(scene, desk.logic.volume, 2, middle)
    around = [desk.at(*np.add(middle, step)) for step in ((-6, -6, 0), (6, -6, 0), (6, 6, 0), (-6, 6, 0))]
    assert desk.logic.addLasso(view, around)
    desk.wait()
    desk.check()


@pytest.mark.skipif(not CT.exists(), reason="the real CT is not beside the checkout")
def test_a_real_ct(sit, demo, add_volume):
    raw = gzip.decompress(CT.read_bytes())
    shape = np.frombuffer(raw, "<i2", 3, 42)
    offset, (kind,) = int(np.frombuffer(raw, "<f4", 1, 108)[0]), np.frombuffer(raw, "<i2", 1, 70)
    dtype = {4: "<i2", 16: "<f4", 64: "<f8", 2: "u1"}[int(kind)]
    voxels = np.frombuffer(raw, dtype, int(np.prod(shape.astype(int))), offset).reshape(shape, order="F")
    desk = sit(demo)
    desk.use(add_volume(np.ascontiguousarray(voxels), spacing=(3.0, 3.0, 3.0)), "organ")
    labels = gzip.decompress((CT.parent / "ct_abdomen_labels.nii.gz").read_bytes())
    liver = np.frombuffer(labels, "u1", int(np.prod(shape.astype(int))), 352).reshape(shape, order="F") == 5
    where = np.argwhere(liver)
    desk.click(*where[np.abs(where - where.mean(axis=0)).sum(axis=1).argmin()])
    desk.check()
    assert dice(desk.shown(), liver) > 0.3
    desk.logic.undo()
    desk.wait()
    assert not desk.shown().any()
