"""Install a server in a Python environment of its own, as a separate program because it takes minutes:
``python installServer.py FOLDER REQUIREMENT [TORCH_INDEX]``.

It runs in a Python outside Slicer, with the standard library alone. If the installation fails, or if the standard input
closes before it is done, it ends and removes the folder.
"""

import importlib.util
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import threading

#: Printed first, if this Python is suitable.
STARTED = "installing"
#: Exit statuses of an unsuitable Python: too old, or without the modules that create environments.
TOO_OLD, WITHOUT_VENV = 3, 4
_OLDEST = (3, 11)
#: A file in the folder of an unfinished installation, which the next one may replace.
MARKER = "unfinished-installation"


class Commands:
    """Programs that run one after the other until ``cancel()``."""

    def __init__(self, environment):
        self._environment = environment
        self._lock = threading.Lock()
        self._process = None
        self._canceled = False

    def run(self, *command):
        """Run a program. Return whether it succeeded."""
        with self._lock:
            if self._canceled:
                return False
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # cancel() ends the programs that it starts, too
            )
        return self._process.wait() == 0

    def cancel(self):
        with self._lock:
            self._canceled = True
            if self._process is None or self._process.poll() is not None:
                return
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def install(folder, requirement, torchIndex=None):
    """Install the server. Return whether it succeeded."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        print(f"The folder {folder} is not empty.", flush=True)
        return False
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder / "tmp"  # the packages need gigabytes, which the system's folder may not have
    temporary.mkdir(parents=True)
    (folder / MARKER).touch()
    commands = Commands(_environment(temporary))
    threading.Thread(target=_cancelAtEndOfInput, args=(commands,), daemon=True).start()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (python, "-I", "-m", "pip", "install", "--no-cache-dir", "--no-input")
    print(f"Creating {folder}", flush=True)
    succeeded = (
        commands.run(sys.executable, "-I", "-m", "venv", folder)
        and (torchIndex is None or commands.run(*pip, "--index-url", torchIndex, "torch", "torchvision"))
        and commands.run(*pip, requirement)
    )
    if succeeded:
        shutil.rmtree(temporary, ignore_errors=True)
        (folder / MARKER).unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return succeeded


def _environment(temporary):
    changed = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    changed.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0", PYTHONUNBUFFERED="1")
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    return {**inherited, **changed}


def _cancelAtEndOfInput(commands):
    while os.read(0, 4096):  # a read through sys.stdin would hold a lock that Python needs to exit
        pass
    commands.cancel()


def main(folder, requirement, torchIndex=None):
    """Return the exit status."""
    if sys.version_info < _OLDEST:
        return TOO_OLD
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        return WITHOUT_VENV
    print(STARTED, flush=True)
    try:
        return 0 if install(Path(folder), requirement, torchIndex) else 1
    except OSError as e:
        print(e, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
