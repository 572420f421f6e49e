"""The grid of bricks against brute force, and limits of sizes."""

import itertools
import math
from typing import Any

from helpers.strategies import boxes
from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
import pytest

from nninteractive_ws import bricks
from nninteractive_ws.bricks import BRICK, Grid, Presence
from nninteractive_ws.errors import TooLarge
from nninteractive_ws.geometry import Box, Index

Volume = np.ndarray[Any, Any]

#: Side lengths around multiples of a brick's edge, where rounding errors occur.
SIDES = st.integers(1, 200) | st.sampled_from([1, 63, 64, 65, 127, 128, 129, 192])
SHAPES = st.tuples(SIDES, SIDES, SIDES)
#: Volumes of small size with one long axis.
LONG = st.integers(1, 200).flatmap(lambda n: st.permutations([n, 2, 3]).map(tuple))

# ---- the grid ---------------------------------------------------------------------------------------------


@given(SHAPES)
def test_the_bricks_partition_the_volume(shape: Index) -> None:
    grid = Grid(shape)
    found = [grid.box(n) for n in range(len(grid))]
    assert sum(box.voxels for box in found) == math.prod(shape)
    assert all(box.inside(shape) and max(box.shape) <= BRICK for box in found)
    # Bricks start at different multiples of the edge, in C order. With the sum above, they are a partition.
    assert [box.start for box in found] == list(itertools.product(*(range(0, n, BRICK) for n in shape)))
    assert math.prod(grid.counts) == len(grid)


@given(SHAPES)
def test_there_is_no_brick_beyond_the_last(shape: Index) -> None:
    grid = Grid(shape)
    for index in (-1, len(grid), len(grid) + 1, 2**53):
        with pytest.raises(IndexError):
            grid.box(index)


@given(st.data())
def test_within_finds_the_bricks_that_share_voxels_with_a_box(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    grid = Grid(shape)
    inside = data.draw(boxes(shape))
    by = data.draw(st.tuples(*[st.sampled_from((0, 0, 0, -1, 1, -64, 64, -500, 500))] * 3))
    for box in (inside, inside.shift(by)):
        expected = [n for n in range(len(grid)) if grid.box(n).intersection(box) is not None]
        assert grid.within(box) == expected


def test_within_a_whole_volume_are_all_bricks() -> None:
    shape = (65, 32, 33)
    assert Grid(shape).within(Box.whole(shape)) == list(range(6))
    assert Grid(shape).within(Box((-100, -100, -100), (1000, 1000, 1000))) == list(range(6))


@given(SHAPES, st.tuples(*[st.integers(-100, 300)] * 3))
@example((65, 129, 1), (100, 40, 0))  # outside the volume, but inside a whole last brick
def test_nearest_first_sorts_by_the_closest_voxel(shape: Index, focus: Index) -> None:
    grid = Grid(shape)

    def distance(index: int) -> int:
        pairs = grid.box(index).pairs
        closest = (min(max(f, a), b - 1) for f, (a, b) in zip(focus, pairs, strict=True))
        return sum((c - f) ** 2 for c, f in zip(closest, focus, strict=True))

    order = grid.nearest_first(focus)
    assert all(grid.distance(n, focus) == pytest.approx(math.sqrt(distance(n))) for n in order[:50])
    assert order == sorted(range(len(grid)), key=lambda n: (distance(n), n))
    first = order[::-3]
    assert grid.nearest_first(focus, first) == [n for n in order if n in first] + [n for n in order if n not in first]


def test_the_closest_voxel_is_really_the_closest() -> None:
    """The formula above against every voxel."""
    shape, focus = (70, 3, 66), (66, 5, 10)
    grid = Grid(shape)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    squares = ((voxels - focus) ** 2).sum(axis=-1)
    closest = [int(squares[grid.box(n).slices].min()) for n in range(len(grid))]
    assert [closest[n] for n in grid.nearest_first(focus)] == sorted(closest)


# ---- present bricks ---------------------------------------------------------------------------------------


@given(st.data())
def test_presence_round_trips(data: st.DataObject) -> None:
    grid = Grid(data.draw(SHAPES))
    chosen = data.draw(st.lists(st.integers(0, len(grid) - 1), max_size=10))
    presence = Presence(grid)
    for index in chosen:
        presence.add(index)
    packed = presence.to_bytes()
    number = int.from_bytes(packed, "little")  # the first brick is the lowest bit of the first byte
    assert {n for n in range(8 * len(packed)) if number >> n & 1} == set(chosen)
    assert len(packed) == math.ceil(len(grid) / 8)
    for one in (presence, Presence.from_bytes(grid, packed)):
        assert one.count == len(set(chosen))
        assert [n for n in range(len(grid)) if n in one] == sorted(set(chosen))
        assert one.missing(np.arange(len(grid))) == len(grid) - len(set(chosen))
        assert one.missing(np.array(chosen, np.intp)) == 0
        assert one.to_bytes() == packed
    wrong = data.draw(st.binary(max_size=20))
    if len(wrong) != len(packed):
        with pytest.raises(ValueError, match="bricks"):
            Presence.from_bytes(grid, wrong)


def test_adding_a_nonexistent_brick_raises() -> None:
    presence = Presence(Grid((33, 32, 32)))
    with pytest.raises(IndexError):
        presence.add(2)


def test_presences_share_no_state() -> None:
    grid = Grid((32, 32, 33))
    empty, full = Presence(grid), Presence.from_bytes(grid, b"\x03")
    full_too = Presence.from_bytes(grid, full.to_bytes())
    empty.add(0)
    assert (empty.count, full.count, full_too.count) == (1, 2, 2)


# ---- sizes ------------------------------------------------------------------------------------------------


@given(shape=st.tuples(*[st.one_of(st.integers(2**10, 2**31 - 1), st.sampled_from([1, 32, 2**31 - 1]))] * 3))
@example(shape=(2**31 - 1,) * 3)
def test_any_wire_size_is_accepted_or_too_large(shape: Index) -> None:
    counts = [-(-n // 32) for n in shape]
    if math.prod(shape) <= 2**30 and math.prod(counts) <= 2**20:
        bricks.check_size(shape)
    else:
        with pytest.raises(TooLarge, match=r"at most 1,0\d\d,"):
            bricks.check_size(shape)
