"""Blocking client: a point prompt, and mask previews while the network runs.

With a running server:

    nninteractive-ws serve --model demo &
    python examples/live_preview.py [ADDRESS]
"""

import sys
import time

import nninteractive_ws as nni
from nninteractive_ws.client.events import MaskDelta
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation.simulated_user import deepest_voxel


def main(address: str = "ws://127.0.0.1:1528") -> None:
    phantom = make_phantom(seed=1)  # any 3-D array is possible; this one is indexed (i, j, k)
    started = time.monotonic()

    def show(event: MaskDelta) -> None:
        # Called on the client's thread, so it must not block.
        kind = "result " if event.final else "preview"
        print(f"{time.monotonic() - started:6.2f} s  {kind}  {event.segment}: {event.voxels:,} voxels in {event.box}")

    with nni.connect(address) as session:
        model = session.server.model
        print(f"model {model.name} ({model.license}) on {session.server.device}")
        session.on("mask_delta", show)
        session.set_image(phantom.image)  # the upload runs in the background; prompts need not wait for it
        liver = session.segment("liver")
        result = liver.add_point(deepest_voxel(phantom.mask("liver")))
        print(f"{result.timings.network:.2f} s in the network, in {result.timings.passes} passes")

        liver.undo()  # removes the prompt and its mask
        liver.redo()
        sent, received = session.bytes_sent / 1e6, session.bytes_received / 1e3
        print(f"{liver.voxels:,} voxels; sent {sent:.1f} MB, received {received:.1f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
