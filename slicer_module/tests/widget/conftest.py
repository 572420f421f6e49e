"""Fixtures for the tests of the module's widget, with real Qt through PythonQt and a fake Slicer application.

They need slicer-core, and PythonQt as built by ``slicer_module/qt_host/build.py``. If one of them is missing, these
tests are skipped with a message.
"""

import contextlib
from pathlib import Path
import sys
import time

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "NNInteractiveWS")]


def _load():
    """Load PythonQt. Return the extension and an empty text, or None and the reason if something is missing."""
    import pythonqt

    with contextlib.suppress(ImportError):
        # The server of these tests imports torch, and some builds of torch include triton, which crashes if it is
        # loaded after Qt.
        import triton  # noqa: F401
    try:
        import slicer
    except ImportError:
        return None, "slicer-core is not installed"
    if not hasattr(slicer, "vtkMRMLScene"):
        return None, "the package called slicer here is not 3D Slicer's"
    try:
        host = pythonqt.load()
    except pythonqt.NotBuilt as e:
        return None, str(e)
    import slicer_application

    slicer_application.install()
    host.take_messages()
    return host, ""


_host, _missing = _load()

#: Start of harmless warnings with QT_QPA_PLATFORM=offscreen.
_HARMLESS = "This plugin does not support"


def pytest_report_header(config):
    return f"slicer_module/tests/widget: {f'skipped, {_missing}' if _missing else 'on PythonQt'}"


class _Skipped(pytest.Module):
    """A test module that is not imported because its dependencies are missing."""

    def collect(self):
        pytest.skip(_missing, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return _Skipped.from_parent(parent, path=module_path) if _missing else None


@pytest.fixture(autouse=True)
def qt_errors(capfd, monkeypatch):
    """Fail a test on errors that Qt and PythonQt only log: an exception in a slot or an event handler, a warning, or an
    unknown signal. A test can append errors to the list, too."""
    wrong = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: wrong.append(f"{kind.__name__}: {error}"))
    yield wrong
    wrong += [message for message in _host.take_messages() if not message.startswith(_HARMLESS)]
    printed = capfd.readouterr()
    sys.stdout.write(printed.out)
    sys.stderr.write(printed.err)
    wrong += [line for line in printed.err.splitlines() if line.startswith("PythonQt")]
    assert not wrong


@pytest.fixture
def application(tmp_path):
    """A started Slicer with an empty scene, three slice views, a 3-D view and separate settings, as ``slicer.app``."""
    import slicer_application

    started = slicer_application.Application(tmp_path / "settings")
    started.start()
    yield started
    started.quit()


@pytest.fixture
def scene(application):
    """The application's scene."""
    return application.mrmlScene()


@pytest.fixture
def tester(application):
    """The panel without a volume, with consent for each server. ``use(address)`` enters a server."""
    from NNInteractiveWSLib.logic import Logic
    from panel_harness import Module

    module = Module(Logic, consents=lambda address: True)

    def use(address):
        module.ui.serverComboBox.setEditText(address)
        module.panel.server.use()

    module.use = use
    yield module
    module.close()


@pytest.fixture
def wait_until():
    """Run Qt's event loop until a condition holds. Fail after a timeout."""
    import qt

    def wait(condition, within=200.0):
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "timeout"
            qt.QApplication.instance().processEvents()
            time.sleep(0.001)

    return wait
