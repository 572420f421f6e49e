"""Screenshots for the tutorial, from a session with a real server, its embedded model and the phantom.

python slicer_module/tests/pictures.py [FOLDER]     writes slicer_module/Screenshots, or FOLDER

The views are drawn by Slicer's own displayable managers (rendering.py). The panel's picture is made by
widget/panel_picture.py.
"""

from pathlib import Path
import sys
import tempfile
import time

from logic_harness import LogicHarness
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation import simulated_user
from nninteractive_ws.server.local_server import local_server
from NNInteractiveWSLib.segmentationBinding import IDLE_S
import numpy as np
from PIL import Image
from rendering import Views
from scenes import new_scene, register_conversion_rules
import vtk
from vtk.util.numpy_support import numpy_to_vtk

FOLDER = Path(__file__).parents[1] / "Screenshots"
#: Segment names and colors.
COLORS = {
    "right kidney": (0.95, 0.75, 0.35),
    "spleen": (0.60, 0.45, 0.90),
    "liver": (0.80, 0.50, 0.35),
    "stomach": (0.40, 0.70, 0.95),
    "left kidney": (0.95, 0.55, 0.65),
    "spine": (0.85, 0.85, 0.75),
}
SIZE = (440, 330)  # of each view, pixels
#: The bars above Slicer's views.
BARS = {"Red": (243, 74, 51), "Yellow": (237, 213, 76), "Green": (110, 176, 75), "3D": (122, 122, 190)}
_BAR, _GAP = 8, 4  # pixels


class TutorialSession:
    """A LogicHarness with the phantom and four views."""

    def __init__(self, scene, address):
        self.phantom = make_phantom()
        self.views = Views(scene, scene.kept[0], SIZE)
        self.volume = _addVolume(scene, self.phantom)
        self.views.show(self.volume)
        self.harness = LogicHarness(scene, address)
        self.harness.logic.selectVolume(self.volume)

    def close(self):
        self.harness.logic.close()
        self.views.close()

    def begin(self, organ):
        """Add a segment for an organ, and move all slices to the organ's center. Return the center voxel."""
        self.harness.use(self.volume, organ)
        segmentation = self.harness.logic.segmentation.GetSegmentation()
        segmentation.GetSegment(self.harness.logic.segmentID).SetColor(*COLORS[organ])
        middle = simulated_user.deepest_voxel(self.phantom.mask(organ))
        self.jump_to(*middle)
        return np.array(middle)

    def jump_to(self, *voxel):
        self._at = self.harness.at(*voxel)
        self.views.jump(self._at)

    def zoom(self, factor):
        """Zoom the axial view by a factor, around the intersection of the slices. With 1, show all of it."""
        view = self.views.slices["Red"]
        view.fit()
        width, height, depth = view.node.GetFieldOfView()
        view.node.SetFieldOfView(width / factor, height / factor, depth)
        if factor > 1:
            view.node.JumpSliceByCentering(*self._at)

    def click(self, voxel, positive=True):
        self.harness.click(*voxel, positive=positive)

    def draw(self, kind, path, positive=True):
        """Add a scribble or a lasso in the axial view, along a path of voxels."""
        add = {"scribble": self.harness.logic.addScribble, "lasso": self.harness.logic.addLasso}[kind]
        view = self.views.slices["Red"].node
        assert add(view, [self.harness.at(*voxel) for voxel in path], positive), self.harness.logic.status

    def correct(self, organ, prompts):
        """Correct the largest error with a click, and repeat."""
        for _ in range(prompts):
            voxel, positive = simulated_user.correction(self.phantom.mask(organ), self.harness.mask())
            self.click(voxel, positive)

    def throughWrong(self, organ, k):
        """A stroke through the largest false-positive region in an axial slice, from anterior to posterior."""
        i, j = np.nonzero(simulated_user.largest_part((self.harness.mask() & ~self.phantom.mask(organ))[:, :, k]))
        across, along = np.polyfit(j, i, 2), np.linspace(j.min(), j.max(), 20)
        return [(np.polyval(across, at), at, k) for at in along]

    def untilPreview(self):
        """Wait for a preview, and write it to the scene."""
        harness, earlier = self.harness, len(self.harness.seen)
        harness.wait(lambda: any(isinstance(e, events.MaskDelta) and not e.final for e in harness.seen[earlier:]))
        harness.logic._binding.writePending(0.0)

    def surfaces(self):
        """Wait until all surfaces are up to date."""
        started, binding = time.monotonic(), self.harness.logic._binding
        self.harness.wait(lambda: not binding._staleSurfaces and time.monotonic() - started > IDLE_S)
        self.harness.logic.segmentation.CreateClosedSurfaceRepresentation()

    def fourUp(self, direction=(0.35, -1.0, -0.25)):
        """The views in Slicer's four-up layout."""
        self.views.threeD.look(direction, zoom=1.6)
        slices = {name: _barred(view.pixels(), name) for name, view in self.views.slices.items()}
        threeD = _barred(self.views.threeD.pixels(), "3D")
        return _below(_beside(slices["Red"], threeD), _beside(slices["Green"], slices["Yellow"]))

    def axial(self):
        return _barred(self.views.slices["Red"].pixels(), "Red")


def screenshots(session):
    """Yield the name and the image of each screenshot, (rows, columns, RGB), uint8."""
    session.click(session.begin("right kidney"))
    session.surfaces()
    yield "first-prompt", session.fourUp()

    middle = session.begin("liver")
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    session.draw("lasso", middle + np.stack([22 * np.cos(angles), 18 * np.sin(angles), 0 * angles], axis=1))
    session.untilPreview()
    preview = session.axial()
    session.harness.wait()
    yield "preview", _beside(preview, session.axial())
    session.correct("liver", prompts=3)

    middle = session.begin("spleen")
    session.zoom(2)
    session.click(middle)
    wrong = session.axial()
    session.draw("scribble", session.throughWrong("spleen", middle[2]), positive=False)
    session.harness.wait()
    yield "correction", _beside(wrong, session.axial())
    session.zoom(1)

    for organ in ("stomach", "left kidney", "spine"):
        session.click(session.begin(organ))
        session.correct(organ, prompts=1)
    session.jump_to(*simulated_user.deepest_voxel(session.phantom.mask("spleen")))
    session.surfaces()
    yield "segments", session.fourUp()


def write(folder, address):
    """Write the screenshots of the views to a folder. ``address``: a server with the embedded model."""
    register_conversion_rules()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        scene = new_scene(temporary)
        session = TutorialSession(scene, address)
        for name, picture in screenshots(session):
            save(folder / f"{name}.png", picture)
        session.close()
        scene.Clear(True)
        scene.kept.clear()


def save(path, picture):
    """Save an image without the two least significant bits, which are invisible and compress badly in a noisy CT."""
    Image.fromarray(picture & 0xFC).save(path, optimize=True)


def _addVolume(scene, phantom):
    image = vtk.vtkImageData()
    image.SetDimensions(*phantom.image.shape)
    image.GetPointData().SetScalars(numpy_to_vtk(phantom.image.transpose(2, 1, 0).ravel(), deep=True))
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "TorsoPhantom")
    volume.SetAndObserveImageData(image)
    volume.SetSpacing(*phantom.spacing)
    volume.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    extent = np.multiply(np.subtract(phantom.image.shape, 1), phantom.spacing)
    volume.SetOrigin(*(extent / 2 * (1, 1, -1)))
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(400, 60)
    return volume


def _barred(picture, name):
    bar = np.tile(np.array(BARS[name], np.uint8), (_BAR, picture.shape[1], 1))
    return np.vstack([bar, picture])


def _beside(left, right):
    return np.hstack([left, np.full((left.shape[0], _GAP, 3), 60, np.uint8), right])


def _below(top, bottom):
    return np.vstack([top, np.full((_GAP, top.shape[1], 3), 60, np.uint8), bottom])


if __name__ == "__main__":
    with local_server("--model", "demo", "--log-level", "warning") as server:
        write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER, server)
