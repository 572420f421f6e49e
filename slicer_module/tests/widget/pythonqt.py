"""Loads Qt as Slicer's Python has it: PythonQt, built by ``qt_host/build.py``. Makes the modules ``qt`` and ``ctk``."""

import importlib.util
import os
from pathlib import Path
import sys
import types
import warnings

BUILD_SCRIPT = Path(__file__).resolve().parents[2] / "qt_host" / "build.py"


class NotBuilt(Exception):
    """PythonQt is not there for this interpreter."""


def load() -> types.ModuleType:
    """The extension: its ``take_messages()`` tells what Qt has warned of. Afterwards ``import qt`` is possible.
    Raises NotBuilt."""
    path = _extension_path()
    if not path.exists():
        raise NotBuilt(f"PythonQt is not built for this Python (run {BUILD_SCRIPT.name} in slicer_module/qt_host)")
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # windows in memory, no display needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PythonQt imports a deprecated module of Python's
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
    """Slicer's ``qt``: the names of all of PythonQt's modules in one."""
    from PythonQt import QtCore, QtGui, QtUiTools

    qt = types.ModuleType("qt", "The names of PythonQt's modules, as Slicer has them.")
    for part in (QtCore, QtGui, QtUiTools):
        vars(qt).update({name: value for name, value in vars(part).items() if not name.startswith("__")})
    return qt
