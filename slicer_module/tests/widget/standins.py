"""Stand-ins for the widgets of CTK and of Slicer: Python subclasses of real Qt widgets.

They have the names, properties, methods and signals of the originals as far as the module uses them, and prove no more
than that the module calls them as documented. What they hold is real: nodes in a scene, a slice node's geometry, an
interactor that gets what the mouse does. A ``.ui`` file's custom widgets become these (:class:`UiLoader`).
"""

# ruff: noqa: N801 (the classes have the names of the originals)

import qt
import slicer
import vtk


class qMRMLWidget(qt.QWidget):
    """A widget that is told the scene."""

    #: Signals that carry a VTK object. PythonQt knows in Slicer how to hand these over; here Python does it.
    nodeSignals = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def __init__(self, parent=None):
        qt.QWidget.__init__(self, *(() if parent is None else (parent,)))
        self._scene = None
        self._receivers = {}

    def connect(self, signal, receiver):
        signal = signal.replace(" ", "")
        if signal not in self.nodeSignals:
            return qt.QWidget.connect(self, signal, receiver)
        self._receivers.setdefault(signal, []).append(receiver)
        return True

    def disconnect(self, signal, receiver):
        signal = signal.replace(" ", "")
        if signal not in self.nodeSignals:
            return qt.QWidget.disconnect(self, signal, receiver)
        self._receivers[signal].remove(receiver)
        return True

    def _emit(self, signal, value):
        if not self.signalsBlocked():
            for receiver in list(self._receivers.get(signal, ())):
                receiver(value)

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self._emit("mrmlSceneChanged(vtkMRMLScene*)", scene)


def _noted(name):
    def method(self, *arguments):
        self.calls.append(name)

    return method


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """What the Segment Editor's own choices are: kept, as in Slicer, in a ``vtkMRMLSegmentEditorNode``.

    Its undo is the real one: that of the ``vtkSlicerSegmentEditorLogic``, as in Slicer.
    """

    nodeSignals = (
        *qMRMLWidget.nodeSignals,
        "segmentationNodeChanged(vtkMRMLSegmentationNode*)",
        "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)",
    )
    currentSegmentIDChanged = qt.Signal("QString")

    def __init__(self, parent=None):
        qMRMLWidget.__init__(self, parent)
        self.calls = []  # names of methods that do something in Slicer and nothing here
        self._node = None
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        layout = qt.QVBoxLayout(self)
        self._label = qt.QLabel("Segment Editor", self)
        self._label.enabled = False
        layout.addWidget(self._label)

    def mrmlSegmentEditorNode(self):
        return self._node

    def setMRMLSegmentEditorNode(self, node):
        self._node = node
        self._logic.SetMRMLScene(node.GetScene())
        self._logic.SetSegmentEditorNode(node)

    def segmentationNode(self):
        return self._node and self._node.GetSegmentationNode()

    def setSegmentationNode(self, node):
        if node is not self.segmentationNode():
            self._node.SetAndObserveSegmentationNode(node)
            self._emit("segmentationNodeChanged(vtkMRMLSegmentationNode*)", node)
            self.setCurrentSegmentID(node.GetSegmentation().GetNthSegmentID(0) if node else "")

    def sourceVolumeNode(self):
        return self._node and self._node.GetSourceVolumeNode()

    def setSourceVolumeNode(self, node):
        if node is not self.sourceVolumeNode():
            self._node.SetAndObserveSourceVolumeNode(node)
            self._emit("sourceVolumeNodeChanged(vtkMRMLVolumeNode*)", node)

    def currentSegmentID(self):
        return (self._node and self._node.GetSelectedSegmentID()) or ""

    def setCurrentSegmentID(self, segmentID):
        if segmentID != self.currentSegmentID():
            self._node.SetSelectedSegmentID(segmentID)
            self.currentSegmentIDChanged.emit(segmentID)

    def setMaximumNumberOfUndoStates(self, number):
        self._logic.SetMaximumNumberOfUndoStates(number)

    def _setUndoEnabled(self, enabled):
        if enabled:
            self._logic.ClearUndoState()

    undoEnabled = qt.Property(bool, fget=lambda self: True, fset=lambda self, enabled: self._setUndoEnabled(enabled))

    def saveStateForUndo(self):
        self._logic.SaveStateForUndo()

    def undo(self):
        self._logic.Undo()

    def redo(self):
        self._logic.Redo()

    def activeEffect(self):
        return None

    def setActiveEffectByName(self, name):
        """In Slicer, its button does the same."""
        self._node.SetActiveEffectName(name)

    def setActiveEffect(self, effect):
        """``effect``: None, as there are none here."""
        self._node.SetActiveEffectName("")

    for _name in (
        "setupViewObservations",
        "removeViewObservations",
        "installKeyboardShortcuts",
        "uninstallKeyboardShortcuts",
        "rotateSliceViewsToSegmentation",
        "updateWidgetFromMRML",
    ):
        locals()[_name] = _noted(_name)
    del _name


class ctkCollapsibleButton(qt.QWidget):
    """A headline that hides what is below it."""

    contentsCollapsed = qt.Signal(bool)
    _HEADLINE = 24  # pixels

    def __init__(self, parent=None):
        qt.QWidget.__init__(self, *(() if parent is None else (parent,)))
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, self._HEADLINE, 0, 0)

    text = qt.Property("QString", fget=lambda self: self._text, fset=lambda self, text: self._setText(text))
    collapsed = qt.Property(
        bool, fget=lambda self: self._collapsed, fset=lambda self, collapsed: self._setCollapsed(collapsed)
    )

    def _setText(self, text):
        self._text = text
        self.update()

    def _setCollapsed(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.children():
            if child.isWidgetType():
                child.setVisible(not collapsed)
        self.setMaximumHeight(self._HEADLINE if collapsed else 16777215)
        self.contentsCollapsed.emit(collapsed)

    def mousePressEvent(self, event):
        if event.pos().y() < self._HEADLINE:
            self._setCollapsed(not self._collapsed)

    def showEvent(self, event):
        # children that the .ui file gave it after the property
        for child in self.children():
            if child.isWidgetType() and self._collapsed:
                child.setVisible(False)

    def paintEvent(self, event):
        option = qt.QStyleOptionButton()
        option.initFrom(self)
        option.rect = qt.QRect(0, 0, self.width, self._HEADLINE - 4)
        option.text = ("\u25b8 " if self._collapsed else "\u25be ") + self._text
        painter = qt.QPainter(self)
        self.style().drawControl(qt.QStyle.CE_PushButton, option, painter, self)
        painter.end()


class ctkPathLineEdit(qt.QWidget):
    """A path, written or chosen."""

    currentPathChanged = qt.Signal("QString")
    showHistoryButton = qt.Property(bool, fget=lambda self: False, fset=lambda self, shown: None)

    def __init__(self, parent=None):
        qt.QWidget.__init__(self, *(() if parent is None else (parent,)))
        self._line, button = qt.QLineEdit(self), qt.QToolButton(self)
        button.text = "..."
        self._line.connect("textChanged(QString)", self.currentPathChanged.emit)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._line)
        layout.addWidget(button)

    currentPath = qt.Property(
        "QString", fget=lambda self: self._line.text, fset=lambda self, path: setattr(self._line, "text", path)
    )


class ctkMessageBox(qt.QMessageBox):
    """A question to the user, answered by the test: ``answers`` has what is pressed next, ``asked`` what was said."""

    answers = []  # noqa: RUF012 (of all boxes; an Application begins with none)
    asked = []  # noqa: RUF012
    dontShowAgainVisible = False
    dontShowAgainSettingsKey = ""

    def exec_(self):
        assert self.answers, f"nobody answers: {self.text}"
        self.asked.append(self.text)
        return self.answers.pop(0)


class VTKWidget(qt.QWidget):
    """Where a view is drawn (``ctkVTKAbstractView.VTKWidget()``): tells an interactor what the mouse does."""

    _BUTTONS = ((qt.Qt.LeftButton, "Left"), (qt.Qt.RightButton, "Right"), (qt.Qt.MiddleButton, "Middle"))

    def __init__(self, parent):
        qt.QWidget.__init__(self, parent)
        self.mouseTracking = True
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.renderWindow = vtk.vtkRenderWindow()  # it is never drawn into
        self.renderWindow.SetOffScreenRendering(True)
        self.renderWindow.AddRenderer(vtk.vtkRenderer())

    def _tell(self, event, what):
        ratio = self.devicePixelRatioF()
        x, y = round(event.pos().x() * ratio), round(event.pos().y() * ratio)
        modifiers = event.modifiers()
        self.interactor.SetEventInformation(
            x,
            round(self.height * ratio) - 1 - y,  # VTK counts from the bottom
            int(bool(modifiers & qt.Qt.ControlModifier)),
            int(bool(modifiers & qt.Qt.ShiftModifier)),
            chr(0),
            0,
            None,
        )
        self.interactor.InvokeEvent(what)

    def _tellButton(self, event, what):
        for button, name in self._BUTTONS:
            if event.button() == button:
                self._tell(event, f"{name}Button{what}Event")

    def mousePressEvent(self, event):
        self._tellButton(event, "Press")

    def mouseReleaseEvent(self, event):
        self._tellButton(event, "Release")

    def mouseMoveEvent(self, event):
        self._tell(event, "MouseMoveEvent")


class _View(qMRMLWidget):
    """What slice and 3-D views have in common."""

    def __init__(self, node, parent=None):
        qMRMLWidget.__init__(self, parent)
        self.renders = 0  # how often a picture was asked for
        self._node = node
        self._vtkWidget = VTKWidget(self)

    def VTKWidget(self):
        return self._vtkWidget

    def interactor(self):
        return self._vtkWidget.interactor

    def renderWindow(self):
        return self._vtkWidget.renderWindow

    def scheduleRender(self):
        self.renders += 1

    def forceRender(self):
        self.renders += 1

    def resizeEvent(self, event):
        self._vtkWidget.resize(event.size())


class qMRMLSliceView(_View):
    """A slice view: as in Slicer, its size in pixels is what its slice node's XY coordinates count."""

    def mrmlSliceNode(self):
        return self._node

    def resizeEvent(self, event):
        _View.resizeEvent(self, event)
        ratio = self.devicePixelRatioF()
        width, height = round(event.size().width() * ratio), round(event.size().height() * ratio)
        self._node.SetDimensions(width, height, 1)
        self.interactor().SetSize(width, height)


class qMRMLThreeDView(_View):
    """A 3-D view."""

    def mrmlViewNode(self):
        return self._node


class qMRMLSliceWidget(qMRMLWidget):
    """A slice view with the logic that puts volumes into it."""

    def __init__(self, logic, parent=None):
        qMRMLWidget.__init__(self, parent)
        self._logic = logic
        self._view = qMRMLSliceView(logic.GetSliceNode(), self)

    def sliceView(self):
        return self._view

    def sliceLogic(self):
        return self._logic

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def resizeEvent(self, event):
        self._view.resize(event.size())


class qMRMLThreeDWidget(qMRMLWidget):
    """A 3-D view with its bar."""

    def __init__(self, node, parent=None):
        qMRMLWidget.__init__(self, parent)
        self._view = qMRMLThreeDView(node, self)

    def threeDView(self):
        return self._view

    def resizeEvent(self, event):
        self._view.resize(event.size())


class qSlicerLayoutManager(qt.QWidget):
    """The views: Red, Yellow and Green, axial, sagittal and coronal, of 300 x 200 pixels, and one in 3-D."""

    layoutChanged = qt.Signal("int")  # Python's own int would be another type
    tableViewCount = plotViewCount = 0
    _VIEWS = (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal"))

    def __init__(self, scene, applicationLogic):
        qt.QWidget.__init__(self)
        self._grid = qt.QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._scene, self._applicationLogic = scene, applicationLogic
        self._sliceWidgets = {}
        for name, orientation in self._VIEWS:
            self._addSliceView(name, orientation)
        viewNode = scene.AddNewNodeByClass("vtkMRMLViewNode", "View1")
        viewNode.SetLayoutName("1")
        self._threeDWidgets = [self._add(qMRMLThreeDWidget(viewNode, self))]

    def setLayout(self, layout):
        """Another layout: as the larger ones of Slicer, it has a view more."""
        self._addSliceView("Slice4", "Axial")
        self.layoutChanged.emit(layout)

    def _addSliceView(self, name, orientation):
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(self._applicationLogic)
        logic.SetMRMLScene(self._scene)
        logic.AddSliceNode(name)
        logic.GetSliceNode().SetOrientation(orientation)
        self._applicationLogic.GetSliceLogics().AddItem(logic)
        self._sliceWidgets[name] = self._add(qMRMLSliceWidget(logic, self))

    def _add(self, widget):
        widget.setMinimumSize(300, 200)
        n = self._grid.count()
        self._grid.addWidget(widget, n // 2, n % 2)
        return widget

    def sliceViewNames(self):
        return tuple(self._sliceWidgets)

    def sliceWidget(self, name):
        return self._sliceWidgets[name]

    def mrmlSliceLogics(self):
        return self._applicationLogic.GetSliceLogics()

    threeDViewCount = property(lambda self: len(self._threeDWidgets))

    def threeDWidget(self, i):
        return self._threeDWidgets[i]


WIDGETS = {cls.__name__: cls for cls in (qMRMLWidget, qMRMLSegmentEditorWidget)}
CTK_WIDGETS = {cls.__name__: cls for cls in (ctkCollapsibleButton, ctkMessageBox, ctkPathLineEdit)}


_QUiLoader = qt.QUiLoader


class UiLoader(_QUiLoader):
    """Makes the custom widgets of a ``.ui`` file from the stand-ins; Slicer has Designer's plug-ins for that."""

    def load(self, *arguments):
        self._root = None
        widget = _QUiLoader.load(self, *arguments)
        del self._root
        return widget

    def createWidget(self, className, parent=None, name=""):
        standIn = WIDGETS.get(className) or CTK_WIDGETS.get(className)
        if standIn is None:
            return _QUiLoader.createWidget(self, className, parent, name)
        widget = standIn(parent)
        widget.objectName = name
        if parent is None:
            self._root = widget  # without a parent, a widget lives as long as Python knows it
        return widget
