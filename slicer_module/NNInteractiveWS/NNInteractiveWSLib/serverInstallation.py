"""Installation of a server on this computer, in a process that ends with Slicer. Nothing here blocks.

Slicer's own Python cannot be the base of the server's environment: it runs only with the library paths and the
PYTHONHOME that Slicer's launchers set. These would also be missing after an update of Slicer. So a Python of the
computer is used.
"""

from collections import deque
import os
from pathlib import Path
import shutil
import sys

import slicer

from . import packages
from .childProcess import ChildProcess
from .installServer import MARKER, STARTED, WITHOUT_VENV
from .localServer import MAX_LINES, pathVariable
from .status import _

#: In the home folder, as its path is short. Windows limits the length of the paths of torch's files.
DEFAULT_FOLDER = Path.home() / "nninteractive-ws-server"
#: Gigabytes to download and on the disk, by whether there is an NVIDIA GPU. Measured on Linux with torch 2.14.
_SIZES = {True: (3.3, 6.6), False: (0.5, 2.0)}
#: The index of builds of torch, where the Python Package Index has others. By system and whether there is a GPU.
_TORCH_INDEXES = {
    ("win32", True): "https://download.pytorch.org/whl/cu128",
    ("linux", False): "https://download.pytorch.org/whl/cpu",
}
_PROGRAM = Path(__file__).with_name("installServer.py")
#: Time to remove the folder of an unfinished installation.
_END_TIMEOUT_MS = 60_000
#: Folders of Pythons that are not on the PATH of applications.
_MAC_FOLDERS = (
    "/opt/homebrew/bin",
    "/usr/local/bin",
    *(f"/Library/Frameworks/Python.framework/Versions/3.{n}/bin" for n in (12, 13, 11)),
)


class CannotInstall(Exception):
    """The installation cannot start. ``str()`` is a message for the user."""


class ServerInstallation:
    """Creation of a Python environment with the server in it.

    It calls ``onOutput(line)`` for lines of progress, and ``onEnded(program, message)`` at the end: with the path of
    nninteractive-ws, or with None and a message for the user.
    """

    def __init__(self, onOutput, onEnded):
        self._onOutput, self._onEnded = onOutput, onEnded
        self._process = None

    @property
    def isRunning(self):
        """Whether the installation was started and has not ended."""
        return self._process is not None

    def start(self, folder):
        """Install the server in a folder, which may not exist. Raise CannotInstall."""
        self._environment = slicer.util.startupEnvironment()
        withGpu = hasGpu(self._environment)
        self._folder = _checkedFolder(folder, sum(_SIZES[withGpu]))
        torchIndex = _TORCH_INDEXES.get((sys.platform, withGpu))
        self._arguments = [str(self._folder), packages.serverRequirement(), *([torchIndex] if torchIndex else [])]
        self._pythons = _pythons(self._environment)
        self._isStarted = self._isCanceled = self._lacksVenv = False
        self._lines = deque(maxlen=MAX_LINES)
        self._tryNextPython()

    def cancel(self):
        """Cancel the installation. ``onEnded`` is called after the folder has been removed."""
        self._isCanceled = True
        self._process.closeInput()

    def close(self):
        """Cancel the installation. No callback is called afterward."""
        if self._process is not None:
            process, self._process = self._process, None
            process.end(_END_TIMEOUT_MS)

    def _tryNextPython(self):
        if not self._pythons:
            self._end(_withoutVenv() if self._lacksVenv else _withoutPython())
            return
        program, *arguments = self._pythons.pop(0)
        arguments = [*arguments, "-I", str(_PROGRAM), *self._arguments]
        self._process = ChildProcess(program, arguments, self._environment, self._onLine, self._onProcessEnded)

    def _onLine(self, line):
        line = line.strip()
        if not self._isStarted:
            self._isStarted = line == STARTED
        elif line:
            self._lines.append(line)
            self._onOutput(line)

    def _onProcessEnded(self, code, reason):
        if self._isStarted and code == 0:  # even if it was canceled at the last moment
            self._process = None
            self._onEnded(str(_programIn(self._folder)), None)
        elif self._isCanceled:
            self._end(_("The installation was canceled, and its folder was removed."))
        elif not self._isStarted:
            self._lacksVenv = self._lacksVenv or code == WITHOUT_VENV
            self._tryNextPython()
        else:
            message = _("The installation failed, and its folder was removed. Its last messages:")
            if code is None:
                message = _("The installation was killed. Delete the folder {folder}. Its last messages:")
            self._end("\n".join([message.format(folder=self._folder), *self._lines]))

    def _end(self, message):
        self._process = None
        self._onEnded(None, message)


def hasGpu(environment):
    """Whether this computer has an NVIDIA GPU with its driver, which brings the program nvidia-smi."""
    return shutil.which("nvidia-smi", path=pathVariable(environment)) is not None


def sizes(withGpu):
    """Gigabytes to download, and on the disk."""
    return _SIZES[withGpu]


def _programIn(folder):
    return folder / ("Scripts/nninteractive-ws.exe" if os.name == "nt" else "bin/nninteractive-ws")


def _checkedFolder(folder, needed):
    """Return the path of the folder. ``needed``: gigabytes. Raise CannotInstall if it cannot be used."""
    path = Path(os.path.expanduser(folder.strip()))  # noqa: PTH111 (Path.expanduser() raises for unknown users)
    if not path.is_absolute():
        raise CannotInstall(_("Enter the full path of a folder."))
    try:
        if path.exists() and any(path.iterdir()) and not (path / MARKER).exists():
            message = _("The folder {folder} is not empty. Choose another one, or a new name in it.")
            raise CannotInstall(message.format(folder=path))
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            message = _("The folder cannot be created, because you cannot write to {path}.")
            raise CannotInstall(message.format(path=existing))
        free = shutil.disk_usage(existing).free / 1e9
    except OSError as e:
        raise CannotInstall(_("The folder cannot be used: {reason}").format(reason=e)) from e
    if free < needed:
        message = _(
            "{folder} has {free:.1f} GB of free space. The installation needs {needed:.1f} GB, part of it only "
            "until it is done. Choose a folder on another disk."
        )
        raise CannotInstall(message.format(folder=existing, free=free, needed=needed))
    return path


def _pythons(environment):
    """Commands that run a Python of this computer, if there is one. The most widely supported version comes first."""
    if os.name == "nt":
        candidates = (["py", "-3"], ["python"])
    else:
        candidates = (["python3.12"], ["python3.13"], ["python3.11"], ["python3"])
    path = pathVariable(environment)
    if sys.platform == "darwin":
        # The python3 in /usr/bin may be a program that opens a window to install developer tools.
        path = os.pathsep.join([*_MAC_FOLDERS, *(f for f in (path or "").split(os.pathsep) if f != "/usr/bin")])
    found = ((shutil.which(name, path=path), *arguments) for name, *arguments in candidates)
    return [command for command in found if command[0] is not None]


def _withoutPython():
    return _(
        "No Python 3.11 or newer was found on this computer. Install Python 3.12 from python.org, restart Slicer, and "
        "try again. Slicer's own Python works only inside Slicer."
    )


def _withoutVenv():
    return _(
        "Python was found, but without its modules venv and ensurepip, which create environments. Install them, on "
        "Debian and Ubuntu with: sudo apt install python3-venv. Then try again."
    )
