"""Fake of the Slicer application with the real scene, logics and ``slicer.util`` of slicer-core.

:func:`install` adds the Python modules of the application (``ctk``, ``slicer.ScriptedLoadableModule``, ``slicer.i18n``,
``slicer.packaging``, ``slicer.parameterNodeWrapper``, ``SampleData``). An :class:`Application` is one running Slicer.
"""

import atexit
import importlib
import importlib.metadata
import os
from pathlib import Path
import shlex
import shutil
import sys
import tempfile
import types
import unittest

import fakes
from packaging.requirements import Requirement
import parameter_nodes
import qt
import slicer
import vtk


class ScriptedLoadableModule:
    """Description of a module. ``parent``: the object from :meth:`Application.createModule` with its attributes."""

    def __init__(self, parent):
        super().__init__()
        self.parent = parent
        self.moduleName = type(self).__name__
        icon = Path(self.resourcePath(f"Icons/{self.moduleName}.png"))
        if icon.exists():
            parent.icon = qt.QIcon(str(icon))
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, name):
        return str(Path(self.parent.path).parent / "Resources" / name)

    def runTest(self, msec=100, **kwargs):
        test = getattr(sys.modules[self.__module__], f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """Panel of a module in ``parent``. The application calls ``setup()``, ``enter()``, ``exit()`` and ``cleanup()``."""

    def __init__(self, parent):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, name):
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / name)

    def setup(self):
        pass

    def cleanup(self):
        pass

    def onReload(self):
        """Reload the module, as the Reload button in developer mode does."""
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, moduleName):
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    """Logic of a module, with a parameter node in the scene."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
            node = slicer.mrmlScene.AddNode(node)
        node.SetAttribute("ModuleName", self.moduleName)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Self test of a module, run by the application. ``messages``: the messages that it displayed."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.messageDelay = 0
        self.messages = []

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        self.messages.append(message)
        slicer.app.processEvents()

    def runTest(self):
        pass


class _ModuleManager(qt.QObject):
    moduleAboutToBeUnloaded = qt.Signal("QString")


class _Startup(qt.QObject):
    startupCompleted = qt.Signal()


class qSlicerScriptedLoadableModuleWidget(fakes.qMRMLWidget):  # noqa: N801 (the original's name)
    """Container that creates a module's widget, enters it and exits it."""

    def __init__(self, moduleName):
        fakes.qMRMLWidget.__init__(self)
        self.moduleName = moduleName
        self.isEntered = False
        self._python = None
        self.setLayout(qt.QVBoxLayout())
        self.setMRMLScene(slicer.mrmlScene)

    def self(self):
        return self._python

    def reload(self):
        """Create the widget again from the current Python module. As in Slicer, ``enter()`` is not called."""
        self._python = getattr(sys.modules[self.moduleName], f"{self.moduleName}Widget")(self)
        setattr(slicer.modules, f"{self.moduleName}Widget", self._python)
        self._python.setup()

    def enter(self):
        self.isEntered = True
        if hasattr(self._python, "enter"):
            self._python.enter()

    def exit(self):
        self.isEntered = False
        if hasattr(self._python, "exit"):
            self._python.exit()


class _OtherModuleWidget(fakes.qMRMLWidget):
    """Panel of another module of Slicer, without contents."""

    def enter(self):
        pass

    def exit(self):
        pass


class _ModuleSelector:
    def __init__(self, select):
        self.selectModule = select
        self.selectedModule = ""


class _MainWindow(qt.QMainWindow):
    selector = None

    def moduleSelector(self):
        return self.selector


class Application:
    """Fake of ``slicer.app``. Other attributes are those of the real QApplication."""

    applicationName = "Slicer"
    majorVersion, minorVersion = 5, 12

    def __init__(self, folder, testing=False):
        """``folder``: the folder for the settings. ``testing``: whether Slicer was started with ``--testing``, which
        suppresses questions to the user."""
        self._qApplication = qt.QApplication.instance()
        self._qApplication.setOrganizationName("NA-MIC")
        self._qApplication.setApplicationName("Slicer")
        qt.QApplication.setFont(qt.QFont("DejaVu Sans", 9))  # the usual size on a desktop
        qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
        qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, str(folder))
        self.temporaryPath = str(folder)
        self._testing = testing
        self._moduleManager, self._startup = _ModuleManager(), _Startup()
        self._logic, self._moduleLogics = _applicationLogic()
        self._scene = self._logic.GetMRMLScene()
        self._layoutManager = fakes.qSlicerLayoutManager(self._scene, self._logic)
        self._window = _MainWindow()
        self._window.selector = _ModuleSelector(self._selectModule)
        self._window.objectName = "qSlicerMainWindow"
        self._window.setCentralWidget(self._layoutManager)
        self._panel = qt.QDockWidget("Module", self._window)
        self._window.addDockWidget(qt.Qt.LeftDockWidgetArea, self._panel)
        self._modules = {}

    def start(self):
        """Become the application of the module ``slicer``."""
        slicer.app, slicer.mrmlScene, slicer.selfTests = self, self._scene, {}
        slicer.modules = types.SimpleNamespace(
            **{name: types.SimpleNamespace(logic=lambda x=logic: x) for name, logic in self._moduleLogics.items()}
        )
        other = _OtherModuleWidget()
        slicer.modules.data = types.SimpleNamespace(widgetRepresentation=lambda: other)
        fakes.ctkMessageBox.answers.clear()
        fakes.ctkMessageBox.asked.clear()
        self._window.show()
        self._window.activateWindow()
        self.processEvents()

    def completeStartup(self):
        """Emit the signal for the end of startup."""
        self._startup.startupCompleted.emit()

    def quit(self):
        for name in list(self._modules):
            self.unloadModule(name)
        self._window.close()
        self._scene.Clear(True)
        self._window.deleteLater()
        self._qApplication.sendPostedEvents(None, qt.QEvent.DeferredDelete)
        self.processEvents()
        for name in ("app", "mrmlScene", "selfTests", "modules"):
            delattr(slicer, name)

    def __getattr__(self, name):
        return getattr(self._qApplication, name)

    def connect(self, signal, receiver):
        return self._startup.connect(signal, receiver)

    def applicationLogic(self):
        return self._logic

    def mrmlScene(self):
        return self._scene

    def layoutManager(self):
        return self._layoutManager

    def moduleManager(self):
        return self._moduleManager

    def mainWindow(self):
        return self._window

    def testingEnabled(self):
        return self._testing  # if true, slicer.util asks the user nothing

    def startupEnvironment(self):
        """The environment in which Slicer was started, without what its launcher added."""
        return qt.QProcessEnvironment.systemEnvironment()

    def settings(self):
        return qt.QSettings()

    def userSettings(self):
        return qt.QSettings()

    def processEvents(self):
        self._qApplication.processEvents()

    # ---- modules ------------------------------------------------------------------------------------------

    def createModule(self, python):
        """Load a module, and return its widget after ``setup()``, in the module panel and not entered.

        ``python``: a Python module with ``__file__`` and the classes <name> and <name>Widget. <name> is the module's
        name.
        """
        name = python.__name__
        about = types.SimpleNamespace(path=python.__file__, title=name)
        self._modules[name] = getattr(python, name)(about)
        setattr(slicer.modules, name.lower(), about)
        shown = qSlicerScriptedLoadableModuleWidget(name)
        about.widgetRepresentation = lambda: shown
        self.showModule(shown)
        shown.reload()
        self.processEvents()
        return shown.self()

    def _selectModule(self, name):
        """Exit the open module, and enter another one, or none."""
        selector = self._window.selector
        if selector.selectedModule:
            getattr(slicer.modules, selector.selectedModule.lower()).widgetRepresentation().exit()
        selector.selectedModule = name
        if name:
            shown = getattr(slicer.modules, name.lower()).widgetRepresentation()
            self.showModule(shown)
            shown.enter()
        self.processEvents()

    def showModule(self, widget):
        """Show a widget in the module panel of the window."""
        self._panel.setWidget(widget)

    def unloadModule(self, name):
        if self._window.selector.selectedModule == name:
            self._selectModule("")
        self._moduleManager.moduleAboutToBeUnloaded.emit(name)
        del self._modules[name]


def _applicationLogic():
    """Create the application logic with its scene, and the logics of Slicer's own modules, by name."""
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetModuleLogic("Colors", application.GetColorLogic())
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    moduleLogics = {}
    for name in ("Volumes", "Markups", "SubjectHierarchyModule", "SegmentationsModule"):
        logic = getattr(slicer, f"vtkSlicer{name}Logic")()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name.removesuffix("Module"), logic)
        moduleLogics[name.removesuffix("Module").lower()] = logic
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    return application, moduleLogics


class SampleDataLogic:
    """Fake of the module Sample Data. Registered sources are in ``slicer.modules.sampleDataSources``, by category."""

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
    ):
        for one in (uris, fileNames, nodeNames):
            assert isinstance(one, str), "in Slicer, these must have equal lengths"
        source = types.SimpleNamespace(
            sampleName=sampleName, customDownloader=customDownloader, thumbnailFileName=thumbnailFileName
        )
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)


class Pip:
    """Fake of ``slicer.packaging`` in Slicer 5.12, without pip.

    ``installed``: the requirements of each installation. ``run``: a function to call with them, or None.
    """

    def __init__(self):
        self.installed, self.requesters = [], []
        self.run = None

    def load_requirements(self, path):
        lines = (line.strip() for line in Path(path).read_text().splitlines())
        return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]

    def pip_ensure(self, requirements, requester=None):
        missing = [requirement for requirement in requirements if not self._isThere(requirement)]
        if not missing or slicer.app.testingEnabled():
            return
        names = ", ".join(str(requirement) for requirement in missing)
        if not slicer.util.confirmOkCancelDisplay(f"Install {names}?", requester, detailedText=names):
            raise RuntimeError("User declined package installation")
        self.requesters.append(requester)
        self.pip_install([str(requirement) for requirement in missing])

    def pip_install(self, requirements):
        self.installed.append(requirements)
        if self.run is not None:
            self.run(requirements)
            importlib.invalidate_caches()

    @staticmethod
    def _isThere(requirement):
        try:
            return importlib.metadata.version(requirement.name) in requirement.specifier
        except importlib.metadata.PackageNotFoundError:
            return False


def install():
    """Add the application's modules to sys.modules."""
    qt.QUiLoader = fakes.UiLoader
    sys.modules["ctk"] = _module("ctk", **fakes.CTK_WIDGETS)
    for name, cls in {**fakes.WIDGETS, **fakes.OBJECTS}.items():
        setattr(slicer, name, cls)
    classes = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    names = {cls.__name__: cls for cls in classes}
    _submodule("ScriptedLoadableModule", **names, __all__=list(names))
    _submodule("i18n", tr=lambda text: text, translate=lambda context, text: text)
    _submodule("parameterNodeWrapper", parameterNodeWrapper=parameter_nodes.parameterNodeWrapper)
    pip = Pip()
    functions = {name: getattr(pip, name) for name in ("load_requirements", "pip_ensure", "pip_install")}
    _submodule("packaging", **functions, pip=pip)
    sys.modules["SampleData"] = _module("SampleData", SampleDataLogic=SampleDataLogic)
    _addPythonSlicer()


def _addPythonSlicer():
    """Add PythonSlicer, the executable of Slicer's Python, to PATH, as in Slicer."""
    folder = tempfile.mkdtemp(prefix="PythonSlicer")
    atexit.register(shutil.rmtree, folder)
    program = Path(folder) / "PythonSlicer"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    os.environ["PATH"] = os.pathsep.join([folder, os.environ["PATH"]])


def _submodule(name, **contents):
    module = _module(f"slicer.{name}", **contents)
    sys.modules[module.__name__] = module
    setattr(slicer, name, module)


def _module(name, **contents):
    module = types.ModuleType(name, f"Fake of {name}.")
    vars(module).update(contents)
    return module
