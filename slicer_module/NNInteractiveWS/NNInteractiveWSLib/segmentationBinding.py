"""Binding of a session to the segments of one segmentation, on one volume."""

from dataclasses import dataclass, field
from typing import Any

from nninteractive_ws import Box
from nninteractive_ws.masks import diff
from nninteractive_ws.messages import Reset

from . import sceneState
from .labelmaps import Labelmaps
from .prompts import Prompts
from .segments import Segments
from .sparseMask import SparseMask, bricks

#: Seconds without a change after which the closed surface of a segment is updated.
IDLE_S = 0.5
#: Opacity of a preview in the slice views, relative to that of a result.
_PREVIEW_OPACITY = 0.3
#: Attribute of the display node that keeps the normal opacity of a segment while it shows a preview.
_OPACITY_ATTRIBUTE = "NNInteractiveWS.opacity."


@dataclass
class _PendingWrite:
    """Changes of a segment that the scene does not show yet.

    ``mask``: the session's mask, which may still change. ``parts``: the boxes to write, by brick index. ``bounds``: a
    box around the voxels that may be set. ``undoing``: as in Segments.apply.
    """

    mask: Any
    parts: dict = field(default_factory=dict)
    bounds: Any = None
    undoing: bool = False


class SegmentationBinding:
    """The segments of a segmentation node on a volume node, as the session changes them."""

    def __init__(self, scene, volume, segmentation, editorNode):
        self.scene, self.volume, self.segmentation = scene, volume, segmentation
        self.labelmaps = Labelmaps(segmentation, volume)
        self.segments = Segments(self.labelmaps, editorNode)
        self.prompts = Prompts(scene, segmentation, volume)
        self.prompts.forgetUnanswered()
        self._pendingWrites: dict[str, _PendingWrite] = {}
        self._selected = None
        self._staleSurfaces = {}  # time of the last write to each segment whose closed surface is out of date
        for name in self.labelmaps.ids():
            self.showAsPreview(name, False)  # the scene may have been saved with a preview

    # ---- writing the session's changes --------------------------------------------------------------------------

    def write(self, name, box, mask, *, undoing=False, preview=False):
        """Schedule a write of a box of a segment's mask to the scene, to be done by :meth:`writePending`. ``mask``:
        bool, of the volume's shape."""
        if not self.labelmaps.has(name):
            return
        pending = self._pendingWrites.pop(name, None) or _PendingWrite(mask)
        pending.mask, pending.undoing = mask, pending.undoing or undoing
        for index, part in bricks(box):
            pending.parts[index] = part.union(pending.parts.get(index))
        # The box is the whole volume if the changed region is unknown. The labelmap then grows brick by brick.
        if box != Box.whole(self.labelmaps.shape):
            pending.bounds = box.union(pending.bounds)
        self._pendingWrites[name] = pending  # after the pending writes of other segments
        self.showAsPreview(name, preview)

    def revertPreview(self, segment):
        """Schedule a write of a segment of the session without the effects of unanswered requests."""
        box = self._boundsOf(segment)
        if box is not None:
            self.write(segment.name, box, segment.composed(), undoing=True)

    def hasPendingWrites(self, name=None):
        """Whether the scene does not show the latest mask of a segment, or of any segment, yet."""
        return bool(self._pendingWrites) if name is None else name in self._pendingWrites

    def writePending(self, now, mayContinue=lambda: True):
        """Write one brick after another, as long as ``mayContinue()``."""
        while self._pendingWrites:
            name, pending = next(iter(self._pendingWrites.items()))
            if pending.bounds is not None:
                self.labelmaps.reserve(name, pending.bounds)
            _index, part = pending.parts.popitem()
            if not pending.parts:
                del self._pendingWrites[name]
            mask = pending.mask[part.slices]
            for written in self.segments.apply(name, part, mask, undoing=pending.undoing):
                self._staleSurfaces[written] = now
            if not mayContinue():
                return

    def showAsPreview(self, name, preview):
        """Reduce the opacity of a segment in the slice views while it shows a preview, and restore it afterward."""
        display = self.segmentation.GetDisplayNode()
        if display is None or preview == (display.GetAttribute(_OPACITY_ATTRIBUTE + name) is not None):
            return
        if preview:
            opacity = display.GetSegmentOpacity2DFill(name)
            display.SetAttribute(_OPACITY_ATTRIBUTE + name, str(opacity))
            display.SetSegmentOpacity2DFill(name, _PREVIEW_OPACITY * opacity)
        else:
            display.SetSegmentOpacity2DFill(name, float(display.GetAttribute(_OPACITY_ATTRIBUTE + name)))
            display.SetAttribute(_OPACITY_ATTRIBUTE + name, None)

    def makeVisible(self, name):
        """Make a hidden segment visible, so that the result of a prompt in it is seen."""
        display = self.segmentation.GetDisplayNode()
        if display is not None and not display.GetSegmentVisibility(name):
            display.SetSegmentVisibility(name, True)

    def select(self, segmentID):
        """Select a segment, or None."""
        self._selected = segmentID
        self.prompts.select(segmentID)

    def mayBeEdited(self, name):
        """Whether a segment has, or may have, manual edits that the session does not know of."""
        return not self.hasPendingWrites(name) and self.segments.mayBeEdited(name)

    def scanForEdits(self, mayContinue):
        """Scan the selected segment for manual edits in advance, as long as ``mayContinue()``."""
        if self._selected is not None and self.labelmaps.has(self._selected) and not self.hasPendingWrites():
            self.segments.scanForEdits(self._selected, mayContinue)

    def refreshSurface(self, now):
        """Update one closed surface that is out of date and whose segment is idle. Return whether there was one."""
        for name, written in self._staleSurfaces.items():
            if now - written > IDLE_S:
                del self._staleSurfaces[name]
                self.labelmaps.refreshSurface(name)
                return True
        return False

    def refreshSurfaces(self):
        """Update all closed surfaces that are out of date, before the binding is dropped."""
        if not self.scene.IsClosing():
            for name in self._staleSurfaces:
                self.labelmaps.refreshSurface(name)
            self._staleSurfaces.clear()

    def syncMarks(self, segment):
        """Update the marks of a segment of the session to match its history."""
        resets = [n for n, step in enumerate(segment.steps) if isinstance(step.request, Reset)]
        first = resets[-1] + 1 if resets else 0
        self.prompts.sync(segment.name, first, len(segment.steps), len(segment.undone))

    def forget(self, name):
        """Drop the state and the prompts of a segment that was removed."""
        self._pendingWrites.pop(name, None)
        self.segments.forget(name)
        self.prompts.forget(name)
        self._staleSurfaces.pop(name, None)

    # ---- state in the scene -------------------------------------------------------------------------------------

    def store(self, journal, unanswered):
        """Store the journal and the segment ledgers in the scene. ``unanswered``: segments of the session whose masks
        are previews."""
        previews = {s.name: self._preview(s) for s in unanswered}
        sceneState.store(self.scene, self.segmentation, self.volume, journal, self.segments.ledgers, previews)

    def _preview(self, segment):
        box = self._boundsOf(segment)
        if box is None:
            return SparseMask()
        return SparseMask.of(diff(segment.composed()[box.slices], segment.mask[box.slices], box.start))

    def _boundsOf(self, segment):
        """A box outside which a segment is empty in the session and in the scene, or None if all of it is."""
        box = self.segments.bounds(segment.name)
        if segment.extent is not None:
            box = segment.extent.union(box)
        return None if box is None else box.clip(self.labelmaps.shape)

    def loadJournal(self):
        """Restore the segment ledgers from the scene, and return the journal, or None if the scene has no state. Raise
        BadJournal if the state is invalid."""
        state = sceneState.load(self.scene, self.segmentation, self.volume, self.labelmaps.shape)
        if state is None:
            return None
        journal, self.segments.ledgers = state
        return journal

    def forgetPrompts(self):
        """Discard the prompts and the stored state, and keep the segments as they are."""
        sceneState.remove(self.scene, self.segmentation, self.volume)
        self.prompts.forgetAnswered()
        self.segments.ledgers.clear()
