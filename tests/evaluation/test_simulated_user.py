"""Prompts of the simulated user on handmade masks."""

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from nninteractive_ws.evaluation.simulated_user import (
    KINDS,
    Kind,
    SimulatedPrompt,
    SimulatedUser,
    correction,
    deepest_voxel,
    error_region,
    largest_slice,
    lasso,
    scribble,
)
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Delta

Mask = npt.NDArray[np.bool_]
Vector = tuple[float, float, float]
SHAPE = (40, 36, 24)
NOTHING = np.zeros(SHAPE, bool)
CUBE: Vector = (1.0, 1.0, 1.0)


def ball(center: tuple[int, int, int], radius: float) -> Mask:
    grid = np.ogrid[tuple(slice(n) for n in SHAPE)]
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2


def box(*pairs: tuple[int, int]) -> Mask:
    mask = NOTHING.copy()
    mask[tuple(slice(*pair) for pair in pairs)] = True
    return mask


def user(truth: Mask, *kinds: Kind, spacing: Vector = CUBE, seed: int = 0) -> SimulatedUser:
    return SimulatedUser(truth, spacing, kinds or KINDS, np.random.default_rng(seed), (2, 2, 2))


def first(truth: Mask, mask: Mask, kind: Kind, spacing: Vector = CUBE) -> SimulatedPrompt:
    prompt = user(truth, kind, spacing=spacing).next(mask)
    assert prompt is not None
    return prompt


def marked(prompt: SimulatedPrompt) -> Mask:
    """Return all voxels that a prompt marks."""
    whole = NOTHING.copy()
    if isinstance(prompt.shape, Box):
        whole[prompt.shape.slices] = True
    elif isinstance(prompt.shape, Delta):
        assert prompt.shape.box is not None
        whole[prompt.shape.box.slices] = prompt.shape.flips
    else:
        whole[prompt.shape] = True
    return whole


# ---- points -------------------------------------------------------------------------------------------------


def test_the_first_point_is_in_the_middle_of_the_largest_component() -> None:
    truth = ball((12, 12, 12), 6) | ball((32, 24, 12), 4)
    prompt = first(truth, NOTHING, "point")
    assert (prompt.shape, prompt.positive, prompt.region.voxels) == ((12, 12, 12), True, ball((12, 12, 12), 6).sum())
    assert deepest_voxel(truth) == (12, 12, 12)


def test_a_correction_points_at_the_largest_error_of_either_kind() -> None:
    truth = ball((14, 16, 12), 8)
    missed, extra = ball((14, 16, 12), 3), ball((32, 24, 12), 4)
    assert correction(truth, (truth & ~missed) | extra) == ((32, 24, 12), False)
    missed = ball((14, 16, 12), 5)
    assert correction(truth, (truth & ~missed) | extra) == ((14, 16, 12), True)
    assert correction(truth, truth) is None


def test_errors_of_two_kinds_that_touch_are_two_regions() -> None:
    """Otherwise, their common center could be in the smaller one."""
    truth, mask = box((5, 15), (5, 15), (5, 15)), box((15, 23), (5, 15), (5, 15))
    found = error_region(truth, mask)
    assert found is not None
    assert (found[0].voxels, found[0].box, found[1]) == (1000, Box((5, 5, 5), (15, 15, 15)), True)


def test_the_middle_is_measured_in_millimeters() -> None:
    """A plate of one thick slice is deeper than a column of thin voxels."""
    plate, column = box((2, 13), (2, 13), (6, 7)), box((20, 23), (20, 23), (2, 23))
    truth = plate | column | box((13, 20), (7, 8), (6, 7)) | box((20, 21), (7, 20), (6, 7))  # one component
    assert deepest_voxel(truth)[:2] == (21, 21)
    assert deepest_voxel(truth, (1.0, 1.0, 8.0)) == (7, 7, 6)


def test_a_thin_line_is_one_object_and_clicked_on_its_middle() -> None:
    truth = NOTHING.copy()
    for n in range(21):
        truth[5 + n, 5 + n, 2 + n] = True  # its voxels touch only at corners
    truth |= box((30, 32), (2, 4), (2, 4))
    assert deepest_voxel(truth) == (15, 15, 12)


def test_the_border_of_the_volume_is_a_border_of_the_object() -> None:
    assert deepest_voxel(box((0, 9), (0, 36), (0, 24))) in {(4, j, k) for j in (17, 18) for k in (11, 12)}


def test_a_point_without_effect_is_not_repeated_nearby() -> None:
    truth = box((2, 38), (10, 21), (8, 19))
    clicks, who = [], user(truth, "point")
    for _ in range(3):
        prompt = who.next(NOTHING)
        assert prompt is not None
        clicks.append(prompt.shape)
    assert all(truth[click] for click in clicks)
    assert min(np.linalg.norm(np.subtract(a, b)) for a in clicks for b in clicks if a is not b) >= 5


@pytest.mark.parametrize("kind", get_args(Kind))
def test_no_prompt_is_repeated_and_the_user_stops_at_the_end(kind: Kind) -> None:
    truth = box((4, 6), (4, 6), (4, 6))
    who, given = user(truth, kind), []
    while (prompt := who.next(NOTHING)) is not None:
        given.append(marked(prompt).tobytes())
    assert len(given) == len(set(given)) == (8 if kind == "point" else 2)  # voxels, or slices
    assert who.next(truth) is None


# ---- drawings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "axis"), [(CUBE, 2), ((1, 1, 4), 2), ((1, 5, 1), 1), ((3.3, 0.9, 0.9), 0)])
def test_drawings_are_in_the_largest_acquired_slice(spacing: Vector, axis: int) -> None:
    truth = ball((18, 17, 12), 7)
    for kind in ("bbox", "lasso", "scribble"):
        drawn = marked(first(truth, NOTHING, kind, spacing))
        other = tuple(a for a in range(3) if a != axis)
        assert np.flatnonzero(drawn.any(other)).tolist() == [(18, 17, 12)[axis]], kind
    assert largest_slice(truth, spacing).shape[axis] == 1
    assert largest_slice(truth, spacing).voxels == 15 * 15


def test_a_box_is_tight_and_a_lasso_one_voxel_wider_without_holes() -> None:
    ring = box((5, 25), (5, 20), (8, 12)) & ~box((10, 20), (9, 15), (8, 12))
    assert first(ring, NOTHING, "bbox").shape == Box((5, 5, 8), (25, 20, 9))
    drawn = marked(first(ring, NOTHING, "lasso"))
    assert drawn[5:25, 5:20, 8].all()
    assert drawn.sum() == 20 * 15 + 2 * (20 + 15)
    inside, at = lasso(ring)
    assert (at, inside.sum()) == (Box((4, 4, 8), (26, 21, 9)), drawn.sum())


def test_a_drawing_surrounds_one_connected_component() -> None:
    """A lasso is one outline. It surrounds one leg of an arch whose legs are connected above the slice."""
    arch = box((4, 12), (5, 15), (4, 20)) | box((24, 30), (5, 15), (4, 20)) | box((4, 30), (8, 10), (19, 20))
    for kind in ("bbox", "lasso", "scribble"):
        prompt = first(arch & ~box((4, 30), (0, 36), (12, 18)), NOTHING, kind)
        parts = ndimage.label(marked(prompt), np.ones((3, 3, 3)))[1]
        assert parts == 1


def test_a_scribble_follows_the_object_with_the_models_thickness() -> None:
    truth = box((4, 34), (10, 20), (6, 16))
    drawn = marked(first(truth, NOTHING, "scribble"))
    assert not (drawn & ~truth).any()
    rows = np.flatnonzero(drawn.any((1, 2)))
    assert len(rows) >= 24
    assert set(drawn[rows].sum((1, 2)).tolist()) == {2}
    assert set(np.flatnonzero(drawn.any((0, 2))).tolist()) <= {13, 14, 15, 16}
    strokes, at = scribble(truth, brush=(1, 1, 1))
    assert strokes.any((1, 2)).all()
    assert strokes.sum() == at.shape[0]


def test_a_scribble_stays_inside_a_thin_arc() -> None:
    bow = (ball((18, 17, 12), 14) & ~ball((18, 17, 12), 12.5))[:, :, 12:13] & (np.arange(36) >= 17)[None, :, None]
    truth = NOTHING.copy()
    truth[:, :, 12:13] = bow
    drawn = marked(first(truth, NOTHING, "scribble"))
    assert not (drawn & ~truth).any()
    assert drawn.any((1, 2)).sum() > 0.8 * truth.any((1, 2)).sum()


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("seed", range(8))
def test_prompts_mark_the_largest_error_with_its_polarity(kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(rng.standard_normal(SHAPE), 3) for _ in range(2)]
    truth, mask = noise[0] > 0.02, (noise[0] + 0.7 * noise[1]) > 0.02
    prompt = first(truth, mask, kind, (1.0, 1.0, 1.0 + seed % 3))
    wrong, region = truth ^ mask, NOTHING.copy()
    assert prompt.region.box is not None
    region[prompt.region.box.slices] = prompt.region.flips
    sizes = [ndimage.label(w, np.ones((3, 3, 3))) for w in (truth & ~mask, mask & ~truth)]
    assert prompt.region.voxels == max(np.bincount(parts[parts > 0]).max() for parts, _ in sizes)
    assert not (region & ~wrong).any()
    assert (truth[region] == prompt.positive).all()
    drawn = marked(prompt)
    assert (drawn & region).any()
    if kind in ("point", "scribble"):
        assert not (drawn & ~region).any()
    if kind == "lasso":
        assert (truth[drawn] == prompt.positive).all()
        assert not (drawn & ~ndimage.binary_dilation(ndimage.binary_fill_holes(region), np.ones((3, 3, 3)))).any()


# ---- randomness ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_seed_determines_mixed_prompts() -> None:
    truth = ball((18, 17, 12), 9)

    def drawn(seed: int) -> list[Kind]:
        who = user(truth, seed=seed)
        return [who.next(NOTHING).kind for _ in range(40)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert set(drawn(1)) == set(KINDS)
