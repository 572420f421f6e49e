"""Scripts of prompts over failing networks and on dying servers, compared with undisturbed runs."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
import random
import threading
import time
from typing import Any, Protocol

import msgspec
import numpy as np

from helpers.end_to_end import PlainClient
from helpers.engine import bar_in_a_box, disc, stroke
from helpers.fast_server import QuickServer
from helpers.fault_proxy import LOSSES, Direction, Fault, FaultProxy, Kind, fault_proxy, handshake_faults
from helpers.shapes import ball
import nninteractive_ws as nni
from nninteractive_ws import errors, masks
from nninteractive_ws import messages as wire
from nninteractive_ws.client import events
from nninteractive_ws.client.core import Core
from nninteractive_ws.history import Segment
from nninteractive_ws.masks import NO_CHANGE

SHAPE = (84, 72, 66)
PROMPTS = 200
SEGMENTS = ("liver", "left kidney", "Milz", "δ", "e")


@dataclass(frozen=True)
class Prompt:
    """A method of a segment, and its arguments."""

    method: str
    segment: str
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


def make_script(seed: int, count: int = PROMPTS) -> list[Prompt]:
    """Return prompts of all kinds on five segments. Some are pending, some have nothing to undo. Undos come last."""
    rng = random.Random(seed)
    prompts = [_make_prompt(rng, rng.choice(SEGMENTS)) for _ in range(count - len(SEGMENTS))]
    return [*prompts, *(Prompt("undo", name) for name in SEGMENTS)]


def _make_prompt(rng: random.Random, segment: str) -> Prompt:
    i, j, k = at = tuple(rng.randrange(10, n - 10) for n in SHAPE)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    strokes = (("positive", rng.random() < 0.7), ("run", rng.random() < 0.8))
    if kind == "add_point":
        return Prompt(kind, segment, (at,), strokes)
    if kind == "add_bbox":
        return Prompt(kind, segment, (((i - 8, i + 8), (j - 8, j + 8), (k, k + 1)),), strokes)
    if kind == "add_scribble":
        return Prompt(kind, segment, (stroke(SHAPE, at, (i, j + 6, k + 4)),), strokes)
    if kind == "add_lasso":
        return Prompt(kind, segment, (disc(SHAPE, at, 8, axis=rng.randrange(3)),), strokes)
    if kind == "long scribble":  # zoomed out, then refined in several passes
        return Prompt("add_scribble", segment, (stroke(SHAPE, (4, j, k), (78, j, k)),))
    if kind in ("set_mask", "refined mask"):
        return Prompt("set_mask", segment, (ball(SHAPE, at, 7),), (("run", kind == "refined mask"),))
    return Prompt(kind, segment)


KINDS = {
    "add_point": 30,
    "add_bbox": 14,
    "add_scribble": 12,
    "add_lasso": 12,
    "long scribble": 3,
    "set_mask": 4,
    "refined mask": 2,
    "run": 6,
    "undo": 14,
    "redo": 7,
    "reset": 3,
}

#: A request's answer: voxels and the box of the change, or the code of its error.
Outcome = tuple[int, Any] | str
#: A step without its id: the request, and the voxels it changed.
PlainStep = tuple[Any, Any, bytes]


@dataclass(frozen=True)
class State:
    """A segment at a client's end."""

    mask: bytes
    voxels: int
    steps: list[PlainStep]
    undone: list[PlainStep]

    @classmethod
    def of(cls, segment: Segment) -> "State":
        def plain(steps: list[wire.Step]) -> list[PlainStep]:
            changes = [NO_CHANGE if s.change is None else masks.unpack(s.change, segment.shape) for s in steps]
            return [
                (msgspec.structs.replace(s.request, id=1), c.box, np.packbits(c.flips).tobytes())
                for s, c in zip(steps, changes, strict=True)
            ]

        mask = np.packbits(segment.mask).tobytes()
        return cls(mask, segment.voxels, plain(segment.steps), plain(segment.undone))


def states(core: Core) -> dict[str, State]:
    return {name: State.of(segment) for name, segment in core.segments.items()}


class Driver(Protocol):
    """A client under test. ``do`` sends prompts concurrently and waits for all answers. ``fetched``: how often
    a mask had to be fetched as a whole, because a change was missing."""

    fetched: int

    @property
    def core(self) -> Core: ...

    def set_image(self) -> None: ...

    def do(self, prompts: Sequence[Prompt]) -> list[Outcome]: ...


class Blocking:
    """The blocking client: one prompt after another."""

    def __init__(self, session: nni.Session) -> None:
        self.session, self.core, self.fetched = session, session._async._core, 0
        session.on("mask_delta", self._notice)

    def _notice(self, event: events.MaskDelta) -> None:
        self.fetched += event.request is None

    def set_image(self) -> None:
        self.session.set_image(bar_in_a_box())

    def do(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        return [self._do(p) for p in prompts]

    def _do(self, prompt: Prompt) -> Outcome:
        try:
            method = getattr(self.session.segment(prompt.segment), prompt.method)
            return _outcome(method(*prompt.arguments, **dict(prompt.options)))
        except errors.Error as e:
            return e.code


class Concurrent(Blocking):
    """The asyncio client of the blocking one, with several prompts in flight."""

    def do(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        async def all_of_them() -> list[Any]:
            asked = [self._ask(p) for p in prompts]
            return await asyncio.gather(*asked, return_exceptions=True)

        answers = self.session._thread.wait(all_of_them())
        return [_outcome(answer) for answer in answers]

    def _ask(self, prompt: Prompt) -> Any:
        method = getattr(self.session._async.segment(prompt.segment), prompt.method)
        return method(*prompt.arguments, **dict(prompt.options))


class Polled:
    """The polled client, on a timer."""

    def __init__(self, session: nni.PolledSession) -> None:
        self.session, self.core, self.fetched = session, session._core, 0
        self._answers: dict[int, Any] = {}
        self._poll_until(lambda: self.core.welcome is not None)

    def set_image(self) -> None:
        self.session.set_image(bar_in_a_box())
        self._poll_until(lambda: self.core.image is not None and not self.core.pending_requests)

    def do(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        numbers = [getattr(self.core, p.method)(p.segment, *p.arguments, **dict(p.options)) for p in prompts]
        self._poll_until(lambda: all(n in self._answers for n in numbers))
        return [_outcome(self._answers.pop(n)) for n in numbers]

    def _poll_until(self, true: Callable[[], bool], timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < end
            for event in self.session.poll():
                assert not (isinstance(event, events.Connection) and event.state == "closed"), event
                self.fetched += isinstance(event, events.MaskDelta) and event.request is None
                if isinstance(event, events.Done):
                    self._answers[event.result.request] = event.result
                elif isinstance(event, events.Failed) and event.request is not None:
                    self._answers[event.request] = event.error
            time.sleep(0.001)


def _outcome(answer: Any) -> Outcome:
    if isinstance(answer, events.Result):
        return answer.voxels, answer.changed
    if isinstance(answer, errors.Error):
        return answer.code
    raise answer


@contextmanager
def blocking(address: str) -> Iterator[Blocking]:
    with nni.connect(address) as session:
        yield Blocking(session)


@contextmanager
def concurrent(address: str) -> Iterator[Concurrent]:
    with nni.connect(address) as session:
        yield Concurrent(session)


@contextmanager
def polled(address: str) -> Iterator[Polled]:
    session = nni.PolledSession(address)
    try:
        yield Polled(session)
    finally:
        session.close()


Open = Callable[[str], AbstractContextManager[Driver]]


@dataclass(frozen=True)
class Expected:
    """Result of a script without faults, and after undoing and redoing all steps.

    ``sizes``: the bytes that each prompt took, up and down. ``refined``: how many prompts were refined.
    """

    outcomes: list[Outcome]
    after: list[dict[str, State]]
    sizes: list[dict[Direction, int]]
    refined: int


def undisturbed(address: str, script: Sequence[Prompt]) -> Expected:
    refined, outcomes, sizes = 0, [], []

    def count(event: events.Progress) -> None:
        nonlocal refined
        refined += event.state == "refining" and event.done == 1

    with blocking(address) as driver:
        session = driver.session
        session.on("progress", count)
        driver.set_image()
        for prompt in script:
            before = session.bytes_sent, session.bytes_received
            outcomes += driver.do([prompt])
            size: dict[Direction, int] = {
                "up": session.bytes_sent - before[0],
                "down": session.bytes_received - before[1],
            }
            sizes.append(size)
        return Expected(outcomes, all_states(driver), sizes, refined)


def all_states(driver: Driver) -> list[dict[str, State]]:
    """Return all states: current, with all steps undone, and with all redone. Each step is undone exactly once."""
    found = [states(driver.core)]
    for method in ("undo", "redo"):
        for name, segment in driver.core.segments.items():
            prompt = Prompt(method, name)
            for _ in range(len(segment.steps if method == "undo" else segment.undone)):
                assert not isinstance(driver.do([prompt])[0], str)
            assert driver.do([prompt]) == ["nothing_to_undo"]
        found.append(states(driver.core))
    return found


def assert_same(found: list[dict[str, State]], expected: list[dict[str, State]]) -> None:
    for when, ours, theirs in zip(("after the script", "undone", "redone"), found, expected, strict=True):
        assert set(ours) == set(theirs)
        for name in theirs:
            a, b = ours[name], theirs[name]
            where = f"{name}, {when}"
            assert a.mask == b.mask, f"the mask of {where}"
            assert a.voxels == b.voxels, f"the count of {where}"
            assert [str(r) for r, *_ in a.steps] == [str(r) for r, *_ in b.steps], f"the steps of {where}"
            assert a.steps == b.steps, f"the changes of the steps of {where}"
            assert a.undone == b.undone, f"what was undone of {where}"


def assert_the_server_agrees(server: QuickServer, driver: Driver, proxy: FaultProxy) -> None:
    """Resume the session without the proxy, and check the masks and the number of steps on the server."""
    proxy.refusing = True
    proxy.cut()
    welcome = driver.core.welcome
    assert welcome is not None
    asyncio.run(
        _check_server(server.address, welcome, {n: s.mask.copy() for n, s in driver.core.segments.items()}, driver)
    )


async def _check_server(address: str, ours: wire.Welcome, expected: dict[str, masks.Mask], driver: Driver) -> None:
    client = await PlainClient.open(
        address, session_id=ours.session_id, session_secret=ours.session_secret, encodings=[ours.encoding]
    )
    assert client.welcome.resumed
    request = client.welcome.last_id
    for name, mask in expected.items():
        request += 1
        assert np.array_equal(await client.mask(request, name, SHAPE), mask), f"the server's mask of {name}"
        steps, code = -1, None
        while code is None:
            steps, request = steps + 1, request + 1
            await client.send(wire.Undo(id=request, segment=name))
            _, answer = await client.receive_answer(request)
            code = getattr(answer, "code", None)
        assert code == "nothing_to_undo"
        assert steps == len(driver.core.segments[name].steps), f"the server's steps of {name}"
    await client.send(wire.Bye())
    await client.close()


def run_through(
    driver: Driver,
    proxy: FaultProxy,
    script: Sequence[Prompt],
    expected: Expected,
    rng: random.Random,
    at_once: int,
    kinds: Sequence[Kind],
) -> int:
    """Send all prompts, up to ``at_once`` in flight, with a fault at a random byte of every third.

    Return the number of planned faults.
    """
    planned, n = 0, 0
    while n < len(script):
        batch = range(n, min(n + rng.randint(1, at_once), len(script)))
        passed: dict[Direction, int] = {"up": 0, "down": 0}
        for i in batch:
            if i % 3 == 0:
                direction: Direction = rng.choice(("up", "down"))
                kind: Kind = rng.choice(kinds)
                size = expected.sizes[i][direction]
                # Anywhere, or between the change and the answer.
                after = rng.choice((rng.randrange(size), max(0, size - rng.randrange(ANSWER_BYTES))))
                proxy.arm(Fault(kind, direction, passed[direction] + after))
                planned += 1
            for way in passed:
                passed[way] += expected.sizes[i][way]
        outcomes = driver.do([script[i] for i in batch])
        assert outcomes == expected.outcomes[batch.start : batch.stop], f"seed's prompts {batch}"
        proxy.disarm()
        n = batch.stop
    return planned


#: Slightly more than an answer, which is sent last.
ANSWER_BYTES = 200
MOSTLY_LOSSES: tuple[Kind, ...] = (*LOSSES, *LOSSES, "trickle", "delay")


def upload_and_handshake_faults(rng: random.Random) -> Callable[[], Fault | None]:
    """A plan in which the first connections break during the upload, and later ones during the handshake."""
    count = 0
    later = handshake_faults(rng, 0.25)

    def plan() -> Fault | None:
        nonlocal count
        count += 1
        return Fault("cut", "up", rng.randrange(2_000, 120_000)) if count <= 3 else later()

    return plan


def disturb(
    server: QuickServer,
    script: Sequence[Prompt],
    expected: Expected,
    rng: random.Random,
    open_driver: Open,
    at_once: int,
    kinds: Sequence[Kind] = MOSTLY_LOSSES,
) -> None:
    with fault_proxy(server.address) as proxy:
        proxy.plan = upload_and_handshake_faults(rng)
        with open_driver(proxy.address) as driver:
            assert driver.core.welcome is not None
            session = driver.core.welcome.session_id
            driver.set_image()
            planned = run_through(driver, proxy, script, expected, rng, at_once, kinds)
            proxy.plan = lambda: None
            assert_same(all_states(driver), expected.after)
            assert driver.core.welcome.session_id == session, "it was not taken up but restored"
            assert driver.fetched == 0
            assert_the_server_agrees(server, driver, proxy)
        happened = [f.kind for f in proxy.happened]
        print({kind: happened.count(kind) for kind in sorted(set(happened))}, f"of {planned} planned at prompts")
        assert len(happened) >= 0.5 * planned


def cancel_through(server: QuickServer, script: Sequence[Prompt], rng: random.Random) -> None:
    answers = Counter[str]()
    with fault_proxy(server.address) as proxy, concurrent(proxy.address) as driver:
        driver.set_image()
        for n in range(0, len(script), 3):
            direction: Direction = rng.choice(("up", "down"))
            proxy.arm(Fault(rng.choice(MOSTLY_LOSSES), direction, rng.randrange(600)))
            timer = threading.Timer(rng.uniform(0, 0.1), driver.session.cancel)
            timer.start()
            outcomes = driver.do(script[n : n + 3])
            answers.update(outcome if isinstance(outcome, str) else "done" for outcome in outcomes)
            timer.join()
            proxy.disarm()
        print(dict(answers))
        assert answers["done"] > 1
        assert answers["cancelled"] > 1
        assert set(answers) <= {"done", "cancelled", "nothing_to_undo", "unknown_segment"}
        for segment in driver.core.segments.values():
            assert np.array_equal(segment.mask, segment.composed())
            assert segment.voxels == np.count_nonzero(segment.mask)
        _, undone, _ = all_states(driver)
        assert not any(state.voxels for state in undone.values())
        assert_the_server_agrees(server, driver, proxy)
        assert driver.fetched == 0


def session_id(driver: Driver) -> str:
    assert driver.core.welcome is not None
    return driver.core.welcome.session_id


def kill_worker(server: QuickServer) -> None:
    server.kill_worker()


def kill_server(server: QuickServer) -> None:
    """Kill the server, and restart it on the same port."""
    server.kill()
    server.start()


def kill_in_turn(
    server: QuickServer,
    script: Sequence[Prompt],
    expected: Expected,
    rng: random.Random,
    deaths: Sequence[Callable[[QuickServer], None]],
) -> None:
    """Send all prompts, several at a time, and kill processes during separate predictions. Then compare.

    The first kill is in the middle of a refinement, the others are after the start of a prediction.
    """
    changing = [n for n, outcome in enumerate(expected.outcomes) if not isinstance(outcome, str) and outcome[1]]
    predicting = [n for n in changing if script[n].method.startswith("add_") and dict(script[n].options).get("run", 1)]
    refining = max(predicting, key=lambda n: expected.sizes[n]["down"])
    moments = [refining, *rng.sample([n for n in predicting if n != refining], len(deaths) - 1)]
    with concurrent(server.address) as driver:
        driver.set_image()
        sessions = {session_id(driver)}
        n = 0
        for moment, die in sorted(zip(moments, deaths, strict=True), key=lambda pair: pair[0]):
            do_in_batches(driver, script, expected, range(n, moment), rng)
            state = "refining" if moment == refining else "predicting"
            with at_progress(driver, state, partial(die, server)):
                do_in_batches(driver, script, expected, range(moment, moment + 1), rng)
            sessions.add(session_id(driver))
            n = moment + 1
        do_in_batches(driver, script, expected, range(n, len(script)), rng)
        assert len(sessions) == 1 + len(deaths), "a process was killed and the session went on"
        assert driver.fetched == 0
        assert_same(all_states(driver), expected.after)


def do_in_batches(
    driver: Driver, script: Sequence[Prompt], expected: Expected, numbers: range, rng: random.Random
) -> None:
    n = numbers.start
    while n < numbers.stop:
        batch = range(n, min(n + rng.randint(1, 6), numbers.stop))
        assert driver.do([script[i] for i in batch]) == expected.outcomes[batch.start : batch.stop], batch
        n = batch.stop


@contextmanager
def at_progress(driver: Blocking, state: str, act: Callable[[], object]) -> Iterator[None]:
    """Call a function once, on a separate thread, as soon as a prompt is in a state."""
    reached, failures = threading.Event(), []

    def notice(event: events.Progress) -> None:
        if event.state == state:
            reached.set()

    def work() -> None:
        try:
            assert reached.wait(60), state
            act()
        except BaseException as e:
            failures.append(e)

    driver.session.on("progress", notice)
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
    assert not failures, failures
