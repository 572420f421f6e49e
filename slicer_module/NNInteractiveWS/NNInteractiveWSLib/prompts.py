"""Prompts as marks in the scene: markups that belong to a segment, are saved with it, and come and go with undo.

A mark tells what was prompted and cannot be moved. Each knows the number of its step in the segment's history: those
of steps that were undone are kept out of sight, and those that can no longer be redone are removed.
"""

import numpy as np
import vtk

from . import geometry

POSITIVE = (0.1, 0.8, 0.2)
NEGATIVE = (0.9, 0.15, 0.1)

_PREFIX = "NNInteractiveWS."
_NODES = {
    "point": "vtkMRMLMarkupsFiducialNode",
    "box": "vtkMRMLMarkupsROINode",
    "scribble": "vtkMRMLMarkupsCurveNode",
    "lasso": "vtkMRMLMarkupsClosedCurveNode",
}
#: More points of a freehand line than can be told apart only make the views slow.
_MOST_POINTS = 200
_WITHOUT_NUMBER = -1


class Prompts:
    """The marks in a scene of the segments of one segmentation, on one volume."""

    def __init__(self, scene, segmentation, volume):
        self.scene, self.segmentation, self.volume = scene, segmentation, volume
        self._selected = None

    def place(self, kind, segmentID, positive, points):
        """Mark a prompt that is on its way: a node. ``kind``: point, box, scribble or lasso. ``points``: its path in
        voxel coordinates, (n, 3); of a box the two corners."""
        node = self.scene.AddNewNodeByClass(_NODES[kind])
        node.SetName(f"{kind} {'+' if positive else '-'}")
        node.SetHideFromEditors(True)
        node.SetLocked(True)
        node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())
        node.SetNodeReferenceID(_PREFIX + "segmentation", self.segmentation.GetID())
        node.SetNodeReferenceID(_PREFIX + "volume", self.volume.GetID())
        for name, value in {"segment": segmentID, "kind": kind, "positive": int(positive)}.items():
            node.SetAttribute(_PREFIX + name, str(value))
        node.SetAttribute(_PREFIX + "number", str(_WITHOUT_NUMBER))
        self._draw(node, kind, np.asarray(points, float))
        node.CreateDefaultDisplayNodes()
        _dress(node, kind, positive)
        node.GetDisplayNode().SetVisibility(segmentID == self._selected)
        return node

    def append(self, segmentID, number, node=None):
        """A step was added to the segment's history as the one of this number, from 0; what was undone before is gone.
        ``node``: its mark, if it has one."""
        for mark in self.marks(segmentID):
            if numberOf(mark) >= number:
                self.scene.RemoveNode(mark)
        if node is not None and self.scene.IsNodePresent(node):
            node.SetAttribute(_PREFIX + "number", str(number))

    def remove(self, node):
        """Remove a mark, of a prompt that failed."""
        if node is not None and self.scene.IsNodePresent(node):
            self.scene.RemoveNode(node)

    def marks(self, segmentID=None):
        """The marks of a segment, or of all, in the order of their steps."""
        nodes = [n for kind in set(_NODES.values()) for n in self._nodes(kind)]
        found = [n for n in nodes if n.GetNodeReference(_PREFIX + "segmentation") is self.segmentation]
        found = [n for n in found if segmentID in (None, segmentOf(n))]
        return sorted(found, key=numberOf)

    def select(self, segmentID):
        """Show the marks of this segment, and of no other one."""
        self._selected = segmentID
        for node in self.marks():
            node.GetDisplayNode().SetVisibility(segmentOf(node) == segmentID and not _undone(node))

    def sync(self, segmentID, first, done, undone):
        """Let the marks tell the history of a segment: steps ``first`` to ``done`` count, ``undone`` more can be done
        again. Marks that have no number yet are left alone."""
        for node in self.marks(segmentID):
            number = numberOf(node)
            if number >= done + undone:
                self.scene.RemoveNode(node)
            elif number != _WITHOUT_NUMBER:
                node.SetAttribute(_PREFIX + "undone", None if first <= number < done else "1")
                node.GetDisplayNode().SetVisibility(segmentID == self._selected and not _undone(node))

    def forget(self, segmentID):
        """Remove the marks of a segment."""
        for node in self.marks(segmentID):
            self.scene.RemoveNode(node)

    def forgetAnswered(self):
        """Remove all marks but those of prompts that are on their way."""
        for node in self.marks():
            if numberOf(node) != _WITHOUT_NUMBER:
                self.scene.RemoveNode(node)

    def forgetUnanswered(self):
        """Remove the marks of prompts that were on their way, when the scene was saved or the session closed."""
        for node in self.marks():
            if numberOf(node) == _WITHOUT_NUMBER:
                self.scene.RemoveNode(node)

    def follow(self):
        """The volume may have been put under another transform."""
        for node in self.marks():
            node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())

    # ---- inside -------------------------------------------------------------------------------------------------

    def _nodes(self, name):
        nodes = self.scene.GetNodesByClass(name)
        nodes.UnRegister(None)
        # A closed curve is a curve too, for the scene.
        found = [nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())]
        return [n for n in found if n.GetClassName() == name]

    def _draw(self, node, kind, points):
        if kind == "box":
            self._drawBox(node, points)
            return
        if kind in ("scribble", "lasso"):
            node.SetCurveTypeToLinear()
            points = points[:: -(-len(points) // _MOST_POINTS)]
        toLocal = geometry.ijkToLocal(self.volume)
        for point in points:
            node.AddControlPoint(vtk.vtkVector3d(*(toLocal @ [*point, 1.0])[:3]))

    def _drawBox(self, node, corners):
        """A box along the volume's axes, around whole voxels."""
        toLocal = geometry.ijkToLocal(self.volume)
        spacing = np.linalg.norm(toLocal[:3, :3], axis=0)
        low, high = corners.min(axis=0) - 0.5, corners.max(axis=0) + 0.5
        frame = vtk.vtkMatrix4x4()
        frame.Identity()
        for r in range(3):
            for c in range(3):
                frame.SetElement(r, c, toLocal[r, c] / spacing[c])
            frame.SetElement(r, 3, (toLocal @ [*((low + high) / 2), 1.0])[r])
        node.SetAndObserveObjectToNodeMatrix(frame)
        node.SetSize(*((high - low) * spacing))


def segmentOf(node):
    """The id of the segment that a mark belongs to."""
    return node.GetAttribute(_PREFIX + "segment")


def numberOf(node):
    """The step that a mark is of; -1 while its prompt is on its way."""
    return int(node.GetAttribute(_PREFIX + "number"))


def _undone(node):
    return node.GetAttribute(_PREFIX + "undone") is not None


def _dress(node, kind, positive):
    display = node.GetDisplayNode()
    colour = POSITIVE if positive else NEGATIVE
    display.SetColor(*colour)
    display.SetSelectedColor(*colour)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetGlyphType(display.StarBurst2D if positive else display.Diamond2D)
    if kind != "point":
        # A line is enough; a dashed one cannot be had, so a negative one is thinner.
        display.SetGlyphScale(0.1)
        display.SetCurveLineSizeMode(display.UseLineDiameter)
        display.SetLineDiameter(1.0 if positive else 0.5)
        display.SetFillVisibility(kind == "lasso")
        display.SetHandlesInteractive(False)
