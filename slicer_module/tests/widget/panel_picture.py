"""Screenshot of the panel for the tutorial, after a click in a real session.

python slicer_module/tests/widget/panel_picture.py [FOLDER]     writes slicer_module/Screenshots/panel.png, or FOLDER's
"""

import importlib
from pathlib import Path
import sys
import tempfile
import time

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "Screenshots"
WIDTH = 400  # approximate width of Slicer's module panel
_GAP = 12  # pixels


def picture(address):
    """Return a QImage of both tabs side by side, after a click into the right kidney of the phantom.

    ``address``: a server with the embedded model. An Application must be running, without consent for other servers.
    """
    from NNInteractiveWSLib.sampleData import addPhantom
    import qt
    import slicer

    module = slicer.app.createModule(importlib.import_module("NNInteractiveWS"))
    slicer.util.selectModule("NNInteractiveWS")
    addPhantom()
    qt.QSettings().setValue("NNInteractiveWS/agreedServers", [address])
    module.ui.serverComboBox.setEditText(address)
    module.ui.serverComboBox.lineEdit().editingFinished()
    module.enter()
    module.ui.testConnectionButton.click()
    _waitFor(lambda: "First mask" in module.ui.testResultLabel.text, module)
    assert module.logic.addPoint((59.0, -36.0, -48.0)), module.logic.status
    _waitFor(lambda: module.logic.canUndo and not module.logic.busy, module)
    tabs = [_tab(module, name) for name in ("promptsTab", "configurationTab")]
    return _beside(*tabs)


def _waitFor(condition, module):
    import slicer

    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end, (module.logic.status, module.ui.testResultLabel.text)
        slicer.app.processEvents()
        time.sleep(0.002)


def _tab(module, name):
    """Grab the panel above the Segment Editor, with a tab open."""
    import qt
    import slicer

    ui = module.ui
    ui.tabWidget.setCurrentWidget(getattr(ui, name))
    ui.segmentEditorCollapsibleButton.hide()
    root = ui.tabWidget.parent()
    area = qt.QScrollArea()  # gives the panel its full height, as in Slicer
    area.frameShape = qt.QFrame.NoFrame
    area.widgetResizable = True
    area.horizontalScrollBarPolicy = area.verticalScrollBarPolicy = qt.Qt.ScrollBarAlwaysOff
    area.setWidget(root)
    area.resize(WIDTH, 1)
    area.show()
    for _ in range(30):  # the height of wrapped text depends on the width, and propagates one level per pass
        slicer.app.processEvents()
    picture = root.grab().toImage().convertToFormat(qt.QImage.Format_RGB32)
    area.takeWidget()
    return picture


def _beside(left, right):
    import qt

    both = qt.QImage(2 * WIDTH + _GAP, max(left.height(), right.height()), qt.QImage.Format_RGB32)
    both.fill(qt.QColor("white"))
    painter = qt.QPainter(both)
    painter.drawImage(0, 0, left)
    painter.drawImage(WIDTH + _GAP, 0, right)
    painter.end()
    return both


def write(folder):
    sys.path[:0] = [str(HERE), str(HERE.parents[1] / "NNInteractiveWS")]
    import pythonqt

    pythonqt.load()
    import slicer_application

    slicer_application.install()
    from nninteractive_ws.server.local_server import local_server

    with (
        tempfile.TemporaryDirectory() as settings,
        local_server("--model", "demo", "--log-level", "warning") as address,
    ):
        application = slicer_application.Application(settings)
        application.start()
        picture(address).save(str(folder / "panel.png"))
        application.quit()


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
