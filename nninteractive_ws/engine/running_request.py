"""Timings, progress and cancellation of the request that a session is running."""

from collections.abc import Callable
import time

from nninteractive_ws.engine.outbox import Outbox
from nninteractive_ws.errors import Cancelled
from nninteractive_ws.geometry import Box
from nninteractive_ws.messages import Progress, ProgressState, Request, Timings


class RunningRequest:
    """Timings and progress of one request.

    ``arrived``: time.monotonic() of its arrival. All other times are durations in seconds. ``is_cancelled`` may be
    called from any thread.
    """

    def __init__(self, request: Request, arrived: float, outbox: Outbox, is_cancelled: Callable[[], bool]) -> None:
        self.id, self._arrived, self._outbox, self.is_cancelled = request.id, arrived, outbox, is_cancelled
        self.queued = time.monotonic() - arrived
        self.waiting_for_image = self.network = 0.0
        self.passes = 0
        #: Whether it waits for bricks of the image.
        self.awaits_bricks = False

    def timings(self) -> Timings:
        return Timings(
            queued=self.queued,
            waiting_for_image=self.waiting_for_image,
            network=self.network,
            passes=self.passes,
            total=time.monotonic() - self._arrived,
        )

    def check_cancelled(self) -> None:
        """Raise Cancelled if the request is cancelled."""
        if self.is_cancelled():
            raise Cancelled("The request was cancelled. The segment is unchanged.")

    def report(
        self,
        state: ProgressState,
        done: int = 0,
        total: int = 0,
        box: Box | None = None,
        base_layers_suffice: bool = False,
    ) -> None:
        """Send progress to the client. ``box``: the part of the image that the request waits for, or for whose base
        layers."""
        pairs = None if box is None else box.pairs
        self._outbox.put(
            Progress(
                id=self.id, state=state, done=done, total=total, box=pairs, base_layers_suffice=base_layers_suffice
            )
        )

    def report_queue(self, ahead: int) -> None:
        """Send the position in the device's queue. ``ahead``: the number of passes ahead, 0 once its pass starts."""
        self.report("queued" if ahead else "predicting", ahead)
