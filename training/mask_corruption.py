"""Corrupt masks with typical errors of previous segmentations: too small or large, shifted, cut, bitten, or leaked.

Most results are nearly correct, so that the network learns to keep correct parts while a user corrects the rest.
"""

import numpy as np
from scipy import ndimage

_MARGIN = 20
_NEARLY_CORRECT = 0.6


def corrupt(truth: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return ``truth`` with one to three errors. All arrays have the volume's shape; truth and result are bool."""
    found = ndimage.find_objects(truth.astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in found)
    mask, inside, names = truth[box].copy(), truth[box], labels[box]
    if rng.random() < _NEARLY_CORRECT:
        for _ in range(int(rng.integers(1, 4))):
            corruption = (_bitten, _leaked, _leaked_into_neighbor)[rng.integers(3)]
            mask = corruption(mask, inside, names, rng, rng.uniform(1.5, 5))
    else:
        corruptions = (_eroded, _dilated, _shifted, _cut_off, _bitten, _leaked, _leaked, _leaked_into_neighbor)
        for n in rng.choice(len(corruptions), int(rng.integers(1, 4)), replace=False):
            mask = corruptions[n](mask, inside, names, rng, rng.uniform(4, 20))
    result = np.zeros(truth.shape, bool)
    result[box] = mask
    return result


def _eroded(mask: np.ndarray, _: np.ndarray, __: np.ndarray, rng: np.random.Generator, ___: float) -> np.ndarray:
    return np.asarray(ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 4))))


def _dilated(mask: np.ndarray, _: np.ndarray, __: np.ndarray, rng: np.random.Generator, ___: float) -> np.ndarray:
    return np.asarray(ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 5))))


def _shifted(mask: np.ndarray, _: np.ndarray, __: np.ndarray, rng: np.random.Generator, ___: float) -> np.ndarray:
    return np.roll(mask, rng.integers(-4, 5, 3), (0, 1, 2))


def _cut_off(
    mask: np.ndarray, inside: np.ndarray, _: np.ndarray, rng: np.random.Generator, radius: float
) -> np.ndarray:
    """Keep only one side of a plane through the object."""
    position, normal = _random_voxel(inside, rng), rng.standard_normal(3)
    grid = np.ogrid[tuple(slice(0, n) for n in mask.shape)]
    distance = sum((g - c) * w for g, c, w in zip(grid, position, normal, strict=True))
    return np.asarray(mask & (distance > 0))


def _bitten(mask: np.ndarray, inside: np.ndarray, _: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    return np.asarray(mask & ~_ball(mask.shape, _random_voxel(inside, rng), radius))


def _leaked(mask: np.ndarray, inside: np.ndarray, _: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    """Add a ball on the surface, or separate from the object."""
    gap = int(rng.choice((1, 1, 4, 12)))
    rim = ndimage.binary_dilation(inside, iterations=gap) & ~inside
    return mask | _ball(mask.shape, _random_voxel(rim, rng), radius) if rim.any() else mask


def _leaked_into_neighbor(
    mask: np.ndarray, inside: np.ndarray, labels: np.ndarray, rng: np.random.Generator, radius: float
) -> np.ndarray:
    """Add a part of an adjacent structure, or all of it."""
    rim = ndimage.binary_dilation(inside) & ~inside
    if not rim.any():
        return mask
    position = _random_voxel(rim, rng)
    neighbor = (labels == labels[tuple(position)]) & ~inside
    return np.asarray(mask | (neighbor & _ball(mask.shape, position, 1.5 * radius)))


def _ball(shape: tuple[int, ...], center: np.ndarray, radius: float) -> np.ndarray:
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.asarray(sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2)


def _random_voxel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array(np.unravel_index(int(rng.choice(np.flatnonzero(mask))), mask.shape))
