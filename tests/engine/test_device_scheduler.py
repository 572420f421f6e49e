"""The thread that owns the device: order of service, and the notices for waiting sessions."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import gc
import threading
import time
import weakref

import pytest

from nninteractive_ws.engine.device_scheduler import DeviceScheduler, SchedulerSlot
from nninteractive_ws.errors import Cancelled


class Bench:
    """A device thread that is busy until :meth:`open`, and callers that queue behind it."""

    def __init__(self) -> None:
        self.thread = DeviceScheduler("test")
        self.served: list[str] = []
        self._gate, began = threading.Event(), threading.Event()
        self._callers = ThreadPoolExecutor(16)
        self._callers.submit(self.thread.run, slot(), lambda: began.set() or self._gate.wait())
        began.wait()

    def queue(self, slot: SchedulerSlot, name: str, *, refines: bool = False) -> Future[None]:
        ahead = len(self.thread._waiting)
        future = self._callers.submit(self.thread.run, slot, lambda: self.served.append(name), refines=refines)
        self.wait_until(lambda: len(self.thread._waiting) == ahead + 1)
        return future

    def open(self) -> None:
        """Let the thread serve the waiting callers, and return when all are served."""
        self._gate.set()
        self._callers.shutdown()

    @staticmethod
    def wait_until(condition: Callable[[], bool]) -> None:
        while not condition():
            time.sleep(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.open()
    made.thread.close()


@pytest.fixture
def thread() -> Iterator[DeviceScheduler]:
    made = DeviceScheduler("test")
    yield made
    made.close()


def slot() -> SchedulerSlot:
    return SchedulerSlot(lambda n: None)


def test_everything_runs_on_one_persistent_thread(thread):
    with ThreadPoolExecutor(4) as callers:
        idents = list(callers.map(lambda _: thread.run(slot(), threading.get_ident), range(20)))
    assert len(set(idents)) == 1
    assert idents[0] != threading.get_ident()


def test_run_returns_the_result(thread):
    assert thread.run(slot(), lambda: 42) == 42


def test_an_exception_reaches_the_caller_and_the_thread_continues(thread):
    def fails() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        thread.run(slot(), fails)
    assert thread.run(slot(), lambda: 1) == 1


def test_first_passes_precede_refinement(bench):
    bench.queue(slot(), "refinement", refines=True)
    bench.queue(slot(), "first")
    bench.open()
    assert bench.served == ["first", "refinement"]


def test_slots_take_turns_regardless_of_request_order(bench):
    greedy, modest = slot(), slot()
    for n in (1, 2, 3):
        bench.queue(greedy, f"greedy {n}")
    for n in (1, 2):
        bench.queue(modest, f"modest {n}")
    bench.open()
    assert bench.served == ["greedy 1", "modest 1", "greedy 2", "modest 2", "greedy 3"]


def test_refinements_take_turns_too(bench):
    one, other = slot(), slot()
    for n in (1, 2):
        bench.queue(one, f"one {n}", refines=True)
    for n in (1, 2):
        bench.queue(other, f"other {n}", refines=True)
    bench.open()
    assert bench.served == ["one 1", "other 1", "one 2", "other 2"]


def test_the_slot_served_longest_ago_goes_first(bench):
    a, b, c = slot(), slot(), slot()
    a.last_served, b.last_served = 7, 3
    bench.queue(a, "a")
    bench.queue(b, "b")
    bench.queue(c, "never served")
    bench.open()
    assert bench.served == ["never served", "b", "a"]


def test_waiting_slots_are_notified_of_their_position(bench):
    received: dict[str, list[int]] = {"first": [], "second": [], "third": [], "refinement": []}
    for name in ("first", "second"):
        bench.queue(SchedulerSlot(received[name].append), name)
    bench.queue(SchedulerSlot(received["refinement"].append), "refinement", refines=True)
    bench.queue(SchedulerSlot(received["third"].append), "third")
    assert received == {"first": [1], "second": [2], "third": [3], "refinement": []}, "one is in hand"
    bench.open()
    assert received == {"first": [1, 0], "second": [2, 1, 0], "third": [3, 2, 1, 0], "refinement": []}
    assert bench.served == ["first", "second", "third", "refinement"]


def test_dropping_a_slot_cancels_its_queue_and_advances_the_others(bench):
    received: list[int] = []
    dropped, behind = slot(), SchedulerSlot(received.append)
    futures = [bench.queue(dropped, "dropped"), bench.queue(dropped, "dropped", refines=True)]
    bench.queue(slot(), "stays")
    stays = bench.queue(behind, "behind")
    bench.thread.drop(dropped, Cancelled("no longer wanted"))
    for future in futures:
        with pytest.raises(Cancelled, match="no longer wanted"):
            future.result(10)
    assert received == [3, 2]
    bench.open()
    stays.result(10)
    assert bench.served == ["stays", "behind"]


def test_dropping_a_slot_keeps_its_running_pass(thread):
    running = slot()
    began, go_on = threading.Event(), threading.Event()

    def work() -> str:
        began.set()
        assert go_on.wait(10)
        return "done"

    with ThreadPoolExecutor(1) as caller:
        future = caller.submit(thread.run, running, work)
        assert began.wait(10)
        thread.drop(running, Cancelled("too late"))
        go_on.set()
        assert future.result(10) == "done"


def test_closing_finishes_the_running_pass_and_refuses_the_rest(bench):
    left = bench.queue(slot(), "left")
    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(bench.thread.close)
        bench.wait_until(lambda: bench.thread._closed)
        assert not closing.done()
        bench.open()
        closing.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        left.result(10)
    with pytest.raises(RuntimeError, match="closed"):
        bench.thread.run(slot(), lambda: None)
    assert bench.served == []
    bench.thread.close()  # a second call has no effect


def test_a_finished_pass_is_released(thread):
    class Image:
        pass

    image = Image()
    gone = weakref.ref(image)
    thread.run(slot(), lambda held=image: None)
    del image
    deadline = time.monotonic() + 10
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert gone() is None


def test_a_failed_pass_is_released_without_garbage_collection(thread):
    class Activations:
        pass

    gone: list[weakref.ref[Activations]] = []

    def fails() -> None:
        activations = Activations()
        gone.append(weakref.ref(activations))
        raise ValueError("mine")

    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            thread.run(slot(), fails)
        thread.run(slot(), lambda: None)  # the thread has finished with the pass before
        assert gone[0]() is None
    finally:
        gc.enable()
