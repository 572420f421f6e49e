"""Measures of masks, against scipy and by hand."""

from helpers.batch import OBLIQUE
import numpy as np
import pytest
from scipy import ndimage

from nninteractive_ws.jobs.measures import measure


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
def test_connected_components_match_scipy(density: float) -> None:
    mask = np.random.default_rng(3).random((17, 23, 11)) < density
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    found = measure(mask, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert found is not None
    assert found.parts == count
    assert found.largest == pytest.approx(np.bincount(labels.ravel())[1:].max() / mask.sum())
    assert found.share == pytest.approx(mask.mean())
    assert found.ml == pytest.approx(mask.sum() * 0.024)


def test_an_empty_mask_has_no_measures() -> None:
    assert measure(np.zeros((4, 5, 6), bool), np.eye(4)) is None


@pytest.mark.parametrize("touched", [("right",), ("left", "inferior"), ("anterior", "posterior"), ("superior",), ()])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
def test_sides_refer_to_the_patient(
    touched: tuple[str, ...], axes: tuple[int, int, int], signs: tuple[int, int, int]
) -> None:
    mask = np.zeros((10, 11, 12), bool)  # to the left, to posterior, to superior
    mask[4:6, 4:6, 4:6] = True
    sides = {"right": (0, 0), "left": (0, -1), "anterior": (1, 0), "posterior": (1, -1), "inferior": (2, 0)}
    for side in touched:
        axis, index = sides.get(side, (2, -1))
        mask[tuple(index if a == axis else 5 for a in range(3))] = True
    affine = np.eye(4)
    affine[:3, :3] = (OBLIQUE * signs)[:, axes]
    stored = mask[tuple(slice(None, None, sign) for sign in signs)].transpose(axes)
    found = measure(stored, affine)
    assert found is not None
    assert set(found.sides) == set(touched)


def test_a_single_slice_has_no_border_above_and_below() -> None:
    mask = np.zeros((10, 10, 1), bool)
    mask[3:5, 3:5] = True
    found = measure(mask, np.eye(4))
    assert found is not None
    assert found.sides == ()
