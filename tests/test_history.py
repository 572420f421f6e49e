"""A segment's history: packed and unpacked, and unchanged if memory runs out during a request."""

from helpers.strategies import same_shape_masks
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from nninteractive_ws import masks
from nninteractive_ws import messages as wire
from nninteractive_ws.geometry import Index
from nninteractive_ws.history import Segment, make_step, memory_of
from nninteractive_ws.masks import Delta, Mask


def shape_of(mask: Mask) -> Index:
    i, j, k = mask.shape
    return i, j, k


def segment_with(states: list[Mask]) -> Segment:
    """Return a segment whose history has these masks."""
    segment = Segment.empty("a", shape_of(states[0]))
    before: Mask = np.zeros(states[0].shape, bool)
    for after in states:
        change = masks.diff(before, after)
        segment.append(make_step(wire.AddPoint(id=1, segment="a", point=(0, 0, 0)), change, "deflate"))
        segment.flip(change)
        before = after
    return segment


@given(same_shape_masks(3))
def test_a_mask_is_packed_and_unpacked(states: list[Mask]) -> None:
    segment = segment_with(states)
    segment.pack_mask("blosc2")
    assert np.array_equal(segment.mask, states[-1])
    assert segment.voxels == states[-1].sum()


@given(same_shape_masks(2))
def test_the_mask_is_a_read_only_view_that_follows_every_change(states: list[Mask]) -> None:
    segment = Segment.empty("a", shape_of(states[0]))
    held = segment.mask
    for state in states:
        segment.apply(masks.diff(segment.mask, state))
        assert segment.mask is held
        assert np.array_equal(held, state)
    for write in (lambda: held.fill(True), lambda: held.__setitem__(..., True), lambda: np.copyto(held, True)):
        with pytest.raises(ValueError, match="read-only"):
            write()
    assert held.copy().flags.writeable
    segment.pack_mask("deflate")
    segment.rebuild()
    assert not segment.mask.flags.writeable


@given(same_shape_masks(4), st.integers(0, 4), st.integers(0, 4))
def test_undo_and_redo_go_through_all_states(states: list[Mask], back: int, forth: int) -> None:
    segment = segment_with(states)
    all_states = [np.zeros(states[0].shape, bool), *states]
    for n in range(back):
        segment.flip(segment.undo())
        assert np.array_equal(segment.mask, all_states[len(states) - 1 - n])
    for _ in range(min(forth, back)):
        segment.flip(segment.redo())
    assert np.array_equal(segment.mask, all_states[len(segment.steps)])
    assert np.array_equal(segment.composed(), segment.mask)
    assert segment.memory == memory_of(segment.steps) + memory_of(segment.undone)
    segment.append(make_step(wire.Reset(id=1, segment="a"), masks.to_delta(segment.mask.copy()), "raw"))
    assert segment.undone == []
    assert segment.memory == memory_of(segment.steps)


def test_the_names_of_segments_in_steps_are_counted() -> None:
    """Each step has its own copy, since each was in a message of its own."""
    nothing = masks.to_delta(np.zeros((9, 9, 9), bool))
    long, short = (
        memory_of([make_step(wire.AddPoint(id=1, segment=name, point=(0, 0, 0)), nothing, "raw")])
        for name in ("\N{MICROSCOPE}" * 256, "a")
    )
    assert 1024 <= long - short < 1200


def test_a_history_is_flattened() -> None:
    first, second = np.zeros((2, 9, 9, 9), bool)
    first[2:5, 2:5, 2:5], second[4:8, 4:8, 4:8] = True, True
    segment = segment_with([first, second])
    segment.flip(segment.undo())
    segment.flatten("blosc2")
    assert segment.is_flat
    assert [type(step.request) for step in segment.steps] == [wire.SetMask]
    assert np.array_equal(segment.composed(), first)
    assert segment.memory == memory_of(segment.steps)


def test_packed_changes_are_kept_unchanged() -> None:
    """Packing again would take time, and could give other bytes."""
    mask = np.zeros((8, 8, 8), bool)
    mask[2:4, 2:4, 2:4] = True
    bits = masks.pack(masks.to_delta(mask), "deflate")
    change = masks.unpack(bits, (8, 8, 8))
    assert make_step(wire.Reset(id=1, segment="a"), change, "deflate").change is bits


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def refuse(bits: wire.RunLengthMask, shape: Index) -> Delta:
        raise MemoryError

    monkeypatch.setattr(masks, "unpack", refuse)
    return monkeypatch


def test_running_out_of_memory_loses_nothing(without_memory: pytest.MonkeyPatch) -> None:
    mask = np.zeros((8, 8, 8), bool)
    mask[2:4, 2:4, 2:4] = True
    segment = segment_with([mask])
    segment.pack_mask("raw")
    with pytest.raises(MemoryError):
        _ = segment.mask
    with pytest.raises(MemoryError):
        segment.undo()
    assert (len(segment.steps), len(segment.undone)) == (1, 0)
    without_memory.undo()
    assert np.array_equal(segment.mask, mask)
    segment.flip(segment.undo())
    assert not segment.mask.any()
