"""The running request of a session: its timings, and its cancellation at every stage."""

from concurrent.futures import ThreadPoolExecutor
import threading
import time
from typing import Any

from helpers.engine import Client, Hooked, run, undo, with_network
from helpers.session_prompts import LONG, POINTS, SHAPE, WAITING, WHOLE
import numpy as np
import pytest

from nninteractive_ws import bricks
from nninteractive_ws.engine.device_scheduler import SchedulerSlot
from nninteractive_ws.errors import Cancelled, UnknownSegment
from nninteractive_ws.messages import Cancel, Progress


def test_timings_break_down_a_request(client):
    timings = client.send(LONG).timings
    assert timings.passes > 1
    assert 0 < timings.network < timings.total
    assert timings.waiting_for_image == 0
    assert timings.queued >= 0


@pytest.mark.slow
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
    with pytest.raises(UnknownSegment):
        hooked_client.send(undo())
    twin = make_client()
    for request in (LONG, POINTS[0]):
        assert np.array_equal(hooked_client.mask_after(request), twin.mask_after(request))


def test_cancelling_while_waiting_for_bricks(quick_model, device, volume, make_client):
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


def test_cancelling_while_waiting_for_the_device(quick_model, device, volume, make_client):
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


def test_cancelling_a_queued_request(client):
    client.session.cancel(Cancel(request=client.last_id + 1), client.last_id + 1)
    with pytest.raises(Cancelled):
        client.send(POINTS[0])
    client.session.cancel(Cancel(), client.last_id + 2)
    for request in POINTS[:2]:
        with pytest.raises(Cancelled):
            client.send(request)
    assert client.send(POINTS[2]).timings.passes > 0


def test_cancelling_a_finished_request_changes_nothing(client):
    client.send(POINTS[0])
    before = client.mask()
    for request in (client.last_id, None):
        client.session.cancel(Cancel(request=request), client.last_id)
    assert np.array_equal(client.snapshot(), before)
    client.send(POINTS[1])
    assert client.session._cancelled == set(), "ids that are done with are kept for ever"


def test_cancelling_a_request_does_not_affect_the_next(hooked_client, device, monkeypatch):
    """A late cancellation must not drop the pass of the next request."""
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
        threads.submit(device.run, SchedulerSlot(lambda n: None), lambda: busy.set() or gate.wait())
        assert busy.wait(10)
        following = threads.submit(hooked_client.send, POINTS[2])
        while not device._waiting:
            time.sleep(0.001)
        next_one_waits.set()
        time.sleep(0.1)
        gate.set()
        assert following.result(30).timings.passes > 0
