"""The panel on the real logic: what is pressed and drawn reaches it, and what it says is shown."""

from assembled import Module, Noted
from desk import TISSUE, blobs
import gestures
from nninteractive_ws import Box
from nninteractive_ws.messages import Model
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.labelmaps import Labelmaps
from NNInteractiveWSLib.segments import LOCKED_TAG
from NNInteractiveWSLib.status import Status
import numpy as np
import pytest
import qt
import slicer
from test_panel import WIDTH

SHAPE = (40, 30, 20)


@pytest.fixture
def volume(application, add_volume):
    """Under the slice views, which show its middle."""
    node = add_volume(np.zeros(SHAPE, np.int16), spacing=(1.0, 1.0, 2.0), directions=np.diag([-1.0, -1.0, 1.0]))
    views = slicer.app.layoutManager()
    for name in views.sliceViewNames():
        widget = views.sliceWidget(name)
        widget.sliceLogic().GetSliceCompositeNode().SetBackgroundVolumeID(node.GetID())
        widget.sliceLogic().FitSliceToAll(widget.sliceView().width, widget.sliceView().height)
    return node


@pytest.fixture
def module(application):
    made = Module(Noted)
    yield made
    made.close()


@pytest.fixture
def opened(module, volume):
    module.editor.setSourceVolumeNode(volume)
    module.panel.enter()
    return module


def view(name):
    return slicer.app.layoutManager().sliceWidget(name).sliceView()


def test_tools_want_a_volume_and_a_model_that_knows_them(module, volume):
    tools = [module.ui.pointButton, module.ui.boundingBoxButton, module.ui.scribbleButton, module.ui.lassoButton]
    assert [tool.enabled for tool in tools] == [False] * 4
    module.editor.setSourceVolumeNode(volume)
    assert [tool.enabled for tool in tools] == [True] * 4
    known = Model(
        name="m", license="L", patch_size=(8, 8, 8), prompts=("point", "bbox2d"), scribble_thickness=(1, 1, 1)
    )
    module.logic._conversation.model = known
    module.panel.refresh()
    assert [tool.enabled for tool in tools] == [True, True, False, False]
    assert module.ui.modelLabel.text == "m, licence L"


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
    assert renderer.GetViewProps().GetNumberOfItems() == 1, "the drag leaves no trail"
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


def test_shortcuts_live_between_enter_and_exit(opened, monkeypatch):
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
    assert opened.logic.calls == ["reset"], "there is nothing to take back"
    monkeypatch.setattr(Noted, "canUndo", True)
    monkeypatch.setattr(Noted, "canRedo", True)
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


def test_the_mouse_is_for_one_thing_at_a_time(opened):
    """A tool, an effect of the Segment Editor, or markups that are placed: what was chosen last."""
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
    assert not node.GetActiveEffectName(), "it is put away with the module"


def test_nothing_that_takes_long_is_begun_during_a_drag(opened, monkeypatch):
    allowed = []
    monkeypatch.setattr(opened.logic, "poll", lambda *, mayPause: allowed.append(mayPause) or [])
    opened.ui.lassoButton.click()
    widget = view("Red").VTKWidget()
    for act in (gestures.press, gestures.move, gestures.release):
        act(widget, 50, 50)
        opened.panel.poll()
    assert allowed[:2] == [False, False]
    assert allowed[-1]


def test_the_mouse_is_the_views_again_after_exit(opened):
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


def test_a_shortcut_is_changed_and_remembered(opened):
    opened.ui.pointShortcutEdit.setKeySequence(qt.QKeySequence("Q"))
    opened.panel._onKeysChanged()
    assert opened.ui.pointButton.text == "Point (Q)"
    opened.key(qt.Qt.Key_P)
    assert not opened.ui.pointButton.checked
    opened.key(qt.Qt.Key_Q)
    assert opened.ui.pointButton.checked
    opened.close()
    again = Module(Noted)
    assert again.ui.pointShortcutEdit.keySequence.toString() == "Q"
    again.ui.defaultShortcutsButton.click()
    assert again.ui.pointButton.text == "Point (P)"
    again.ui.shortcutsCheckBox.click()
    assert again.ui.pointButton.text == "Point"
    assert not qt.QSettings().value("NNInteractiveWS/shortcuts/enabled")
    again.close()


def test_the_token_is_not_among_the_settings(module):
    module.ui.serverComboBox.setEditText("ws://gpu-box:1528")
    module.ui.tokenLineEdit.text = "nws_secret"
    module.panel.server.use()
    assert module.logic._conversation.server["token"] == "nws_secret"
    settings = qt.QSettings()
    assert settings.value("NNInteractiveWS/servers") == ("ws://gpu-box:1528", "ws://127.0.0.1:1528")
    assert not any("nws_secret" in str(settings.value(key)) for key in settings.allKeys())


def test_options_reach_the_logic(module):
    module.ui.runAutomaticallyCheckBox.click()
    module.ui.livePreviewCheckBox.click()
    assert not module.logic.live
    assert module.logic._conversation.options == {"previews": False, "autozoom": True}
    module.ui.overwriteComboBox.currentIndex = 2
    assert module.editorNode.GetOverwriteMode() == module.editorNode.OverwriteNone
    module.editorNode.SetOverwriteMode(module.editorNode.OverwriteVisibleSegments)
    assert module.ui.overwriteComboBox.currentIndex == 1


def test_the_status_is_shown(module):
    module.logic._conversation.status = Status("predicting", "Refining 3 of 8", 3 / 8)
    module.panel.refresh()
    assert module.ui.statusLabel.text.startswith("Refining 3 of 8")


def test_a_progress_bar_is_there_while_something_moves(module, monkeypatch):
    bar, root = module.ui.progressBar, module.root
    assert not bar.isVisibleTo(root)
    monkeypatch.setattr(Noted, "active", True)
    module.logic._conversation.status = Status("predicting", "Refining 3 of 8", 3 / 8)
    module.panel.refresh()
    assert (bar.isVisibleTo(root), bar.maximum, bar.value) == (True, 100, 38)
    module.logic._conversation.status = Status("predicting", "Predicting")
    module.panel.refresh()
    assert (bar.isVisibleTo(root), bar.maximum) == (True, 0)
    module.logic._conversation.status = Status("lost", "Connection lost")
    module.panel.refresh()
    assert not bar.isVisibleTo(root)
    assert "color" in module.ui.statusLabel.styleSheet
    module.logic._conversation.status = Status("ready", "Done in 0.4 s")
    module.panel.refresh()
    assert module.ui.statusLabel.styleSheet == ""


def test_what_has_not_changed_is_not_set(module):
    module.ui.statusLabel.text = "untouched"
    module.panel.refresh()
    assert module.ui.statusLabel.text == "untouched"
    module.logic._conversation.status = Status("error", "That is outside the volume")
    module.panel.refresh()
    assert module.ui.statusLabel.text == "That is outside the volume"


def test_the_timer_is_quick_while_there_is_something_to_do(module, monkeypatch):
    module.panel.poll()
    assert module.panel._timer.interval == 100
    monkeypatch.setattr(Noted, "active", True)
    module.panel.poll()
    assert module.panel._timer.interval == 10


# ---- how it looks -----------------------------------------------------------------------------------------


def laid_out(module):
    """The panel at the width and height of Slicer's, when each text has been wrapped."""
    area = qt.QScrollArea()
    area.widgetResizable = True
    area.setWidget(module.root)
    area.resize(WIDTH, 900)
    area.show()
    for _ in range(30):  # what has changed is told one level up with each
        slicer.app.processEvents()
    return area


@pytest.mark.parametrize("tested", ["", "Not connected: nothing listens there. " * 5])
def test_the_tabs_are_as_high_as_the_open_one_needs(module, tested):
    module.panel.server._show([tested])
    heights = []
    for tab in (module.ui.configurationTab, module.ui.promptsTab, module.ui.configurationTab):
        module.ui.tabWidget.setCurrentWidget(tab)
        area = laid_out(module)
        needed = tab.heightForWidth(tab.width) if tab.hasHeightForWidth() else tab.sizeHint.height()
        assert needed <= tab.height <= needed + 4, "a frame and no more"
        frame, editor = module.ui.statusFrame, module.ui.segmentEditorCollapsibleButton
        assert editor.y - (frame.y + frame.height) <= 6
        assert module.root.height - (editor.y + editor.height) <= 6, "the Segment Editor has what is left"
        heights.append(tab.height)
        area.takeWidget()
    assert heights[0] == heights[2]


def test_long_sentences_are_not_cut_off(module):
    words = "The image needs 31.2 GB where 22.1 GB are free on the server: crop it, or resample it, and try again. "
    module.logic._conversation.status = Status("error", 2 * words)
    module.panel.refresh()
    module.ui.tabWidget.setCurrentWidget(module.ui.configurationTab)
    module.panel.server._show(3 * [words], "color: red")
    area = laid_out(module)
    for label in (module.ui.statusLabel, module.ui.testResultLabel):
        assert label.height >= label.heightForWidth(label.width) > 2 * label.fontMetrics().height()
        assert label.textInteractionFlags & qt.Qt.TextSelectableByMouse
    area.takeWidget()


def test_every_button_says_what_it_does(module):
    buttons = [w for w in slicer.util.findChildren(module.root) if isinstance(w, qt.QPushButton)]
    assert len(buttons) > 15
    assert [button.name for button in buttons if not button.toolTip] == []


# ---- the volume -------------------------------------------------------------------------------------------


def test_without_a_volume_it_says_where_to_select_one(module, volume):
    words = "Select a volume in the Segment Editor below."
    assert module.ui.statusLabel.text == words
    module.logic._conversation.status = Status("ready", "Connected.")
    module.panel.refresh()
    assert module.ui.statusLabel.text == f"Connected. {words}"
    module.editor.setSourceVolumeNode(volume)
    assert module.ui.statusLabel.text == "Connected."


def test_entering_selects_the_active_volume_or_the_first(module, add_volume):
    module.panel.enter()
    assert module.logic.volume is None, "there is none"
    module.panel.exit()
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    first, second = (add_volume(np.zeros(SHAPE, np.int16)) for _ in range(2))
    module.panel.enter()
    assert module.logic.volume is first
    module.panel.exit()
    slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(second.GetID())
    module.panel.enter()
    assert module.logic.volume is first, "what was selected stays"
    module.panel.exit()
    module.editor.setSourceVolumeNode(None)
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


# ---- undo in the Segment Editor and here ------------------------------------------------------------------


class Hand:
    """A user who clicks, and paints with the Segment Editor's brush: a bar of voxels along k with each stroke."""

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
        # By the function that the Segment Editor's effects use, too: its history looks at what that marks as changed.
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
        """Which of the bars at these (i, j) are there."""
        return {(int(i), int(j)) for i, j in np.argwhere(self.shown().all(axis=2))}

    def _maps(self):
        return Labelmaps(self.module.logic.segmentation, self.volume)


@pytest.fixture
def hand(tester, server, add_volume, wait_until):
    volume = add_volume(blobs())
    tester.use(server.address)
    tester.panel.enter()
    return Hand(tester, volume, wait_until)


def test_a_prediction_goes_on_while_another_module_is_open(hand):
    logic = hand.module.logic
    hand.module.panel._onPicked(geometry.ijkToWorld(hand.volume, TISSUE["A"]), None)
    assert logic.busy
    hand.module.panel.exit()
    hand._wait_until(lambda: not logic.busy)
    assert hand.shown()[TISSUE["A"]]
    hand.module.panel.enter()
    assert hand.module.ui.undoButton.enabled


def test_strokes_are_taken_back_one_by_one_and_then_prompts(hand):
    hand.click(*TISSUE["A"])
    clicked = hand.shown()
    assert clicked.any()
    hand.paint(2, 2)
    hand.paint(4, 4)
    assert hand.bars() == {(2, 2), (4, 4)}
    hand.undo()
    assert hand.bars() == {(2, 2)}
    hand.undo()
    np.testing.assert_array_equal(hand.shown(), clicked)
    hand.undo()
    assert not hand.shown().any()
    hand.redo()
    np.testing.assert_array_equal(hand.shown(), clicked)


def test_strokes_are_painted_again(hand):
    hand.click(*TISSUE["A"])
    hand.paint(2, 2)
    hand.paint(4, 4)
    for _ in range(2):
        hand.undo()
        hand.undo()
        assert hand.bars() == set()
        hand.redo()
        hand.redo()
        assert hand.bars() == {(2, 2), (4, 4)}
    assert not hand.module.ui.redoButton.enabled
    hand.undo()
    hand.paint(6, 6)
    assert not hand.module.ui.redoButton.enabled, "something else was painted"
    assert hand.bars() == {(2, 2), (6, 6)}


def test_the_segment_editors_undo_does_not_wipe_a_result(hand):
    hand.click(*TISSUE["A"])
    hand.paint(2, 2)
    hand.click(*TISSUE["B"])
    shown = hand.shown()
    assert shown[TISSUE["B"]]
    hand.module.editor.undo()
    hand.wait()
    np.testing.assert_array_equal(hand.shown(), shown)
    hand.undo()
    assert not hand.shown()[TISSUE["B"]]
    assert hand.bars() == {(2, 2)}
    hand.undo()
    assert hand.bars() == set(), "what was painted is one step now"
    assert hand.shown()[TISSUE["A"]]


def test_a_segment_that_was_painted_before_is_not_taken_back_to_nothing(hand):
    hand.module.ui.nextSegmentButton.click()
    hand.paint(2, 2)
    hand.paint(4, 4)
    hand.module.editor.undoEnabled = True  # as if it had been loaded
    hand.paint(6, 6)
    for _ in range(3):
        hand.undo()
    assert hand.bars() == {(2, 2), (4, 4)}
    assert hand.module.logic.session is None


def test_what_was_changed_without_the_segment_editor_is_taken_back_too(hand):
    hand.click(*TISSUE["A"])
    clicked = hand.shown()
    hand.paint(2, 2)
    hand.module.editor.undoEnabled = True  # and it has forgotten that
    assert hand.module.ui.undoButton.enabled
    hand.undo()
    np.testing.assert_array_equal(hand.shown(), clicked)
    hand.redo()
    assert hand.bars() == {(2, 2)}


def test_a_click_makes_a_mask_and_ctrl_z_takes_it_back(tester, demo, add_volume, wait_until):
    """All of it: the view, the panel, the logic, and a real server with the embedded model."""
    i, j, k = np.indices((48, 48, 48))
    ball = (i - 24) ** 2 + (j - 24) ** 2 + (k - 24) ** 2 < 10**2
    node = add_volume(np.where(ball, 200, -100).astype(np.int16))
    red = view("Red")
    red.mrmlSliceNode().JumpSliceByCentering(24, 24, 24)
    module = tester
    module.use(demo)
    module.editor.setSourceVolumeNode(node)
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
