"""The measurements. Each alternates between the two systems, and yields a Measurement per run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
import json
from pathlib import Path
import subprocess
import time
from typing import Any

import numpy as np

from nninteractive_ws.benchmark.network_emulation import Link, LinkSpeed, link
from nninteractive_ws.benchmark.systems import (
    OFFICIAL,
    OWN,
    SYSTEMS,
    Client,
    OfficialClient,
    OwnClient,
    ServedModel,
    Server,
    SystemUnderTest,
)
from nninteractive_ws.benchmark.workload import Workload
from nninteractive_ws.evaluation.simulated_user import KINDS
from nninteractive_ws.masks import Mask
from nninteractive_ws.processes import python_module

LINKS = (
    LinkSpeed("1 Gbit/s", 1e9, 0.0),
    LinkSpeed("100 Mbit/s", 100e6, 0.0),
    LinkSpeed("20 Mbit/s, 20 ms", 20e6, 0.02),
)
#: nnInteractive's server normalizes an image after the upload has ended, for less than this time.
_NORMALIZATION_S = 2.0
#: Name of no link.
LOOPBACK = "loopback"
#: A link that only counts bytes.
_UNLIMITED = LinkSpeed("counting", 1e12, 0.0)
#: Numbers of simultaneous clients, and number of prompts of each.
CLIENTS, _PROMPTS_EACH = (1, 2, 4, 8), 6


@dataclass(frozen=True)
class Measurement:
    """One measurement. ``volume``: its size in voxels. ``measured``: values by quantity and unit."""

    part: str
    volume: str
    system: str
    case: str
    run: int
    measured: Mapping[str, float]


class PassLog:
    """Log of the network passes of both servers, written by benchmark.models."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def within(self, start: float, end: float) -> list[float]:
        """Return the seconds of each pass within an interval of time.monotonic(). Passes at its ends count in part."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        passes = [(float(began), float(began) + float(took)) for began, took in lines]
        return [min(ended, end) - max(began, start) for began, ended in passes if began < end and ended > start]

    def seconds_beyond(self, start: float, end: float) -> float:
        """Return the seconds of an interval in which no pass runs."""
        return end - start - sum(self.within(start, end))


@contextmanager
def serve_both(served: ServedModel) -> Iterator[dict[str, Server]]:
    """Start both servers. Yields them by the names of their systems."""
    with ExitStack() as stack:
        yield {system.name: stack.enter_context(system.serve(served)) for system in SYSTEMS}


def alternate(times: int) -> Iterator[tuple[int, SystemUnderTest]]:
    """Yield each system ``times`` times, in alternating order."""
    for run in range(times):
        for system in SYSTEMS if run % 2 == 0 else SYSTEMS[::-1]:
            yield run, system


# ---- first mask --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opening:
    """Times of time.monotonic(): connecting, the first mask, the result, and both result and whole image."""

    started: float
    first: float
    result: float
    complete: float


def first_mask(
    servers: Mapping[str, Server],
    pass_log: PassLog,
    workload: Workload,
    case: str,
    speed: LinkSpeed | None,
    times: int,
    *,
    part: str = "first mask",
    with_image: bool = False,
) -> Iterator[Measurement]:
    """Measure the time from connecting to the first mask, and to the result of its prompt.

    ``with_image``: also measure the upload of the whole image, while a prompt is processed and without a prompt.
    Official clients can only prompt after the upload. ``speed``: of the emulated link; None: loopback.
    """
    for run, system in alternate(times):
        with ExitStack() as stack:
            port = servers[system.name].port
            relay = None if speed is None else stack.enter_context(link(port, speed))
            reached = port if relay is None else relay.port
            opening = open_and_prompt(system, reached, workload)
            yield Measurement(part, workload.size, system.name, case, run, times_to_mask(opening, pass_log))
            if with_image:
                seconds = opening.complete - opening.started
                measured = {
                    "with a prompt meanwhile, s": seconds,
                    "beyond the network, s": pass_log.seconds_beyond(opening.started, opening.complete),
                }
                if relay is not None:
                    measured["image and prompt up, MB"] = relay.count()[0] / 1e6
                before = servers[system.name].processor_seconds()
                measured["without a prompt, s"] = open_image(system, reached, workload)
                time.sleep(_NORMALIZATION_S)
                measured["processor time of both ends, s"] = servers[system.name].processor_seconds() - before
                name = LOOPBACK if speed is None else speed.name
                yield Measurement("whole image", workload.size, system.name, name, run, measured)


def open_and_prompt(system: SystemUnderTest, port: int, workload: Workload) -> Opening:
    """Connect, open the volume, prompt, and wait for the result and the end of the upload."""
    started = time.monotonic()
    with closing(system.connect(port)) as client:
        client.open(workload.volume)
        answer = client.send_prompt(workload.prompts["point", True])
        uploaded = client.wait_for_upload()
    return Opening(started, answer.first, answer.final, max(uploaded, answer.final))


def times_to_mask(opening: Opening, pass_log: PassLog) -> dict[str, float]:
    """Return the seconds to the first mask, also without the network's passes until then, and to the result."""
    return {
        "first mask, s": opening.first - opening.started,
        "beyond the network, s": pass_log.seconds_beyond(opening.started, opening.first),
        "result, s": opening.result - opening.started,
    }


def open_image(system: SystemUnderTest, port: int, workload: Workload) -> float:
    """Connect and open the volume. Return the seconds to the end of its upload."""
    started = time.monotonic()
    with closing(system.connect(port)) as client:
        client.open(workload.volume)
        return client.wait_for_upload() - started


# ---- prompts -----------------------------------------------------------------------------------------------


def prompts(servers: Mapping[str, Server], pass_log: PassLog, workload: Workload, times: int) -> Iterator[Measurement]:
    """Measure prompts of each kind: seconds beyond the network's passes, and bytes in both directions.

    Positive prompts start from an empty segment, negative ones from its result. If large parts of a zoomed-out
    prediction are to be refined, nnInteractive draws patches at random. Then the systems may need different numbers of
    passes for a prompt, and the ratios are not meaningful.
    """
    with ExitStack() as stack:
        clients: dict[str, Client] = {}
        for system in SYSTEMS:
            clients[system.name] = client = system.connect(servers[system.name].port)
            stack.callback(client.close)
            client.open(workload.volume)
            client.wait_for_upload()
        for run, system in alternate(times):
            for kind, positive, measured in each_prompt(clients[system.name], workload, time_prompt(pass_log)):
                yield Measurement("prompts", workload.size, system.name, describe(kind, positive), run, measured)
    for system in SYSTEMS:
        with link(servers[system.name].port, _UNLIMITED) as relay:
            client = system.connect(relay.port)
            try:
                client.open(workload.volume)
                client.wait_for_upload()
                for kind, positive, measured in each_prompt(client, workload, _count_bytes(relay)):
                    yield Measurement("prompts", workload.size, system.name, describe(kind, positive), 0, measured)
            finally:
                client.close()


_Measure = Callable[[Callable[[], Any]], dict[str, float]]


def each_prompt(client: Client, workload: Workload, measure: _Measure) -> Iterator[tuple[str, bool, dict[str, float]]]:
    """Send each prompt of the workload, and yield its kind, its sign and what was measured."""
    for kind in KINDS:
        client.reset()
        for positive in (True, False):
            prompt = workload.prompts[kind, positive]
            yield kind, positive, measure(lambda: client.send_prompt(prompt))  # noqa: B023 - called at once


def time_prompt(pass_log: PassLog) -> _Measure:
    """Return a measure of a prompt's passes and seconds."""

    def measure(send: Callable[[], Any]) -> dict[str, float]:
        started = time.monotonic()
        answer = send()
        return {
            "passes": len(pass_log.within(started, answer.final)),
            "first mask, ms": 1e3 * (answer.first - started),
            **_milliseconds("result", pass_log, started, answer.final),
        }

    return measure


def _milliseconds(name: str, pass_log: PassLog, start: float, end: float) -> dict[str, float]:
    """Return the milliseconds of an interval, also without the network's passes."""
    return {f"{name}, ms": 1e3 * (end - start), "beyond the network, ms": 1e3 * pass_log.seconds_beyond(start, end)}


def _count_bytes(relay: Link) -> _Measure:
    def measure(send: Callable[[], Any]) -> dict[str, float]:
        before = relay.count()
        send()
        up, down = (after - b for after, b in zip(relay.count(), before, strict=True))
        return {"up, kB": up / 1e3, "down, kB": down / 1e3}

    return measure


def describe(kind: str, positive: bool) -> str:
    """Return a short name of a prompt: its sign and kind."""
    return f"{'positive' if positive else 'negative'} {kind}"


# ---- history and recovery ----------------------------------------------------------------------------------


def history(servers: Mapping[str, Server], pass_log: PassLog, workload: Workload, times: int) -> Iterator[Measurement]:
    """Measure undo, redo, and switching to another object and back.

    The official client has no redo, and a single object. Switching back to an object sends its mask, without its
    prompts. On both systems, the other object is empty before its click, and the first one has its first click.
    """
    with ExitStack() as stack:
        own = OwnClient(servers[OWN.name].port)
        stack.callback(own.close)
        official = OfficialClient.at(servers[OFFICIAL.name].port)
        stack.callback(official.close)
        clients: dict[str, OwnClient | OfficialClient] = {OWN.name: own, OFFICIAL.name: official}
        for client in clients.values():
            client.open(workload.volume)
            client.wait_for_upload()
        for run, system in alternate(times):
            for name, action in _history_of(clients[system.name], workload, run):
                started = time.monotonic()
                action()
                measured = _milliseconds("result", pass_log, started, time.monotonic())
                yield Measurement("history", workload.size, system.name, name, run, measured)


def _history_of(
    client: OwnClient | OfficialClient, workload: Workload, run: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    first, second = workload.prompts["point", True], workload.prompts["point", False]
    if isinstance(client, OwnClient):
        client.segment(f"a{run}")
    else:
        client.reset()
    client.send_prompt(first)
    client.send_prompt(second)
    yield "undo", client.undo
    if isinstance(client, OwnClient):
        yield "redo", client.redo
        client.undo()  # the official client continues with one click, because it has no redo
        yield "a click for another object", lambda: _in_segment(client, f"b{run}", lambda: client.send_prompt(first))
        yield "the next click for the first", lambda: _in_segment(client, f"a{run}", lambda: client.send_prompt(second))
    else:
        mask = client.mask()
        yield "a click for another object", lambda: _from_mask(client, None, lambda: client.send_prompt(first))
        yield "the next click for the first", lambda: _from_mask(client, mask, lambda: client.send_prompt(second))


def _in_segment(client: OwnClient, name: str, action: Callable[[], object]) -> None:
    client.segment(name)
    action()


def _from_mask(client: OfficialClient, mask: Mask | None, action: Callable[[], object]) -> None:
    client.reset()
    if mask is not None:
        client.start_from(mask)
    action()


def losses(served: ServedModel, pass_log: PassLog, workload: Workload, times: int) -> Iterator[Measurement]:
    """Measure recovery from a lost connection and from a restarted server.

    The time is from when the server is reachable again to the result of the next prompt. An official session does not
    survive its server. Its client uploads the volume and the mask again, and the earlier prompts are lost.
    """
    first, second = workload.prompts["point", True], workload.prompts["point", False]
    for run, system in alternate(times):
        with system.serve(served) as server:
            with link(server.port, _UNLIMITED) as relay:
                client = system.connect(relay.port)
                client.open(workload.volume)
                client.wait_for_upload()
                client.send_prompt(first)
            with link(server.port, _UNLIMITED, relay.port):
                started = time.monotonic()
                measured = _milliseconds("result", pass_log, started, client.send_prompt(second).final)
                yield Measurement("lost connections", workload.size, system.name, "a cut connection", run, measured)
        mask = client.mask()
        with system.serve(served) as another, link(another.port, _UNLIMITED, relay.port):
            started = time.monotonic()
            resumed = _resume(client, mask, relay.port, workload)
            measured = _milliseconds("result", pass_log, started, resumed.send_prompt(second).final)
            for each in {client, resumed}:
                each.close()
            yield Measurement("lost connections", workload.size, system.name, "a restarted server", run, measured)


def _resume(client: Client, mask: Mask, port: int, workload: Workload) -> Client:
    """Return a client that continues on a restarted server, which does not know the session."""
    if not isinstance(client, OfficialClient):
        return client
    another = OfficialClient.at(port)
    another.open(workload.volume)
    another.start_from(mask)
    return another


# ---- several clients, and memory ---------------------------------------------------------------------------


class ClientProcess:
    """A client in a process of its own that runs a module of this package."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = python_module(f"nninteractive_ws.benchmark.{module}", *arguments)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read_line(self) -> str:
        """Return the next line of its standard output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A client process ended with status {self.process.wait()}.")
        return line

    def write_line(self, text: str = "") -> None:
        """Write a line to its standard input, at which it continues."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()


@contextmanager
def clients_at(system: SystemUnderTest, port: int, n: int, workload_folder: Path) -> Iterator[list[ClientProcess]]:
    """Start ``n`` clients that have opened the saved workload and prompted once."""
    with ExitStack() as stack:
        arguments = [system.name, str(port), str(workload_folder), str(_PROMPTS_EACH)]
        processes = [ClientProcess("client", *arguments) for _ in range(n)]
        for client in processes:
            stack.enter_context(client.process)
        for client in processes:
            client.read_line()
        yield processes


def prompt_at_once(processes: Sequence[ClientProcess]) -> list[dict[str, Any]]:
    """Let all clients send their prompts at once. Return the report of each."""
    for client in processes:
        client.write_line()
    return [json.loads(client.read_line()) for client in processes]


def clients(
    served: ServedModel, pass_log: PassLog, workload: Workload, workload_folder: Path, times: int
) -> Iterator[Measurement]:
    """Measure simultaneous clients, each with its own session, that prompt without a pause.

    ``workload_folder``: contains the saved workload.
    """
    for n in CLIENTS:
        for run, system in alternate(times):
            with system.serve(served) as server, clients_at(system, server.port, n, workload_folder) as processes:
                answers = [report["answers"] for report in prompt_at_once(processes)]
            case = "1 client" if n == 1 else f"{n} clients"
            measured = _times_of_clients(answers, pass_log)
            yield Measurement("several clients", workload.size, system.name, case, run, measured)


def _times_of_clients(answers: Sequence[Sequence[Sequence[float]]], pass_log: PassLog) -> dict[str, float]:
    """Summarize the prompts of each client: the times at which they were sent, first answered, and done."""
    sent, first, final = np.concatenate(answers).T
    started, ended = float(sent.min()), float(final.max())
    measured = {
        "first mask, median s": float(np.median(first - sent)),
        "first mask, 95 % s": float(np.percentile(first - sent, 95)),
        "result, median s": float(np.median(final - sent)),
        "result, 95 % s": float(np.percentile(final - sent, 95)),
        "a prompt on average, s": (ended - started) / len(sent),
        "beyond the network, s": pass_log.seconds_beyond(started, ended) / len(sent),
    }
    if len(answers) > 1:
        # While all of them prompt. Then a client that is done leaves its share to the others.
        start, end = max(of[0][0] for of in answers), min(of[-1][2] for of in answers)
        counts = [prompts_within([(sent, final) for sent, _, final in of], start, end) for of in answers]
        measured["slowest client's prompts, % of the mean"] = 100 * min(counts) / float(np.mean(counts))
    return measured


def prompts_within(prompts: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Return how many prompts, each from sending to result, were processed in an interval.

    Those at its ends count in part.
    """
    return sum(max(0.0, min(final, end) - max(sent, start)) / (final - sent) for sent, final in prompts)


def memory(served: ServedModel, workload: Workload, workload_folder: Path) -> Iterator[Measurement]:
    """Measure the peak memory of server and client, and the increase by a second session and a second segment.

    An official session has a single object, so a second object needs a second session. ``served``: on the CPU, because
    only memory of the host is measured, and this project's server keeps images in the memory of a GPU.
    ``workload_folder``: contains the saved workload.
    """
    for system in SYSTEMS:
        peaks = []
        for n in (1, 2):
            with system.serve(served) as server, clients_at(system, server.port, n, workload_folder) as processes:
                reports = prompt_at_once(processes)
                peaks.append(server.peak_bytes())
                if n == 1 and system is OWN:
                    processes[0].write_line("b")
                    processes[0].read_line()
                    segment = server.peak_bytes() - peaks[0]
        session = peaks[1] - peaks[0]
        for case, value in {
            "server, one session": peaks[0],
            "server, a second session in addition": session,
            "server, a second object in addition": segment if system is OWN else session,
            "client, beside the volume": reports[0]["added"],
        }.items():
            yield Measurement("memory", workload.size, system.name, case, 0, {"peak, MB": value / 1e6})
