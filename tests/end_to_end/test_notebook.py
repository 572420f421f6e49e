"""The view of a session in a real JupyterLab, in a real browser.

The mask must be equal, bit for bit, to that of the Python client for the same prompt, and must be seen where NiiVue
says that its voxels are.
"""

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

from helpers.chromium import find_chromium
from helpers.end_to_end import phantom, server_process
from helpers.notebook_process import PYTHON, Notebook, notebook
import numpy as np
from PIL import Image
import pytest

import nninteractive_ws as nni
from nninteractive_ws.masks import Mask
from nninteractive_ws.messages import AddPoint

CHROMIUM = find_chromium()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(PYTHON is None, reason="NNINTERACTIVE_WS_NOTEBOOK_PYTHON names no Python with JupyterLab"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

#: The array axes are inferior, right and posterior, with three spacings.
AFFINE = np.array([[0, 1.5, 0, -20], [0, 0, -2, 90], [-1.0, 0, 0, 30], [0, 0, 0, 1]])
#: Pixels of the canvas, in the coronal view.
START, CLICK = (130, 60), (150, 130)
OPEN = """
import json
import numpy as np
import nninteractive_ws as nni
session = nni.connect({address!r})
session.set_image(np.load("image.npy"))
view = session.view({affine!r})
locations = []
view._panel._viewer.on_location_change(locations.append)
view
"""
#: The kernel does nothing else while a cell waits, and prompts must go on.
WAIT = """
import time
while not {}:
    time.sleep(0.1)
"""
SAVE = """
np.save("mask.npy", session.segment("segment 1").mask)
session.save("journal")
with open("places.json", "w") as file:
    json.dump([place["mm"][:3] for place in locations], file)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with server_process("--log-level", "warning") as process:
        yield process.address


@pytest.fixture
def lab(server: str, tmp_path: Path) -> Iterator[Notebook]:
    """A notebook with a view of the phantom."""
    assert CHROMIUM is not None
    np.save(tmp_path / "image.npy", phantom())
    with notebook(tmp_path, CHROMIUM) as opened:
        opened.do("run", OPEN.format(address=server, affine=AFFINE.tolist()))
        opened.do("wait_for_text", "click into the image")
        yield opened


def colored(lab: Notebook) -> tuple[Mask, Mask]:
    """Return the pixels with the color of the first segment over a gray image, and those of the crosshair."""
    lab.do("canvas", str(lab.folder / "canvas.png"))
    red, green, blue = np.moveaxis(np.asarray(Image.open(lab.folder / "canvas.png").convert("RGB"), int), -1, 0)
    return (abs(red - green - 78) < 25) & (abs(green - blue - 7) < 15), red - green > 110


def expected_pixels(mask: Mask, places: Any, shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """Return the pixels of the canvas that must show the mask, and all pixels of the coronal slice.

    ``places``: NiiVue's millimeters at the pixels ``START`` and ``CLICK``.
    """
    pixels, mm = np.array([START, CLICK, CLICK]), np.array(places)
    right, up = np.polyfit(pixels[:, 0], mm[:, 0], 1), np.polyfit(pixels[:, 1], mm[:, 2], 1)
    rows, columns = np.indices(shape)
    world = np.stack([np.polyval(right, columns), np.full(shape, mm[-1, 1]), np.polyval(up, rows), np.ones(shape)], -1)
    voxels = np.rint(world @ np.linalg.inv(AFFINE).T)[..., :3].astype(int)
    inside = ((voxels >= 0) & (voxels < mask.shape)).all(-1)
    seen = np.zeros(shape, bool)
    seen[inside] = mask[tuple(voxels[inside].T)]
    return seen, inside


def test_a_click_gives_the_mask_of_the_same_prompt_by_code(lab: Notebook, server: str) -> None:
    before, _ = colored(lab)
    lab.do("drag", START, CLICK)  # only moves the crosshair
    lab.do("drag", CLICK)
    lab.do("wait_for_text", "voxels after")
    lab.do("run", SAVE)
    places = json.loads((lab.folder / "places.json").read_text())
    mask = np.load(lab.folder / "mask.npy")

    journal = nni.load(lab.folder / "journal")
    with nni.connect(server) as session:
        session.set_image(phantom(), journal=journal)
        (step,) = session._async._core.segments["segment 1"].steps
        assert isinstance(step.request, AddPoint)
        voxel = (np.linalg.inv(AFFINE) @ [*places[-1], 1])[:3]
        assert np.abs(step.request.point - voxel).max() < 0.501
        session.segment("by code").add_point(step.request.point)
        assert mask.any()
        assert np.array_equal(session.segment("by code").mask, mask)

    after, crosshair = colored(lab)
    expected, of_slice = expected_pixels(mask, places, after.shape)
    assert (before & of_slice).sum() < 0.05 * expected.sum()  # borders of the crosshair
    visible = of_slice & ~crosshair
    assert (expected & after & visible).sum() > 0.85 * ((expected | after) & visible).sum()


def test_code_and_mouse_work_together(lab: Notebook) -> None:
    lab.do("run", 'session.segment("by code").add_point((26, 30, 30))')
    lab.do("wait_for_text", "by code: ")
    lab.do("new_segment", "boxed")
    lab.do("select", "Box")
    lab.do("drag", [110, 80], [140, 100], [180, 160])
    lab.do("wait_for_text", "boxed: ")
    lab.do("select", "Scribble")
    lab.do("select", "Negative")
    lab.do("drag", [120, 90], [130, 100])
    lab.do("run", WAIT.format('session.segment("boxed").can_undo == 2'))
    lab.do("select", "Undo")
    lab.do("run", WAIT.format('session.segment("boxed").can_redo == 1'))
    lab.do("run", "session.close()")
    lab.do("wait_for_text", "The session was closed.")
