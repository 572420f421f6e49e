"""What is measured. Every measurement is made with one side and then the other, in turns, and is a record."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
import json
from pathlib import Path
import subprocess
import time
from typing import Any

import numpy as np

from nninteractive_ws.benchmark.link import Link, LinkSpeed, link
from nninteractive_ws.benchmark.sides import (
    OFFICIAL,
    OWN,
    SIDES,
    Client,
    OfficialClient,
    OwnClient,
    Served,
    Server,
    Side,
)
from nninteractive_ws.benchmark.work import Work
from nninteractive_ws.evaluation.user import KINDS
from nninteractive_ws.masks import Mask
from nninteractive_ws.processes import python_module

LINKS = (
    LinkSpeed("1 Gbit/s", 1e9, 0.0),
    LinkSpeed("100 Mbit/s", 100e6, 0.0),
    LinkSpeed("20 Mbit/s, 20 ms", 20e6, 0.02),
)
#: A link that only counts.
_COUNTING = LinkSpeed("counting", 1e12, 0.0)
#: How many clients there are at once, and how many prompts each gives.
CLIENTS, _PROMPTS_EACH = (1, 2, 4, 8), 6


@dataclass(frozen=True)
class Record:
    """One measurement. ``measured``: what, with its unit, and how much."""

    part: str
    side: str
    case: str
    run: int
    measured: Mapping[str, float]


class Passes:
    """The passes of the network that both servers have noted; see engine.bench_models."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def between(self, start: float, end: float) -> list[float]:
        """The seconds of each pass that began in an interval of time.monotonic()."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return [float(took) for began, took in lines if start <= float(began) <= end]

    def seconds_beyond(self, start: float, end: float) -> float:
        """What of such an interval was not spent in passes."""
        return end - start - sum(self.between(start, end))


@contextmanager
def both(served: Served) -> Iterator[dict[str, Server]]:
    """Both servers, by the names of their sides."""
    with ExitStack() as stack:
        yield {side.name: stack.enter_context(side.serve(served)) for side in SIDES}


def in_turns(times: int) -> Iterator[tuple[int, Side]]:
    """Each side so many times, and none always first."""
    for run in range(times):
        for side in SIDES if run % 2 == 0 else SIDES[::-1]:
            yield run, side


# ---- first mask --------------------------------------------------------------------------------------------


def first_mask(
    servers: Mapping[str, Server], work: Work, case: str, speed: LinkSpeed | None, times: int
) -> Iterator[Record]:
    """From a client that is not connected yet to the first mask, and to the whole image on the server: while the prompt
    is answered, which official clients give once the image is there, and without any prompt.

    ``speed``: of the link; None: loopback.
    """
    for run, side in in_turns(times):
        with ExitStack() as stack:
            port = servers[side.name].port
            counted = None if speed is None else stack.enter_context(link(port, speed))
            reached = port if counted is None else counted.port
            measured = _open_and_click(side, reached, work)
            if counted is not None:
                measured["image and prompt up, MB"] = counted.count()[0] / 1e6
            measured["whole image, s"] = _open(side, reached, work)
        yield Record("first mask", side.name, case, run, measured)


def _open_and_click(side: Side, port: int, work: Work) -> dict[str, float]:
    started = time.monotonic()
    with closing(side.connect(port)) as client:
        client.open(work.volume)
        answer = client.give(work.prompts["point", True])
        whole = client.whole_image_at()
    return {
        "first mask, s": answer.first - started,
        "result, s": answer.final - started,
        "whole image and mask, s": max(whole, answer.final) - started,
    }


def _open(side: Side, port: int, work: Work) -> float:
    started = time.monotonic()
    with closing(side.connect(port)) as client:
        client.open(work.volume)
        return client.whole_image_at() - started


# ---- prompts -----------------------------------------------------------------------------------------------


def prompts(servers: Mapping[str, Server], passes: Passes, work: Work, case: str, times: int) -> Iterator[Record]:
    """Every kind of prompt, positive on an empty segment and negative on what came of that: seconds beyond the
    network's passes, and bytes both ways.

    Where much of a zoomed-out answer is to be refined, nnInteractive draws lots: then a prompt may need more or fewer
    passes on one side than on the other, and its ratios mean little.
    """
    with ExitStack() as stack:
        clients: dict[str, Client] = {}
        for side in SIDES:
            clients[side.name] = client = side.connect(servers[side.name].port)
            stack.callback(client.close)
            client.open(work.volume)
            client.whole_image_at()
        for run, side in in_turns(times):
            for kind, positive, measured in _each_prompt(clients[side.name], work, _timed(passes)):
                yield Record("prompt", side.name, f"{case}, {words(kind, positive)}", run, measured)
    for side in SIDES:
        with link(servers[side.name].port, _COUNTING) as counted:
            client = side.connect(counted.port)
            try:
                client.open(work.volume)
                client.whole_image_at()
                for kind, positive, measured in _each_prompt(client, work, _counted(counted)):
                    yield Record("prompt", side.name, f"{case}, {words(kind, positive)}", 0, measured)
            finally:
                client.close()


_Measure = Callable[[Callable[[], Any]], dict[str, float]]


def _each_prompt(client: Client, work: Work, measure: _Measure) -> Iterator[tuple[str, bool, dict[str, float]]]:
    for kind in KINDS:
        client.reset()
        for positive in (True, False):
            prompt = work.prompts[kind, positive]
            yield kind, positive, measure(lambda: client.give(prompt))  # noqa: B023 - called at once


def _timed(passes: Passes) -> _Measure:
    def measure(give: Callable[[], Any]) -> dict[str, float]:
        started = time.monotonic()
        answer = give()
        return {
            "passes": len(passes.between(started, answer.final)),
            "first mask, s": answer.first - started,
            "result, s": answer.final - started,
            "beyond the network, ms": 1e3 * passes.seconds_beyond(started, answer.final),
        }

    return measure


def _counted(counted: Link) -> _Measure:
    def measure(give: Callable[[], Any]) -> dict[str, float]:
        before = counted.count()
        give()
        up, down = (after - b for after, b in zip(counted.count(), before, strict=True))
        return {"up, kB": up / 1e3, "down, kB": down / 1e3}

    return measure


def words(kind: str, positive: bool) -> str:
    """A prompt in a word and a sign."""
    return f"{kind} {'+' if positive else '-'}"


# ---- what a session is good for ----------------------------------------------------------------------------


def history(servers: Mapping[str, Server], passes: Passes, work: Work, case: str, times: int) -> Iterator[Record]:
    """Undo, redo, and going to another object and back: milliseconds beyond the network's passes.

    The official client has no redo, and one object; coming back to one is to give it the mask, without its prompts.
    """
    with ExitStack() as stack:
        own = OwnClient(servers[OWN.name].port)
        stack.callback(own.close)
        official = OfficialClient.at(servers[OFFICIAL.name].port)
        stack.callback(official.close)
        clients: dict[str, OwnClient | OfficialClient] = {OWN.name: own, OFFICIAL.name: official}
        for client in clients.values():
            client.open(work.volume)
            client.whole_image_at()
        for run, side in in_turns(times):
            for what, act in _history_of(clients[side.name], work):
                started = time.monotonic()
                act()
                ended = time.monotonic()
                beyond = 1e3 * passes.seconds_beyond(started, ended)
                yield Record("history", side.name, f"{case}, {what}", run, {"beyond the network, ms": beyond})


def _history_of(client: OwnClient | OfficialClient, work: Work) -> Iterator[tuple[str, Callable[[], object]]]:
    first, second = work.prompts["point", True], work.prompts["point", False]
    client.reset()
    client.give(first)
    client.give(second)
    yield "undo", client.undo
    if isinstance(client, OwnClient):
        yield "redo", client.redo
        yield "another object", lambda: _in_segment(client, "b", lambda: client.give(first))
        yield "and back", lambda: _in_segment(client, "a", lambda: client.give(second))
    else:
        mask = client.mask()
        yield "another object", lambda: _from_mask(client, None, lambda: client.give(first))
        yield "and back", lambda: _from_mask(client, mask, lambda: client.give(second))


def _in_segment(client: OwnClient, name: str, act: Callable[[], object]) -> None:
    client.segment(name)
    act()


def _from_mask(client: OfficialClient, mask: Mask | None, act: Callable[[], object]) -> None:
    client.reset()
    if mask is not None:
        client.start_from(mask)
    act()


def losses(served: Served, passes: Passes, work: Work, case: str, times: int) -> Iterator[Record]:
    """A cut connection, and a server that is started again: seconds from when it can be reached again to the result of
    the next prompt, beyond the network's passes.

    The official session does not survive its server: there the volume is opened anew and given the mask, and the
    earlier prompts are lost.
    """
    for run, side in in_turns(times):
        with side.serve(served) as server:
            with link(server.port, _COUNTING) as first:
                client = side.connect(first.port)
                client.open(work.volume)
                client.whole_image_at()
                client.give(work.prompts["point", True])
            with link(server.port, _COUNTING, first.port):
                yield _after(side, passes, f"{case}, a cut connection", run, lambda: _click(client, work))  # noqa: B023
        with side.serve(served) as another, link(another.port, _COUNTING, first.port):
            yield _after(side, passes, f"{case}, a restarted server", run, lambda: _go_on(client, first.port, work))  # noqa: B023


def _after(side: Side, passes: Passes, case: str, run: int, act: Callable[[], object]) -> Record:
    started = time.monotonic()
    act()
    beyond = passes.seconds_beyond(started, time.monotonic())
    return Record("loss", side.name, case, run, {"beyond the network, s": beyond})


def _click(client: Client, work: Work) -> None:
    client.give(work.prompts["point", False])


def _go_on(client: Client, port: int, work: Work) -> None:
    """On a server that has never seen the client."""
    if isinstance(client, OfficialClient):
        mask = client.mask()
        client.close()
        client = OfficialClient.at(port)
        client.open(work.volume)
        client.start_from(mask)
    _click(client, work)
    client.close()


# ---- several clients, and memory ---------------------------------------------------------------------------


class ClientProcess:
    """A client in a process of its own, which runs a module."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = python_module(f"nninteractive_ws.benchmark.{module}", *arguments)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client ended with status {self.process.wait()}")
        return line

    def say(self, word: str = "") -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()


@contextmanager
def clients_at(side: Side, port: int, n: int, work: Path) -> Iterator[list[ClientProcess]]:
    """So many clients that have opened a volume and prompted once; ``work``: the folder that it is kept in."""
    with ExitStack() as stack:
        arguments = [side.name, str(port), str(work), str(_PROMPTS_EACH)]
        made = [ClientProcess("client", *arguments) for _ in range(n)]
        for one in made:
            stack.enter_context(one.process)
        for one in made:
            one.hear()
        yield made


def prompt_at_once(made: Sequence[ClientProcess]) -> list[dict[str, Any]]:
    """Let them give their prompts; what each of them measured."""
    for one in made:
        one.say()
    return [json.loads(one.hear()) for one in made]


def clients(served: Served, work: Path, case: str, times: int) -> Iterator[Record]:
    """Several clients at once, each with its own session, which click without a pause."""
    for n in CLIENTS:
        for run, side in in_turns(times):
            with side.serve(served) as server, clients_at(side, server.port, n, work) as made:
                told = prompt_at_once(made)
            given, first, final = np.concatenate([one["answers"] for one in told]).T
            measured = {
                "a prompt on average, s": float(final.max() - given.min()) / len(given),
                "first mask, median s": float(np.median(first - given)),
                "first mask, 95 % s": float(np.percentile(first - given, 95)),
                "result, median s": float(np.median(final - given)),
                "result, 95 % s": float(np.percentile(final - given, 95)),
            }
            yield Record("clients", side.name, f"{case}, clients: {n}", run, measured)


def memory(served: Served, work: Path, case: str) -> Iterator[Record]:
    """The most memory that server and client have had, and what a second session and a second segment add to it.

    An official session has one object: another is another session.
    """
    for side in SIDES:
        peaks = []
        for n in (1, 2):
            with side.serve(served) as server, clients_at(side, server.port, n, work) as made:
                told = prompt_at_once(made)
                peaks.append(server.peak_bytes())
                if n == 1 and side is OWN:
                    made[0].say("b")
                    made[0].hear()
                    segment = server.peak_bytes() - peaks[0]
        session = peaks[1] - peaks[0]
        measured = {
            "server, one session, MB": peaks[0] / 1e6,
            "server, a second session, MB": session / 1e6,
            "server, a second object, MB": (segment if side is OWN else session) / 1e6,
            "client, beside the volume, MB": told[0]["added"] / 1e6,
        }
        yield Record("memory", side.name, case, 0, measured)
