"""The panel with its parts, as the module's widget puts them together."""

import gestures
from NNInteractiveWSLib.logic import Logic
from NNInteractiveWSLib.widget import Panel
import slicer
from test_panel import UI_FILE


class Noted(Logic):
    """The real logic, whose prompts and commands are noted and end here."""

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
    """The panel with its parts, as the module's widget puts them together."""

    def __init__(self, logicClass, agreed=lambda address: False):
        self.window = slicer.util.mainWindow()
        self.root = slicer.util.loadUI(str(UI_FILE))
        self.root.setMRMLScene(slicer.mrmlScene)
        slicer.app.showModule(self.root)
        self.editorNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.setMRMLSegmentEditorNode(self.editorNode)
        self.logic = logicClass(slicer.mrmlScene, agreed, editorNode=self.editorNode)
        self.ui = slicer.util.childWidgetVariables(self.root)
        self.panel = Panel(self.ui, self.editor, self.logic)

    def close(self):
        self.panel.close()
        self.logic.close()

    def key(self, key, modifiers=gestures.NONE):
        gestures.key(self.window, key, modifiers=modifiers)
