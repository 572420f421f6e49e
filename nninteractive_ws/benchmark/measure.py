"""The measurements. Each alternates between the two systems, and yields a Measurement per run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
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
#: A link that only counts bytes.
_UNLIMITED = LinkSpeed("counting", 1e12, 0.0)
#: Numbers of simultaneous clients, and number of prompts of each.
CLIENTS, _PROMPTS_EACH = (1, 2, 4, 8), 6


@dataclass(frozen=True)
class Measurement:
    """One measurement. ``measured``: values by quantity and unit."""

    part: str
    system: str
    case: str
    run: int
    measured: Mapping[str, float]


class PassLog:
    """Log of the network passes of both servers, written by benchmark.models."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def between(self, start: float, end: float) -> list[float]:
        """Return the seconds of each pass that started in an interval of time.monotonic()."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return [float(took) for began, took in lines if start <= float(began) <= end]

    def seconds_beyond(self, start: float, end: float) -> float:
        """Return the seconds of an interval outside of passes."""
        return end - start - sum(self.between(start, end))


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


def first_mask(
    servers: Mapping[str, Server], workload: Workload, case: str, speed: LinkSpeed | None, times: int
) -> Iterator[Measurement]:
    """Measure the time from connecting to the first mask, and to the complete upload of the image.

    The upload is measured while a prompt is processed, and without a prompt. Official clients can only prompt after the
    upload. ``speed``: of the emulated link; None: loopback.
    """
    for run, system in alternate(times):
        with ExitStack() as stack:
            port = servers[system.name].port
            relay = None if speed is None else stack.enter_context(link(port, speed))
            reached = port if relay is None else relay.port
            measured = open_and_prompt(system, reached, workload)
            if relay is not None:
                measured["image and prompt up, MB"] = relay.count()[0] / 1e6
            measured["whole image, s"] = open_image(system, reached, workload)
        yield Measurement("first mask", system.name, case, run, measured)


def open_and_prompt(system: SystemUnderTest, port: int, workload: Workload) -> dict[str, float]:
    """Connect, open the volume and prompt. Return the seconds to the first mask, to the result, and to both."""
    started = time.monotonic()
    with closing(system.connect(port)) as client:
        client.open(workload.volume)
        answer = client.send_prompt(workload.prompts["point", True])
        uploaded = client.wait_for_upload()
    return {
        "first mask, s": answer.first - started,
        "result, s": answer.final - started,
        "whole image and mask, s": max(uploaded, answer.final) - started,
    }


def open_image(system: SystemUnderTest, port: int, workload: Workload) -> float:
    """Connect and open the volume. Return the seconds to the end of its upload."""
    started = time.monotonic()
    with closing(system.connect(port)) as client:
        client.open(workload.volume)
        return client.wait_for_upload() - started


# ---- prompts -----------------------------------------------------------------------------------------------


def prompts(
    servers: Mapping[str, Server], pass_log: PassLog, workload: Workload, case: str, times: int
) -> Iterator[Measurement]:
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
                yield Measurement("prompt", system.name, f"{case}, {describe(kind, positive)}", run, measured)
    for system in SYSTEMS:
        with link(servers[system.name].port, _UNLIMITED) as relay:
            client = system.connect(relay.port)
            try:
                client.open(workload.volume)
                client.wait_for_upload()
                for kind, positive, measured in each_prompt(client, workload, _count_bytes(relay)):
                    yield Measurement("prompt", system.name, f"{case}, {describe(kind, positive)}", 0, measured)
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
            "passes": len(pass_log.between(started, answer.final)),
            "first mask, s": answer.first - started,
            "result, s": answer.final - started,
            "beyond the network, ms": 1e3 * pass_log.seconds_beyond(started, answer.final),
        }

    return measure


def _count_bytes(relay: Link) -> _Measure:
    def measure(send: Callable[[], Any]) -> dict[str, float]:
        before = relay.count()
        send()
        up, down = (after - b for after, b in zip(relay.count(), before, strict=True))
        return {"up, kB": up / 1e3, "down, kB": down / 1e3}

    return measure


def describe(kind: str, positive: bool) -> str:
    """Return a short name of a prompt: its kind and sign."""
    return f"{kind} {'+' if positive else '-'}"


# ---- history and recovery ----------------------------------------------------------------------------------


def history(
    servers: Mapping[str, Server], pass_log: PassLog, workload: Workload, case: str, times: int
) -> Iterator[Measurement]:
    """Measure undo, redo, and switching to another object and back: milliseconds beyond the network's passes.

    The official client has no redo, and a single object. Switching back to an object sends its mask, without its
    prompts.
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
            for name, action in _history_of(clients[system.name], workload):
                started = time.monotonic()
                action()
                ended = time.monotonic()
                beyond = 1e3 * pass_log.seconds_beyond(started, ended)
                yield Measurement("history", system.name, f"{case}, {name}", run, {"beyond the network, ms": beyond})


def _history_of(client: OwnClient | OfficialClient, workload: Workload) -> Iterator[tuple[str, Callable[[], object]]]:
    first, second = workload.prompts["point", True], workload.prompts["point", False]
    client.reset()
    client.send_prompt(first)
    client.send_prompt(second)
    yield "undo", client.undo
    if isinstance(client, OwnClient):
        yield "redo", client.redo
        yield "another object", lambda: _in_segment(client, "b", lambda: client.send_prompt(first))
        yield "and back", lambda: _in_segment(client, "a", lambda: client.send_prompt(second))
    else:
        mask = client.mask()
        yield "another object", lambda: _from_mask(client, None, lambda: client.send_prompt(first))
        yield "and back", lambda: _from_mask(client, mask, lambda: client.send_prompt(second))


def _in_segment(client: OwnClient, name: str, action: Callable[[], object]) -> None:
    client.segment(name)
    action()


def _from_mask(client: OfficialClient, mask: Mask | None, action: Callable[[], object]) -> None:
    client.reset()
    if mask is not None:
        client.start_from(mask)
    action()


def losses(served: ServedModel, pass_log: PassLog, workload: Workload, case: str, times: int) -> Iterator[Measurement]:
    """Measure recovery from a lost connection and from a restarted server.

    The result is the time in seconds from when the server is reachable again to the result of the next prompt, beyond
    the network's passes. An official session does not survive its server. Its client uploads the volume and the mask
    again, and the earlier prompts are lost.
    """
    for run, system in alternate(times):
        with system.serve(served) as server:
            with link(server.port, _UNLIMITED) as first:
                client = system.connect(first.port)
                client.open(workload.volume)
                client.wait_for_upload()
                client.send_prompt(workload.prompts["point", True])
            with link(server.port, _UNLIMITED, first.port):
                yield _measure_loss(
                    system, pass_log, f"{case}, a cut connection", run, partial(_prompt_again, client, workload)
                )
        with system.serve(served) as another, link(another.port, _UNLIMITED, first.port):
            yield _measure_loss(
                system, pass_log, f"{case}, a restarted server", run, partial(_resume, client, first.port, workload)
            )


def _measure_loss(
    system: SystemUnderTest, pass_log: PassLog, case: str, run: int, action: Callable[[], object]
) -> Measurement:
    started = time.monotonic()
    action()
    beyond = pass_log.seconds_beyond(started, time.monotonic())
    return Measurement("loss", system.name, case, run, {"beyond the network, s": beyond})


def _prompt_again(client: Client, workload: Workload) -> None:
    client.send_prompt(workload.prompts["point", False])


def _resume(client: Client, port: int, workload: Workload) -> None:
    """Continue on a restarted server, which does not know the session."""
    if isinstance(client, OfficialClient):
        mask = client.mask()
        client.close()
        client = OfficialClient.at(port)
        client.open(workload.volume)
        client.start_from(mask)
    _prompt_again(client, workload)
    client.close()


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


def clients(served: ServedModel, workload_folder: Path, case: str, times: int) -> Iterator[Measurement]:
    """Measure simultaneous clients, each with its own session, that prompt without a pause."""
    for n in CLIENTS:
        for run, system in alternate(times):
            with system.serve(served) as server, clients_at(system, server.port, n, workload_folder) as processes:
                reports = prompt_at_once(processes)
            sent, first, final = np.concatenate([report["answers"] for report in reports]).T
            measured = {
                "a prompt on average, s": float(final.max() - sent.min()) / len(sent),
                "first mask, median s": float(np.median(first - sent)),
                "first mask, 95 % s": float(np.percentile(first - sent, 95)),
                "result, median s": float(np.median(final - sent)),
                "result, 95 % s": float(np.percentile(final - sent, 95)),
            }
            yield Measurement("clients", system.name, f"{case}, clients: {n}", run, measured)


def memory(served: ServedModel, workload_folder: Path, case: str) -> Iterator[Measurement]:
    """Measure the peak memory of server and client, and the increase by a second session and a second segment.

    An official session has a single object, so a second object needs a second session.
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
        measured = {
            "server, one session, MB": peaks[0] / 1e6,
            "server, a second session, MB": session / 1e6,
            "server, a second object, MB": (segment if system is OWN else session) / 1e6,
            "client, beside the volume, MB": reports[0]["added"] / 1e6,
        }
        yield Measurement("memory", system.name, case, 0, measured)
