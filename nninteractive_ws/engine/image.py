"""The image on the worker, which stores bricks, normalized, as they arrive, and waits for those that a pass needs."""

from collections.abc import Callable, Sequence
import contextlib
import threading
import time

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from nninteractive_ws import arrays, layers
from nninteractive_ws.bricks import Grid, Presence, Statistics
from nninteractive_ws.errors import BadImage, BadMessage, Cancelled
from nninteractive_ws.geometry import Box
from nninteractive_ws.messages import MAX_BASE_LAYERS, Brick, SetImage


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

    ``voxels``: float32 tensor (1, X, Y, Z), (voxel - mean) / std in bricks that have arrived, an estimate of it in
    bricks of which only the base layer has arrived, else 0.
    """

    def __init__(self, announced: SetImage, device: torch.device) -> None:
        self.name, self.dtype = announced.image, announced.dtype
        self.grid = Grid(announced.shape)
        self.statistics = Statistics(announced.mean, announced.std)
        self.voxels = zeros((1, *announced.shape), torch.float32, device)
        # On the default stream, on which all sessions' passes run, each brick would wait for the passes before it.
        self._copy_stream = _stream_after_pending_work(device) if device.type == "cuda" else None
        self.presence = Presence(self.grid)
        # Bricks of which at least the base layer has arrived, and those base layers whose enhancement has not.
        self._estimated = Presence(self.grid)
        self._base_layers: dict[int, Brick] = {}
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

    @property
    def base_layer_bytes(self) -> int:
        """Bytes of the base layers that are kept for their enhancement layers."""
        return sum(len(brick.data) for brick in list(self._base_layers.values()))

    def put(self, bricks: Sequence[Brick]) -> int:
        """Unpack, normalize and store bricks and layers, from one thread at a time. Return how many were new.

        Raises BadMessage, TooLarge or BadImage. The bricks before the invalid one are stored nevertheless.
        """
        new = 0
        try:
            for brick in bricks:
                if self._is_new(brick):
                    self._store(brick)
                    new += 1
        finally:
            with self._arrived:
                self._arrived.notify_all()
        return new

    def _is_new(self, brick: Brick) -> bool:
        if brick.index >= len(self.grid):
            raise BadMessage(
                f"Brick {brick.index} is not in the image, which has {len(self.grid)} bricks. Number them from 0."
            )
        base = self._base_layers.get(brick.index) if brick.layer == "base" else None
        return brick.index not in self.presence and (base is None or base.low_bits != brick.low_bits)

    def forget_base_layers(self) -> None:
        """Drop the base layers that are kept for their enhancement layers. Their bricks are to be sent anew."""
        self._base_layers.clear()

    def _store(self, brick: Brick) -> None:
        box = self.grid.box(brick.index)
        layer = self._unpack_layer(brick, box.shape)
        normalized = self._normalize(self._voxels_of(brick, layer))
        if not np.isfinite(normalized).all():
            raise BadImage(
                f"Brick {brick.index} of the image has voxels that are not finite, or not after normalization with the "
                f"mean {self.statistics.mean:g} and the standard deviation {self.statistics.std:g}. Send an image "
                "without NaN and infinite voxels, and with its own mean and standard deviation."
            )
        # This needs no lock. Bricks do not overlap, and no pass reads a brick before it is marked as present. The pass
        # for a preview may read a brick while its enhancement layer is stored, which does no harm.
        self._write(box, torch.from_numpy(normalized))
        with self._arrived:
            self._estimated.add(brick.index)
            # At once, because the same message may have the other layer.
            if brick.layer == "base":
                self._base_layers[brick.index] = _without_padding(brick, layer)
            else:
                self.presence.add(brick.index)
                self._base_layers.pop(brick.index, None)

    def _write(self, box: Box, values: torch.Tensor) -> None:
        """Write voxels, and wait until they are written."""
        stream = self._copy_stream
        with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
            self.voxels[0][box.slices] = values.to(self.voxels.device)
        if stream is not None:
            # Passes read the voxels on another stream. If the image is released, its memory is reused on that one, too.
            stream.synchronize()

    def _voxels_of(self, brick: Brick, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return the voxels of a brick from its unpacked layer; for a base layer, their estimates."""
        if brick.layer == "whole":
            return values
        if brick.layer == "base":
            if len(self._base_layers) >= MAX_BASE_LAYERS and brick.index not in self._base_layers:
                raise BadMessage(
                    f"{MAX_BASE_LAYERS:,} bricks have a base layer alone, which is the limit. Send their enhancement "
                    "layers first."
                )
            return layers.estimate_voxels(values, brick.low_bits)
        base = self._base_layers.get(brick.index)
        if base is None or base.low_bits != brick.low_bits:
            raise BadMessage(
                f"The enhancement layer of brick {brick.index} has {brick.low_bits} bits, but there is no base layer "
                "without these bits. Send that first, or the whole brick."
            )
        return layers.combine_layers(self._unpack_layer(base, values.shape), values)

    def _unpack_layer(self, brick: Brick, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        values = arrays.unpack(brick.data, brick.encoding, self.dtype, shape)
        if brick.layer == "whole":
            return values
        most = layers.max_low_bits(values.dtype)
        if not 1 <= brick.low_bits <= most:
            raise BadMessage(
                f"Layers of {self.dtype} voxels cannot be divided at {brick.low_bits} low bits. Use 1 to {most}."
            )
        part = layers.base_layer if brick.layer == "base" else layers.enhancement_layer
        if not np.array_equal(part(values, brick.low_bits).view(np.uint8), values.view(np.uint8)):
            raise BadMessage(
                f"The {brick.layer} layer of brick {brick.index} has bits of the other layer. The {brick.low_bits} "
                "lowest bits belong to the enhancement layer, and all others to the base layer."
            )
        return values

    def _normalize(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        # In float32, first the difference and then the quotient, to match nnInteractive bit for bit.
        with np.errstate(over="ignore", invalid="ignore"):
            normalized = values.astype(np.float32)
            normalized -= np.float32(self.statistics.mean)
            normalized /= np.float32(self.statistics.std)
        return normalized

    def is_present(self, box: Box) -> bool:
        """Whether every brick of ``box`` is present, with all its layers."""
        return not self.presence.missing(self._bricks_in(box))

    def _bricks_in(self, box: Box) -> npt.NDArray[np.intp]:
        return np.array(self.grid.within(box), np.intp)

    def wait_for(
        self, box: Box, cancelled: Callable[[], bool], report: Callable[[int, int], None], *, estimates: bool = False
    ) -> float:
        """Block until every brick of ``box`` is present. Return the seconds waited.

        ``estimates``: whether base layers are enough. ``report(present, needed)`` is called if it has to wait, and
        whenever the number of present bricks has changed. Raises Cancelled if ``cancelled()`` is true, which is checked
        at every :meth:`wake` and every arrival.
        """
        needed = self._bricks_in(box)
        enough = self._estimated if estimates else self.presence
        started, last_reported = time.monotonic(), -1
        with self._arrived:
            while enough.missing(needed):
                missing = self.presence.missing(needed)
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


def _stream_after_pending_work(device: torch.device) -> torch.cuda.Stream:
    """Return a CUDA stream that starts after the work in the current one, such as filling a new tensor with zeros."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _without_padding(brick: Brick, values: npt.NDArray[np.generic]) -> Brick:
    """Return a brick whose data are not longer than its values. A hostile client can pad them to a message's limit."""
    if len(brick.data) <= values.nbytes:
        return brick
    return msgspec.structs.replace(brick, encoding="raw", data=values.tobytes())
