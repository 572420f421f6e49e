"""The mouse in the slice views: clicks and drags become points of the world.

While a tool is in use, the left button is the tool's; everything else (other buttons, the wheel, Shift and moving)
does what it does without it.
"""

import qt
import vtk

from .geometry import xyToWorld

#: What a drag leaves on the screen until the prompt is there.
_TRAIL_WIDTH = 2  # pixels


class _Filter(qt.QObject):
    """Hands the events of one view on; ``handle(event)`` says whether that was all that should come of it."""

    def __init__(self, handle):
        qt.QObject.__init__(self)
        self._handle = handle

    def eventFilter(self, watched, event):
        return self._handle(event)


class ViewTool:
    """``done(tool, sliceNode, points)`` is called with the world points of each click or drag; ``tool``: the name of
    the one in use, of point, box, scribble and lasso, or None."""

    def __init__(self, layoutManager, done):
        self._layoutManager, self._done = layoutManager, done
        self.tool = None
        self.color = (1.0, 1.0, 1.0)
        self._watched = []
        self._stroke = None

    def install(self):
        """Watch the slice views that there are."""
        self.remove()
        for name in self._layoutManager.sliceViewNames():
            view = self._layoutManager.sliceWidget(name).sliceView()
            watching = _Filter(lambda event, view=view: self._onEvent(view, event))
            view.VTKWidget().installEventFilter(watching)
            self._watched.append((view, watching))

    def remove(self):
        self.abandon()
        for view, watching in self._watched:
            view.VTKWidget().removeEventFilter(watching)
        self._watched.clear()

    def abandon(self):
        """Forget a drag that is not finished; whether there was one."""
        if self._stroke is None:
            return False
        self._stroke.erase()
        self._stroke = None
        return True

    def _onEvent(self, view, event):
        kind = event.type()
        if kind == qt.QEvent.MouseButtonPress:
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
        if self.tool is None or event.button() != qt.Qt.LeftButton or event.modifiers() != qt.Qt.NoModifier:
            return False
        self.abandon()
        self._stroke = _Stroke(view, self.tool, self.color)
        self._stroke.extend(_pixel(view, event))
        return True

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


def _pixel(view, event):
    widget = view.VTKWidget()
    ratio = widget.devicePixelRatioF()
    return round(event.pos().x() * ratio), round(widget.height * ratio) - 1 - round(event.pos().y() * ratio)
