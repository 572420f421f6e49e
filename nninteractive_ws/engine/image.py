"""The image on the worker, which stores bricks, normalized, as they arrive, and waits for those that a pass needs."""

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
    """Return a tensor of zeros. On the host, its pages are allocated when they are first written.

    torch.zeros writes all pages. For a large image and its interaction channels that takes a third of a second, and
    most pages of the channels are never needed.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    plain = np.zeros(shape, torch.empty(0, dtype=dtype).numpy().dtype)
    return torch.from_numpy(plain)


class BrickImage:
    """A volume that is filled brick by brick.

    ``voxels``: float32 tensor (1, X, Y, Z), (voxel - mean) / std in bricks that have arrived, else 0.
    """

    def __init__(self, announced: SetImage, device: torch.device) -> None:
        self.name, self.dtype = announced.image, announced.dtype
        self.grid = Grid(announced.shape)
        self.statistics = Statistics(announced.mean, announced.std)
        self.voxels = zeros((1, *announced.shape), torch.float32, device)
        self.presence = Presence(self.grid)
        self._arrived = threading.Condition()

    def matches(self, announced: SetImage) -> bool:
        """Whether an announcement is of this image, so that its bricks can be reused."""
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
        """Unpack, normalize and store bricks, from any thread. Bricks that are present already are ignored.

        Raises BadMessage, TooLarge or BadImage. The bricks before the invalid one are stored nevertheless.
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
            raise BadMessage(
                f"Brick {brick.index} is not in the image, which has {len(self.grid)} bricks. Number them from 0."
            )
        if brick.index in self.presence:
            return
        box = self.grid.box(brick.index)
        values = arrays.unpack(brick.data, brick.encoding, self.dtype, box.shape)
        normalized = self._normalize(values)
        if not np.isfinite(normalized).all():
            raise BadImage(
                f"Brick {brick.index} of the image has voxels that are not finite, or not after normalization with the "
                f"mean {self.statistics.mean:g} and the standard deviation {self.statistics.std:g}. Send an image "
                "without NaN and infinite voxels, and with its own mean and standard deviation."
            )
        # This needs no lock. Bricks do not overlap, and no pass reads a brick before it is marked as present.
        self.voxels[0][box.slices] = torch.from_numpy(normalized).to(self.voxels.device)

    def _normalize(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        # In float32, first the difference and then the quotient, to match nnInteractive bit for bit.
        with np.errstate(over="ignore", invalid="ignore"):
            normalized = values.astype(np.float32)
            normalized -= np.float32(self.statistics.mean)
            normalized /= np.float32(self.statistics.std)
        return normalized

    def wait_for(self, box: Box, cancelled: Callable[[], bool], report: Callable[[int, int], None]) -> float:
        """Block until every brick of ``box`` is present. Return the seconds waited.

        ``report(present, needed)`` is called if it has to wait, and whenever the number of present bricks has changed.
        Raises Cancelled if ``cancelled()`` is true, which is checked at every :meth:`wake` and every arrival.
        """
        needed = np.array(self.grid.within(box), np.intp)
        started, last_reported = time.monotonic(), -1
        with self._arrived:
            while missing := self.presence.missing(needed):
                if cancelled():
                    raise Cancelled(
                        "The request was cancelled while it waited for the image. The segment is unchanged."
                    )
                if len(needed) - missing != last_reported:
                    last_reported = len(needed) - missing
                    report(last_reported, len(needed))
                self._arrived.wait()
        return time.monotonic() - started if last_reported >= 0 else 0.0

    def wake(self) -> None:
        """Wake threads in :meth:`wait_for`, so that they check for cancellation."""
        with self._arrived:
            self._arrived.notify_all()
