"""One thread owns the device: every forward pass of every session goes through it, one at a time.

cuDNN keeps its plans per thread, so a second thread would pay for them again (1.2 s against 0.11 s a prompt).
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
import itertools
import threading
from typing import Generic, TypeVar

T = TypeVar("T")

#: A refining pass that yielded to this many others is in the queue as a first one: some clients click without pause.
_MOST_OVERTAKEN = 4


@dataclass(eq=False)
class Seat:
    """A session's place at the device. ``on_position``: told how many passes are ahead of a first one of its own, that
    in hand included; 0 once its turn has come."""

    on_position: Callable[[int], None]
    last_served: int = -1


@dataclass(eq=False)
class _Pass(Generic[T]):
    seat: Seat
    refines: bool
    arrival: int
    work: Callable[[], T]
    result: Future[T] = field(default_factory=Future)
    overtaken: int = 0
    told: int = 0

    @property
    def order(self) -> tuple[bool, int, int]:
        yields = self.refines and self.overtaken < _MOST_OVERTAKEN
        return yields, self.seat.last_served, self.arrival


class DeviceThread:
    """A persistent thread with a queue that is fair pass by pass.

    The first passes of a prompt go before refinement passes, though not for ever; among equals, the session that
    was served longest ago goes first.
    """

    def __init__(self, name: str) -> None:
        self._waiting: list[_Pass[object]] = []
        self._running: _Pass[object] | None = None
        self._changed = threading.Condition()
        self._arrivals, self._served = itertools.count(), itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"device {name}", daemon=True)
        self._thread.start()

    def run(self, seat: Seat, work: Callable[[], T], *, refines: bool = False) -> T:
        """Do ``work`` on the device thread and return or raise what it does; the calling thread waits."""
        item: _Pass[T] = _Pass(seat, refines, next(self._arrivals), work)
        with self._changed:
            if self._closed:
                raise RuntimeError("the device thread was closed")
            self._waiting.append(item)  # type: ignore[arg-type]
            self._report_positions()
            self._changed.notify()
        return item.result.result()

    def drop(self, seat: Seat, error: Exception) -> None:
        """Let the passes of a seat that still wait raise ``error`` instead."""
        with self._changed:
            dropped = [p for p in self._waiting if p.seat is seat]
            self._waiting = [p for p in self._waiting if p.seat is not seat]
            if dropped:
                self._report_positions()
        for item in dropped:
            item.result.set_exception(error)

    def close(self) -> None:
        """End the thread after the pass it is in; passes that wait raise RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            left, self._waiting = self._waiting, []
        for item in left:
            item.result.set_exception(RuntimeError("the device thread was closed"))

    def _serve(self) -> None:
        while (item := self._next()) is not None:
            try:
                item.result.set_result(item.work())
            except BaseException as e:
                item.result.set_exception(e)
            # Or a session that has ended would stay in memory until the next pass of another.
            del item
            self._running = None

    def _next(self) -> _Pass[object] | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            item = min(self._waiting, key=lambda p: p.order)
            self._waiting.remove(item)
            item.seat.last_served = next(self._served)
            for other in self._waiting:
                other.overtaken += other.arrival < item.arrival
            self._running = item
            self._report_position(item, 0)
            self._report_positions()
            return item

    def _report_positions(self) -> None:
        for n, item in enumerate(sorted(self._waiting, key=lambda p: p.order)):
            behind_another = self._running is not None and self._running.seat is not item.seat
            self._report_position(item, n + behind_another)

    @staticmethod
    def _report_position(item: _Pass[object], ahead: int) -> None:
        if not item.refines and ahead != item.told:
            item.told = ahead
            item.seat.on_position(ahead)
