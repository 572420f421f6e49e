"""Screenshot of napari for the documentation: ``python -m helpers.napari_picture FILE``

``PYTHONPATH`` names the folder of the tests, and the variable of ``helpers.napari_process`` the Python with napari.
"""

from pathlib import Path
import sys
import tempfile

from PIL import Image

from helpers.napari_process import napari
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.server.local_server import local_server

PORT = 1527  # the default of nnInteractive's own server
SHAPE, SPACING = (200, 160, 140), (2.0, 2.0, 2.0)
GAP, SETTINGS_HEIGHT = 12, 255  # pixels


def write(file: Path) -> None:
    image = make_phantom(1, SHAPE, SPACING).image.transpose()  # napari shows the last two axes
    with (
        tempfile.TemporaryDirectory() as folder,
        local_server("--model", "demo", "--log-level", "warning", "--official-port", str(PORT)),
        napari(image, Path(folder)) as running,
    ):
        running.do("enter_server", f"http://127.0.0.1:{PORT}")
        running.do("initialize")
        running.do("point", (75, 75, 69))
        running.do("scribble", [(75, 60, 60), (75, 90, 60)])
        names = [str(Path(folder) / name) for name in ("window.png", "settings.png")]
        running.do("screenshots", *names)
        window, settings = (Image.open(name).convert("RGB") for name in names)
        picture = Image.new("RGBA", (window.width + GAP + settings.width, window.height))
        picture.paste(window, (0, 0))
        picture.paste(settings.crop((0, 0, settings.width, SETTINGS_HEIGHT)), (window.width + GAP, 0))
        picture.save(file, quality=80, method=6)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
