"""A session on the worker: what its client is told, and that its state never depends on the way it came about.

A "twin" is a second session that never went the detour in question: it must have the same masks, bit for bit.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import gc
from itertools import pairwise
import threading
import time
from typing import Any
import weakref

from engine_helpers import (
    Client,
    Hooked,
    Request,
    ball,
    bar_in_a_box,
    bbox,
    brick_message,
    disc,
    lasso,
    point,
    prompts_for,
    redo,
    reset,
    run,
    scribble,
    set_mask,
    shape_of,
    stroke,
    torso,
    undo,
    with_network,
)
import msgspec
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import numpy as np
import pytest

from nninteractive_ws import arrays, bricks, masks, messages
from nninteractive_ws.engine import session as session_module
from nninteractive_ws.engine.device import Seat
from nninteractive_ws.engine.image import BrickImage
from nninteractive_ws.errors import (
    AtCapacity,
    BadImage,
    BadMessage,
    Cancelled,
    NoImage,
    NothingToUndo,
    OutOfBounds,
    OutOfMemory,
    TooLarge,
    UnknownSegment,
    UnsupportedPrompt,
)
from nninteractive_ws.messages import (
    Bits,
    Brick,
    Cancel,
    GetMask,
    ImageBricks,
    MaskDelta,
    Progress,
    RemoveSegment,
    SetImage,
    SetOptions,
)

SHAPE = (84, 72, 66)


@pytest.fixture(autouse=True)
def _short_zoom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zooming out further takes upstream seconds a step, and shows nothing else."""
    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.5)


@pytest.fixture(scope="module")
def volume():
    return bar_in_a_box()


@pytest.fixture
def make_client(quick_model, device, volume) -> Callable[[], Client]:
    """Fresh sessions with the image in them."""
    return lambda: Client(quick_model, device).set_image(volume)


@pytest.fixture
def client(make_client) -> Client:
    return make_client()


# A stroke through the bar: seen zoomed out, then refined in several passes. Points: in the ball, and in the bar.
LONG = scribble(stroke(SHAPE, (4, 30, 28), (78, 30, 28)))
POINTS = [point((60, 56, 46)), point((60, 30, 28), positive=False), point((42, 32, 26))]
WAITING = point((30, 28, 30), run=False)
# Refined all over, whatever the model makes of it.
WHOLE = set_mask(ball(SHAPE, (42, 30, 28), 8), run=True)


def local_prompts(count: int, seed: int) -> list[Request]:
    """Prompts of all kinds that take a pass each (with autozoom off)."""
    rng = np.random.default_rng(seed)
    kinds: list[Callable[[tuple[int, int, int], bool], Request]] = [
        lambda at, positive: point(at, positive),
        lambda at, positive: scribble(ball(SHAPE, at, 2), positive),
        lambda at, positive: bbox([(at[0] - 8, at[0] + 8), (at[1] - 8, at[1] + 8), (at[2], at[2] + 1)], positive),
        lambda at, positive: lasso(disc(SHAPE, at, 7), positive),
    ]
    requests = []
    for n in range(count):
        i, j, k = (int(x) for x in rng.integers((20, 20, 20), (64, 52, 46)))
        requests.append(kinds[n % len(kinds)]((i, j, k), n % 3 != 2))
    return requests


# ---- what the client is told ----------------------------------------------------------------------------------


def test_deltas_add_up_to_the_mask(client):
    # The client asserts revisions, checksums and counts of each delta, and compares masks after each request.
    client.send_all(prompts_for(SHAPE, 11))
    assert np.array_equal(client.snapshot(), client.mask())


def test_previews_come_before_the_result(client):
    done = client.send(LONG)
    finals = [d.final for d in client.deltas()]
    assert finals.count(True) <= 1
    assert True not in finals[:-1]  # nor is the last where it shows what the result is
    assert len(finals) > 3
    passes = client.progress("refining")
    assert [(p.n, p.m) for p in passes] == [(n, len(passes)) for n in range(1, len(passes) + 1)]
    assert done.timings.passes == len(passes) + 1
    assert client.progress("predicting")


def test_without_previews_there_is_one_delta_and_the_same_mask(make_client):
    shown, silent = make_client(), make_client()
    silent.send(SetOptions(id=1, previews=False))
    for request in (LONG, *POINTS):
        assert np.array_equal(shown.mask_after(request), silent.mask_after(request))
        assert [d.final for d in silent.deltas()] == [True]


def test_without_autozoom_a_prompt_takes_one_pass(make_client):
    zooming, still = make_client(), make_client()
    still.send(SetOptions(id=1, autozoom=False))
    request = POINTS[2]
    assert zooming.send(request).timings.passes > 1
    assert still.send(request).timings.passes == 1
    still.send(undo())
    still.send(SetOptions(id=1))
    assert still.send(request).timings.passes == 1, "an option that is left out stays as it is"
    still.send(undo())
    still.send(SetOptions(id=1, autozoom=True))
    assert np.array_equal(still.mask_after(request), zooming.mask())


def test_timings_say_where_the_time_went(client):
    timings = client.send(LONG).timings
    assert timings.passes > 1
    assert 0 < timings.network < timings.total
    assert timings.waiting_for_image == 0
    assert timings.queued >= 0


def test_a_run_with_nothing_to_predict_changes_nothing(client):
    client.send(POINTS[0])
    done = client.send(run())
    assert done.timings.passes == 0
    assert client.deltas() == []
    client.send(undo())
    assert not client.mask().any(), "the run made no step"


def test_a_mask_is_changed_where_it_is_flipped(client):
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


# ---- cancelling -----------------------------------------------------------------------------------------------


@pytest.fixture
def hooked_client(quick_model, device, volume) -> Client:
    """A client whose ``hook.restart(f)`` calls f(n) before the n-th pass."""
    hook = Hooked(quick_model.artifacts["network"])
    client = Client(with_network(quick_model, hook), device).set_image(volume)
    client.hook = hook  # type: ignore[attr-defined]
    return client


@pytest.mark.parametrize("at_pass", [1, 2, 3])
@pytest.mark.parametrize("cancelled", [LONG, WHOLE], ids=["add", "set"])
def test_cancelling_between_passes_leaves_no_trace(hooked_client, make_client, cancelled, at_pass):
    twin = make_client()
    for request in (POINTS[0], WAITING):
        hooked_client.send(request)
        twin.send(request)
    revision = hooked_client.journals["a"].revision

    def cancel(n: int) -> None:
        if n == at_pass:
            hooked_client.cancel_from_another_thread(hooked_client.last_id)

    hooked_client.hook.restart(cancel)
    with pytest.raises(Cancelled):
        hooked_client.send(cancelled)
    assert hooked_client.hook.passes == at_pass, "no pass after the one in which it was cancelled"
    withdrawn = hooked_client.deltas()
    assert hooked_client.journals["a"].revision == revision + len(withdrawn)
    if withdrawn:
        assert [d.final for d in withdrawn] == [False] * (len(withdrawn) - 1) + [True]
    hooked_client.hook.restart(lambda n: None)
    for request in (run(), LONG, undo(), POINTS[1]):
        assert np.array_equal(hooked_client.mask_after(request), twin.mask_after(request))


def test_cancelling_the_first_prompt_of_a_segment(hooked_client, make_client):
    hooked_client.hook.restart(lambda n: n == 3 and hooked_client.cancel_from_another_thread())
    with pytest.raises(Cancelled):
        hooked_client.send(LONG)
    assert len(hooked_client.deltas()) > 1
    with pytest.raises(NothingToUndo):
        hooked_client.send(undo())
    twin = make_client()
    for request in (LONG, POINTS[0]):
        assert np.array_equal(hooked_client.mask_after(request), twin.mask_after(request))


def test_cancelling_while_it_waits_for_bricks(quick_model, device, volume, make_client):
    client = Client(quick_model, device)
    client.announce(volume)
    waits = threading.Event()
    client.on_message = lambda m: isinstance(m, Progress) and m.state == "waiting_for_image" and waits.set()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.send, POINTS[0])
        assert waits.wait(10)
        client.session.cancel(Cancel(request=client.last_id), client.last_id)
        with pytest.raises(Cancelled):
            waiting.result(10)
    assert client.deltas() == []
    client.send_bricks(range(len(bricks.Grid(SHAPE))))
    twin = make_client()
    for request in POINTS:
        assert np.array_equal(client.mask_after(request), twin.mask_after(request))


def test_cancelling_while_it_waits_for_the_device(quick_model, device, volume, make_client):
    client, twin = make_client(), make_client()
    hook = Hooked(quick_model.artifacts["network"])
    other = Client(with_network(quick_model, hook), device).set_image(volume)
    began, go_on = threading.Event(), threading.Event()
    hook.restart(lambda n: (began.set(), go_on.wait(30)) if n == 1 else None)
    client.send(POINTS[0])
    twin.send(POINTS[0])
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(other.send, POINTS[0])
        assert began.wait(10)
        waiting = threads.submit(client.send, LONG)
        while not device._waiting:
            time.sleep(0.001)
        client.session.cancel(Cancel(), client.last_id)
        with pytest.raises(Cancelled):
            waiting.result(10)
        assert not busy.done(), "it did not wait for the other session's pass"
        go_on.set()
        busy.result(30)
    for request in (LONG, POINTS[1]):
        assert np.array_equal(client.mask_after(request), twin.mask_after(request))


def test_cancelling_before_its_turn(client):
    client.session.cancel(Cancel(request=client.last_id + 1), client.last_id + 1)
    with pytest.raises(Cancelled):
        client.send(POINTS[0])
    client.session.cancel(Cancel(), client.last_id + 2)
    for request in POINTS[:2]:
        with pytest.raises(Cancelled):
            client.send(request)
    assert client.send(POINTS[2]).timings.passes > 0


def test_cancelling_what_is_done_changes_nothing(client):
    client.send(POINTS[0])
    before = client.mask()
    for request in (client.last_id, None):
        client.session.cancel(Cancel(request=request), client.last_id)
    assert np.array_equal(client.snapshot(), before)
    client.send(POINTS[1])
    assert client.session._cancelled == set(), "ids that are done with are kept for ever"


def test_cancelling_one_request_does_not_hit_the_next(hooked_client, device, monkeypatch):
    """A cancellation that found its request at work must not drop the pass of the request after it."""
    really_drop, next_one_waits, gate = device.drop, threading.Event(), threading.Event()

    def late_drop(*args: Any) -> None:
        next_one_waits.wait(0.5)
        really_drop(*args)

    monkeypatch.setattr(device, "drop", late_drop)
    cancel, busy = Cancel(request=hooked_client.last_id + 1), threading.Event()
    with ThreadPoolExecutor(3) as threads:

        def cancel_it(n: int) -> None:
            threads.submit(hooked_client.session.cancel, cancel, cancel.request)
            while cancel.request not in hooked_client.session._cancelled:
                time.sleep(0.001)

        hooked_client.hook.restart(cancel_it)
        with pytest.raises(Cancelled):
            hooked_client.send(POINTS[0])
        hooked_client.hook.restart(lambda n: None)
        threads.submit(device.run, Seat(lambda n: None), lambda: busy.set() or gate.wait())
        assert busy.wait(10)
        following = threads.submit(hooked_client.send, POINTS[2])
        while not device._waiting:
            time.sleep(0.001)
        next_one_waits.set()
        time.sleep(0.1)
        gate.set()
        assert following.result(30).timings.passes > 0


# ---- history ----------------------------------------------------------------------------------------------------


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


def test_a_new_prompt_after_undoing_goes_on_from_there(make_client):
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


def test_prompts_that_wait_come_and_go_with_undo(make_client):
    client, twin = make_client(), make_client()
    client.send(POINTS[0])
    client.send(point((50, 40, 20), run=False))
    client.send(point((30, 30, 30), positive=False, run=False))
    client.send(undo())
    twin.send(POINTS[0])
    twin.send(point((50, 40, 20), run=False))
    assert np.array_equal(client.mask_after(run()), twin.mask_after(run()))
    client.send(undo())  # the run: the point waits again
    twin.send(undo())
    client.send(undo())
    assert client.send(run()).timings.passes == 0
    assert twin.send(run()).timings.passes > 0


def test_a_reset_forgets_the_prompts_that_wait(client):
    client.send(point((42, 36, 33), run=False))
    client.send(reset())
    assert client.send(run()).timings.passes == 0


def test_segments_do_not_know_of_each_other(make_client):
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


def test_a_segment_that_was_removed_begins_again(client):
    first = client.mask_after(POINTS[0])
    client.send(POINTS[1])
    client.send(RemoveSegment(id=1, segment="a"))
    with pytest.raises(UnknownSegment):
        client.send(GetMask(id=1, segment="a"))
    assert np.array_equal(client.mask_after(POINTS[0]), first)


# ---- restoring --------------------------------------------------------------------------------------------------

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
    """The masks after each request of the story, as they are when nothing is lost; and all the way back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.5)
        client = Client(quick_model, device).set_image(volume)
        client.send(SetOptions(id=1, autozoom=False))
        forth = client.send_all(STORY)
        return forth, undo_all(client)


def undo_all(client: Client) -> list[Any]:
    return [client.mask_after(undo()) for _ in list(client.journals["a"].steps)]


def back_and_forth(client: Client) -> None:
    """Undo all steps, as far as the client's journal goes, and redo them."""
    steps, mask = list(client.journals["a"].steps), client.mask()
    for step in reversed(steps):
        masks.apply(step.change, mask)
        assert np.array_equal(client.mask_after(undo()), mask)
    with pytest.raises(NothingToUndo):
        client.send(undo())
    assert not mask.any()
    for step in steps:
        masks.apply(step.change, mask)
        assert np.array_equal(client.mask_after(redo()), mask)


@pytest.mark.parametrize("cut", range(1, len(STORY)))
def test_a_restored_session_goes_on_as_the_lost_one_would_have(quick_model, device, volume, story, cut):
    forth, back = story
    lost = Client(quick_model, device).set_image(volume)
    lost.send(SetOptions(id=1, autozoom=False))
    lost.send_all(STORY[:cut])
    restored = lost.moved_to(quick_model, device)
    assert np.array_equal(restored.snapshot(), forth[cut - 1])
    back_and_forth(restored)
    restored.send(SetOptions(id=1, autozoom=False))
    # A few requests after the cut show the difference if there is one; more would only repeat it.
    stop = min(cut + 4, len(STORY))
    for request, mask in zip(STORY[cut:stop], forth[cut:stop], strict=True):
        assert np.array_equal(restored.mask_after(request), mask)
    if stop == len(STORY):
        for mask, ours in zip(back, undo_all(restored), strict=True):
            assert np.array_equal(ours, mask)


def test_restoring_what_was_undone(quick_model, device, client):
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


def test_many_prompts_fade_and_come_back_the_same(make_client, quick_model, device):
    """Prompts fade by growing the newer ones, which upstream scales down again after about a hundred."""
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


def test_a_restore_that_does_not_fit_changes_nothing(client):
    client.send(POINTS[0])
    whole = Bits(box=((0, 84), (0, 72), (0, 67)), runs=1, encoding="raw", data=b"\0" * 4)
    outside = messages.Step(request=POINTS[0], change=whole)
    with pytest.raises(OutOfBounds):
        client.send(messages.Restore(id=1, segment="a", revision=9, steps=[outside]))
    with pytest.raises(OutOfBounds):
        client.send(messages.Restore(id=1, segment="a", revision=9, steps=[messages.Step(request=point((84, 0, 0)))]))
    client.send(POINTS[1])


# ---- bricks -----------------------------------------------------------------------------------------------------


def test_a_prompt_in_a_corner_needs_the_bricks_of_the_corner(quick_model, device):
    volume = torso((200, 150, 140), spacing=3.0)
    client = Client(quick_model, device)
    client.announce(volume)
    client.send(SetOptions(id=1, autozoom=False))
    sent = answer_what_is_waited_for(client)
    client.send(point((3, 2, 5)))
    # Half a patch of 72 beyond the point, in bricks of 32.
    assert sent == {i * 25 + j * 5 + k for i in (0, 1) for j in (0, 1) for k in (0, 1)}
    client.send(point((199, 149, 139)))
    assert len(sent) == 8 + 2 * 2 * 2
    assert len(bricks.Grid(shape_of(volume))) == 7 * 5 * 5


def test_zooming_out_and_refining_wait_for_more_bricks(quick_model, device):
    volume = torso((200, 150, 140), spacing=3.0)
    client = Client(quick_model, device)
    client.announce(volume)
    sent = answer_what_is_waited_for(client)
    client.send(scribble(stroke((200, 150, 140), (2, 10, 10), (60, 20, 30))))
    assert 8 < len(sent) < 70
    waiting = client.progress("waiting_for_image")
    assert all(0 <= p.n < p.m for p in waiting)
    refining = client.progress("refining")
    assert [(p.n, p.m) for p in refining] == [(n, len(refining) - 1) for n in range(len(refining))]
    assert refining[1:]
    states = [m.state for m in client.received if isinstance(m, Progress)]
    after_waiting = [then for state, then in pairwise(states) if state == "waiting_for_image" != then]
    assert after_waiting[0] == "predicting"
    assert after_waiting[-1] == "refining"
    twin = Client(quick_model, device).set_image(volume)
    twin.send(scribble(stroke((200, 150, 140), (2, 10, 10), (60, 20, 30))))
    assert np.array_equal(client.mask(), twin.mask())


def answer_what_is_waited_for(client: Client) -> set[int]:
    """Let the client send the bricks of any box that a prompt waits for, and no other; which it sent."""
    sent: set[int] = set()
    threads = ThreadPoolExecutor(1)

    def answer(message: messages.ServerMessage) -> None:
        if isinstance(message, Progress) and message.box is not None:
            box = bricks.Box.from_pairs(message.box)
            needed = set(bricks.Grid(shape_of(client._volume)).within(box)) - sent
            sent.update(needed)
            for i in sorted(needed):
                threads.submit(client.send_bricks, [i])

    client.on_message = answer
    return sent


def test_the_time_of_waiting_for_bricks_is_told(quick_model, device, volume):
    client = Client(quick_model, device)
    client.announce(volume)
    thread = client.send_missing_late(range(len(bricks.Grid(SHAPE))), pause=0.02)
    timings = client.send(POINTS[0]).timings
    thread.join()
    assert 0.02 <= timings.waiting_for_image <= timings.total


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"])
@pytest.mark.parametrize("encoding", arrays.ENCODINGS)
def test_voxels_are_normalised_alike_whatever_their_type(quick_model, device, dtype, encoding):
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 100, (70, 20, 9)).astype(dtype)
    client = Client(quick_model, device)
    client.announce(volume)
    client.session.put_bricks(brick_message(volume, "image", [1, 0, 2], encoding))
    statistics = bricks.statistics(volume)
    expected = (volume.astype(np.float32) - np.float32(statistics.mean)) / np.float32(statistics.std)
    assert np.array_equal(client.session._image.voxels[0].numpy(), expected)


def test_a_brick_that_is_there_is_acknowledged_and_changes_nothing(client, volume):
    before = client.session._image.voxels.clone()
    again = client.session.put_bricks(brick_message(volume + 1, "image", [0]))
    assert again.received == [0]
    assert bool((client.session._image.voxels == before).all())


def test_bricks_of_another_image_are_ignored(client, volume):
    assert client.session.put_bricks(brick_message(volume, "another", [0])) is None
    client.send(POINTS[0])


BAD_BRICKS = {
    "an index beyond the grid": (Brick(index=27, encoding="raw", data=b""), BadMessage),
    "too few bytes": (Brick(index=0, encoding="raw", data=b"12"), BadMessage),
    "too many bytes": (Brick(index=0, encoding="raw", data=bytes(4 * 32**3 + 4)), BadMessage),
    "not packed": (Brick(index=0, encoding="blosc2", data=bytes(100)), BadMessage),
    "NaN": (Brick(index=0, encoding="raw", data=np.full((32, 32, 32), np.nan, "<f4").tobytes()), BadImage),
    "infinite": (Brick(index=0, encoding="raw", data=np.full((32, 32, 32), -np.inf, "<f4").tobytes()), BadImage),
}


@pytest.mark.parametrize("name", BAD_BRICKS)
def test_bad_bricks_are_refused_and_good_ones_taken_afterwards(quick_model, device, volume, name):
    bad, error = BAD_BRICKS[name]
    client = Client(quick_model, device)
    client.announce(volume.astype(np.float32))
    with pytest.raises(error):
        client.session.put_bricks(ImageBricks(image="image", bricks=[bad]))
    assert client.session._image.presence.count == 0
    client.send_bricks(range(len(bricks.Grid(SHAPE))))
    assert client.send(POINTS[0]).timings.passes > 0


def test_bricks_before_a_bad_one_are_kept_and_waited_for_no_longer(quick_model, device, volume):
    bad, error = BAD_BRICKS["too few bytes"]
    client = Client(quick_model, device)
    client.announce(volume)
    good = brick_message(volume, "image", range(27)).bricks
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.send, POINTS[0])
        with pytest.raises(error):
            client.session.put_bricks(ImageBricks(image="image", bricks=[*good, bad]))
        assert waiting.result(60).timings.passes > 0


# ---- images -----------------------------------------------------------------------------------------------------


def test_the_same_image_again_keeps_its_bricks_and_loses_its_segments(client, volume):
    first = client.mask_after(POINTS[0])
    assert client.announce(volume) == list(range(27))
    with pytest.raises(UnknownSegment):
        client.send(undo())
    assert np.array_equal(client.mask_after(POINTS[0]), first)


@pytest.mark.parametrize("change", ["shape", "dtype", "mean", "std"])
def test_a_name_does_not_make_an_image_the_same(client, volume, change):
    other = {
        "shape": volume[:-1],
        "dtype": volume.astype(np.int32),
        "mean": volume + np.int16(1),
        "std": np.where(volume > 1100, volume + np.int16(1), volume),
    }[change]
    assert client.announce(other) == []


def test_another_image_takes_the_place_of_the_first(quick_model, device, client):
    client.send(POINTS[0])
    other = torso((70, 64, 50), seed=9, spacing=3.0)
    client.set_image(other, "other")
    with pytest.raises(UnknownSegment):
        client.send(GetMask(id=1, segment="a"))
    twin = Client(quick_model, device).set_image(other)
    at = point((35, 30, 25))
    assert np.array_equal(client.mask_after(at), twin.mask_after(at))


def test_the_first_image_is_gone_before_room_is_made_for_the_next(client, monkeypatch):
    client.send(POINTS[0])
    upstream = client.session._upstream
    held = [weakref.ref(client.session._image.voxels), weakref.ref(upstream.interactions)]
    really_init = BrickImage.__init__

    def look_then_init(self: BrickImage, *args: Any) -> None:
        gc.collect()
        assert [r() for r in held] == [None, None]
        really_init(self, *args)

    monkeypatch.setattr(BrickImage, "__init__", look_then_init)
    client.announce(torso((70, 64, 50), spacing=3.0), "other")


def test_an_image_with_too_many_voxels(client):
    before = client.mask_after(POINTS[0])
    huge = SetImage(id=1, image="huge", shape=(1025, 1024, 1024), dtype="int16", mean=0.0, std=1.0)
    with pytest.raises(TooLarge):
        client.send(huge)
    assert np.array_equal(client.snapshot(), before), "the image from before is still there"


@pytest.mark.parametrize(
    "request_",
    [POINTS[0], set_mask(np.ones((2, 2, 2), bool)), run(), undo(), redo(), reset(), GetMask(id=1, segment="a")],
    ids=lambda r: type(r).__name__,
)
def test_nothing_can_be_done_without_an_image(quick_model, device, request_):
    client = Client(quick_model, device)
    with pytest.raises(NoImage):
        client.send(request_)


# ---- requests that cannot be done -------------------------------------------------------------------------------

NOT_IN_IT = Bits(box=((80, 90), (0, 2), (0, 2)), runs=1, encoding="raw", data=b"\x28\0\0\0")
EMPTY = Bits(box=((0, 2), (0, 2), (0, 2)), runs=1, encoding="raw", data=b"\x08\0\0\0")
WRONG_RUNS = Bits(box=((0, 2), (0, 2), (0, 2)), runs=2, encoding="raw", data=b"\x08\0\0\0\x08\0\0\0")

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
def test_segments_are_made_by_prompts_alone(client, request_):
    with pytest.raises(UnknownSegment, match='"a"'):
        client.send(request_)


def test_prompts_that_the_model_does_not_know(quick_model, device, volume, make_client):
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


def test_a_session_has_so_many_segments_and_no_more(client, monkeypatch):
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


# ---- failures of the machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["Python", "torch"],
)
@pytest.mark.parametrize("request_", [LONG, WHOLE], ids=["add", "set"])
def test_running_out_of_memory_leaves_the_segment_as_it_was(hooked_client, make_client, error, request_):
    def fail(n: int) -> None:
        if n == 2:
            raise error

    twin = make_client()
    for one in (hooked_client, twin):
        one.send(POINTS[0])
    hooked_client.hook.restart(fail)
    with pytest.raises(OutOfMemory):
        hooked_client.send(request_)
    hooked_client.hook.restart(lambda n: None)
    for request in (request_, POINTS[1]):
        assert np.array_equal(hooked_client.mask_after(request), twin.mask_after(request))


def test_a_fault_in_the_network_leaves_the_segment_as_it_was(hooked_client, make_client):
    def fail(n: int) -> None:
        raise RuntimeError("a fault")

    hooked_client.hook.restart(fail)
    with pytest.raises(RuntimeError, match="a fault"):
        hooked_client.send(LONG)
    hooked_client.hook.restart(lambda n: None)
    assert np.array_equal(hooked_client.mask_after(LONG), make_client().mask_after(LONG))


def test_two_sessions_at_once_give_what_they_give_alone(make_client):
    requests = [*POINTS, LONG]
    alone = make_client().send_all(requests)
    clients = [make_client(), make_client()]
    with ThreadPoolExecutor(2) as threads:
        for together in threads.map(lambda c: c.send_all(requests), clients):
            for one, other in zip(alone, together, strict=True):
                assert np.array_equal(one, other)
    queued = [m for c in clients for m in c.received if isinstance(m, Progress) and m.state == "queued"]
    assert all(m.n >= 1 for m in queued)


def test_nothing_is_sent_about_a_request_that_is_over(client):
    client.send_all([LONG, *POINTS, undo()])
    owners = [m.request for m in client.received if isinstance(m, MaskDelta)]
    assert owners == sorted(owners)
