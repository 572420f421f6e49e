"""The measures against SimpleITK, and against shapes with known surfaces."""

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from nninteractive_ws.evaluation.measures import (
    area_under_curve,
    curve,
    dice,
    error_left,
    obeyed,
    prompts_to,
    surface_dice,
)
from nninteractive_ws.masks import to_delta

Mask = npt.NDArray[np.bool_]
SHAPE = (56, 52, 40)


def box(*pairs: tuple[int, int]) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*pair) for pair in pairs)] = True
    return mask


PLATE = box((6, 46), (6, 46), (10, 14))


@pytest.mark.parametrize("seed", range(4))
def test_dice_matches_simpleitk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 9, 8, 7)) < rng.random((2, 1, 1, 1))
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)))
    assert dice(a, b) == pytest.approx(measure.GetDiceCoefficient())


def test_dice_of_empty_masks() -> None:
    nothing = np.zeros(SHAPE, bool)
    assert (dice(nothing, nothing), dice(PLATE, nothing)) == (1.0, 0.0)


def test_surface_dice_of_equal_empty_and_distant_masks() -> None:
    nothing, elsewhere = np.zeros(SHAPE, bool), box((6, 46), (6, 46), (30, 34))
    cube = (1.0, 1.0, 1.0)
    assert surface_dice(PLATE, PLATE, cube) == 1
    assert surface_dice(nothing, nothing, cube) == 1
    assert surface_dice(nothing, PLATE, cube) == surface_dice(PLATE, nothing, cube) == 0
    assert surface_dice(elsewhere, PLATE, cube) == 0


def test_surface_dice_of_a_plate_that_is_moved() -> None:
    """By one voxel along k. If that is 1 mm, all surfaces are within 2 mm. If it is 3 mm, both faces are outside."""
    moved = np.roll(PLATE, 1, 2)
    assert surface_dice(moved, PLATE, (1.0, 1.0, 1.0)) == 1
    # Each surface has two faces of 40 x 40 mm and sides of 160 x 12 mm. These agree: the sides except for 1 mm more
    # than 2 mm above or below the other ones, and 2 mm of one face next to the other's sides.
    whole, agreeing = 2 * 1600 + 160 * 12, 160 * (12 - 1) + (40**2 - 36**2)
    assert surface_dice(moved, PLATE, (1.0, 1.0, 3.0)) == pytest.approx(agreeing / whole, abs=0.03)
    assert surface_dice(PLATE, moved, (1.0, 1.0, 3.0)) == pytest.approx(surface_dice(moved, PLATE, (1.0, 1.0, 3.0)))


@pytest.mark.parametrize(("spacing", "expected"), [((1.1, 1.1, 1.1), 1.0), ((2.5, 2.5, 2.5), 0.0)])
def test_surface_dice_of_a_plate_that_grows_by_a_voxel(spacing: tuple[float, float, float], expected: float) -> None:
    """The distance of the surfaces is between about one voxel and the root of 3 voxels, at corners."""
    assert surface_dice(box((5, 47), (5, 47), (9, 15)), PLATE, spacing) == pytest.approx(expected, abs=0.02)


def test_surface_dice_at_the_border_of_the_volume() -> None:
    """An object that the border of the volume cuts has a surface there."""
    whole = np.ones((20, 20, 20), bool)
    half = whole.copy()
    half[:, :, 10:] = False
    # These agree: of the whole, a face, the lower half of the sides and 2 mm more; of the half, all but its inner face.
    agreeing = (400 + 80 * 12) + (400 + 80 * 10 + (400 - 16**2))
    assert surface_dice(half, whole, (1.0, 1.0, 1.0)) == pytest.approx(agreeing / (2400 + 1600), abs=0.02)


def test_a_curve_repeats_the_last_value() -> None:
    assert curve([0.5, 0.75], 4) == [0.5, 0.75, 0.75, 0.75]
    assert curve([], 3) == [0, 0, 0]
    assert curve([0.5, 0.7, 0.9], 3) == [0.5, 0.7, 0.9]


def test_the_area_under_a_curve() -> None:
    assert area_under_curve([0.5, 0.7, 0.9]) == pytest.approx(0.7)
    assert area_under_curve([1.0] * 10) == pytest.approx(1)
    assert area_under_curve([0.6]) == 0.6
    # As in the challenge, over five clicks: half of the first and the last, and all of the three between.
    assert 4 * area_under_curve([0.2, 0.5, 0.6, 0.7, 0.8]) == pytest.approx(0.1 + 0.5 + 0.6 + 0.7 + 0.4)


def test_prompts_to_a_target() -> None:
    values = [0.5, 0.82, 0.79, 0.9]
    assert [prompts_to(values, target) for target in (0.4, 0.8, 0.9, 0.95)] == [1, 2, 4, None]


# ---- obedience ----------------------------------------------------------------------------------------------

TRUTH = box((10, 30), (10, 30), (10, 30))


def test_a_positive_point_is_obeyed_if_the_ball_around_it_is_added() -> None:
    at, ball = (11, 20, 20), [(11, 20, 20), (14, 20, 20), (10, 20, 20), (13, 22, 21)]
    assert obeyed(TRUTH, TRUTH, at, True)
    for voxel in ball:
        mask = TRUTH.copy()
        mask[voxel] = False
        assert not obeyed(mask, TRUTH, at, True)
    mask = TRUTH.copy()
    mask[15, 20, 20] = mask[14, 21, 20] = False  # 4 and the root of 10 voxels away
    mask[9, 20, 20] = True  # outside the object
    assert obeyed(mask, TRUTH, at, True)


def test_a_negative_point_is_obeyed_if_the_ball_around_it_is_removed() -> None:
    at, nothing = (8, 20, 20), np.zeros(SHAPE, bool)
    assert obeyed(nothing, TRUTH, at, False)
    assert obeyed(TRUTH, TRUTH, at, False)  # the object is two voxels away
    for voxel in ((8, 20, 20), (5, 20, 20), (9, 22, 21)):
        mask = TRUTH.copy()
        mask[voxel] = True
        assert not obeyed(mask, TRUTH, at, False)


def test_a_ball_is_cut_by_the_border_of_the_volume() -> None:
    assert obeyed(np.ones(SHAPE, bool), np.ones(SHAPE, bool), (0, 51, 1), True)
    assert not obeyed(np.zeros(SHAPE, bool), np.ones(SHAPE, bool), (0, 51, 1), True)


def test_the_remaining_error_is_counted_in_its_region() -> None:
    region = to_delta(box((10, 14), (10, 30), (10, 30)))
    mask = TRUTH & ~box((10, 12), (0, 52), (0, 40))
    mask |= box((40, 44), (10, 14), (10, 14))  # a new error, elsewhere
    assert error_left(region, mask, TRUTH) == 2 * 20 * 20
    assert error_left(region, TRUTH, TRUTH) == 0
