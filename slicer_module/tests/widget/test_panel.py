"""The panel's .ui file: completeness, layout at the width of Slicer's module panel, and captions with shortcuts."""

import re
import xml.etree.ElementTree as ET

from panel_harness import RESOURCES, UI_FILE, WIDTH
import pytest
import qt
import slicer


class Panel:
    def __init__(self):
        self.widget = slicer.util.loadUI(str(UI_FILE))
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.ui = slicer.util.childWidgetVariables(self.widget)

    def show(self, tab):
        self.ui.tabWidget.setCurrentWidget(getattr(self.ui, tab))
        self.widget.show()
        for _ in range(2):  # the height of wrapped text depends on the width
            self.widget.resize(WIDTH, max(self.widget.sizeHint.height(), self.widget.minimumSizeHint.height()))
            slicer.app.processEvents()


@pytest.fixture
def panel(application):
    made = Panel()
    yield made
    made.widget.close()


def test_the_panel_is_complete(panel):
    assert {"promptsTab", "configurationTab"} == {panel.ui.tabWidget.widget(i).name for i in range(2)}
    tools = ["pointButton", "boundingBoxButton", "scribbleButton", "lassoButton"]
    for name in tools:
        tool = getattr(panel.ui, name)
        assert tool.checkable
        assert not tool.enabled, "a tool is enabled without a volume"
    assert panel.ui.tokenLineEdit.echoMode == qt.QLineEdit.Password
    parameters = {w.property("SlicerParameterName") for w in slicer.util.findChildren(panel.widget)} - {None}
    assert parameters == {"livePreview", "runAutomatically", "autoZoom"}


def test_names_are_in_camel_case_and_unique():
    names = [element.get("name") for element in ET.parse(UI_FILE).iter() if element.tag in ("widget", "layout")]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][A-Za-z]+", name) for name in names if name != "NNInteractiveWS")


def test_positive_and_negative_exclude_each_other(panel):
    assert panel.ui.positiveButton.checked
    panel.ui.negativeButton.click()
    assert not panel.ui.positiveButton.checked
    panel.ui.negativeButton.click()
    assert panel.ui.negativeButton.checked


def test_buttons_show_their_shortcuts(panel):
    buttons = (
        *("pointButton", "boundingBoxButton", "scribbleButton", "lassoButton"),
        *("nextSegmentButton", "resetSegmentButton", "visibilityButton", "undoButton", "redoButton", "cancelButton"),
    )
    for name in buttons:
        shortcut = getattr(panel.ui, name.replace("Button", "ShortcutEdit")).keySequence.toString()
        assert getattr(panel.ui, name).text.endswith(f" ({shortcut})")


@pytest.mark.parametrize("tab", ["promptsTab", "configurationTab"])
def test_nothing_is_cut_off(panel, tab, tmp_path):
    panel.ui.shortcutsCollapsibleButton.collapsed = False
    panel.show(tab)
    assert panel.widget.width == WIDTH
    assert panel.widget.grab().save(str(tmp_path / f"{tab}.png"))
    checked = 0
    for widget in slicer.util.findChildren(panel.widget):
        if not isinstance(widget, (qt.QPushButton, qt.QLabel, qt.QCheckBox, qt.QKeySequenceEdit)) or not widget.visible:
            continue
        checked += 1
        needed = widget.minimumSizeHint
        assert widget.width >= needed.width(), widget.name
        assert widget.height >= (widget.heightForWidth(widget.width) if widget.hasHeightForWidth() else needed.height())
        if isinstance(widget, qt.QPushButton):
            assert widget.width >= widget.fontMetrics().boundingRect(widget.text).width() + 6, widget.name
    assert checked > 10


def test_the_icon():
    icon = qt.QImage(str(RESOURCES / "Icons" / "NNInteractiveWS.png"))
    assert (icon.width(), icon.height()) == (128, 128)
    assert qt.QColor(icon.pixelColor(0, 0)).alpha() == 0
