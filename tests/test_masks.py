"""Changes of masks and their encoding, against numpy on whole masks."""

from typing import get_args

from helpers.strategies import boxes, masks_of, same_shape_masks, shapes
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from nninteractive_ws import arrays, masks
from nninteractive_ws.errors import BadMessage, OutOfBounds, TooLarge
from nninteractive_ws.geometry import Box, Index, Pairs
from nninteractive_ws.masks import NO_CHANGE, Delta, Mask
from nninteractive_ws.messages import Encoding, RunLengthMask

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
OFFSETS = st.tuples(*[st.integers(0, 50)] * 3)


def whole(delta: Delta, shape: Index) -> Mask:
    """Return the flips of a delta in a whole volume."""
    volume = np.zeros(shape, bool)
    if delta.box is not None:
        volume[delta.box.slices] = delta.flips
    return volume


def bounding_box(mask: Mask) -> Box | None:
    at = np.argwhere(mask)
    if len(at) == 0:
        return None
    return Box.from_pairs(np.stack((at.min(axis=0), at.max(axis=0) + 1), axis=1).tolist())


def bits(box: Box, runs: list[int], encoding: Encoding = "raw") -> RunLengthMask:
    packed = arrays.pack(np.array(runs, "<u4"), encoding)
    return RunLengthMask(box=box.pairs, runs=len(runs), encoding=encoding, data=packed)


# ---- changes ----------------------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 50))
def test_a_mask_is_expanded_in_parts(data: st.DataObject, part: int) -> None:
    mask = data.draw(masks_of(data.draw(shapes())))
    expected = whole(masks.to_delta(mask), mask.shape)  # type: ignore[arg-type]
    if not mask.any():
        return
    packed = masks.pack(masks.to_delta(mask), "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_PART_VOXELS", part)
        assert np.array_equal(whole(masks.unpack(packed, mask.shape), mask.shape), expected)  # type: ignore[arg-type]


@given(same_shape_masks(2))
def test_a_difference_is_the_exclusive_or_in_the_smallest_box(pair: list[Mask]) -> None:
    before, after = pair
    unchanged = before.copy(), after.copy()
    delta = masks.diff(before, after)
    assert delta.box == bounding_box(before != after)
    assert np.array_equal(whole(delta, before.shape), before != after)
    assert delta.voxels == np.count_nonzero(before != after)
    assert delta.flips.shape == ((0, 0, 0) if delta.box is None else delta.box.shape)
    assert np.array_equal(before, unchanged[0])
    assert np.array_equal(after, unchanged[1])


@given(same_shape_masks(2))
def test_applying_a_difference_twice_restores_the_first_mask(pair: list[Mask]) -> None:
    before, after = pair
    delta = masks.diff(before, after)
    mask = before.copy(order="K")
    masks.apply(delta, mask)
    assert np.array_equal(mask, after)
    masks.apply(delta, mask)
    assert np.array_equal(mask, before)


@given(same_shape_masks(3))
def test_composed_changes_equal_both_in_turn(three: list[Mask]) -> None:
    a, b, c = three
    first, second = masks.diff(a, b), masks.diff(b, c)
    flips = first.flips.copy(), second.flips.copy()
    for composed in (masks.compose(first, second), masks.compose(second, first)):
        mask = a.copy()
        masks.apply(composed, mask)
        assert np.array_equal(mask, c)
        assert composed.box == bounding_box(a != c)
    assert np.array_equal(first.flips, flips[0])
    assert np.array_equal(second.flips, flips[1])


@given(same_shape_masks(2))
def test_a_change_composed_with_itself_is_empty(pair: list[Mask]) -> None:
    delta = masks.diff(pair[0], pair[1])
    assert masks.compose(delta, delta).box is None
    assert masks.compose(delta, NO_CHANGE) is delta
    assert masks.compose(NO_CHANGE, delta).box == delta.box


@given(st.data())
def test_a_crop_with_its_origin_gives_the_same_change(data: st.DataObject) -> None:
    before = data.draw(shapes().flatmap(masks_of))
    frame = data.draw(boxes(before.shape))
    after = before.copy()
    after[frame.slices] = data.draw(masks_of(frame.shape))
    of_crops = masks.diff(before[frame.slices], after[frame.slices], frame.start)
    of_all = masks.diff(before, after)
    assert of_crops.box == of_all.box
    assert np.array_equal(of_crops.flips, of_all.flips)


@given(shapes(4), OFFSETS)
def test_a_change_that_does_not_fit_the_mask_is_refused_and_changes_nothing(shape: Index, by: Index) -> None:
    if by == (0, 0, 0):
        return
    mask = np.zeros(shape, bool)
    with pytest.raises(OutOfBounds):
        masks.apply(Delta(Box.whole(shape).shift(by), np.ones(shape, bool)), mask)
    with pytest.raises(OutOfBounds):
        masks.apply(Delta(Box.whole(shape).shift(tuple(-d for d in by)), np.ones(shape, bool)), mask)
    assert not mask.any()


def test_an_empty_change_changes_nothing() -> None:
    mask = np.ones((2, 3, 4), bool)
    masks.apply(NO_CHANGE, mask)
    assert mask.all()
    assert NO_CHANGE.voxels == 0
    assert masks.diff(mask, mask).box is None
    assert masks.to_delta(np.zeros((0, 0, 0), bool)).box is None


# ---- the checksum -----------------------------------------------------------------------------------------


def crc32(data: bytes) -> int:
    """Compute the CRC bit by bit, from the definition (polynomial 0x04C11DB7, reflected)."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@given(st.data())
def test_the_checksum_is_the_crc_of_the_boxs_bits(data: st.DataObject) -> None:
    mask = data.draw(shapes(6).flatmap(masks_of))
    box = data.draw(boxes(mask.shape))
    (i0, i1), (j0, j1), (k0, k1) = box.pairs
    flat = [bool(mask[i, j, k]) for i in range(i0, i1) for j in range(j0, j1) for k in range(k0, k1)]
    packed = bytes(sum(bit << n for n, bit in enumerate(flat[at : at + 8])) for at in range(0, len(flat), 8))
    assert masks.checksum(mask, box) == crc32(packed)


@given(st.data())
def test_the_checksum_detects_any_single_voxel(data: st.DataObject) -> None:
    mask = data.draw(shapes(6).flatmap(masks_of))
    box = data.draw(boxes(mask.shape))
    before = masks.checksum(mask, box)
    voxel = tuple(data.draw(st.integers(a, b - 1)) for a, b in box)
    mask[voxel] ^= True
    assert masks.checksum(mask, box) != before


# ---- on the wire ------------------------------------------------------------------------------------------


def decoded(message: RunLengthMask, shape: Index) -> Mask:
    """Decode run by run, in plain Python."""
    runs = arrays.unpack(message.data, message.encoding, "<u4", (message.runs,)).tolist()
    flat = [bool(n % 2) for n, run in enumerate(runs) for _ in range(run)]
    volume = np.zeros(shape, bool)
    box = Box.from_pairs(message.box)
    volume[box.slices] = np.array(flat).reshape(box.shape)
    return volume


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(st.data())
def test_a_change_round_trips(encoding: Encoding, data: st.DataObject) -> None:
    shape = data.draw(shapes())
    delta = masks.to_delta(data.draw(masks_of(shape)))
    if delta.box is None:
        return
    message = masks.pack(delta, encoding)
    assert message.encoding == encoding
    assert np.array_equal(decoded(message, shape), whole(delta, shape))
    back = masks.unpack(message, shape)
    assert back.box == delta.box
    assert back.flips.dtype == bool
    assert np.array_equal(back.flips, delta.flips)


@given(st.data())
def test_a_box_that_is_not_tight_round_trips(data: st.DataObject) -> None:
    """Clients send the crop that the user drew in, or an empty mask."""
    shape = data.draw(shapes())
    box = data.draw(boxes(shape))
    flips = data.draw(masks_of(box.shape))
    back = masks.unpack(masks.pack(Delta(box, flips), "raw"), shape)
    assert back.box == box
    assert np.array_equal(back.flips, flips)


@pytest.mark.parametrize(
    ("flips", "runs"),
    [
        ([False, False], [2]),
        ([True, True], [0, 2]),
        ([False, True], [1, 1]),
        ([True, False, False, True], [0, 1, 2, 1]),
        ([False, True, True, False], [1, 2, 1]),
    ],
)
def test_runs_begin_with_unset_voxels(flips: list[bool], runs: list[int]) -> None:
    box = Box.whole((1, 1, len(flips)))
    message = masks.pack(Delta(box, np.array([[flips]])), "raw")
    assert message.runs == len(runs)
    assert np.frombuffer(message.data, "<u4").tolist() == runs


def test_an_empty_delta_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="empty delta"):
        masks.pack(NO_CHANGE, "raw")


def test_a_small_change_in_the_far_corner_is_small_on_the_wire() -> None:
    mask = np.zeros((400, 400, 400), bool)
    mask[-1, -1, -1] = True
    message = masks.pack(masks.to_delta(mask), "raw")
    assert message == bits(Box((399, 399, 399), (400, 400, 400)), [0, 1])


BOX = Box((1, 1, 1), (3, 3, 3))  # the box has eight voxels


@pytest.mark.parametrize(
    "runs", [[0], [7], [9], [0, 7], [0, 9], [4, 5], [8, 1], [2**32 - 1, 9], [4, 2**32 - 4, 8], [2**31, 2**31, 8]]
)
def test_runs_that_do_not_add_up_are_refused(runs: list[int]) -> None:
    with pytest.raises(BadMessage, match="add up"):
        masks.unpack(bits(BOX, runs), (4, 4, 4))


@pytest.mark.parametrize("runs", [[8], [0, 8], [1, 2, 3, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1], [3, 0, 0, 5], [8, 0]])
def test_valid_runs_are_read(runs: list[int]) -> None:
    message = bits(BOX, runs)
    assert np.array_equal(whole(masks.unpack(message, (4, 4, 4)), (4, 4, 4)), decoded(message, (4, 4, 4)))


def test_more_runs_than_the_box_can_have_are_refused() -> None:
    with pytest.raises(BadMessage, match="10 runs"):
        masks.unpack(bits(BOX, [0, 1, 0, 1, 0, 1, 0, 1, 0, 4]), (4, 4, 4))


@pytest.mark.parametrize(
    "pairs",
    [
        ((-1, 1), (0, 1), (0, 1)),
        ((0, 1), (0, 1), (3, 5)),
        ((0, 5), (0, 4), (0, 4)),
        ((4, 5), (0, 1), (0, 1)),
        ((0, 0), (0, 1), (0, 1)),
        ((2, 1), (0, 1), (0, 1)),
        ((0, 1), (0, 1), (-(2**31), 2**31 - 1)),
    ],
)
def test_a_box_that_is_empty_or_not_inside_is_refused(pairs: Pairs) -> None:
    with pytest.raises(OutOfBounds, match="box"):
        masks.unpack(RunLengthMask(box=pairs, runs=1, encoding="raw", data=bytes(4)), (4, 4, 4))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_invalid_run_lengths_are_refused(encoding: Encoding) -> None:
    for data in (b"", b"\0" * 7, b"\0" * 33, b"\xff" * 40):
        with pytest.raises(BadMessage):
            masks.unpack(RunLengthMask(box=BOX.pairs, runs=2, encoding=encoding, data=data), (4, 4, 4))


def test_more_runs_than_may_be_unpacked_are_too_large() -> None:
    shape = (1024, 1024, 1024)
    message = RunLengthMask(box=Box.whole(shape).pairs, runs=2**26 + 1, encoding="blosc2", data=b"")
    with pytest.raises(TooLarge):
        masks.unpack(message, shape)
