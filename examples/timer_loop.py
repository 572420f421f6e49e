"""The polled client: for a program with a main loop, where nothing may wait and other threads starve.

In Qt, ``tick`` would be connected to a QTimer's ``timeout``; here a loop stands for the program.

With a server at hand:

    nninteractive-ws serve --model demo &
    python examples/timer_loop.py [ADDRESS]
"""

import sys
import time

import nninteractive_ws as nni
from nninteractive_ws.client import events
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.evaluation.user import middle

INTERVAL_S = 0.02


class Window:
    """What a window with an image would do."""

    def __init__(self, address: str) -> None:
        phantom = make_phantom(seed=1)
        self.session = nni.PolledSession(address)
        self.finished = False
        self.longest_tick = 0.0
        # Nothing has connected yet, and nothing waits: commands may be given at any time.
        self.session.set_image(phantom.image)
        self.click = middle(phantom.mask("spleen"))
        self.clicked: int | None = None

    def tick(self) -> None:
        """Moves the session on for a few milliseconds, and looks at what has happened."""
        started = time.monotonic()
        for event in self.session.poll():
            self.take(event)
        self.longest_tick = max(self.longest_tick, time.monotonic() - started)

    def take(self, event: events.Event) -> None:
        match event:
            case events.Connection(state="open"):
                print("connected")
            case events.Connection(state="lost", reason=reason):
                print(f"lost, it will be back: {reason}")
            case events.ImageProgress() if self.clicked is None:
                # The image is announced: from now on there may be clicks, long before all of it is there.
                self.clicked = self.session.core.add_point("spleen", self.click)
            case events.MaskDelta():
                mask = self.session.core.segment("spleen").mask  # the whole of it; event.box is what has changed
                print(f"{'result' if event.final else 'preview'}: {mask.sum():,} voxels")
            case events.Done(result=result) if result.request == self.clicked:
                self.finished = True
            case events.Failed(error=error):
                raise error


def main(address: str = "ws://127.0.0.1:1528") -> None:
    window = Window(address)
    ticks = 0
    while not window.finished:
        window.tick()
        ticks += 1
        time.sleep(INTERVAL_S)  # the rest of the program: painting, the mouse
    window.session.close()
    print(f"{ticks} ticks, the longest of {window.longest_tick * 1000:.0f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
