"""JupyterLab in Chromium, in a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import subprocess

from helpers.script_process import ScriptProcess

#: A Python with this package's extra ``notebook``, JupyterLab and Playwright.
PYTHON = os.environ.get("NNINTERACTIVE_WS_NOTEBOOK_PYTHON")
TESTS = Path(__file__).parents[1]


class Notebook(ScriptProcess):
    """An open notebook. ``do`` calls an action of ``helpers.notebook_script``. Files are in ``folder``."""


@contextmanager
def notebook(folder: Path, chromium: str) -> Iterator[Notebook]:
    """Open an empty notebook in a folder, which also gets the settings and the log."""
    assert PYTHON is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [PYTHON, "-m", "helpers.notebook_script", str(folder), chromium],
            env=_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            running = Notebook(process, folder)
            running.answer()
            yield running
        finally:
            process.communicate()  # the end of its input ends it


def _environment(folder: Path) -> dict[str, str]:
    """Return variables with which JupyterLab does not use the user's settings."""
    home = folder / "home"
    return {
        **os.environ,
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }
