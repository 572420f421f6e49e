"""The example volume of the web page."""

import asyncio
import gzip
from pathlib import Path
import sys

import nibabel as nib
import numpy as np
import pytest

from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.server import example_volume
from nninteractive_ws.server.example_volume import ExampleVolume, NoExample


def test_it_is_the_phantom_of_the_demo() -> None:
    async def work() -> tuple[bytes, bytes]:
        example = ExampleVolume()
        first, second = await asyncio.gather(example.content(), example.content())
        return first, second

    content, again = asyncio.run(work())
    assert content is again
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    phantom = make_phantom()
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), phantom.image)
    # RAS: the axes of the phantom are those of LPS.
    i, j, k = phantom.spacing
    np.testing.assert_allclose(image.affine, np.diag([-i, -j, k, 1.0]))


def test_it_is_made_by_a_process_without_torch() -> None:
    code = "import sys, nninteractive_ws.demo.phantom_file; sys.stdout.write(str('torch' in sys.modules))"

    async def work() -> bytes:
        return await ExampleVolume([sys.executable, "-c", code]).content()

    assert asyncio.run(work()) == b"False"


def test_a_failure_is_reported_and_tried_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_volume, "RETRY_AFTER_S", 1.0)
    marker = tmp_path / "second"
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); ok = p.exists(); p.touch(); print(2); sys.exit(not ok)"

    async def work() -> bytes:
        example = ExampleVolume([sys.executable, "-c", code, str(marker)])
        for _ in range(2):  # the second time without another process
            with pytest.raises(NoExample, match="log says why"):
                await example.content()
        await asyncio.sleep(1)
        return await example.content()

    assert asyncio.run(work()).strip() == b"2"
    assert "ended with status 1" in caplog.text
