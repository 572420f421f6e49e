"""The order of an image's bricks, and how many are in flight."""

from collections.abc import Callable

from nninteractive_ws.bricks import Grid, Presence
from nninteractive_ws.geometry import Box, Index

#: A brick that is acknowledged later than this has waited in a buffer, and so would the message of a prompt.
_LATE_S = 0.2
_SMALLEST_WINDOW = 16
#: Bricks of one message: some hundred thousand bytes, packed in a few milliseconds.
_BRICKS_PER_MESSAGE = 8


class Upload:
    """The order of the bricks of an image: those that a prompt waits for, then the nearest to the user's focus.

    Few bricks are in flight at a time. The window grows while acknowledgements come quickly and shrinks when they are
    late, so that a prompt never waits behind the image, on any link.
    """

    def __init__(self, grid: Grid, max_in_flight: int, clock: Callable[[], float]) -> None:
        self.grid = grid
        self.presence: Presence | None = None  # unknown until the server has told which bricks it has
        self._clock = clock
        self._max_in_flight = max(1, max_in_flight)
        self._window = min(_SMALLEST_WINDOW, self._max_in_flight)
        self._in_flight: dict[int, float] = {}
        self._needed: list[int] = []
        i, j, k = grid.shape
        self._focus: Index = (i // 2, j // 2, k // 2)
        self._queue: list[int] = []

    def set_focus(self, focus: Index) -> None:
        """Send the bricks around a voxel first."""
        self._focus = focus
        self._order()

    def prioritize(self, box: Box) -> None:
        """Send the bricks of a box before all others, because a prompt waits for them."""
        self._needed = self.grid.within(box)
        self._order()

    def bricks_in(self, presence: bytes) -> list[int]:
        """Return the bricks that a welcome lists as present. Raises ValueError for another grid."""
        there = Presence.from_bytes(self.grid, presence)
        return [index for index in range(len(self.grid)) if index in there]

    def acknowledged(self, received: list[int]) -> None:
        """Note bricks that the server has. The first acknowledgement lists those from before."""
        now = self._clock()
        if self.presence is None:
            self.presence = Presence(self.grid)
            self._order()
        for index in received:
            if index < len(self.grid):
                self.presence.add(index)
            sent = self._in_flight.pop(index, None)
            if sent is not None:
                late = now - sent > _LATE_S
                self._window = max(_SMALLEST_WINDOW, self._window - 1) if late else self._window + 1
        self._window = min(self._window, self._max_in_flight)

    def next(self) -> list[int]:
        """Return the bricks of the next message: none if the window is full, or all are sent."""
        chosen: list[int] = []
        if self.presence is None:
            return chosen
        room = min(_BRICKS_PER_MESSAGE, self._window - len(self._in_flight))
        while self._queue and len(chosen) < room:
            index = self._queue.pop()
            if index not in self.presence and index not in self._in_flight:
                chosen.append(index)
        self._in_flight.update(dict.fromkeys(chosen, self._clock()))
        return chosen

    def _order(self) -> None:
        # Last first: next() pops from the end.
        self._queue = self.grid.nearest_first(self._focus, self._needed)[::-1]
