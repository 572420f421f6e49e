"""Kill workers while several users prompt, and compare every mask: ``python -m tools.worker_chaos``.

A real server is started, with the embedded model on several local workers. Each user repeats the same prompts on its
own image, and compares each mask with that of an undisturbed run. At the end, the longest wait is printed.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import numpy.typing as npt

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.server.local_server import LISTENING

SHAPE, SPACING = (96, 80, 72), (3.5, 3.5, 3.5)
#: Points of each round: positive ones, and a negative one.
POINTS = (((48, 40, 36), True), ((30, 30, 30), True), ((60, 50, 40), False), ((40, 44, 30), True))
#: Seconds between a user's prompts.
PAUSE_S = 0.5
_RECONNECT_FOR_S = 600.0

Masks = list[npt.NDArray[np.bool_]]


@dataclass
class Outcome:
    """Observations of a user. ``given_up``: prompts that the user had to send again."""

    prompts: int = 0
    wrong: int = 0
    losses: int = 0
    given_up: int = 0
    waits: list[float] = field(default_factory=list)


def run_round(session: nni.Session, outcome: Outcome, expected: Masks | None) -> Masks:
    """Send the prompts once. Compare each mask, or return them if there is nothing to compare with."""
    segment = session.segment("organ")
    found = []
    for number, (point, positive) in enumerate(POINTS):
        asked = time.monotonic()
        while True:
            try:
                segment.add_point(point, positive=positive)
                break
            except errors.WorkerLost:  # its worker was killed twice during this prompt, which the client gives up then
                outcome.given_up += 1
        outcome.waits.append(time.monotonic() - asked)
        outcome.prompts += 1
        found.append(segment.mask.copy())
        outcome.wrong += expected is not None and not np.array_equal(found[-1], expected[number])
    segment.reset()
    return found


def use(address: str, seed: int, expected: Masks, end: float, outcome: Outcome) -> None:
    """Be a user until ``end``."""

    def count(event: nni.events.Connection) -> None:
        outcome.losses += event.state == "lost"

    with nni.connect(address, reconnect_for=_RECONNECT_FOR_S, on={"connection": count}) as session:
        session.set_image(make_image(seed))
        while time.monotonic() < end:
            run_round(session, outcome, expected)
            time.sleep(PAUSE_S)


def make_image(seed: int) -> npt.NDArray[np.int16]:
    return make_phantom(seed, SHAPE, SPACING).image


def worker_processes(gateway: int) -> list[int]:
    """Return the process ids of a gateway's workers."""
    children = Path(f"/proc/{gateway}/task/{gateway}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [pid for pid, command in commands.items() if b"nninteractive_ws.engine.worker" in command]


def kill_in_turn(gateway: int, every_s: float, end: float) -> int:
    """Kill a random worker every few seconds. Return how many were killed."""
    killed = 0
    while time.monotonic() + every_s < end:
        time.sleep(every_s)
        if workers := worker_processes(gateway):
            os.kill(random.choice(workers), signal.SIGKILL)
            killed += 1
    return killed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args(arguments)
    command = [sys.executable, "-m", "nninteractive_ws", "serve", "--port", "0", "--model", "demo", "--device"]
    command += [",".join(["cpu"] * args.workers), "--log-level", "critical", "--memory", "2", "--end-with-stdin"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as gateway,
    ):
        try:
            assert gateway.stdout is not None
            address = gateway.stdout.readline().decode().removeprefix(LISTENING).strip()
            return _run(address, gateway.pid, args)
        finally:
            gateway.terminate()


def _run(address: str, gateway: int, args: argparse.Namespace) -> int:
    expected = []
    for seed in range(args.users):
        with nni.connect(address) as session:
            session.set_image(make_image(seed))
            expected.append(run_round(session, Outcome(), None))
    outcomes = [Outcome() for _ in range(args.users)]
    end = time.monotonic() + 60 * args.minutes
    with ThreadPoolExecutor(args.users) as pool:
        users = [pool.submit(use, address, seed, expected[seed], end, outcomes[seed]) for seed in range(args.users)]
        killed = kill_in_turn(gateway, args.kill_every, end)
        for user in users:
            user.result()
    waits = np.array([wait for outcome in outcomes for wait in outcome.waits])
    wrong = sum(outcome.wrong for outcome in outcomes)
    print(
        f"{args.users} users, {args.workers} workers, {killed} killed: {len(waits)} prompts, {wrong} wrong masks, "
        f"{sum(outcome.losses for outcome in outcomes)} lost connections, "
        f"{sum(outcome.given_up for outcome in outcomes)} prompts sent again by the user. Seconds for a prompt: median "
        f"{np.median(waits):.2f}, 95 % {np.quantile(waits, 0.95):.2f}, longest {waits.max():.2f}."
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
