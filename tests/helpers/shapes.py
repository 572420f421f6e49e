"""Masks of simple shapes."""

from collections.abc import Sequence

import numpy as np

from nninteractive_ws.masks import Mask


def ball(shape: tuple[int, int, int], center: Sequence[float], radius: float) -> Mask:
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.asarray(sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2)
