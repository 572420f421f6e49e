"""Screenshot of a view in JupyterLab for the documentation: ``python -m helpers.notebook_picture FILE``

``PYTHONPATH`` names the folder of the tests, and the variable of ``helpers.notebook_process`` the Python with
JupyterLab. Chromium is needed too.
"""

from pathlib import Path
import sys
import tempfile

import numpy as np
from PIL import Image

from helpers.chromium import find_chromium
from helpers.notebook_process import notebook
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.server.local_server import local_server

SHAPE, SPACING = (160, 128, 112), (2.5, 2.5, 2.5)
#: Pixels of the canvas: a click in the coronal view, and a stroke in the axial view.
LIVER = (215, 95)
SPLEEN = ((352, 422), (358, 434), (364, 444))
OPEN = """
import numpy as np
import nninteractive_ws as nni
session = nni.connect({address!r})
session.set_image(np.load("image.npy"))
view = session.view(np.diag([-2.5, -2.5, 2.5, 1]))
view
"""


def write(file: Path) -> None:
    phantom = make_phantom(1, SHAPE, SPACING)
    kidney = np.argwhere(phantom.mask("left kidney")).mean(axis=0).tolist()
    chromium = find_chromium()
    assert chromium is not None
    with tempfile.TemporaryDirectory() as name, local_server("--model", "demo", "--log-level", "warning") as address:
        folder = Path(name)
        np.save(folder / "image.npy", phantom.image)
        with notebook(folder, chromium) as opened:
            opened.do("run", OPEN.format(address=address))
            opened.do("wait_for_text", "click into the image")
            opened.do("run", f'session.segment("left kidney").add_point({kidney})')
            opened.do("new_segment", "liver")
            opened.do("drag", LIVER)
            opened.do("wait_for_text", "liver: ")
            opened.do("new_segment", "spleen")
            opened.do("select", "Scribble")
            opened.do("drag", *SPLEEN)
            opened.do("wait_for_text", "voxels after")
            opened.do("output", str(folder / "view.png"))
            Image.open(folder / "view.png").convert("RGB").save(file, quality=80, method=6)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
