"""Module file for Slicer. The implementation is in NNInteractiveWSLib.

Most of it is imported only after the packages that it needs are installed (NNInteractiveWSLib/packages.py).
"""

import sys

from NNInteractiveWSLib import packages
from NNInteractiveWSLib.installPage import installPage
from NNInteractiveWSLib.sampleData import registerSampleData
from NNInteractiveWSLib.selfTest import NNInteractiveWSTest  # noqa: F401 (Slicer looks for it here)
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

#: Singleton tag of the node of Slicer's Segment Editor module. Both modules share segmentation, segment and volume.
_SEGMENT_EDITOR = "SegmentEditor"


class NNInteractiveWS(ScriptedLoadableModule):
    """Description of the module for Slicer."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("nnInteractive WS")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Markups", "Segmentations"]
        parent.contributors = ["nninteractive-ws contributors"]
        parent.helpText = _(
            "Segment structures in a 3D image with points, boxes, scribbles and lassos. nnInteractive computes the "
            "masks on a server, and previews appear during the computation. Under Configuration, start a server on "
            "this computer, or enter the address of one on a machine with a GPU. Images are sent to a server elsewhere "
            "only after you have agreed to that server."
        )
        parent.acknowledgementText = _(
            "nnInteractive was made at the German Cancer Research Center (DKFZ): Isensee, Rokuss, Kr&auml;mer et al., "
            'nnInteractive: Redefining 3D Promptable Segmentation, <a href="https://arxiv.org/abs/2503.08373">'
            "arXiv:2503.08373</a>. Please cite it if you use this module. The panel shows the model's license."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


@parameterNodeWrapper
class NNInteractiveWSParameterNode:
    """Parameters of the panel that are stored in the scene."""

    livePreview: bool = True
    runAutomatically: bool = True
    autoZoom: bool = True


class NNInteractiveWSLogic(ScriptedLoadableModuleLogic):
    """Access to the parameter node. NNInteractiveWSLib.logic implements the module's logic."""

    def getParameterNode(self):
        return NNInteractiveWSParameterNode(super().getParameterNode())


class NNInteractiveWSWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Widget of the module, which creates the panel and forwards the application's events to it.

    ``logic``: an NNInteractiveWSLib.logic.Logic. ``ui`` and ``editor``: the widgets. All three are None while packages
    are missing. The widget then shows a page that offers to install them.
    """

    logic = ui = editor = None
    _panel = _root = _parameterNode = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneChanged)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneChanged)
        self._effects = slicer.qSlicerSegmentEditorEffectFactory.instance()
        self._effects.connect("effectRegistered(QString)", self.onEffectRegistered)
        self.rebuild()

    def cleanup(self):
        self.removeObservers()
        self._effects.disconnect("effectRegistered(QString)", self.onEffectRegistered)
        self._removePanel()

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
        """Create the panel again from the settings."""
        self._removePanel()
        self._build()
        # After a reload the module is open, and Slicer does not call enter() again.
        if self._panel is not None and self._isOpen:
            self._enterPanel()

    def onSceneStartClose(self, caller=None, event=None):
        if self._panel is not None:
            self._disconnectParameters()
            self.editor.setSegmentationNode(None)  # as in Slicer's Segment Editor module

    def onSceneChanged(self, caller=None, event=None):
        """Update the panel after the scene was closed or a file was imported."""
        if self._panel is not None and self._isOpen:
            self._enterPanel()

    def onEffectRegistered(self, name=None):
        """Show an effect that an extension registers after the panel was created."""
        if self.editor is not None:
            self.editor.updateEffectList()

    def onReload(self):
        """Reload the module, including NNInteractiveWSLib, in developer mode."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "NNInteractiveWSLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    # ---- internal ------------------------------------------------------------------------------------------------

    @property
    def _isOpen(self):
        # A script may show the widget in a separate window, which is not a module panel and has no such property.
        return getattr(self.parent, "isEntered", False)

    def _build(self):
        if not packages.areInstalled():
            message = _(
                "This module needs Python packages that are not installed in Slicer: {names}. "
                "Install them to use the module. With their dependencies, these are about 25 packages (135 MB)."
            )
            self._offerToInstall(message.format(names=", ".join(packages.needed())))
            return
        try:
            from NNInteractiveWSLib.logic import Logic
            from NNInteractiveWSLib.serverForm import userConsents
            from NNInteractiveWSLib.widget import Panel
        except ImportError as e:  # a dependency of the packages was removed
            message = _("A Python package that this module needs cannot be imported: {reason}. Install it again.")
            self._offerToInstall(message.format(reason=e))
            return
        self._root = slicer.util.loadUI(self.resourcePath("UI/NNInteractiveWS.ui"))
        self.layout.addWidget(self._root)
        self.ui = slicer.util.childWidgetVariables(self._root)
        node = _segmentEditorNode()
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.setMaximumNumberOfUndoStates(10)
        # The node first, so that it keeps the selections that setting the scene makes.
        self.editor.setMRMLSegmentEditorNode(node)
        self.editor.setMRMLScene(slicer.mrmlScene)
        self.ui.segmentEditorCollapsibleButton.layout().addWidget(self.editor)
        self._root.setMRMLScene(slicer.mrmlScene)
        # ssh needs the libraries of the system, not those of Slicer.
        environment = slicer.util.startupEnvironment()
        self.logic = Logic(slicer.mrmlScene, userConsents, editorNode=node, sshEnvironment=environment)
        self._panel = Panel(self.ui, self.editor, self.logic)

    def _offerToInstall(self, message):
        self._root = installPage(message, self.rebuild)
        self.layout.addWidget(self._root)

    def _removePanel(self):
        if self._panel is not None:
            self._disconnectParameters()
            try:
                self._panel.close()
            finally:  # end the session even if this fails, as views may already be deleted at Slicer's exit
                self.logic.close()
        if self._root is not None:
            self._root.hide()
            self._root.setParent(None)
            self._root.deleteLater()
        self.logic = self.ui = self.editor = self._panel = self._root = None

    def _enterPanel(self):
        if self.editor.mrmlSegmentEditorNode() is not _segmentEditorNode():  # the node was removed with the scene
            self.rebuild()
            return
        self._connectParameters()
        self._panel.enter()

    def _connectParameters(self):
        if self._parameterNode is None:
            self._parameterNode = NNInteractiveWSLogic().getParameterNode()
            named = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
            named.pop(None, None)
            # connectGui does the same, but in Slicer 5.10 it returns no tag for disconnecting.
            self._connection = self._parameterNode.connectParametersToGui(named)

    def _disconnectParameters(self):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._connection)
            self._parameterNode = None


def _segmentEditorNode():
    """The vtkMRMLSegmentEditorNode of Slicer's Segment Editor module."""
    scene, kind = slicer.mrmlScene, "vtkMRMLSegmentEditorNode"
    node = scene.GetSingletonNode(_SEGMENT_EDITOR, kind)
    if node is None:
        node = scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        node.SetSingletonTag(_SEGMENT_EDITOR)
        node = scene.AddNode(node)
    return node
