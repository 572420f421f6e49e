"""Fakes of the widgets of CTK and of Slicer: Python subclasses of real Qt widgets.

They have the names, properties, methods and signals of the originals as far as the module uses them. They only prove
that the module calls these as documented. Their contents are real: nodes in a scene, the geometry of a slice node, and
an interactor that receives mouse events. :class:`UiLoader` creates them for the custom widgets of a ``.ui`` file.
"""

# ruff: noqa: N801 (the classes have the names of the originals)

import qt
import slicer
import vtk


class qMRMLWidget(qt.QWidget):
    """A widget with a scene."""

    #: Signals with a VTK object as argument. In Slicer, PythonQt passes these; here, Python does.
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


def _recorded(name):
    def method(self, *arguments):
        self.calls.append(name)

    return method


class qMRMLNodeComboBox(qMRMLWidget):
    """Selector of a node of the scene. As in Slicer, without ``noneEnabled`` the first suitable node is selected."""

    nodeSignals = (*qMRMLWidget.nodeSignals, "currentNodeChanged(vtkMRMLNode*)")
    nodeTypes = qt.Property(
        "QStringList", fget=lambda self: self._types, fset=lambda self, types: self._setTypes(types)
    )
    noneEnabled = qt.Property(bool, fget=lambda self: self._none, fset=lambda self, on: setattr(self, "_none", on))
    addEnabled = removeEnabled = qt.Property(bool, fget=lambda self: False, fset=lambda self, on: None)
    showChildNodeTypes = qt.Property(bool, fget=lambda self: self._kin, fset=lambda self, on: setattr(self, "_kin", on))
    selectNodeUponCreation = qt.Property(bool, fget=lambda self: False, fset=lambda self, on: None)

    def __init__(self, parent=None):
        qMRMLWidget.__init__(self, parent)
        self._types, self._none, self._kin = (), False, True
        self._node = None
        self._observers = []
        self._box = qt.QComboBox(self)
        self._box.connect("activated(int)", lambda index: self.setCurrentNode(self._nodes()[index]))
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)

    def setMRMLScene(self, scene):
        for node, tag in self._observers:
            node.RemoveObserver(tag)
        self._observers = []
        qMRMLWidget.setMRMLScene(self, scene)
        if scene is not None:
            events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent)
            self._observers = [(scene, scene.AddObserver(event, self._update)) for event in events]
        self._update()

    def currentNode(self):
        return self._node

    def setCurrentNode(self, node):
        if node is not None and node not in self._nodes():
            node = None
        if node is not self._node:
            self._node = node
            self._update()
            self._emit("currentNodeChanged(vtkMRMLNode*)", node)

    def _setTypes(self, types):
        self._types = tuple(types)
        self._update()

    def _nodes(self):
        if self._scene is None:
            return []
        found = [(kind, node) for kind in self._types for node in slicer.util.getNodesByClass(kind)]
        return [node for kind, node in found if self._kin or node.GetClassName() == kind]

    def _update(self, *_arguments):
        nodes = self._nodes()
        self._box.clear()
        self._box.addItems([node.GetName() for node in nodes])
        if self._node not in nodes:
            self.setCurrentNode(nodes[0] if nodes and not self._none else None)
        self._box.currentIndex = nodes.index(self._node) if self._node is not None else -1


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Segment Editor whose effects have a name and a cursor only.

    As in Slicer, a ``vtkMRMLSegmentEditorNode`` stores its settings. The real ``vtkSlicerSegmentEditorLogic`` changes
    the node and has the undo. What the widget does by itself when the node changes is imitated: see
    ``updateWidgetFromSegmentationNode`` and ``updateWidgetFromSourceVolumeNode`` in Slicer's
    qMRMLSegmentEditorWidget.cxx.
    """

    nodeSignals = (
        *qMRMLWidget.nodeSignals,
        "segmentationNodeChanged(vtkMRMLSegmentationNode*)",
        "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)",
    )
    currentSegmentIDChanged = qt.Signal("QString")

    def __init__(self, parent=None):
        qMRMLWidget.__init__(self, parent)
        self.calls = []  # names of called methods without an effect in this fake
        self._node = self._observer = None
        self._segmentation = self._volume = None  # those that the widget shows
        self._segmentID = self._effect = ""
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        layout = qt.QVBoxLayout(self)
        self._label = qt.QLabel("Segment Editor", self)
        self._label.enabled = False
        layout.addWidget(self._label)
        self._remove = qt.QPushButton("Remove", self)
        self._remove.objectName, self._remove.enabled = "RemoveSegmentButton", False
        self._remove.toolTip = "Remove selected segment(s)"
        self._remove.connect("clicked()", self._logic.RemoveSelectedSegment)
        self._table = qt.QTableWidget(0, 1, self)
        self._table.objectName = "SegmentsTable"
        for part in (self._remove, self._table):
            layout.addWidget(part)

    def setMRMLScene(self, scene):
        self._logic.SetMRMLScene(scene)
        qMRMLWidget.setMRMLScene(self, scene)
        self.updateWidgetFromMRML()

    def mrmlSegmentEditorNode(self):
        return self._node

    def setMRMLSegmentEditorNode(self, node):
        if node is self._node:
            return
        if self._node is not None:
            self._node.RemoveObserver(self._observer)
        self._node = node
        self._logic.SetSegmentEditorNode(node)
        if node is not None:
            self._observer = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self.updateWidgetFromMRML)
        self.updateWidgetFromMRML()

    def segmentationNode(self):
        return self._segmentation

    def segmentationNodeID(self):
        return self._segmentation.GetID() if self._segmentation else ""

    def setSegmentationNode(self, node):
        if node is self._logic.GetSegmentationNode():
            return
        self._logic.SetSegmentationNode(node)
        self.setActiveEffect(None)

    def sourceVolumeNode(self):
        return self._volume

    def setSourceVolumeNode(self, node):
        """Without a segmentation, the logic refuses it."""
        self._logic.SetSourceVolumeNode(node)

    def setSourceVolumeNodeSelectorVisible(self, visible):
        self.calls.append(("setSourceVolumeNodeSelectorVisible", visible))

    def currentSegmentID(self):
        return (self._node and self._node.GetSelectedSegmentID()) or ""

    def setCurrentSegmentID(self, segmentID):
        if self._node is not None:
            self._logic.SetCurrentSegmentID(segmentID)

    def updateWidgetFromMRML(self, *_arguments):
        scene = self._scene
        if scene is None or scene.IsClosing() or scene.IsBatchProcessing() or self._node is None:
            return
        was = self._node.StartModify()
        self._updateFromSegmentation()
        self._updateFromVolume()
        self._updateFromEffect()
        self._node.EndModify(was)
        if self.currentSegmentID() != self._segmentID:
            self._segmentID = self.currentSegmentID()
            self.currentSegmentIDChanged.emit(self._segmentID)
        self._fillTable()

    def _fillTable(self):
        self._remove.enabled = bool(self.currentSegmentID())
        segmentation = self._segmentation and self._segmentation.GetSegmentation()
        names = (
            [segmentation.GetNthSegment(i).GetName() for i in range(segmentation.GetNumberOfSegments())]
            if segmentation
            else []
        )
        self._table.rowCount = len(names)
        for row, name in enumerate(names):
            self._table.setItem(row, 0, qt.QTableWidgetItem(name))

    def _updateFromSegmentation(self):
        segmentation = self._logic.GetSegmentationNode()
        if segmentation is self._segmentation:
            return
        self._segmentation = segmentation
        if segmentation is not None:
            role = segmentation.GetReferenceImageGeometryReferenceRole()
            self._logic.SetSourceVolumeNode(segmentation.GetNodeReference(role))
            segmentation.CreateDefaultDisplayNodes()
            if segmentation.GetSegmentation().GetNumberOfSegments() > 0:
                self.setCurrentSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
        self._emit("segmentationNodeChanged(vtkMRMLSegmentationNode*)", segmentation)

    def _updateFromVolume(self):
        volume = self._logic.GetSourceVolumeNode()
        if self._node.GetSegmentationNode() is None or volume is self._volume:
            return
        self._volume = volume
        self._emit("sourceVolumeNodeChanged(vtkMRMLVolumeNode*)", volume)

    def _updateFromEffect(self):
        """Set the cursor of the slice views for another effect, as setEffectCursor in qMRMLSegmentEditorWidget.cxx."""
        name = self._node.GetActiveEffectName() or ""
        if name == self._effect:
            return
        self._effect = name
        cursor = qt.QCursor(qt.Qt.CrossCursor) if name else qt.QCursor()
        for viewName in slicer.app.layoutManager().sliceViewNames():
            view = slicer.app.layoutManager().sliceWidget(viewName).sliceView()
            view.setViewCursor(cursor)
            view.setDefaultViewCursor(cursor)

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
        """Activate an effect, as its button in Slicer does."""
        self._node.SetActiveEffectName(name)

    def setActiveEffect(self, effect):
        """Deactivate the effect. ``effect``: None, as this fake has no effects."""
        if self._node is not None:
            self._node.SetActiveEffectName("")

    for _name in (
        "setupViewObservations",
        "removeViewObservations",
        "installKeyboardShortcuts",
        "uninstallKeyboardShortcuts",
        "rotateSliceViewsToSegmentation",
        "updateEffectList",
    ):
        locals()[_name] = _recorded(_name)
    del _name


class qSlicerSegmentEditorEffectFactory(qt.QObject):
    """Registry of the effects of the Segment Editor."""

    effectRegistered = qt.Signal("QString")
    _instance = None

    @classmethod
    def instance(cls):
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance


class ctkCollapsibleButton(qt.QWidget):
    """A header that collapses the widgets below it."""

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
        # Hide children that the .ui file added after it set the property.
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
    """A line edit for a path, with a button. ``filters``: Dirs to choose folders."""

    Dirs, Files = 0x001, 0x002
    filters = qt.Property(
        int, fget=lambda self: self._filters, fset=lambda self, kinds: setattr(self, "_filters", kinds)
    )
    currentPathChanged = qt.Signal("QString")
    showHistoryButton = qt.Property(bool, fget=lambda self: False, fset=lambda self, shown: None)

    def __init__(self, parent=None):
        qt.QWidget.__init__(self, *(() if parent is None else (parent,)))
        self._filters = self.Files
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
    """A question to the user. ``answers``: the next buttons to press. ``asked``: the texts shown so far."""

    answers = []  # noqa: RUF012 (shared by all boxes; an Application clears it)
    asked = []  # noqa: RUF012
    dontShowAgainVisible = False
    dontShowAgainSettingsKey = ""

    def exec_(self):
        assert self.answers, f"no answer for: {self.text}"
        self.asked.append(self.text)
        return self.answers.pop(0)


class VTKWidget(qt.QWidget):
    """The widget of a view (``ctkVTKAbstractView.VTKWidget()``), which passes mouse events to an interactor."""

    _BUTTONS = ((qt.Qt.LeftButton, "Left"), (qt.Qt.RightButton, "Right"), (qt.Qt.MiddleButton, "Middle"))

    def __init__(self, parent):
        qt.QWidget.__init__(self, parent)
        self.mouseTracking = True
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.renderWindow = vtk.vtkRenderWindow()  # never rendered by the fake
        self.renderWindow.SetOffScreenRendering(True)
        self.renderWindow.AddRenderer(vtk.vtkRenderer())

    def _invokeEvent(self, event, name):
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
        self.interactor.InvokeEvent(name)

    def _invokeButtonEvent(self, event, action):
        for button, name in self._BUTTONS:
            if event.button() == button:
                self._invokeEvent(event, f"{name}Button{action}Event")

    def mousePressEvent(self, event):
        self._invokeButtonEvent(event, "Press")

    def mouseReleaseEvent(self, event):
        self._invokeButtonEvent(event, "Release")

    def mouseMoveEvent(self, event):
        self._invokeEvent(event, "MouseMoveEvent")


class _View(qMRMLWidget):
    """Base class of slice and 3-D views."""

    def __init__(self, node, parent=None):
        qMRMLWidget.__init__(self, parent)
        self.renders = 0  # number of requested renderings
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
    """A slice view. As in Slicer, its size in pixels determines the dimensions of its slice node."""

    def mrmlSliceNode(self):
        return self._node

    def setViewCursor(self, cursor):
        self._vtkWidget.setCursor(cursor)

    def setDefaultViewCursor(self, cursor):
        self._defaultCursor = cursor

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
    """A slice view with its slice logic."""

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
    """A 3-D view."""

    def __init__(self, node, parent=None):
        qMRMLWidget.__init__(self, parent)
        self._view = qMRMLThreeDView(node, self)

    def threeDView(self):
        return self._view

    def resizeEvent(self, event):
        self._view.resize(event.size())


class qSlicerLayoutManager(qt.QWidget):
    """Layout with the slice views Red (axial), Yellow (sagittal) and Green (coronal), and a 3-D view, each of 300 x 200
    pixels."""

    layoutChanged = qt.Signal("int")  # the Python type int would be another Qt type
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
        """Change the layout. The new one has an additional slice view, as the larger layouts of Slicer do."""
        self._addSliceView("Slice4", "Axial")
        self.layoutChanged.emit(layout)

    def removeSliceView(self, name):
        """Delete a view, as Slicer does with some views of a layout, before it announces the next layout."""
        self._sliceWidgets.pop(name).delete()

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


WIDGETS = {cls.__name__: cls for cls in (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentEditorWidget)}
OBJECTS = {cls.__name__: cls for cls in (qSlicerSegmentEditorEffectFactory,)}
CTK_WIDGETS = {cls.__name__: cls for cls in (ctkCollapsibleButton, ctkMessageBox, ctkPathLineEdit)}


_QUiLoader = qt.QUiLoader


class UiLoader(_QUiLoader):
    """Loader that creates fakes for the custom widgets of a ``.ui`` file. Slicer uses Designer plugins for them."""

    def load(self, *arguments):
        self._root = None
        widget = _QUiLoader.load(self, *arguments)
        del self._root
        return widget

    def createWidget(self, className, parent=None, name=""):
        fake = WIDGETS.get(className) or CTK_WIDGETS.get(className)
        if fake is None:
            return _QUiLoader.createWidget(self, className, parent, name)
        widget = fake(parent)
        widget.objectName = name
        if parent is None:
            self._root = widget  # a widget without a parent lives only as long as Python refers to it
        return widget
