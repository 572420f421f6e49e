"""Mouse input in the views: conversion of clicks and drags to world coordinates.

While a tool is in use, it handles the left button in the slice views. All other input (other buttons, the wheel,
modifier keys and plain moves) keeps its usual effect. In the 3-D views, all input keeps its usual effect, and a click
with the point tool also picks a point.
"""

import contextlib

import numpy as np
import qt
import vtk

from .geometry import xyToWorld

#: Line width of the trail that a drag draws until its mark is shown.
_TRAIL_WIDTH = 2  # pixels
#: Distance beyond which a press in a 3-D view is a rotation and no longer a click.
_CLICK_TOLERANCE = 3  # pixels


class _Filter(qt.QObject):
    """Event filter of one view. ``handle(event)`` returns whether to stop the event."""

    def __init__(self, handle):
        qt.QObject.__init__(self)
        self._handle = handle

    def eventFilter(self, watched, event):
        return self._handle(event)


class ViewTool:
    """Mouse tool in the views of a layout manager.

    ``tool``: point, box, scribble, lasso or None. ``onDrawn(tool, sliceNode, points)`` is called with the world
    coordinates of each click or drag in a slice view. ``onPicked(point, normal)`` is called with the result of
    :func:`pick` for each click of the point tool in a 3-D view.
    """

    def __init__(self, layoutManager, onDrawn, onPicked):
        self._layoutManager, self._onDrawn, self._onPicked = layoutManager, onDrawn, onPicked
        self.tool = None
        self.color = (1.0, 1.0, 1.0)
        self._watched = []
        self._sliceViews = []
        self._cursor = None
        self._installed = False
        self._stroke = None
        self._pressed = None  # pixel of a press in a 3-D view

    def install(self):
        """Start to handle events in all views, including those of later layouts."""
        self.remove()
        self._layoutManager.connect("layoutChanged(int)", self._onLayoutChanged)
        self._installed = True
        self._watchViews()

    def remove(self):
        if self._installed:
            self._layoutManager.disconnect("layoutChanged(int)", self._onLayoutChanged)
            self._installed = False
        self._unwatchViews()

    def _onLayoutChanged(self, _layout):
        self._unwatchViews()
        self._watchViews()

    def _watchViews(self):
        layout = self._layoutManager
        for name in layout.sliceViewNames():
            view = layout.sliceWidget(name).sliceView()
            self._watch(view, self._onEvent)
            self._sliceViews.append(view)
        for i in range(layout.threeDViewCount):
            self._watch(layout.threeDWidget(i).threeDView(), self._onThreeDEvent)
        if self._cursor is not None:
            self._showCursor(self._cursor)

    def setCursor(self, cursor):
        """Set the cursor of the slice views. None restores the usual one, unless the cursor is not of this tool."""
        if cursor is not None or self._cursor is not None:
            self._cursor = cursor
            self._showCursor(cursor)

    def releaseCursor(self):
        """Leave the cursor of the slice views to the Segment Editor, which has set its own."""
        self._cursor = None

    def _showCursor(self, cursor):
        cursor = qt.QCursor() if cursor is None else cursor
        for view in self._sliceViews:
            with contextlib.suppress(ValueError):  # as in _unwatchViews
                view.setViewCursor(cursor)
                view.setDefaultViewCursor(cursor)  # after the mouse was over a markup

    def _unwatchViews(self):
        self.abandon()
        if self._cursor is not None:
            self._showCursor(None)
        self._sliceViews.clear()
        for target, watching in self._watched:
            with contextlib.suppress(ValueError):  # PythonQt's error if the view was deleted with its layout
                target.removeEventFilter(watching)
        self._watched.clear()

    def _watch(self, view, handle):
        watching = _Filter(lambda event: handle(view, event))
        target = view.VTKWidget()
        target.installEventFilter(watching)
        self._watched.append((target, watching))

    @property
    def drawing(self):
        """Whether a drag is in progress."""
        return self._stroke is not None

    def abandon(self):
        """Cancel a drag in progress. Return whether there was one."""
        if self._stroke is None:
            return False
        stroke, self._stroke = self._stroke, None
        with contextlib.suppress(ValueError):  # as in _unwatchViews
            stroke.erase()
        return True

    def _onEvent(self, view, event):
        kind = event.type()
        if kind == qt.QEvent.MouseButtonDblClick and self.tool == "point":
            return _isPlainLeft(event)  # place one point only, and do not maximize the view
        if kind in (qt.QEvent.MouseButtonPress, qt.QEvent.MouseButtonDblClick):
            return self._onPress(view, event)
        if self._stroke is None or self._stroke.view is not view:
            return False
        if kind == qt.QEvent.MouseMove:
            self._stroke.extend(_pixel(view, event))
            return True
        if kind == qt.QEvent.MouseButtonRelease and event.button() == qt.Qt.LeftButton:
            self._stroke.extend(_pixel(view, event))
            self._finish()
            return True
        return False

    def _onPress(self, view, event):
        if self.tool is None or not _isPlainLeft(event):
            return False
        self.abandon()
        self._stroke = _Stroke(view, self.tool, self.color)
        self._stroke.extend(_pixel(view, event))
        return True

    def _onThreeDEvent(self, view, event):
        """Pick a point at a click, and pass all events on to the view. A click is recognized only when the button is
        released."""
        kind = event.type()
        if kind == qt.QEvent.MouseButtonPress:
            self._pressed = _pixel(view, event) if self.tool == "point" and _isPlainLeft(event) else None
        elif self._pressed is None or kind not in (qt.QEvent.MouseMove, qt.QEvent.MouseButtonRelease):
            return False
        elif np.hypot(*np.subtract(_pixel(view, event), self._pressed)) > _CLICK_TOLERANCE:
            self._pressed = None
        elif kind == qt.QEvent.MouseButtonRelease:
            pressed, self._pressed = self._pressed, None
            self._onPicked(*pick(view, pressed))
        return False

    def _finish(self):
        stroke = self._stroke
        self.abandon()
        sliceNode = stroke.view.mrmlSliceNode()
        self._onDrawn(stroke.tool, sliceNode, [xyToWorld(sliceNode, *pixel) for pixel in stroke.pixels()])


class _Stroke:
    """A drag in a slice view, and its trail. Pixels count from the lower left corner, as XY of a slice node does."""

    def __init__(self, view, tool, color):
        self.view, self.tool = view, tool
        self._path = []
        self._points, self._lines = vtk.vtkPoints(), vtk.vtkPolyData()
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputData(self._lines)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetColor(*color)
        self._actor.GetProperty().SetLineWidth(_TRAIL_WIDTH)
        self._renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
        self._renderer.AddViewProp(self._actor)

    def extend(self, pixel):
        if self._path and self._path[-1] == pixel:
            return
        self._path.append(pixel)
        if self.tool != "point":
            self._draw()

    def pixels(self):
        """The path. For a point, it is the first pixel, and for a box, two opposite corners."""
        if self.tool == "point":
            return self._path[:1]
        return [self._path[0], self._path[-1]] if self.tool == "box" else self._path

    def erase(self):
        self._renderer.RemoveViewProp(self._actor)
        self.view.scheduleRender()

    def _draw(self):
        outline = self._path
        if self.tool == "box":
            (left, bottom), (right, top) = self._path[0], self._path[-1]
            outline = [(left, bottom), (right, bottom), (right, top), (left, top)]
        closed = outline if self.tool == "scribble" else [*outline, outline[0]]
        self._points.Reset()
        line = vtk.vtkCellArray()
        line.InsertNextCell(len(closed))
        for x, y in closed:
            line.InsertCellPoint(self._points.InsertNextPoint(x, y, 0))
        self._lines.SetPoints(self._points)
        self._lines.SetLines(line)
        self._points.Modified()
        self.view.scheduleRender()


def pick(view, pixel):
    """Pick the point shown at a pixel of a 3-D view. Return its world coordinates and the surface normal, both (3,).

    The normal is None on a slice. Both are None if nothing is shown at the pixel.
    """
    picker = vtk.vtkCellPicker()
    picker.SetTolerance(0)  # pick nothing beside the pixel
    if not picker.Pick(*pixel, 0, view.renderWindow().GetRenderers().GetFirstRenderer()):
        return None, None
    actor = picker.GetActor()
    # Slices are drawn as textured planes.
    onSlice = actor is not None and actor.GetTexture() is not None
    return np.array(picker.GetPickPosition()), None if onSlice else np.array(picker.GetPickNormal())


def _isPlainLeft(event):
    return event.button() == qt.Qt.LeftButton and event.modifiers() == qt.Qt.NoModifier


def _pixel(view, event):
    widget = view.VTKWidget()
    ratio = widget.devicePixelRatioF()
    return round(event.pos().x() * ratio), round(widget.height * ratio) - 1 - round(event.pos().y() * ratio)
