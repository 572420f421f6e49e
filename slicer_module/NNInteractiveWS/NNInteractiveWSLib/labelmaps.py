"""Access to the segments of a segmentation node as arrays on a volume's voxel grid: read, add and erase, box by box.

Several segments may share one labelmap, in which each has its own label value. Slicer moves a segment that overlaps
others to a separate layer. Functions that take a box access no voxels outside it.
"""

from collections.abc import Sequence
from contextlib import contextmanager

from nninteractive_ws import Box
from nninteractive_ws.masks import to_delta
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
    """The labelmaps of a segmentation node. Boxes and arrays are on the voxel grid of ``volume``."""

    def __init__(self, node, volume):
        self.node, self.volume = node, volume
        self.segmentation = node.GetSegmentation()
        self._reference = None
        self._lastTransform = np.eye(4)  # from the volume's coordinates to the segmentation's

    def prepare(self):
        """Create labelmaps if the segmentation has only surfaces. Raise ValueError if the transform between the nodes
        is not linear. Operations in progress use the last linear transform instead."""
        if self._linearBetween() is None:
            raise ValueError(
                "Volume and segmentation are under different transforms, one of which is not linear. "
                "Put both under the same transform, or harden the nonlinear one."
            )
        if not self.segmentation.GetConversionParameter("Reference image geometry"):
            self.node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume)
        if self.segmentation.GetSourceRepresentationName() != BINARY:
            self.segmentation.CreateRepresentation(BINARY)
            self.segmentation.SetSourceRepresentationName(BINARY)

    def detach(self):
        """Stay with the current vtkSegmentation after the node has got another one, to finish operations in it."""
        node = slicer.vtkMRMLSegmentationNode()
        node.SetScene(self.node.GetScene())  # to find the transform
        node.SetAndObserveTransformNodeID(self.node.GetTransformNodeID())
        node.SetAndObserveSegmentation(self.segmentation)
        self.node = node

    @property
    def shape(self):
        image = self.volume.GetImageData()
        return (0, 0, 0) if image is None else image.GetDimensions()

    def has(self, segmentID):
        """Whether the segment exists."""
        return self.segmentation.GetSegment(segmentID) is not None

    def ids(self):
        """The IDs of all segments, in their order."""
        return list(self.segmentation.GetSegmentIDs())

    def version(self, segmentID):
        """A value that changes whenever the segment's voxels may have changed. Comparison is fast."""
        labelmap = self._labelmap(segmentID)
        if labelmap is None:
            return None
        return labelmap.__this__, labelmap.GetMTime(), self.segmentation.GetSegment(segmentID).GetLabelValue()

    def extent(self, segmentID):
        """A box outside which the segment is empty, or None."""
        return self._extentOf(self._labelmap(segmentID))

    def read(self, segmentID, box):
        """A copy of the segment's voxels in a box, bool."""
        labels = self._labels(self._labelmap(segmentID), box)
        return np.zeros(box.shape, bool) if labels is None else labels == self._label(segmentID)

    def owners(self, box, mask):
        """The segments that overlap a mask in the box. Return the overlap with each, bool, by segment ID."""
        found = {}
        for labelmap, ids in self._layers().items():
            labels = self._labels(labelmap, box)
            if labels is None or not (occupied := (labels != 0) & mask).any():
                continue
            for label in np.flatnonzero(np.bincount(labels[occupied])):
                if label in ids:
                    found[ids[label]] = (labels == label) & occupied
        return found

    def add(self, segmentID, box, mask, overwritten=()):
        """Add the voxels of ``mask`` to the segment. The segments with the IDs ``overwritten`` lose these voxels,
        provided that they include all segments that share the segment's labelmap (:meth:`sharing`). Other segments keep
        their voxels."""
        voxels = self._voxels(segmentID, box)
        if voxels is not None and self._canOverwrite(segmentID, voxels, mask, overwritten):
            np.copyto(voxels, self._label(segmentID), where=mask, casting="unsafe")
            self._notifyModified(segmentID)
        elif (cut := to_delta(mask, box.start)).box is not None:
            self._merge(segmentID, cut.box, cut.flips, _Logic.MODE_MERGE_MASK, overwritten)

    def erase(self, segmentID, box, mask):
        """Remove the voxels of ``mask`` from the segment."""
        own = self.read(segmentID, box)
        if not (own & mask).any():
            return
        voxels = self._voxels(segmentID, box)
        if voxels is not None:
            np.copyto(voxels, 0, where=own & mask)
            self._notifyModified(segmentID)
        else:
            # A minimum with 0 erases a voxel, and a minimum with the label keeps it. In voxels of other segments it
            # would write the smaller label, so only the segment's own voxels are marked as kept.
            cut = to_delta(mask, box.start)
            kept = (own & ~mask)[cut.box.relative_to(box).slices]
            self._merge(segmentID, cut.box, kept, _Logic.MODE_MERGE_MIN)

    def reserve(self, segmentID, box):
        """Extend the segment's labelmap to include a box, so that later writes into parts of it need not extend it."""
        labelmap = self._labelmap(segmentID)
        if self._hasVoxels(labelmap) and self._matchesVolume(labelmap):
            extended = _boxOf(labelmap.GetExtent()).union(box)
            if extended != _boxOf(labelmap.GetExtent()):
                self._grow(labelmap, extended)

    def sharing(self, segmentID):
        """The IDs of the other segments in the same labelmap, in which each voxel belongs to one segment at most."""
        labelmap = self._labelmap(segmentID)
        return [other for other in self.ids() if other != segmentID and self._labelmap(other) is labelmap]

    def intensities(self, box):
        """A view of the volume's voxels in a box, or None if the box is not inside the volume's current image."""
        return geometry.volumeArray(self.volume)[box.slices] if box.inside(self.shape) else None

    def editable(self, segmentID, box, mode, maskSegmentID):
        """The voxels in a box that the Segment Editor's masking allows to change, bool."""
        blocked = slicer.vtkOrientedImageData()
        if not self.node.GenerateEditMask(blocked, mode, self._image(box), segmentID, maskSegmentID or ""):
            raise RuntimeError(f"Slicer could not create the edit mask of segment {segmentID}.")
        return _arrayOf(blocked)[box.relative_to(_boxOf(blocked.GetExtent())).slices] == 0

    def refreshSurface(self, segmentID):
        """Update the segment's closed surface, if it has one. A large one takes 0.1 to 0.7 s."""
        segment = self.segmentation.GetSegment(segmentID)
        if segment is not None and segment.GetRepresentation(SURFACE) is not None:
            segment.RemoveRepresentation(SURFACE)
            self.segmentation.CreateRepresentation(SURFACE)  # only creates missing surfaces

    # ---- internal ----------------------------------------------------------------------------------------------

    def _labelmap(self, segmentID):
        segment = self.segmentation.GetSegment(segmentID)
        return None if segment is None else segment.GetRepresentation(BINARY)

    def _label(self, segmentID):
        # In a shared labelmap, the label 1 may belong to another segment.
        return self.segmentation.GetSegment(segmentID).GetLabelValue()

    def _layers(self):
        """The IDs of the segments in each labelmap, by label value."""
        layers = {}
        for segmentID in self.ids():
            layers.setdefault(self._labelmap(segmentID), {})[self._label(segmentID)] = segmentID
        return layers

    def _hasVoxels(self, labelmap):
        return labelmap is not None and labelmap.GetPointData().GetScalars() is not None and not labelmap.IsEmpty()

    def _extentOf(self, labelmap):
        if not self._hasVoxels(labelmap):
            return None
        if not self._matchesVolume(labelmap):
            return Box.whole(self.shape)
        return _boxOf(labelmap.GetExtent()).clip(self.shape)

    def _labels(self, labelmap, box):
        """A copy of the labels in a box, or None if the labelmap has no voxels in it."""
        extent = self._extentOf(labelmap)
        common = None if extent is None else extent.intersection(box)
        if common is None:
            return None
        if not self._matchesVolume(labelmap):
            labelmap = self._resampled(labelmap, common)
        labels = _arrayOf(labelmap)[common.relative_to(_boxOf(labelmap.GetExtent())).slices]
        found = np.zeros(box.shape, labels.dtype, order="F")
        found[common.relative_to(box).slices] = labels
        return found

    # Slicer's functions to modify a segment process its whole labelmap and update every surface. If the labelmap has
    # the volume's geometry, write its voxels in place and invoke the same events instead.

    def _voxels(self, segmentID, box):
        """A writable view of the labels in a box, or None if only Slicer's functions can write them."""
        labelmap = self._labelmap(segmentID)
        if not self._hasVoxels(labelmap) or not self._matchesVolume(labelmap):
            return None
        if self._label(segmentID) > labelmap.GetScalarTypeMax():
            return None
        self.reserve(segmentID, box)
        return _arrayOf(labelmap)[box.relative_to(_boxOf(labelmap.GetExtent())).slices]

    def _canOverwrite(self, segmentID, voxels, mask, overwritten):
        """Whether all voxels of the mask that belong to other segments belong to segments that may lose them."""
        foreign = (voxels != 0) & (voxels != self._label(segmentID)) & mask
        if not foreign.any():
            return True
        ids = self._layers()[self._labelmap(segmentID)]
        return {ids.get(label) for label in np.flatnonzero(np.bincount(voxels[foreign]))} <= set(overwritten)

    def _notifyModified(self, segmentID):
        self._labelmap(segmentID).GetPointData().GetScalars().Modified()
        self.segmentation.InvokeEvent(self.segmentation.RepresentationModified, segmentID)

    def _grow(self, labelmap, box):
        before = _boxOf(labelmap.GetExtent())
        scalars = labelmap.GetPointData().GetScalars().NewInstance()
        scalars.SetNumberOfTuples(box.voxels)
        voxels = vtk_to_numpy(scalars).reshape(box.shape[::-1]).T
        voxels[...] = 0
        voxels[before.relative_to(box).slices] = _arrayOf(labelmap)
        with self._preserveSurfaces(self._layers()[labelmap].values()):
            labelmap.SetExtent(_extentOf(box))
            labelmap.GetPointData().SetScalars(scalars)

    def _merge(self, segmentID, box, mask, mode, overwritten=()):
        label = self._label(segmentID)
        image = self._image(box)
        # A wider scalar type would convert the whole labelmap.
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR if label < 256 else vtk.VTK_SHORT, 1)
        np.multiply(mask, label, out=_arrayOf(image), casting="unsafe")
        with self._preserveSurfaces([segmentID]):
            extent, losing = image.GetExtent(), list(overwritten)
            if not _Logic.SetBinaryLabelmapToSegment(image, self.node, segmentID, mode, extent, False, losing):
                raise RuntimeError(f"Slicer could not modify segment {segmentID}.")

    @contextmanager
    def _preserveSurfaces(self, segmentIDs):
        """Keep closed surfaces during a change, although they are out of date then. Slicer would remove or update them
        with every change."""
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
        """An image without scalars at the position of the box."""
        image = slicer.vtkOrientedImageData()
        image.SetExtent(_extentOf(box))
        image.SetGeometryFromImageToWorldMatrix(_vtkMatrix(self._ijkToSegmentation()))
        return image

    def _referenceImage(self):
        """An image with the volume's geometry. It is cached until the volume or a transform is modified."""
        transforms = [node.GetParentTransformNode() for node in (self.volume, self.node)]
        times = [t.GetTransformToWorldMTime() for t in transforms if t is not None]
        state = (self.volume.GetMTime(), *transforms, *times)
        if self._reference is None or self._reference[0] != state:
            self._reference = state, self._image(Box.whole((1, 1, 1)))
        return self._reference[1]

    def _ijkToSegmentation(self):
        """The 4 x 4 array from the volume's IJK to the segmentation's local coordinates."""
        if (transform := self._linearBetween()) is not None:
            self._lastTransform = transform
        return self._lastTransform @ geometry.ijkToLocal(self.volume)

    def _linearBetween(self):
        source, target = self.volume.GetParentTransformNode(), self.node.GetParentTransformNode()
        return np.eye(4) if source is target else geometry.linearBetween(source, target)

    def _matchesVolume(self, labelmap):
        return _Resample.DoGeometriesMatch(labelmap, self._referenceImage())

    def _resampled(self, labelmap, box):
        target = slicer.vtkOrientedImageData()
        _Resample.ResampleOrientedImageToReferenceOrientedImage(labelmap, self._image(box), target)
        return target


def makeSurfacesQuick(segmentation):
    """Set a vtkSegmentation to create closed surfaces as surface nets with built-in smoothing. Slicer's window blocks
    while a surface is created, and surface nets take much less time, as tests/widget/ui_latency.py measures."""
    segmentation.SetConversionParameter("Conversion method", "1")
    segmentation.SetConversionParameter("SurfaceNets smoothing", "1")


def _arrayOf(image):
    """A view of an image's voxels, indexed (i, j, k)."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1]).T


def _boxOf(extent: Sequence[int]):
    return Box.from_pairs([(extent[a], extent[a + 1] + 1) for a in (0, 2, 4)])


def _extentOf(box: Box):
    return [n for lo, hi in box.pairs for n in (lo, hi - 1)]


def _vtkMatrix(array):
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(array.ravel().tolist())
    return matrix
