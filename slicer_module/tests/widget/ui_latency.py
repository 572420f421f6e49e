"""Benchmark of the time for which Slicer's window blocks: gaps between the ticks of a timer with an interval of 5 ms.

    python slicer_module/tests/widget/ui_latency.py

A volume of 134 MB is uploaded while prompts are placed in one of nine segments. Then, a large part of the segment is
painted manually, undone and redone. This is done once with this module's panel, and once like an extension that blocks
the main thread during the upload of the whole image, each prediction, and the update of a whole labelmap for each mask.
The server runs on the same CPUs. The time for drawing the views is not included, as nothing is drawn.
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
from nninteractive_ws.server.local_server import local_server
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
_PAINTED = Box((160, 160, 40), (340, 340, 220))  # painted manually in one stroke


class TickGaps:
    """Gaps between the ticks of a timer, in milliseconds."""

    def __init__(self):
        self.gaps = []
        self._last = None
        self._timer = qt.QTimer()
        self._timer.setTimerType(qt.Qt.PreciseTimer)
        self._timer.connect("timeout()", self._onTimeout)
        self._timer.start(EVERY_MS)

    def _onTimeout(self):
        now = time.perf_counter()
        if self._last is not None:
            self.gaps.append(1000 * (now - self._last))
        self._last = now

    def exclude(self, function):
        """Call a function outside the measurement, and return its result."""
        try:
            return function()
        finally:
            self._last = None

    def stop(self):
        self._timer.stop()


def run_loop(until, within=180.0):
    """Run Qt's event loop until a condition holds. Raise TimeoutError after a timeout."""
    loop, end = qt.QEventLoop(), time.monotonic() + within
    check = qt.QTimer()
    check.connect("timeout()", lambda: loop.quit() if until() or time.monotonic() > end else None)
    check.start(20)
    loop.exec_()
    check.stop()
    if not until():
        raise TimeoutError


def make_image():
    """Create a CT with the shape SHAPE, int16 (i, j, k), and voxels inside some organs."""
    phantom = make_phantom(seed=1)
    tiles = [-(-n // m) for n, m in zip(SHAPE, phantom.image.shape, strict=True)]
    image = np.tile(phantom.image, tiles)[tuple(slice(n) for n in SHAPE)].astype(np.int16)
    image += np.random.default_rng(0).integers(-8, 8, SHAPE, np.int16)  # makes all bricks different
    inside = [np.argwhere(phantom.labels == ORGANS[name]) for name in ("liver", "spleen", "left kidney", "stomach")]
    return image, [tuple(int(n) for n in found[len(found) // 2]) for found in inside]


def fill_scene(image):
    """Add the volume and a segmentation with nine segments, of which the last one is empty."""
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
        editor.setMRMLScene(slicer.mrmlScene)
        ui = slicer.util.childWidgetVariables(self._root)
        self._panel = Panel(ui, editor, self.logic)
        self.logic.setServer(address)
        ui.volumeSelector.setCurrentNode(self.volume)
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
    """Measure with the module's panel. Return the gaps in ms, and the types of the steps in the final history."""
    harness, ticks = _Panel(address, image), TickGaps()
    try:
        for voxel in points:
            harness.point(voxel)
        ticks.exclude(lambda: harness.paint(_PAINTED))
        harness.point(points[0])
        for command in (harness.logic.undo, harness.logic.undo, harness.logic.redo):
            harness.do(command)
        run_loop(lambda: not harness.logic.active)
        segment = harness.logic.session.histories[harness.name]
        np.testing.assert_array_equal(
            Labelmaps(harness.node, harness.volume).read(harness.name, Box.whole(SHAPE)), segment.mask
        )
        return ticks.gaps, [type(step.request).__name__ for step in segment.steps]
    finally:
        ticks.stop()
        harness.close()


def blocking_main_thread(address, image, points):
    """Measure with a blocked main thread. Return the gaps in ms."""
    volume, node, name = fill_scene(image)
    ticks = TickGaps()
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
    ticks.stop()
    return ticks.gaps


def surfaces():
    """CPU seconds for the closed surface of a large segment with many folds, with Slicer's default and with this
    module's conversion parameters."""
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


def summary(gaps):
    return f"median {np.median(gaps):.1f} ms, 99th percentile {np.percentile(gaps, 99):.1f} ms, max {max(gaps):.0f} ms"


def main():
    with tempfile.TemporaryDirectory() as folder, local_server("--model", "demo", "--log-level", "warning") as address:
        application = slicer_application.Application(Path(folder) / "settings")
        application.start()
        image, points = make_image()
        ours, steps = through_the_panel(address, image, points)
        theirs = blocking_main_thread(address, image, points)
        usual, quick = surfaces()
        application.quit()
    console = Console()
    console.print(f"Gaps between timer ticks with an interval of {EVERY_MS} ms. Final history: {', '.join(steps)}.")
    console.print(f"through the panel:          {summary(ours)}")
    console.print(f"blocking the main thread:   {summary(theirs)}")
    console.print(f"The longest gap is {max(theirs) / max(ours):.0f} times as long if the main thread is blocked.")
    console.print(
        f"A large closed surface takes {quick:.2f} s of CPU time, and {usual:.2f} s with Slicer's default, "
        f"which is {usual / quick:.1f} times as long."
    )


if __name__ == "__main__":
    main()
