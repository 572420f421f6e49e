"""Compare doctor's estimate of the time to a first mask with measurements: ``python -m tools.first_mask [ADDRESS]``.

Each run estimates the time with doctor. Then it opens a CT of the size in the estimate, sends a point, and waits for
the first preview. Without an address, a server with the embedded model is started on this computer, and shares its
processors with the client. The token is read from NNINTERACTIVE_WS_TOKEN.
"""

import argparse
import asyncio
from contextlib import AbstractContextManager, nullcontext
import os
import statistics
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import nninteractive_ws as nni
from nninteractive_ws.client import events
from nninteractive_ws.doctor.checks import Doctor
from nninteractive_ws.server.local_server import local_server

TOKEN = os.environ.get("NNINTERACTIVE_WS_TOKEN")


def ct(shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """Return a ball in soft tissue, with noise. As in a volume read from a file, the first axis is contiguous."""
    volume = np.empty(shape, np.int16, order="F")
    rng = np.random.default_rng()  # unseeded, so that the server has no brick of an earlier volume
    i, j = np.ogrid[: shape[0], : shape[1]]
    for k in range(shape[2]):
        ball = (i - shape[0] / 2) ** 2 + (j - shape[1] / 2) ** 2 + (k - shape[2] / 2) ** 2 <= 30**2
        volume[:, :, k] = np.rint(np.where(ball, 120, 20) + rng.normal(0, 20, shape[:2]))
    return volume


async def estimate(address: str) -> dict[str, Any]:
    """Return doctor's estimate of the first mask. Raises RuntimeError if a check fails."""
    last = [result async for result in Doctor(address, token=TOKEN, ca=None).run()][-1]
    if last.status == "failed":
        raise RuntimeError(last.found)
    return last.data


async def first_preview(address: str, volume: npt.NDArray[np.int16]) -> float:
    """Return the seconds from opening the volume, with a point in its center, to the first mask."""
    first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    async with await nni.aconnect(address, token=TOKEN) as session:

        def notice(_: events.MaskDelta) -> None:
            if not first.done():
                first.set_result(time.monotonic())

        session.on("mask_delta", notice)
        started = time.monotonic()
        await session.set_image(volume)
        prompt = session.segment("ball").add_point([n // 2 for n in volume.shape])
        await asyncio.gather(prompt, first)
        return first.result() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", help="address of the server, default a new one on this machine")
    parser.add_argument("--times", type=int, default=5, help="number of runs, default 5")
    options = parser.parse_args()
    local: AbstractContextManager[str] = local_server("--model", "demo", "--log-level", "warning")
    table = Table("estimate s", "first preview s", "ratio")
    ratios = []
    with nullcontext(options.address) if options.address else local as address:
        for _ in range(options.times):
            estimated = asyncio.run(estimate(address))
            measured = asyncio.run(first_preview(address, ct(tuple(estimated["shape"]))))
            ratios.append(estimated["seconds"] / measured)
            table.add_row(f"{estimated['seconds']:.2f}", f"{measured:.2f}", f"{ratios[-1]:.2f}")
    console = Console()
    console.print(table)
    console.print(f"median ratio {statistics.median(ratios):.2f}")
    console.print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
