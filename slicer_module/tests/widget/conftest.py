"""What the tests of the module's widget share: real Qt through PythonQt, and a stand-in for the Slicer application.

They need slicer-core, and PythonQt as ``slicer_module/qt_host/build.py`` builds it. Where one of them is not there,
these tests are skipped, and say which.
"""

import contextlib
from pathlib import Path
import sys
import time

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "NNInteractiveWS")]


def _load():
    """The extension with PythonQt; None and the reason where something is missing."""
    import pythonqt

    with contextlib.suppress(ImportError):
        # A part of some builds of torch, which the server of these tests imports: loaded after Qt, it crashes.
        import triton  # noqa: F401
    try:
        import slicer
    except ImportError:
        return None, "slicer-core is not installed"
    if not hasattr(slicer, "vtkMRMLScene"):
        return None, "the package called slicer here is not 3D Slicer's"
    try:
        host = pythonqt.load()
    except pythonqt.NotBuilt as why:
        return None, str(why)
    import slicer_application

    slicer_application.install()
    host.take_messages()
    return host, ""


_host, _missing = _load()

#: What QT_QPA_PLATFORM=offscreen says of windows that nobody sees.
_HARMLESS = "This plugin does not support"


def pytest_report_header(config):
    return f"slicer_module/tests/widget: {f'skipped, {_missing}' if _missing else 'on PythonQt'}"


class _Skipped(pytest.Module):
    """A test module that is not imported, because what it imports is not there."""

    def collect(self):
        pytest.skip(_missing, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return _Skipped.from_parent(parent, path=module_path) if _missing else None


@pytest.fixture(autouse=True)
def heard(capfd, monkeypatch):
    """Fail a test during which something went wrong that Qt or PythonQt only write to the log: an exception in a slot
    or event handler, a warning of Qt's, a signal that is not there. Appending to it makes a test fail, too."""
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
    """A started Slicer: ``slicer.app``, an empty scene, three slice views and a 3-D view, settings in a file of its
    own."""
    import slicer_application

    started = slicer_application.Application(tmp_path / "settings")
    started.start()
    yield started
    started.quit()


@pytest.fixture
def scene(application):
    """The application's, for the fixtures that put something into a scene."""
    return application.mrmlScene()


@pytest.fixture
def tester(application):
    """The panel without a volume, whose user agrees to each server; ``use(address)`` enters one."""
    from assembled import Module
    from NNInteractiveWSLib.logic import Logic

    module = Module(Logic, agreed=lambda address: True)

    def use(address):
        module.ui.serverComboBox.setEditText(address)
        module.panel.server.use()

    module.use = use
    yield module
    module.close()


@pytest.fixture
def wait_until():
    """Let Qt's loop run until something is so; fails where it does not come about in time."""
    import qt

    def wait(condition, within=200.0):
        deadline = time.monotonic() + within
        while not condition():
            assert time.monotonic() < deadline, "it did not come about"
            qt.QApplication.instance().processEvents()
            time.sleep(0.001)

    return wait
