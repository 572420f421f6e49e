"""Marks of prompts: markups nodes that belong to a segment, are saved with the scene, and follow undo and redo.

A mark shows one prompt and cannot be moved. It stores the number of its step in the segment's history. Marks of undone
steps are hidden, and marks of steps that can no longer be redone are removed.
"""

from contextlib import contextmanager

import numpy as np
import vtk

from . import geometry

#: Bright colors, which stand out from those of segments.
POSITIVE = (0.2, 1.0, 0.3)
NEGATIVE = (1.0, 0.2, 0.15)

_PREFIX = "NNInteractiveWS."
_NODES = {
    "point": "vtkMRMLMarkupsFiducialNode",
    # A closed curve would also show its center, and a region of interest would show its depth in the other views.
    "box": "vtkMRMLMarkupsCurveNode",
    "scribble": "vtkMRMLMarkupsCurveNode",
    "lasso": "vtkMRMLMarkupsCurveNode",
}
#: Maximum number of points of a freehand line. More are indistinguishable and slow the views down.
_MAX_POINTS = 200
#: Approximate distance between the glyphs on a negative line.
_GLYPH_SPACING = 10  # voxels
#: Minimum number of glyphs on a short negative line.
_MIN_GLYPHS = 4
#: Points on the edges of a box. Opposite edges have different numbers. Otherwise, their points coincide in a view from
#: the side, and Slicer would merge them and show the edges in that view.
_POINTS_PER_EDGE = (12, 12, 13, 13)
#: Step number of a prompt without an answer.
_PENDING = -1


class Prompts:
    """The marks of the segments of one segmentation, on one volume."""

    def __init__(self, scene, segmentation, volume):
        self.scene, self.segmentation, self.volume = scene, segmentation, volume
        self._selected = None

    def place(self, kind, segmentID, positive, points, axis=None):
        """Add a mark for a pending prompt, and return its node.

        ``kind``: point, box, scribble or lasso. ``points``: the path in voxel coordinates, (n, 3), or the two corners
        of a box. ``axis``: the axis orthogonal to the slice in which a line is drawn, or None for the axis along which
        the points differ least.
        """
        points = np.asarray(points, float)
        axis = int(np.argmin(np.ptp(points, axis=0))) if axis is None else axis
        node = self.scene.CreateNodeByClass(_NODES[kind])
        node.UnRegister(None)
        # Unique, also without special characters: Slicer 5.10 names the files of hidden nodes after them.
        node.SetName(self.scene.GenerateUniqueName(f"{'positive' if positive else 'negative'} {kind}"))
        node.SetHideFromEditors(True)
        node.SetLocked(True)
        for name, value in {"segment": segmentID, "kind": kind, "positive": int(positive)}.items():
            node.SetAttribute(_PREFIX + name, str(value))
        node.SetAttribute(_PREFIX + "number", str(_PENDING))
        # Add the points before the node is in the scene. Otherwise, all views would process each single point.
        if kind == "point":
            self._setPoints(node, points, glyphs=[0])
        else:
            line = _line(kind, points, axis)
            self._setPoints(node, line, glyphs=() if positive else _glyphIndices(line))
            node.SetCurveTypeToLinear()
        if hasattr(node, "SetFixedNumberOfControlPoints"):
            node.SetFixedNumberOfControlPoints(True)
        with _preserveActivePlaceNode(self.scene):
            self.scene.AddNode(node)
        node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())
        node.SetNodeReferenceID(_PREFIX + "segmentation", self.segmentation.GetID())
        node.SetNodeReferenceID(_PREFIX + "volume", self.volume.GetID())
        _setUpDisplay(node, positive)
        if kind != "point":
            _setUpLineDisplay(node, positive, self._halfThickness(axis))
        node.GetDisplayNode().SetVisibility(segmentID == self._selected)
        return node

    def append(self, segmentID, number, node=None):
        """Update the marks after a step was added to the segment's history. Steps that were undone before it are lost.

        ``number``: the step's number, from 0. ``node``: its mark, if it has one.
        """
        for mark in self.marks(segmentID):
            if stepOf(mark) >= number:
                self.remove(mark)
        if node is not None and self.scene.IsNodePresent(node):
            node.SetAttribute(_PREFIX + "number", str(number))

    def remove(self, node):
        """Remove a mark, if it exists, for example that of a failed prompt."""
        if node is not None and self.scene.IsNodePresent(node):
            # Otherwise, the display node would stay in the scene, and the mark in the views until they are redrawn.
            self.scene.RemoveNode(node.GetDisplayNode())
            self.scene.RemoveNode(node)

    def marks(self, segmentID=None):
        """The marks of a segment, or of all segments, in the order of their steps."""
        nodes = [n for kind in set(_NODES.values()) for n in self._nodes(kind)]
        found = [n for n in nodes if n.GetNodeReference(_PREFIX + "segmentation") is self.segmentation]
        found = [n for n in found if segmentID in (None, segmentOf(n))]
        return sorted(found, key=stepOf)

    def select(self, segmentID):
        """Show the marks of this segment only."""
        self._selected = segmentID
        for node in self.marks():
            node.GetDisplayNode().SetVisibility(segmentOf(node) == segmentID and not _undone(node))

    def sync(self, segmentID, first, done, undone):
        """Update the marks of a segment to match its history. Marks of pending prompts do not change.

        Steps from ``first`` up to ``done`` (exclusive) are active, and the next ``undone`` steps can be redone.
        """
        for node in self.marks(segmentID):
            number = stepOf(node)
            if number >= done + undone:
                self.remove(node)
            elif number != _PENDING:
                node.SetAttribute(_PREFIX + "undone", None if first <= number < done else "1")
                node.GetDisplayNode().SetVisibility(segmentID == self._selected and not _undone(node))

    def forget(self, segmentID):
        """Remove the marks of a segment."""
        for node in self.marks(segmentID):
            self.remove(node)

    def forgetAnswered(self):
        """Remove all marks except those of pending prompts."""
        for node in self.marks():
            if stepOf(node) != _PENDING:
                self.remove(node)

    def forgetUnanswered(self):
        """Remove the marks of prompts that were pending when the scene was saved or the session was closed."""
        for node in self.marks():
            if stepOf(node) == _PENDING:
                self.remove(node)

    def updateTransform(self):
        """Put the marks under the volume's parent transform, after it may have changed."""
        for node in self.marks():
            node.SetAndObserveTransformNodeID(self.volume.GetTransformNodeID())

    # ---- internal ----------------------------------------------------------------------------------------------

    def _nodes(self, name):
        nodes = self.scene.GetNodesByClass(name)
        nodes.UnRegister(None)
        # The scene also returns nodes of subclasses, such as closed curves.
        found = [nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())]
        return [n for n in found if n.GetClassName() == name]

    def _setPoints(self, node, points, glyphs):
        """Set the control points of a node. ``glyphs``: indices of the visible points."""
        toLocal = geometry.ijkToLocal(self.volume)
        positions = vtk.vtkPoints()
        positions.SetDataTypeToDouble()
        for point in points:
            positions.InsertNextPoint((toLocal @ [*point, 1.0])[:3])
        # Set all points at once, as each change of one point processes all others. Local coordinates are correct here
        # because the node is not under a transform yet.
        node.SetControlPointPositionsWorld(positions)
        for n in range(len(points)):
            node.SetNthControlPointVisibility(n, n in glyphs)

    def _halfThickness(self, axis):
        """Half the voxel size along an axis, in millimeters. A line is shown up to this distance from its slice."""
        return np.linalg.norm(geometry.ijkToLocal(self.volume)[:3, axis]) / 2


@contextmanager
def _preserveActivePlaceNode(scene):
    """Keep the node to which the user's next markup point is added. Slicer selects each markups node that is added, so
    the user would place points into a hidden mark."""
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    if selection is None:
        yield
        return
    className, nodeID = selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID()
    yield
    selection.SetReferenceActivePlaceNodeClassName(className)
    selection.SetReferenceActivePlaceNodeID(nodeID)


def _line(kind, points, axis):
    """The line that marks a prompt, (n, 3), in the center plane of its slice. The line of a box encloses its voxels."""
    if kind == "box":
        u, v = (a for a in range(3) if a != axis)
        low, high = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
        corners = np.repeat(low[None], 4, axis=0)
        corners[1:3, u], corners[2:, v] = high[u], high[v]
        edges = zip(corners, np.roll(corners, -1, axis=0), _POINTS_PER_EDGE, strict=True)
        line = np.vstack([np.linspace(a, b, n, endpoint=False) for a, b, n in edges])
    else:
        line = points[:: -(-len(points) // _MAX_POINTS)].copy()
    line[:, axis] = np.floor(points[:, axis].mean() + 0.5)
    return line if kind == "scribble" else np.vstack([line, line[:1]])


def _glyphIndices(line):
    """The indices of the points of a negative line that show a glyph."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    count = max(_MIN_GLYPHS, round(along[-1] / _GLYPH_SPACING) + 1)
    return {int(np.abs(along - at).argmin()) for at in np.linspace(0.0, along[-1], count)}


def segmentOf(node):
    """The ID of the segment that a mark belongs to."""
    return node.GetAttribute(_PREFIX + "segment")


def stepOf(node):
    """The number of the step that a mark belongs to, or -1 while its prompt is pending."""
    return int(node.GetAttribute(_PREFIX + "number"))


def _undone(node):
    return node.GetAttribute(_PREFIX + "undone") is not None


def _setUpDisplay(node, positive):
    """Set the color of a mark, and show points as a plus or a minus."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    color = POSITIVE if positive else NEGATIVE
    display.SetColor(*color)
    display.SetSelectedColor(*color)
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetGlyphType(display.ThickCross2D if positive else display.Dash2D)
    display.SetGlyphScale(3.0)


def _setUpLineDisplay(node, positive, halfThickness):
    """Show a positive line as a plain line, and a negative one as a thinner line with glyphs."""
    display = node.GetDisplayNode()
    display.SetGlyphType(display.Diamond2D)
    display.SetGlyphScale(1.5)
    display.SetCurveLineSizeMode(display.UseLineThickness)
    display.SetLineThickness(0.4 if positive else 0.2)
    display.SetLineColorFadingStart(halfThickness)
    display.SetLineColorFadingEnd(1.01 * halfThickness)
    display.SetHandlesInteractive(False)
    display.SetVisibility3D(False)
