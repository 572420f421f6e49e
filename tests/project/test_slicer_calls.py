"""The check of the Slicer module's calls, on small made-up sources of Slicer."""

from collections.abc import Callable
import inspect
from pathlib import Path
from textwrap import dedent, indent
from types import SimpleNamespace

import pytest

from tools import slicer_calls
from tools.slicer_api import Api
from tools.slicer_calls import Finding, check
from tools.slicer_usages import Hints, Module

WIDGET = """
    #define WITH_DOCUMENTATION 1
    /// class qBrokenComment : public QObject { int x; };
    class Q_EXPORT qTestPanel : public qTestBase
    {
      Q_OBJECT
      Q_PROPERTY(int count READ count WRITE setCount)
      Q_PROPERTY(bool empty
                 READ isEmpty)
      Q_PROPERTY(vtkTestNode* node READ node WRITE setNode)
    public:
      enum Mode { Fast, Slow };
      enum Hidden { Secret };
      Q_ENUM(Mode)
      enum Kind { Files = 0x001, // the first
                  Folders = 0x002 };
      Q_DECLARE_FLAGS(Kinds, Kind)
      Q_FLAGS(Kinds)
      explicit qTestPanel(QWidget* parent = nullptr);
      int count() const;
      void setCount(int count);
      void plainMethod(int value) { if (value) { this->count(); } }
      Q_INVOKABLE vtkTestNode* firstNode(const QString& name, int index = 0) const;
      Q_INVOKABLE void clearAll();
    public slots:
      void select(vtkTestNode* node);
      void select(int index, const QMap<QString, int>& options);
    signals:
      void selected(vtkTestNode* node);
      void renamed(const QString& name, int index = 0);
    protected slots:
      void onSelected();
    };
"""
BASE = """
    class QObject
    {
      Q_OBJECT
    public slots:
      bool connect(const QString& signal, PyObject* receiver);
    };
    class qTestBase : public QObject
    {
      Q_OBJECT
    public slots:
      virtual void refresh();
    protected:
      void protectedMethod();
    };
"""
NODE = """
    class TEST_EXPORT vtkTestNode : public vtkTestParent
    {
    public:
      static vtkTestNode *New();
      vtkTypeMacro(vtkTestNode, vtkTestParent);
      enum { ChangedEvent = 100, /* "quoted */ ClosedEvent };
      vtkGetMacro(Size, int);
      vtkSetClampMacro(Size, int, 0, 10);
      vtkBooleanMacro(Visible, bool);
      vtkSetVector3Macro(Color, double);
      vtkGetObjectMacro(Partner, vtkTestNode);
      virtual void Insert(int index, double value = 0.0);
      void Format(const char* text, ...);
    protected:
      void Internal();
    };
    class vtkTestParent { public: const char* GetTitle(); };
"""
DECORATORS = """
    class testPythonQtDecorators : public QObject
    {
      Q_OBJECT
    public slots:
      void plainMethod(qTestPanel* panel, int value, int other) { panel->plainMethod(value); }
      bool static_qTestPanel_supported() { return true; }
    };
"""
UTIL = """
    def show(text, duration=0, *, parent=None):
        pass


    class Mixin:
        def observe(self, node, event):
            self.observed = node
"""
HINTS = Hints(objects={"hinted": "vtkTestNode", "other": ""}, results={"slicer.util.show": ""}, attributes={})

Checker = Callable[[str], list[Finding]]


@pytest.fixture
def api(tmp_path: Path) -> Api:
    tree = tmp_path / "Slicer"
    util = tree / "Base" / "Python" / "slicer" / "util.py"
    util.parent.mkdir(parents=True)
    util.write_text(dedent(UTIL))
    headers = {"qTestPanel": WIDGET, "qTestBase": BASE, "vtkTestNode": NODE, "testPythonQtDecorators": DECORATORS}
    for name, text in headers.items():
        (tree / f"{name}.h").write_text(dedent(text))
    return Api([tree])


@pytest.fixture
def findings(tmp_path: Path, api: Api) -> Checker:
    """Check the body of a function whose ``panel`` is a qTestPanel, and whose ``ui.saveButton`` is one, too."""

    def checked(body: str) -> list[Finding]:
        folder = tmp_path / "Module"
        folder.mkdir()
        header = "import slicer\nfrom slicer.util import show\n\ndef run(unknown):\n    panel = slicer.qTestPanel()\n"
        (folder / "Module.py").write_text(header + indent(dedent(body), "    "))
        (folder / "Module.ui").write_text('<ui><widget class="qTestPanel" name="saveButton"/></ui>')
        return list(check(Module(folder, api, HINTS), api).findings)

    return checked


CORRECT = [
    "panel.count = panel.count + 1",
    "if panel.empty: pass",
    "panel.node.SetSize(3)",
    "panel.clearAll()",
    "callback = panel.clearAll",
    "panel.refresh()",
    "panel.select(None)",
    "panel.select(1, {})",
    "panel.plainMethod(1, 2)",
    "slicer.qTestPanel.supported()",
    "panel.firstNode('a').GetPartner().Insert(1, 2.0)",
    "panel.connect('selected(vtkTestNode*)', print)",
    "panel.connect('renamed(QString)', print)",
    "panel.connect('renamed(QString,int)', print)",
    "panel.Fast",
    "panel.Files | panel.Folders",
    "slicer.vtkTestNode.ChangedEvent, hinted.ClosedEvent",
    "node = slicer.vtkTestNode(); node.SetColor(1, 2, 3); node.SetColor((1, 2, 3)); node.VisibleOn()",
    "hinted.GetSizeMinValue(); hinted.GetTitle(); hinted.Format('', 1, 2, 3)",
    "slicer.util.show('a', duration=1, parent=None)",
    "[each.GetSize() for each in (hinted, hinted)]",
    "other.anything().at.all",
    "for text in 'abc': text.upper()",
]


@pytest.mark.parametrize("code", CORRECT)
def test_correct_uses_have_no_fault(findings: Checker, code: str) -> None:
    assert [finding for finding in findings(code) if finding.fault] == []


FAULTS = [
    ("panel.clearEverything()", "clearEverything", "MISSING"),
    ("panel.protectedMethod()", "protectedMethod", "MISSING"),
    ("panel.onSelected()", "onSelected", "MISSING"),
    ("panel.Secret", "Secret", "MISSING"),
    ("hinted.Internal()", "Internal", "MISSING"),
    ("hinted.Removed", "Removed", "MISSING"),
    ("panel.firstNode('a').Removed()", "Removed", "MISSING"),
    ("slicer.qOldPanel()", "qOldPanel", "MISSING"),
    ("slicer.util.hide()", "hide", "MISSING"),
    ("from slicer.util import hide", "hide", "MISSING"),
    ("getattr(panel, 'gone')", "gone", "MISSING"),
    ("panel.connect('gone()', print)", "gone()", "MISSING"),
    ("panel.count()", "count", "WRONG KIND"),
    ("panel.node()", "node", "WRONG KIND"),
    ("panel.empty = True", "empty", "WRONG KIND"),
    ("panel.clearAll = None", "clearAll", "WRONG KIND"),
    ("if panel.firstNode: pass", "firstNode", "WRONG KIND"),
    ("hinted.GetSize + 1", "GetSize", "WRONG KIND"),
    ("hinted.ChangedEvent()", "ChangedEvent", "WRONG KIND"),
    ("panel.connect('count()', print)", "count()", "WRONG KIND"),
    ("panel.clearAll(1)", "clearAll", "WRONG ARGUMENTS"),
    ("panel.firstNode()", "firstNode", "WRONG ARGUMENTS"),
    ("panel.select()", "select", "WRONG ARGUMENTS"),
    ("panel.plainMethod(1)", "plainMethod", "WRONG ARGUMENTS"),
    ("hinted.SetColor(1, 2)", "SetColor", "WRONG ARGUMENTS"),
    ("hinted.Insert(1, 2, 3)", "Insert", "WRONG ARGUMENTS"),
    ("slicer.qTestPanel(1, 2)", "qTestPanel", "WRONG ARGUMENTS"),
    ("slicer.util.show()", "show", "WRONG ARGUMENTS"),
    ("slicer.util.show('a', seconds=1)", "show", "WRONG ARGUMENTS"),
    ("show('a', seconds=1)", "show", "WRONG ARGUMENTS"),
    ("panel.connect('selected(QString)', print)", "selected(QString)", "WRONG ARGUMENTS"),
    ("unknown.SetSize(1)", "SetSize", "UNRESOLVED"),
]


@pytest.mark.parametrize(("code", "name", "fault"), FAULTS)
def test_faults_are_found(findings: Checker, code: str, name: str, fault: str) -> None:
    found = [finding for finding in findings(code) if finding.fault]
    assert [(finding.name, finding.fault) for finding in found] == [(name, fault)]


def test_methods_that_pythonqt_does_not_offer_are_missing(findings: Checker) -> None:
    found = {finding.name: finding.verdict for finding in findings("panel.setCount(1)\npanel.setNode(None)")}
    assert found["setCount"] == "MISSING: PythonQt does not offer the C++ method at qTestPanel.h:21"
    assert found["setNode"] == "MISSING"


def test_a_class_follows_from_what_the_module_passes_and_returns(tmp_path: Path, api: Api) -> None:
    folder = tmp_path / "Module"
    folder.mkdir()
    (folder / "first.py").write_text(
        dedent("""
            import slicer
            from .second import Second

            def create():
                return slicer.qTestPanel()

            Second(create(), label="x").use()
            """)
    )
    (folder / "second.py").write_text(
        dedent("""
            class Second:
                def __init__(self, panel, label):
                    self.panel, self.label = panel, label

                @property
                def node(self):
                    return self.panel.firstNode(self.label)

                def use(self):
                    self.node.SetSize(1)
                    self.label.SetSize(2)
                    self.node.Vanish()
            """)
    )
    found = {finding.name: finding for finding in check(Module(folder, api, HINTS), api).findings}
    assert found["SetSize"].verdict == "vtkTestNode.h:9"
    assert found["SetSize"].owner == "vtkTestNode"
    assert found["Vanish"].fault == "MISSING"
    assert len(found) == 4  # also the class and firstNode; the label is no object of Slicer


def test_a_name_that_the_module_can_do_without_is_no_fault(findings: Checker) -> None:
    found = findings("try:\n    from slicer.util import later\nexcept ImportError:\n    later = None")
    assert [finding.fault for finding in found if finding.name == "later"] == [""]


def test_widgets_of_the_panel_are_known_by_their_names(tmp_path: Path, api: Api) -> None:
    folder = tmp_path / "Module"
    folder.mkdir()
    (folder / "panel.ui").write_text('<ui><widget class="qTestPanel" name="saveButton"/></ui>')
    (folder / "panel.py").write_text(
        dedent("""
            def setup(ui):
                ui.saveButton.clearAll()
                ui.loadButton.clearAll()
                return {("saveButton", "count"): 1, ("saveButton", "number"): 2}
            """)
    )
    hints = Hints({"setup.ui": "ui"}, {}, {})
    found = {
        (finding.owner, finding.name): finding.fault for finding in check(Module(folder, api, hints), api).findings
    }
    assert found == {
        ("qTestPanel", "clearAll"): "",
        ("ui", "loadButton"): "MISSING",
        ("?", "clearAll"): "UNRESOLVED",
        ("qTestPanel", "count"): "",
        ("qTestPanel", "number"): "MISSING",
    }


class vtkFake:  # noqa: N801 (a class of VTK)
    CONSTANT = 1

    def Move(self) -> None:  # noqa: N802
        """Move(self, x:float, y:float, z:float=0.0) -> None
        C++: void Move(double x, double y, double z=0.0)
        Move(self, point:(float, float, float)) -> vtkFake
        C++: void Move(double point[3])

        Move something: Move(everything) is allowed.
        """


vtkFake.Move.__doc__ = inspect.cleandoc(vtkFake.Move.__doc__ or "")


def test_classes_of_vtk_are_looked_up_in_its_package() -> None:
    with_vtk = Api([], vtk=SimpleNamespace(vtkFake=vtkFake))  # type: ignore[arg-type]
    member = with_vtk.find("vtkFake", "Move")
    assert member is not None
    assert member.arities == ((2, 3), (1, 1))
    assert with_vtk.find("vtkFake", "Stop") is None
    constant = with_vtk.find("vtkFake", "CONSTANT")
    assert constant is not None
    assert constant.kind == "constant"


def test_the_command_prints_a_table_and_fails_for_faults(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Module"
    folder.mkdir()
    source = folder / "module.py"
    monkeypatch.setattr(slicer_calls, "MODULE_FOLDER", folder)
    monkeypatch.setattr(slicer_calls, "installed", lambda name: None)
    monkeypatch.setattr(slicer_calls, "pythonqt", lambda: None)
    source.write_text("import slicer\nslicer.vtkTestNode().SetSize(1)\nslicer.vtkTestNode().SetSize(1)\n")
    assert slicer_calls.main([str(tmp_path / "Slicer")]) == 0
    output = capsys.readouterr().out
    assert "| module.py:2 +1 | vtkTestNode | SetSize | call | method | 1 | vtkTestNode.h:9 |" in output
    assert "2 uses: 0 missing" in output
    source.write_text("import slicer\nslicer.vtkTestNode().SetSizes(1)\n")
    assert slicer_calls.main([str(tmp_path / "Slicer")]) == 1
    assert "| SetSizes | call |  | 1 | MISSING |" in capsys.readouterr().out


def test_a_class_in_no_source_is_not_checked(tmp_path: Path, api: Api) -> None:
    folder = tmp_path / "Module"
    folder.mkdir()
    (folder / "module.py").write_text("import qt, vtk\nqt.QTimer().start(1)\nvtk.vtkPoints().Reset()\n")
    found = [finding for finding in check(Module(folder, api, HINTS), api).findings if finding.owner in ("qt", "vtk")]
    assert [(finding.name, finding.verdict) for finding in found] == [
        ("QTimer", "NOT CHECKED: qt is not installed"),
        ("vtkPoints", "NOT CHECKED: vtk is not installed"),
    ]


def test_a_missing_tree_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        slicer_calls.main([str(tmp_path / "nothing")])
    assert "is not a folder. Pass a checkout of 3D Slicer or of CTK." in capsys.readouterr().err
