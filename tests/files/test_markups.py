"""Markups files of 3D Slicer, written as Slicer writes them and by Slicer's own code."""

from collections.abc import Callable
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from helpers.batch import OBLIQUE, SHAPE, SLICER_FILES, SPACING, write_image
from helpers.shapes import ball
import numpy as np
import pytest

from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files.images import Volume, read_volume
from nninteractive_ws.files.markups import Lasso, read_markups, smooth
from nninteractive_ws.geometry import Box

#: Rotated like the image, so that boxes and curves are aligned with its voxels.
Place = Callable[[float, float, float], list[float]]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    path = tmp_path_factory.mktemp("image") / "a.nii.gz"
    write_image(path)
    return read_volume(path)


@pytest.fixture
def at(volume: Volume) -> Place:
    """A position in voxels, in LPS millimeters."""
    return lambda *ijk: [float(x) for x in (volume.ijk_to_lps @ (*ijk, 1))[:3]]


def markups(path: Path, kind: str, points: list[list[float]], system: str = "LPS", **more: Any) -> Path:
    """Write a file in 3D Slicer's schema. Positions are in LPS."""
    sign = 1 if system == "LPS" else -1
    controls = [{"position": [sign * x, sign * y, z], "positionStatus": "defined"} for x, y, z in points]
    markup = {"type": kind, "coordinateSystem": system, "controlPoints": controls, **more}
    path.write_text(json.dumps({"markups": [markup]}))
    return path


def roi(path: Path, center: list[float], axes: Any, size: tuple[float, ...]) -> Path:
    """A box whose axes are the columns of ``axes``."""
    turned = np.asarray(axes).ravel().tolist()
    return markups(path, "ROI", [center], center=center, orientation=turned, size=list(size))


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_points(volume: Volume, at: Place, tmp_path: Path, system: str) -> None:
    path = markups(tmp_path / "p.mrk.json", "Fiducial", [at(12, 17, 15), at(3.4, 20.6, 7)], system)
    content = json.loads(path.read_text())
    content["markups"][0]["controlPoints"].insert(1, {"position": "", "positionStatus": "undefined"})
    path.write_text(json.dumps(content))
    assert read_markups(path, volume) == [(12, 17, 15), (3, 21, 7)]


def test_a_box_along_the_voxels(volume: Volume, at: Place, tmp_path: Path) -> None:
    size = (6.2 * SPACING[0], 4.2 * SPACING[1], 0.1)
    expected = Box((9, 18, 15), (16, 23, 16))
    assert read_markups(roi(tmp_path / "r.mrk.json", at(12, 20, 15.2), OBLIQUE, size), volume) == [expected]
    # The same box with its axes named in another order, one of them reversed.
    turned = np.stack((OBLIQUE[:, 2], -OBLIQUE[:, 0], OBLIQUE[:, 1]), axis=1)
    again = roi(tmp_path / "s.mrk.json", at(12, 20, 15.2), turned, (size[2], size[0], size[1]))
    assert read_markups(again, volume) == [expected]


def test_a_box_is_cut_at_the_border(volume: Volume, at: Place, tmp_path: Path) -> None:
    path = roi(tmp_path / "r.mrk.json", at(0, 0, 0), OBLIQUE, (9 * SPACING[0], 5 * SPACING[1], 3 * SPACING[2]))
    assert read_markups(path, volume) == [Box((0, 0, 0), (5, 3, 2))]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_closed_curve_is_filled_in_its_slice(volume: Volume, at: Place, tmp_path: Path, axis: int) -> None:
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.insert(np.stack((18 + 9 * np.cos(turns), 16 + 9 * np.sin(turns)), 1), axis, 14.3, axis=1)
    path = markups(tmp_path / "c.mrk.json", "ClosedCurve", [at(*p) for p in circle.tolist()])
    (lasso,) = read_markups(path, volume)
    assert isinstance(lasso, Lasso)
    assert lasso.box.pairs[axis] == (14, 15)
    filled = np.zeros(SHAPE, bool)
    filled[lasso.box.slices] = lasso.mask
    center = np.insert([18.0, 16.0], axis, 14)
    layer = tuple(slice(14, 15) if a == axis else slice(None) for a in range(3))
    sure, possible = (ball(SHAPE, center.tolist(), 9 + margin)[layer] for margin in (-0.2, 0.2))
    assert not (sure & ~filled[layer]).any()
    assert not (filled[layer] & ~possible).any()


def test_a_curve_beyond_the_border_is_cut(volume: Volume, at: Place, tmp_path: Path) -> None:
    corners = [(-10, -10, 5), (10, -10, 5), (10, 10, 5), (-10, 10, 5)]
    (lasso,) = read_markups(markups(tmp_path / "c.mrk.json", "ClosedCurve", [at(*c) for c in corners]), volume)
    assert isinstance(lasso, Lasso)
    assert lasso.box.start == (0, 0, 5)
    assert lasso.mask[:10, :10].all()


def test_invalid_markups_are_reported(volume: Volume, at: Place, tmp_path: Path) -> None:
    path = tmp_path / "m.mrk.json"

    def refused(message: str) -> None:
        with pytest.raises(InvalidTable) as raised:
            read_markups(path, volume)
        assert message in str(raised.value)
        assert str(path) in str(raised.value)

    refused("cannot be read (No such file or directory)")
    path.write_text("{")
    refused("is not a markups file")
    path.write_text('{"markups": [{"type": "Fiducial"}]}')
    refused("is not a markups file")
    markups(path, "Fiducial", [])
    refused("has no point, ROI or closed curve")
    markups(path, "Line", [at(1, 2, 3), at(4, 5, 6)])
    refused("the markup type Line is not supported")
    markups(path, "Fiducial", [at(1, 2, 3)], coordinateSystem="IJK")
    refused("the coordinate system is IJK")
    markups(path, "Fiducial", [[float("nan")] * 3])
    refused("not finite")
    roi(path, at(12, 20, 15), np.eye(3), (20, 20, 20))
    refused("the ROI is rotated by 20 degrees")
    roi(path, at(-40, 20, 15), OBLIQUE, (20, 20, 20))
    refused("the ROI is outside the volume")
    markups(path, "ClosedCurve", [at(1, 2, 3), at(4, 5, 3)])
    refused("has 2 points. Expected at least 3")
    markups(path, "ClosedCurve", [at(5, 5, 3), at(25, 5, 9), at(25, 25, 15), at(5, 25, 9)])
    refused("6.0 voxels away from the slice k = 9")
    markups(path, "ClosedCurve", [at(5.2, 5.2, 3), at(5.4, 5.2, 3), at(5.3, 5.4, 3)])
    refused("encloses no voxel of the volume")


@pytest.mark.slicer_core
@pytest.mark.slow
def test_files_and_curves_of_the_real_slicer(volume: Volume, at: Place, tmp_path: Path) -> None:
    """In a separate process, because slicer-core's libraries may conflict with those of this process."""
    shapes = {"inside": at(12, 17, 15), "corners": [at(5, 5, 9), at(25, 7, 9), at(30, 25, 9), at(18, 20, 9)]}
    (tmp_path / "shapes.json").write_text(json.dumps({**shapes, "axes": OBLIQUE.tolist()}))
    done = subprocess.run(
        [sys.executable, str(SLICER_FILES), "write", str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert read_markups(tmp_path / "points.mrk.json", volume) == [(12, 17, 15)]
    assert read_markups(tmp_path / "roi.mrk.json", volume) == [Box((11, 15, 14), (14, 20, 17))]
    (lasso,) = read_markups(tmp_path / "curve.mrk.json", volume)
    assert isinstance(lasso, Lasso)
    assert lasso.box.pairs[2] == (9, 10)
    curve = np.load(tmp_path / "curve.npy")  # as Slicer draws it, the first point again at its end
    np.testing.assert_allclose(smooth(np.array(shapes["corners"])), curve[:-1], atol=1e-4)
