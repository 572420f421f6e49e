"""napari with nnInteractive's plug-in, in a process of its own on a virtual display."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import subprocess
from typing import Any

import numpy as np
import numpy.typing as npt

from helpers.programs import find_program
from helpers.script_process import ScriptProcess
from nninteractive_ws.masks import Mask

#: A Python with napari and the plug-in. They need an environment of their own, since napari extends pytest.
PYTHON = os.environ.get("NNINTERACTIVE_WS_NAPARI_PYTHON")
TESTS = Path(__file__).parents[1]
SCREEN = "1280x1024x24"


class Napari(ScriptProcess):
    """A running napari. ``do`` calls an action of ``helpers.napari_script``."""

    def mask(self) -> Mask:
        """Return the plug-in's label layer."""
        self.do("mask")
        mask: Mask = np.load(self.folder / "mask.npy").astype(bool)
        return mask


@contextmanager
def napari(image: npt.NDArray[Any], folder: Path) -> Iterator[Napari]:
    """Open an image in napari. Its settings, its log and the masks are in ``folder``."""
    np.save(folder / "image.npy", image)
    assert PYTHON is not None
    with virtual_display() as display, (folder / "log").open("w") as log:
        command = [PYTHON, "-m", "helpers.napari_script", str(folder)]
        environment = _environment(folder) | {"DISPLAY": display}
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            running = Napari(process, folder)
            running.answer()
            yield running
        finally:
            process.kill()
            process.communicate()


def _environment(folder: Path) -> dict[str, str]:
    """Return variables with which napari and the plug-in neither use the user's settings nor the internet."""
    home = folder / "home"
    variables = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA", "STATE")}
    return {
        **os.environ,
        **variables,
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(TESTS),
        "QT_QPA_PLATFORM": "xcb",
    }


@contextmanager
def virtual_display() -> Iterator[str]:
    """Run an X server in memory, and yield the name of its display."""
    program = find_program("Xvfb")
    assert program is not None
    reading, writing = os.pipe()
    command = [program, "-displayfd", str(writing), "-screen", "0", SCREEN, "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as process:
        os.close(writing)
        try:
            with os.fdopen(reading) as pipe:
                number = pipe.readline().strip()
            assert number, "Xvfb did not start"
            yield f":{number}"
        finally:
            process.terminate()
