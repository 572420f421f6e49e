"""Boxes against sets of voxels."""

import itertools
from typing import Any

from helpers.strategies import boxes, shapes
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from nninteractive_ws.errors import OutOfBounds
from nninteractive_ws.geometry import Box, Index, box_in_volume

CORNERS = st.tuples(*[st.integers(-4, 4)] * 3)


@st.composite
def anywhere(draw: st.DrawFn) -> Box:
    """Small boxes, also with negative indices."""
    start = draw(CORNERS)
    return Box.from_pairs([(a, a + draw(st.integers(1, 4))) for a in start])


def voxels(box: Box | None) -> set[tuple[int, ...]]:
    return set() if box is None else set(itertools.product(*(range(a, b) for a, b in box.pairs)))


@given(anywhere())
def test_pairs_shape_and_count_describe_the_same_voxels(box: Box) -> None:
    inside = voxels(box)
    assert box.voxels == len(inside)
    assert box.shape == tuple(len({v[axis] for v in inside}) for axis in range(3))
    assert Box.from_pairs(box.pairs) == box
    assert tuple(box) == box.pairs
    assert box.start in inside
    assert box.stop not in inside


@given(anywhere(), anywhere())
def test_an_intersection_holds_the_common_voxels(a: Box, b: Box) -> None:
    assert voxels(a.intersection(b)) == voxels(a) & voxels(b)


@given(anywhere(), anywhere())
def test_a_union_is_the_smallest_box_around_both(a: Box, b: Box) -> None:
    both = voxels(a) | voxels(b)
    union = a.union(b)
    assert both <= voxels(union)
    for axis in range(3):
        indices = {v[axis] for v in both}
        assert union.pairs[axis] == (min(indices), max(indices) + 1)
    assert a.union(None) == a


@given(anywhere(), shapes(4))
def test_clip_and_inside_agree_with_the_voxels_of_the_volume(box: Box, shape: Index) -> None:
    volume = voxels(Box.whole(shape))
    assert voxels(box.clip(shape)) == voxels(box) & volume
    assert box.inside(shape) == (voxels(box) <= volume)


@given(anywhere(), CORNERS)
def test_shift_moves_every_voxel(box: Box, by: Index) -> None:
    assert voxels(box.shift(by)) == {tuple(x + d for x, d in zip(v, by, strict=True)) for v in voxels(box)}


@given(st.data())
def test_within_finds_the_same_voxels_in_a_crop(data: st.DataObject) -> None:
    shape = data.draw(shapes(6))
    frame = data.draw(boxes(shape))
    box = data.draw(boxes(frame.shape)).shift(frame.start)
    volume = np.arange(np.prod(shape)).reshape(shape)
    crop = volume[frame.slices]
    assert np.array_equal(crop[box.relative_to(frame).slices], volume[box.slices])


@pytest.mark.parametrize("pairs", [((0, 0), (0, 1), (0, 1)), ((0, 1), (2, 1), (0, 1)), ((0, 1), (0, 1), (5, 5))])
def test_an_empty_box_is_refused(pairs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="empty box"):
        Box.from_pairs(pairs)


def test_rounding_errors_do_not_move_a_box() -> None:
    pairs: Any = ((10.0, 20.0), (10.000001, 20.0), (12 - 1e-9, 13 - 1e-9))
    assert Box.from_pairs(pairs).pairs == ((10, 20), (10, 20), (12, 13))


@pytest.mark.parametrize("number", [1.5, float("nan"), float("inf"), "1"])
def test_boxes_have_whole_numbers(number: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        Box.from_pairs(((0, 1), (0, number), (0, 1)))
    with pytest.raises(OutOfBounds, match="with whole numbers"):
        box_in_volume(((0, 1), (0, number), (0, 1)), (9, 9, 9))


def test_two_or_four_ranges_are_not_a_box() -> None:
    for count in (2, 4):
        with pytest.raises(ValueError, match="values to unpack"):
            Box.from_pairs([(0, 1)] * count)


def test_numpy_numbers_become_plain_ones() -> None:
    box = Box.from_pairs([list(pair) for pair in np.array([[0, 1], [2, 3], [4, 5]])])
    assert all(type(n) is int for n in (*box.start, *box.stop))
    assert all(type(n) is int for n in Box.whole(list(np.array([1, 2, 3]))).stop)
