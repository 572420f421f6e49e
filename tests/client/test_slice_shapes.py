"""Shapes drawn in a slice, against scikit-image and scipy."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import polygon2mask

from nninteractive_ws.client.slice_shapes import Shape, draw_shape
from nninteractive_ws.geometry import Index
from nninteractive_ws.masks import Mask

VOLUME = (20, 24, 28)


def drawn(shape: Shape, path: list[Index], normal: int, width: int = 1) -> Mask:
    """The voxels of a shape as a mask of the volume."""
    delta = draw_shape(shape, path, normal, VOLUME, width)
    assert delta.box is not None
    mask = np.zeros(VOLUME, bool)
    mask[delta.box.slices] = delta.flips
    assert np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != normal))).tolist() == [path[0][normal]]
    return mask


def in_slice(normal: int, points: list[tuple[int, int]], position: int = 9) -> list[Index]:
    path = np.insert(np.array(points), normal, position, axis=1)
    return [(int(i), int(j), int(k)) for i, j, k in path]


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_a_box_has_both_corners(normal: int) -> None:
    path = in_slice(normal, [(12, 3), (2, 2), (5, 10)])
    delta = draw_shape("box", path, normal, VOLUME, 1)
    assert delta.box is not None
    assert delta.flips.all()
    assert delta.box.start == tuple(np.min([path[0], path[-1]], axis=0))
    assert delta.box.stop == tuple(np.max([path[0], path[-1]], axis=0) + 1)


@pytest.mark.parametrize("normal", [0, 1, 2])
def test_a_lasso_has_its_inside(normal: int) -> None:
    corners = [(3, 3), (15, 4), (12, 15), (5, 12)]
    mask = drawn("lasso", in_slice(normal, corners), normal).take(9, axis=normal)
    inside = polygon2mask(mask.shape, corners)
    assert not (inside & ~mask).any()
    assert not (mask & ~ndimage.binary_dilation(inside, np.ones((3, 3)))).any()
    assert all(mask[corner] for corner in corners)


@pytest.mark.parametrize("normal", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_a_scribble_is_as_thick_as_wanted(normal: int, width: int) -> None:
    mask = drawn("scribble", in_slice(normal, [(8, 5), (8, 15)]), normal, width).take(9, axis=normal)
    assert mask[8, 5:16].all()
    assert mask[:, 7:14].sum(axis=0).tolist() == [width] * 7
    assert ndimage.label(mask, np.ones((3, 3)))[1] == 1


@pytest.mark.parametrize("shape", ["box", "scribble", "lasso"])
def test_a_click_is_a_voxel(shape: Shape) -> None:
    assert np.argwhere(drawn(shape, [(3, 4, 5)], 2)).tolist() == [[3, 4, 5]]


def test_a_thick_scribble_ends_at_the_border() -> None:
    mask = drawn("scribble", [(0, 0, 5), (0, 23, 5)], 2, 5)
    assert mask[:3, :, 5].all()
