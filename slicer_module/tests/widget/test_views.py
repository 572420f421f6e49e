"""Points in the 3-D view: clicks on rendered surfaces and slices."""

import gestures
from nninteractive_ws import Box
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.labelmaps import Labelmaps, makeSurfacesQuick
from NNInteractiveWSLib.logic import Logic
from NNInteractiveWSLib.segments import Segments
from NNInteractiveWSLib.views import ViewTool
import numpy as np
from panel_harness import Module
import pytest
import qt
import rendering
from scenes import OBLIQUE

SHAPE = (48, 40, 30)
CENTER, RADIUS = np.array((20.0, 22.0, 14.0)), 9.0  # voxels
BALL = sum((g - c) ** 2 for g, c in zip(np.indices(SHAPE), CENTER, strict=True)) < RADIUS**2


class RecordingLogic(Logic):
    """The real logic, except that points are only recorded."""

    def __init__(self, scene):
        super().__init__(scene, lambda address: False)
        self.points = []

    def addPoint(self, world, positive=True):
        self.points.append(world)


@pytest.fixture
def volume(add_volume, add_transform):
    how = {"spacing": (1.0, 1.5, 2.5), "directions": OBLIQUE, "origin": (5, 6, 7)}
    return add_volume(np.zeros(SHAPE, np.int16), transform=add_transform(), **how)


@pytest.fixture
def view(application):
    """The application's 3-D view, rendered by the real displayable managers."""
    made = application.layoutManager().threeDWidget(0).threeDView()
    rendering.prepare(application.mrmlScene(), application.applicationLogic())
    rendered = rendering.ThreeDView(made.mrmlViewNode(), (made.width, made.height), made.renderWindow())
    made.look, made.pixels = rendered.look, rendered.pixels
    yield made
    rendered.close()
    rendering.leave()


@pytest.fixture
def ball(request, scene, volume):
    """A segment with a closed surface."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    if getattr(request, "param", "quick") == "quick":
        makeSurfacesQuick(node.GetSegmentation())
    segmentID = node.GetSegmentation().AddEmptySegment("ball")
    Segments(Labelmaps(node, volume)).apply(segmentID, Box.whole(SHAPE), BALL)
    node.CreateClosedSurfaceRepresentation()
    return node


@pytest.fixture
def logic(scene, volume):
    made = RecordingLogic(scene)
    made.selectVolume(volume)
    yield made
    made.close()


@pytest.fixture
def tool(application, logic):
    made = ViewTool(application.layoutManager(), None, logic.addPointInThreeD)
    made.install()
    made.tool = "point"
    yield made
    made.remove()


def pixelOf(view, point):
    """The pixel of a view's widget, from the upper left corner, at world coordinates."""
    renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
    renderer.SetWorldPoint(*point, 1.0)
    renderer.WorldToDisplay()
    x, y, _depth = renderer.GetDisplayPoint()
    return round(x), view.height - 1 - round(y)


@pytest.mark.parametrize("direction", [(0, 1, 0), (1, 0.4, -0.3), (-0.5, -1, 2)])
@pytest.mark.parametrize("ball", ["as Slicer's", "quick"], indirect=True)
def test_a_click_on_a_surface_is_inside_its_segment(volume, view, ball, logic, tool, direction):
    view.look(direction)
    picture = view.pixels().astype(int)
    ball.GetDisplayNode().SetVisibility(False)
    seen = (picture != view.pixels()).any(axis=2)
    ball.GetDisplayNode().SetVisibility(True)
    # Test points on the side that faces the camera.
    camera = view.renderWindow().GetRenderers().GetFirstRenderer().GetActiveCamera()
    toward = geometry.worldToIJK(volume, camera.GetPosition()) - CENTER
    toward /= np.linalg.norm(toward)
    rng = np.random.default_rng(3)
    facing = [d for d in rng.normal(size=(60, 3)) if d @ toward > 0.6 * np.linalg.norm(d)]
    for outward in facing:
        surface = CENTER + outward / np.linalg.norm(outward) * RADIUS
        x, y = pixelOf(view, geometry.ijkToWorld(volume, surface))
        assert seen[y, x]
        gestures.click(view.VTKWidget(), x, y)
        voxel = geometry.voxelAt(volume, logic.points.pop())
        assert BALL[voxel]
        # The segment's surface is up to one voxel inside the ball's, and a pixel has the size of half a voxel.
        assert np.linalg.norm(voxel - surface) < 2.3
    assert len(facing) > 8


def test_a_click_on_a_slice_is_in_that_slice(application, volume, view, logic, tool):
    red = application.layoutManager().sliceWidget("Red")
    red.sliceLogic().GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    red.sliceLogic().FitSliceToAll(300, 200)
    red.mrmlSliceNode().JumpSliceByCentering(*geometry.ijkToWorld(volume, CENTER))
    red.mrmlSliceNode().SetSliceVisible(True)
    view.look((0.3, 0.2, -1), up=(0, 1, 0))
    view.pixels()
    for voxel in [(20, 22, 14), (15, 22, 14), (25, 18, 14)]:
        world = geometry.ijkToWorld(volume, voxel)
        world[2] = geometry.ijkToWorld(volume, CENTER)[2]
        gestures.click(view.VTKWidget(), *pixelOf(view, world))
        point = logic.points.pop()
        assert point[2] == pytest.approx(world[2])
        np.testing.assert_allclose(point, world, atol=1.0)  # the size of a pixel


def test_a_click_on_nothing_is_reported(view, ball, logic, tool):
    view.look((0, 1, 0))
    view.pixels()
    gestures.click(view.VTKWidget(), 3, 3)
    assert logic.points == []
    assert logic.status.state == "error"
    assert logic.status.message.startswith("There is no surface or slice")


def test_the_view_handles_drags(volume, view, ball, logic, tool):
    got = []
    for event in ("LeftButtonPressEvent", "LeftButtonReleaseEvent"):
        view.interactor().AddObserver(event, lambda caller, event: got.append(event))
    view.look((0, 1, 0))
    view.pixels()
    x, y = pixelOf(view, geometry.ijkToWorld(volume, CENTER))
    widget = view.VTKWidget()
    gestures.drag(widget, [(x, y), (x + 20, y), (x, y)])
    assert logic.points == []
    gestures.drag(widget, [(x, y), (x + 2, y + 1)])
    assert len(logic.points) == 1
    assert got == ["LeftButtonPressEvent", "LeftButtonReleaseEvent"] * 2, "the view does not get a click"


def test_other_tools_and_buttons_do_not_affect_the_3d_view(volume, view, ball, logic, tool):
    view.look((0, 1, 0))
    view.pixels()
    x, y = pixelOf(view, geometry.ijkToWorld(volume, CENTER))
    gestures.click(view.VTKWidget(), x, y, qt.Qt.RightButton)
    gestures.click(view.VTKWidget(), x, y, modifiers=qt.Qt.ShiftModifier)
    for name in ("box", "scribble", "lasso", None):
        tool.tool = name
        gestures.click(view.VTKWidget(), x, y)
    assert logic.points == []
    assert logic.status.message == ""
    tool.tool = "point"
    tool.remove()
    gestures.click(view.VTKWidget(), x, y)
    assert logic.points == []


def test_the_panel_sends_picked_points(application, volume, view, ball):
    module = Module(Logic)
    module.ui.serverComboBox.setEditText("ws://gpu-box")
    module.panel.server.use()
    module.ui.volumeSelector.setCurrentNode(volume)
    module.panel.enter()
    module.ui.pointButton.click()
    view.look((0, 1, 0))
    view.pixels()
    gestures.click(view.VTKWidget(), 3, 3)
    assert module.ui.statusLabel.text.startswith("There is no surface or slice")
    gestures.click(view.VTKWidget(), *pixelOf(view, geometry.ijkToWorld(volume, CENTER)))
    assert "only after you agree" in module.ui.statusLabel.text
    module.close()
