"""Measure the latency of the gateway while its worker is busy: ``python -m tools.ping``.

A real server is started. A connection pings it every 10 ms while its model loads, while an image of 134 MB is uploaded,
and while a prompt is predicted. A ping does not wait for the previous one, so that a late pong does not hide the next
ones. Image and prompt come from a separate process, as from another machine, but on the same processors.
"""

import argparse
import asyncio
from collections import defaultdict
import os
import statistics
import sys
import threading
import time

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import ClientConnection, connect

import nninteractive_ws as nni
from nninteractive_ws import protocol
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.messages import Hello
from nninteractive_ws.server.local_server import local_server

SHAPE = (512, 512, 256)
EVERY_S = 0.01
LIMIT_MS = 50.0
IDLE_S = 3.0

#: Phases that the load process prints.
READY, UPLOADING, PREDICTING, DONE = "ready", "upload", "prediction", "done"
LOADING, IDLE = "model loading", "idle"


# ---- the load process --------------------------------------------------------------------------------------


def create_load() -> None:
    """Create the volume, read the server's address from standard input, upload the volume, and predict a prompt."""
    volume = make_volume()
    print(READY, flush=True)
    address = sys.stdin.readline().strip()
    uploaded = threading.Event()
    with nni.connect(address) as session:

        def notice(event: events.ImageProgress) -> None:
            if event.present == event.total:
                uploaded.set()

        session.on("image_progress", notice)
        print(UPLOADING, flush=True)
        session.set_image(volume)
        uploaded.wait()
        print(PREDICTING, flush=True)
        outline = np.zeros(SHAPE, bool)
        outline[100:400, 120:380, 128] = True
        session.segment("a").add_lasso(outline)
        print(DONE, flush=True)


def make_volume() -> npt.NDArray[np.int16]:
    """Return a volume of 134 MB: copies of a small phantom with incompressible noise."""
    body = make_phantom(0, (128, 128, 64)).image
    volume = np.tile(body, tuple(n // m for n, m in zip(SHAPE, body.shape, strict=True)))
    for slab in volume:
        slab += np.random.default_rng(len(slab)).integers(-15, 16, slab.shape, np.int16)
    return volume


# ---- the measuring process ---------------------------------------------------------------------------------


class Pinger:
    """Pings every 10 ms, and records the round-trip times in milliseconds by the phase at sending."""

    def __init__(self, connection: ClientConnection) -> None:
        self.phase = LOADING
        self.delays_ms: dict[str, list[float]] = defaultdict(list)
        self._connection = connection
        self._pings: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Ping until cancelled."""
        due = time.perf_counter()
        while True:
            task = asyncio.ensure_future(self._ping(self.phase))
            self._pings.add(task)
            task.add_done_callback(self._pings.discard)
            due = max(due + EVERY_S, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())

    async def _ping(self, phase: str) -> None:
        sent = time.perf_counter()
        await (await self._connection.ping())
        self.delays_ms[phase].append(1000 * (time.perf_counter() - sent))


async def measure() -> dict[str, list[float]]:
    """Return the round-trip times of all pings in milliseconds by phase."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.ping", "--create-load",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert (await child.stdout.readline()).decode().strip() == READY
    with local_server("--model", "demo", "--log-level", "warning") as address:
        async with connect(address, compression=None, proxy=None, ping_interval=None) as connection:
            pinger = Pinger(connection)
            pinging = asyncio.ensure_future(pinger.run())
            await connection.send(protocol.encode(Hello(version=protocol.PROTOCOL_VERSION, encodings=["raw"])))
            await connection.recv()  # the notice that the model loads
            await connection.recv()  # the welcome
            pinger.phase = IDLE
            await asyncio.sleep(IDLE_S)
            child.stdin.write(f"{address}\n".encode())
            async for line in child.stdout:
                pinger.phase = line.decode().strip()
            await child.wait()
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
            return pinger.delays_ms


def show(delays_ms: dict[str, list[float]]) -> bool:
    """Print a table. Return whether the 99th percentile is within the limit in each phase."""
    table = Table("while", "pings", "median ms", "99th percentile ms", "max ms", f"within {LIMIT_MS:g} ms")
    passed = True
    for phase in (LOADING, IDLE, UPLOADING, PREDICTING):
        delays = delays_ms[phase]
        percentile = float(np.percentile(delays, 99))
        passed = passed and percentile <= LIMIT_MS
        figures = (f"{x:.1f}" for x in (statistics.median(delays), percentile, max(delays)))
        table.add_row(phase, str(len(delays)), *figures, "yes" if percentile <= LIMIT_MS else "[bold red]no[/]")
    console = Console()
    console.print(table)
    console.print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--create-load", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().create_load:
        create_load()
        return
    sys.exit(0 if show(asyncio.run(measure())) else 1)


if __name__ == "__main__":
    main()
