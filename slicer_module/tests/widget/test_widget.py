"""The panel with the real logic: user input and displayed state."""

import gestures
from logic_harness import TISSUE, blobs
from nninteractive_ws import Box
from nninteractive_ws.messages import Model
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.labelmaps import Labelmaps
from NNInteractiveWSLib.segments import LOCKED_TAG
from NNInteractiveWSLib.status import Status
import numpy as np
from panel_harness import WIDTH, Module, RecordingLogic
import pytest
import qt
import slicer

SHAPE = (40, 30, 20)


@pytest.fixture
def volume(application, add_volume):
    """A volume in the slice views, which show its center."""
    node = add_volume(np.zeros(SHAPE, np.int16), spacing=(1.0, 1.0, 2.0), directions=np.diag([-1.0, -1.0, 1.0]))
    views = slicer.app.layoutManager()
    for name in views.sliceViewNames():
        widget = views.sliceWidget(name)
        widget.sliceLogic().GetSliceCompositeNode().SetBackgroundVolumeID(node.GetID())
        widget.sliceLogic().FitSliceToAll(widget.sliceView().width, widget.sliceView().height)
    return node


@pytest.fixture
def module(application):
    made = Module(RecordingLogic)
    yield made
    made.close()


@pytest.fixture
def opened(module, volume):
    module.ui.volumeSelector.setCurrentNode(volume)
    module.panel.enter()
    return module


def view(name):
    return slicer.app.layoutManager().sliceWidget(name).sliceView()


def test_tools_require_a_volume_and_support_by_the_model(module, volume):
    tools = [module.ui.pointButton, module.ui.boundingBoxButton, module.ui.scribbleButton, module.ui.lassoButton]
    assert [tool.enabled for tool in tools] == [False] * 4
    module.ui.volumeSelector.setCurrentNode(volume)
    assert [tool.enabled for tool in tools] == [True] * 4
    known = Model(
        name="m", license="L", patch_size=(8, 8, 8), prompts=("point", "bbox2d"), scribble_thickness=(1, 1, 1)
    )
    module.logic._controller.model = known
    module.panel.refresh()
    assert [tool.enabled for tool in tools] == [True, True, False, False]
    assert module.ui.modelLabel.text == "m, license L"


def test_one_tool_is_in_use_or_none(opened):
    opened.ui.pointButton.click()
    opened.ui.lassoButton.click()
    assert (opened.ui.pointButton.checked, opened.ui.lassoButton.checked) == (False, True)
    opened.ui.lassoButton.click()
    assert not opened.ui.lassoButton.checked
    gestures.click(view("Red").VTKWidget(), 50, 50)
    assert opened.logic.calls == []


@pytest.mark.parametrize("name", ["Red", "Yellow", "Green"])
def test_a_click_is_at_the_voxel_under_the_mouse(opened, volume, name):
    voxel = (12, 9, 6)
    sliceNode = view(name).mrmlSliceNode()
    world = geometry.ijkToWorld(volume, voxel)
    sliceNode.JumpSliceByCentering(*world)
    toXY = np.linalg.inv(geometry.matrixArray(sliceNode.GetXYToRAS()))
    x, y, *_ = toXY @ [*world, 1.0]
    opened.ui.pointButton.click()
    opened.ui.negativeButton.click()
    gestures.click(view(name).VTKWidget(), round(x), view(name).height - 1 - round(y))
    ((kind, point, positive),) = opened.logic.calls
    assert (kind, positive) == ("point", False)
    assert geometry.voxelAt(volume, point) == voxel


@pytest.mark.parametrize(
    ("button", "kind", "count"),
    [("boundingBoxButton", "box", 2), ("scribbleButton", "scribble", 4), ("lassoButton", "lasso", 4)],
)
def test_drags_become_boxes_strokes_and_outlines(opened, button, kind, count):
    getattr(opened.ui, button).click()
    green = view("Green")
    renderer = green.renderWindow().GetRenderers().GetFirstRenderer()
    path = [(60, 50), (90, 50), (90, 80), (60, 90)]
    widget = green.VTKWidget()
    gestures.press(widget, *path[0])
    gestures.move(widget, *path[1], gestures.LEFT)
    assert renderer.GetViewProps().GetNumberOfItems() == 1, "the drag draws no trail"
    gestures.move(widget, *path[2], gestures.LEFT)
    gestures.release(widget, *path[3])
    assert renderer.GetViewProps().GetNumberOfItems() == 0
    ((got, points, positive, name),) = opened.logic.calls
    assert (got, positive, name, len(points)) == (kind, True, "Green", count)
    expected = [geometry.xyToWorld(green.mrmlSliceNode(), x, green.height - 1 - y) for x, y in (path[0], path[-1])]
    np.testing.assert_allclose([points[0], points[-1]], expected)


def test_other_buttons_and_keys_are_left_to_the_view(opened):
    opened.ui.pointButton.click()
    widget, got = view("Red").VTKWidget(), []
    for event in ("LeftButtonPressEvent", "RightButtonPressEvent"):
        view("Red").interactor().AddObserver(event, lambda caller, event: got.append(event))
    gestures.click(widget, 50, 50)
    gestures.click(widget, 50, 50, qt.Qt.RightButton)
    gestures.click(widget, 50, 50, modifiers=qt.Qt.ShiftModifier)
    assert got == ["RightButtonPressEvent", "LeftButtonPressEvent"]
    assert len(opened.logic.calls) == 1


def test_shortcuts_are_active_between_enter_and_exit(opened, monkeypatch):
    control, shift = qt.Qt.ControlModifier, qt.Qt.ShiftModifier
    opened.editor.setSegmentationNode(None)
    opened.key(qt.Qt.Key_E)
    segmentation = opened.editor.segmentationNode()
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 1
    opened.key(qt.Qt.Key_B)
    assert opened.ui.boundingBoxButton.checked
    opened.key(qt.Qt.Key_T)
    assert opened.ui.negativeButton.checked
    opened.key(qt.Qt.Key_R)
    assert opened.logic.calls == ["reset"]
    opened.key(qt.Qt.Key_Z, control)
    opened.key(qt.Qt.Key_Z, control | shift)
    assert opened.logic.calls == ["reset"], "undo or redo ran without a step"
    monkeypatch.setattr(RecordingLogic, "canUndo", True)
    monkeypatch.setattr(RecordingLogic, "canRedo", True)
    opened.panel.refresh()
    opened.key(qt.Qt.Key_Z, control)
    opened.key(qt.Qt.Key_Z, control | shift)
    assert opened.logic.calls == ["reset", "undo", "redo"]
    opened.key(qt.Qt.Key_V)
    assert not segmentation.GetDisplayNode().GetSegmentVisibility(opened.logic.segmentID)
    assert opened.ui.visibilityButton.text == "Show (V)"
    opened.key(qt.Qt.Key_Escape)
    assert not opened.ui.boundingBoxButton.checked
    opened.panel.exit()
    for key in (qt.Qt.Key_P, qt.Qt.Key_E, qt.Qt.Key_R):
        opened.key(key)
    assert not opened.ui.pointButton.checked
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert opened.logic.calls == ["reset", "undo", "redo"]
    opened.panel.enter()
    opened.key(qt.Qt.Key_P)
    assert opened.ui.pointButton.checked


def test_escape_ends_a_drag_first(opened):
    opened.ui.lassoButton.click()
    widget = view("Red").VTKWidget()
    gestures.press(widget, 50, 50)
    gestures.move(widget, 80, 50, gestures.LEFT)
    opened.key(qt.Qt.Key_Escape)
    gestures.release(widget, 80, 90)
    assert opened.logic.calls == []
    assert opened.ui.lassoButton.checked


def test_the_mouse_has_one_use_at_a_time(opened):
    """The last choice of a tool, an effect of the Segment Editor, or the placement of markups is active."""
    interaction, node = slicer.app.applicationLogic().GetInteractionNode(), opened.editorNode
    opened.ui.pointButton.click()
    opened.editor.setActiveEffectByName("Paint")
    assert not opened.ui.pointButton.checked
    gestures.click(view("Red").VTKWidget(), 50, 50)
    opened.ui.pointButton.click()
    assert not node.GetActiveEffectName()
    interaction.SetCurrentInteractionMode(interaction.Place)
    assert not opened.ui.pointButton.checked
    gestures.click(view("Red").VTKWidget(), 50, 50)
    assert opened.logic.calls == []
    opened.ui.lassoButton.click()
    assert interaction.GetCurrentInteractionMode() == interaction.ViewTransform
    assert opened.ui.lassoButton.checked
    opened.editor.setActiveEffectByName("Paint")
    opened.panel.exit()
    assert not node.GetActiveEffectName(), "the effect stays active"


def test_no_idle_work_is_done_during_a_drag(opened, monkeypatch):
    allowed = []
    monkeypatch.setattr(opened.logic, "poll", lambda *, allowIdleWork: allowed.append(allowIdleWork) or [])
    opened.ui.lassoButton.click()
    widget = view("Red").VTKWidget()
    for act in (gestures.press, gestures.move, gestures.release):
        act(widget, 50, 50)
        opened.panel.poll()
    assert allowed[:2] == [False, False]
    assert allowed[-1]


def test_the_view_handles_the_mouse_after_exit(opened):
    opened.ui.pointButton.click()
    opened.panel.exit()
    gestures.click(view("Red").VTKWidget(), 50, 50)
    assert opened.logic.calls == []


def test_views_of_another_layout_take_prompts_too(opened):
    opened.ui.pointButton.click()
    layout = slicer.app.layoutManager()
    layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourOverFourView)
    for name in ("Slice4", "Red"):
        gestures.click(view(name).VTKWidget(), 50, 50)
    assert len(opened.logic.calls) == 2
    opened.panel.exit()
    layout.layoutChanged.emit(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    gestures.click(view("Slice4").VTKWidget(), 50, 50)
    assert len(opened.logic.calls) == 2


def test_a_changed_shortcut_is_stored(opened):
    opened.ui.pointShortcutEdit.setKeySequence(qt.QKeySequence("Q"))
    opened.panel._onKeysChanged()
    assert opened.ui.pointButton.text == "Point (Q)"
    opened.key(qt.Qt.Key_P)
    assert not opened.ui.pointButton.checked
    opened.key(qt.Qt.Key_Q)
    assert opened.ui.pointButton.checked
    opened.close()
    again = Module(RecordingLogic)
    assert again.ui.pointShortcutEdit.keySequence.toString() == "Q"
    again.ui.defaultShortcutsButton.click()
    assert again.ui.pointButton.text == "Point (P)"
    again.ui.shortcutsCheckBox.click()
    assert again.ui.pointButton.text == "Point"
    assert not qt.QSettings().value("NNInteractiveWS/shortcuts/enabled")
    again.close()


def test_the_token_is_not_stored_in_the_settings(module):
    module.ui.serverComboBox.setEditText("ws://gpu-box:1528")
    module.ui.tokenLineEdit.text = "nws_secret"
    module.panel.server.use()
    assert module.logic._controller.server["token"] == "nws_secret"
    settings = qt.QSettings()
    assert settings.value("NNInteractiveWS/servers") == ("ws://gpu-box:1528", "ws://127.0.0.1:1528")
    assert not any("nws_secret" in str(settings.value(key)) for key in settings.allKeys())


def test_options_reach_the_logic(module):
    module.ui.runAutomaticallyCheckBox.click()
    module.ui.livePreviewCheckBox.click()
    assert not module.logic.live
    assert module.logic._controller.options == {"previews": False, "autozoom": True}
    module.ui.overwriteComboBox.currentIndex = 2
    assert module.editorNode.GetOverwriteMode() == module.editorNode.OverwriteNone
    module.editorNode.SetOverwriteMode(module.editorNode.OverwriteVisibleSegments)
    assert module.ui.overwriteComboBox.currentIndex == 1


def test_the_status_is_shown(module):
    module.logic._controller.status = Status("predicting", "Refining 3 of 8", 3 / 8)
    module.panel.refresh()
    assert module.ui.statusLabel.text.startswith("Refining 3 of 8")


def test_the_progress_bar_is_visible_during_work(module, monkeypatch):
    bar, root = module.ui.progressBar, module.root
    assert not bar.isVisibleTo(root)
    monkeypatch.setattr(RecordingLogic, "active", True)
    module.logic._controller.status = Status("predicting", "Refining 3 of 8", 3 / 8)
    module.panel.refresh()
    assert (bar.isVisibleTo(root), bar.maximum, bar.value) == (True, 100, 38)
    module.logic._controller.status = Status("predicting", "Predicting")
    module.panel.refresh()
    assert (bar.isVisibleTo(root), bar.maximum) == (True, 0)
    module.logic._controller.status = Status("lost", "Connection lost")
    module.panel.refresh()
    assert not bar.isVisibleTo(root)
    assert "color" in module.ui.statusLabel.styleSheet
    module.logic._controller.status = Status("ready", "Done in 0.4 s")
    module.panel.refresh()
    assert module.ui.statusLabel.styleSheet == ""


def test_unchanged_properties_are_not_set(module):
    module.ui.statusLabel.text = "untouched"
    module.panel.refresh()
    assert module.ui.statusLabel.text == "untouched"
    module.logic._controller.status = Status("error", "The prompt is outside the volume")
    module.panel.refresh()
    assert module.ui.statusLabel.text == "The prompt is outside the volume"


def test_the_timer_is_fast_during_work(module, monkeypatch):
    module.panel.poll()
    assert module.panel._timer.interval == 100
    monkeypatch.setattr(RecordingLogic, "active", True)
    module.panel.poll()
    assert module.panel._timer.interval == 10


@pytest.mark.parametrize("while_drawing", [False, True])
def test_a_view_that_was_deleted(opened, while_drawing):
    opened.ui.scribbleButton.click()
    layout = slicer.app.layoutManager()
    layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourOverFourView)
    if while_drawing:
        gestures.press(view("Slice4").VTKWidget(), 50, 50)
    layout.removeSliceView("Slice4")
    layout.layoutChanged.emit(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    gestures.drag(view("Red").VTKWidget(), [(50, 50), (60, 60), (80, 70)])
    assert [call[0] for call in opened.logic.calls] == ["scribble"]
    opened.panel.exit()
    opened.panel.enter()
    opened.ui.scribbleButton.click()
    gestures.drag(view("Red").VTKWidget(), [(50, 50), (60, 60), (80, 70)])
    assert len(opened.logic.calls) == 2


def test_the_cursor_shows_tool_and_polarity(opened):
    def pixels(name="Red"):
        cursor = view(name).VTKWidget().cursor
        return None if cursor.pixmap().isNull() else cursor.pixmap().toImage()

    assert pixels() is None
    opened.ui.pointButton.click()
    positive = pixels()
    assert pixels("Green") == positive
    opened.ui.negativeButton.click()
    assert pixels() not in (None, positive)
    colors = [qt.QColor(image.pixel(22, 24)) for image in (positive, pixels())]
    assert colors[0].green() > 2 * colors[0].red()
    assert colors[1].red() > 2 * colors[1].green()
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourOverFourView)
    assert pixels("Slice4") == pixels()
    opened.ui.pointButton.click()
    assert pixels() is None
    opened.ui.pointButton.click()
    opened.panel.exit()
    assert pixels() is None


def test_an_effect_keeps_its_cursor(opened):
    def shape():
        return view("Red").VTKWidget().cursor.shape()

    opened.ui.pointButton.click()
    assert shape() == qt.Qt.BitmapCursor
    opened.editor.setActiveEffectByName("Paint")
    assert shape() == qt.Qt.CrossCursor
    opened.ui.negativeButton.click()
    opened.key(qt.Qt.Key_Escape)
    assert shape() == qt.Qt.CrossCursor, "polarity or Esc has replaced it"
    opened.ui.pointButton.click()
    assert shape() == qt.Qt.BitmapCursor
    opened.ui.pointButton.click()
    assert shape() == qt.Qt.ArrowCursor


# ---- layout -----------------------------------------------------------------------------------------------


def laid_out(module):
    """The panel with the size of Slicer's module panel, after the layout of wrapped text."""
    area = qt.QScrollArea()
    area.widgetResizable = True
    area.setWidget(module.root)
    area.resize(WIDTH, 900)
    area.show()
    for _ in range(30):  # a change of size propagates one level per pass
        slicer.app.processEvents()
    return area


@pytest.mark.parametrize("tested", ["", "Not connected: nothing listens there. " * 5])
def test_the_tabs_fit_the_open_one(module, tested):
    module.panel.server._show([tested])
    heights = []
    for tab in (module.ui.configurationTab, module.ui.promptsTab, module.ui.configurationTab):
        module.ui.tabWidget.setCurrentWidget(tab)
        area = laid_out(module)
        needed = tab.heightForWidth(tab.width) if tab.hasHeightForWidth() else tab.sizeHint.height()
        assert needed <= tab.height <= needed + 4, "a frame and no more"
        frame, editor = module.ui.statusFrame, module.ui.segmentEditorCollapsibleButton
        assert editor.y - (frame.y + frame.height) <= 6
        assert module.root.height - (editor.y + editor.height) <= 6, "empty space below the Segment Editor"
        heights.append(tab.height)
        area.takeWidget()
    assert heights[0] == heights[2]


def test_long_sentences_are_not_cut_off(module):
    message = "The image needs 31.2 GB where 22.1 GB are free on the server: crop it, or resample it, and try again. "
    module.logic._controller.status = Status("error", 2 * message)
    module.panel.refresh()
    module.ui.tabWidget.setCurrentWidget(module.ui.configurationTab)
    module.panel.server._show(3 * [message], "color: red")
    area = laid_out(module)
    for label in (module.ui.statusLabel, module.ui.testResultLabel):
        assert label.height >= label.heightForWidth(label.width) > 2 * label.fontMetrics().height()
        assert label.textInteractionFlags & qt.Qt.TextSelectableByMouse
    area.takeWidget()


def test_every_button_has_a_tooltip(module):
    buttons = [w for w in slicer.util.findChildren(module.root) if isinstance(w, qt.QPushButton)]
    assert len(buttons) > 15
    assert [button.name for button in buttons if not button.toolTip] == []


# ---- the volume -------------------------------------------------------------------------------------------


def test_without_a_volume_the_status_asks_for_one(module, volume):
    message = "Load or select a volume."
    assert module.ui.statusLabel.text == message
    module.logic._controller.status = Status("ready", "Connected.")
    module.panel.refresh()
    assert module.ui.statusLabel.text == f"Connected. {message}"
    module.ui.volumeSelector.setCurrentNode(volume)
    assert module.ui.statusLabel.text == "Connected."


def test_entering_selects_the_active_volume_or_the_first(module, add_volume):
    module.panel.enter()
    assert module.logic.volume is None, "a volume was selected"
    module.panel.exit()
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    first, second = (add_volume(np.zeros(SHAPE, np.int16)) for _ in range(2))
    module.panel.enter()
    assert module.logic.volume is first
    module.panel.exit()
    slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(second.GetID())
    module.panel.enter()
    assert module.logic.volume is first, "the selection changed"
    module.panel.exit()
    module.ui.volumeSelector.setCurrentNode(None)
    module.panel.enter()
    assert module.logic.volume is second


# ---- locking ----------------------------------------------------------------------------------------------


def test_a_locked_segment_is_shown_as_one(opened):
    button = opened.ui.lockButton
    assert not button.enabled
    opened.ui.nextSegmentButton.click()
    segments = opened.editor.segmentationNode().GetSegmentation()
    first = opened.logic.segmentID
    button.click()
    assert segments.GetSegment(first).HasTag(LOCKED_TAG)
    opened.ui.nextSegmentButton.click()
    assert (button.enabled, button.checked) == (True, False)
    opened.editor.setCurrentSegmentID(first)
    assert button.checked
    segments.GetSegment(first).RemoveTag(LOCKED_TAG)
    opened.panel.refresh()
    assert not button.checked
    button.click()
    button.click()
    assert not segments.GetSegment(first).HasTag(LOCKED_TAG)


# ---- undo of manual edits ---------------------------------------------------------------------------------


class EditorUser:
    """A user who clicks and paints with the Segment Editor. Each stroke paints a bar of voxels along k."""

    def __init__(self, module, volume, wait_until):
        self.module, self.volume, self._wait_until = module, volume, wait_until

    def click(self, i, j, k):
        assert self.module.logic.addPoint(geometry.ijkToWorld(self.volume, (i, j, k)))
        self.module.panel._selectInEditor()
        self.wait()

    def paint(self, i, j):
        self.module.editor.saveStateForUndo()
        mask = self.shown()
        mask[i, j] = True
        logic = self.module.logic
        # The Segment Editor's effects use this function, too. Its undo depends on the modified times that are set.
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask.T.astype(np.uint8), logic.segmentation, logic.segmentID, self.volume
        )
        self.wait()

    def undo(self):
        self.module.key(qt.Qt.Key_Z, qt.Qt.ControlModifier)
        self.wait()

    def redo(self):
        self.module.key(qt.Qt.Key_Z, qt.Qt.ControlModifier | qt.Qt.ShiftModifier)
        self.wait()

    def wait(self):
        self.module.panel.poll()
        self._wait_until(lambda: not self.module.logic.active)
        self.module.panel.poll()

    def shown(self):
        shape = self._maps().shape
        return self._maps().read(self.module.logic.segmentID, Box.whole(shape))

    def bars(self):
        """The positions (i, j) of the painted bars."""
        return {(int(i), int(j)) for i, j in np.argwhere(self.shown().all(axis=2))}

    def _maps(self):
        return Labelmaps(self.module.logic.segmentation, self.volume)


@pytest.fixture
def user(tester, server, add_volume, wait_until):
    volume = add_volume(blobs())
    tester.use(server.address)
    tester.panel.enter()
    return EditorUser(tester, volume, wait_until)


def test_a_prediction_continues_while_another_module_is_open(user):
    logic = user.module.logic
    user.module.panel._onPicked(geometry.ijkToWorld(user.volume, TISSUE["A"]), None)
    assert logic.busy
    user.module.panel.exit()
    user._wait_until(lambda: not logic.busy)
    assert user.shown()[TISSUE["A"]]
    user.module.panel.enter()
    assert user.module.ui.undoButton.enabled


def test_undo_reverts_strokes_one_by_one_and_then_prompts(user):
    user.click(*TISSUE["A"])
    clicked = user.shown()
    assert clicked.any()
    user.paint(2, 2)
    user.paint(4, 4)
    assert user.bars() == {(2, 2), (4, 4)}
    user.undo()
    assert user.bars() == {(2, 2)}
    user.undo()
    np.testing.assert_array_equal(user.shown(), clicked)
    user.undo()
    assert not user.shown().any()
    user.redo()
    np.testing.assert_array_equal(user.shown(), clicked)


def test_redo_of_strokes(user):
    user.click(*TISSUE["A"])
    user.paint(2, 2)
    user.paint(4, 4)
    for _ in range(2):
        user.undo()
        user.undo()
        assert user.bars() == set()
        user.redo()
        user.redo()
        assert user.bars() == {(2, 2), (4, 4)}
    assert not user.module.ui.redoButton.enabled
    user.undo()
    user.paint(6, 6)
    assert not user.module.ui.redoButton.enabled, "redo is enabled after another stroke"
    assert user.bars() == {(2, 2), (6, 6)}


def test_the_segment_editors_undo_does_not_wipe_a_result(user):
    user.click(*TISSUE["A"])
    user.paint(2, 2)
    user.click(*TISSUE["B"])
    shown = user.shown()
    assert shown[TISSUE["B"]]
    user.module.editor.undo()
    user.wait()
    np.testing.assert_array_equal(user.shown(), shown)
    user.undo()
    assert not user.shown()[TISSUE["B"]]
    assert user.bars() == {(2, 2)}
    user.undo()
    assert user.bars() == set(), "the strokes are not one step"
    assert user.shown()[TISSUE["A"]]


def test_undo_does_not_empty_a_painted_segment(user):
    user.module.ui.nextSegmentButton.click()
    user.paint(2, 2)
    user.paint(4, 4)
    user.module.editor.undoEnabled = True  # clears the history, as for a loaded segment
    user.paint(6, 6)
    for _ in range(3):
        user.undo()
    assert user.bars() == {(2, 2), (4, 4)}
    assert user.module.logic.session is None


def test_edits_outside_the_segment_editor_are_undone_too(user):
    user.click(*TISSUE["A"])
    clicked = user.shown()
    user.paint(2, 2)
    user.module.editor.undoEnabled = True  # clears the history
    assert user.module.ui.undoButton.enabled
    user.undo()
    np.testing.assert_array_equal(user.shown(), clicked)
    user.redo()
    assert user.bars() == {(2, 2)}


def test_a_click_makes_a_mask_and_ctrl_z_undoes_it(tester, demo, add_volume, wait_until):
    """End to end, from the view to a real server with the embedded model."""
    i, j, k = np.indices((48, 48, 48))
    ball = (i - 24) ** 2 + (j - 24) ** 2 + (k - 24) ** 2 < 10**2
    node = add_volume(np.where(ball, 200, -100).astype(np.int16))
    red = view("Red")
    red.mrmlSliceNode().JumpSliceByCentering(24, 24, 24)
    module = tester
    module.use(demo)
    module.ui.volumeSelector.setCurrentNode(node)
    module.panel.enter()
    module.key(qt.Qt.Key_P)
    x, y, *_ = np.linalg.inv(geometry.matrixArray(red.mrmlSliceNode().GetXYToRAS())) @ [24, 24, 24, 1]
    gestures.click(red.VTKWidget(), round(x), red.height - 1 - round(y))
    wait_until(lambda: module.logic.canUndo and not module.logic.busy)
    segmentation, segmentID = module.editor.segmentationNode(), module.editor.currentSegmentID()

    def voxels():
        return int((slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segmentID, node) != 0).sum())

    assert voxels() > 0
    assert module.ui.statusLabel.text.startswith("Done in")
    module.key(qt.Qt.Key_Z, qt.Qt.ControlModifier)
    wait_until(lambda: module.logic.canRedo and not module.logic.busy)
    assert voxels() == 0


def segmentsTable(opened):
    """Open the Segment Editor's section. Return the table of segments."""
    opened.ui.segmentEditorCollapsibleButton.collapsed = False
    opened.window.activateWindow()
    slicer.app.processEvents()
    (table,) = slicer.util.findChildren(opened.editor, name="SegmentsTable")
    assert table.visible
    return table


def test_an_empty_segmentation_does_not_inherit_the_selected_segment(opened):
    """The Segment Editor keeps the selected segment's ID in its node if the new segmentation has no segments."""
    for _ in range(2):
        opened.ui.nextSegmentButton.click()
    old, segmentID = opened.logic.segmentation, opened.logic.segmentID
    new = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "new")
    opened.editor.setSegmentationNode(new)
    assert (opened.logic.segmentation, opened.logic.segmentID) == (new, None)
    assert opened.editor.currentSegmentID() == ""
    assert not opened.ui.resetSegmentButton.enabled
    new.GetSegmentation().AddEmptySegment(segmentID)
    opened.editor.setCurrentSegmentID(segmentID)
    assert opened.logic.segmentID == segmentID, "a segment with the ID of the old one is not selected"
    opened.editor.setSegmentationNode(old)
    slicer.mrmlScene.RemoveNode(old)
    assert (opened.logic.segmentation, opened.logic.segmentID) == (opened.editor.segmentationNode(), None)


def test_delete_in_the_table_of_segments_removes_the_selected_one(opened, volume):
    table = segmentsTable(opened)
    for key in (qt.Qt.Key_Delete, qt.Qt.Key_Backspace):
        for _ in range(2):
            opened.ui.nextSegmentButton.click()
        segmentation = opened.editor.segmentationNode().GetSegmentation()
        names = list(segmentation.GetSegmentIDs())
        opened.editor.setCurrentSegmentID(names[0])
        opened.ui.tokenLineEdit.setFocus()
        gestures.key(opened.ui.tokenLineEdit, key)
        opened.key(key)
        assert list(segmentation.GetSegmentIDs()) == names, "the table does not have the focus"
        table.setFocus()
        gestures.key(table, key)
        assert list(segmentation.GetSegmentIDs()) == names[1:]
        assert opened.logic.segmentID != names[0]


def test_delete_in_a_name_that_is_edited_keeps_the_segment(opened, volume):
    table = segmentsTable(opened)
    opened.ui.nextSegmentButton.click()
    table.setFocus()
    table.editItem(table.item(0, 0))
    edit = qt.QApplication.focusWidget()
    assert edit is not table
    gestures.key(edit, qt.Qt.Key_Backspace)
    assert opened.editor.segmentationNode().GetSegmentation().GetNumberOfSegments() == 1
