"""Loader of PythonQt as built by ``qt_host/build.py``. It creates the module ``qt``, as in Slicer's Python."""

import importlib.util
import os
from pathlib import Path
import sys
import types
import warnings

BUILD_SCRIPT = Path(__file__).resolve().parents[2] / "qt_host" / "build.py"


class NotBuilt(Exception):
    """PythonQt is not built for this interpreter."""


def load() -> types.ModuleType:
    """Load the extension, whose ``take_messages()`` returns Qt's warnings, and enable ``import qt``. Raise NotBuilt."""
    path = _extension_path()
    if not path.exists():
        raise NotBuilt(f"PythonQt is not built for this Python (run {BUILD_SCRIPT.name} in slicer_module/qt_host)")
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # windows in memory, no display needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PythonQt imports a deprecated Python module
        host = _import("_pythonqt_host", path)
    sys.modules["qt"] = _qt_module()
    return host


def _extension_path() -> Path:
    return _import("qt_host_build", BUILD_SCRIPT).extension_path()


def _import(name: str, path: Path) -> types.ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def _qt_module() -> types.ModuleType:
    """Create Slicer's module ``qt`` with the names of all modules of PythonQt."""
    from PythonQt import QtCore, QtGui, QtUiTools

    qt = types.ModuleType("qt", "The names of PythonQt's modules, as Slicer has them.")
    for part in (QtCore, QtGui, QtUiTools):
        vars(qt).update({name: value for name, value in vars(part).items() if not name.startswith("__")})
    return qt
