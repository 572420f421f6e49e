"""The tutorial's pictures, from a session of the real logic with a real server and its embedded model, on the phantom.

python slicer_module/tests/pictures.py [FOLDER]     writes slicer_module/Screenshots, or FOLDER

The views are drawn by Slicer's own displayable managers (rendering.py). The panel's picture is made by
widget/panel_picture.py.
"""

from pathlib import Path
import sys
import tempfile
import time

import conftest  # finds the rest
from desk import Desk
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation import user
from nninteractive_ws.server.local import local_server
from NNInteractiveWSLib.work import QUIET_S
import numpy as np
from PIL import Image
from rendering import Views
import vtk
from vtk.util.numpy_support import numpy_to_vtk

FOLDER = Path(__file__).parents[1] / "Screenshots"
#: As a user names and colours them.
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


class Story:
    """What is told: a user at a desk with the phantom and four views."""

    def __init__(self, scene, address):
        self.phantom = make_phantom()
        self.views = Views(scene, scene.kept[0], SIZE)
        self.volume = _addVolume(scene, self.phantom)
        self.views.show(self.volume)
        self.desk = Desk(scene, address)
        self.desk.logic.selectVolume(self.volume)

    def close(self):
        self.desk.logic.close()
        self.views.close()

    def begin(self, organ):
        """A new segment, and its middle in all slices."""
        self.desk.use(self.volume, organ)
        segmentation = self.desk.logic.segmentation.GetSegmentation()
        segmentation.GetSegment(self.desk.logic.segmentID).SetColor(*COLORS[organ])
        middle = user.middle(self.phantom.mask(organ))
        self.look(*middle)
        return np.array(middle)

    def look(self, *voxel):
        self._at = self.desk.at(*voxel)
        self.views.jump(self._at)

    def zoom(self, factor):
        """Show so much less in the axial view, around where the slices meet; 1: all of it."""
        view = self.views.slices["Red"]
        view.fit()
        width, height, depth = view.node.GetFieldOfView()
        view.node.SetFieldOfView(width / factor, height / factor, depth)
        if factor > 1:
            view.node.JumpSliceByCentering(*self._at)

    def click(self, voxel, positive=True):
        self.desk.click(*voxel, positive=positive)

    def draw(self, kind, path, positive=True):
        """A scribble or a lasso in the axial view, through voxels."""
        add = {"scribble": self.desk.logic.addScribble, "lasso": self.desk.logic.addLasso}[kind]
        view = self.views.slices["Red"].node
        assert add(view, [self.desk.at(*voxel) for voxel in path], positive), self.desk.logic.status

    def correct(self, organ, prompts):
        """Click into the middle of what is wrong, so many times."""
        for _ in range(prompts):
            voxel, positive = user.correction(self.phantom.mask(organ), self.desk.mask())
            self.click(voxel, positive)

    def throughWrong(self, organ, k):
        """A stroke through the largest part of an axial slice that the segment has in excess, from front to back."""
        i, j = np.nonzero(user.largest_part((self.desk.mask() & ~self.phantom.mask(organ))[:, :, k]))
        across, along = np.polyfit(j, i, 2), np.linspace(j.min(), j.max(), 20)
        return [(np.polyval(across, at), at, k) for at in along]

    def untilPreview(self):
        """Wait for a preview, and let the views show it."""
        desk = self.desk
        desk.wait(lambda: any(isinstance(e, events.MaskDelta) and not e.final for e in desk.logic.poll(0)))
        desk.logic._work.proceed(0.0)

    def surfaces(self):
        """Wait until all surfaces are there."""
        started = time.monotonic()
        self.desk.wait(lambda: not self.desk.logic._work._touched and time.monotonic() - started > QUIET_S)
        self.desk.logic.segmentation.CreateClosedSurfaceRepresentation()

    def fourUp(self, direction=(0.35, -1.0, -0.25)):
        """The views as Slicer's usual layout has them."""
        self.views.threeD.look(direction, zoom=1.6)
        slices = {name: _barred(view.pixels(), name) for name, view in self.views.slices.items()}
        threeD = _barred(self.views.threeD.pixels(), "3D")
        return _below(_beside(slices["Red"], threeD), _beside(slices["Green"], slices["Yellow"]))

    def axial(self):
        return _barred(self.views.slices["Red"].pixels(), "Red")


def tell(story):
    """Yields the names of the pictures and what they show, (rows, columns, RGB), uint8."""
    story.click(story.begin("right kidney"))
    story.surfaces()
    yield "first-prompt", story.fourUp()

    middle = story.begin("liver")
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    story.draw("lasso", middle + np.stack([22 * np.cos(angles), 18 * np.sin(angles), 0 * angles], axis=1))
    story.untilPreview()
    preview = story.axial()
    story.desk.wait()
    yield "preview", _beside(preview, story.axial())
    story.correct("liver", prompts=3)

    middle = story.begin("spleen")
    story.zoom(2)
    story.click(middle)
    wrong = story.axial()
    story.draw("scribble", story.throughWrong("spleen", middle[2]), positive=False)
    story.desk.wait()
    yield "correction", _beside(wrong, story.axial())
    story.zoom(1)

    for organ in ("stomach", "left kidney", "spine"):
        story.click(story.begin(organ))
        story.correct(organ, prompts=1)
    story.look(*user.middle(story.phantom.mask("spleen")))
    story.surfaces()
    yield "segments", story.fourUp()


def write(folder, address):
    """Write the pictures of the views into a folder, with the server at an address, which has the embedded model."""
    conftest._register()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        scene = conftest.new_scene(temporary)
        story = Story(scene, address)
        for name, picture in tell(story):
            save(folder / f"{name}.png", picture)
        story.close()
        scene.Clear(True)
        scene.kept.clear()


def save(path, picture):
    """Without the last two bits, which nobody sees and which make the noise of a CT large."""
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
