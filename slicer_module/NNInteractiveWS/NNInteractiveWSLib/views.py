"""The mouse in the views: clicks and drags become points of the world.

While a tool is in use, the left button in the slice views is the tool's; everything else (other buttons, the wheel,
Shift and moving) does what it does without it. In the 3-D views all of it does, and a click with the point tool is a
point where it hits something.
"""

import numpy as np
import qt
import vtk

from .geometry import xyToWorld

#: What a drag leaves on the screen until the prompt is there.
_TRAIL_WIDTH = 2  # pixels
#: In a 3-D view, a click that moves further rotates it.
_CLICK = 3  # pixels


class _Filter(qt.QObject):
    """Hands the events of one view on; ``handle(event)`` says whether that was all that should come of it."""

    def __init__(self, handle):
        qt.QObject.__init__(self)
        self._handle = handle

    def eventFilter(self, watched, event):
        return self._handle(event)


class ViewTool:
    """``tool``: the name of the one in use, of point, box, scribble and lasso, or None.

    ``done(tool, sliceNode, points)`` is called with the world points of each click or drag in a slice view,
    ``picked(point, normal)`` with each click of the point tool in a 3-D view: see :func:`pick`."""

    def __init__(self, layoutManager, done, picked):
        self._layoutManager, self._done, self._picked = layoutManager, done, picked
        self.tool = None
        self.color = (1.0, 1.0, 1.0)
        self._watched = []
        self._installed = False
        self._stroke = None
        self._pressed = None  # where, in a 3-D view

    def install(self):
        """Watch the views that there are, and those that come with another layout."""
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
            self._watch(layout.sliceWidget(name).sliceView(), self._onEvent)
        for i in range(layout.threeDViewCount):
            self._watch(layout.threeDWidget(i).threeDView(), self._onThreeDEvent)

    def _unwatchViews(self):
        self.abandon()
        for view, watching in self._watched:
            view.VTKWidget().removeEventFilter(watching)
        self._watched.clear()

    def _watch(self, view, handle):
        watching = _Filter(lambda event: handle(view, event))
        view.VTKWidget().installEventFilter(watching)
        self._watched.append((view, watching))

    @property
    def drawing(self):
        """Whether a drag is not finished."""
        return self._stroke is not None

    def abandon(self):
        """Forget a drag that is not finished; whether there was one."""
        if self._stroke is None:
            return False
        self._stroke.erase()
        self._stroke = None
        return True

    def _onEvent(self, view, event):
        kind = event.type()
        if kind == qt.QEvent.MouseButtonDblClick and self.tool == "point":
            return _isPlainLeft(event)  # one point is meant, and no other layout
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
        """Also what becomes a point is left to the view: whether it is a click is known at its end."""
        kind = event.type()
        if kind == qt.QEvent.MouseButtonPress:
            self._pressed = _pixel(view, event) if self.tool == "point" and _isPlainLeft(event) else None
        elif self._pressed is None or kind not in (qt.QEvent.MouseMove, qt.QEvent.MouseButtonRelease):
            return False
        elif np.hypot(*np.subtract(_pixel(view, event), self._pressed)) > _CLICK:
            self._pressed = None
        elif kind == qt.QEvent.MouseButtonRelease:
            pressed, self._pressed = self._pressed, None
            self._picked(*pick(view, pressed))
        return False

    def _finish(self):
        stroke = self._stroke
        self.abandon()
        sliceNode = stroke.view.mrmlSliceNode()
        self._done(stroke.tool, sliceNode, [xyToWorld(sliceNode, *pixel) for pixel in stroke.pixels()])


class _Stroke:
    """A drag in a view, and its trail there. Pixels count from the lower left corner, as XY of a slice node."""

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
        """Of a point and a box only what counts: where it is, and two corners."""
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
    """What is shown at a pixel of a 3-D view: a point of the world, and the normal of the surface there, both (3,). The
    normal is None on a slice that is shown there; both are None where nothing is."""
    picker = vtk.vtkCellPicker()
    picker.SetTolerance(0)  # what is beside the pixel is not meant
    if not picker.Pick(*pixel, 0, view.renderWindow().GetRenderers().GetFirstRenderer()):
        return None, None
    actor = picker.GetActor()
    # Slices are drawn as textures on a plane.
    onSlice = actor is not None and actor.GetTexture() is not None
    return np.array(picker.GetPickPosition()), None if onSlice else np.array(picker.GetPickNormal())


def _isPlainLeft(event):
    return event.button() == qt.Qt.LeftButton and event.modifiers() == qt.Qt.NoModifier


def _pixel(view, event):
    widget = view.VTKWidget()
    ratio = widget.devicePixelRatioF()
    return round(event.pos().x() * ratio), round(widget.height * ratio) - 1 - round(event.pos().y() * ratio)
