"""A session on the worker: segments, masks, limits and refused requests."""

from concurrent.futures import ThreadPoolExecutor

from helpers.engine import Client, Request, bbox, disc, lasso, point, redo, reset, run, set_mask, undo, with_network
from helpers.session_prompts import LONG, POINTS, SHAPE
from helpers.shapes import ball
import msgspec
import numpy as np
import pytest

from nninteractive_ws import messages
from nninteractive_ws.engine import session as session_module
from nninteractive_ws.errors import AtCapacity, BadMessage, OutOfBounds, UnknownSegment, UnsupportedPrompt
from nninteractive_ws.messages import GetMask, Progress, RemoveSegment, RunLengthMask


def test_a_run_with_nothing_to_predict_changes_nothing(client):
    client.send(POINTS[0])
    done = client.send(run())
    assert done.timings.passes == 0
    assert client.deltas() == []
    client.send(undo())
    assert not client.mask().any(), "the run made no step"


def test_set_mask_with_flip_inverts_voxels(client):
    first, second = ball(SHAPE, (42, 36, 33), 9), ball(SHAPE, (50, 36, 33), 9)
    client.send(set_mask(first))
    done = client.send(set_mask(second, flip=True))
    np.testing.assert_array_equal(client.mask(), first ^ second)
    assert done.voxels == np.count_nonzero(first ^ second)
    client.send(set_mask(first, flip=True))
    np.testing.assert_array_equal(client.mask(), second)
    client.send(set_mask(second, flip=True, segment="b"))
    np.testing.assert_array_equal(client.mask("b"), second)
    for expected in (first ^ second, first):
        client.send(undo())
        np.testing.assert_array_equal(client.mask(), expected)


def test_a_prompt_that_changes_nothing_is_a_step(client):
    client.send(set_mask(ball(SHAPE, (42, 36, 33), 9)))
    assert client.send(set_mask(ball(SHAPE, (42, 36, 33), 9))).changed is None
    assert client.deltas() == []
    client.send(undo())
    assert client.mask().any()
    client.send(undo())
    assert not client.mask().any()


NOT_IN_IT = RunLengthMask(box=((80, 90), (0, 2), (0, 2)), runs=1, encoding="raw", data=b"\x28\0\0\0")
EMPTY = RunLengthMask(box=((0, 2), (0, 2), (0, 2)), runs=1, encoding="raw", data=b"\x08\0\0\0")
WRONG_RUNS = RunLengthMask(box=((0, 2), (0, 2), (0, 2)), runs=2, encoding="raw", data=b"\x08\0\0\0\x08\0\0\0")

REFUSED: dict[str, tuple[Request, type[Exception]]] = {
    "a point below": (point((0, -1, 0)), OutOfBounds),
    "a point beyond": (point((84, 0, 0)), OutOfBounds),
    "a box beyond": (
        messages.AddBbox(id=1, segment="a", box=((0, 4), (0, 4), (60, 67))),
        OutOfBounds,
    ),
    "an empty box": (messages.AddBbox(id=1, segment="a", box=((0, 4), (4, 4), (0, 1))), OutOfBounds),
    "a box the wrong way round": (messages.AddBbox(id=1, segment="a", box=((0, 4), (6, 4), (0, 1))), OutOfBounds),
    "a scribble beyond": (messages.AddScribble(id=1, segment="a", mask=NOT_IN_IT), OutOfBounds),
    "a lasso beyond": (messages.AddLasso(id=1, segment="a", mask=NOT_IN_IT), OutOfBounds),
    "a mask beyond": (messages.SetMask(id=1, segment="a", mask=NOT_IN_IT), OutOfBounds),
    "an empty scribble": (messages.AddScribble(id=1, segment="a", mask=EMPTY), UnsupportedPrompt),
    "an empty lasso": (messages.AddLasso(id=1, segment="a", mask=EMPTY), UnsupportedPrompt),
    "a scribble of wrong runs": (messages.AddScribble(id=1, segment="a", mask=WRONG_RUNS), BadMessage),
    "a mask of wrong runs": (messages.SetMask(id=1, segment="a", mask=WRONG_RUNS), BadMessage),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_leaves_everything_as_it_was(make_client, name):
    request, error = REFUSED[name]
    client, twin = make_client(), make_client()
    with pytest.raises(error):
        client.send(request)
    assert client.session._segments == {}, "a request that was refused made a segment"
    client.send(point((42, 36, 33), run=False))
    with pytest.raises(error):
        client.send(request)
    twin.send(point((42, 36, 33), run=False))
    assert np.array_equal(client.mask_after(run()), twin.mask_after(run()))


@pytest.mark.parametrize(
    "request_",
    [run(), undo(), redo(), reset(), RemoveSegment(id=1, segment="a"), GetMask(id=1, segment="a")],
    ids=lambda r: type(r).__name__,
)
def test_only_prompts_create_segments(client, request_):
    with pytest.raises(UnknownSegment, match='"a"'):
        client.send(request_)


def test_unsupported_prompts_are_refused(quick_model, device, volume, make_client):
    model = make_client().session._model
    limited = with_network(model, model.artifacts["network"])
    description = type(model.description)(
        name="limited", license="", patch_size=(72, 72, 72), prompts=["point"], scribble_thickness=(2, 2, 2)
    )
    object.__setattr__(limited, "description", description)
    client = Client(limited, device).set_image(volume)
    for request in (LONG, lasso(disc(SHAPE, (42, 36, 33), 5)), set_mask(ball(SHAPE, (42, 36, 33), 5))):
        with pytest.raises(UnsupportedPrompt):
            client.send(request)
    with pytest.raises(UnsupportedPrompt, match="point"):
        client.send(bbox([(1, 5), (1, 5), (1, 2)]))
    client.send(POINTS[0])


def test_the_number_of_segments_is_limited(client, monkeypatch):
    monkeypatch.setattr(session_module, "LIMITS", msgspec.structs.replace(session_module.LIMITS, segments=2))
    for name in "ab":
        client.send(set_mask(ball(SHAPE, (9, 9, 9), 2), segment=name))
    with pytest.raises(AtCapacity):
        client.send(set_mask(ball(SHAPE, (9, 9, 9), 2), segment="c"))
    with pytest.raises(AtCapacity):
        client.send(messages.Restore(id=1, segment="c", revision=0))
    client.send(client.journals["b"].restore_message("b"))
    client.send(RemoveSegment(id=1, segment="b"))
    client.send(set_mask(ball(SHAPE, (9, 9, 9), 2), segment="c"))


@pytest.mark.slow
def test_concurrent_sessions_give_the_masks_of_single_ones(make_client):
    requests = [*POINTS, LONG]
    alone = make_client().send_all(requests)
    clients = [make_client(), make_client()]
    with ThreadPoolExecutor(2) as threads:
        for together in threads.map(lambda c: c.send_all(requests), clients):
            for one, other in zip(alone, together, strict=True):
                assert np.array_equal(one, other)
    queued = [m for c in clients for m in c.received if isinstance(m, Progress) and m.state == "queued"]
    assert all(m.done >= 1 for m in queued)
