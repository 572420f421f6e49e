"""The web page in Firefox, a second engine, with a real server and the Python client."""

from pathlib import Path
from urllib.request import urlopen

from helpers.browser import build_page
from helpers.end_to_end import server_process
from helpers.firefox import firefox
import nibabel as nib
import numpy as np
import pytest

from nninteractive_ws import connect

STATUS = "document.querySelector('#status').textContent"
VOXELS = "Number(document.querySelector('#segments li')?.dataset.voxels ?? 0)"
POSITION = "document.querySelector('#position').textContent"
CONTROL = "\ue009"  # of WebDriver


@pytest.mark.slow
def test_a_point_and_its_undo(tmp_path: Path) -> None:
    build_page(tmp_path / "page")
    with server_process(page=tmp_path / "page") as server, firefox() as page:
        address = server.address.replace("ws://", "http://")
        page.open(f"{address}/?example")
        page.wait_for(STATUS, lambda text: text == "The image is on the server.")
        page.click(200, 190)  # in the liver, in the axial view
        voxel = tuple(map(int, page.evaluate(POSITION).removeprefix("Voxel ").partition(":")[0].split(",")))
        page.wait_for(STATUS, lambda text: text.startswith("Done"))
        voxels = page.evaluate(VOXELS)
        page.press(CONTROL, "z")
        page.wait_for(VOXELS, lambda count: count == 0)
        assert page.problems == []

        example = tmp_path / "example.nii.gz"
        with urlopen(f"{address}/example.nii.gz", timeout=60) as answer:
            example.write_bytes(answer.read())
        with connect(server.address) as session:
            session.set_image(np.asarray(nib.nifti1.load(example).dataobj))
            assert session.segment("liver").add_point(voxel).voxels == voxels > 0
