"""The client's core without I/O. It exchanges frames with the engine's real session, or gets handwritten ones."""

from collections.abc import Callable, Iterator
import contextlib
import itertools
from typing import Any, TypeGuard

from helpers.core_link import WELCOME, Link, Lost, MemoryServer, deliver
from helpers.core_script import SCRIPT, SHAPE, SHORT_SCRIPT, Snapshot, check_journal, lasso, sent, snapshot
from helpers.shapes import ball
import msgspec
import numpy as np
import pytest

from nninteractive_ws import errors, masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.journal import Journal
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.geometry import Box
from nninteractive_ws.history import Segment
from nninteractive_ws.masks import Mask


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return ImageSource.of(make_phantom(5, SHAPE, (3.5, 3.5, 3.5)).image)


@pytest.fixture
def new_server(quick_model: Any, device: Any) -> Callable[[], MemoryServer]:
    return lambda: MemoryServer(quick_model, device)


@pytest.fixture
def link(new_server: Callable[[], MemoryServer], source: ImageSource) -> Link:
    """A connection with the image on the server."""
    core = Core()
    core.start()
    link = Link(core, new_server())
    link.settle()
    core.set_image(source)
    link.settle()
    return link


# ---- against the engine -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_journal_equals_the_servers_history(link: Link) -> None:
    for command in SCRIPT:
        number = command(link.core)
        happened = link.settle()
        done = happened[-1]
        assert isinstance(done, events.Done)
        assert done.result.request == number
        assert link.core.pending_requests == []
        check_journal(link.core, link.server)
    assert any(isinstance(e, events.MaskDelta) and not e.final for e in link.happened), "no preview was seen"


@pytest.mark.slow
def test_pipelined_commands_give_the_results_of_single_ones(link: Link, new_server: Any, source: ImageSource) -> None:
    for command in SCRIPT:
        command(link.core)
        link.settle()
    core = Core()
    other = Link(core, new_server())
    core.start()
    other.settle()
    core.set_image(source)
    numbers = [command(core) for command in SCRIPT]
    happened = other.settle()
    assert numbers == sorted(numbers)
    assert [e.result.request for e in happened if isinstance(e, events.Done)][1:] == numbers
    assert snapshot(core) == snapshot(link.core)
    check_journal(core, other.server)


@pytest.fixture(scope="module")
def undisturbed(quick_model: Any, device: Any, source: ImageSource) -> tuple[list[Snapshot], list[int]]:
    """The journal, and the number of frames from the server, after each command of the short script."""
    core, server = Core(), MemoryServer(quick_model, device)
    link = Link(core, server, frames=10**6)
    core.start()
    link.settle()
    core.set_image(source)
    link.settle()
    states, frames = [snapshot(core)], [int(10**6 - link.frames)]
    for command in SHORT_SCRIPT:
        command(core)
        link.settle()
        states.append(snapshot(core))
        frames.append(int(10**6 - link.frames))
    return states, frames


def cuts(frames: list[int]) -> Iterator[int]:
    """The numbers of frames after which the link breaks: in the welcome, in the image, in and between commands."""
    yield from (0, 2, frames[0])
    first, last = frames[1], frames[2]  # the lasso with its previews
    yield from np.unique(np.linspace(first + 1, last - 1, 3).astype(int)).tolist()
    yield from np.random.default_rng(1).integers(last, frames[-1], 3).tolist()


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_the_session_is_restored_after_a_loss_at_any_moment(
    undisturbed: tuple[list[Snapshot], list[int]],
    new_server: Callable[[], MemoryServer],
    source: ImageSource,
    stride: int,
) -> None:
    """At every ``stride``-th of the cuts."""
    states, frames = undisturbed
    for cut in itertools.islice(cuts(frames), 0, None, stride):
        _play_with_a_loss(new_server, source, states, cut)


def _play_with_a_loss(
    new_server: Callable[[], MemoryServer], source: ImageSource, states: list[Snapshot], cut: int
) -> None:
    core = Core()
    link = Link(core, new_server(), frames=cut)
    answered: list[Event] = []
    core.start()

    def settle() -> None:
        nonlocal link
        try:
            link.settle()
        except Lost:
            unanswered = core.pending_requests
            core.start()  # reverts previews
            for segment in core.segments.values():
                assert np.array_equal(segment.composed(), segment.mask), f"a preview was left, cut {cut}"
            answered.extend(link.happened)
            link = Link(core, new_server())
            link.settle()
            done = [e.result.request for e in link.happened if isinstance(e, events.Done)]
            assert done == unanswered, f"cut {cut}"
        assert core.pending_requests == []

    settle()
    core.set_image(source)
    settle()
    assert snapshot(core) == states[0]
    for command, state in zip(SHORT_SCRIPT, states[1:], strict=True):
        number = command(core)
        settle()
        assert snapshot(core) == state, f"cut {cut}, request {number}"
    check_journal(core, link.server)


@pytest.mark.slow
def test_a_second_loss_during_restore(link: Link, new_server: Callable[[], MemoryServer]) -> None:
    core = link.core
    for command in SCRIPT[:8]:
        command(core)
        link.settle()
    before = snapshot(core)
    for frames in range(6):
        core.start()
        with pytest.raises(Lost):
            Link(core, new_server(), frames=frames).settle()
    core.start()
    last = Link(core, new_server())
    last.settle()
    assert snapshot(core) == before
    check_journal(core, last.server)


@pytest.mark.parametrize("seed", range(20))
def test_the_last_image_arrives_after_any_losses(
    new_server: Callable[[], MemoryServer], source: ImageSource, seed: int
) -> None:
    """Two images are set in turn, while the connection or the session is lost at random moments."""
    random = np.random.default_rng(seed)
    sources = [source, ImageSource.of(np.arange(70 * 40 * 33, dtype=np.uint16).reshape(70, 40, 33) % 999)]
    core, server = Core(), new_server()
    core.start()
    link = Link(core, server)
    link.settle()
    numbers = []
    for _ in range(6):
        for _ in range(random.integers(1, 4)):
            numbers.append(core.set_image(sources[random.integers(2)]))
        if random.random() < 0.7:
            lost = Link(core, server, frames=int(random.integers(8)))
            with contextlib.suppress(Lost):
                lost.settle()
            link.happened += lost.happened
            server.disconnect()
            if random.random() < 0.2:
                server.forget()
            core.start()
    link.settle()
    assert core.image is not None
    image = server.session._image
    assert (image.name, image.presence.count) == (core.image.name, len(core.image.grid))
    assert core.pending_requests == []
    answers = [e.result.request if isinstance(e, events.Done) else e.request for e in link.happened if is_answer(e)]
    assert sorted(answers) == numbers


def is_answer(event: Event) -> TypeGuard[events.Done | events.Failed]:
    return isinstance(event, events.Done | events.Failed)


def test_options_are_restored(link: Link, new_server: Callable[[], MemoryServer]) -> None:
    core = link.core
    core.set_options(previews=False)
    core.set_options(autozoom=False)
    link.settle()
    core.start()
    second = Link(core, new_server())
    second.settle()
    assert not second.server.session._previews
    assert not second.server.session._upstream.do_autozoom
    core.add_lasso("b", lasso())
    assert not [e for e in second.settle() if isinstance(e, events.MaskDelta) and not e.final]


def test_a_cancelled_request_is_not_sent_again(link: Link, new_server: Callable[[], MemoryServer]) -> None:
    core = link.core
    first = core.add_point("a", (30, 40, 36))
    second = core.add_point("a", (32, 40, 36))
    core.cancel(first)
    core.start()
    again = Link(core, new_server())
    happened = again.settle()
    failed = [e for e in happened if isinstance(e, events.Failed)]
    assert [(e.request, type(e.error)) for e in failed] == [(first, errors.Cancelled)]
    assert [e.result.request for e in happened if isinstance(e, events.Done)] == [second]
    assert len(core.segments["a"].steps) == 1
    check_journal(core, again.server)


@pytest.mark.parametrize("damage", ["missing", "checksum"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_snapshot_repairs_mask_and_journal(link: Link, damage: str, at: int) -> None:
    core = link.core
    core.add_point("a", (30, 40, 36))
    link.settle()
    kept = core.segments["a"].mask
    core.set_mask("a", ball(SHAPE, (30, 40, 36), 6), run=True)  # two changes: the original and the damaged one
    core.add_point("a", (32, 40, 36))  # is pending meanwhile
    seen: list[bytes] = []

    def corrupt(frame: bytes) -> bytes | None:
        message = protocol.decode_server(frame)
        if not isinstance(message, wire.MaskDelta):
            return frame
        seen.append(frame)
        if len(seen) - 1 != at:
            return frame
        spoiled = msgspec.structs.replace(message, checksum=message.checksum ^ 1)
        return None if damage == "missing" else protocol.encode(spoiled)

    link.change_frame = corrupt
    happened = link.settle()
    assert any(isinstance(e, events.MaskDelta) and e.request is None for e in happened), "no snapshot came"
    assert core.segments["a"].mask is kept
    _check_masks(core, link.server)
    for command in (core.undo, core.undo, core.redo, core.redo):
        command("a")
        link.settle()
        check_journal(core, link.server)


def _check_masks(core: Core, server: MemoryServer) -> None:
    for name, segment in core.segments.items():
        assert np.array_equal(segment.mask, server.session._segments[name].mask)
        assert np.array_equal(segment.composed(), segment.mask)


def test_a_missing_final_change_is_detected_by_the_answer(link: Link) -> None:
    core = link.core
    link.change_frame = lambda f: None if isinstance(protocol.decode_server(f), wire.MaskDelta) else f
    core.add_point("a", (30, 40, 36))
    link.settle()
    assert core.segments["a"].voxels > 0
    check_journal(core, link.server)


def test_a_loss_while_a_snapshot_is_pending(link: Link, new_server: Callable[[], MemoryServer]) -> None:
    core = link.core
    core.add_point("a", (30, 40, 36))
    link.settle()
    before = core.segments["a"].mask.copy()

    def corrupt(frame: bytes) -> bytes | None:
        message = protocol.decode_server(frame)
        if isinstance(message, wire.MaskSnapshot):
            raise Lost
        return (
            protocol.encode(msgspec.structs.replace(message, checksum=1))
            if isinstance(message, wire.MaskDelta)
            else frame
        )

    core.add_point("a", (32, 40, 36))
    link.change_frame = corrupt
    with pytest.raises(Lost):
        link.settle()
    core.start()
    steps = core.segments["a"].steps
    assert np.array_equal(core.segments["a"].mask, before)
    assert len(steps) == 2
    second = Link(core, new_server())
    second.settle()
    check_journal(core, second.server)


# ---- handwritten messages ---------------------------------------------------------------------------------


@pytest.fixture
def open_core(source: ImageSource) -> Core:
    """A core with an image. Its previous frames are discarded."""
    core = Core()
    core.start()
    deliver(core, WELCOME)
    number = core.set_image(source)
    deliver(core, wire.ImageProgress(image=source.name, received=[], present=0, total=8))
    deliver(core, wire.Done(id=number))
    sent(core)
    return core


def delta(request: int, base: int, box: Box, mask: Mask, segment: str = "a") -> wire.MaskDelta:
    """Set a box in ``mask``, and return the change."""
    change = masks.Delta(box, ~mask[box.slices])
    mask[box.slices] = True
    return wire.MaskDelta(
        segment=segment,
        request=request,
        base_revision=base,
        revision=base + 1,
        change=masks.pack(change, "raw"),
        checksum=masks.checksum(mask, box),
        voxels=int(mask.sum()),
        final=False,
    )


def test_the_handshake(source: ImageSource) -> None:
    core = Core(encodings=("deflate", "raw"))
    core.start()
    (hello,) = sent(core)
    assert isinstance(hello, wire.Hello)
    assert (hello.version, hello.encodings) == (protocol.PROTOCOL_VERSION, ["deflate", "raw"])
    assert (hello.session_id, hello.session_secret) == (None, None)
    # Requests before the welcome wait for it.
    numbers = [core.set_image(source), core.add_point("a", (1, 2, 3))]
    assert sent(core) == []
    (opened,) = deliver(core, WELCOME)
    assert opened == events.Connection("open", WELCOME)
    assert core.welcome == WELCOME
    announced, point = sent(core)
    assert (type(announced), type(point)) == (wire.SetImage, wire.AddPoint)
    assert core.pending_requests == numbers


def test_ids_grow(open_core: Core) -> None:
    numbers = [open_core.add_point("a", (1, 2, 3)), open_core.undo("a"), open_core.run("b"), open_core.set_options()]
    requests = sent(open_core)
    assert [r.id for r in requests] == numbers == sorted(set(numbers))
    assert open_core.pending_requests == numbers


def test_unknown_messages_are_ignored(open_core: Core) -> None:
    assert open_core.receive(msgspec.msgpack.encode({"type": "weather", "id": 7, "sun": True})) == []
    with_more = {**msgspec.to_builtins(wire.Notice(code="warning", message="so")), "type": "notice", "more": 1}
    assert open_core.receive(msgspec.msgpack.encode(with_more)) == [events.Notice("warning", "so")]
    assert deliver(open_core, wire.Done(id=99)) == []
    assert deliver(open_core, wire.ErrorMessage(code="internal", message="late", id=99)) == []
    assert deliver(open_core, wire.Progress(id=99, state="queued")) == []


def test_an_error_without_a_request_ends_the_connection(open_core: Core) -> None:
    assert deliver(open_core, wire.ErrorMessage(code="worker_lost", message="gone")) == []
    assert isinstance(open_core.ended, errors.WorkerLost)
    open_core.start()
    assert open_core.ended is None


@pytest.mark.parametrize("box", [((0, 1), (0, 1), (0, 1000)), ((0, 1), (0, 1), (5, 5)), ((-1, 1), (0, 1), (0, 1))])
def test_a_change_that_does_not_fit_is_the_servers_fault(open_core: Core, box: Any) -> None:
    number = open_core.add_point("a", (1, 2, 3))
    bits = wire.RunLengthMask(box=box, runs=1, encoding="raw", data=b"\0\0\0\0")
    message = wire.MaskDelta(
        segment="a", request=number, base_revision=0, revision=1, change=bits, checksum=0, voxels=0, final=True
    )
    with pytest.raises(errors.BadMessage):
        deliver(open_core, message)
    with pytest.raises(errors.BadMessage):
        deliver(open_core, wire.Progress(id=number, state="waiting_for_image", box=((0, 1), (0, 1), (9, 9))))


def test_a_mask_of_another_segment_is_refused(open_core: Core) -> None:
    """Otherwise, a server could make the client keep any number of masks."""
    number = open_core.add_point("a", (1, 2, 3))
    bits = wire.RunLengthMask(box=((0, 1), (0, 1), (0, 1)), runs=2, encoding="raw", data=b"\0\0\0\0\1\0\0\0")
    delta = wire.MaskDelta(
        segment="b", request=number, base_revision=0, revision=1, change=bits, checksum=0, voxels=1, final=True
    )
    snapshot = wire.MaskSnapshot(segment="b", request=number, revision=1, mask=bits, voxels=1)
    for message in (delta, snapshot):
        with pytest.raises(errors.BadMessage, match='segment "a" with segment "b"'):
            deliver(open_core, message)
    assert "b" not in open_core.segments


def test_scalars_of_numpy_are_sent_as_plain_ones(open_core: Core) -> None:
    yes: Any = np.True_
    open_core.add_point(np.str_("liver"), (np.int64(1), 2, 3), positive=yes, run=yes)
    (frame,) = sent(open_core)
    assert (frame.segment, frame.positive, frame.run) == ("liver", True, True)


def test_a_request_that_cannot_be_sent_is_not_pending(open_core: Core) -> None:
    with pytest.raises(UnicodeEncodeError):
        open_core.add_point("\ud800", (1, 2, 3))
    assert open_core.pending_requests == []
    assert sent(open_core) == []


def test_all_bricks_are_sent_if_the_list_of_present_ones_was_lost(source: ImageSource) -> None:
    """A server may no longer have it if a connection is lost."""
    core = Core()
    core.start()
    deliver(core, WELCOME)
    number = core.set_image(source)
    assert core.next_brick() is None
    deliver(core, wire.Done(id=number))
    assert core.next_brick() is not None


def test_a_refused_image_is_not_set(open_core: Core, source: ImageSource) -> None:
    number = open_core.set_image(source)
    prompt = open_core.add_point("a", (1, 2, 3))
    (failed,) = deliver(open_core, wire.ErrorMessage(code="too_large", message="too many voxels", id=number))
    assert isinstance(failed, events.Failed)
    assert isinstance(failed.error, errors.TooLarge)
    assert open_core.next_brick() is None
    # The server ran the prompt on the previous image.
    assert deliver(open_core, delta(prompt, 0, Box((0, 0, 0), (2, 2, 2)), np.zeros(SHAPE, bool))) == []
    assert len(deliver(open_core, wire.Done(id=prompt, segment="a"))) == 1
    assert open_core.segments == {}
    with pytest.raises(errors.NoImage):
        open_core.add_point("a", (1, 2, 3))


def test_another_image_cancels_requests_of_the_previous_one(open_core: Core) -> None:
    first = open_core.add_point("a", (1, 2, 3))
    box, mask = Box((0, 0, 0), (2, 2, 2)), np.zeros(SHAPE, bool)
    deliver(open_core, delta(first, 0, box, mask))
    sent(open_core)
    other = ImageSource.of(np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    second = open_core.set_image(other)
    cancel, announced = sent(open_core)
    assert cancel == wire.Cancel(request=first)
    assert isinstance(announced, wire.SetImage)
    assert deliver(open_core, delta(first, 1, Box((50, 50, 50), (52, 52, 52)), mask)) == []
    wait = wire.Progress(id=first, state="waiting_for_image", box=((0, 96), (0, 80), (0, 72)))
    assert deliver(open_core, wait) == []
    assert len(deliver(open_core, wire.ErrorMessage(code="cancelled", message="so", id=first))) == 1
    assert open_core.segments == {}
    prompt = open_core.add_point("a", (1, 2, 3))
    small = np.zeros((10, 10, 10), bool)
    assert len(deliver(open_core, delta(prompt, 0, box, small))) == 1
    # The same with a lost connection: the new image is announced for its pending request.
    open_core.start()
    happened = deliver(open_core, WELCOME)
    (taken_back, opened) = happened
    assert isinstance(taken_back, events.MaskDelta)
    assert (taken_back.request, taken_back.box, taken_back.voxels) == (prompt, Box((0, 0, 0), (2, 2, 2)), 0)
    assert opened == events.Connection("open", WELCOME)
    assert open_core.pending_requests == [second, prompt]
    assert not open_core.segments["a"].mask.any()


@pytest.fixture
def journal(open_core: Core, source: ImageSource) -> Journal:
    """A journal with one segment, "a"."""
    number = open_core.set_mask("a", ball(SHAPE, (5, 5, 5), 2))
    deliver(open_core, delta(number, 0, Box((3, 3, 3), (8, 8, 8)), np.zeros(SHAPE, bool)))
    deliver(open_core, wire.Done(id=number, segment="a", revision=1))
    return open_core.journal()


@pytest.mark.parametrize("code", ["out_of_memory", "too_large"])
def test_restores_behind_a_refused_image_do_not_end_the_session(
    source: ImageSource, journal: Journal, code: str
) -> None:
    core = Core()
    core.start()
    deliver(core, WELCOME)
    number = core.set_image(source, journal)
    *_, restore = sent(core)
    assert isinstance(restore, wire.Restore)
    assert len(deliver(core, wire.ErrorMessage(code=code, message="so", id=number))) == 1
    assert deliver(core, wire.ErrorMessage(code="no_image", message="so", id=restore.id)) == []
    assert core.ended is None
    again = core.set_image(source)
    assert deliver(core, wire.Done(id=again)) != []


@pytest.mark.parametrize("code", ["no_image", "out_of_bounds", "out_of_memory"])
def test_restores_of_a_replaced_image_do_not_end_the_session(
    open_core: Core, source: ImageSource, journal: Journal, code: str
) -> None:
    first = open_core.set_image(source, journal)
    *_, restore = sent(open_core)
    other = ImageSource.of(np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    second = open_core.set_image(other)
    assert len(deliver(open_core, wire.ErrorMessage(code="cancelled", message="so", id=first))) == 1
    assert deliver(open_core, wire.ErrorMessage(code=code, message="so", id=restore.id)) == []
    assert open_core.ended is None
    assert open_core.image is other
    assert len(deliver(open_core, wire.Done(id=second))) == 1


def test_a_failed_prompt_of_a_replaced_image_leaves_the_segment_of_the_new_one(open_core: Core) -> None:
    old = open_core.add_point("a", (1, 2, 3))
    open_core.set_image(ImageSource.of(np.arange(1000, dtype=np.int16).reshape(10, 10, 10)))
    new = open_core.add_point("a", (1, 2, 3))
    deliver(open_core, delta(new, 0, Box((0, 0, 0), (2, 2, 2)), np.zeros((10, 10, 10), bool)))
    deliver(open_core, wire.ErrorMessage(code="cancelled", message="so", id=old))
    assert open_core.segments["a"].revision == 1


def test_the_same_image_set_twice_without_a_connection_is_answered_twice(source: ImageSource) -> None:
    core = Core()
    first, second = core.set_image(source), core.set_image(source)
    core.start()
    _, failed = deliver(core, WELCOME)
    assert isinstance(failed, events.Failed)
    assert (failed.request, type(failed.error)) == (first, errors.Cancelled)
    _, announced = sent(core)
    (done,) = deliver(core, wire.Done(id=announced.id))
    assert isinstance(done, events.Done)
    assert done.result.request == second
    assert core.pending_requests == []


def test_a_prompt_from_before_the_same_image_was_set_again_changes_no_segment(
    open_core: Core, source: ImageSource
) -> None:
    prompt = open_core.set_mask("a", ball(SHAPE, (5, 5, 5), 2))
    open_core.set_image(source)
    assert deliver(open_core, delta(prompt, 0, Box((3, 3, 3), (8, 8, 8)), np.zeros(SHAPE, bool))) == []
    assert len(deliver(open_core, wire.Done(id=prompt, segment="a", revision=1))) == 1
    assert open_core.segments == {}


def test_requests_of_a_previous_image_are_not_sent_again(open_core: Core) -> None:
    prompt = open_core.add_point("a", (1, 2, 3))
    new = open_core.set_image(ImageSource.of(np.arange(1000, dtype=np.int16).reshape(10, 10, 10)))
    open_core.start()
    sent(open_core)
    _, failed = deliver(open_core, WELCOME)
    assert isinstance(failed, events.Failed)
    assert (failed.request, type(failed.error)) == (prompt, errors.Cancelled)
    assert [type(m) for m in sent(open_core)] == [wire.SetImage]
    assert open_core.pending_requests == [new]


def test_a_failed_snapshot_is_requested_again(open_core: Core) -> None:
    number = open_core.add_point("a", (1, 2, 3))
    sent(open_core)
    box, mask = Box((0, 0, 0), (2, 2, 2)), np.zeros(SHAPE, bool)
    assert deliver(open_core, delta(number, 7, box, mask)) == []
    (asked,) = sent(open_core)
    assert isinstance(asked, wire.GetMask)
    assert deliver(open_core, delta(number, 8, Box((2, 2, 2), (3, 3, 3)), mask)) == []
    assert sent(open_core) == [], "one snapshot is enough"
    assert deliver(open_core, wire.ErrorMessage(code="cancelled", message="so", id=asked.id)) == []
    assert deliver(open_core, delta(number, 9, Box((3, 3, 3), (4, 4, 4)), mask)) == []
    (asked,) = sent(open_core)
    found = masks.pack(masks.to_delta(mask), "raw")
    (healed,) = deliver(
        open_core, wire.MaskSnapshot(segment="a", request=asked.id, revision=10, mask=found, voxels=int(mask.sum()))
    )
    assert isinstance(healed, events.MaskDelta)
    assert (healed.request, healed.revision, healed.voxels) == (None, 10, 10)
    assert np.array_equal(open_core.segments["a"].mask, mask)
    assert deliver(open_core, wire.Done(id=asked.id, segment="a", revision=10)) == []
    assert open_core.pending_requests == [number]


def test_ids_are_kept_when_requests_are_sent_again(open_core: Core) -> None:
    point, undo = open_core.add_point("a", (1, 2, 3)), open_core.undo("b")
    open_core.start()
    sent(open_core)
    deliver(open_core, WELCOME)
    announced, again, undone = sent(open_core)
    assert isinstance(announced, wire.SetImage)
    assert isinstance(again, wire.AddPoint)
    assert isinstance(undone, wire.Undo)
    assert undone.id > again.id > announced.id > undo > point
    assert open_core.pending_requests == [point, undo]
    (done,) = deliver(open_core, wire.Done(id=again.id, segment="a"))
    assert isinstance(done, events.Done)
    assert done.result.request == point
    open_core.cancel(undo)
    assert sent(open_core) == [wire.Cancel(request=undone.id)]


def test_cancel(open_core: Core) -> None:
    a, b = open_core.add_point("a", (1, 2, 3)), open_core.add_point("b", (1, 2, 3))
    sent(open_core)
    open_core.cancel()
    assert sent(open_core) == [wire.Cancel(request=a), wire.Cancel(request=b)]
    open_core.cancel(b)
    assert sent(open_core) == [wire.Cancel(request=b)]
    open_core.cancel(99)
    assert sent(open_core) == []
    open_core.bye()
    assert sent(open_core) == [wire.Bye()]


def test_invalid_requests_are_refused(open_core: Core) -> None:
    out, empty = errors.OutOfBounds, errors.UnsupportedPrompt
    i, _, k = SHAPE
    cases: list[tuple[type[errors.Error], Callable[[], int]]] = [
        (out, lambda: open_core.add_point("a", (i, 0, 0))),
        (out, lambda: open_core.add_point("a", (0, -1, 0))),
        (out, lambda: open_core.add_point("a", (0, 0, float(k) - 0.4))),
        (out, lambda: open_core.add_point("a", (0, float("nan"), 0))),
        (out, lambda: open_core.add_point("a", (0, float("inf"), 0))),
        (out, lambda: open_core.add_point("a", (1, 2))),
        (out, lambda: open_core.add_bbox("a", ((0, 1), (0, 1), (3, 3)))),
        (out, lambda: open_core.add_bbox("a", ((0, 1), (0, 1), (0, k + 1)))),
        (out, lambda: open_core.add_bbox("a", ((0, 1), (0, 1)))),
        (out, lambda: open_core.add_bbox("a", Box((-1, 0, 0), (1, 1, 1)))),
        (out, lambda: open_core.add_scribble("a", np.ones((2, 2, 2), bool))),
        (out, lambda: open_core.add_lasso("a", np.ones(SHAPE, bool), box=((0, 2), (0, 2), (0, 2)))),
        (out, lambda: open_core.set_mask("a", np.ones((1, 1, 1)), box=((0, 1), (0, 1), (k, k + 1)))),
        (empty, lambda: open_core.add_scribble("a", np.zeros(SHAPE, bool))),
        (empty, lambda: open_core.add_lasso("a", np.zeros((2, 2, 2)), box=((0, 2), (0, 2), (0, 2)))),
    ]
    for expected, command in cases:
        with pytest.raises(expected):
            command()
    assert sent(open_core) == []
    assert open_core.pending_requests == []


def test_only_the_bounding_box_of_a_mask_is_sent(open_core: Core) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[10:14, 20, 30:33] = 7
    open_core.add_scribble("a", drawn)
    open_core.add_lasso("a", drawn[8:20, 20:21, 29:40], box=((8, 20), (20, 21), (29, 40)))
    open_core.set_mask("a", drawn)
    for message in sent(open_core):
        assert message.mask.box == ((10, 14), (20, 21), (30, 33))
        assert masks.unpack(message.mask, SHAPE).voxels == 12
    open_core.flip_mask("a", drawn[8:20, 20:21, 29:40], box=((8, 20), (20, 21), (29, 40)))
    (flipped,) = sent(open_core)
    assert flipped.flip
    assert flipped.mask.box == ((10, 14), (20, 21), (30, 33))
    open_core.set_mask("a", np.zeros(SHAPE, bool))
    (emptied,) = sent(open_core)
    assert isinstance(emptied, wire.SetMask)
    assert masks.unpack(emptied.mask, SHAPE).voxels == 0


def test_a_point_of_floats_is_rounded(open_core: Core) -> None:
    open_core.add_point("a", np.array([1.6, 2.4, 71.4], np.float32))
    (message,) = sent(open_core)
    assert message.point == (2, 2, 71)


def test_segments_are_created_once(open_core: Core) -> None:
    assert open_core.segment("a") is open_core.segment("a")
    assert isinstance(open_core.segment("a"), Segment)
    assert Core().segments == {}
    with pytest.raises(errors.NoImage):
        Core().segment("a")
