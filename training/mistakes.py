"""Masks that are wrong as previous segmentations are: too small, too large, moved, cut, bitten, or leaked.

Most are nearly right: what is right is to be kept, however a user corrects the rest.
"""

import numpy as np
from scipy import ndimage

_MARGIN = 20
_NEARLY_RIGHT = 0.6


def spoil(truth: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``truth`` with one to three mistakes. All arrays have the shape of the volume; truth and result are bool."""
    found = ndimage.find_objects(truth.astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in found)
    mask, inside, names = truth[box].copy(), truth[box], labels[box]
    if rng.random() < _NEARLY_RIGHT:
        for _ in range(int(rng.integers(1, 4))):
            mistake = (_bitten, _leaked, _into_neighbour)[rng.integers(3)]
            mask = mistake(mask, inside, names, rng, rng.uniform(1.5, 5))
    else:
        mistakes = (_too_small, _too_large, _moved, _cut_off, _bitten, _leaked, _leaked, _into_neighbour)
        for n in rng.choice(len(mistakes), int(rng.integers(1, 4)), replace=False):
            mask = mistakes[n](mask, inside, names, rng, rng.uniform(4, 20))
    result = np.zeros(truth.shape, bool)
    result[box] = mask
    return result


def _too_small(mask: np.ndarray, _: np.ndarray, __: np.ndarray, rng: np.random.Generator, ___: float) -> np.ndarray:
    return np.asarray(ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 4))))


def _too_large(mask: np.ndarray, _: np.ndarray, __: np.ndarray, rng: np.random.Generator, ___: float) -> np.ndarray:
    return np.asarray(ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 5))))


def _moved(mask: np.ndarray, _: np.ndarray, __: np.ndarray, rng: np.random.Generator, ___: float) -> np.ndarray:
    return np.roll(mask, rng.integers(-4, 5, 3), (0, 1, 2))


def _cut_off(
    mask: np.ndarray, inside: np.ndarray, _: np.ndarray, rng: np.random.Generator, radius: float
) -> np.ndarray:
    """Only what lies on one side of a plane through the object."""
    place, normal = _voxel(inside, rng), rng.standard_normal(3)
    grid = np.ogrid[tuple(slice(0, n) for n in mask.shape)]
    side = sum((g - c) * w for g, c, w in zip(grid, place, normal, strict=True))
    return mask & (side > 0)


def _bitten(mask: np.ndarray, inside: np.ndarray, _: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    return mask & ~_ball(mask.shape, _voxel(inside, rng), radius)


def _leaked(mask: np.ndarray, inside: np.ndarray, _: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    """A ball on the surface, or apart from the object, is taken for it."""
    apart = int(rng.choice((1, 1, 4, 12)))
    rim = ndimage.binary_dilation(inside, iterations=apart) & ~inside
    return mask | _ball(mask.shape, _voxel(rim, rng), radius) if rim.any() else mask


def _into_neighbour(
    mask: np.ndarray, inside: np.ndarray, labels: np.ndarray, rng: np.random.Generator, radius: float
) -> np.ndarray:
    """A part of what touches the object, or all of it, is taken for it."""
    rim = ndimage.binary_dilation(inside) & ~inside
    if not rim.any():
        return mask
    place = _voxel(rim, rng)
    neighbour = (labels == labels[tuple(place)]) & ~inside
    return mask | (neighbour & _ball(mask.shape, place, 1.5 * radius))


def _ball(shape: tuple[int, ...], centre: np.ndarray, radius: float) -> np.ndarray:
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return np.asarray(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2)


def _voxel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.array(np.unravel_index(int(rng.choice(np.flatnonzero(mask))), mask.shape))
