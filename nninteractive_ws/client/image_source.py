"""A volume of the user, checked and ready to be sent: its statistics, its digest and its bricks."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property, partial
import hashlib
import math
import os

import numpy as np
import numpy.typing as npt

from nninteractive_ws import arrays
from nninteractive_ws.arrays import Compression
from nninteractive_ws.bricks import Grid, Statistics, check_size
from nninteractive_ws.client.array_like import ArrayLike, to_array
from nninteractive_ws.client.upload import BrickPart
from nninteractive_ws.errors import BadImage
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.layers import base_layer, choose_low_bits, enhancement_layer, low_bits_of_brick
from nninteractive_ws.messages import Brick, Encoding

# Statistics are computed in blocks larger than bricks, which takes fewer calls; a block's doubles still fit a cache.
_BLOCK = 64
# Statistics are bound by memory bandwidth: more threads are not faster.
_MAX_THREADS = 8

#: The largest integer up to which float32 holds all integers.
_MAX_EXACT = 2**24
# An image that float32 rounds must have more steps than these from its minimum to its maximum, and in a standard
# deviation. With fewer, the rounding would show as bands.
_MIN_STEPS, _MIN_STEPS_OF_STD = 64, 4

#: Wire dtype by numpy dtype name. The network computes in float32, so wider types are converted to it.
_WIRE_DTYPES = {
    "bool": "uint8",
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32")},
    **dict.fromkeys(("int64", "uint64", "float64", "float128", "float96", "longdouble"), "float32"),
}
# Voxels of four bytes travel in the first of these types that holds them exactly. A CT that a library has converted to
# floats then has half the bytes.
_SMALL_DTYPES = ("uint8", "int16", "uint16")


class ImageSource:
    """A volume of the user. It can be announced once :meth:`step` or :meth:`finish` has computed its statistics.

    ``statistics``: for normalization. ``name``: a digest of voxels, shape and type, 32 hexadecimal digits. ``dtype``:
    the one in which the voxels travel. ``low_bits``: the number of bits in most enhancement layers; 0: bricks are
    better sent without layers. The voxels are read when their brick is sent, so the array must not change meanwhile.

    Raises BadImage or TooLarge for an array that is no volume.
    """

    statistics: Statistics
    name: str
    dtype: str
    low_bits: int

    def __init__(self, image: ArrayLike) -> None:
        self.volume = check_volume(image)
        self._boxes = _boxes_of_blocks(self.volume)
        self._blocks: list[BlockStatistics] = []

    @classmethod
    def of(cls, image: ArrayLike) -> "ImageSource":
        """A finished source. Raises BadImage or TooLarge."""
        source = cls(image)
        source.finish()
        return source

    def step(self) -> bool:
        """Compute the statistics of the next block, a millisecond of work. Return whether there are more.

        Raises BadImage for voxels that are not finite, and at the last block for a volume of (almost) one value.
        """
        self._blocks.append(block_statistics(self.volume, self._boxes[len(self._blocks)]))
        if len(self._blocks) < len(self._boxes):
            return True
        self._combine()
        return False

    def finish(self) -> None:
        """Compute the statistics of all other blocks with as many threads as there are processors. Raises as step."""
        left = self._boxes[len(self._blocks) :]
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            self._blocks += pool.map(partial(block_statistics, self.volume), left)
        self._combine()

    def _combine(self) -> None:
        self.statistics = combine(self._blocks, self.volume.dtype)
        full = _wire_dtype(self.volume.dtype)
        digest = hashlib.sha256(f"{full.name} {self.volume.shape}".encode())
        for block in self._blocks:
            digest.update(block.digest)
        self.name = digest.hexdigest()[:32]
        self.dtype = _smallest_dtype(self._blocks, full).name
        largest = max(max(abs(block.low), abs(block.high)) for block in self._blocks)
        self.low_bits = choose_low_bits(np.dtype(self.dtype), self.statistics.std, largest)

    @cached_property
    def grid(self) -> Grid:
        i, j, k = self.volume.shape
        return Grid((i, j, k))

    def brick(self, part: BrickPart, encoding: Encoding, compression: Compression = "small") -> Brick:
        """One brick or layer, packed: less than a millisecond of work. ``compression``: of a whole brick."""
        index, layer = part.index, part.layer
        # In two steps, because a double that is rounded to an integer in float32 would be truncated to the one below.
        voxels = to_wire(self.volume[self.grid.box(index).slices]).astype(self.dtype, copy=False)
        if layer == "whole":
            return Brick(index=index, encoding=encoding, data=arrays.pack(voxels, encoding, compression))
        low_bits = low_bits_of_brick(self.low_bits, part.distance, voxels.dtype)
        bits = base_layer(voxels, low_bits) if layer == "base" else enhancement_layer(voxels, low_bits)
        data = arrays.pack(bits, encoding, "bits")
        return Brick(index=index, encoding=encoding, data=data, layer=layer, low_bits=low_bits)


def check_volume(image: ArrayLike) -> npt.NDArray[np.generic]:
    """The image as an array that can be sent: 3-D, real, not empty. Not copied.

    Raises BadImage with what is wrong, and TooLarge.
    """
    volume = to_array(image, "image", BadImage)
    if volume.ndim != 3:
        advice = "A slice is image[:, :, None]."
        if volume.ndim > 3:
            # Images of nibabel have no indices of their own.
            member = ".slicer" if hasattr(image, "slicer") else ""
            advice = f"Take one channel or time point of it, such as image{member}[..., 0]."
        raise BadImage(
            f"The image has {volume.ndim} dimensions (shape {volume.shape}); a volume of 3 is needed. {advice}"
        )
    if volume.dtype.name not in _WIRE_DTYPES:
        raise BadImage(
            f"The image's voxels are of type {volume.dtype}; real numbers are needed. {_conversion(volume.dtype)}"
        )
    if volume.size == 0:
        raise BadImage(f"The image is empty (shape {volume.shape}).")
    i, j, k = volume.shape
    check_size((i, j, k))
    return volume


def _conversion(dtype: "np.dtype[np.generic]") -> str:
    """Return how to get real numbers from voxels of another type."""
    if dtype.kind == "c":
        return "Pass the magnitude, numpy.abs(image), or one part, such as image.real."
    if dtype.names is not None:
        return f'Pass one field, such as image["{dtype.names[0]}"].'
    return 'Convert them, for instance with image.astype("float32").'


@cache  # numpy takes longer to name a type than to copy a brick
def _wire_dtype(dtype: "np.dtype[np.generic]") -> "np.dtype[np.generic]":
    """Return the type in which any voxels of a type can travel."""
    return np.dtype(_WIRE_DTYPES[dtype.name]).newbyteorder("<")


def _smallest_dtype(blocks: "Sequence[BlockStatistics]", full: "np.dtype[np.generic]") -> "np.dtype[np.generic]":
    """Return the type in which the voxels of a volume travel. ``full``: the one for any voxels."""
    if full.itemsize == 4 and all(block.is_integral for block in blocks):
        low, high = min(block.low for block in blocks), max(block.high for block in blocks)
        for dtype in map(np.dtype, _SMALL_DTYPES):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return dtype
    return full


def to_wire(voxels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Voxels in the type in which any voxels of their type can travel, in C order, little-endian; not copied where they
    are that already. Values too large for the type become infinite."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.ascontiguousarray(voxels, _wire_dtype(voxels.dtype))


@dataclass(frozen=True)
class BlockStatistics:
    """Statistics of one block of a volume.

    ``total``, ``squares``: sums of the voxels and of their squares. ``low``, ``high``: minimum and maximum.
    ``is_integral``: whether all voxels are integers. ``nonzero_planes``: for each axis, which planes of the block have
    a nonzero voxel; None if all have one. ``digest``: SHA-256 of the voxels in wire order.
    """

    box: Box
    total: float
    squares: float
    low: float
    high: float
    is_integral: bool
    nonzero_planes: tuple[npt.NDArray[np.bool_], ...] | None
    digest: bytes


def _boxes_of_blocks(volume: npt.NDArray[np.generic]) -> list[Box]:
    """The blocks whose statistics are computed one by one, each in a millisecond or less."""
    i, j, k = volume.shape
    grid = Grid((i, j, k), _BLOCK)
    return [grid.box(index) for index in range(len(grid))]


def block_statistics(volume: npt.NDArray[np.generic], box: Box) -> BlockStatistics:
    """Compute the statistics of a block. Raises BadImage for voxels that are not finite, or not in the wire dtype."""
    sent = to_wire(volume[box.slices])
    # In C order whatever the volume's, so that the same voxels always give the same sums. Those of integers of one or
    # two bytes are exact: less than 2^53.
    values = sent.ravel().astype(np.float64)
    squares = float(np.einsum("i,i", values, values))
    if not math.isfinite(squares):
        raise BadImage(_describe_not_finite(volume[box.slices], sent, box.start))
    low, high = sent.min().item(), sent.max().item()
    nonzero_planes = _planes(sent != 0) if low <= 0 <= high else None
    digest = hashlib.sha256(sent.data).digest()
    return BlockStatistics(box, float(values.sum()), squares, low, high, _is_integral(sent), nonzero_planes, digest)


def _is_integral(voxels: npt.NDArray[np.generic]) -> bool:
    """Whether all voxels of a block are integers."""
    if voxels.dtype.kind != "f":
        return True
    # Usually, the first plane suffices.
    return all(np.array_equal(part, np.rint(part)) for part in (voxels[0], voxels))


def _planes(nonzero: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], ...]:
    """For every axis, which planes have a voxel that is set."""
    # By bits of whole planes, which takes a fifth of the time of any() over the first axes.
    onto_first = np.bitwise_or.reduce(nonzero.view(np.uint8), axis=0).view(bool)
    return tuple(np.logical_or.reduce(*args) for args in ((nonzero, (1, 2)), (onto_first, 1), (onto_first, 0)))


def combine(blocks: Sequence[BlockStatistics], dtype: "np.dtype[np.generic]") -> Statistics:
    """Mean and standard deviation of a volume from the statistics of all its blocks.

    As nnInteractive 2.6 normalizes (``_background_set_image``): of the voxels in the wire dtype, over the bounding box
    of the nonzero ones, the deviation with n - 1. Voxels outside that box are zero and add nothing to a sum, so one
    pass is enough. ``dtype``: of the volume before it travels. Raises BadImage for a volume of (almost) one value.
    """
    low, high = min(block.low for block in blocks), max(block.high for block in blocks)
    if low == high:
        raise BadImage(
            f"Every voxel of the image is {low:g}; there is nothing to segment in it."
            + _rounding_advice(low, high, dtype)
        )
    n = math.prod(int(np.ptp(np.flatnonzero(planes))) + 1 for planes in _nonzero_planes(blocks))
    # Fractions are exact: digits can be lost in the sums of the blocks alone.
    total = sum(Fraction(block.total) for block in blocks)
    squares = sum(Fraction(block.squares) for block in blocks)
    mean = total / n
    variance = (squares - mean * total) / max(1, n - 1)
    std = math.sqrt(max(float(variance), 0.0))
    if _is_rounded(low, high, dtype) and _is_coarse(low, high, std):
        raise BadImage(
            f"The voxels of the image, of type {dtype}, go from {low:.9g} to {high:.9g}. In float32, in which the "
            f"network computes, they would be rounded to steps of {_float32_step(low, high):g}. Subtract their mean "
            "first: image - image.mean()."
        )
    limits = np.finfo(np.float32)
    if not float(limits.smallest_normal) <= std <= float(limits.max):
        raise BadImage(
            f"The image cannot be normalized: inside the bounding box of its nonzero voxels, the standard "
            f"deviation is {std:g} (its voxels go from {low:g} to {high:g})." + _rounding_advice(low, high, dtype)
        )
    return Statistics(float(mean), std)


def _is_rounded(low: float, high: float, dtype: "np.dtype[np.generic]") -> bool:
    """Whether float32, in which the network computes, may not hold the voxels of a volume of ``dtype``."""
    if dtype.kind == "f":
        return dtype.itemsize > 4
    return max(abs(low), abs(high)) > _MAX_EXACT


def _is_coarse(low: float, high: float, std: float) -> bool:
    step = _float32_step(low, high)
    return high - low < _MIN_STEPS * step or 0 < std < _MIN_STEPS_OF_STD * step


def _float32_step(low: float, high: float) -> float:
    return float(np.spacing(np.float32(max(abs(low), abs(high)))))


def _rounding_advice(low: float, high: float, dtype: "np.dtype[np.generic]") -> str:
    if not (low or high) or not _is_rounded(low, high, dtype):
        return ""
    return (
        f" If the {dtype} voxels differ by less than float32, in which the network computes, can hold, subtract their "
        "mean first: image - image.mean()."
    )


def _nonzero_planes(blocks: Sequence[BlockStatistics]) -> list[npt.NDArray[np.bool_]]:
    """For every axis of the volume, which planes have a voxel that is not zero."""
    planes = [np.zeros(n, bool) for n in blocks[-1].box.stop]
    for block in blocks:
        for axis, span in enumerate(block.box.slices):
            planes[axis][span] |= True if block.nonzero_planes is None else block.nonzero_planes[axis]
    return planes


def statistics(volume: npt.NDArray[np.generic]) -> Statistics:
    """Mean and standard deviation of a volume: see :func:`combine`. Raises BadImage."""
    return combine([block_statistics(volume, box) for box in _boxes_of_blocks(volume)], volume.dtype)


def _describe_not_finite(brick: npt.NDArray[np.generic], sent: npt.NDArray[np.generic], origin: Index) -> str:
    first = tuple(int(x) for x in np.argwhere(~np.isfinite(sent.astype(np.float64)))[0])
    value, at = brick[first], tuple(map(sum, zip(first, origin, strict=True)))
    if np.isfinite(value):
        return f"The image has voxels too large for {sent.dtype}, the first at {at}: {value}. Scale the image down."
    return (
        f"The image has NaN or infinite voxels, the first at {at}: {value}. "
        "Replace them (numpy.nan_to_num) and set the image again."
    )
