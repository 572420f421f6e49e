"""The picture of ``segment``."""

from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys

from helpers.batch import write_image
from helpers.fast_server import QuickServer, quick_server
import numpy as np
from PIL import Image
import pytest


@pytest.fixture(scope="module")
def quick() -> Iterator[QuickServer]:
    with quick_server() as server:
        yield server


def segment(quick: QuickServer, folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    write_image(folder / "a.nrrd")
    command = [sys.executable, "-m", "nninteractive_ws", "segment", folder / "a.nrrd", "-o", folder / "out.nrrd"]
    message = [*command, "--server", quick.address, *options]
    return subprocess.run([*map(str, message)], capture_output=True, text=True, timeout=100)


def test_a_picture_shows_three_views(quick: QuickServer, tmp_path: Path) -> None:
    options = ("--point", "12,17,15", "--negative-point", "30,9,15")
    done = segment(quick, tmp_path, *options, "--picture", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG"
        rgb = np.asarray(image.convert("RGB")).astype(int)
    for view in np.split(rgb, (404, 808), axis=1):
        assert (np.ptp(view, axis=2) > 100).sum() > 100  # an outline in each
    assert list(tmp_path.glob(".partial*")) == []


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("p.jpg", "The name of the picture p.jpg must end with .png."),
        ("p", "The name of the picture p must end with .png."),
        ("none/p.png", "none does not exist. Create it, or choose another output file."),
    ],
)
def test_an_unwritable_picture_is_refused_before_the_upload(
    quick: QuickServer, tmp_path: Path, picture: str, message: str
) -> None:
    done = segment(quick, tmp_path, "--point", "12,17,15", "--picture", tmp_path / picture)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out.nrrd").exists()
