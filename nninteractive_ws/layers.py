"""Layers of bricks: a base layer, from which a preview can be computed, and an enhancement layer that makes it exact.

The base layer has a brick's voxels without their lowest bits, which are mostly noise and take most of the bytes. The
enhancement layer has these bits. As unsigned integers of the same size, the voxels are the bitwise or of both layers.
"""

from bisect import bisect_right
import math

import numpy as np
import numpy.typing as npt

# Precision of most base layers in standard deviations of the image, about the noise of a CT.
_STEP_OF_STD = 1 / 16
# Precision matters most near the prompt, where there are few bricks. A base layer has _FINER_BITS more than the above
# at the prompt, and one less from each of these distances on, in voxels. Chosen on nine organs of an abdominal CT with
# the embedded model: previews had a Dice of at least 0.990 with the result, and with one precision everywhere 0.800.
_FINER_BITS, _COARSER_FROM = 3, (8, 16, 32, 64)
# Fewer bits are not worth a layer of their own.
_MIN_BITS = 2


def max_low_bits(dtype: "np.dtype[np.generic]") -> int:
    """Return how many bits of a voxel an enhancement layer may have: of an integer all but one, of a float those of
    the mantissa."""
    return 8 * dtype.itemsize - 1 if dtype.kind in "iu" else _mantissa_bits(dtype)


def choose_low_bits(dtype: "np.dtype[np.generic]", std: float, largest: float) -> int:
    """Return how many bits the enhancement layer of an image should have; 0: the image is better sent without layers.

    ``dtype``: of the voxels on the wire. ``std``: their standard deviation, which must be positive. ``largest``: their
    largest absolute value.
    """
    bits = round(math.log2(std * _STEP_OF_STD))
    if dtype.kind == "f":
        # The lowest bit of a float counts in proportion to the float.
        bits -= math.frexp(largest)[1] - 1 - _mantissa_bits(dtype)
    return min(bits, max_low_bits(dtype)) if bits >= _MIN_BITS else 0


def low_bits_of_brick(image_bits: int, distance: float, dtype: "np.dtype[np.generic]") -> int:
    """Return how many bits the enhancement layer of a brick should have.

    ``image_bits``: from :func:`choose_low_bits`. ``distance``: of the brick from the prompt, in voxels.
    """
    bits = image_bits - _FINER_BITS + bisect_right(_COARSER_FROM, distance)
    return min(max(1, bits), max_low_bits(dtype))


def base_layer(voxels: npt.NDArray[np.generic], low_bits: int) -> npt.NDArray[np.generic]:
    """Return voxels with their ``low_bits`` lowest bits cleared, in the same dtype."""
    bits = _bits(voxels)
    return (bits & ~_mask(bits.dtype, low_bits)).view(voxels.dtype)


def enhancement_layer(voxels: npt.NDArray[np.generic], low_bits: int) -> npt.NDArray[np.generic]:
    """Return voxels with all but their ``low_bits`` lowest bits cleared, in the same dtype."""
    bits = _bits(voxels)
    return (bits & _mask(bits.dtype, low_bits)).view(voxels.dtype)


def combine_layers(base: npt.NDArray[np.generic], enhancement: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return the voxels of both layers, in their common dtype."""
    return (_bits(base) | _bits(enhancement)).view(base.dtype)


def estimate_voxels(base: npt.NDArray[np.generic], low_bits: int) -> npt.NDArray[np.generic]:
    """Return estimates of the voxels of a base layer: the middle of the interval in which each of them lies."""
    bits = _bits(base)
    return (bits | bits.dtype.type(1 << (low_bits - 1))).view(base.dtype)


def _mantissa_bits(dtype: "np.dtype[np.generic]") -> int:
    return {"float16": 10, "float32": 23}[dtype.name]


def _bits(voxels: npt.NDArray[np.generic]) -> npt.NDArray[np.unsignedinteger]:
    return voxels.view(f"{voxels.dtype.byteorder}u{voxels.dtype.itemsize}")


def _mask(dtype: "np.dtype[np.unsignedinteger]", low_bits: int) -> np.unsignedinteger:
    return dtype.type((1 << low_bits) - 1)
