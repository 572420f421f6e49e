"""Whether two files have the same voxel grid, and positions in it."""

from collections.abc import Sequence
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage, OutOfBounds
from nninteractive_ws.files.images import read_volume
from nninteractive_ws.files.volume import Volume, check_same_grid

#: A rotation of 16 degrees about k.
TILTED = ((0.96, -0.28, 0.0), (0.28, 0.96, 0.0), (0.0, 0.0, 1.0))


def make_image(shape: Sequence[int] = (7, 8, 9)) -> sitk.Image:
    image = sitk.Image([*shape], sitk.sitkInt16)
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((-31.5, 12.25, 800.0))
    image.SetDirection(np.ravel(TILTED).tolist())
    return image


def read(image: sitk.Image, folder: Path, name: str) -> Volume:
    sitk.WriteImage(image, str(folder / name))
    return read_volume(folder / name)


@pytest.mark.parametrize(
    ("order", "flips", "expected"),
    [
        ((0, 1, 2), (True, False, False), "but flipped along i."),
        ((0, 1, 2), (False, True, False), "but flipped along j."),
        ((0, 1, 2), (True, True, True), "but flipped along i and j and k."),
        ((2, 1, 0), (False, False, False), "but with its axes in the order k, j, i."),
        ((1, 2, 0), (False, False, False), "but with its axes in the order j, k, i."),
        ((1, 0, 2), (False, True, False), "but with its axes in the order j, i, k and flipped along i."),
    ],
)
@pytest.mark.parametrize("shape", [(7, 8, 9), (8, 8, 8), (8, 8, 1)])
def test_axes_in_another_order_or_direction_are_named(
    tmp_path: Path, shape: Sequence[int], order: Sequence[int], flips: Sequence[bool], expected: str
) -> None:
    image = make_image(shape)
    labels = sitk.Flip(sitk.PermuteAxes(image, [*order]), [*flips])
    volume, other = read(image, tmp_path, "image.nrrd"), read(labels, tmp_path, "labels.nrrd")
    with pytest.raises(BadImage) as caught:
        check_same_grid(other, volume, tmp_path / "labels.nrrd")
    assert f"labels.nrrd has the grid of the image, {expected} Resample it" in str(caught.value)
    assert "SimpleITK.Resample" in str(caught.value)
    resampled = sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    check_same_grid(read(resampled, tmp_path, "resampled.nrrd"), volume, tmp_path / "resampled.nrrd")


def test_a_flipped_grid_elsewhere_is_not_the_same_grid(tmp_path: Path) -> None:
    image = make_image()
    flipped = sitk.Flip(image, [True, False, False])
    flipped.SetOrigin(image.GetOrigin())
    with pytest.raises(BadImage, match=r"not on the grid of the image. Its voxels are up to 12.00 voxels away"):
        check_same_grid(read(flipped, tmp_path, "b.nrrd"), read(image, tmp_path, "a.nrrd"), Path("b.nrrd"))


def test_permuted_axes_of_another_extent_are_recognized_by_shape(tmp_path: Path) -> None:
    labels = sitk.PermuteAxes(make_image((7, 8, 10)), [2, 1, 0])
    with pytest.raises(BadImage, match=r"has \(10, 8, 7\) voxels. Expected \(7, 8, 9\)"):
        check_same_grid(read(labels, tmp_path, "b.nrrd"), read(make_image(), tmp_path, "a.nrrd"), Path("b.nrrd"))


def test_the_same_grid_within_rounding(tmp_path: Path) -> None:
    image = make_image()
    moved = sitk.Image(image)
    moved.SetOrigin((-31.5, 12.25 + 0.001, 800.0))
    check_same_grid(read(moved, tmp_path, "b.nrrd"), read(image, tmp_path, "a.nrrd"), Path("b.nrrd"))


# ---- positions ---------------------------------------------------------------------------------------------


def test_the_voxel_of_a_position(tmp_path: Path) -> None:
    image = make_image()
    volume = read(image, tmp_path, "a.nrrd")
    for index in ((0, 0, 0), (6, 7, 8), (3, -2, 40)):
        assert volume.index_of(image.TransformIndexToPhysicalPoint(index)) == index


@pytest.mark.parametrize("position", [1.7e308, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_position_far_outside_is_refused(tmp_path: Path, position: float, axis: int) -> None:
    volume = read(make_image(), tmp_path, "a.nrrd")
    x, y, z = (position if axis == n else 0.0 for n in range(3))
    with pytest.raises(OutOfBounds, match="in LPS millimeters is outside any volume"):
        volume.index_of((x, y, z))
