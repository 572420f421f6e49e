"""Python without the features that Windows lacks, for child processes. Put this folder on ``PYTHONPATH``.

Modules of the package see the platform "win32", no Unix sockets and no POSIX modules. Event loops have no signal
handlers and no pipes for standard input. POSIX functions of ``os`` are missing.
"""

import asyncio
import builtins
import ctypes
import importlib.abc
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
import os
import sys
import types
from typing import Any

PACKAGE = "nninteractive_ws"
MISSING_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
MISSING_CALLS = (
    "chown",
    "fchmod",
    "fchown",
    "fork",
    "getegid",
    "geteuid",
    "getgid",
    "getpgid",
    "getuid",
    "killpg",
    "setsid",
)


class WindowsLoader(SourceFileLoader):
    """Compiles a module as on Windows."""

    def get_code(self, fullname: str) -> Any:
        source = self.get_data(self.path).replace(b"sys.platform", b"'win32'").replace(b'AF_UNIX"', b'NO_UNIX"')
        return compile(source, self.path, "exec", dont_inherit=True)


class WindowsFinder(importlib.abc.MetaPathFinder):
    """Finds the package's modules."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = WindowsLoader(name, spec.loader.path)
        return spec


def not_on_windows(*_: object) -> Any:
    raise NotImplementedError


real_import = builtins.__import__


def import_unless_missing(name: str, globals: Any = None, *arguments: Any, **options: Any) -> Any:
    """Other packages, psutil for instance, need these modules on POSIX."""
    if name in MISSING_MODULES and str((globals or {}).get("__name__")).startswith(PACKAGE):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, globals, *arguments, **options)


class FakeMsvcrt(types.ModuleType):
    """Locks whole files, by fcntl."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        import fcntl

        self._flock, self._flags = fcntl.flock, fcntl.LOCK_EX | fcntl.LOCK_NB

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (self.LK_NBLCK, 1)
        self._flock(descriptor, self._flags)


kernel32 = types.SimpleNamespace(GetConsoleWindow=lambda: 1)
ctypes.windll = types.SimpleNamespace(kernel32=kernel32)  # type: ignore[attr-defined]
sys.modules["msvcrt"] = FakeMsvcrt()
sys.meta_path.insert(0, WindowsFinder())
builtins.__import__ = import_unless_missing
for name in MISSING_CALLS:
    delattr(os, name)
for name in ("add_signal_handler", "remove_signal_handler", "_make_read_pipe_transport"):
    setattr(asyncio.SelectorEventLoop, name, not_on_windows)
