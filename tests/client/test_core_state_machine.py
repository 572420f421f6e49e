"""Random sequences of events between a client's core and a session. At quiescence, both sides agree.

A link in memory connects the two, which delays, duplicates, loses and breaks. At the end, an undisturbed client and
server repeat the applied commands, and must get the same masks, bit for bit.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from helpers.core_link import MemoryServer
from helpers.core_script import check_journal, snapshot
from helpers.shapes import ball
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
import numpy as np
import pytest

from nninteractive_ws import messages as wire
from nninteractive_ws import protocol
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.client.events import Event
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.demo.phantom import make_phantom

SHAPE = (72, 48, 40)
Command = Callable[[Core], int]

_indices = st.tuples(*(st.integers(0, n - 1) for n in SHAPE))
_segments = st.sampled_from(["a", "b"])


def _outline(k: int) -> Any:
    drawn = np.zeros(SHAPE, bool)
    drawn[8:-8, 8:-8, k] = True
    return drawn


@st.composite
def commands(draw: st.DrawFn) -> Command:
    segment, at, positive, run = draw(_segments), draw(_indices), draw(st.booleans()), draw(st.booleans())
    kinds: dict[str, Command] = {
        "point": lambda c: c.add_point(segment, at, positive=positive, run=run),
        "scribble": lambda c: c.add_scribble(segment, ball(SHAPE, at, 3), positive=positive, run=run),
        "lasso": lambda c: c.add_lasso(segment, _outline(at[2]), positive=positive, run=run),
        "mask": lambda c: c.set_mask(segment, ball(SHAPE, at, 7), run=run),
        "edit": lambda c: c.flip_mask(segment, ball(SHAPE, at, 7)),
        "run": lambda c: c.run(segment),
        "undo": lambda c: c.undo(segment),
        "redo": lambda c: c.redo(segment),
        "reset": lambda c: c.reset(segment),
        "remove": lambda c: c.remove_segment(segment),
    }
    return kinds[draw(st.sampled_from([*kinds, "point", "point", "lasso", "undo"]))]


class Machine(RuleBasedStateMachine):
    """``up`` and ``down``: frames on their way."""

    model: Any
    device: Any
    source: ImageSource

    @initialize()
    def begin(self) -> None:
        self.core, self.server = Core(), MemoryServer(self.model, self.device)
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.commands: dict[int, Command] = {}
        self.answers: dict[int, str] = {}
        self.core.start()
        self.image = self.core.set_image(self.source)

    # ---- actions of users ---------------------------------------------------------------------------------

    @rule(command=commands())
    def ask(self, command: Command) -> None:
        self.commands[command(self.core)] = command

    @precondition(lambda self: self.image in self.answers)  # otherwise, the image itself is cancelled
    @rule()
    def cancel(self) -> None:
        self.core.cancel()

    # ---- faults of the network ----------------------------------------------------------------------------

    def _collect(self) -> None:
        while (frame := self.core.next_control()) is not None:
            self.up.append(frame)
        while (make := self.core.next_brick()) is not None:
            self.up.append(make())
        while self.server.outgoing:
            self.down.append(self.server.outgoing.popleft())

    @rule(n=st.integers(1, 8), twice=st.booleans())
    def carry_up(self, n: int, twice: bool) -> None:
        self._collect()
        for _ in range(min(n, len(self.up))):
            frame = self.up.popleft()
            self.server.receive(frame)
            if twice and not isinstance(protocol.decode_client(frame), wire.Hello):
                self.server.receive(frame)

    @rule(n=st.integers(1, 8), twice=st.booleans())
    def carry_down(self, n: int, twice: bool) -> None:
        self._collect()
        for _ in range(min(n, len(self.down))):
            frame = self.down.popleft()
            self._receive(frame)
            if twice and not isinstance(protocol.decode_server(frame), wire.Welcome):
                self._receive(frame)

    @precondition(lambda self: self.down)
    @rule()
    def lose_a_change(self) -> None:
        if isinstance(protocol.decode_server(self.down[0]), wire.MaskDelta | wire.Progress):
            self.down.popleft()

    @rule()
    def read_slowly(self) -> None:
        self.server.slow = True

    @rule(meanwhile=st.integers(0, 3))
    def cut(self, meanwhile: int) -> None:
        """Break the connection with all frames in flight. The server continues until the next connection."""
        self.server.disconnect()
        for _ in range(meanwhile):
            self.work()
        self._reconnect()

    def _reconnect(self) -> None:
        self.up.clear()
        self.down.clear()
        self.server.slow = False
        self.core.start()

    # ---- actions of the server ----------------------------------------------------------------------------

    @rule()
    def work(self) -> None:
        if self.server.can_work:
            self.server.work()

    @rule()
    def lose_the_session(self) -> None:
        self.server.forget()
        self.cut(0)

    @rule()
    def evict(self) -> None:
        if self.server.queue.close_if_idle(0):
            self._receive(protocol.encode(wire.Notice(code="evicted", message="so")))
            self.server.forget()
            self.server.disconnect()
            if not self.core.is_dormant:
                self._reconnect()
            else:
                self.up.clear()
                self.down.clear()
                self.core.start()

    # ---- invariants ---------------------------------------------------------------------------------------

    def _receive(self, frame: bytes) -> None:
        for event in self.core.receive(frame):
            self._note(event)

    def _note(self, event: Event) -> None:
        if isinstance(event, events.Done):
            number, outcome = event.result.request, "done"
        elif isinstance(event, events.Failed):
            assert event.request is not None, event
            number, outcome = event.request, event.error.code
        else:
            return
        assert number not in self.answers, "answered twice"
        self.answers[number] = outcome

    def _settle(self) -> None:
        self.server.slow = False
        self.server.flush()
        while True:
            self._collect()
            if self.up:
                self.server.receive(self.up.popleft())
            elif self.down:
                self._receive(self.down.popleft())
            elif not self.server.work():
                return

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self._settle()
        assert self.core.pending_requests == []
        assert set(self.answers) == {self.image, *self.commands}
        assert set(self.answers.values()) <= {"done", "cancelled", "unknown_segment", "nothing_to_undo"}
        for segment in self.core.segments.values():
            theirs = self.server.session._segments.get(segment.name)
            if theirs is None:
                assert not segment.steps
                assert not segment.undone
                continue
            assert np.array_equal(segment.mask, theirs.mask)
            assert segment.revision == theirs.revision
        self._compare_with_a_quiet_run()

    def _compare_with_a_quiet_run(self) -> None:
        """Repeat the applied commands without disturbance. A snapshot may combine the changes of several steps, so
        masks are compared after every undo, where the server's mask counts."""
        quiet, server = Core(), MemoryServer(self.model, self.device)
        quiet.start()
        other = Machine.__new__(Machine)
        other.core, other.server, other.up, other.down, other.answers = quiet, server, deque(), deque(), {}
        quiet.set_image(self.source)
        other._settle()
        for number, command in sorted(self.commands.items()):
            if self.answers[number] == "done":
                command(quiet)
                other._settle()
        check_journal(quiet, server)
        while True:
            here = {name: s for name, s in snapshot(self.core).items() if s[2] or s[3]}
            there = {name: s for name, s in snapshot(quiet).items() if s[2] or s[3]}
            assert here == there
            name = next((n for n, s in here.items() if s[2]), None)
            if name is None:
                return
            for side in (self, other):
                side.commands = {side.core.undo(name): lambda c: 0}
                side._settle()


@pytest.mark.slow
@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_both_sides_agree_at_quiescence(quick_model: Any, device: Any, examples: int) -> None:
    Machine.model, Machine.device = quick_model, device
    Machine.source = ImageSource.of(make_phantom(5, SHAPE, (4.5, 4.5, 4.5)).image)
    run_state_machine_as_test(Machine, settings=settings(max_examples=examples, stateful_step_count=30))
