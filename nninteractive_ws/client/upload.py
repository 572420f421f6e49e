"""The order of an image's bricks and their layers, and how many are in flight."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
import math
from typing import get_args

import numpy as np

from nninteractive_ws.arrays import Compression
from nninteractive_ws.bricks import Grid, Presence
from nninteractive_ws.client.link import Link, SentMessage
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.messages import MAX_BASE_LAYERS, Layer

#: A brick whose acknowledgement takes longer than the fastest one by this has waited in a buffer, and so would the
#: message of a prompt.
_LATE_S = 0.2
#: The window shrinks by this factor, and again only if a brick that was sent after that is late, too.
_SHRINK = 0.75
#: The window at first, and the smallest later, in whole bricks.
_SMALLEST_WINDOW = 8
#: A message has as many whole bricks as the link takes in this time, within these limits. The larger minimum is for
#: messages for which no request waits, since many small ones take more processor time.
_MESSAGE_S, _MIN_PER_MESSAGE, _MIN_PER_UNHURRIED, _MAX_PER_MESSAGE = 0.01, 2, 8, 16
#: The window has at least so many messages. With fewer, the link would be idle until the next acknowledgement.
_MESSAGES_IN_FLIGHT = 4
#: Size of a base layer in the window and in a message, in whole bricks.
_BASE_SIZE = 0.25
#: If the bricks that a prompt waits for take longer, their base layers are sent first.
_SLOW_S = 1.0


@dataclass(frozen=True)
class BrickPart:
    """A brick, or one layer of it. ``distance``: from the prompt, for which its layers were made, in voxels."""

    index: int
    layer: Layer = "whole"
    distance: float = field(default=0.0, compare=False)

    @property
    def size(self) -> float:
        """Size in whole bricks, roughly. Enhancement layers are hardly smaller."""
        return _BASE_SIZE if self.layer == "base" else 1.0


class Upload:
    """The order of the bricks of an image: those that a prompt waits for, then the nearest to the user's focus.

    Few bricks are in flight at a time. The window grows while acknowledgements come quickly and shrinks when they are
    late, so that a prompt never waits behind the image, on any link. If the link is slow, or not known yet, the bricks
    that a prompt waits for are sent in two layers: first the base layers of all, then their enhancement layers.

    ``clock``: returns seconds. ``link``: what earlier uploads of the connection have shown.
    """

    def __init__(self, grid: Grid, max_in_flight: int, clock: Callable[[], float], link: Link) -> None:
        self.grid = grid
        self.presence: Presence | None = None  # unknown until the server has told which bricks it has
        self._clock, self._link = clock, link
        self._max_in_flight = max(1, max_in_flight)
        self._window: float = min(_SMALLEST_WINDOW, self._max_in_flight)
        self._shortest_delay = math.inf  # of an acknowledgement
        self._shrunk_at = -math.inf  # time at which the window last shrank
        self._in_flight: dict[BrickPart, float] = {}
        self._awaited: Box | None = None
        self._prompted: Index | None = None
        self._base_layers_suffice = False
        i, j, k = grid.shape
        self._focus: Index = (i // 2, j // 2, k // 2)
        # Bricks of the awaited box, and the orders in which bricks are sent, the last first. They are computed when
        # they are needed.
        self._is_ordered = False
        self._needed = np.zeros(0, np.intp)
        self._queue: list[int] = []
        self._base_queue: list[int] = []
        # Bricks that are sent in layers, and are not present yet: their distances from the prompt.
        self._with_base: dict[int, float] = {}
        # Messages in flight by their first part.
        self._messages: dict[BrickPart, SentMessage] = {}

    def set_focus(self, focus: Index) -> None:
        """Send the bricks around a voxel first."""
        self._focus = focus
        self._is_ordered = False

    def prioritize(self, box: Box | None, base_layers_suffice: bool = False, prompted: Index | None = None) -> None:
        """Send the bricks of a box before all others, because a request waits for them, or for their base layers.

        None: no request waits. ``prompted``: the voxel of the prompt, near which layers are finer; None: the focus.
        """
        self._base_layers_suffice, self._prompted = base_layers_suffice, prompted
        if box != self._awaited:
            self._awaited = box
            self._is_ordered = False

    def bricks_in(self, presence: bytes) -> list[int]:
        """Return the bricks that a welcome lists as present. Raises ValueError for another grid."""
        there = Presence.from_bytes(self.grid, presence)
        return [index for index in range(len(self.grid)) if index in there]

    @property
    def present_count(self) -> int:
        """Number of bricks that the server has, as far as it has told."""
        return 0 if self.presence is None else self.presence.count

    @property
    def compression(self) -> Compression:
        """The compression for the next whole bricks."""
        return self._link.compression

    def sent(self, parts: Sequence[BrickPart], nbytes: int, compression: Compression) -> None:
        """Note the size of the message of some parts, before it is sent. May be called from another thread.

        ``compression``: of its whole bricks.
        """
        if any(part.layer != "whole" for part in parts):
            compression = "bits"
        started = self._in_flight.get(parts[0], self._clock())
        self._messages[parts[0]] = SentMessage(_size(parts), nbytes, compression, started)

    def acknowledged(self, received: Sequence[int], base: Sequence[int] = ()) -> None:
        """Note bricks that the server has, and those of which it has only the base layer.

        The first acknowledgement lists those from before.
        """
        if self.presence is None:
            self.presence = Presence(self.grid)
        for index in received:
            if index < len(self.grid):
                self.presence.add(index)
            self._with_base.pop(index, None)
            for layer in get_args(Layer):
                self._arrived(BrickPart(index, layer))
        for index in base:
            self._arrived(BrickPart(index, "base"))
        self._window = min(self._window, self._max_in_flight)

    def _arrived(self, part: BrickPart) -> None:
        now = self._clock()
        sent = self._in_flight.pop(part, None)
        if sent is None:
            return
        self._shortest_delay = min(self._shortest_delay, now - sent)
        if now - sent <= self._shortest_delay + _LATE_S:
            self._window += part.size
        elif sent >= self._shrunk_at:
            self._window = max(_SMALLEST_WINDOW, _SHRINK * self._window)
            self._shrunk_at = now
        message = self._messages.pop(part, None)
        if message is not None:
            self._link.acknowledge(message, now)

    def next(self, layered: bool) -> list[BrickPart]:
        """Return the parts of the next message: none if the window is full, or all are sent.

        ``layered``: whether bricks may be sent in layers.
        """
        if self.presence is None:
            return []
        if not self._is_ordered:
            self._order()
        available = min(self._message_size(), self._window - _size(self._in_flight))
        max_parts = self._max_in_flight - len(self._in_flight)
        base_layers = min(int(available / _BASE_SIZE), max_parts)
        layered = layered and self._base_layers_suffice and self._is_slow()
        chosen = self._next_base_layers(base_layers) if layered else []
        # Base layers have messages of their own, so that a preview does not wait for enhancement layers.
        has_base_layers = bool(chosen)
        while not has_base_layers and self._queue and _size(chosen) <= available - 1 and len(chosen) < max_parts:
            index = self._queue.pop()
            distance = self._with_base.get(index)
            part = BrickPart(index) if distance is None else BrickPart(index, "enhancement", distance)
            if index not in self.presence and part not in self._in_flight:
                chosen.append(part)
        self._in_flight.update(dict.fromkeys(chosen, self._clock()))
        return chosen

    def _message_size(self) -> float:
        """Return the size of the next message in whole bricks."""
        rate = self._link.bricks_per_second
        if rate is None:
            return _MIN_PER_MESSAGE
        least = _MIN_PER_MESSAGE if self._awaited is not None else _MIN_PER_UNHURRIED
        most = min(_MAX_PER_MESSAGE, max(_MIN_PER_MESSAGE, self._window / _MESSAGES_IN_FLIGHT))
        return min(max(least, rate * _MESSAGE_S), most)

    def _next_base_layers(self, max_parts: int) -> list[BrickPart]:
        assert self.presence is not None
        chosen: list[BrickPart] = []
        while self._base_queue and len(chosen) < max_parts and len(self._with_base) < MAX_BASE_LAYERS:
            index = self._base_queue.pop()
            sent = index in self._with_base or BrickPart(index) in self._in_flight
            if index not in self.presence and not sent:
                self._with_base[index] = distance = self.grid.distance(index, self._prompted or self._focus)
                chosen.append(BrickPart(index, "base", distance))
        return chosen

    def _is_slow(self) -> bool:
        """Whether the bricks that a prompt waits for would take long, as far as is known."""
        assert self.presence is not None
        rate = self._link.bricks_per_second
        return rate is None or self.presence.missing(self._needed) > _SLOW_S * rate

    def _order(self) -> None:
        needed = [] if self._awaited is None else self.grid.within(self._awaited)
        order = self.grid.nearest_first(self._focus, needed)
        self._needed = np.array(needed, np.intp)
        # Last first: next() pops from the end.
        self._queue = order[::-1]
        self._base_queue = order[: len(needed)][::-1]
        self._is_ordered = True


def _size(parts: Iterable[BrickPart]) -> float:
    """Return the size of parts in whole bricks."""
    return sum(part.size for part in parts)
