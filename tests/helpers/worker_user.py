"""A user whose worker is lost. Masks and histories must be those of an undisturbed run, bit for bit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import sys
import time

import psutil

from helpers.engine import stroke
from helpers.fast_server import QuickServer
from helpers.fault_script import SHAPE, Blocking, Prompt, State, all_states, assert_same, at_progress
import nninteractive_ws as nni
from nninteractive_ws.client import events

#: Starting a worker imports torch, which takes long on a busy machine.
WORKER_TIMEOUT_S = 240.0

FIRST = Prompt("add_point", "ball", ((60, 56, 46),))
#: Zoomed out, and then refined in several passes.
LONG = Prompt("add_scribble", "bar", (stroke(SHAPE, (4, 30, 28), (78, 30, 28)),))
LAST = Prompt("add_point", "bar", ((60, 30, 28),), (("positive", False),))


@dataclass(frozen=True)
class Loss:
    """A lost connection. ``seconds``: until the session went on."""

    reason: str
    seconds: float


class WorkerUser(Blocking):
    """A client that notes what it is told. ``losses``: those that are over."""

    def __init__(self, address: str) -> None:
        self.notices: list[str] = []
        self.losses: list[Loss] = []
        self._lost: tuple[str, float] | None = None
        self.on_notice: Callable[[str], object] = lambda message: None
        self.on_lost: Callable[[], object] = lambda: None
        super().__init__(
            nni.connect(
                address,
                reconnect_for=WORKER_TIMEOUT_S,
                on={"notice": self._on_notice, "connection": self._on_connection},
            )
        )

    def _on_notice(self, event: events.Notice) -> None:
        self.notices.append(event.message)
        self.on_notice(event.message)

    def _on_connection(self, event: events.Connection) -> None:
        if event.state == "lost" and self._lost is None:
            self._lost = event.reason, time.monotonic()
            self.on_lost()
        elif event.state == "open" and self._lost is not None:
            reason, since = self._lost
            self.losses.append(Loss(reason, time.monotonic() - since))
            self._lost = None

    def begin(self) -> None:
        """Send the image and the first prompt."""
        self.set_image()
        self._prompt(FIRST)

    def prompt_long(self) -> None:
        """Send the long prompt."""
        self._prompt(LONG)

    def prompt_through(self, act: Callable[[], object]) -> None:
        """Send the long prompt, and call ``act`` in the middle of it. It must cost the connection."""
        before = len(self.losses)
        with at_progress(self, "refining", act):
            self.prompt_long()
        assert len(self.losses) > before, "the prompt was not disturbed"

    def finish(self, expected: list[dict[str, State]]) -> None:
        """Send the last prompt, and compare."""
        self._prompt(LAST)
        assert_same(all_states(self), expected)

    def _prompt(self, prompt: Prompt) -> None:
        (outcome,) = self.do([prompt])
        assert not isinstance(outcome, str), outcome

    def run_undisturbed(self) -> list[dict[str, State]]:
        """Send all prompts, and return the states."""
        self.begin()
        for prompt in (LONG, LAST):
            self._prompt(prompt)
        assert not self.losses
        return all_states(self)


def workers_of(server: QuickServer) -> list[psutil.Process]:
    """Return the processes of a server's workers, which may be children of other processes."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[:1] == [sys.executable] and {"nninteractive_ws.engine.worker", str(server.model)} <= set(command):
            found.append(process)
    return found


@contextmanager
def worker_user(server: QuickServer) -> Iterator[WorkerUser]:
    """A user of a server."""
    user = WorkerUser(server.address)
    try:
        yield user
    finally:
        user.session.close()
