"""Harness for the tests of the logic: a scene, a logic that is polled, and an image."""

import time

from nninteractive_ws import Box
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.labelmaps import Labelmaps
from NNInteractiveWSLib.logic import Logic
import numpy as np

SHAPE = (72, 60, 48)
WHOLE = Box.whole(SHAPE)
TISSUE = {"A": (20, 20, 20), "B": (50, 40, 30)}


def blobs():
    """Create an image of two blobs in noise, at A and B."""
    rng = np.random.default_rng(5)
    grid = np.indices(SHAPE)
    image = rng.normal(0, 20, SHAPE)
    for center, value in ((TISSUE["A"], 400), (TISSUE["B"], 900)):
        image[sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) < 81] += value
    return image.astype(np.int16)


class LogicHarness:
    """A logic that is polled until it is idle.

    ``asked``: the addresses for which it asked for consent. ``seen``: its events. ``messages``: its status messages.
    """

    def __init__(self, scene, address, **how):
        self.scene, self.asked, self.seen, self.messages = scene, [], [], []
        self.agrees = True
        self.logic = Logic(scene, self._consents, **how)
        self.logic.setServer(address)

    def _consents(self, address):
        self.asked.append(address)
        return self.agrees

    def poll(self):
        self._note_status()  # a poll may overwrite the status of a command
        happened = self.logic.poll()
        self.seen += happened
        self._note_status()
        return happened

    def _note_status(self):
        if self.messages[-1:] != [self.logic.status.message]:
            self.messages.append(self.logic.status.message)

    def wait(self, until=None, timeout=200):
        """Poll until the logic is not busy, or until a condition holds."""
        end = time.monotonic() + timeout
        while not until() if until is not None else self.logic.busy:
            assert time.monotonic() < end, self.logic.status
            if not self.poll():
                time.sleep(0.002)

    def use(self, volume, *names):
        """Select a volume, and add segments. The last one is selected."""
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
        return self.logic.session.histories[name or self.logic.segmentID].mask

    def composed(self):
        """The selected segment's mask in the session without the effects of unanswered requests."""
        return self.logic.session.histories[self.logic.segmentID].composed()

    def check(self, name=None):
        """Assert that the scene, the client and the server have the same mask."""
        name = name or self.logic.segmentID
        np.testing.assert_array_equal(self.shown(name), self.mask(name))
        core = self.logic.session._core
        before = self.mask(name).copy()
        core._request_snapshot(core.segments[name])
        self.wait(lambda: name not in core._stale)
        np.testing.assert_array_equal(self.mask(name), before)

    def marks(self):
        return [n for n in self.logic._binding.prompts.marks() if n.GetDisplayNode().GetVisibility()]


def add_view(scene, volume, axis, through):
    """Add a slice view orthogonal to an axis of a volume."""
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode", f"view{axis}")
    origin = geometry.ijkToWorld(volume, through)
    columns = [geometry.ijkToWorld(volume, np.add(through, step)) - origin for step in np.eye(3)]
    right, up = (columns[a] / np.linalg.norm(columns[a]) for a in range(3) if a != axis)
    for c, column in enumerate((right, up, np.cross(right, up), origin)):
        for r in range(3):
            node.GetSliceToRAS().SetElement(r, c, column[r])
    node.UpdateMatrices()
    return node
