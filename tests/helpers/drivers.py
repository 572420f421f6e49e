"""One session with one segment, for both drivers: the blocking API over asyncio, and the polled one."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
import time
from typing import Any, Protocol

import numpy.typing as npt

from helpers.end_to_end import wait_until
import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import EVENT_NAMES, Event, Result
from nninteractive_ws.masks import Mask

Array = npt.NDArray[Any]
Wait = Callable[[], Result]


class Driver(Protocol):
    """Requests return at once. Their answers can be awaited later."""

    core: Core
    events: list[Event]

    def __init__(self, address: str, **options: Any) -> None: ...
    def set_image(self, image: Array) -> Callable[[], object]: ...
    def ask(self, command: str, *arguments: Any, **options: Any) -> Wait: ...
    def until(self, true: Callable[[], object], timeout: float = 120) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...


class Blocking:
    def __init__(self, address: str, **options: Any) -> None:
        self.events: list[Event] = []
        self._pool = ThreadPoolExecutor()
        self._session = nni.connect(address, on=dict.fromkeys(EVENT_NAMES, self.events.append), **options)
        self.core = self._session._async._core
        self.cancel = self._session.cancel

    def set_image(self, image: Array) -> Callable[[], object]:
        return self._submit(self._session.set_image, image)

    def ask(self, command: str, *arguments: Any, **options: Any) -> Wait:
        return self._submit(getattr(self._session.segment("a"), command), *arguments, **options)

    def _submit(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
        before = len(self.core.pending_requests)
        future: Future[Any] = self._pool.submit(call, *arguments, **options)
        wait_until(lambda: future.done() or len(self.core.pending_requests) > before)
        return lambda: future.result(60)

    def until(self, true: Callable[[], object], timeout: float = 120) -> None:
        wait_until(true, timeout)

    def close(self) -> None:
        self._session.close()
        self._pool.shutdown()


class Polled:
    def __init__(self, address: str, **options: Any) -> None:
        self.events: list[Event] = []
        self._session = nni.PolledSession(address, **options)
        self.core = self._session._core
        self.cancel = self.core.cancel
        self.until(lambda: self.core.welcome)

    def set_image(self, image: Array) -> Callable[[], object]:
        before = self.core.request_count
        self._session.set_image(image)
        # Does not wait for the answer, because one poll may both announce a small image and receive the answer.
        self.until(lambda: self.core.request_count > before)
        return self._waiter(before + 1)

    def ask(self, command: str, *arguments: Any, **options: Any) -> Wait:
        return self._waiter(getattr(self.core, command)("a", *arguments, **options))

    def _waiter(self, number: int) -> Wait:
        def wait() -> Result:
            self.until(lambda: answer_of(self.events, number) is not None or self._session.closed)
            answer = answer_of(self.events, number)
            if isinstance(answer, Result):
                return answer
            raise answer or next(e.error for e in self.events if isinstance(e, events.Failed) and e.request is None)

        return wait

    def until(self, true: Callable[[], object], timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while True:
            self.events += self._session.poll()
            if true():
                return
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.001)

    def close(self) -> None:
        self._session.close()
        self.events += self._session.poll()


def answer_of(received: Iterable[Event], number: int) -> Result | errors.Error | None:
    """Return the answer to a request, if it has arrived."""
    for event in received:
        if isinstance(event, events.Done) and event.result.request == number:
            return event.result
        if isinstance(event, events.Failed) and event.request == number:
            return event.error
    return None


def states(session: Driver) -> list[str]:
    return [e.state for e in session.events if isinstance(e, events.Connection)]


def lost(session: Driver, seen: int = 0) -> list[events.Connection]:
    """Return the reported losses after this number of events."""
    return [e for e in session.events[seen:] if isinstance(e, events.Connection) and e.state == "lost"]


def last(session: Driver) -> events.Connection:
    return next(e for e in reversed(session.events) if isinstance(e, events.Connection))


def mask(session: Driver) -> Mask:
    return session.core.segment("a").mask
