"""Is doctor's estimate of a first mask right? ``python -m benchmarks.first_mask [ADDRESS]``

Each time, doctor looks at the server; then a CT of the size that it estimates for is opened and clicked, and the
first preview waited for. Without an address, a server with the embedded model is started on this computer, where
client and server share the processors. The token is that of NNINTERACTIVE_WS_TOKEN.
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
from nninteractive_ws.client.checkup import Checkup
from nninteractive_ws.server.local import local_server

TOKEN = os.environ.get("NNINTERACTIVE_WS_TOKEN")


def ct(shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """A ball in soft tissue, with noise: as a file is read, the first axis runs fastest."""
    volume = np.empty(shape, np.int16, order="F")
    rng = np.random.default_rng()  # another each time, so that no brick is there already
    i, j = np.ogrid[: shape[0], : shape[1]]
    for k in range(shape[2]):
        ball = (i - shape[0] / 2) ** 2 + (j - shape[1] / 2) ** 2 + (k - shape[2] / 2) ** 2 <= 30**2
        volume[:, :, k] = np.rint(np.where(ball, 120, 20) + rng.normal(0, 20, shape[:2]))
    return volume


async def estimate(address: str) -> dict[str, Any]:
    """What doctor says of the first mask. Raises RuntimeError where it finds something wrong."""
    last = [finding async for finding in Checkup(address, token=TOKEN, ca=None).run()][-1]
    if last.status == "failed":
        raise RuntimeError(last.found)
    return last.data


async def first_preview(address: str, volume: npt.NDArray[np.int16]) -> float:
    """Seconds from opening the volume, with a click in its middle, to the first mask."""
    seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    async with await nni.aconnect(address, token=TOKEN) as session:
        session.on("mask_delta", lambda _: seen.done() or seen.set_result(time.monotonic()))
        started = time.monotonic()
        await session.set_image(volume)
        click = session.segment("ball").add_point([n // 2 for n in volume.shape])
        await asyncio.gather(click, seen)
        return seen.result() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    own: AbstractContextManager[str] = local_server("--model", "demo", "--log-level", "warning")
    table = Table("estimate s", "first preview s", "ratio")
    ratios = []
    with nullcontext(options.address) if options.address else own as address:
        for _ in range(options.times):
            said = asyncio.run(estimate(address))
            measured = asyncio.run(first_preview(address, ct(tuple(said["shape"]))))
            ratios.append(said["seconds"] / measured)
            table.add_row(f"{said['seconds']:.2f}", f"{measured:.2f}", f"{ratios[-1]:.2f}")
    console = Console()
    console.print(table)
    console.print(f"median ratio {statistics.median(ratios):.2f}")
    console.print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
