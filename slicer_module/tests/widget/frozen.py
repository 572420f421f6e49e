"""How long Slicer's window stands still: the gaps between two beats of a timer that should come every 5 ms.

    python slicer_module/tests/widget/frozen.py

A volume of 134 MB is sent, and meanwhile prompts are given in a segment beside eight others; then a large part of the
segment is painted by hand, undone and redone. Once through this module's panel; and once, in the same run, as an
extension does it that waits: the whole image, each answer, and a whole labelmap for each mask, on the main thread.
The server computes on the same processors. What the views need to draw is not in it: nothing is drawn here.
"""

from functools import partial
from pathlib import Path
import sys
import tempfile
import threading
import time

if __name__ == "__main__":
    sys.path += [str(Path(__file__).parents[2] / "NNInteractiveWS"), str(Path(__file__).parents[1])]
    import pythonqt

    pythonqt.load()
    import slicer_application

    slicer_application.install()

from nninteractive_ws import Box, connect
from nninteractive_ws.demo.phantom import ORGANS, make_phantom
from nninteractive_ws.server.local import local_server
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.labelmaps import Labelmaps, makeSurfacesQuick
from NNInteractiveWSLib.logic import Logic
from NNInteractiveWSLib.widget import Panel
import numpy as np
import qt
from rich.console import Console
import slicer

UI_FILE = Path(__file__).parents[2] / "NNInteractiveWS" / "Resources" / "UI" / "NNInteractiveWS.ui"
SHAPE = (512, 512, 256)
EVERY_MS = 5
_PAINTED = Box((160, 160, 40), (340, 340, 220))  # by hand, in one stroke


class Beats:
    """``gaps``: milliseconds between the beats of a timer, which runs from the beginning."""

    def __init__(self):
        self.gaps = []
        self._last = None
        self._timer = qt.QTimer()
        self._timer.setTimerType(qt.Qt.PreciseTimer)
        self._timer.connect("timeout()", self._beat)
        self._timer.start(EVERY_MS)

    def _beat(self):
        now = time.perf_counter()
        if self._last is not None:
            self.gaps.append(1000 * (now - self._last))
        self._last = now

    def without(self, work):
        """Do something that does not count; what it returns."""
        try:
            return work()
        finally:
            self._last = None

    def stop(self):
        self._timer.stop()


def run_loop(until, within=180.0):
    """Let Qt's own loop run until something is so. Raises TimeoutError."""
    loop, end = qt.QEventLoop(), time.monotonic() + within
    check = qt.QTimer()
    check.connect("timeout()", lambda: loop.quit() if until() or time.monotonic() > end else None)
    check.start(20)
    loop.exec_()
    check.stop()
    if not until():
        raise TimeoutError


def make_image():
    """A CT as large as SHAPE says, int16 (i, j, k), and voxels inside of some organs."""
    phantom = make_phantom(seed=1)
    tiles = [-(-n // m) for n, m in zip(SHAPE, phantom.image.shape, strict=True)]
    image = np.tile(phantom.image, tiles)[tuple(slice(n) for n in SHAPE)].astype(np.int16)
    image += np.random.default_rng(0).integers(-8, 8, SHAPE, np.int16)  # no two bricks are the same
    inside = [np.argwhere(phantom.labels == ORGANS[name]) for name in ("liver", "spleen", "left kidney", "stomach")]
    return image, [tuple(int(n) for n in found[len(found) // 2]) for found in inside]


def fill_scene(image):
    """The volume and a segmentation with nine segments, of which the last is empty."""
    volume = slicer.util.addVolumeFromArray(image.transpose(2, 1, 0))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    maps = Labelmaps(node, volume)
    for n in range(8):
        start = 150 + 12 * n
        name = node.GetSegmentation().AddEmptySegment("")
        box = Box((start, start, start - 110), (start + 50, start + 50, start - 60))
        maps.add(name, box, np.ones(box.shape, bool))
    return volume, node, node.GetSegmentation().AddEmptySegment("")


class _Panel:
    """The module's panel on a server, with the last segment of a scene selected."""

    def __init__(self, address, image):
        self.volume, self.node, self.name = fill_scene(image)
        self._root = slicer.util.loadUI(str(UI_FILE))
        slicer.app.showModule(self._root)
        editor = slicer.qMRMLSegmentEditorWidget()
        editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
        self.logic = Logic(slicer.mrmlScene, lambda address: True, editorNode=editor.mrmlSegmentEditorNode())
        self._panel = Panel(slicer.util.childWidgetVariables(self._root), editor, self.logic)
        self.logic.setServer(address)
        editor.setSourceVolumeNode(self.volume)
        editor.setSegmentationNode(self.node)
        editor.setCurrentSegmentID(self.name)
        self._panel.enter()

    def point(self, voxel):
        self.do(lambda: self.logic.addPoint(geometry.ijkToWorld(self.volume, voxel)))

    def do(self, command):
        assert command(), self.logic.status
        run_loop(lambda: not self.logic.busy)

    def paint(self, box):
        Labelmaps(self.node, self.volume).add(self.name, box, np.ones(box.shape, bool))

    def close(self):
        self._panel.close()
        self.logic.close()


def through_the_panel(address, image, points):
    """The gaps, in ms, and the kinds of the steps that are left in the end."""
    desk, beats = _Panel(address, image), Beats()
    try:
        for voxel in points:
            desk.point(voxel)
        beats.without(lambda: desk.paint(_PAINTED))
        desk.point(points[0])
        for command in (desk.logic.undo, desk.logic.undo, desk.logic.redo):
            desk.do(command)
        run_loop(lambda: not desk.logic.active)
        segment = desk.logic.session.core.segments[desk.name]
        np.testing.assert_array_equal(Labelmaps(desk.node, desk.volume).read(desk.name, Box.whole(SHAPE)), segment.mask)
        return beats.gaps, [type(step.request).__name__ for step in segment.steps]
    finally:
        beats.stop()
        desk.close()


def waiting(address, image, points):
    """The same where the main thread waits: the gaps."""
    volume, node, name = fill_scene(image)
    beats = Beats()
    with connect(address) as session:
        there = threading.Event()
        session.on("image_progress", lambda event: event.present == event.total and there.set())
        session.set_image(image)
        there.wait()
        segment = session.segment("a")
        painted = partial(_paint, segment)
        prompts = [partial(segment.add_point, voxel) for voxel in points]
        for command in [*prompts, painted, prompts[0], segment.undo, segment.undo, segment.redo]:
            command()
            slicer.util.updateSegmentBinaryLabelmapFromArray(segment.mask.T.astype(np.uint8), node, name, volume)
            run_loop(lambda: True)
    beats.stop()
    return beats.gaps


def surfaces():
    """CPU seconds for the closed surface of a large and wrinkled segment: by Slicer's default, and as this module lets
    it be made."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    volume = slicer.util.addVolumeFromArray(np.zeros((200, 200, 200), np.uint8))
    grid = np.indices((180, 180, 180))
    mask = (sum((g - 90) ** 2 for g in grid) < 85**2) & (sum(np.sin(g / 6) for g in grid) < 1.2)
    name = node.GetSegmentation().AddEmptySegment("")
    Labelmaps(node, volume).add(name, Box((10, 10, 10), (190, 190, 190)), mask)
    return _surface(node), _surface(node, makeSurfacesQuick)


def _surface(node, choose=lambda segmentation: None):
    choose(node.GetSegmentation())
    node.RemoveClosedSurfaceRepresentation()
    started = time.process_time()
    node.CreateClosedSurfaceRepresentation()
    return time.process_time() - started


def _paint(segment):
    painted = segment.mask.copy()
    painted[_PAINTED.slices] = True
    segment.set_mask(painted)


def in_words(gaps):
    return (
        f"{np.median(gaps):.1f} ms in the middle, {np.percentile(gaps, 99):.1f} for 99 %, {max(gaps):.0f} the longest"
    )


def main():
    with tempfile.TemporaryDirectory() as folder, local_server("--model", "demo", "--log-level", "warning") as address:
        application = slicer_application.Application(Path(folder) / "settings")
        application.start()
        image, points = make_image()
        ours, steps = through_the_panel(address, image, points)
        theirs = waiting(address, image, points)
        usual, quick = surfaces()
        application.quit()
    console = Console()
    console.print(f"Gaps between beats that are due every {EVERY_MS} ms; {', '.join(steps)} are left of what was done.")
    console.print(f"through the panel:          {in_words(ours)}")
    console.print(f"waiting on the main thread: {in_words(theirs)}")
    console.print(f"The longest gap is {max(theirs) / max(ours):.0f} times as long when waiting.")
    console.print(
        f"A large closed surface takes {quick:.2f} s of CPU time, {usual:.2f} s by Slicer's default: "
        f"{usual / quick:.1f} times as long."
    )


if __name__ == "__main__":
    main()
