"""What the session computes becomes what the scene shows, and what a hand has changed there is found.

The Segment Editor's settings are honoured: overwrite mode, masking, intensity range; and locked segments. So a segment
may show less than the session's mask, and lose voxels to another one. A :class:`Book` for each segment tells what it
showed last, where that differs from the session's mask, and what it took from whom: a voxel that a segment gives up, by
undo, a later prompt or a cancelled preview, goes back to the segment that it was taken from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from nninteractive_ws.masks import NO_CHANGE, Delta
import numpy as np
import slicer

from .sparse import SparseMask, bricks

#: On a segment: its voxels are never taken by another one, and it takes no prompts.
LOCKED_TAG = "NNInteractiveWS.locked"
#: A version that no labelmap has.
_TO_LOOK_AT = ()


@dataclass
class Book:
    """``known``: what the scene showed after the last change made here. ``withheld``: where that is not the session's
    mask. ``taken``: what the segment shows that belonged to others, by their ids. ``version``: see Labelmaps; what was
    changed by hand up to then is known. ``preview``: where a scene that was saved shows a preview whose result will
    not come."""

    known: SparseMask = field(default_factory=SparseMask)
    withheld: SparseMask = field(default_factory=SparseMask)
    taken: dict = field(default_factory=dict)
    version: tuple | None = None
    preview: SparseMask = field(default_factory=SparseMask)


@dataclass
class _Look:
    """A look for changes by hand that is under way, at a version of the segment: the bricks that were not looked at
    yet, and what was found; the same as a change for the session, when all is looked at."""

    version: tuple
    left: Iterator
    found: SparseMask = field(default_factory=SparseMask)
    change: Delta = NO_CHANGE

    def __post_init__(self):
        self.assembling = self._assemble()

    def _assemble(self):
        self.change = yield from self.found.assemble()


class Segments:
    """``labelmaps``: the segments' voxels. ``editorNode``: the vtkMRMLSegmentEditorNode whose settings count, or None
    for its defaults (all other segments are overwritten, editing is allowed everywhere)."""

    def __init__(self, labelmaps, editorNode=None):
        self.labelmaps, self.editorNode = labelmaps, editorNode
        self.books: dict[str, Book] = {}
        self._looks: dict[str, _Look] = {}

    def apply(self, segmentID, box, mask, *, undoing=False):
        """Show a change of the session's mask of a segment: ``mask`` is what it is now in ``box``, bool.

        What did not change in the session is left alone, also where the scene shows something else.
        ``undoing``: voxels may be given up where masking would not allow it. Returns the ids of the segments whose
        voxels were written.
        """
        written = {}
        for _index, part in bricks(box):
            written |= dict.fromkeys(self._applyInBrick(segmentID, part, mask[part.within(box).slices], undoing))
        return list(written)

    def lookForHandEdits(self, segmentID, more=lambda: True):
        """Look for what the scene shows and was not written here, as long as ``more()``; whether all is looked at.
        Takes no time unless the segment's labelmap was touched."""
        version = self.labelmaps.version(segmentID)
        look = self._looks.get(segmentID)
        if self._book(segmentID).version == version:
            return True
        if look is None or look.version != version:
            look = self._looks[segmentID] = _Look(version, self._partsToLookAt(segmentID))
        for part in look.left:
            look.found.set(part, self.labelmaps.read(segmentID, part) ^ self._book(segmentID).known.read(part))
            if not more():
                return False
        for _ in look.assembling:
            if not more():
                return False
        if look.change.box is None:
            self._looked(segmentID)
        return True

    def changedByHand(self, segmentID):
        """Where the scene shows something else than was written here: a SparseMask, or None. See
        :meth:`lookForHandEdits`, by which it can be looked for in small parts before."""
        self.lookForHandEdits(segmentID)
        look = self._looks.get(segmentID)
        return None if look is None else look.found

    def flipsByHand(self, segmentID):
        """The same as a nninteractive_ws.masks.Delta, until it is accepted: it was made meanwhile."""
        return self._looks[segmentID].change

    def touchedByHand(self, segmentID):
        """Whether the segment has, or for all that is known yet may have, changes made by hand."""
        book = self._book(segmentID)
        isEmpty = book.known.bounds() is None and self.labelmaps.extent(segmentID) is None
        return not isEmpty and book.version != self.labelmaps.version(segmentID)

    def acceptByHand(self, segmentID, change):
        """The session's mask is going to have this change that was made by hand: it is not to be written again."""
        book = self._book(segmentID)
        self._looked(segmentID)
        for box, flips in change.parts():
            book.known.flip(box, flips)
            for taken in book.taken.values():
                taken.clear(box, flips)

    def refuseByHand(self, segmentID, change):
        """The session did not take an accepted change after all: it is found again."""
        book = self._book(segmentID)
        for box, flips in change.parts():
            book.known.flip(box, flips)
        book.version = None

    def expect(self, segmentID, mask, extent):
        """Begin with a session's mask that the scene shows already, but for what the book withholds; what else differs
        was changed by hand. ``mask``: bool, of the volume's shape, empty outside ``extent``, a box or None."""
        book = self._book(segmentID)
        self._looks.pop(segmentID, None)
        book.known, preview, book.preview = SparseMask(), book.preview, SparseMask()
        if extent is not None:
            book.known.write(extent, mask[extent.slices])
        for differing in (book.withheld, preview):
            for box, flips in differing.parts():
                book.known.flip(box, flips)
        book.version = None
        if (shown := preview.delta().box) is not None:
            self.apply(segmentID, shown, mask[shown.slices], undoing=True)

    def forget(self, segmentID):
        """The segment is not there any more, or the session begins anew with it."""
        self.books.pop(segmentID, None)
        self._looks.pop(segmentID, None)
        for book in self.books.values():
            book.taken.pop(segmentID, None)

    def mask(self, segmentID, box):
        """The session's mask in a box, as far as it has been shown here."""
        book = self._book(segmentID)
        return book.known.read(box) ^ book.withheld.read(box)

    def bounds(self, segmentID):
        """A box outside which nothing of the session's mask has been shown or withheld here, or None."""
        known, withheld = self._book(segmentID).known.bounds(), self._book(segmentID).withheld.bounds()
        return known if withheld is None else withheld.union(known)

    def locked(self, segmentID):
        segment = self.labelmaps.segmentation.GetSegment(segmentID)
        return segment is not None and segment.HasTag(LOCKED_TAG)

    # ---- writing ------------------------------------------------------------------------------------------------

    def _book(self, segmentID):
        return self.books.setdefault(segmentID, Book())

    def _partsToLookAt(self, segmentID):
        extent, bounds = self.labelmaps.extent(segmentID), self._book(segmentID).known.bounds()
        region = extent if bounds is None else bounds.union(extent).clip(self.labelmaps.shape)
        return iter(()) if region is None else (part for _index, part in bricks(region))

    def _looked(self, segmentID):
        self._looks.pop(segmentID, None)
        self._book(segmentID).version = self.labelmaps.version(segmentID)

    def _applyInBrick(self, segmentID, box, mask, undoing):
        book = self._book(segmentID)
        mask, before = np.asfortranarray(mask), book.known.read(box)
        flips = before ^ book.withheld.read(box) ^ mask
        if not flips.any():
            return []
        allowed = self._allowed(segmentID, box)
        appearing = flips & mask & ~before & allowed
        leaving = flips & ~mask & before & (allowed | undoing)
        with _VersionsKept(self):
            written = [segmentID, *self._leave(segmentID, box, leaving), *self._appear(segmentID, box, appearing)]
        after = (before | appearing) & ~leaving
        book.known.write(box, after)
        book.withheld.write(box, after ^ mask)
        self._passOn(segmentID, box, flips & ~mask & ~before)
        return written

    def _leave(self, segmentID, box, leaving):
        """The segment gives up voxels; the other segments that get some back."""
        if not leaving.any():
            return
        book, labelmaps = self._book(segmentID), self.labelmaps
        shown = labelmaps.read(segmentID, box) & leaving
        labelmaps.erase(segmentID, box, shown)
        for other, taken in book.taken.items():
            back = taken.read(box) & shown
            taken.clear(box, leaving)
            if back.any() and labelmaps.has(other):
                self._giveBack(other, box, back)
                yield other

    def _appear(self, segmentID, box, appearing):
        """The segment gains voxels; the other segments that lose some."""
        if not appearing.any():
            return
        book, labelmaps = self._book(segmentID), self.labelmaps
        overwritten, sharing, losing = self._overwritten(segmentID), labelmaps.sharing(segmentID), []
        # To overlap one that keeps its voxels, the segment leaves the labelmap, and takes none there.
        stays = set(sharing) <= set(overwritten)
        for other, theirs in labelmaps.owners(box, appearing).items():
            if other not in overwritten:
                continue
            self._take(book, other, box, theirs)
            yield other
            if stays and other in sharing:
                losing.append(other)  # when the segment gets them
            else:
                labelmaps.erase(other, box, theirs)
        labelmaps.add(segmentID, box, appearing, losing)

    def _take(self, book, other, box, theirs):
        book.taken.setdefault(other, SparseMask()).set(box, theirs)
        if other in self.books:
            loser = self.books[other]
            known = loser.known.read(box) & theirs
            loser.known.flip(box, known)
            loser.withheld.flip(box, known)

    def _giveBack(self, other, box, back):
        self.labelmaps.add(other, box, back)
        if other in self.books:
            owner = self.books[other]
            known = back & owner.withheld.read(box) & ~owner.known.read(box)
            owner.known.flip(box, known)
            owner.withheld.flip(box, known)
            if (back & ~owner.known.read(box)).any():
                # The rest was painted by hand, and may have been looked for in vain while it was gone.
                owner.version = _TO_LOOK_AT

    def _passOn(self, segmentID, box, gone):
        """The segment gives up voxels that another one shows: they do not come back to it, but to whom it had them
        from."""
        if not gone.any():
            return
        book = self._book(segmentID)
        for holder, other in self.books.items():
            if segmentID not in other.taken or holder == segmentID:
                continue
            passed = other.taken[segmentID].read(box) & gone
            other.taken[segmentID].clear(box, passed)
            for first, taken in book.taken.items():
                if first != holder and (taken.read(box) & passed).any():
                    other.taken.setdefault(first, SparseMask()).set(box, taken.read(box) & passed)
        for taken in book.taken.values():
            taken.clear(box, gone)

    # ---- the Segment Editor's settings --------------------------------------------------------------------------

    def _overwritten(self, segmentID):
        """The segments that lose the voxels that this one gains."""
        others = [other for other in self.labelmaps.ids() if other != segmentID]
        mode = slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments
        if self.editorNode is not None:
            mode = self.editorNode.GetOverwriteMode()
        if mode == slicer.vtkMRMLSegmentEditorNode.OverwriteNone:
            return []
        display = self.labelmaps.node.GetDisplayNode()
        if mode == slicer.vtkMRMLSegmentEditorNode.OverwriteVisibleSegments and display is not None:
            return [other for other in others if display.GetSegmentVisibility(other)]
        return others

    def _allowed(self, segmentID, box):
        allowed = np.ones(box.shape, bool, order="F")
        for other in self._overwritten(segmentID):
            if self.locked(other):
                allowed &= ~self.labelmaps.read(other, box)
        node = self.editorNode
        if node is None:
            return allowed
        if node.GetMaskMode() != slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere:
            allowed &= self.labelmaps.editable(segmentID, box, node.GetMaskMode(), node.GetMaskSegmentID())
        if node.GetSourceVolumeIntensityMask():
            low, high = node.GetSourceVolumeIntensityMaskRange()
            voxels = self.labelmaps.intensities(box)
            allowed &= False if voxels is None else (voxels >= low) & (voxels <= high)
        return allowed


class _VersionsKept:
    """What is written inside is not taken for a change by hand, in any segment that was unchanged before."""

    def __init__(self, segments):
        self._segments = segments

    def __enter__(self):
        books, labelmaps = self._segments.books, self._segments.labelmaps
        # A segment with which nothing was done yet is empty here, and its labelmap is looked at once.
        self._current = [name for name, book in books.items() if book.version == labelmaps.version(name)]

    def __exit__(self, *_):
        for name in self._current:
            book = self._segments.books[name]
            if book.version is not _TO_LOOK_AT:
                book.version = self._segments.labelmaps.version(name)
