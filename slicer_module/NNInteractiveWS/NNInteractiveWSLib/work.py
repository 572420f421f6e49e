"""What is worked on: the segments of one segmentation, on one volume, as the session changes them."""

from dataclasses import dataclass, field
from typing import Any

from nninteractive_ws import Box
from nninteractive_ws.masks import diff
from nninteractive_ws.messages import Reset

from . import sceneState
from .labelmaps import Labelmaps
from .prompts import Prompts
from .segments import Segments
from .sparse import SparseMask, bricks

#: A closed surface is made again when its segment has been quiet for so long.
QUIET_S = 0.5
#: How much of a segment's opacity in the slice views a preview has.
_PREVIEW = 0.3
#: On the display node, while a segment shows a preview: what its opacity is otherwise.
_OPACITY = "NNInteractiveWS.opacity."


@dataclass
class _Unwritten:
    """``mask``: the session's, which may go on changing. ``parts``: what is to be written, by brick; ``room``: a box
    around what may be set there. ``undoing``: see Segments.apply."""

    mask: Any
    parts: dict = field(default_factory=dict)
    room: Any = None
    undoing: bool = False


class Work:
    """``volume`` and ``segmentation``: nodes of ``scene``."""

    def __init__(self, scene, volume, segmentation, editorNode):
        self.scene, self.volume, self.segmentation = scene, volume, segmentation
        self.labelmaps = Labelmaps(segmentation, volume)
        self.segments = Segments(self.labelmaps, editorNode)
        self.prompts = Prompts(scene, segmentation, volume)
        self.prompts.forgetUnanswered()
        self._unwritten: dict[str, _Unwritten] = {}
        self._selected = None
        self._touched = {}  # when a segment was written last, where its surface is old
        for name in self.labelmaps.ids():
            self.showAsPreview(name, False)  # the scene may have been saved with one

    # ---- the session's changes ----------------------------------------------------------------------------------

    def write(self, name, box, mask, *, undoing=False, preview=False):
        """Show what a segment's mask, bool, of the volume's shape, is in a box: by the next calls of
        :meth:`proceed`."""
        if not self.labelmaps.has(name):
            return
        unwritten = self._unwritten.pop(name, None) or _Unwritten(mask)
        unwritten.mask, unwritten.undoing = mask, unwritten.undoing or undoing
        for index, part in bricks(box):
            unwritten.parts[index] = part.union(unwritten.parts.get(index))
        # All of the volume is said where it is not known what changed: room for that is made bit by bit.
        if box != Box.whole(self.labelmaps.shape):
            unwritten.room = box.union(unwritten.room)
        self._unwritten[name] = unwritten  # after what came before
        self.showAsPreview(name, preview)

    def settle(self, segment):
        """Show one of the session's segments without what requests that have no answer did to it."""
        box = self._around(segment)
        if box is not None:
            self.write(segment.name, box, segment.composed(), undoing=True)

    def unwritten(self, name=None):
        """Whether the scene does not show all yet, of a segment or of any."""
        return bool(self._unwritten) if name is None else name in self._unwritten

    def proceed(self, now, more=lambda: True):
        """Go on writing, a brick at a time, as long as ``more()``."""
        while self._unwritten:
            name, unwritten = next(iter(self._unwritten.items()))
            if unwritten.room is not None:
                self.labelmaps.reserve(name, unwritten.room)
            _index, part = unwritten.parts.popitem()
            if not unwritten.parts:
                del self._unwritten[name]
            mask = unwritten.mask[part.slices]
            for written in self.segments.apply(name, part, mask, undoing=unwritten.undoing):
                self._touched[written] = now
            if not more():
                return

    def showAsPreview(self, name, preview):
        """A preview is paler in the slice views than a result."""
        display = self.segmentation.GetDisplayNode()
        if display is None or preview == (display.GetAttribute(_OPACITY + name) is not None):
            return
        if preview:
            opacity = display.GetSegmentOpacity2DFill(name)
            display.SetAttribute(_OPACITY + name, str(opacity))
            display.SetSegmentOpacity2DFill(name, _PREVIEW * opacity)
        else:
            display.SetSegmentOpacity2DFill(name, float(display.GetAttribute(_OPACITY + name)))
            display.SetAttribute(_OPACITY + name, None)

    def show(self, name):
        """Who prompts in a hidden segment wants to see what comes of it."""
        display = self.segmentation.GetDisplayNode()
        if display is not None and not display.GetSegmentVisibility(name):
            display.SetSegmentVisibility(name, True)

    def select(self, segmentID):
        """This segment, or none, is the one that is worked on."""
        self._selected = segmentID
        self.prompts.select(segmentID)

    def touchedByHand(self, name):
        """Whether a segment has changes made by hand that the session does not know of, or may have."""
        return not self.unwritten(name) and self.segments.touchedByHand(name)

    def lookForHandEdits(self, more):
        """Look at the selected segment, as long as ``more()``, before somebody waits for it."""
        if self._selected is not None and self.labelmaps.has(self._selected) and not self.unwritten():
            self.segments.lookForHandEdits(self._selected, more)

    def refreshSurface(self, now):
        """Make one surface again that is old and whose segment is quiet; whether there was one."""
        for name, touched in self._touched.items():
            if now - touched > QUIET_S:
                del self._touched[name]
                self.labelmaps.refreshSurface(name)
                return True
        return False

    def syncMarks(self, segment):
        """Let the marks tell the history of one of the session's segments."""
        resets = [n for n, step in enumerate(segment.steps) if isinstance(step.request, Reset)]
        first = resets[-1] + 1 if resets else 0
        self.prompts.sync(segment.name, first, len(segment.steps), len(segment.undone))

    def forget(self, name):
        """A segment is gone, with its prompts."""
        self._unwritten.pop(name, None)
        self.segments.forget(name)
        self.prompts.forget(name)
        self._touched.pop(name, None)

    # ---- what the scene keeps -----------------------------------------------------------------------------------

    def store(self, journal, unanswered):
        """Keep the prompts, and what they took from whom, in the scene. ``unanswered``: segments of the session whose
        masks are previews."""
        previews = {s.name: self._preview(s) for s in unanswered}
        books = self.segments.books
        sceneState.store(self.scene, self.segmentation, self.volume, journal, books, previews)

    def _preview(self, segment):
        box = self._around(segment)
        if box is None:
            return SparseMask()
        return SparseMask.of(diff(segment.composed()[box.slices], segment.mask[box.slices], box.start))

    def _around(self, segment):
        """A box outside which a segment of the session is empty, as is what the scene shows of it; None: all is."""
        box = self.segments.bounds(segment.name)
        if segment.extent is not None:
            box = segment.extent.union(box)
        return None if box is None else box.clip(self.labelmaps.shape)

    def keptJournal(self):
        """The journal that the scene keeps, or None; the books are taken up with it. Raises BadJournal."""
        kept = sceneState.load(self.scene, self.segmentation, self.volume, self.labelmaps.shape)
        if kept is None:
            return None
        journal, self.segments.books = kept
        return journal

    def forgetPrompts(self):
        """Begin anew with the segments as they are."""
        sceneState.remove(self.scene, self.segmentation, self.volume)
        self.prompts.forgetAnswered()
        self.segments.books.clear()
