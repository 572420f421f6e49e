"""Polled client: for a program with a main loop, which must not block, and in which other threads starve.

In Qt, ``tick`` would be connected to the ``timeout`` signal of a QTimer. Here a plain loop stands for the program.

With a running server:

    nninteractive-ws serve --model demo &
    python examples/timer_loop.py [ADDRESS]
"""

import sys
import time

import nninteractive_ws as nni
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation.simulated_user import deepest_voxel

INTERVAL_S = 0.02


class Window:
    """Stand-in for a window that shows an image."""

    def __init__(self, address: str) -> None:
        phantom = make_phantom(seed=1)
        self.session = nni.PolledSession(address)
        self.finished = False
        self.longest_tick = 0.0
        # The session is not connected yet. Commands are queued, and never block.
        self.session.set_image(phantom.image)
        self.point = deepest_voxel(phantom.mask("spleen"))
        self.request: int | None = None

    def tick(self) -> None:
        """Run the session for a few milliseconds, and handle its events."""
        started = time.monotonic()
        for event in self.session.poll():
            self.handle(event)
        self.longest_tick = max(self.longest_tick, time.monotonic() - started)

    def handle(self, event: events.Event) -> None:
        match event:
            case events.Connection(state="open"):
                print("connected")
            case events.Connection(state="lost", reason=reason):
                print(f"connection lost, reconnecting: {reason}")
            case events.ImageProgress() if self.request is None:
                # The image is announced. Prompts are possible from now on, long before the upload ends.
                self.request = self.session.segment("spleen").add_point(self.point)
            case events.MaskDelta():
                mask = self.session.segment("spleen").mask  # the whole mask; event.box is the changed region
                print(f"{'result' if event.final else 'preview'}: {mask.sum():,} voxels")
            case events.Done(result=result) if result.request == self.request:
                self.finished = True
            case events.Failed(error=error):
                raise error


def main(address: str = "ws://127.0.0.1:1528") -> None:
    window = Window(address)
    ticks = 0
    while not window.finished:
        window.tick()
        ticks += 1
        time.sleep(INTERVAL_S)  # the rest of the program, such as painting
    window.session.close()
    print(f"{ticks} ticks, the longest took {window.longest_tick * 1000:.0f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
