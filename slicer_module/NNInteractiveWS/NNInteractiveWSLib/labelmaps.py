"""The segments of a segmentation node as arrays of a volume's voxels: read, add and erase, box by box.

Several segments may share one labelmap, in which each has a label value of its own; a segment that overlaps others is
moved to a layer of its own by Slicer. Nothing here touches more than the box it is given.
"""

from collections.abc import Sequence
from contextlib import contextmanager

from nninteractive_ws import Box
from nninteractive_ws.masks import tight
import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from . import geometry

BINARY = "Binary labelmap"
SURFACE = "Closed surface"
_Logic = slicer.vtkSlicerSegmentationsModuleLogic
_Resample = slicer.vtkOrientedImageDataResample


class Labelmaps:
    """``node``: the segmentation. ``volume``: whose voxels the boxes and arrays are of."""

    def __init__(self, node, volume):
        self.node, self.volume = node, volume
        self.segmentation = node.GetSegmentation()
        self._frame = None
        self._between = np.eye(4)  # from the volume's coordinates to the segmentation's

    def prepare(self):
        """Let there be labelmaps, also where there were surfaces alone. Raises ValueError where a transform between the
        two nodes is not linear; in what is under way, that they were moved so does not count."""
        if self._linearBetween() is None:
            raise ValueError(
                "Volume and segmentation are under different transforms, one of which is not linear: "
                "put both under the same transform, or harden it."
            )
        if not self.segmentation.GetConversionParameter("Reference image geometry"):
            self.node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        if self.segmentation.GetSourceRepresentationName() != BINARY:
            self.segmentation.CreateRepresentation(BINARY)
            self.segmentation.SetSourceRepresentationName(BINARY)

    @property
    def shape(self):
        image = self.volume.GetImageData()
        return (0, 0, 0) if image is None else image.GetDimensions()

    def has(self, segmentID):
        """Whether there is such a segment."""
        return self.segmentation.GetSegment(segmentID) is not None

    def ids(self):
        """The ids of all segments, in their order."""
        return list(self.segmentation.GetSegmentIDs())

    def version(self, segmentID):
        """What changes whenever the segment's voxels may have changed, and is compared in no time."""
        labelmap = self._labelmap(segmentID)
        if labelmap is None:
            return None
        return labelmap.__this__, labelmap.GetMTime(), self.segmentation.GetSegment(segmentID).GetLabelValue()

    def extent(self, segmentID):
        """A box outside which the segment is empty, or None."""
        return self._extentOf(self._labelmap(segmentID))

    def read(self, segmentID, box):
        """The segment's voxels in a box: bool, of its shape, a copy."""
        labels = self._labels(self._labelmap(segmentID), box)
        return np.zeros(box.shape, bool) if labels is None else labels == self._label(segmentID)

    def owners(self, box, where):
        """The segments that have voxels of ``where``, a mask in the box: by their ids these voxels, bool."""
        found = {}
        for labelmap, ids in self._layers().items():
            labels = self._labels(labelmap, box)
            if labels is None or not (there := (labels != 0) & where).any():
                continue
            for label in np.flatnonzero(np.bincount(labels[there])):
                if label in ids:
                    found[ids[label]] = (labels == label) & there
        return found

    def add(self, segmentID, box, mask, overwritten=()):
        """Let the voxels of ``mask`` belong to the segment too. The segments of these ids lose them, if all that
        share the segment's labelmap (see :meth:`sharing`) are among them; others keep theirs."""
        voxels = self._voxels(segmentID, box)
        if voxels is not None and self._mayTake(segmentID, voxels, mask, overwritten):
            np.copyto(voxels, self._label(segmentID), where=mask, casting="unsafe")
            self._announce(segmentID)
        elif (cut := tight(mask, box.start)).box is not None:
            self._merge(segmentID, cut.box, cut.flips, _Logic.MODE_MERGE_MASK, overwritten)

    def erase(self, segmentID, box, mask):
        """Take the voxels of ``mask`` away from the segment."""
        own = self.read(segmentID, box)
        if not (own & mask).any():
            return
        voxels = self._voxels(segmentID, box)
        if voxels is not None:
            np.copyto(voxels, 0, where=own & mask)
            self._announce(segmentID)
        else:
            # 0 erases and the label keeps; elsewhere the smaller of both would win, so only its own voxels are kept.
            cut = tight(mask, box.start)
            kept = (own & ~mask)[cut.box.within(box).slices]
            self._merge(segmentID, cut.box, kept, _Logic.MODE_MERGE_MIN)

    def reserve(self, segmentID, box):
        """Let there be voxels for all of a box, so that what is written into its parts finds them there."""
        labelmap = self._labelmap(segmentID)
        if self._hasVoxels(labelmap) and self._fits(labelmap):
            room = _boxOf(labelmap.GetExtent()).union(box)
            if room != _boxOf(labelmap.GetExtent()):
                self._grow(labelmap, room)

    def sharing(self, segmentID):
        """The ids of the segments whose voxels are in the same labelmap, of which each voxel has one."""
        labelmap = self._labelmap(segmentID)
        return [other for other in self.ids() if other != segmentID and self._labelmap(other) is labelmap]

    def intensities(self, box):
        """The volume's voxels in a box, a view; None where it has none there, perhaps not any more."""
        return geometry.volumeArray(self.volume)[box.slices] if box.inside(self.shape) else None

    def editable(self, segmentID, box, mode, maskSegmentID):
        """Where the Segment Editor's masking lets the segment be changed: bool, of the box's shape."""
        blocked = slicer.vtkOrientedImageData()
        if not self.node.GenerateEditMask(blocked, mode, self._image(box), segmentID, maskSegmentID or ""):
            raise RuntimeError("The mask for editing could not be made.")
        return _arrayOf(blocked)[box.within(_boxOf(blocked.GetExtent())).slices] == 0

    def refreshSurface(self, segmentID):
        """Make the segment's closed surface again, if it has one: 0.1 to 0.7 s of work for a large one."""
        segment = self.segmentation.GetSegment(segmentID)
        if segment is not None and segment.GetRepresentation(SURFACE) is not None:
            segment.RemoveRepresentation(SURFACE)
            self.segmentation.CreateRepresentation(SURFACE)  # only where it is missing

    # ---- inside -------------------------------------------------------------------------------------------------

    def _labelmap(self, segmentID):
        segment = self.segmentation.GetSegment(segmentID)
        return None if segment is None else segment.GetRepresentation(BINARY)

    def _label(self, segmentID):
        # In a shared labelmap, 1 would be another segment.
        return self.segmentation.GetSegment(segmentID).GetLabelValue()

    def _layers(self):
        """Each labelmap, with the ids of its segments by their label values."""
        layers = {}
        for segmentID in self.ids():
            layers.setdefault(self._labelmap(segmentID), {})[self._label(segmentID)] = segmentID
        return layers

    def _hasVoxels(self, labelmap):
        return labelmap is not None and labelmap.GetPointData().GetScalars() is not None and not labelmap.IsEmpty()

    def _extentOf(self, labelmap):
        if not self._hasVoxels(labelmap):
            return None
        if not self._fits(labelmap):
            return Box.whole(self.shape)
        return _boxOf(labelmap.GetExtent()).clip(self.shape)

    def _labels(self, labelmap, box):
        """The labels in a box, a copy; None where the labelmap has no voxels there."""
        extent = self._extentOf(labelmap)
        common = None if extent is None else extent.intersection(box)
        if common is None:
            return None
        if not self._fits(labelmap):
            labelmap = self._resampled(labelmap, common)
        there = _arrayOf(labelmap)[common.within(_boxOf(labelmap.GetExtent())).slices]
        found = np.zeros(box.shape, there.dtype, order="F")
        found[common.within(box).slices] = there
        return found

    # Slicer's own way to change a segment takes as long as its labelmap is large, and every surface with it. Where the
    # labelmap lies as the volume does, its voxels are written in place, and what Slicer would tell of it is told.

    def _voxels(self, segmentID, box):
        """The labels in a box, to be written; None where that must be left to Slicer."""
        labelmap = self._labelmap(segmentID)
        if not self._hasVoxels(labelmap) or not self._fits(labelmap):
            return None
        if self._label(segmentID) > labelmap.GetScalarTypeMax():
            return None
        self.reserve(segmentID, box)
        return _arrayOf(labelmap)[box.within(_boxOf(labelmap.GetExtent())).slices]

    def _mayTake(self, segmentID, voxels, mask, overwritten):
        """Whether no voxel of the mask is another segment's, but for those that lose them."""
        foreign = (voxels != 0) & (voxels != self._label(segmentID)) & mask
        if not foreign.any():
            return True
        ids = self._layers()[self._labelmap(segmentID)]
        return {ids.get(label) for label in np.flatnonzero(np.bincount(voxels[foreign]))} <= set(overwritten)

    def _announce(self, segmentID):
        self._labelmap(segmentID).GetPointData().GetScalars().Modified()
        self.segmentation.InvokeEvent(self.segmentation.RepresentationModified, segmentID)

    def _grow(self, labelmap, room):
        before = _boxOf(labelmap.GetExtent())
        scalars = labelmap.GetPointData().GetScalars().NewInstance()
        scalars.SetNumberOfTuples(room.voxels)
        voxels = vtk_to_numpy(scalars).reshape(room.shape[::-1]).T
        voxels[...] = 0
        voxels[before.within(room).slices] = _arrayOf(labelmap)
        with self._surfacesKept(self._layers()[labelmap].values()):
            labelmap.SetExtent(_extentOf(room))
            labelmap.GetPointData().SetScalars(scalars)

    def _merge(self, segmentID, box, mask, mode, overwritten=()):
        label = self._label(segmentID)
        image = self._image(box)
        # A wider type would make the whole labelmap wider.
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR if label < 256 else vtk.VTK_SHORT, 1)
        np.multiply(mask, label, out=_arrayOf(image), casting="unsafe")
        with self._surfacesKept([segmentID]):
            extent, losing = image.GetExtent(), list(overwritten)
            if not _Logic.SetBinaryLabelmapToSegment(image, self.node, segmentID, mode, extent, False, losing):
                raise RuntimeError(f"The segment {segmentID} could not be changed.")

    @contextmanager
    def _surfacesKept(self, segmentIDs):
        """Slicer drops or makes a surface again with every change; it is hidden from it, and is old for a moment."""
        segments = [self.segmentation.GetSegment(segmentID) for segmentID in segmentIDs]
        surfaces = [segment.GetRepresentation(SURFACE) for segment in segments]
        for segment, surface in zip(segments, surfaces, strict=True):
            if surface is not None:
                segment.RemoveRepresentation(SURFACE)
        yield
        for segment, surface in zip(segments, surfaces, strict=True):
            if surface is not None:
                segment.AddRepresentation(SURFACE, surface)

    def _image(self, box: Box):
        """An image without voxels that lies where the box does."""
        image = slicer.vtkOrientedImageData()
        image.SetExtent(_extentOf(box))
        image.SetGeometryFromImageToWorldMatrix(_vtkMatrix(self._ijkToSegmentation()))
        return image

    def _lies(self):
        """An image that lies as the volume does. It is asked for often, and made again where something was moved."""
        transforms = [node.GetParentTransformNode() for node in (self.volume, self.node)]
        times = [t.GetTransformToWorldMTime() for t in transforms if t is not None]
        moved = (self.volume.GetMTime(), *transforms, *times)
        if self._frame is None or self._frame[0] != moved:
            self._frame = moved, self._image(Box.whole((1, 1, 1)))
        return self._frame[1]

    def _ijkToSegmentation(self):
        """From the volume's IJK to the segmentation's own coordinates."""
        if (between := self._linearBetween()) is not None:
            self._between = between
        return self._between @ geometry.ijkToLocal(self.volume)

    def _linearBetween(self):
        source, target = self.volume.GetParentTransformNode(), self.node.GetParentTransformNode()
        return np.eye(4) if source is target else geometry.linearBetween(source, target)

    def _fits(self, labelmap):
        return _Resample.DoGeometriesMatch(labelmap, self._lies())

    def _resampled(self, labelmap, box):
        target = slicer.vtkOrientedImageData()
        _Resample.ResampleOrientedImageToReferenceOrientedImage(labelmap, self._image(box), target)
        return target


def makeSurfacesQuick(segmentation):
    """Let a vtkSegmentation's closed surfaces be surface nets that are smoothed as they are made. Slicer's window
    stands still while one is made: for much shorter so, as tests/widget/frozen.py measures."""
    segmentation.SetConversionParameter("Conversion method", "1")
    segmentation.SetConversionParameter("SurfaceNets smoothing", "1")


def _arrayOf(image):
    """The voxels of an image as (i, j, k): a view."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1]).T


def _boxOf(extent: Sequence[int]):
    return Box.from_pairs([(extent[a], extent[a + 1] + 1) for a in (0, 2, 4)])


def _extentOf(box: Box):
    return [n for lo, hi in box.pairs for n in (lo, hi - 1)]


def _vtkMatrix(array):
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(array.ravel().tolist())
    return matrix
