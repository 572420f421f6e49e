"""The panel: it passes user input to the logic and shows the logic's state. No method blocks."""

from importlib.metadata import version

from nninteractive_ws.client import events
import qt
import slicer
import vtk

from . import packages
from .editorHistory import EditorHistory
from .firstRun import FirstRun
from .prompts import NEGATIVE, POSITIVE
from .segments import LOCKED_TAG
from .serverForm import SETTINGS, ServerForm
from .shortcuts import Shortcuts
from .status import RED, _
from .views import ViewTool

#: For each tool button: the tool's name in ViewTool, and the prompt types of which the model must support one.
_TOOLS = {
    "pointButton": ("point", {"point"}),
    "boundingBoxButton": ("box", {"bbox2d", "bbox3d"}),
    "scribbleButton": ("scribble", {"scribble"}),
    "lassoButton": ("lasso", {"lasso"}),
}
#: Intervals for polling the logic.
_BUSY_MS, _IDLE_MS = 10, 100
#: Styles of the status line by state, readable on light and on dark backgrounds.
_STYLES = {"error": RED, "lost": "color: #ef6c00"}
#: States in which the progress bar is shown.
_IN_PROGRESS = ("connecting", "uploading", "predicting")
#: Size of the cursor of the tools, and its active point, in pixels.
_CURSOR_SIZE, _CURSOR_CENTER = 32, (11, 11)
_VOLUME = "vtkMRMLScalarVolumeNode"
_PLACE = slicer.vtkMRMLInteractionNode.Place


class Panel:
    """Panel of the module.

    ``ui``: the widgets of NNInteractiveWS.ui. ``editor``: the qMRMLSegmentEditorWidget, with its node. Call ``enter()``
    and ``exit()`` when the module is opened and left, and ``close()`` at the end. Until ``close()``, a timer polls the
    logic, also while another module is open, so that predictions continue.
    """

    def __init__(self, ui, editor, logic):
        self.ui, self.editor, self.logic = ui, editor, logic
        self._actions = {
            **{name.removesuffix("Button"): getattr(ui, name).click for name in _TOOLS},
            "polarity": self._togglePolarity,
            "nextSegment": ui.nextSegmentButton.click,
            "resetSegment": ui.resetSegmentButton.click,
            "visibility": ui.visibilityButton.click,
            "undo": ui.undoButton.click,
            "redo": ui.redoButton.click,
            "run": ui.runButton.click,
            "cancel": self._cancel,
        }
        self._captions = {name: self._captionedButton(name).text.rsplit(" (", 1)[0] for name in self._actions}
        self._defaults = self._keys()
        self._open = self._writing = False
        self._shown = {}
        self._history = EditorHistory(editor, logic)
        ui.volumeSelector.setMRMLScene(slicer.mrmlScene)
        editor.setSourceVolumeNodeSelectorVisible(False)  # the volume is selected above
        self._shortcuts = Shortcuts(slicer.util.mainWindow(), self._actions)
        self._views = ViewTool(slicer.app.layoutManager(), self._onDrawn, self._onPicked)
        self.server = ServerForm(ui, logic)
        self._firstRun = FirstRun()
        logic.setServerCheck(self._reasonNotToConnect)
        self._clientVersion = version("nninteractive-ws")
        self._restoreShortcuts()
        self._connect()
        size = ui.progressBar.sizePolicy
        size.setRetainSizeWhenHidden(True)  # keeps the widgets below at their place
        ui.progressBar.setSizePolicy(size)
        editorNode, interaction = editor.mrmlSegmentEditorNode(), _interactionNode()
        selection = slicer.app.applicationLogic().GetSelectionNode()
        self._observers = [
            (selection, selection.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onSelectionChanged)),
            (editorNode, editorNode.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onEditorChanged)),
            (interaction, interaction.AddObserver(interaction.InteractionModeChangedEvent, self._onInteractionMode)),
        ]
        self._addDeleteKeys()
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self.poll)
        self._timer.start(_IDLE_MS)
        self._fitTab()
        self._setPolarity()
        self._onEditorChanged()

    def enter(self):
        self._open = True
        self.editor.updateWidgetFromMRML()
        self._selectDefaults()
        self.editor.setupViewObservations()
        self._views.install()
        self._setShortcuts()
        self._onEditorChanged()

    def exit(self):
        self._open = False
        self._useTool(None)
        self._views.remove()
        self._shortcuts.remove()
        self.editor.setActiveEffect(None)
        self.editor.removeViewObservations()

    def close(self):
        self.exit()
        self.server.close()
        self._firstRun.close()
        self._timer.stop()
        for node, tag in self._observers:
            node.RemoveObserver(tag)

    def poll(self):
        """Poll the logic, and update the panel."""
        if slicer.mrmlScene.IsClosing() or slicer.mrmlScene.IsBatchProcessing():
            return  # the timer also runs in the event loops of progress dialogs
        isDrawing = self._views.drawing or qt.QApplication.mouseButtons() != qt.Qt.NoButton
        newEvents = self.logic.poll(allowIdleWork=not isDrawing)
        self._writing = self._writing or any(isinstance(event, events.MaskDelta) for event in newEvents)
        if self._writing:
            self._history.forget()
            self._writing = self.logic.busy  # a mask is written over several polls
        if self.logic.server is not None:
            self._firstRun.onServerUsed()
        elif self._open:
            self._firstRun.poll()
        interval = _BUSY_MS if self.logic.active else _IDLE_MS
        if interval != self._timer.interval:
            self._timer.setInterval(interval)
        self.refresh()

    def refresh(self):
        """Update the widgets. Set only changed properties, as setting one takes longer than comparing all of them."""
        values = {**self._buttons(), **self._segmentButtons(), **self._statusLine()}
        for (name, prop), value in values.items():
            if (name, prop) not in self._shown or self._shown[name, prop] != value:
                setattr(getattr(self.ui, name), prop, value)
        self._shown = values

    # ---- values of properties, by widget and property -------------------------------------------------------------

    def _buttons(self):
        logic = self.logic
        hasVolume, hasSegment = logic.volume is not None, logic.segmentID is not None
        supported = None if logic.model is None else set(logic.model.prompts)
        tools = {
            (name, "enabled"): hasVolume and (supported is None or bool(kinds & supported))
            for name, (_tool, kinds) in _TOOLS.items()
        }
        return {
            **tools,
            ("nextSegmentButton", "enabled"): hasVolume,
            ("resetSegmentButton", "enabled"): hasSegment,
            ("undoButton", "enabled"): logic.canUndo or logic.hasEdits,
            ("redoButton", "enabled"): logic.canRedo or self._history.canRedo,
            ("runButton", "enabled"): hasSegment and not logic.live,
            ("cancelButton", "enabled"): logic.busy,
        }

    def _segmentButtons(self):
        segment, segmentID = self._segment(), self.logic.segmentID
        display = self.logic.segmentation.GetDisplayNode() if segment is not None else None
        visible = display is None or display.GetSegmentVisibility(segmentID)
        return {
            ("visibilityButton", "enabled"): display is not None,
            ("visibilityButton", "text"): _caption(_("Hide") if visible else _("Show"), self._keyTexts["visibility"]),
            ("lockButton", "enabled"): segment is not None,
            ("lockButton", "checked"): segment is not None and segment.HasTag(LOCKED_TAG),
        }

    def _statusLine(self):
        logic, status = self.logic, self.logic.status
        inProgress = status.state in _IN_PROGRESS and logic.active
        return {
            ("firstRunFrame", "visible"): self._needsGuide and self.ui.tabWidget.currentIndex == 0,
            ("statusLabel", "text"): self._statusText(),
            ("statusLabel", "styleSheet"): _STYLES.get(status.state, ""),
            ("progressBar", "visible"): inProgress,
            ("progressBar", "maximum"): 0 if inProgress and status.fraction is None else 100,  # 0: unknown progress
            ("progressBar", "value"): round(100 * (status.fraction or 0.0)) if inProgress else 0,
            ("modelLabel", "text"): self._modelText(),
        }

    def _modelText(self):
        logic = self.logic
        if logic.model is None:
            return _("No model loaded")
        text = _("{model}, license {license}").format(model=logic.model.name, license=logic.model.license)
        if logic.serverVersion is None:
            return text
        text = f"{text}, {logic.serverVersion}"
        notice = packages.updateNotice(logic.serverVersion, self._clientVersion)
        return text if notice is None else f"{text}. {notice}"

    @property
    def _needsGuide(self):
        return self._firstRun.needsGuide and not self.server.isConfigured

    def _reasonNotToConnect(self, address):
        return None if self.server.isConfigured else self._firstRun.reasonNotToConnect(address)

    def _statusText(self):
        status = self.logic.status
        if self.logic.volume is None and status.state in ("idle", "ready", "disconnected"):
            return f"{status.message} {_('Load or select a volume.')}".lstrip()
        message = status.message or _("Choose a prompt to begin.")
        if self.logic.imageNote is None or status.state == "error":
            return message
        return f"{message} {self.logic.imageNote} {_('The volume in Slicer is unchanged.')}"

    # ---- internal ------------------------------------------------------------------------------------------------

    def _connect(self):
        ui = self.ui
        for name, (tool, _kinds) in _TOOLS.items():
            getattr(ui, name).connect("toggled(bool)", lambda on, tool=tool: self._onToolToggled(tool, on))
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onVolumeChanged)
        ui.positiveButton.connect("toggled(bool)", lambda on: self._setPolarity())
        ui.nextSegmentButton.connect("clicked()", self._nextSegment)
        ui.resetSegmentButton.connect("clicked()", self._runAndPoll(self.logic.reset))
        ui.visibilityButton.connect("clicked()", self._toggleVisibility)
        ui.lockButton.connect("clicked(bool)", self._setLocked)
        ui.undoButton.connect("clicked()", self._runAndPoll(self._undo))
        ui.redoButton.connect("clicked()", self._runAndPoll(self._redo))
        ui.runButton.connect("clicked()", self._runAndPoll(self.logic.run))
        ui.cancelButton.connect("clicked()", self._runAndPoll(self.logic.cancel))
        ui.tabWidget.connect("currentChanged(int)", lambda index: self._fitTab())
        ui.chooseServerButton.connect("clicked()", lambda: ui.tabWidget.setCurrentWidget(ui.configurationTab))
        for checkBox in (ui.livePreviewCheckBox, ui.runAutomaticallyCheckBox, ui.autoZoomCheckBox):
            checkBox.connect("toggled(bool)", lambda on: self._setOptions())
        ui.overwriteComboBox.connect("currentIndexChanged(int)", self._onOverwriteChosen)
        ui.shortcutsCheckBox.connect("toggled(bool)", lambda on: self._onKeysChanged())
        ui.defaultShortcutsButton.connect("clicked()", lambda: self._setKeys(self._defaults))
        for name in self._actions:
            self._keyEdit(name).connect("editingFinished()", self._onKeysChanged)
        self._setOptions()

    def _runAndPoll(self, command):
        """Return a slot that runs a command and polls at once, so that the panel shows its effect."""

        def run():
            command()
            self.poll()

        return run

    # ---- tools ----

    def _onToolToggled(self, tool, on):
        if on:
            self._useTool(tool)
        elif self._views.tool == tool:
            self._useTool(None)

    def _useTool(self, tool):
        """Use one tool, or None. Update the tool buttons, and deactivate an effect of the Segment Editor."""
        self._views.abandon()
        self._views.tool = tool
        for name, (each, _kinds) in _TOOLS.items():
            getattr(self.ui, name).checked = each == tool
        if tool is not None:
            self.editor.setActiveEffect(None)
            if _interactionNode().GetCurrentInteractionMode() == _PLACE:
                _interactionNode().SwitchToViewTransformMode()
        self._setCursor()  # after these, which set cursors of their own

    def _onDrawn(self, tool, sliceNode, points):
        logic, positive = self.logic, self.ui.positiveButton.checked
        if tool == "point":
            logic.addPoint(points[0], positive)
        elif tool == "box":
            logic.addBox(points[0], points[-1], positive, sliceNode)
        elif tool == "scribble":
            logic.addScribble(sliceNode, points, positive)
        else:
            logic.addLasso(sliceNode, points, positive)
        self._selectInEditor()
        self.poll()

    def _onPicked(self, point, normal):
        self.logic.addPointInThreeD(point, normal, self.ui.positiveButton.checked)
        self._selectInEditor()
        self.poll()

    def _togglePolarity(self):
        (self.ui.negativeButton if self.ui.positiveButton.checked else self.ui.positiveButton).click()

    def _setPolarity(self):
        """Apply the polarity, and show the shortcut on the button that it would press."""
        positive = self.ui.positiveButton.checked
        self._views.color = POSITIVE if positive else NEGATIVE
        key = self._keyTexts["polarity"]
        self.ui.positiveButton.text = _caption(_("Positive"), "" if positive else key)
        self.ui.negativeButton.text = _caption(_("Negative"), key if positive else "")
        self._setCursor()

    def _setCursor(self):
        """Show in the slice views that a tool is in use, and its polarity."""
        positive = self.ui.positiveButton.checked
        self._views.setCursor(None if self._views.tool is None else _cursor(self._views.color, positive))

    def _cancel(self):
        """Cancel a drag, or else the running requests, or else the use of the tool."""
        if self._views.abandon():
            return
        if self.logic.busy:
            self.ui.cancelButton.click()
        else:
            self._useTool(None)

    # ---- history ----

    def _undo(self):
        """Undo manual edits since the last step, and then the steps. A segment without steps in the session, such as a
        loaded one, is not emptied."""
        if not self._history.undo() and self.logic.canUndo:
            self.logic.undo()

    def _redo(self):
        if not self._history.redo():
            self.logic.redo()

    # ---- volume ----

    def _selectDefaults(self):
        """Select a volume and a segmentation if none is selected, so that the tools are ready."""
        selector = self.ui.volumeSelector
        if selector.currentNode() is None:
            selector.setCurrentNode(self.editor.mrmlSegmentEditorNode().GetSourceVolumeNode() or _defaultVolume())
        if selector.currentNode() is not None and self.editor.segmentationNode() is None:
            self.editor.setSegmentationNode(_segmentationOf(selector.currentNode()) or self.logic.addSegmentation())
            self._setEditorsVolume()

    def _onVolumeChanged(self, volume):
        self.logic.selectVolume(volume)
        self._setEditorsVolume()
        if self._open:
            self._selectDefaults()
        self.refresh()

    def _onSelectionChanged(self, caller, event):
        """Select the first volume that is loaded while the module is open."""
        if self._open and not slicer.mrmlScene.IsBatchProcessing():
            self._selectDefaults()

    def _setEditorsVolume(self):
        # The Segment Editor accepts a volume only with a segmentation.
        if self.editor.mrmlSegmentEditorNode().GetSegmentationNode() is not None:
            self.editor.setSourceVolumeNode(self.ui.volumeSelector.currentNode())

    def _followEditorsVolume(self):
        """Restore the user's volume: a new segmentation sets the Segment Editor's to its reference volume, or to none.

        While the module is closed, the Segment Editor module selects the volume for both.
        """
        node, selector = self.editor.mrmlSegmentEditorNode(), self.ui.volumeSelector
        volume = node.GetSourceVolumeNode()
        if node.GetSegmentationNode() is None or volume is selector.currentNode():
            return
        if volume is not None and not (self._open and selector.currentNode() is not None):
            selector.setCurrentNode(volume)
        elif self._open:
            self._setEditorsVolume()

    # ---- segments ----

    def _addDeleteKeys(self):
        """Let the Delete key remove the selected segment while the Segment Editor's table has the focus.

        Backspace, too, as in Slicer's list of modules. Keyboards of Macs have no other Delete key.
        """
        for table in slicer.util.findChildren(self.editor, name="SegmentsTable"):
            for key in (qt.Qt.Key_Delete, qt.Qt.Key_Backspace):
                shortcut = qt.QShortcut(qt.QKeySequence(key), table)
                shortcut.context = qt.Qt.WidgetShortcut  # not while a name is edited
                shortcut.connect("activated()", self._removeSegment)

    def _removeSegment(self):
        for button in slicer.util.findChildren(self.editor, name="RemoveSegmentButton"):
            button.click()

    def _nextSegment(self):
        self.logic.nextSegment()
        self._selectInEditor()
        self.refresh()

    def _selectInEditor(self):
        """Select the logic's segmentation and segment in the Segment Editor. The logic may have created them."""
        segmentation, segmentID = self.logic.segmentation, self.logic.segmentID
        if segmentation is not None:
            self.editor.setSegmentationNode(segmentation)
            self._setEditorsVolume()
            if segmentID is not None:
                self.editor.setCurrentSegmentID(segmentID)

    def _onEditorChanged(self, caller=None, event=None):
        """Select the Segment Editor's segment in the logic."""
        node = self.editor.mrmlSegmentEditorNode()
        self._followEditorsVolume()
        self.logic.selectVolume(self.ui.volumeSelector.currentNode())
        segmentation, segmentID = node.GetSegmentationNode(), node.GetSelectedSegmentID() or None
        if segmentID is not None and not _hasSegment(segmentation, segmentID):
            # The Segment Editor keeps the ID of another segmentation's segment if the new one is empty. Clear it in the
            # node as well. Otherwise, selecting a new segment with the same ID later would not be a change.
            segmentID = None
            node.SetSelectedSegmentID(None)
        self.logic.selectSegment(segmentation, segmentID)
        self.ui.overwriteComboBox.currentIndex = node.GetOverwriteMode()
        if node.GetActiveEffectName() and self._views.tool is not None:
            self._views.releaseCursor()
            self._useTool(None)  # the effect handles the mouse
        self.refresh()

    def _onInteractionMode(self, node, event):
        """Stop using the tool when the user starts to place markups."""
        if node.GetCurrentInteractionMode() == _PLACE and self._views.tool is not None:
            self._useTool(None)

    def _onOverwriteChosen(self, index):
        self.editor.mrmlSegmentEditorNode().SetOverwriteMode(index)

    def _toggleVisibility(self):
        display = self.logic.segmentation.GetDisplayNode()
        segmentID = self.logic.segmentID
        display.SetSegmentVisibility(segmentID, not display.GetSegmentVisibility(segmentID))
        self.refresh()

    def _setLocked(self, locked):
        if locked:
            self._segment().SetTag(LOCKED_TAG, "1")
        else:
            self._segment().RemoveTag(LOCKED_TAG)
        self.refresh()

    def _segment(self):
        """The selected vtkSegment, or None."""
        segmentation, segmentID = self.logic.segmentation, self.logic.segmentID
        if segmentation is None or segmentID is None:
            return None
        return segmentation.GetSegmentation().GetSegment(segmentID)

    # ---- settings ----

    def _setOptions(self):
        self.logic.live = self.ui.runAutomaticallyCheckBox.checked
        self.logic.setOptions(previews=self.ui.livePreviewCheckBox.checked, autozoom=self.ui.autoZoomCheckBox.checked)

    def _restoreShortcuts(self):
        settings = qt.QSettings()
        self.ui.shortcutsCheckBox.checked = slicer.util.settingsValue(
            f"{SETTINGS}/shortcuts/enabled", True, converter=slicer.util.toBool
        )
        for name, key in self._defaults.items():
            self._keyEdit(name).setKeySequence(qt.QKeySequence(settings.value(f"{SETTINGS}/shortcuts/{name}", key)))
        self._showKeys()

    # ---- keys ----

    def _keyEdit(self, name):
        return getattr(self.ui, f"{name}ShortcutEdit")

    def _keys(self):
        return {name: self._keyEdit(name).keySequence.toString() for name in self._actions}

    def _setKeys(self, keys):
        for name, key in keys.items():
            self._keyEdit(name).setKeySequence(qt.QKeySequence(key))
        self._onKeysChanged()

    def _onKeysChanged(self):
        settings = qt.QSettings()
        settings.setValue(f"{SETTINGS}/shortcuts/enabled", self.ui.shortcutsCheckBox.checked)
        for name, key in self._keys().items():
            settings.setValue(f"{SETTINGS}/shortcuts/{name}", key)
        self._showKeys()
        if self._open:
            self._setShortcuts()

    def _setShortcuts(self):
        self._shortcuts.create(self._keyTexts)

    def _showKeys(self):
        isEnabled = self.ui.shortcutsCheckBox.checked
        self._keyTexts = self._keys() if isEnabled else dict.fromkeys(self._actions, "")
        for name in self._actions.keys() - {"polarity", "visibility"}:  # their captions depend on the selection
            self._captionedButton(name).text = _caption(self._captions[name], self._keyTexts[name])
        self._setPolarity()
        self.refresh()

    def _captionedButton(self, name):
        return self.ui.positiveButton if name == "polarity" else getattr(self.ui, f"{name}Button")

    def _fitTab(self):
        """Fit the height of the tab widget to the open tab, so that the Segment Editor is near.

        QTabWidget takes the height of its largest tab, so hide the contents of the other tabs.
        """
        tabs = self.ui.tabWidget
        for i in range(tabs.count):
            for child in tabs.widget(i).children():
                if child.isWidgetType():
                    child.visible = i == tabs.currentIndex
        tabs.updateGeometry()
        self.refresh()


def _cursor(color, positive):
    """A cross with a sign beside it, in the color of the polarity with a dark outline."""
    pixmap = qt.QPixmap(_CURSOR_SIZE, _CURSOR_SIZE)
    pixmap.fill(qt.QColor(0, 0, 0, 0))
    lines = [(0, 11, 8, 11), (14, 11, 22, 11), (11, 0, 11, 8), (11, 14, 11, 22), (18, 24, 26, 24)]
    if positive:
        lines.append((22, 20, 22, 28))
    painter = qt.QPainter(pixmap)
    for width, shade in ((3, qt.QColor(0, 0, 0)), (1, qt.QColor(*(round(255 * c) for c in color)))):
        pen = qt.QPen(shade)
        pen.setWidth(width)
        painter.setPen(pen)
        for line in lines:
            painter.drawLine(*line)
    painter.end()
    return qt.QCursor(pixmap, *_CURSOR_CENTER)


def _caption(text, key):
    return f"{text} ({key})" if key else text


def _hasSegment(segmentation, segmentID):
    return segmentation is not None and segmentation.GetSegmentation().GetSegment(segmentID) is not None


def _interactionNode():
    """The scene's vtkMRMLInteractionNode, with the current mouse mode."""
    return slicer.app.applicationLogic().GetInteractionNode()


def _defaultVolume():
    """The active volume, or else the first one, or None if the scene has no scalar volume."""
    active = slicer.mrmlScene.GetNodeByID(slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID() or "")
    # Labelmap volumes and vector volumes are of subclasses.
    return next((v for v in (active, *slicer.util.getNodesByClass(_VOLUME)) if v and v.GetClassName() == _VOLUME), None)


def _segmentationOf(volume):
    """The first segmentation that was made on a volume, or on none, or None."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return next((node for node in nodes if node.GetNodeReference(role) in (volume, None)), None)
