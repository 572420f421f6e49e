"""Self test of the module inside the Slicer application. Slicer finds it through the module file."""

import os
import socket
import time
import unittest

import numpy as np
import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

#: Name of the module, of its settings and of its parameter node.
_NAME = "NNInteractiveWS"
_CENTER = (24, 24, 24)


class NNInteractiveWSTest(ScriptedLoadableModuleTest):
    """Simulation of a user in the application.

    If the environment variable NNINTERACTIVE_WS_TEST_SERVER is the address of a server, the test also segments a ball
    on it. A server that was started by ``nninteractive-ws serve --model demo`` is enough.
    """

    def runTest(self):
        for name in unittest.defaultTestLoader.getTestCaseNames(type(self)):
            self.setUp()
            try:
                getattr(self, name)()
            except unittest.SkipTest as reason:
                self.delayDisplay(f"{name}: skipped, {reason}")
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
        """Restore the user's settings."""
        slicer.mrmlScene.Clear(False)
        qt.QSettings().remove(_NAME)
        for key, value in self.settings.items():
            qt.QSettings().setValue(key, value)
        self.widget.rebuild()

    def test_opensReady(self):
        """A loaded volume is enough: the tools are enabled, also after the module was left and entered again."""
        ui = self.requirePanel()
        assert not ui.pointButton.enabled
        volume = self.addVolume()
        editor = self.widget.editor
        assert ui.pointButton.enabled
        assert editor.segmentationNode() is not None
        assert editor.mrmlSegmentEditorNode().GetSourceVolumeNode() is volume
        slicer.util.selectModule("Data")
        slicer.util.selectModule(_NAME)
        assert ui.pointButton.enabled
        assert self.widget.logic.volume is volume

    def test_otherSegmentation(self):
        """Selecting another segmentation keeps the volume."""
        ui = self.requirePanel()
        volume = self.addVolume()
        self.widget.editor.setSegmentationNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode"))
        slicer.app.processEvents()
        assert self.widget.editor.mrmlSegmentEditorNode().GetSourceVolumeNode() is volume
        assert ui.pointButton.enabled

    def test_withoutPackages(self):
        """Without the Python client, the module offers to install it."""
        if self.widget.ui is not None:
            self.skipTest("the Python packages are installed")
        (button,) = slicer.util.findChildren(self.widget.parent, name="installButton")
        (reason,) = slicer.util.findChildren(self.widget.parent, name="installReason")
        assert button.enabled
        assert "nninteractive-ws" in reason.text

    def test_parameters(self):
        """Parameters are stored in the scene."""
        ui = self.requirePanel()
        from NNInteractiveWS import NNInteractiveWSLogic  # a circular import, as that module imports this one

        parameters = NNInteractiveWSLogic().getParameterNode()
        assert ui.autoZoomCheckBox.checked
        ui.autoZoomCheckBox.click()
        assert not parameters.autoZoom
        parameters.autoZoom = True
        assert ui.autoZoomCheckBox.checked

    def test_settings(self):
        """The server's address is stored in the settings, and its token is not."""
        ui = self.requirePanel()
        ui.tokenLineEdit.text = "nws_secret"
        self.useServer("ws://127.0.0.1:1")
        self.widget.rebuild()
        assert self.widget.ui.serverComboBox.currentText == "ws://127.0.0.1:1"
        assert not [key for key, value in _ownSettings().items() if "nws_secret" in str(value)]

    def test_unreachableServer(self):
        """A prompt for an unreachable server leads to an error message, and its mark is removed."""
        ui = self.requirePanel()
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))  # reserves a port on which no server listens
            address = f"127.0.0.1:{reserved.getsockname()[1]}"
            self.useServer(f"ws://{address}")
            self.addVolume()
            self.click("Red", _CENTER)
            logic = self.widget.logic
            self.waitUntil(lambda: address in ui.statusLabel.text and not logic.busy)
        assert logic.segmentation.GetSegmentation().GetNumberOfSegments() == 1
        assert _visibleMarks() == []
        assert not ui.undoButton.enabled

    def test_server(self):
        """A click leads to a mask, which undo, redo and closing the scene change."""
        address = os.environ.get("NNINTERACTIVE_WS_TEST_SERVER")
        if not address:
            self.skipTest("NNINTERACTIVE_WS_TEST_SERVER is not set")
        ui = self.requirePanel()
        self.useServer(address)
        volume = self.addVolume()
        self.click("Red", _CENTER)
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

    # ---- user actions ---------------------------------------------------------------------------------------------

    def requirePanel(self):
        if self.widget.ui is None:
            self.skipTest("the Python packages are not installed")
        return self.widget.ui

    def useServer(self, address):
        """Enter an address, with the consent to send images to it."""
        qt.QSettings().setValue(f"{_NAME}/agreedServers", [address])
        self.widget.ui.serverComboBox.setEditText(address)
        self.widget.ui.serverComboBox.lineEdit().editingFinished()

    def addVolume(self):
        """Add a bright ball around _CENTER, and show it, as loading a file does."""
        distance = np.linalg.norm(np.indices((48, 48, 48)) - np.reshape(_CENTER, (3, 1, 1, 1)), axis=0)
        volume = slicer.util.addVolumeFromArray(np.where(distance < 10, 200, -100).astype(np.int16))
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(volume.GetID())
        slicer.app.processEvents()
        return volume

    def click(self, viewName, ras):
        """Click with the point tool at RAS coordinates in a slice view."""
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

    def waitUntil(self, condition, seconds=200):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.widget.logic.status.message
            slicer.app.processEvents()
            time.sleep(0.002)

    def countVoxels(self, volume):
        logic = self.widget.logic
        array = slicer.util.arrayFromSegmentBinaryLabelmap(logic.segmentation, logic.segmentID, volume)
        return int(np.count_nonzero(array))


def _ownSettings():
    settings = qt.QSettings()
    return {key: settings.value(key) for key in settings.allKeys() if key.startswith(f"{_NAME}/")}


def _visibleMarks():
    marks = slicer.util.getNodesByClass("vtkMRMLMarkupsNode")
    return [mark for mark in marks if mark.GetDisplayNode().GetVisibility()]
