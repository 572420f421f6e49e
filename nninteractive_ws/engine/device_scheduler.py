"""Scheduling of forward passes on one thread, which owns the device and runs the passes of all sessions one at a time.

cuDNN keeps its plans per thread, so a second thread would have to make them again (1.2 s against 0.11 s per prompt).
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
import itertools
import threading
from typing import Generic, TypeVar

T = TypeVar("T")

#: A refinement pass that was overtaken this often gets the priority of a first pass. Otherwise a client that clicks
#: without pause could starve it.
_MAX_OVERTAKEN = 4

_CLOSED = "The device thread was closed. Create another DeviceScheduler."


@dataclass(eq=False)
class SchedulerSlot:
    """A session's slot in the queue of the device.

    ``on_position``: called with the number of passes ahead of a first pass of this session, including the running one;
    0 once the pass starts.
    """

    on_position: Callable[[int], None]
    last_served: int = -1


@dataclass(eq=False)
class _ForwardPass(Generic[T]):
    """A pass that is pending or running. ``overtaken``: the number of later passes that ran before it."""

    slot: SchedulerSlot
    refines: bool
    arrival: int
    work: Callable[[], T]
    result: Future[T] = field(default_factory=Future)
    overtaken: int = 0
    reported_position: int = 0

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sort key. The pass with the lowest key runs next."""
        yields = self.refines and self.overtaken < _MAX_OVERTAKEN
        return yields, self.slot.last_served, self.arrival


class DeviceScheduler:
    """A thread for one device, with a queue that is fair to sessions pass by pass.

    The first passes of a prompt run before refinement passes, which may be overtaken a limited number of times. Among
    passes of equal priority, the least recently served session goes first.
    """

    def __init__(self, name: str) -> None:
        self._waiting: list[_ForwardPass[object]] = []
        self._running: _ForwardPass[object] | None = None
        self._changed = threading.Condition()
        self._arrivals, self._served = itertools.count(), itertools.count()
        self._closed = False
        #: Seconds of the last pass of any session; 0 before the first one.
        self.last_pass_s = 0.0
        self._thread = threading.Thread(target=self._serve, name=f"device {name}", daemon=True)
        self._thread.start()

    def run(self, slot: SchedulerSlot, work: Callable[[], T], *, refines: bool = False) -> T:
        """Run ``work`` on the device thread, and wait for it. Return its result, or raise its exception."""
        item: _ForwardPass[T] = _ForwardPass(slot, refines, next(self._arrivals), work)
        with self._changed:
            if self._closed:
                raise RuntimeError(_CLOSED)
            self._waiting.append(item)  # type: ignore[arg-type]
            self._report_positions()
            self._changed.notify()
        try:
            return item.result.result()
        finally:
            # Otherwise an exception of the pass would keep itself in memory, with all tensors of the pass: its
            # traceback holds this frame, and the frame's pass holds the exception.
            del item

    def drop(self, slot: SchedulerSlot, error: Exception) -> None:
        """Remove the pending passes of a slot. Their :meth:`run` raises ``error``."""
        with self._changed:
            dropped = [p for p in self._waiting if p.slot is slot]
            self._waiting = [p for p in self._waiting if p.slot is not slot]
            if dropped:
                self._report_positions()
        for item in dropped:
            item.result.set_exception(error)

    def close(self) -> None:
        """End the thread after the running pass. Pending passes raise RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            remaining, self._waiting = self._waiting, []
        for item in remaining:
            item.result.set_exception(RuntimeError(_CLOSED))

    def _serve(self) -> None:
        while (item := self._next()) is not None:
            try:
                item.result.set_result(item.work())
            except BaseException as e:
                item.result.set_exception(e)
            # Otherwise a session that has ended would stay in memory until the next pass of another session.
            del item
            self._running = None

    def _next(self) -> _ForwardPass[object] | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            item = min(self._waiting, key=lambda p: p.order)
            self._waiting.remove(item)
            item.slot.last_served = next(self._served)
            for other in self._waiting:
                other.overtaken += other.arrival < item.arrival
            self._running = item
            self._report_position(item, 0)
            self._report_positions()
            return item

    def _report_positions(self) -> None:
        for n, item in enumerate(sorted(self._waiting, key=lambda p: p.order)):
            behind_another = self._running is not None and self._running.slot is not item.slot
            self._report_position(item, n + behind_another)

    @staticmethod
    def _report_position(item: _ForwardPass[object], ahead: int) -> None:
        if not item.refines and ahead != item.reported_position:
            item.reported_position = ahead
            item.slot.on_position(ahead)
