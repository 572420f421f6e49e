"""Prompts as marks in the scene: markups that belong to a segment, are saved with it, and come and go with undo.

A mark tells what was prompted and cannot be moved. Each knows the number of its step in the segment's history: those
of steps that were undone are kept out of sight, and those that can no longer be redone are removed.
"""

import numpy as np
import vtk

from . import geometry

#: Bright, so that they are told apart from segments too.
POSITIVE = (0.2, 1.0, 0.3)
NEGATIVE = (1.0, 0.2, 0.15)

_PREFIX = "NNInteractiveWS."
_NODES = {
    "point": "vtkMRMLMarkupsFiducialNode",
    # A closed curve would show its centre too, a region of interest its depth in the other views.
    "box": "vtkMRMLMarkupsCurveNode",
    "scribble": "vtkMRMLMarkupsCurveNode",
    "lasso": "vtkMRMLMarkupsCurveNode",
}
#: More points of a freehand line than can be told apart only make the views slow.
_MOST_POINTS = 200
#: From one bead of a negative line to the next, about; a short line has some, too.
_BETWEEN_BEADS = 10  # voxels
_FEWEST_BEADS = 4
#: Different for opposite edges: points that fall on each other, seen from the side, Slicer takes for one, and shows the
#: edges there.
_POINTS_PER_EDGE = (12, 12, 13, 13)
_WITHOUT_NUMBER = -1


class Prompts:
    """The marks in a scene of the segments of one segmentation, on one volume."""

    def __init__(self, scene, segmentation, volume):
        self.scene, self.segmentation, self.volume = scene, segmentation, volume
        self._selected = None

    def place(self, kind, segmentID, positive, points, axis=None):
        """Mark a prompt that is on its way: a node. ``kind``: point, box, scribble or lasso. ``points``: its path in
        voxel coordinates, (n, 3); of a box the two corners. ``axis``: across the slice that a line is drawn in; None:
        the one along which its points differ least."""
        points = np.asarray(points, float)
        axis = int(np.argmin(np.ptp(points, axis=0))) if axis is None else axis
        node = self.scene.CreateNodeByClass(_NODES[kind])
        node.UnRegister(None)
        node.SetName(f"{kind} {'+' if positive else '-'}")
        node.SetHideFromEditors(True)
        node.SetLocked(True)
        for name, value in {"segment": segmentID, "kind": kind, "positive": int(positive)}.items():
            node.SetAttribute(_PREFIX + name, str(value))
        node.SetAttribute(_PREFIX + "number", str(_WITHOUT_NUMBER))
        # Before it is in the scene: there, all views would look at each single point.
        if kind == "point":
            self._draw(node, points, glyphs=[0])
        else:
            line = _line(kind, points, axis)
            self._draw(node, line, glyphs=() if positive else _beads(line))
            node.SetCurveTypeToLinear()
        self.scene.AddNode(node)
        node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())
        node.SetNodeReferenceID(_PREFIX + "segmentation", self.segmentation.GetID())
        node.SetNodeReferenceID(_PREFIX + "volume", self.volume.GetID())
        _dress(node, positive)
        if kind != "point":
            _dressLine(node, positive, self._reach(axis))
        node.GetDisplayNode().SetVisibility(segmentID == self._selected)
        return node

    def append(self, segmentID, number, node=None):
        """A step was added to the segment's history as the one of this number, from 0; what was undone before is gone.
        ``node``: its mark, if it has one."""
        for mark in self.marks(segmentID):
            if numberOf(mark) >= number:
                self.remove(mark)
        if node is not None and self.scene.IsNodePresent(node):
            node.SetAttribute(_PREFIX + "number", str(number))

    def remove(self, node):
        """Remove a mark, if there is one: of a prompt that failed, say."""
        if node is not None and self.scene.IsNodePresent(node):
            # Otherwise it would stay in the scene for ever, and in the views until they are drawn anew.
            self.scene.RemoveNode(node.GetDisplayNode())
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
                self.remove(node)
            elif number != _WITHOUT_NUMBER:
                node.SetAttribute(_PREFIX + "undone", None if first <= number < done else "1")
                node.GetDisplayNode().SetVisibility(segmentID == self._selected and not _undone(node))

    def forget(self, segmentID):
        """Remove the marks of a segment."""
        for node in self.marks(segmentID):
            self.remove(node)

    def forgetAnswered(self):
        """Remove all marks but those of prompts that are on their way."""
        for node in self.marks():
            if numberOf(node) != _WITHOUT_NUMBER:
                self.remove(node)

    def forgetUnanswered(self):
        """Remove the marks of prompts that were on their way, when the scene was saved or the session closed."""
        for node in self.marks():
            if numberOf(node) == _WITHOUT_NUMBER:
                self.remove(node)

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

    def _draw(self, node, points, glyphs):
        """``glyphs``: the numbers of the points that are seen; of a line all are there."""
        toLocal = geometry.ijkToLocal(self.volume)
        positions = vtk.vtkPoints()
        positions.SetDataTypeToDouble()
        for point in points:
            positions.InsertNextPoint((toLocal @ [*point, 1.0])[:3])
        # All at once, as each single one is looked at by the others. They are local: there is no transform yet.
        node.SetControlPointPositionsWorld(positions)
        for n in range(len(points)):
            node.SetNthControlPointVisibility(n, n in glyphs)

    def _reach(self, axis):
        """How far from the middle of its slice a line is seen, in millimetres: within the voxels that it is in."""
        return np.linalg.norm(geometry.ijkToLocal(self.volume)[:3, axis]) / 2


def _line(kind, points, axis):
    """The line that marks a prompt, (n, 3), in the middle of the voxels of its slice. Of a box: around its voxels."""
    if kind == "box":
        u, v = (a for a in range(3) if a != axis)
        low, high = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
        corners = np.repeat(low[None], 4, axis=0)
        corners[1:3, u], corners[2:, v] = high[u], high[v]
        edges = zip(corners, np.roll(corners, -1, axis=0), _POINTS_PER_EDGE, strict=True)
        line = np.vstack([np.linspace(a, b, n, endpoint=False) for a, b, n in edges])
    else:
        line = points[:: -(-len(points) // _MOST_POINTS)].copy()
    line[:, axis] = np.floor(points[:, axis].mean() + 0.5)
    return line if kind == "scribble" else np.vstack([line, line[:1]])


def _beads(line):
    """The numbers of the points of a line that beads are at."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    count = max(_FEWEST_BEADS, round(along[-1] / _BETWEEN_BEADS) + 1)
    return {int(np.abs(along - at).argmin()) for at in np.linspace(0.0, along[-1], count)}


def segmentOf(node):
    """The id of the segment that a mark belongs to."""
    return node.GetAttribute(_PREFIX + "segment")


def numberOf(node):
    """The step that a mark is of; -1 while its prompt is on its way."""
    return int(node.GetAttribute(_PREFIX + "number"))


def _undone(node):
    return node.GetAttribute(_PREFIX + "undone") is not None


def _dress(node, positive):
    """A point is a plus or a minus."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    colour = POSITIVE if positive else NEGATIVE
    display.SetColor(*colour)
    display.SetSelectedColor(*colour)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetGlyphType(display.ThickCross2D if positive else display.Dash2D)
    display.SetGlyphScale(3.0)


def _dressLine(node, positive, reach):
    """A positive line is smooth, a negative one is thin and has beads."""
    display = node.GetDisplayNode()
    display.SetGlyphType(display.Diamond2D)
    display.SetGlyphScale(1.5)
    display.SetCurveLineSizeMode(display.UseLineThickness)
    display.SetLineThickness(0.4 if positive else 0.2)
    display.SetLineColorFadingStart(reach)
    display.SetLineColorFadingEnd(1.01 * reach)
    display.SetHandlesInteractive(False)
    display.SetVisibility3D(False)
