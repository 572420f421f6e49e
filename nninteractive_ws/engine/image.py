"""The image on the worker: bricks as they arrive, normalised, and waiting for those that a pass needs."""

from collections.abc import Callable, Sequence
import threading
import time

import numpy as np
import numpy.typing as npt
import torch

from nninteractive_ws import arrays
from nninteractive_ws.bricks import Grid, Presence, Statistics
from nninteractive_ws.errors import BadImage, BadMessage, Cancelled
from nninteractive_ws.geometry import Box
from nninteractive_ws.messages import Brick, SetImage


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, on the host without a look at the memory: a page is there once it is written.

    torch.zeros writes all of it, which for a large image and its interaction channels takes a third of a second, and
    most of the pages of the channels are never needed.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    plain = np.zeros(shape, torch.empty(0, dtype=dtype).numpy().dtype)
    return torch.from_numpy(plain)


class BrickImage:
    """A volume filled brick by brick.

    ``voxels``: float32 tensor (1, X, Y, Z), (voxel - mean) / std where a brick has arrived, else 0.
    """

    def __init__(self, announced: SetImage, device: torch.device) -> None:
        self.name, self.dtype = announced.image, announced.dtype
        self.grid = Grid(announced.shape)
        self.statistics = Statistics(announced.mean, announced.std)
        self.voxels = zeros((1, *announced.shape), torch.float32, device)
        self.presence = Presence(self.grid)
        self._arrived = threading.Condition()

    def is_of(self, announced: SetImage) -> bool:
        """Whether an announcement is of this very image, so that the bricks that are here serve again."""
        return (self.name, self.dtype, self.shape, self.statistics) == (
            announced.image,
            announced.dtype,
            announced.shape,
            Statistics(announced.mean, announced.std),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape

    def put(self, bricks: Sequence[Brick]) -> None:
        """Unpack, normalise and store bricks, from any thread; those that are there already are ignored.

        Raises BadMessage, TooLarge or BadImage; those before the bad one are stored all the same.
        """
        stored: list[int] = []
        try:
            for brick in bricks:
                self._store(brick)
                stored.append(brick.index)
        finally:
            with self._arrived:
                for index in stored:
                    self.presence.add(index)
                self._arrived.notify_all()

    def _store(self, brick: Brick) -> None:
        if brick.index >= len(self.grid):
            raise BadMessage(f"Brick {brick.index} was sent for an image of {len(self.grid)} bricks.")
        if brick.index in self.presence:
            return
        box = self.grid.box(brick.index)
        values = arrays.unpack(brick.data, brick.encoding, self.dtype, box.shape)
        normalised = self._normalise(values)
        if not np.isfinite(normalised).all():
            raise BadImage(
                f"Brick {brick.index} of the image has voxels that are not finite, or not after they are normalized "
                f"with the mean {self.statistics.mean:g} and the standard deviation {self.statistics.std:g}."
            )
        # No lock: bricks do not overlap, and no pass reads a brick before it is marked as present.
        self.voxels[0][box.slices] = torch.from_numpy(normalised).to(self.voxels.device)

    def _normalise(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        # In float32, first the difference and then the quotient: what nnInteractive does, bit for bit.
        with np.errstate(over="ignore", invalid="ignore"):
            normalised = values.astype(np.float32)
            normalised -= np.float32(self.statistics.mean)
            normalised /= np.float32(self.statistics.std)
        return normalised

    def wait_for(self, box: Box, cancelled: Callable[[], bool], report: Callable[[int, int], None]) -> float:
        """Block until every brick of ``box`` is there; returns the seconds waited.

        ``report(present, needed)`` is called when it has to wait and whenever one more has come.
        Raises Cancelled once ``cancelled()`` is true; :meth:`wake` makes it look.
        """
        needed = np.array(self.grid.within(box), np.intp)
        started, last = time.monotonic(), -1
        with self._arrived:
            while missing := self.presence.missing(needed):
                if cancelled():
                    raise Cancelled("The request was cancelled while it waited for the image.")
                if len(needed) - missing != last:
                    last = len(needed) - missing
                    report(last, len(needed))
                self._arrived.wait()
        return time.monotonic() - started if last >= 0 else 0.0

    def wake(self) -> None:
        """Let those who wait look whether they were cancelled."""
        with self._arrived:
            self._arrived.notify_all()
