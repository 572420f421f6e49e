"""Check what the Slicer module uses of Slicer against sources of Slicer: ``python -m tools.slicer_calls SLICER CTK``.

The arguments are source trees of 3D Slicer and of CTK. Each use of a class, method, property, signal, enum value or
function is looked up in their headers and Python files. Classes of VTK and Qt are not in these trees. They are looked
up in the package vtk and in PythonQt as built by slicer_module/qt_host/build.py, if these are installed. If slicer-core
is installed, the last column tells whether it has the member too.

The output is a table in Markdown. Its column "Found in" is a place in the sources, or one of these faults:

MISSING          there is no such member, or PythonQt does not offer it
WRONG KIND       a property is called, a method is used without a call, or something without setter is assigned
WRONG ARGUMENTS  no declaration accepts this number of arguments, or a signal has another signature
UNRESOLVED       the class of the object is unknown
NOT CHECKED      the class is in none of the sources

The exit status is 1 if there are faults of the first three kinds.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
import importlib
import importlib.util
from pathlib import Path
import sys
from types import ModuleType

from tools import slicer_usages
from tools.cpp_declarations import CLASS, CONSTANT, METHOD, PROPERTY, SIGNAL, UNWRAPPED, Arity, Member
from tools.slicer_api import Api, NotChecked
from tools.slicer_usages import Hints, Module, Usage, Value

_REPOSITORY = Path(__file__).resolve().parents[1]
MODULE_FOLDER = _REPOSITORY / "slicer_module" / "NNInteractiveWS"

MISSING, WRONG_KIND, WRONG_ARGUMENTS = "MISSING", "WRONG KIND", "WRONG ARGUMENTS"
UNRESOLVED, NOT_CHECKED = "UNRESOLVED", "NOT CHECKED"
FAULTS = (MISSING, WRONG_KIND, WRONG_ARGUMENTS)

#: Objects of this project, of Python and of numpy.
_PLAIN = dict.fromkeys(
    (
        "box",
        "commands",
        "doctor.py: result",
        "end",
        "event",
        "ledger",
        "logic.py: segment",
        "mask",
        "other",
        "part",
        "pending",
        "r",
        "request",
        "s",
        "sessionController.py: segment",
        "step",
        "taken",
    ),
    "",
)
HINTS = Hints(
    attributes={
        "app": "qSlicerApplication",
        "mrmlScene": "vtkMRMLScene",
        "modules.": "qSlicerScriptedLoadableModule",
    },
    # The class of the returned object is more specific than the declared one, or the source does not declare it.
    results={
        "qMRMLNodeComboBox.currentNode": "vtkMRMLScalarVolumeNode",
        "qMRMLSegmentEditorWidget.segmentationNode": "vtkMRMLSegmentationNode",
        "qSlicerAbstractCoreModule.widgetRepresentation": "qSlicerScriptedLoadableModuleWidget",
        "qSlicerScriptedLoadableModuleWidget.self": "NNInteractiveWSWidget",
        "slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget.layout": "QVBoxLayout",
        "slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget.parent": "qSlicerScriptedLoadableModuleWidget",
        "slicer.util.addVolumeFromArray": "vtkMRMLScalarVolumeNode",
        "slicer.util.childWidgetVariables": slicer_usages.UI,
        "slicer.util.loadUI": "qMRMLWidget",
        "vtkMRMLMarkupsNode.GetDisplayNode": "vtkMRMLMarkupsDisplayNode",
        "vtkMRMLSegmentationNode.GetDisplayNode": "vtkMRMLSegmentationDisplayNode",
        "vtkMRMLVolumeNode.GetDisplayNode": "vtkMRMLScalarVolumeDisplayNode",
        "vtkSegment.GetRepresentation": "vtkOrientedImageData",
    },
    objects={
        "NNInteractiveWS.py: widget": "QWidget",
        "NNInteractiveWS.py: __init__.parent": "qSlicerScriptedLoadableModule",
        "_NODES[kind]": "vtkMRMLMarkupsCurveNode",
        "getattr(self.ui, f'{name}ShortcutEdit')": "QKeySequenceEdit",
        "getattr(self.ui, name)": "QPushButton",
        "getattr(ui, name)": "QPushButton",
        "geometry.py: sliceNode": "vtkMRMLSliceNode",
        "labelmaps.py: segment": "vtkSegment",
        "labelmaps.py: t": "vtkMRMLTransformNode",
        "logic.py: target": "vtkObject",
        "mark": "vtkMRMLMarkupsNode",
        "prompts.py: append.node": "vtkMRMLMarkupsNode",
        "prompts.py: n": "vtkMRMLMarkupsNode",
        "prompts.py: node": "vtkMRMLMarkupsNode",
        "self._sliceViews[]": "qMRMLSliceView",
        "self._watched[]": "QWidget",
        "selfTest.py: button": "QPushButton",
        "selfTest.py: reason": "QLabel",
        "shortcuts.py: child": "QShortcut",
        "shortcuts.py: shortcut": "QShortcut",
        "tabs.widget(i).children()[]": "QWidget",
        "views.py: _onEvent.view": "qMRMLSliceView",
        "views.py: _onThreeDEvent.view": "qMRMLThreeDView",
        "views.py: event": "QMouseEvent",
        "widget.py: button": "QPushButton",
        "widget.py: node": "vtkMRMLInteractionNode",
        **_PLAIN,
    },
)

#: Classes of VTK's Qt widgets, which are in none of the sources, and the Qt class that they extend.
STAND_INS = {"QVTKOpenGLNativeWidget": "QWidget", "QVTKWidget": "QWidget"}


@dataclass(frozen=True)
class Finding:
    """The result of a lookup. ``verdict``: a place in the sources, or a fault with its explanation."""

    owner: str
    name: str
    action: str
    kind: str
    arguments: str
    verdict: str
    in_slicer_core: str = ""

    @property
    def fault(self) -> str:
        """MISSING, WRONG KIND, WRONG ARGUMENTS, UNRESOLVED or NOT CHECKED; empty if the use is correct."""
        return next((fault for fault in (*FAULTS, UNRESOLVED, NOT_CHECKED) if self.verdict.startswith(fault)), "")


@dataclass
class Report:
    """The findings, each with the places in the module where it applies."""

    findings: dict[Finding, list[str]] = field(default_factory=dict)

    def table(self) -> Iterator[str]:
        yield "| Where | Class | Name | Use | Kind | Arguments | Found in | slicer-core |"
        yield "|---|---|---|---|---|---|---|---|"
        for finding, places in self.findings.items():
            more = f" +{len(places) - 1}" if len(places) > 1 else ""
            cells = (finding.owner, finding.name, finding.action, finding.kind, finding.arguments, finding.verdict)
            yield f"| {places[0]}{more} | {' | '.join(_cell(cell) for cell in cells)} | {finding.in_slicer_core} |"

    def counts(self) -> dict[str, int]:
        faults = [finding.fault for finding in self.findings]
        return {fault: faults.count(fault) for fault in (*FAULTS, UNRESOLVED, NOT_CHECKED)}


def check(module: Module, api: Api) -> Report:
    """Look up each use of Slicer's API in a module."""
    checker, report = _Checker(module, api), Report()
    for usage in module.usages():
        if usage.receiver is None and usage.name in _PYTHON_NAMES:
            continue  # more likely a list, a text or an array than an object of Slicer
        report.findings.setdefault(checker.find(usage), []).append(usage.place)
    return report


#: Names of the members of Python's own types, and of Path and deque.
_PYTHON_NAMES = {name for kind in (str, bytes, list, dict, set, tuple, int, float, Path) for name in dir(kind)}


class _Checker:
    def __init__(self, module: Module, api: Api) -> None:
        self._module, self._api = module, api

    def find(self, usage: Usage) -> Finding:
        arguments = "" if usage.action != "call" else "*" if usage.arguments is None else str(usage.arguments)
        if usage.receiver is None:
            verdict = f"{UNRESOLVED}: the class of `{usage.expression}` is unknown"
            return Finding("?", usage.name, usage.action, "?", arguments, verdict)
        owner = usage.receiver.name.removeprefix("own:") or usage.receiver.kind
        name = usage.name.partition("(")[0]
        try:
            member = self._lookup(usage.receiver, name)
        except NotChecked as reason:
            return Finding(owner, usage.name, usage.action, "?", arguments, f"{NOT_CHECKED}: {reason}")
        kind = "" if member is None else member.kind
        verdict = self._verdict(usage, member)
        return Finding(owner, usage.name, usage.action, kind, arguments, verdict, self._in_slicer_core(usage, name))

    def _in_slicer_core(self, usage: Usage, name: str) -> str:
        receiver = usage.receiver
        if receiver is None or receiver.kind not in (slicer_usages.INSTANCE, slicer_usages.CLASS):
            return ""
        found = self._api.in_slicer_core(receiver.name, name)
        return "" if found is None else "yes" if found else "no"

    def _verdict(self, usage: Usage, member: Member | None) -> str:
        if member is None:
            return "missing, but the module does without it" if usage.optional else MISSING
        if member.kind == UNWRAPPED:
            return f"{MISSING}: PythonQt does not offer the C++ method at {member.place}"
        if usage.action == "signal":
            return self._signal_verdict(usage, member)
        if usage.action == "write":
            if member.kind == PROPERTY and member.writable:
                return member.place
            what = "the property has no setter" if member.kind == PROPERTY else f"this is a {member.kind}"
            return f"{WRONG_KIND}: {what}, {member.place}"
        if usage.action == "call":
            return self._call_verdict(usage, member)
        if usage.action == "operand" and member.kind == METHOD:
            return f"{WRONG_KIND}: the method is not called, {member.place}"
        return member.place

    def _signal_verdict(self, usage: Usage, member: Member) -> str:
        if member.kind != SIGNAL:
            return f"{WRONG_KIND}: this is a {member.kind}, {member.place}"
        if member.signatures and usage.name.replace(" ", "") not in member.signatures:
            return f"{WRONG_ARGUMENTS}: expected {' or '.join(member.signatures)}, {member.place}"
        return member.place

    def _call_verdict(self, usage: Usage, member: Member) -> str:
        if member.kind in (PROPERTY, CONSTANT):
            return f"{WRONG_KIND}: a {member.kind} is not called, {member.place}"
        unbound = usage.receiver is not None and usage.receiver.kind in (slicer_usages.CLASS, "python class")
        unknown = [keyword for keyword in usage.keywords if not self._accepts(usage, member, keyword)]
        if unknown:
            return f"{WRONG_ARGUMENTS}: there is no argument {', '.join(unknown)}, {member.place}"
        if member.arities and usage.arguments is not None:
            numbers = (usage.arguments, usage.arguments - 1) if unbound else (usage.arguments,)
            if not any(_fits(number, arity) for number in numbers for arity in member.arities):
                expected = " or ".join(dict.fromkeys(_shown(arity) for arity in member.arities))
                return f"{WRONG_ARGUMENTS}: expected {expected}, {member.place}"
        return member.place

    def _accepts(self, usage: Usage, member: Member, keyword: str) -> bool:
        receiver = usage.receiver
        if receiver is None or not member.place.partition(":")[0].endswith(".py"):
            return True
        for module, key in self._python_keys(receiver, member.name):
            found = self._api.python.module(module)
            if found is not None and key in found.keywords:
                accepted = found.keywords[key]
                return accepted is None or keyword in accepted
        return True

    def _python_keys(self, receiver: Value, name: str) -> Iterator[tuple[str, str]]:
        """Where the keyword arguments of a Python function are listed: its module, and its name there."""
        if receiver.kind == slicer_usages.MODULE:
            yield receiver.name, name
        else:
            module, _dot, owner = receiver.name.rpartition(".")
            yield module, f"{owner}.{name}"

    # ---- lookup ------------------------------------------------------------------------------------------------

    def _lookup(self, receiver: Value, name: str) -> Member | None:
        match receiver.kind:
            case slicer_usages.INSTANCE | slicer_usages.CLASS:
                return self._api.find(receiver.name, name)
            case slicer_usages.MODULE:
                return self._in_module(receiver.name, name)
            case slicer_usages.UI:
                return None
            case slicer_usages.PYTHON_CLASS | slicer_usages.PYTHON_INSTANCE:
                return self._api.python.find(receiver.name, name)
        for base in self._module.api_bases(receiver):
            if base.kind == slicer_usages.CLASS:
                member = self._api.find(base.name, name)
            elif base.kind == slicer_usages.PYTHON_CLASS:
                member = self._api.python.find(base.name, name)
            else:
                member = self._api.python.added(base.name, name)
            if member is not None:
                return member
        return None

    def _in_module(self, module: str, name: str) -> Member | None:
        if module == "slicer.modules":
            return Member(name, CONSTANT, "the modules that Slicer has loaded")
        if module == "slicer" and name in (*HINTS.attributes, "modules"):
            return Member(name, CONSTANT, "Base/Python/slicer/__init__.py")
        found = self._api.python.module(module)
        if found is not None and name in found.functions:
            return found.functions[name]
        if found is not None and name in found.classes:
            return Member(name, CLASS, found.classes[name].place)
        if module == "slicer" and self._api.python.module(f"slicer.{name}") is not None:
            return Member(name, CONSTANT, f"Base/Python/slicer/{name}")
        return self._class_in_module(module, name)

    def _class_in_module(self, module: str, name: str) -> Member | None:
        if module.partition(".")[0] in ("vtk", "qt"):
            return self._api.in_package(module, name)
        if module in ("slicer", "ctk") and name in self._api.cpp:
            declared = self._api.constructor(name)
            return None if declared is None else Member(name, CLASS, declared.place, declared.arities)
        return None


def _fits(number: int, arity: Arity) -> bool:
    least, most = arity
    return least <= number and (most is None or number <= most)


def _shown(arity: Arity) -> str:
    least, most = arity
    return f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---- the command ---------------------------------------------------------------------------------------------------


def installed(name: str) -> ModuleType | None:
    """Import a package, or return None if it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name) is not None else None


def pythonqt() -> ModuleType | None:
    """Load the module ``qt`` of PythonQt as the widget tests do, or return None if it is not built."""
    path = _REPOSITORY / "slicer_module" / "tests" / "widget" / "pythonqt.py"
    spec = importlib.util.spec_from_file_location("pythonqt", path)
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    try:
        loader.load()
    except loader.NotBuilt:
        return None
    return importlib.import_module("qt")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.slicer_calls", description=_first_line(__doc__))
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE", help="source tree of 3D Slicer or of CTK")
    trees = parser.parse_args(arguments).trees
    for tree in trees:
        if not tree.is_dir():
            parser.error(f"{tree} is not a folder. Pass a checkout of 3D Slicer or of CTK.")
    api = Api(trees, installed("vtk"), installed("slicer"), pythonqt(), STAND_INS)
    report = check(Module(MODULE_FOLDER, api, HINTS), api)
    print(*report.table(), "", sep="\n")
    print(_summary(report))
    return int(any(report.counts()[fault] for fault in FAULTS))


def _summary(report: Report) -> str:
    counts = report.counts()
    parts = (f"{number} {fault.lower()}" for fault, number in counts.items())
    return f"{len(report.findings)} uses: {', '.join(parts)}."


def _first_line(text: str | None) -> str:
    return next(iter(_lines(text or "")), "").partition(":")[0]


def _lines(text: str) -> Iterable[str]:
    return (line for line in text.splitlines() if line)


if __name__ == "__main__":
    sys.exit(main())
