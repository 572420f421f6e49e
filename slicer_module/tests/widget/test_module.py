"""The module as Slicer loads it, in a fake application."""

import importlib
from pathlib import Path
import subprocess
import sys
import sysconfig
import tomllib

import bare_slicer
import gestures
from NNInteractiveWSLib import geometry, packages
import numpy as np
from packaging.requirements import Requirement
import pytest
import qt
import slicer

EXTENSION = Path(__file__).parents[2]
MODULE = EXTENSION / "NNInteractiveWS"
CHOICES = ("livePreview", "runAutomatically", "autoZoom")


@pytest.fixture
def module(application):
    """The module's widget, not open."""
    return application.createModule(importlib.import_module("NNInteractiveWS"))


@pytest.fixture
def opened(module):
    select("NNInteractiveWS")
    return module


def select(name):
    slicer.util.selectModule(name)


def choices():
    """The parameters in the parameter node."""
    node = slicer.mrmlScene.GetSingletonNode("NNInteractiveWS", "vtkMRMLScriptedModuleNode")
    return {name: node.GetParameter(name) for name in CHOICES}


def press(key):
    gestures.key(slicer.util.mainWindow(), key)


def add_ball():
    i, j, k = np.indices((48, 48, 48))
    ball = (i - 24) ** 2 + (j - 24) ** 2 + (k - 24) ** 2 < 10**2
    return slicer.util.addVolumeFromArray(np.where(ball, 200, -100).astype(np.int16))


# ---- the module -------------------------------------------------------------------------------------------


def test_the_modules_description(module):
    about = slicer.modules.nninteractivews
    assert (about.title, about.categories) == ("nnInteractive WS", ["Segmentation"])
    assert not about.icon.isNull()
    assert about.contributors == ["nninteractive-ws contributors"]


def test_a_script_shows_it_in_a_separate_window(module):
    window = slicer.qMRMLWidget()
    window.setLayout(qt.QVBoxLayout())
    widget = type(module)(window)
    widget.setup()
    assert widget.ui.tabWidget.parent().parent() is window
    widget.cleanup()


def test_shortcuts_are_active_while_the_module_is_open(opened):
    opened.editor.setSourceVolumeNode(add_ball())
    press(qt.Qt.Key_P)
    assert opened.ui.pointButton.checked
    select("")
    assert not opened.ui.pointButton.checked
    press(qt.Qt.Key_P)
    assert not opened.ui.pointButton.checked
    select("NNInteractiveWS")
    press(qt.Qt.Key_P)
    assert opened.ui.pointButton.checked


def test_the_segment_editor_is_below_and_has_separate_settings(opened):
    assert opened.editor.visible
    assert opened.editor.parent().objectName == "segmentEditorCollapsibleButton"
    node = opened.editor.mrmlSegmentEditorNode()
    assert node is slicer.mrmlScene.GetSingletonNode("NNInteractiveWS", "vtkMRMLSegmentEditorNode")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentEditorNode") == 1


def test_parameters_are_stored_in_the_scene(opened):
    assert choices() == dict.fromkeys(CHOICES, "True")
    opened.ui.runAutomaticallyCheckBox.click()
    assert choices()["runAutomatically"] == "False"
    assert not opened.logic.live
    slicer.mrmlScene.GetSingletonNode("NNInteractiveWS", "vtkMRMLScriptedModuleNode").SetParameter("autoZoom", "False")
    assert not opened.ui.autoZoomCheckBox.checked


def test_a_closed_module_adds_nothing_to_a_new_scene(opened):
    select("")
    slicer.mrmlScene.Clear(True)
    for kind in ("vtkMRMLScriptedModuleNode", "vtkMRMLSegmentEditorNode"):
        assert slicer.mrmlScene.GetNumberOfNodesByClass(kind) == 0


@pytest.mark.parametrize("everything", [False, True])
def test_the_module_works_after_the_scene_was_closed(opened, everything):
    """``everything``: whether singleton nodes are removed, too."""
    opened.editor.setSourceVolumeNode(add_ball())
    opened.logic.nextSegment()
    opened.ui.autoZoomCheckBox.click()
    slicer.mrmlScene.Clear(everything)
    assert choices() == dict.fromkeys(CHOICES, "True")
    assert opened.ui.autoZoomCheckBox.checked
    assert (opened.logic.volume, opened.logic.segmentation) == (None, None)
    assert not opened.ui.pointButton.enabled
    volume = add_ball()
    opened.editor.setSourceVolumeNode(volume)
    assert opened.logic.volume is volume
    press(qt.Qt.Key_P)
    assert opened.ui.pointButton.checked
    opened.ui.autoZoomCheckBox.click()
    assert choices()["autoZoom"] == "False"


def test_a_saved_scene_is_restored(opened, tmp_path, capfd):
    volume = add_ball()
    opened.editor.setSourceVolumeNode(volume)
    opened.logic.nextSegment()
    opened.editor.setSegmentationNode(opened.logic.segmentation)
    opened.ui.livePreviewCheckBox.click()
    scene = slicer.mrmlScene
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Commit()
    scene.Clear(False)
    assert opened.ui.livePreviewCheckBox.checked
    assert scene.Import()
    assert not opened.ui.livePreviewCheckBox.checked
    assert opened.logic.volume.GetID() == volume.GetID()
    assert opened.logic.segmentation is slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[0]
    assert "Traceback" not in capfd.readouterr().err


def test_reload(opened, monkeypatch):
    """The Reload button also reloads NNInteractiveWSLib."""
    mine = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "NNInteractiveWSLib"}
    for name, python in [*mine.items(), ("NNInteractiveWS", sys.modules["NNInteractiveWS"])]:
        monkeypatch.setitem(sys.modules, name, python)  # restored afterward
    old = opened
    old.editor.setSourceVolumeNode(add_ball())
    monkeypatch.setattr(old.logic, "poll", lambda: pytest.fail("it is still polled"))
    old.onReload()
    new = slicer.modules.nninteractivews.widgetRepresentation().self()
    assert new is not old
    assert sys.modules["NNInteractiveWSLib.geometry"] is not geometry
    assert old.logic is None
    assert [w.name for w in slicer.util.findChildren(new.parent, name="tabWidget")] == ["tabWidget"]
    assert new.logic.volume is not None
    press(qt.Qt.Key_P)  # a second shortcut with the same key would switch the tool off again
    assert new.ui.pointButton.checked
    for name in [name for name in sys.modules if name.partition(".")[0] == "NNInteractiveWSLib"]:
        if name not in mine:
            del sys.modules[name]


def test_everything_is_removed_when_slicer_ends(application, opened, monkeypatch):
    logic = opened.logic
    monkeypatch.setattr(logic, "poll", lambda: pytest.fail("it is still polled"))
    application.unloadModule("NNInteractiveWS")
    assert opened.Observations == []
    assert opened.logic is None
    assert slicer.util.findChildren(opened.parent, name="tabWidget") == []
    press(qt.Qt.Key_P)
    status = logic.status
    slicer.mrmlScene.Clear(True)
    assert logic.status is status, "it still observes the scene"
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 0


# ---- sample data ------------------------------------------------------------------------------------------


def test_the_sample_volume(application, module):
    assert not hasattr(slicer.modules, "sampleDataSources"), "sample data was registered before the end of startup"
    application.completeStartup()
    ((category, (source,)),) = slicer.modules.sampleDataSources.items()
    assert category == "nnInteractive WS"
    picture = qt.QImage(source.thumbnailFileName)
    assert 100 < picture.width() <= picture.height() * 2 < 1200
    volume = source.customDownloader(source)
    assert volume.GetName() == source.sampleName
    from nninteractive_ws.demo.phantom import ORGANS, make_phantom

    phantom = make_phantom()
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(volume).transpose(2, 1, 0), phantom.image)
    liver, spine = (
        geometry.ijkToWorld(volume, np.argwhere(phantom.labels == ORGANS[name]).mean(0)) for name in ("liver", "spine")
    )
    lungs = geometry.ijkToWorld(volume, np.argwhere(phantom.mask("right lung")).mean(0))
    assert liver[0] > spine[0], "the liver is on the right"
    assert liver[1] > spine[1], "the spine is behind"
    assert lungs[2] > liver[2], "the lungs are above"
    red = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceCompositeNode()
    assert red.GetBackgroundVolumeID() == volume.GetID()


# ---- packages ---------------------------------------------------------------------------------------------


def test_the_required_version_is_this_one():
    project = tomllib.loads((EXTENSION.parent / "pyproject.toml").read_text())["project"]
    (line,) = packages.needed(MODULE / "Resources" / "requirements.txt")
    requirement = Requirement(line)
    assert requirement.name == project["name"]
    assert project["version"] in requirement.specifier
    assert "1.0" not in requirement.specifier


def test_an_old_version_is_insufficient(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# comment\n\nnninteractive-ws>=99\n")
    assert packages.needed(path) == ["nninteractive-ws>=99"]
    assert not packages.areInstalled(path)


@pytest.mark.parametrize("case", bare_slicer.CASES)
def test_missing_packages(case, tmp_path):
    paths = [tmp_path, sysconfig.get_paths()["purelib"], EXTENSION.parent]
    command = [sys.executable, "-S", bare_slicer.__file__, *map(str, paths), case]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_failed_import_is_reported(application, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("NNInteractiveWSLib.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "msgspec", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "nninteractive_ws"]:
        monkeypatch.delitem(sys.modules, name)
    widget = application.createModule(importlib.import_module("NNInteractiveWS"))
    assert widget.ui is None
    (reason,) = slicer.util.findChildren(widget.parent, name="installReason")
    assert "msgspec" in reason.text


# ---- self test --------------------------------------------------------------------------------------------


def own_settings():
    settings = qt.QSettings()
    return {key: settings.value(key) for key in settings.allKeys()}


def test_the_self_test_without_a_server(module, monkeypatch):
    monkeypatch.delenv("NNINTERACTIVE_WS_TEST_SERVER", raising=False)
    qt.QSettings().setValue("NNInteractiveWS/agreedServers", ["ws://mine"])
    qt.QSettings().setValue("NNInteractiveWS/servers", ["ws://mine", "ws://other"])
    module.rebuild()
    before = own_settings()
    slicer.selfTests["NNInteractiveWS"]()
    assert own_settings() == before
    assert module.ui.serverComboBox.currentText == "ws://mine"


def test_the_self_test_with_a_server(module, demo, monkeypatch):
    monkeypatch.setenv("NNINTERACTIVE_WS_TEST_SERVER", demo)
    slicer.selfTests["NNInteractiveWS"]()
