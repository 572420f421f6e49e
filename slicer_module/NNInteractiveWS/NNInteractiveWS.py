"""The module as Slicer loads it. What it does is in NNInteractiveWSLib.

Most of that is imported only once the packages that it needs are installed: see NNInteractiveWSLib/packages.py.
"""

import os
from pathlib import Path
import socket
import sys
import time
import unittest

from NNInteractiveWSLib import packages
import numpy as np
import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

#: Of the module, of its settings and of its nodes in the scene.
_NAME = "NNInteractiveWS"
_RESOURCES = Path(__file__).parent / "Resources"
_REQUIREMENTS = _RESOURCES / "requirements.txt"


class NNInteractiveWS(ScriptedLoadableModule):
    """What Slicer is told of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("nnInteractive WS")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Markups", "Segmentations"]
        parent.contributors = ["nninteractive-ws contributors"]
        parent.helpText = _(
            "Segment anything in a 3D image by pointing at it: points, boxes, scribbles and lassos become masks, which "
            "are computed by nnInteractive on a server and appear while they are computed. Install nninteractive-ws on "
            "a machine with a GPU, start <tt>nninteractive-ws serve</tt> there, and enter its address under "
            "Configuration. Images are sent to a server only once you have agreed to that server."
        )
        parent.acknowledgementText = _(
            "nnInteractive was made at the German Cancer Research Center (DKFZ): Isensee, Rokuss, Kr&auml;mer et al., "
            'nnInteractive: Redefining 3D Promptable Segmentation, <a href="https://arxiv.org/abs/2503.08373">'
            "arXiv:2503.08373</a>. Please cite it if you use this module. The model's licence is shown in the panel."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer a volume to try things on, in the module Sample Data."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="nnInteractive WS",
        sampleName="TorsoPhantom",
        thumbnailFileName=str(_RESOURCES / "Icons" / "TorsoPhantom.png"),
        # It is computed here; Sample Data wants a name for where it comes from and for a file nevertheless.
        uris="urn:nninteractive-ws:phantom",
        fileNames="TorsoPhantom.nrrd",
        nodeNames="TorsoPhantom",
        customDownloader=addPhantom,
    )


def addPhantom(_source=None):
    """Add a synthetic CT of a torso to the scene and show it; its vtkMRMLScalarVolumeNode, or None where the packages
    that it needs are not installed."""
    try:
        if not packages.areInstalled(_REQUIREMENTS):
            packages.install(_REQUIREMENTS)
    except packages.NotInstalled as e:
        slicer.util.errorDisplay(str(e))
        return None
    from nninteractive_ws.demo.phantom import make_phantom

    with slicer.util.WaitCursor():
        phantom = make_phantom()
    # The phantom's axes go to the left, to the back and to the head.
    ijkToRAS = np.diag([*np.multiply(phantom.spacing, (-1, -1, 1)), 1.0])
    ijkToRAS[:3, 3] = -ijkToRAS[:3, :3] @ (np.subtract(phantom.image.shape, 1) / 2)
    volume = slicer.util.addVolumeFromArray(phantom.image.transpose(2, 1, 0), ijkToRAS, "TorsoPhantom")
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(400, 60)  # soft tissue
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    return volume


@parameterNodeWrapper
class NNInteractiveWSParameterNode:
    """What the scene keeps of the panel's choices."""

    livePreview: bool = True
    runAutomatically: bool = True
    autoZoom: bool = True


class NNInteractiveWSLogic(ScriptedLoadableModuleLogic):
    """Where the choices are kept. What is done with them is NNInteractiveWSLib.logic's."""

    def getParameterNode(self):
        return NNInteractiveWSParameterNode(super().getParameterNode())


class NNInteractiveWSWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Puts the panel together and tells it what the application does.

    ``logic``: an NNInteractiveWSLib.logic.Logic; ``ui`` and ``editor``: the widgets. They are None while packages are
    missing, when a page that offers to install them is shown instead.
    """

    logic = ui = editor = None
    _panel = _root = _parameterNode = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneChanged)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneChanged)
        self.rebuild()

    def cleanup(self):
        self.removeObservers()
        self._takeDown()

    def enter(self):
        if self._panel is None:  # the packages may have been installed meanwhile
            self.rebuild()
        else:
            self._enterPanel()

    def exit(self):
        if self._panel is not None:
            self._panel.exit()
            self._disconnectParameters()

    def rebuild(self):
        """Put the panel together anew, from the settings."""
        self._takeDown()
        self._build()
        # After a reload it is open, and nobody says so again.
        if self._panel is not None and self._isOpen:
            self._enterPanel()

    def onSceneStartClose(self, caller=None, event=None):
        if self._panel is not None:
            self._disconnectParameters()
            self.editor.setSegmentationNode(None)  # as Slicer's own module does

    def onSceneChanged(self, caller=None, event=None):
        """The scene was closed, or nodes have come into it from a file."""
        if self._panel is not None and self._isOpen:
            self._enterPanel()

    def onInstall(self):
        try:
            packages.install(_REQUIREMENTS)
        except packages.NotInstalled as e:
            self._pageNote.text = str(e)
        else:
            self.rebuild()

    def onReload(self):
        """For developers: what is in NNInteractiveWSLib is read again, too."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "NNInteractiveWSLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    # ---- inside ---------------------------------------------------------------------------------------------------

    @property
    def _isOpen(self):
        # A script may show the widget in a window of its own, which is no module panel.
        return getattr(self.parent, "isEntered", False)

    def _build(self):
        if not packages.areInstalled(_REQUIREMENTS):
            words = _("This module needs Python packages that Slicer does not have: {names}, and what these need.")
            self._buildPage(words.format(names=", ".join(packages.needed(_REQUIREMENTS))))
            return
        try:
            from NNInteractiveWSLib.logic import Logic
            from NNInteractiveWSLib.widget import Panel, userAgrees
        except ImportError as e:  # what one of the packages needs was removed
            self._buildPage(_("The Python packages that this module needs cannot be used: {reason}.").format(reason=e))
            return
        self._root = slicer.util.loadUI(self.resourcePath("UI/NNInteractiveWS.ui"))
        self.layout.addWidget(self._root)
        self.ui = slicer.util.childWidgetVariables(self._root)
        node = _segmentEditorNode()
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.setMaximumNumberOfUndoStates(10)
        self.editor.setMRMLScene(slicer.mrmlScene)
        self.editor.setMRMLSegmentEditorNode(node)
        self.ui.segmentEditorCollapsibleButton.layout().addWidget(self.editor)
        self._root.setMRMLScene(slicer.mrmlScene)
        self.logic = Logic(slicer.mrmlScene, userAgrees, editorNode=node)
        self._panel = Panel(self.ui, self.editor, self.logic)

    def _buildPage(self, words):
        """What is shown instead of the panel while packages are missing."""
        self._root = qt.QWidget()
        layout = qt.QVBoxLayout(self._root)
        button = qt.QPushButton(_("Install..."))
        button.objectName = "installButton"
        button.connect("clicked()", self.onInstall)
        self._pageNote = qt.QLabel()
        self._pageNote.objectName = "installNote"
        reason = qt.QLabel(words)
        reason.objectName = "installReason"
        reason.wordWrap = self._pageNote.wordWrap = True
        for widget in (reason, button, self._pageNote):
            layout.addWidget(widget)
        layout.addStretch(1)
        self.layout.addWidget(self._root)

    def _takeDown(self):
        if self._panel is not None:
            self._disconnectParameters()
            try:
                self._panel.close()
            finally:  # when Slicer ends, its views may be gone already; the session is ended nevertheless
                self.logic.close()
        if self._root is not None:
            self._root.hide()
            self._root.setParent(None)
            self._root.deleteLater()
        self.logic = self.ui = self.editor = self._panel = self._root = None

    def _enterPanel(self):
        if self.editor.mrmlSegmentEditorNode() is not _segmentEditorNode():  # it went with the scene
            self.rebuild()
            return
        self._connectParameters()
        self._panel.enter()

    def _connectParameters(self):
        if self._parameterNode is None:
            self._parameterNode = NNInteractiveWSLogic().getParameterNode()
            named = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
            named.pop(None, None)
            # connectGui would do the same, but its connection cannot be undone in Slicer 5.10: it returns no tag.
            self._connection = self._parameterNode.connectParametersToGui(named)

    def _disconnectParameters(self):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._connection)
            self._parameterNode = None


def _segmentEditorNode():
    """Where the Segment Editor of this module keeps its choices: apart from those of Slicer's own."""
    scene, kind = slicer.mrmlScene, "vtkMRMLSegmentEditorNode"
    node = scene.GetSingletonNode(_NAME, kind)
    if node is None:
        node = scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        node.SetSingletonTag(_NAME)
        node = scene.AddNode(node)
    return node


class NNInteractiveWSTest(ScriptedLoadableModuleTest):
    """What a user does, in the application itself.

    With NNINTERACTIVE_WS_TEST_SERVER in the environment, the address of a server, it also segments something there;
    ``nninteractive-ws serve --model demo`` is enough for that.
    """

    def runTest(self):
        for name in unittest.defaultTestLoader.getTestCaseNames(type(self)):
            self.setUp()
            try:
                getattr(self, name)()
            except unittest.SkipTest as why:
                self.delayDisplay(f"{name}: skipped, {why}")
            else:
                self.delayDisplay(f"{name}: passed")
            finally:
                self.tearDown()

    def setUp(self):
        self.settings = _ownSettings()
        slicer.mrmlScene.Clear(False)
        slicer.util.selectModule(_NAME)
        self.widget = slicer.modules.nninteractivews.widgetRepresentation().self()

    def tearDown(self):
        """Leave the user's settings as they were."""
        slicer.mrmlScene.Clear(False)
        qt.QSettings().remove(_NAME)
        for key, value in self.settings.items():
            qt.QSettings().setValue(key, value)
        self.widget.rebuild()

    def test_choices(self):
        """Choices are the scene's, and tools want a volume."""
        ui = self.needPanel()
        choices = NNInteractiveWSLogic().getParameterNode()
        assert ui.autoZoomCheckBox.checked
        ui.autoZoomCheckBox.click()
        assert not choices.autoZoom
        choices.autoZoom = True
        assert ui.autoZoomCheckBox.checked
        assert not ui.pointButton.enabled
        self.addVolume()
        assert ui.pointButton.enabled

    def test_settings(self):
        """The server's address is kept as a setting, its token is not."""
        ui = self.needPanel()
        ui.tokenLineEdit.text = "nws_secret"
        self.useServer("ws://127.0.0.1:1")
        self.widget.rebuild()
        assert self.widget.ui.serverComboBox.currentText == "ws://127.0.0.1:1"
        assert not [key for key, value in _ownSettings().items() if "nws_secret" in str(value)]

    def test_nobodyListens(self):
        """A prompt for a server that is not there: it is said in words, and nothing is left of the prompt."""
        ui = self.needPanel()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and nobody listens there
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.useServer(f"ws://{address}")
            self.addVolume()
            self.click("Red", _MIDDLE)
            logic = self.widget.logic
            self.waitUntil(lambda: address in ui.statusLabel.text and not logic.busy)
        assert logic.segmentation.GetSegmentation().GetNumberOfSegments() == 1
        assert _visibleMarks() == []
        assert not ui.undoButton.enabled

    def test_server(self):
        """A click becomes a mask; undo, redo, and the scene is closed."""
        address = os.environ.get("NNINTERACTIVE_WS_TEST_SERVER")
        if not address:
            self.skipTest("NNINTERACTIVE_WS_TEST_SERVER is not set")
        ui = self.needPanel()
        self.useServer(address)
        volume = self.addVolume()
        self.click("Red", _MIDDLE)
        logic = self.widget.logic
        self.waitUntil(lambda: ui.undoButton.enabled and not logic.busy)
        voxels = self.countVoxels(volume)
        assert voxels > 0
        assert len(_visibleMarks()) == 1
        ui.undoButton.click()
        self.waitUntil(lambda: ui.redoButton.enabled and not logic.busy)
        assert self.countVoxels(volume) == 0
        assert _visibleMarks() == []
        ui.redoButton.click()
        self.waitUntil(lambda: ui.undoButton.enabled and not logic.busy)
        assert self.countVoxels(volume) == voxels
        slicer.mrmlScene.Clear(False)
        assert logic.session is None
        assert not ui.pointButton.enabled

    # ---- what a user does -----------------------------------------------------------------------------------------

    def needPanel(self):
        if self.widget.ui is None:
            self.skipTest("the Python packages are not installed")
        return self.widget.ui

    def useServer(self, address):
        """Enter an address, and agree that images go there."""
        qt.QSettings().setValue(f"{_NAME}/agreedServers", [address])
        self.widget.ui.serverComboBox.setEditText(address)
        self.widget.ui.serverComboBox.lineEdit().editingFinished()

    def addVolume(self):
        """A bright ball around _MIDDLE, shown and selected."""
        distance = np.linalg.norm(np.indices((48, 48, 48)) - np.reshape(_MIDDLE, (3, 1, 1, 1)), axis=0)
        volume = slicer.util.addVolumeFromArray(np.where(distance < 10, 200, -100).astype(np.int16))
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        self.widget.editor.setSourceVolumeNode(volume)
        slicer.app.processEvents()
        return volume

    def click(self, viewName, ras):
        """Click with the point tool at a point of the world."""
        if not self.widget.ui.pointButton.checked:
            self.widget.ui.pointButton.click()
        view = slicer.app.layoutManager().sliceWidget(viewName).sliceView()
        sliceNode = view.mrmlSliceNode()
        sliceNode.JumpSliceByCentering(*ras)
        toXY = np.linalg.inv(slicer.util.arrayFromVTKMatrix(sliceNode.GetXYToRAS()))
        target = view.VTKWidget()
        x, y = (toXY @ [*ras, 1])[:2] / target.devicePixelRatioF()
        position = qt.QPointF(x, target.height - 1 - y)
        for kind, held in (
            (qt.QEvent.MouseButtonPress, qt.Qt.LeftButton),
            (qt.QEvent.MouseButtonRelease, qt.Qt.NoButton),
        ):
            event = qt.QMouseEvent(kind, position, qt.Qt.LeftButton, held, qt.Qt.NoModifier)
            qt.QApplication.sendEvent(target, event)

    def waitUntil(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.widget.logic.status.words
            slicer.app.processEvents()
            time.sleep(0.002)

    def countVoxels(self, volume):
        logic = self.widget.logic
        array = slicer.util.arrayFromSegmentBinaryLabelmap(logic.segmentation, logic.segmentID, volume)
        return int(np.count_nonzero(array))


_MIDDLE = (24, 24, 24)


def _ownSettings():
    settings = qt.QSettings()
    return {key: settings.value(key) for key in settings.allKeys() if key.startswith(f"{_NAME}/")}


def _visibleMarks():
    marks = slicer.util.getNodesByClass("vtkMRMLMarkupsNode")
    return [mark for mark in marks if mark.GetDisplayNode().GetVisibility()]
