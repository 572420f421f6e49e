"""Messages that wait for a client: in order, composed, bounded, and replayed after a reconnect."""

import numpy as np
import pytest

from nninteractive_ws import masks, protocol
from nninteractive_ws import messages as wire
from nninteractive_ws.engine import outbox as module
from nninteractive_ws.engine.outbox import Outbox
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import Delta


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(lambda: None)


def drain(outbox: Outbox) -> list[wire.Message]:
    taken = []
    while (frame := outbox.take()) is not None:
        message = protocol.decode_server(frame)
        assert message is not None
        taken.append(message)
    assert outbox.empty
    return taken


def change(at: int) -> Delta:
    return Delta(Box((at, 0, 0), (at + 1, 1, 1)), np.ones((1, 1, 1), bool))


def put_change(outbox: Outbox, request: int, base: int, delta: Delta, segment: str = "a") -> wire.MaskDelta:
    message = wire.MaskDelta(
        segment=segment, request=request, base_revision=base, revision=base + 1, change=masks.pack(delta, "raw"),
        checksum=0, voxels=0, final=False,
    )  # fmt: skip
    outbox.put_change(message)
    return message


def progress(request: int, n: int = 0) -> wire.Progress:
    return wire.Progress(id=request, state="refining", done=n)


def test_messages_are_sent_in_order(outbox: Outbox) -> None:
    outbox.open(1)
    outbox.begin(1)
    outbox.put(progress(1))
    delta = put_change(outbox, 1, 0, change(0))
    outbox.put(wire.Done(id=1))
    assert drain(outbox) == [progress(1), delta, wire.Done(id=1)]


def test_each_message_wakes_the_sender(outbox: Outbox) -> None:
    woken = []
    outbox = Outbox(lambda: woken.append(1))
    outbox.open(1)
    outbox.begin(1)
    outbox.put(progress(1))
    put_change(outbox, 1, 0, change(0))
    outbox.put(wire.Done(id=1))
    outbox.put_unsolicited(wire.Notice(code="warning", message=""))
    assert len(woken) == 4


def test_a_repeated_request_gets_its_answer_again(outbox: Outbox) -> None:
    outbox.open(1)
    assert outbox.replay(1)
    assert drain(outbox) == []
    outbox.begin(1)
    put_change(outbox, 1, 0, change(0))
    outbox.put(wire.Done(id=1))
    drain(outbox)
    assert outbox.replay(1)
    assert drain(outbox) == [wire.Done(id=1)]
    assert not outbox.replay(2)


def test_messages_are_replayed_on_a_new_connection_when_requested(outbox: Outbox) -> None:
    for request in (1, 2):
        outbox.open(request)
    outbox.begin(1)
    outbox.put(progress(1))
    first = put_change(outbox, 1, 0, change(0))
    drain(outbox)
    outbox.disconnect()
    second = put_change(outbox, 1, 1, change(1))
    outbox.put(wire.Done(id=1))
    outbox.begin(2)
    third = put_change(outbox, 2, 2, change(2))
    assert drain(outbox) == [], "said without being asked"
    assert outbox.replay(1)
    assert drain(outbox) == [first, second, wire.Done(id=1)]
    outbox.put(progress(2))
    assert drain(outbox) == []
    assert outbox.replay(2)
    outbox.put(wire.Done(id=2))
    assert drain(outbox) == [third, wire.Done(id=2)]


def test_a_change_can_be_withdrawn_until_it_is_sent(outbox: Outbox) -> None:
    outbox.open(1)
    outbox.begin(1)
    assert outbox.withdraw_change("a") is None
    put_change(outbox, 1, 5, change(0))
    assert outbox.withdraw_change("b") is None, "that of another segment"
    assert outbox.withdraw_change("a") == (5, masks.pack(change(0), "raw"))
    assert outbox.withdraw_change("a") is None
    assert drain(outbox) == []
    put_change(outbox, 1, 5, change(0))
    outbox.take()
    assert outbox.withdraw_change("a") is None, "it was sent"
    put_change(outbox, 1, 6, change(1))
    outbox.put(wire.Done(id=1))
    assert outbox.withdraw_change("a") is None, "the request was answered"
    outbox.open(2)
    outbox.begin(2)
    assert outbox.withdraw_change("a") is None, "it belongs to another request"


def test_a_withdrawn_change_is_not_replayed(outbox: Outbox) -> None:
    outbox.open(1)
    outbox.begin(1)
    outbox.disconnect()
    put_change(outbox, 1, 0, change(0))
    assert outbox.withdraw_change("a") is not None
    both = put_change(outbox, 1, 0, change(1))
    outbox.replay(1)
    assert drain(outbox) == [both]


def test_only_the_latest_progress_is_kept(outbox: Outbox) -> None:
    outbox.open(1)
    outbox.begin(1)
    outbox.put(progress(1, 1))
    delta = put_change(outbox, 1, 0, change(0))
    outbox.put(progress(1, 2))
    assert drain(outbox) == [progress(1, 2), delta]
    outbox.put(progress(1, 3))
    assert drain(outbox) == [progress(1, 3)]


def test_acknowledgements_of_bricks_are_merged(outbox: Outbox) -> None:
    def arrived(image: str, received: list[int], present: int) -> wire.ImageProgress:
        return wire.ImageProgress(image=image, received=received, present=present, total=9)

    outbox.put_unsolicited(arrived("x", [1], 1))
    outbox.put_unsolicited(arrived("x", [3, 1], 2))
    outbox.put_unsolicited(arrived("y", [2], 1))
    assert drain(outbox) == [arrived("x", [1, 3], 2), arrived("y", [2], 1)]


def test_acknowledgements_of_base_layers_are_merged(outbox: Outbox) -> None:
    def arrived(received: list[int], base: list[int], present: int) -> wire.ImageProgress:
        return wire.ImageProgress(image="x", received=received, received_base=base, present=present, total=9)

    outbox.put_unsolicited(arrived([], [1, 2], 0))
    outbox.put_unsolicited(arrived([1], [3], 1))
    assert drain(outbox) == [arrived([1], [2, 3], 1)]


def test_no_acknowledgement_is_merged_into_one_before_an_announcement(outbox: Outbox) -> None:
    def arrived(received: list[int], present: int) -> wire.ImageProgress:
        return wire.ImageProgress(image="x", received=received, present=present, total=9)

    outbox.put_unsolicited(arrived([1, 2], 2))
    outbox.open(1)
    outbox.begin(1)
    outbox.put(arrived([], 0))  # of a new image with the old name
    outbox.put_unsolicited(arrived([5], 1))
    assert drain(outbox) == [arrived([1, 2], 2), arrived([], 0), arrived([5], 1)]


def test_only_the_last_of_many_acknowledgements_is_kept_as_a_message(outbox: Outbox) -> None:
    for n in range(20):
        bricks = list(range(300 * n, 300 * (n + 1)))
        outbox.put_unsolicited(wire.ImageProgress(image="x", received=bricks, present=300 * (n + 1), total=6000))
    assert len(outbox._queue) == 2
    assert sum(frame.pending is not None for frame in outbox._queue) == 1


def test_a_client_that_does_not_read_fills_the_outbox(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL_BYTES", 1000)
    error = wire.ErrorMessage(code="bad_message", message="x" * 600)
    outbox.put_unsolicited(error)
    assert not outbox.full
    outbox.put_unsolicited(error)
    assert outbox.full
    outbox.take()
    assert not outbox.full
    outbox.put_unsolicited(error)
    outbox.disconnect()
    assert not outbox.full
    monkeypatch.setattr(module, "FULL_FRAMES", 3)
    for _ in range(4):
        assert not outbox.full
        outbox.put_unsolicited(wire.Notice(code="warning", message=""))
    assert outbox.full


def test_old_answers_lose_their_deltas_and_are_then_dropped(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERS_KEPT", 5)
    monkeypatch.setattr(module, "BYTES_KEPT", 1000)
    size = len(protocol.encode(put_change(_begun(1), 1, 0, change(0))))
    for request in range(1, 9):
        outbox.open(request)
        outbox.begin(request)
        for n in range(-(-300 // size)):
            put_change(outbox, request, n, change(n))
            outbox.take()
        outbox.put(wire.Done(id=request))
    drain(outbox)
    outbox.disconnect()
    assert [outbox.replay(n) for n in (1, 2, 3, 4)] == [False, False, False, True]
    assert drain(outbox) == [wire.Done(id=4)]
    outbox.replay(8)
    assert len(drain(outbox)) == 1 + -(-300 // size)


def test_unanswered_requests_are_never_dropped(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERS_KEPT", 3)
    for request in range(1, 9):
        outbox.open(request)
    assert all(outbox.replay(request) for request in range(1, 9))


def _begun(request: int) -> Outbox:
    outbox = Outbox(lambda: None)
    outbox.open(request)
    outbox.begin(request)
    return outbox
