"""Measurements with two clients on this project's server: nnInteractive's own, and this project's.

They measure a click beside a heavy user, and the cost of nnInteractive's HTTP API. Each client is a case, which is
paired with the same values of nnInteractive's server.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from pathlib import Path
import time

import numpy as np

from nninteractive_ws.benchmark.measure import (
    ClientProcess,
    Measurement,
    PassLog,
    describe,
    each_prompt,
    open_and_prompt,
    open_image,
    time_prompt,
    times_to_mask,
)
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN, OWN_HTTP, Client, Server, SystemUnderTest
from nninteractive_ws.benchmark.workload import Workload

_SYSTEMS = (OFFICIAL, OWN_HTTP, OWN)
#: Seconds of clicks alone, of the heavy user alone, and of both. The latter two hold several of its prompts.
_CLICKS_ALONE_S, _HEAVY_ALONE_S, _BOTH_S = 4.0, 30.0, 30.0
#: Pause after each click.
_PAUSE_S = 0.3


def fairness(
    servers: Mapping[str, Server], pass_log: PassLog, workload: Workload, workload_folder: Path, times: int
) -> Iterator[Measurement]:
    """Measure clicks alone, a user who prompts large boxes without a pause alone, and both at once.

    ``workload_folder``: contains the saved workload.
    """

    def measure(system: SystemUnderTest) -> dict[str, float]:
        port = _port(servers, system)
        client = system.connect(port)
        try:
            client.open(workload.volume)
            client.wait_for_upload()
            client.send_prompt(workload.prompts["point", True])  # warm-up, not measured
            alone = _click(client, workload, _CLICKS_ALONE_S)
            beyond = [pass_log.seconds_beyond(*interval) for interval in alone]
            heavy = ClientProcess("heavy_user", system.name, str(port), str(workload_folder))
            with heavy.process:  # it ends at the end of its standard input
                heavy.read_line()
                started = time.monotonic()
                time.sleep(_HEAVY_ALONE_S)
                joined = time.monotonic()
                beside = _click(client, workload, _BOTH_S)
                ended = time.monotonic()
                heavy.write_line()
                results = json.loads(heavy.read_line())
        finally:
            client.close()
        return {
            **_summary("a click alone", [end - start for start, end in alone]),
            "beyond the network, median s": float(np.median(beyond)),
            **_summary("beside the heavy user", [end - start for start, end in beside]),
            **_heavy_summary(results, started, joined, ended),
        }

    return _compare("a click beside a heavy user", workload, times, measure)


def _summary(name: str, seconds: list[float]) -> dict[str, float]:
    return {f"{name}, median s": float(np.median(seconds)), f"{name}, maximum s": max(seconds)}


def _heavy_summary(results: Sequence[float], started: float, joined: float, ended: float) -> dict[str, float]:
    """Summarize the times of the heavy user's results: alone until another user joined, and beside that user.

    A quantity without enough results is left out.
    """
    alone, beside = _a_minute(results, started, joined), _a_minute(results, joined, ended)
    share = None if alone is None or beside is None else 100 * beside / alone
    summary = {
        "heavy user alone, prompts a minute": alone,
        "heavy user beside clicks, prompts a minute": beside,
        "share that the heavy user keeps, %": share,
    }
    return {name: value for name, value in summary.items() if value is not None}


def _a_minute(results: Sequence[float], start: float, end: float) -> float | None:
    """Return the results a minute from the first to the last one of a period. None: there are not two.

    The prompts before the first and after the last result do not count. They were partly processed outside the period,
    where prompts are faster or slower.
    """
    within = [result for result in results if start <= result <= end]
    return 60 * (len(within) - 1) / (within[-1] - within[0]) if len(within) > 1 else None


def _click(client: Client, workload: Workload, seconds: float) -> list[tuple[float, float]]:
    """Click for some time, at least once, as on a new object. Return the times of each click and its result."""
    intervals: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    while not intervals or time.monotonic() < end:
        client.reset()
        started = time.monotonic()
        intervals.append((started, client.send_prompt(workload.prompts["point", True]).final))
        time.sleep(_PAUSE_S)
    return intervals


def api_cost(servers: Mapping[str, Server], pass_log: PassLog, workload: Workload, times: int) -> Iterator[Measurement]:
    """Measure the upload of the image, the first mask, and prompts without the network's passes."""
    clients = {system.name: system.connect(_port(servers, system)) for system in _SYSTEMS}

    def measure(system: SystemUnderTest) -> dict[str, float]:
        port, client = _port(servers, system), clients[system.name]
        measured = {
            "whole image, s": open_image(system, port, workload),
            **times_to_mask(open_and_prompt(system, port, workload), pass_log),
        }
        prompts = list(each_prompt(client, workload, time_prompt(pass_log)))
        for kind, positive, prompt in prompts:
            measured[f"{describe(kind, positive)} beyond the network, ms"] = prompt["beyond the network, ms"]
        return {**measured, "passes of all prompts": sum(prompt["passes"] for *_, prompt in prompts)}

    try:
        for client in clients.values():
            client.open(workload.volume)
            client.wait_for_upload()
            for prompt in workload.prompts.values():  # warm-up, not measured
                client.send_prompt(prompt)
        yield from _compare("cost of the HTTP API", workload, times, measure)
    finally:
        for client in clients.values():
            client.close()


def _compare(
    part: str, workload: Workload, times: int, measure: Callable[[SystemUnderTest], dict[str, float]]
) -> Iterator[Measurement]:
    """Measure the systems in alternating order, and pair each client of this project's server with the official one."""
    for run in range(times):
        order = _SYSTEMS if run % 2 == 0 else _SYSTEMS[::-1]
        measured = {system.name: measure(system) for system in order}
        for system, client in ((OWN_HTTP, "official client"), (OWN, "own client")):
            for compared, name in ((OFFICIAL, OFFICIAL.name), (OWN, system.name)):
                yield Measurement(part, workload.size, compared.name, client, run, measured[name])


def _port(servers: Mapping[str, Server], system: SystemUnderTest) -> int:
    return servers[OFFICIAL.name if system is OFFICIAL else OWN.name].port
