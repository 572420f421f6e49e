"""Writing of the session's masks to the scene's segments, and detection of manual edits in the scene.

Writes respect locked segments and the Segment Editor's settings: overwrite mode, masking and intensity range. A segment
may therefore show less than the session's mask, and may lose voxels to another segment. The :class:`SegmentLedger` of a
segment records its voxels after the last write, their difference from the session's mask, and the voxels taken from
other segments. A voxel that a segment loses by undo, a later prompt or a canceled preview returns to the segment that
it was taken from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from nninteractive_ws.masks import NO_CHANGE, Delta
import numpy as np
import slicer

from .sparseMask import SparseMask, bricks

#: Tag of a locked segment. It accepts no prompts, and other segments never take its voxels.
LOCKED_TAG = "NNInteractiveWS.locked"
#: A version that no labelmap has.
_NO_VERSION = ()


@dataclass
class SegmentLedger:
    """Record of a segment's voxels in the scene.

    ``known``: the segment in the scene after the last write. ``mismatch``: voxels in which ``known`` differs from the
    session's mask. ``taken``: voxels taken from other segments, by segment ID. ``version``: the Labelmaps.version up to
    which manual edits are known. ``preview``: voxels in which a saved scene shows a preview instead of the last result.
    """

    known: SparseMask = field(default_factory=SparseMask)
    mismatch: SparseMask = field(default_factory=SparseMask)
    taken: dict = field(default_factory=dict)
    version: tuple | None = None
    preview: SparseMask = field(default_factory=SparseMask)


@dataclass
class _EditScan:
    """A scan for manual edits of a segment, done in small steps.

    ``version``: the segment's version that is scanned. ``remaining``: the boxes still to scan. ``edits``: the edits
    found so far. ``delta``: the edits as a Delta, complete once ``assembly`` is exhausted.
    """

    version: tuple
    remaining: Iterator
    edits: SparseMask = field(default_factory=SparseMask)
    delta: Delta = NO_CHANGE

    def __post_init__(self):
        self.assembly = self._assemble()

    def _assemble(self):
        self.delta = yield from self.edits.assemble()


class Segments:
    """The segments of a segmentation, with their ledgers.

    ``editorNode``: the vtkMRMLSegmentEditorNode whose settings apply, or None for its defaults. By default, all other
    segments are overwritten and editing is allowed everywhere.
    """

    def __init__(self, labelmaps, editorNode=None):
        self.labelmaps, self.editorNode = labelmaps, editorNode
        self.ledgers: dict[str, SegmentLedger] = {}
        self._scans: dict[str, _EditScan] = {}

    def apply(self, segmentID, box, mask, *, undoing=False):
        """Write a change of the session's mask of a segment. ``mask``: its new voxels in ``box``, bool.

        Voxels that did not change in the session are not written, even if the scene differs there. ``undoing``: whether
        voxels may be removed outside the editable area. Return the IDs of the segments whose voxels were written.
        """
        written = {}
        for _index, part in bricks(box):
            written |= dict.fromkeys(self._applyInBrick(segmentID, part, mask[part.relative_to(box).slices], undoing))
        return list(written)

    def scanForEdits(self, segmentID, mayContinue=lambda: True):
        """Scan a segment for manual edits, as long as ``mayContinue()``. Return whether the scan is complete. It takes
        no time unless the segment's labelmap was modified."""
        version = self.labelmaps.version(segmentID)
        scan = self._scans.get(segmentID)
        if self._ledger(segmentID).version == version:
            return True
        if scan is None or scan.version != version:
            scan = self._scans[segmentID] = _EditScan(version, self._partsToScan(segmentID))
        for part in scan.remaining:
            scan.edits.set(part, self.labelmaps.read(segmentID, part) ^ self._ledger(segmentID).known.read(part))
            if not mayContinue():
                return False
        for _ in scan.assembly:
            if not mayContinue():
                return False
        if scan.delta.box is None:
            self._completeScan(segmentID)
        return True

    def findEdits(self, segmentID):
        """The voxels in which the scene differs from the last write, a SparseMask, or None. The scan can be done before
        in small steps by :meth:`scanForEdits`."""
        self.scanForEdits(segmentID)
        scan = self._scans.get(segmentID)
        return None if scan is None else scan.edits

    def editDelta(self, segmentID):
        """The edits that were found, as a nninteractive_ws.masks.Delta that the scan has assembled. It is available
        until they are accepted."""
        return self._scans[segmentID].delta

    def mayBeEdited(self, segmentID):
        """Whether the segment has manual edits, or may have some because it was modified and not scanned yet."""
        ledger = self._ledger(segmentID)
        isEmpty = ledger.known.bounds() is None and self.labelmaps.extent(segmentID) is None
        return not isEmpty and ledger.version != self.labelmaps.version(segmentID)

    def acceptEdits(self, segmentID, change):
        """Record edits that are sent to the session, so that they are not written to the scene again."""
        ledger = self._ledger(segmentID)
        self._completeScan(segmentID)
        for box, flips in change.parts():
            ledger.known.flip(box, flips)
            for taken in ledger.taken.values():
                taken.clear(box, flips)

    def rejectEdits(self, segmentID, change):
        """Revert :meth:`acceptEdits` after the session rejected the edits, so that the next scan finds them again."""
        ledger = self._ledger(segmentID)
        for box, flips in change.parts():
            ledger.known.flip(box, flips)
        ledger.version = None

    def expect(self, segmentID, mask, extent):
        """Start from a session's mask that the scene shows already, except for the ledger's mismatch. Any other
        difference is a manual edit. ``mask``: bool, of the volume's shape, empty outside ``extent``, a box or None."""
        ledger = self._ledger(segmentID)
        self._scans.pop(segmentID, None)
        ledger.known, preview, ledger.preview = SparseMask(), ledger.preview, SparseMask()
        if extent is not None:
            ledger.known.write(extent, mask[extent.slices])
        for difference in (ledger.mismatch, preview):
            for box, flips in difference.parts():
                ledger.known.flip(box, flips)
        ledger.version = None
        if (bounds := preview.delta().box) is not None:
            self.apply(segmentID, bounds, mask[bounds.slices], undoing=True)

    def forget(self, segmentID):
        """Drop the ledger of a segment that was removed, or with which the session starts again."""
        self.ledgers.pop(segmentID, None)
        self._scans.pop(segmentID, None)
        for ledger in self.ledgers.values():
            ledger.taken.pop(segmentID, None)

    def mask(self, segmentID, box):
        """The session's mask in a box, as far as it was applied to the scene."""
        ledger = self._ledger(segmentID)
        return ledger.known.read(box) ^ ledger.mismatch.read(box)

    def bounds(self, segmentID):
        """A box outside which :meth:`mask` and the segment in the scene are empty, or None if all of both is empty."""
        known, mismatch = self._ledger(segmentID).known.bounds(), self._ledger(segmentID).mismatch.bounds()
        return known if mismatch is None else mismatch.union(known)

    def locked(self, segmentID):
        segment = self.labelmaps.segmentation.GetSegment(segmentID)
        return segment is not None and segment.HasTag(LOCKED_TAG)

    # ---- writing ------------------------------------------------------------------------------------------------

    def _ledger(self, segmentID):
        return self.ledgers.setdefault(segmentID, SegmentLedger())

    def _partsToScan(self, segmentID):
        extent, bounds = self.labelmaps.extent(segmentID), self._ledger(segmentID).known.bounds()
        region = extent if bounds is None else bounds.union(extent).clip(self.labelmaps.shape)
        return iter(()) if region is None else (part for _index, part in bricks(region))

    def _completeScan(self, segmentID):
        self._scans.pop(segmentID, None)
        self._ledger(segmentID).version = self.labelmaps.version(segmentID)

    def _applyInBrick(self, segmentID, box, mask, undoing):
        ledger = self._ledger(segmentID)
        mask, before = np.asfortranarray(mask), ledger.known.read(box)
        flips = before ^ ledger.mismatch.read(box) ^ mask
        if not flips.any():
            return []
        allowed = self._allowed(segmentID, box)
        added = flips & mask & ~before & allowed
        removed = flips & ~mask & before & (allowed | undoing)
        with _OwnWrites(self):
            written = [segmentID, *self._remove(segmentID, box, removed), *self._add(segmentID, box, added)]
        after = (before | added) & ~removed
        ledger.known.write(box, after)
        ledger.mismatch.write(box, after ^ mask)
        self._reassign(segmentID, box, flips & ~mask & ~before)
        return written

    def _remove(self, segmentID, box, removed):
        """Remove voxels from a segment. Yield the IDs of the segments to which some are returned."""
        if not removed.any():
            return
        ledger, labelmaps = self._ledger(segmentID), self.labelmaps
        shown = labelmaps.read(segmentID, box) & removed
        labelmaps.erase(segmentID, box, shown)
        for other, taken in ledger.taken.items():
            returned = taken.read(box) & shown
            taken.clear(box, removed)
            if returned.any() and labelmaps.has(other):
                self._returnVoxels(other, box, returned)
                yield other

    def _add(self, segmentID, box, added):
        """Add voxels to a segment. Yield the IDs of the segments that lose some."""
        if not added.any():
            return
        ledger, labelmaps = self._ledger(segmentID), self.labelmaps
        overwritten, sharing, losing = self._overwritten(segmentID), labelmaps.sharing(segmentID), []
        # If it overlaps a segment that keeps its voxels, Slicer moves it to another labelmap and overwrites none here.
        staysInLabelmap = set(sharing) <= set(overwritten)
        for other, voxels in labelmaps.owners(box, added).items():
            if other not in overwritten:
                continue
            self._recordTaken(ledger, other, box, voxels)
            yield other
            if staysInLabelmap and other in sharing:
                losing.append(other)  # these voxels are overwritten by labelmaps.add below
            else:
                labelmaps.erase(other, box, voxels)
        labelmaps.add(segmentID, box, added, losing)

    def _recordTaken(self, ledger, other, box, voxels):
        """Record voxels that a segment takes from another one."""
        ledger.taken.setdefault(other, SparseMask()).set(box, voxels)
        if other in self.ledgers:
            otherLedger = self.ledgers[other]
            known = otherLedger.known.read(box) & voxels
            otherLedger.known.flip(box, known)
            otherLedger.mismatch.flip(box, known)

    def _returnVoxels(self, other, box, voxels):
        """Return voxels to the segment that they were taken from."""
        self.labelmaps.add(other, box, voxels)
        if other in self.ledgers:
            otherLedger = self.ledgers[other]
            known = voxels & otherLedger.mismatch.read(box) & ~otherLedger.known.read(box)
            otherLedger.known.flip(box, known)
            otherLedger.mismatch.flip(box, known)
            if (voxels & ~otherLedger.known.read(box)).any():
                # The rest are manual edits, which a scan may have missed while they were overwritten.
                otherLedger.version = _NO_VERSION

    def _reassign(self, segmentID, box, removed):
        """Reassign voxels that the session removed from a segment while another segment shows them. They will return to
        the segment from which the first one had taken them."""
        if not removed.any():
            return
        ledger = self._ledger(segmentID)
        for holder, other in self.ledgers.items():
            if segmentID not in other.taken or holder == segmentID:
                continue
            voxels = other.taken[segmentID].read(box) & removed
            other.taken[segmentID].clear(box, voxels)
            for origin, taken in ledger.taken.items():
                if origin != holder and (taken.read(box) & voxels).any():
                    other.taken.setdefault(origin, SparseMask()).set(box, taken.read(box) & voxels)
        for taken in ledger.taken.values():
            taken.clear(box, removed)

    # ---- the Segment Editor's settings --------------------------------------------------------------------------

    def _overwritten(self, segmentID):
        """The IDs of the segments that lose the voxels added to this one."""
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


class _OwnWrites:
    """Context for writes of this module, so that scans do not mistake them for manual edits. Segments with unscanned
    modifications keep these."""

    def __init__(self, segments):
        self._segments = segments

    def __enter__(self):
        ledgers, labelmaps = self._segments.ledgers, self._segments.labelmaps
        # A segment without a ledger is assumed to be empty, and is scanned once.
        self._current = [name for name, ledger in ledgers.items() if ledger.version == labelmaps.version(name)]

    def __exit__(self, *_):
        for name in self._current:
            ledger = self._segments.ledgers[name]
            if ledger.version is not _NO_VERSION:
                ledger.version = self._segments.labelmaps.version(name)
