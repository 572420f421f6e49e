"""Resume and restore: the client's core and the engine's real session over a link that breaks."""

from collections.abc import Callable
import dataclasses
import math
import tracemalloc
from typing import Any
import zlib

from helpers.core_link import WELCOME, Link, Lost, MemoryServer, deliver
from helpers.core_script import SCRIPT, SHAPE, SHORT_SCRIPT, Snapshot, check_journal, lasso, sent, snapshot
from helpers.shapes import ball
import msgspec
import numpy as np
import pytest

from nninteractive_ws import errors, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.journal import Journal, load
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.engine.prediction import Prediction
from nninteractive_ws.geometry import Box, Index


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return ImageSource.of(make_phantom(5, SHAPE, (3.5, 3.5, 3.5)).image)


@pytest.fixture
def server(quick_model: Any, device: Any) -> MemoryServer:
    return MemoryServer(quick_model, device)


@pytest.fixture
def link(server: MemoryServer, source: ImageSource) -> Link:
    """A connection with the image on the server."""
    core = Core()
    core.start()
    link = Link(core, server)
    core.set_image(source)
    link.settle()
    return link


def reconnect(link: Link, frames: float = float("inf")) -> Link:
    link.server.disconnect()
    link.core.start()
    return Link(link.core, link.server, frames)


def welcomes(link: Link) -> list[wire.Welcome]:
    return [e.welcome for e in link.happened if isinstance(e, events.Connection) and e.welcome is not None]


# ---- resuming a session -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(quick_model: Any, device: Any, source: ImageSource) -> list[Snapshot]:
    """The journal after each command of the short script."""
    core = Core()
    link = Link(core, MemoryServer(quick_model, device))
    core.start()
    core.set_image(source)
    link.settle()
    states = [snapshot(core)]
    for command in SHORT_SCRIPT:
        command(core)
        link.settle()
        states.append(snapshot(core))
    return states


@pytest.mark.parametrize(
    ("together", "away"),
    [
        pytest.param(False, 0, marks=pytest.mark.slow),
        (False, 1),
        pytest.param(False, 9, marks=pytest.mark.slow),
        pytest.param(True, 0, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
        (True, 9),
    ],
)
def test_a_session_is_resumed_at_any_moment(
    undisturbed: list[Snapshot], server: MemoryServer, source: ImageSource, together: bool, away: int
) -> None:
    """Cut after every few frames. No change is lost, applied twice, or attributed to another step.

    Requests are sent one by one or all together. ``away`` of them run while the client has no connection.
    """
    states = undisturbed
    core = Core()
    core.start()
    link = Link(core, server, frames=3)
    rng = np.random.default_rng(away)
    cuts = 0

    def settle() -> None:
        nonlocal link, cuts
        while True:
            try:
                link.settle()
                return
            except Lost:
                for _ in range(away):
                    if server.can_work:
                        server.work()
                cuts += 1
                # Increasing, because a connection must last for at least one request with its previews.
                link = reconnect(link, int(rng.integers(1, 6)) + cuts)

    core.set_image(source)
    answered = []
    for command, state in zip(SHORT_SCRIPT, states[1:], strict=True):
        answered.append(command(core))
        if not together:
            settle()
            assert snapshot(core) == state
    settle()
    assert snapshot(core) == states[-1]
    assert core.pending_requests == []
    check_journal(core, server)
    assert server.sessions == 1, "the session was lost"
    assert cuts >= 8


def test_known_data_is_not_sent_again(link: Link) -> None:
    core, server = link.core, link.server
    core.add_point("a", (30, 40, 36))
    link.settle()
    sent_bricks = list(server.bricks)
    assert len(sent_bricks) == len(set(sent_bricks))
    again = reconnect(link)
    hello = protocol.decode_client(core.next_control() or b"")
    assert isinstance(hello, wire.Hello)
    assert hello.session_id is not None
    core.start()
    again.settle()
    (welcome,) = welcomes(again)
    assert welcome.resumed
    assert welcome.revisions == {"a": core.segments["a"].revision}
    assert server.bricks == sent_bricks
    total = len(sent_bricks)
    assert again.happened == [events.Connection("open", welcome), events.ImageProgress(total, total)]
    check_journal(core, server)


def test_an_interrupted_upload_continues(server: MemoryServer, source: ImageSource) -> None:
    core = Core()
    core.start()
    core.set_image(source)
    link = Link(core, server, frames=4)  # welcome, present bricks, done, and an acknowledgment
    with pytest.raises(Lost):
        link.settle()
    assert 0 < len(server.bricks) < len(source.grid)
    there = set(server.bricks)
    reconnect(link).settle()
    assert sorted(server.bricks) == list(range(len(source.grid))), "a brick was sent twice, or not at all"
    assert there


def test_requests_without_a_connection_are_queued(link: Link) -> None:
    core, server = link.core, link.server
    server.disconnect()
    core.welcome = None  # as in a driver without a connection, see start()
    core.start()
    numbers = [core.add_point("a", (30, 40, 36)), core.add_point("b", (60, 40, 36)), core.undo("b")]
    core.cancel(numbers[1])
    again = Link(core, server)
    happened = again.settle()
    done = [e.result.request for e in happened if isinstance(e, events.Done)]
    failed = [(e.request, e.error.code) for e in happened if isinstance(e, events.Failed)]
    assert done == [numbers[0]]
    assert failed == [(numbers[1], "cancelled"), (numbers[2], "unknown_segment")]


def test_a_pending_snapshot_is_requested_again(link: Link) -> None:
    core, server = link.core, link.server
    core.add_point("a", (30, 40, 36))
    link.settle()
    before = core.segments["a"].mask.copy()

    def corrupt(frame: bytes) -> bytes:
        message = protocol.decode_server(frame)
        if isinstance(message, wire.MaskSnapshot):
            raise Lost
        spoiled = isinstance(message, wire.MaskDelta)
        return protocol.encode(msgspec.structs.replace(message, checksum=1)) if spoiled else frame  # type: ignore[type-var]

    core.add_point("a", (32, 40, 36))
    link.change_frame = corrupt
    with pytest.raises(Lost):
        link.settle()
    again = reconnect(link)
    assert np.array_equal(core.segments["a"].mask, before), "what cannot be trusted is shown"
    again.settle()
    check_journal(core, server)


def test_dropped_deltas_are_replaced_by_a_snapshot(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nninteractive_ws.engine.outbox.BYTES_KEPT", 0)
    core, server = link.core, link.server
    core.add_point("a", (30, 40, 36))
    core.add_lasso("a", lasso())
    link.frames = 1
    with pytest.raises(Lost):
        link.settle()
    while server.work():
        pass
    again = reconnect(link)
    again.settle()
    assert any(isinstance(e, events.MaskDelta) and e.request is None for e in again.happened), "no snapshot came"
    kinds = [type(e) for e in again.happened]
    assert kinds.index(events.Done) > kinds.index(events.MaskDelta), "told before the mask is right"
    assert np.array_equal(core.segments["a"].mask, server.session._segments["a"].mask)
    for undo in range(2):
        core.undo("a")
        again.settle()
        assert len(core.segments["a"].steps) == 1 - undo
        check_journal(core, server)


def test_a_diverged_segment_is_restored(link: Link) -> None:
    core, server = link.core, link.server
    for name in ("a", "b", "c"):
        core.set_mask(name, ball(SHAPE, (40, 40, 36), 8))
    link.settle()
    del server.session._segments["b"]
    server.session._segments["c"].revision += 1
    again = reconnect(link)
    again.settle()
    check_journal(core, server)
    assert server.sessions == 1


# ---- a client that reads slowly ---------------------------------------------------------------------------


def test_pending_changes_are_composed(link: Link) -> None:
    core, server = link.core, link.server
    core.add_lasso("a", lasso())
    fast = [e for e in link.settle() if isinstance(e, events.MaskDelta)]
    core.undo("a")
    link.settle()
    server.slow = True
    core.add_lasso("a", lasso())
    while link._up() or server.work():
        pass
    assert not server.outgoing
    server.flush()
    waited = [protocol.decode_server(frame) for frame in server.outgoing]
    deltas = [m for m in waited if isinstance(m, wire.MaskDelta)]
    assert len(fast) > 2
    assert len(deltas) == 1, "previews that waited were not composed"
    assert deltas[0].revision - deltas[0].base_revision > 1
    assert len([m for m in waited if isinstance(m, wire.Progress)]) == 1
    server.slow = False
    link.settle()
    check_journal(core, server)


def test_changes_that_cancel_out_are_not_sent(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsent previews of a cancelled request."""
    core, server = link.core, link.server
    core.set_mask("a", ball(SHAPE, (40, 40, 36), 8))
    link.settle()
    before = core.segments["a"].mask.copy()
    server.slow = True
    number = core.add_lasso("a", lasso())
    link._up()
    on_refined = Prediction.on_refined

    def cancel_then(*args: Any) -> None:
        on_refined(*args)
        server.session.cancel(wire.Cancel(), 10**6)

    monkeypatch.setattr(Prediction, "on_refined", cancel_then)
    assert server.work()
    server.flush()
    kinds = {type(protocol.decode_server(frame)) for frame in server.outgoing}
    assert kinds == {wire.Progress, wire.ErrorMessage}
    server.slow = False
    monkeypatch.undo()
    happened = link.settle()
    assert [(e.request, e.error.code) for e in happened if isinstance(e, events.Failed)] == [(number, "cancelled")]
    assert np.array_equal(core.segments["a"].mask, before)
    check_journal(core, server)
    core.add_point("a", (40, 40, 36))
    link.settle()
    check_journal(core, server)


# ---- restoring a lost session -----------------------------------------------------------------------------


def test_an_evicted_session_is_restored_with_the_next_request(link: Link) -> None:
    core, server = link.core, link.server
    for command in SCRIPT[:4]:
        command(core)
    link.settle()
    before = snapshot(core)
    assert server.queue.close_if_idle(0)
    assert not core.is_dormant
    assert core.receive(protocol.encode(wire.Notice(code="evicted", message="so"))) == [events.Notice("evicted", "so")]
    assert core.is_dormant
    server.forget()
    server.disconnect()
    number = core.add_point("a", (34, 40, 36))
    assert not core.is_dormant
    core.start()
    again = Link(core, server)
    happened = again.settle()
    assert [e.result.request for e in happened if isinstance(e, events.Done)] == [number]
    assert not welcomes(again)[0].resumed
    check_journal(core, server)
    core.undo("a")
    again.settle()
    assert snapshot(core)["b"] == before["b"]
    assert core.segments["a"].voxels == before["a"][1]


def test_a_busy_session_is_not_evicted(link: Link) -> None:
    link.core.add_point("a", (30, 40, 36))
    link._up()
    assert not link.server.queue.close_if_idle(0)
    link.settle()
    check_journal(link.core, link.server)
    assert link.server.queue.close_if_idle(0)
    assert not link.server.queue.close_if_idle(0), "it is closed already"
    assert link.server.session._image is None


def test_a_request_that_may_kill_the_worker_is_not_retried(source: ImageSource) -> None:
    core = Core()
    core.start()
    deliver(core, WELCOME)
    image, first, second = core.set_image(source), core.add_point("a", (1, 2, 3)), core.add_point("a", (3, 2, 1))
    deliver(core, wire.Done(id=image))
    lost = wire.ErrorMessage(code="worker_lost", message="gone")
    given_up: list[events.Failed] = []
    for _ in range(2):
        assert deliver(core, lost) == []
        assert isinstance(core.ended, errors.WorkerLost)
        core.start()
        happened = deliver(core, WELCOME)
        given_up += [e for e in happened if isinstance(e, events.Failed)]
        # The image is announced again first, and answered.
        restored = [m for m in sent(core) if isinstance(m, wire.SetImage)][-1]
        deliver(core, wire.Done(id=restored.id))
    assert [(e.request, type(e.error)) for e in given_up] == [(first, errors.WorkerLost)]
    assert "2 times" in str(given_up[0].error)
    assert core.pending_requests == [second]


def test_an_image_refused_by_the_next_server_is_kept(link: Link) -> None:
    core = link.core
    core.add_point("a", (30, 40, 36))
    link.settle()
    before = snapshot(core)
    core.start()
    deliver(core, WELCOME)
    announced = [m for m in sent(core) if isinstance(m, wire.SetImage)][-1]
    assert deliver(core, wire.ErrorMessage(code="out_of_memory", message="no room", id=announced.id)) == []
    assert isinstance(core.ended, errors.OutOfMemory)
    assert snapshot(core) == before
    core.start()
    hello = sent(core)[0]
    assert isinstance(hello, wire.Hello)
    assert hello.session_id is None, "a session without its image is of no use"


@pytest.mark.slow
def test_a_mask_is_restored_without_its_invalid_history(link: Link) -> None:
    """As on a server whose model does not support the prompts."""
    core, server = link.core, link.server
    core.add_point("a", (30, 40, 36))
    core.add_scribble("a", ball(SHAPE, (34, 40, 36), 3))
    core.undo("a")
    core.add_point("b", (60, 40, 36))
    link.settle()
    masks = {name: segment.mask.copy() for name, segment in core.segments.items()}
    server.forget()
    prompts = [kind for kind in server.session._model.description.prompts if kind != "scribble"]
    description = msgspec.structs.replace(server.session._model.description, prompts=prompts)
    server.session._model = dataclasses.replace(server.session._model, description=description)
    server.disconnect()
    core.start()
    again = Link(core, server)
    happened = again.settle()
    (warning,) = [e for e in happened if isinstance(e, events.Notice)]
    assert warning.code == "warning"
    assert '"a"' in warning.message
    assert [type(s.request) for s in core.segments["a"].steps] == [wire.SetMask]
    assert [type(s.request) for s in core.segments["b"].steps] == [wire.AddPoint]
    assert all(np.array_equal(core.segments[name].mask, mask) for name, mask in masks.items())
    check_journal(core, server)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["out_of_memory", "at_capacity", "too_large"])
def test_a_mask_is_restored_without_its_oversized_history(link: Link, code: str) -> None:
    core = link.core
    core.add_point("a", (30, 40, 36))
    core.add_point("a", (34, 40, 36))
    link.settle()
    mask = core.segments["a"].mask.copy()
    core.start()
    deliver(core, WELCOME)
    first = [m for m in sent(core) if isinstance(m, wire.Restore)][-1]
    assert len(first.steps) == 2
    happened = deliver(core, wire.ErrorMessage(code=code, message="too much", id=first.id))
    assert [e.code for e in happened if isinstance(e, events.Notice)] == ["warning"]
    (second,) = [m for m in sent(core) if isinstance(m, wire.Restore)]
    assert [type(s.request) for s in second.steps] == [wire.SetMask]
    assert np.array_equal(core.segments["a"].mask, mask)
    assert deliver(core, wire.ErrorMessage(code=code, message="too much", id=second.id)) == []
    assert core.ended is not None
    assert core.ended.code == code, "there is nothing less to send"


def test_a_history_over_the_message_limit_is_not_sent(link: Link) -> None:
    core = link.core
    core.add_point("a", (30, 40, 36))
    core.add_point("a", (34, 40, 36))
    link.settle()
    core.start()
    limits = msgspec.structs.replace(WELCOME.limits, message_bytes=2000)
    happened = deliver(core, msgspec.structs.replace(WELCOME, limits=limits))
    (restore,) = [m for m in sent(core) if isinstance(m, wire.Restore)]
    assert [type(s.request) for s in restore.steps] == [wire.SetMask]
    assert any(isinstance(e, events.Notice) and "2,000" in e.message for e in happened)


# ---- the journal as a file --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_journal_is_restored(
    link: Link, new_server: Callable[[], MemoryServer], source: ImageSource, tmp_path: Any
) -> None:
    for command in SCRIPT[:12]:
        command(link.core)
        link.settle()
    path = tmp_path / "work.journal"
    link.core.journal().save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["work.journal"]
    kept = load(path)
    assert (kept.image, kept.shape) == (source.name, SHAPE)
    assert {n: m.tobytes() for n, m in kept.masks.items()} == {
        n: s.mask.tobytes() for n, s in link.core.segments.items()
    }
    core = Core()
    core.start()
    other = Link(core, new_server())
    number = core.set_image(source, kept)
    happened = other.settle()
    assert [e.result.request for e in happened if isinstance(e, events.Done)] == [number]
    assert snapshot(core) == snapshot(link.core)
    check_journal(core, other.server)
    for command in (*SCRIPT[12:], *[lambda c: c.undo("a")] * 3, lambda c: c.redo("a")):
        for side in (link, other):
            command(side.core)
            side.settle()
        assert snapshot(core) == snapshot(link.core)


@pytest.fixture
def new_server(quick_model: Any, device: Any) -> Callable[[], MemoryServer]:
    return lambda: MemoryServer(quick_model, device)


def test_a_journal_of_another_image_is_refused(link: Link) -> None:
    link.core.add_point("a", (30, 40, 36))
    link.settle()
    before = snapshot(link.core)
    other = ImageSource.of(np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    with pytest.raises(errors.BadImage, match="another image"):
        link.core.set_image(other, link.core.journal())
    assert snapshot(link.core) == before
    with pytest.raises(errors.NoImage):
        Core().journal()


def test_a_damaged_journal_is_refused(link: Link) -> None:
    link.core.add_point("a", (30, 40, 36))
    link.settle()
    data = link.core.journal().to_bytes()
    assert Journal.from_bytes(data).masks["a"].any()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data[: rng.integers(1, len(data))] if rng.random() < 0.3 else data)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(256)
        try:
            Journal.from_bytes(bytes(damaged))
        except errors.BadJournal:
            refused += 1
    assert refused > 150
    newer = msgspec.msgpack.encode({**msgspec.msgpack.decode(data), "version": 2})
    with pytest.raises(errors.BadJournal, match="version 2"):
        Journal.from_bytes(newer)


def bomb(shape: Index, data: bytes, runs: int, count: int = 1) -> bytes:
    """Return a journal of a segment with ``count`` steps that each change all voxels."""
    change = wire.RunLengthMask(box=Box.whole(shape).pairs, runs=runs, encoding="deflate", data=data)
    step = {"request": wire.AddPoint(id=1, segment="a", point=(1, 1, 1)), "change": change}
    segment = {"name": "a", "revision": 1, "steps": [step] * count, "undone": []}
    return msgspec.msgpack.encode(
        {"format": "nninteractive-ws journal", "version": 1, "image": "x", "shape": shape, "segments": [segment]}
    )


def two_runs(shape: Index) -> bytes:
    return zlib.compress(np.array([0, math.prod(shape)], "<u4").tobytes())


@pytest.mark.parametrize(
    ("shape", "accepted"), [((1024, 1024, 1024), True), ((1024, 1024, 2600), False), ((2**31 - 1,) * 3, False)]
)
def test_a_small_journal_of_a_huge_mask_takes_no_memory(shape: Index, accepted: bool) -> None:
    data = bomb(shape, two_runs(shape) if accepted else b"", 2)
    assert len(data) < 400
    tracemalloc.start()
    try:
        if accepted:
            assert Journal.from_bytes(data).shape == shape
        else:
            with pytest.raises(errors.BadJournal, match="too large"):
                Journal.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_journal_with_too_many_steps_or_segments_is_refused() -> None:
    shape = (8, 8, 8)
    assert Journal.from_bytes(bomb(shape, two_runs(shape), 2, count=wire.MAX_STEPS)).masks["a"].sum() == 0
    with pytest.raises(errors.BadJournal):
        Journal.from_bytes(bomb(shape, two_runs(shape), 2, count=wire.MAX_STEPS + 1))
    journal = msgspec.msgpack.decode(bomb(shape, two_runs(shape), 2))
    journal["segments"] *= wire.MAX_SEGMENTS + 1
    with pytest.raises(errors.BadJournal):
        Journal.from_bytes(msgspec.msgpack.encode(journal))


def test_a_journal_whose_runs_do_not_fit_is_refused() -> None:
    shape = (64, 64, 64)
    for data, runs in ((two_runs((64, 64, 65)), 2), (two_runs(shape), 3), (zlib.compress(bytes(2**22)), 2**20)):
        with pytest.raises(errors.BadJournal):
            Journal.from_bytes(bomb(shape, data, runs))
