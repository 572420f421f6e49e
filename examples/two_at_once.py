"""Asyncio client: two segments of one image, prompted at the same time.

With a running server:

    nninteractive-ws serve --model demo &
    python examples/two_at_once.py [ADDRESS]
"""

import asyncio
import sys

import nninteractive_ws as nni
from nninteractive_ws.client.events import Progress
from nninteractive_ws.demo.phantom import Phantom, make_phantom
from nninteractive_ws.evaluation.simulated_user import deepest_voxel


async def segment(session: nni.AsyncSession, phantom: Phantom, organ: str) -> None:
    """Send a point at the deepest voxel of an organ."""
    result = await session.segment(organ).add_point(deepest_voxel(phantom.mask(organ)))
    waited = result.timings.queued + result.timings.waiting_for_image
    print(f"{organ}: {result.voxels:,} voxels after {result.timings.total:.1f} s, {waited:.1f} s of them waiting")


def show(event: Progress) -> None:
    print(f"{event.segment}: {event.state} {event.done}/{event.total}")


async def main(address: str = "ws://127.0.0.1:1528") -> None:
    phantom = make_phantom(seed=1)
    async with await nni.aconnect(address) as session:
        session.on("progress", show)
        await session.set_image(phantom.image)
        async with asyncio.TaskGroup() as tasks:
            for organ in ("right kidney", "left kidney"):
                tasks.create_task(segment(session, phantom, organ))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
