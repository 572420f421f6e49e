"""Tests of the test harness: PythonQt's semantics, and the documented behavior of the fakes."""

import subprocess
import sys
import types

import fakes
import gestures
import numpy as np
import pytest
import pythonqt
import qt
import slicer

# ---- PythonQt ---------------------------------------------------------------------------------------------


def test_properties_are_attributes():
    label = qt.QLabel("before")
    label.text = "after"
    assert label.text == "after"
    with pytest.raises(TypeError):
        label.text()
    with pytest.raises(AttributeError):
        label.txt = "no such property"
    label.objectName = "aLabel"
    assert label.name == "aLabel"


def test_signals_connect_by_string():
    button = qt.QPushButton("&Point")
    got = []
    button.checkable = True
    assert button.connect("clicked(bool)", got.append)
    button.click()
    button.click()
    assert button.disconnect("clicked(bool)", got.append)
    button.click()
    assert got == [True, False]
    assert button.shortcut.toString() == "Alt+P"


def test_an_unknown_signal_is_detected(qt_errors, capfd):
    assert not qt.QPushButton().connect("pushed()", print)
    assert "'pushed()' does not exist" in capfd.readouterr().err


def test_an_exception_in_a_slot_is_detected(qt_errors):
    def fail(checked):
        raise ValueError("in the slot")

    button = qt.QPushButton()
    button.connect("clicked(bool)", fail)
    button.click()
    assert qt_errors == ["ValueError: in the slot"]
    qt_errors.clear()


def test_a_warning_of_qt_is_detected(qt_errors):
    import _pythonqt_host

    outer = qt.QWidget()
    outer.setLayout(qt.QVBoxLayout())
    outer.setLayout(qt.QVBoxLayout())
    (message,) = _pythonqt_host.take_messages()
    assert "already has a layout" in message


def test_timer(wait_until):
    ticks = []
    timer = qt.QTimer()
    timer.setInterval(2)
    timer.connect("timeout()", lambda: ticks.append(timer.remainingTime))
    timer.start()
    wait_until(lambda: len(ticks) >= 3)
    timer.stop()
    assert not timer.active


def test_settings_are_stored_in_the_tests_folder(application, tmp_path):
    qt.QSettings().setValue("NNInteractiveWS/servers", ["ws://a", "ws://b"])
    slicer.app.userSettings().setValue("NNInteractiveWS/live", False)
    settings = qt.QSettings()
    settings.sync()
    assert settings.fileName().startswith(str(tmp_path))
    assert settings.value("NNInteractiveWS/servers") == ("ws://a", "ws://b")
    assert slicer.util.settingsValue("NNInteractiveWS/live", True, converter=slicer.util.toBool) is False
    assert slicer.util.settingsValue("NNInteractiveWS/other", "default") == "default"


def test_each_application_has_separate_settings(application):
    assert qt.QSettings().allKeys() == ()


def test_a_shortcut_is_active_until_it_is_removed(application):
    window = application.mainWindow()
    used = []
    shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+Shift+Z"), window)
    shortcut.connect("activated()", lambda: used.append("redo"))
    control_shift = qt.Qt.ControlModifier | qt.Qt.ShiftModifier
    gestures.key(window, qt.Qt.Key_Z, modifiers=qt.Qt.ControlModifier)
    assert used == []
    gestures.key(window, qt.Qt.Key_Z, modifiers=control_shift)
    assert used == ["redo"]
    shortcut.setParent(None)
    shortcut.deleteLater()
    gestures.key(window, qt.Qt.Key_Z, modifiers=control_shift)
    assert used == ["redo"]


def test_an_event_filter_receives_and_stops_events():
    class Filter(qt.QObject):
        seen = ()

        def eventFilter(self, watched, event):
            if event.type() != qt.QEvent.MouseButtonPress:
                return False
            self.seen = (event.pos().x(), event.pos().y(), event.button(), event.modifiers())
            return event.modifiers() == qt.Qt.NoModifier

    class Widget(qt.QWidget):
        presses = 0

        def mousePressEvent(self, event):
            self.presses += 1

    widget, watching = Widget(), Filter()
    widget.installEventFilter(watching)
    gestures.click(widget, 3, 4)
    assert watching.seen == (3, 4, qt.Qt.LeftButton, qt.Qt.NoModifier)
    assert widget.presses == 0
    gestures.click(widget, 5, 6, qt.Qt.RightButton, qt.Qt.ShiftModifier)
    assert watching.seen == (5, 6, qt.Qt.RightButton, qt.Qt.ShiftModifier)
    assert widget.presses == 1


def test_a_widget_is_grabbed_into_an_image(tmp_path):
    label = qt.QLabel("MMMM")
    label.setStyleSheet("background: white; color: black")
    label.resize(80, 40)
    assert label.grab().save(str(tmp_path / "label.png"))
    image = qt.QImage(str(tmp_path / "label.png"))
    assert (image.width(), image.height()) == (80, 40)
    grays = {qt.QColor(image.pixel(x, y)).red() for x in range(80) for y in range(40)}
    assert min(grays) < 64
    assert max(grays) == 255, "no text was drawn"


def test_a_failed_build_names_missing_packages(tmp_path):
    command = [sys.executable, str(pythonqt.BUILD_SCRIPT)]
    environment = {"PATH": str(tmp_path), "NNINTERACTIVE_WS_PYTHONQT": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 77
    assert "qtbase5-dev" in done.stderr


# ---- fakes ------------------------------------------------------------------------------------------------

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0">
 <class>Panel</class>
 <widget class="qMRMLWidget" name="Panel">
  <layout class="QVBoxLayout" name="panelLayout">
   <item>
    <widget class="ctkCollapsibleButton" name="advanced">
     <property name="text"><string>Advanced</string></property>
     <property name="collapsed"><bool>true</bool></property>
     <layout class="QVBoxLayout" name="advancedLayout">
      <item>
       <widget class="QCheckBox" name="liveCheckBox">
        <property name="text"><string>Live</string></property>
        <property name="SlicerParameterName" stdset="0"><string>live</string></property>
       </widget>
      </item>
      <item>
       <widget class="QLineEdit" name="serverEdit">
        <property name="SlicerParameterName" stdset="0"><string>server</string></property>
       </widget>
      </item>
     </layout>
    </widget>
   </item>
  </layout>
 </widget>
 <customwidgets>
  <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header></customwidget>
  <customwidget>
   <class>ctkCollapsibleButton</class><extends>QWidget</extends><header>ctkCollapsibleButton.h</header>
  </customwidget>
 </customwidgets>
</ui>
"""


@pytest.fixture
def panel(application, tmp_path):
    (tmp_path / "Panel.ui").write_text(UI)
    return slicer.util.loadUI(str(tmp_path / "Panel.ui"))


def test_a_ui_file_is_loaded_with_fakes(panel):
    ui = slicer.util.childWidgetVariables(panel)
    assert type(panel) is fakes.qMRMLWidget
    assert type(ui.advanced) is fakes.ctkCollapsibleButton
    assert type(ui.liveCheckBox) is qt.QCheckBox
    assert ui.liveCheckBox.property("SlicerParameterName") == "live"
    panel.setMRMLScene(slicer.mrmlScene)
    assert panel.mrmlScene() is slicer.mrmlScene


def test_a_collapsible_button_hides_its_contents(panel):
    ui = slicer.util.childWidgetVariables(panel)
    changes = []
    ui.advanced.connect("contentsCollapsed(bool)", changes.append)
    panel.show()
    assert (ui.advanced.text, ui.advanced.collapsed) == ("Advanced", True)
    assert not ui.liveCheckBox.visible
    ui.advanced.collapsed = False
    assert ui.liveCheckBox.visible
    gestures.click(ui.advanced, 10, 5)
    assert not ui.liveCheckBox.visible
    assert changes == [False, True]


def test_parameters_and_widgets_are_synchronized(panel):
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    @parameterNodeWrapper
    class Parameters:
        live: bool = True
        server: str = "ws://127.0.0.1:1528"
        volume: slicer.vtkMRMLScalarVolumeNode

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    parameters, again = Parameters(node), Parameters(node)
    ui = slicer.util.childWidgetVariables(panel)
    tag = parameters.connectParametersToGui({"live": ui.liveCheckBox, "server": ui.serverEdit})
    assert ui.liveCheckBox.checked
    assert ui.serverEdit.text == "ws://127.0.0.1:1528"
    ui.liveCheckBox.click()
    ui.serverEdit.text = "ws://gpu"
    assert (again.live, again.server) == (False, "ws://gpu")
    again.live = True
    assert ui.liveCheckBox.checked
    with pytest.raises(TypeError):
        parameters.live = 1
    parameters.volume = volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert again.volume is volume
    parameters.disconnectGui(tag)
    ui.liveCheckBox.click()
    assert parameters.live
    assert parameters.connectGui(ui) is None
    assert ui.liveCheckBox.checked
    ui.liveCheckBox.click()
    assert not parameters.live


def test_the_segment_editor_stores_its_settings_in_its_node(application):
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    ids = [segmentation.GetSegmentation().AddEmptySegment(name, name) for name in "ab"]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor = slicer.qMRMLSegmentEditorWidget()
    editor.setMRMLScene(slicer.mrmlScene)
    editor.setMRMLSegmentEditorNode(node)
    received = []
    assert editor.connect("segmentationNodeChanged(vtkMRMLSegmentationNode *)", received.append)
    assert editor.connect("currentSegmentIDChanged(QString)", received.append)
    editor.setSegmentationNode(segmentation)
    editor.setCurrentSegmentID("b")
    assert received == [segmentation, "a", "b"]
    assert (editor.currentSegmentID(), node.GetSelectedSegmentID()) == (ids[1], "b")
    editor.blockSignals(True)
    editor.setSegmentationNode(None)
    assert received[3:] == []
    editor.setupViewObservations()
    assert editor.calls == ["setupViewObservations"]


def test_slice_views_have_real_geometry(application, add_volume):
    volume = add_volume(np.zeros((40, 30, 20), np.int16), spacing=(1.0, 2.0, 3.0))
    views = slicer.app.layoutManager()
    assert views.sliceViewNames() == ("Red", "Yellow", "Green")
    widget = views.sliceWidget("Red")
    logic, node = widget.sliceLogic(), widget.mrmlSliceNode()
    assert node.GetOrientation() == "Axial"
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceNode").GetLayoutName() == "Red"
    view = widget.sliceView()
    assert node.GetDimensions()[:2] == (view.width, view.height)
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    logic.FitSliceToAll(view.width, view.height)
    center = node.GetXYToRAS().MultiplyPoint((view.width / 2, view.height / 2, 0, 1))
    bounds = np.zeros(6)
    volume.GetRASBounds(bounds)
    assert center[:2] == pytest.approx([(bounds[0] + bounds[1]) / 2, (bounds[2] + bounds[3]) / 2])


def test_the_mouse_reaches_the_interactor_of_a_view(application):
    view = slicer.app.layoutManager().sliceWidget("Green").sliceView()
    interactor, got = view.interactor(), []
    for event in ("LeftButtonPressEvent", "MouseMoveEvent", "LeftButtonReleaseEvent"):
        interactor.AddObserver(event, lambda caller, event: got.append((event, caller.GetEventPosition())))
    gestures.drag(view.VTKWidget(), [(10, 20), (30, 50)], modifiers=qt.Qt.ShiftModifier)
    bottom = view.height - 1
    assert got == [
        ("LeftButtonPressEvent", (10, bottom - 20)),
        ("MouseMoveEvent", (30, bottom - 50)),
        ("LeftButtonReleaseEvent", (30, bottom - 50)),
    ]
    assert interactor.GetShiftKey()


def test_a_module_is_loaded_used_and_unloaded(application, tmp_path):
    from slicer.ScriptedLoadableModule import (
        ScriptedLoadableModule,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
        ScriptedLoadableModuleWidget,
    )

    class Tried(ScriptedLoadableModule):
        pass

    class TriedWidget(ScriptedLoadableModuleWidget):
        def setup(self):
            ScriptedLoadableModuleWidget.setup(self)
            self.layout.addWidget(qt.QLabel(self.resourcePath("UI/Tried.ui")))
            self.parameterNode = ScriptedLoadableModuleLogic.getParameterNode(TriedLogic())

        def cleanup(self):
            self.cleaned = True

    class TriedLogic(ScriptedLoadableModuleLogic):
        pass

    class TriedTest(ScriptedLoadableModuleTest):
        def runTest(self):
            self.delayDisplay("tried")
            tests.append(self.messages)

    tests = []
    python = types.ModuleType("Tried")
    python.__file__ = str(tmp_path / "Tried.py")
    for cls in (Tried, TriedWidget, TriedLogic, TriedTest):
        setattr(python, cls.__name__, cls)
        cls.__module__ = "Tried"
    sys.modules["Tried"] = python
    widget = application.createModule(python)
    (label,) = slicer.util.findChildren(widget.parent, className="QLabel")
    assert label.text == str(tmp_path / "Resources" / "UI" / "Tried.ui")
    assert label.visible
    assert TriedLogic().getParameterNode() is widget.parameterNode
    assert slicer.modules.tried.widgetRepresentation().self() is widget
    slicer.selfTests["Tried"]()
    assert tests == [["tried"]]
    application.unloadModule("Tried")
    assert widget.cleaned
    del sys.modules["Tried"]


def test_slicer_util_works_with_the_application(application):
    assert slicer.util.mainWindow().objectName == "qSlicerMainWindow"
    slicer.util.forceRenderAllViews()
    assert slicer.app.layoutManager().sliceWidget("Red").sliceView().renders == 1
    assert slicer.modules.segmentations.logic().GetMRMLScene() is slicer.mrmlScene


def test_questions_to_the_user(application):
    fakes.ctkMessageBox.answers += [qt.QMessageBox.Yes, qt.QMessageBox.Cancel]
    assert slicer.util.confirmYesNoDisplay("Send it?")
    assert not slicer.util.confirmOkCancelDisplay("And this?")
    assert fakes.ctkMessageBox.asked == ["Send it?", "And this?"]
    with pytest.raises(AssertionError, match="no answer for: What"):
        slicer.util.messageBox("What")
