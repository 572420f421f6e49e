"""The panel with its parts, assembled as in the module's widget."""

from pathlib import Path

import gestures
from NNInteractiveWSLib.logic import Logic
from NNInteractiveWSLib.widget import Panel
import slicer

RESOURCES = Path(__file__).parents[2] / "NNInteractiveWS" / "Resources"
UI_FILE = RESOURCES / "UI" / "NNInteractiveWS.ui"
WIDTH = 400  # of Slicer's module panel, about


class RecordingLogic(Logic):
    """The real logic, except that prompts and commands are only recorded."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls = []

    def addPoint(self, world, positive=True):
        self.calls.append(("point", world, positive))

    def addBox(self, corner, opposite, positive=True, sliceNode=None):
        self.calls.append(("box", (corner, opposite), positive, sliceNode.GetLayoutName()))

    def addScribble(self, sliceNode, points, positive=True):
        self.calls.append(("scribble", points, positive, sliceNode.GetLayoutName()))

    def addLasso(self, sliceNode, points, positive=True):
        self.calls.append(("lasso", points, positive, sliceNode.GetLayoutName()))

    def undo(self):
        self.calls.append("undo")

    def redo(self):
        self.calls.append("redo")

    def reset(self):
        self.calls.append("reset")

    def run(self):
        self.calls.append("run")


class Module:
    """The panel with its parts, assembled as in the module's widget."""

    def __init__(self, logicClass, consents=lambda address: False):
        self.window = slicer.util.mainWindow()
        self.root = slicer.util.loadUI(str(UI_FILE))
        self.root.setMRMLScene(slicer.mrmlScene)
        slicer.app.showModule(self.root)
        self.editorNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.setMRMLSegmentEditorNode(self.editorNode)
        self.editor.setMRMLScene(slicer.mrmlScene)
        self.logic = logicClass(slicer.mrmlScene, consents, editorNode=self.editorNode)
        self.ui = slicer.util.childWidgetVariables(self.root)
        self.ui.segmentEditorCollapsibleButton.layout().addWidget(self.editor)
        self.panel = Panel(self.ui, self.editor, self.logic)

    def close(self):
        self.panel.close()
        self.logic.close()

    def key(self, key, modifiers=gestures.NONE):
        gestures.key(self.window, key, modifiers=modifiers)
