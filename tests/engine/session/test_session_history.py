"""A session on the worker: undo, redo, reset and restore lead to the same state as the direct sequence."""

from typing import Any

from helpers.engine import (
    Client,
    Request,
    bbox,
    disc,
    lasso,
    point,
    prompts_for,
    redo,
    reset,
    run,
    scribble,
    set_mask,
    undo,
)
from helpers.session_prompts import LONG, POINTS, SHAPE, WHOLE, local_prompts
from helpers.shapes import ball
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import numpy as np
import pytest

from nninteractive_ws import masks, messages
from nninteractive_ws.errors import NothingToUndo, OutOfBounds, UnknownSegment
from nninteractive_ws.messages import GetMask, RemoveSegment, RunLengthMask, SetOptions


@pytest.mark.slow
def test_undoing_all_and_redoing_all(make_client):
    client, twin = make_client(), make_client()
    for one in (client, twin):
        one.send(SetOptions(id=1, autozoom=False))
    requests = local_prompts(30, seed=1)
    on_the_way = [np.zeros(SHAPE, bool), *client.send_all(requests)]
    for mask in reversed(on_the_way[:-1]):
        assert np.array_equal(client.mask_after(undo()), mask)
    with pytest.raises(NothingToUndo):
        client.send(undo())
    for mask in on_the_way[1:]:
        assert np.array_equal(client.mask_after(redo()), mask)
    with pytest.raises(NothingToUndo):
        client.send(redo())
    twin.send_all(requests)
    assert np.array_equal(client.mask_after(LONG), twin.mask_after(LONG))


def test_a_new_prompt_after_undo_continues_from_that_state(make_client):
    client, twin = make_client(), make_client()
    for one in (client, twin):
        one.send(SetOptions(id=1, autozoom=False))
    requests = local_prompts(12, seed=2)
    client.send_all(requests)
    for _ in range(7):
        client.send(undo())
    twin.send_all(requests[:5])
    for request in (POINTS[0], undo(), POINTS[1]):
        assert np.array_equal(client.mask_after(request), twin.mask_after(request))
    with pytest.raises(NothingToUndo):
        client.send(redo())


@pytest.mark.slow
def test_undo_and_redo_of_every_kind_of_step(client):
    requests = [r for r in prompts_for(SHAPE, 13) if not isinstance(r, messages.Undo)]
    client.send(SetOptions(id=1, autozoom=False))
    on_the_way = [np.zeros(SHAPE, bool), *client.send_all(requests)]
    for mask in reversed(on_the_way[:-1]):
        assert np.array_equal(client.mask_after(undo()), mask)
    for mask in on_the_way[1:]:
        assert np.array_equal(client.mask_after(redo()), mask)


def test_a_reset_can_be_undone_where_the_mask_reaches_through_the_volume(client):
    everywhere = np.ones(SHAPE, bool)
    client.send(set_mask(everywhere))
    assert not client.mask_after(reset()).any()
    assert np.array_equal(client.mask_after(undo()), everywhere)
    assert not client.mask_after(redo()).any()


def test_undo_and_redo_restore_pending_prompts(make_client):
    client, twin = make_client(), make_client()
    client.send(POINTS[0])
    client.send(point((50, 40, 20), run=False))
    client.send(point((30, 30, 30), positive=False, run=False))
    client.send(undo())
    twin.send(POINTS[0])
    twin.send(point((50, 40, 20), run=False))
    assert np.array_equal(client.mask_after(run()), twin.mask_after(run()))
    client.send(undo())  # undoes the run, so the point is pending again
    twin.send(undo())
    client.send(undo())
    assert client.send(run()).timings.passes == 0
    assert twin.send(run()).timings.passes > 0


def test_a_reset_discards_pending_prompts(client):
    client.send(point((42, 36, 33), run=False))
    client.send(reset())
    assert client.send(run()).timings.passes == 0


def test_segments_are_independent(make_client):
    together = make_client()
    together.send(SetOptions(id=1, autozoom=False))
    requests = {name: local_prompts(4, seed) for seed, name in enumerate("abc")}
    requests["b"][1] = point((42, 36, 33), run=False)
    requests["c"][2] = WHOLE
    apart = {name: make_client() for name in requests}
    for alone in apart.values():
        alone.send(SetOptions(id=1, autozoom=False))
    for turn in range(4):
        for name, own in requests.items():
            request = on_segment(own[turn], name)
            together.send(request)
            assert np.array_equal(together.mask(name), apart[name].mask_after(own[turn]))


def on_segment(request: Request, name: str) -> Request:
    fields = {f: getattr(request, f) for f in request.__struct_fields__}
    return type(request)(**{**fields, "segment": name})


def test_a_removed_segment_starts_empty(client):
    first = client.mask_after(POINTS[0])
    client.send(POINTS[1])
    client.send(RemoveSegment(id=1, segment="a"))
    with pytest.raises(UnknownSegment):
        client.send(GetMask(id=1, segment="a"))
    assert np.array_equal(client.mask_after(POINTS[0]), first)


STORY: list[Request] = [
    POINTS[0],
    point((30, 30, 30), positive=False, run=False),
    scribble(ball(SHAPE, (50, 40, 20), 3), run=False),
    run(),
    LONG,
    undo(),
    set_mask(ball(SHAPE, (40, 36, 30), 14)),
    POINTS[1],
    set_mask(ball(SHAPE, (44, 40, 30), 16), run=True),
    lasso(disc(SHAPE, (42, 36, 33), 9)),
    set_mask(ball(SHAPE, (50, 40, 30), 12), flip=True),
    point((44, 40, 30)),
    reset(),
    bbox([(30, 50), (20, 44), (33, 34)]),
    undo(),
    undo(),
    redo(),
    point((50, 40, 20), run=False),
    bbox([(30, 50), (20, 44), (20, 40)]),  # sent to the model as three slices
    POINTS[2],
]


@pytest.fixture(scope="module")
def story(quick_model, device, volume):
    """The masks after each request of an undisturbed session, and after each undo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.5)
        client = Client(quick_model, device).set_image(volume)
        client.send(SetOptions(id=1, autozoom=False))
        forth = client.send_all(STORY)
        return forth, undo_all(client)


def undo_all(client: Client) -> list[Any]:
    return [client.mask_after(undo()) for _ in list(client.journals["a"].steps)]


def flip(mask: Any, step: messages.Step) -> None:
    if step.change is not None:
        masks.apply(masks.unpack(step.change, mask.shape), mask)


def back_and_forth(client: Client) -> None:
    """Undo all steps of the client's journal, and redo them."""
    steps, mask = list(client.journals["a"].steps), client.mask()
    for step in reversed(steps):
        flip(mask, step)
        assert np.array_equal(client.mask_after(undo()), mask)
    with pytest.raises(NothingToUndo):
        client.send(undo())
    assert not mask.any()
    for step in steps:
        flip(mask, step)
        assert np.array_equal(client.mask_after(redo()), mask)


@pytest.mark.parametrize("cut", range(1, len(STORY)))
def test_a_restored_session_continues_identically(quick_model, device, volume, story, cut):
    forth, back = story
    lost = Client(quick_model, device).set_image(volume)
    lost.send(SetOptions(id=1, autozoom=False))
    lost.send_all(STORY[:cut])
    restored = lost.moved_to(quick_model, device)
    assert np.array_equal(restored.snapshot(), forth[cut - 1])
    back_and_forth(restored)
    restored.send(SetOptions(id=1, autozoom=False))
    # A few requests after the restore would show a difference.
    stop = min(cut + 4, len(STORY))
    for request, mask in zip(STORY[cut:stop], forth[cut:stop], strict=True):
        assert np.array_equal(restored.mask_after(request), mask)
    if stop == len(STORY):
        for mask, ours in zip(back, undo_all(restored), strict=True):
            assert np.array_equal(ours, mask)


def test_undone_steps_are_restored(quick_model, device, client):
    on_the_way = client.send_all(POINTS)
    client.send(undo())
    client.send(undo())
    restored = client.moved_to(quick_model, device)
    for mask in on_the_way[1:]:
        assert np.array_equal(restored.mask_after(redo()), mask)


def test_restoring_replaces_the_segment(make_client):
    client, twin = make_client(), make_client()
    for one in (client, twin):
        one.send(POINTS[0])
    saved = client.journals["a"].restore_message("a")
    journal = client.journals["a"]
    before = journal.mask.copy(), journal.revision, list(journal.steps)
    client.send(LONG)
    journal.mask, journal.revision, journal.steps = before
    client.send(saved)
    assert np.array_equal(client.mask_after(POINTS[1]), twin.mask_after(POINTS[1]))


def test_many_faded_prompts_are_restored(make_client, quick_model, device):
    """Newer prompts are written with larger values, which upstream scales down after about a hundred."""
    client = make_client()
    client.send(SetOptions(id=1, autozoom=False))
    rng = np.random.default_rng(5)
    for n in range(125):
        i, j, k = (int(x) for x in rng.integers((20, 20, 20), (64, 52, 46)))
        client.send(point((i, j, k), positive=n % 4 != 3, run=False))
    restored = client.moved_to(quick_model, device)
    restored.send(SetOptions(id=1, autozoom=False))
    for request in (run(), POINTS[0], undo(), POINTS[1]):
        assert np.array_equal(client.mask_after(request), restored.mask_after(request))
    assert client.mask().any()


def test_an_invalid_restore_changes_nothing(client):
    client.send(POINTS[0])
    whole = RunLengthMask(box=((0, 84), (0, 72), (0, 67)), runs=1, encoding="raw", data=b"\0" * 4)
    outside = messages.Step(request=POINTS[0], change=whole)
    with pytest.raises(OutOfBounds):
        client.send(messages.Restore(id=1, segment="a", revision=9, steps=[outside]))
    with pytest.raises(OutOfBounds):
        client.send(messages.Restore(id=1, segment="a", revision=9, steps=[messages.Step(request=point((84, 0, 0)))]))
    client.send(POINTS[1])
