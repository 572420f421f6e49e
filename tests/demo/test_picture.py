"""The figure of the demonstration."""

from pathlib import Path

from matplotlib.image import imread
import pytest

from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.demo.picture import draw
from nninteractive_ws.demo.walkthrough import ORGANS, OrganResult


@pytest.mark.parametrize("shape", [(80, 64, 56), (64, 64, 96)])
def test_the_views_fill_the_figure(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    phantom = make_phantom(0, shape, (5.0, 5.0, 5.0))
    draw(phantom, [OrganResult(organ, mask=phantom.mask(organ)) for organ in ORGANS], tmp_path / "demo.png")
    bright = imread(tmp_path / "demo.png")[..., :3].max(2) > 0.05
    assert (bright.mean(1) > 0.3).mean() > 0.7, "rows with views"
    assert (bright.mean(0) > 0.3).mean() > 0.85, "columns with views"
