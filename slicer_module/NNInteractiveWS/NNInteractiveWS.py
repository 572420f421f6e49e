"""The module as Slicer loads it. What it does is in NNInteractiveWSLib.

Most of that is imported only once the packages that it needs are installed: see NNInteractiveWSLib/packages.py.
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

#: Of its nodes in the scene.
_NAME = "NNInteractiveWS"


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
        if not packages.areInstalled():
            words = _("This module needs Python packages that Slicer does not have: {names}, and what these need.")
            self._offerToInstall(words.format(names=", ".join(packages.needed())))
            return
        try:
            from NNInteractiveWSLib.logic import Logic
            from NNInteractiveWSLib.serverForm import userAgrees
            from NNInteractiveWSLib.widget import Panel
        except ImportError as e:  # what one of the packages needs was removed
            self._offerToInstall(
                _("The Python packages that this module needs cannot be used: {reason}.").format(reason=e)
            )
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

    def _offerToInstall(self, why):
        self._root = installPage(why, self.rebuild)
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
