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
    """``node``: the segmentation. ``volume``: whose voxels the boxes and arrays are of.

    Raises ValueError, from any method, where a transform between the two nodes is not linear.
    """

    def __init__(self, node, volume):
        self.node, self.volume = node, volume
        self.segmentation = node.GetSegmentation()
        if not self.segmentation.GetConversionParameter("Reference image geometry"):
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        if self.segmentation.GetSourceRepresentationName() != BINARY:
            self.segmentation.CreateRepresentation(BINARY)
            self.segmentation.SetSourceRepresentationName(BINARY)

    @property
    def shape(self):
        return self.volume.GetImageData().GetDimensions()

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
        labelmap = self._labelmap(segmentID)
        if labelmap is None or labelmap.GetPointData().GetScalars() is None or labelmap.IsEmpty():
            return None
        if not self._fits(labelmap):
            return Box.whole(self.shape)
        return _boxOf(labelmap.GetExtent()).clip(self.shape)

    def read(self, segmentID, box):
        """The segment's voxels in a box: bool, of its shape, a copy."""
        extent = self.extent(segmentID)
        common = None if extent is None else extent.intersection(box)
        found = np.zeros(box.shape, bool)
        if common is None:
            return found
        labelmap = self._labelmap(segmentID)
        if not self._fits(labelmap):
            labelmap = self._resampled(labelmap, common)
        value = self.segmentation.GetSegment(segmentID).GetLabelValue()
        voxels = _arrayOf(labelmap)[common.within(_boxOf(labelmap.GetExtent())).slices]
        np.equal(voxels, value, out=found[common.within(box).slices])
        return found

    def add(self, segmentID, box, mask, overwritten=()):
        """Let the voxels of ``mask`` belong to the segment too. The segments of these ids lose them, if all that
        share the segment's labelmap (see :meth:`sharing`) are among them; others keep theirs."""
        cut = tight(mask, box.start)
        if cut.box is not None:
            self._merge(segmentID, cut.box, cut.flips, _Logic.MODE_MERGE_MASK, overwritten)

    def erase(self, segmentID, box, mask):
        """Take the voxels of ``mask`` away from the segment."""
        cut = tight(mask, box.start)
        now = self.read(segmentID, cut.box) if cut.box is not None else cut.flips
        if (now & cut.flips).any():
            # 0 erases and the label keeps; elsewhere the smaller of both would win, so only its own voxels are kept.
            self._merge(segmentID, cut.box, now & ~cut.flips, _Logic.MODE_MERGE_MIN)

    def sharing(self, segmentID):
        """The ids of the segments whose voxels are in the same labelmap, of which each voxel has one."""
        labelmap = self._labelmap(segmentID)
        return [other for other in self.ids() if other != segmentID and self._labelmap(other) is labelmap]

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

    def _merge(self, segmentID, box, mask, mode, overwritten=()):
        # In a shared labelmap, 1 would be another segment.
        label = self.segmentation.GetSegment(segmentID).GetLabelValue()
        image = self._image(box)
        # A wider type would make the whole labelmap wider.
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR if label < 256 else vtk.VTK_SHORT, 1)
        np.multiply(mask, label, out=_arrayOf(image), casting="unsafe")
        with self._surfaceKept(segmentID):
            extent, losing = image.GetExtent(), list(overwritten)
            if not _Logic.SetBinaryLabelmapToSegment(image, self.node, segmentID, mode, extent, False, losing):
                raise RuntimeError(f"The segment {segmentID} could not be changed.")

    @contextmanager
    def _surfaceKept(self, segmentID):
        """Slicer makes a surface again with every change; it is hidden from it, and is old for a moment."""
        segment = self.segmentation.GetSegment(segmentID)
        surface = segment.GetRepresentation(SURFACE)
        if surface is not None:
            segment.RemoveRepresentation(SURFACE)
        yield
        if surface is not None:
            segment.AddRepresentation(SURFACE, surface)

    def _image(self, box: Box):
        """An image without voxels that lies where the box does."""
        image = slicer.vtkOrientedImageData()
        image.SetExtent([n for lo, hi in box.pairs for n in (lo, hi - 1)])
        image.SetGeometryFromImageToWorldMatrix(_vtkMatrix(self._ijkToSegmentation()))
        return image

    def _ijkToSegmentation(self):
        """From the volume's IJK to the segmentation's own coordinates."""
        between = geometry.linearBetween(self.volume.GetParentTransformNode(), self.node.GetParentTransformNode())
        if self.volume.GetParentTransformNode() is self.node.GetParentTransformNode():
            between = np.eye(4)
        if between is None:
            raise ValueError(
                "Volume and segmentation are under different transforms, one of which is not linear: "
                "put both under the same transform, or harden it."
            )
        return between @ geometry.ijkToLocal(self.volume)

    def _fits(self, labelmap):
        return _Resample.DoGeometriesMatch(labelmap, self._image(Box.whole((1, 1, 1))))

    def _resampled(self, labelmap, box):
        target = slicer.vtkOrientedImageData()
        _Resample.ResampleOrientedImageToReferenceOrientedImage(labelmap, self._image(box), target)
        return target


def _arrayOf(image):
    """The voxels of an image as (i, j, k): a view."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1]).T


def _boxOf(extent: Sequence[int]):
    return Box.from_pairs([(extent[a], extent[a + 1] + 1) for a in (0, 2, 4)])


def _vtkMatrix(array):
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(array.ravel().tolist())
    return matrix
