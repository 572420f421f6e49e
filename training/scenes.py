"""Volumes to train on, all of them made by code: phantoms in many variations, and scenes of random shapes."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nninteractive_ws.demo.phantom import TISSUE_HU, Canvas, Phantom, add_noise, make_phantom

# Three quarters of the scenes are phantoms as the demo shows them, most of them as they stand; the rest of all
# scenes are turned and mirrored.
_SHARE_OF_DEMO, _SHARE_UPRIGHT = 0.75, 0.5


@dataclass
class Scene:
    """image: float32, z-scored as the inference session does it. labels: uint8, 0 is background; same shape."""

    image: np.ndarray
    labels: np.ndarray


def make_scene(rng: np.random.Generator) -> Scene:
    """A new scene: mostly phantoms, the rest random shapes."""
    kind = rng.random()
    if kind < _SHARE_OF_DEMO:
        phantom = make_phantom(int(rng.integers(1_000_000, 2**31)), *_crop_of_demo(rng))
    elif kind < 0.9:
        phantom = _varied_phantom(rng)
    else:
        phantom = _random_shapes(rng)
    image = phantom.image.astype(np.float32)
    if kind >= _SHARE_OF_DEMO:
        image = _vary_intensities(image, rng)
    image -= image.mean()
    image /= image.std()
    if kind < _SHARE_UPRIGHT:
        return Scene(image, phantom.labels)
    order = rng.permutation(3)
    flips = tuple(slice(None, None, int(s)) for s in rng.choice((-1, 1), 3))
    return Scene(
        np.ascontiguousarray(image.transpose(order)[flips]),
        np.ascontiguousarray(phantom.labels.transpose(order)[flips]),
    )


def _crop_of_demo(rng: np.random.Generator) -> tuple:
    spacing = tuple(float(s) for s in 2.5 * np.exp(0.05 * rng.standard_normal(3)))
    return (160, 128, 112), spacing


def _varied_phantom(rng: np.random.Generator) -> Phantom:
    base = rng.uniform(1.6, 3.6)
    spacing = base * np.exp(0.1 * rng.standard_normal(3))
    if rng.random() < 0.3:
        spacing[rng.integers(3)] *= rng.uniform(1.5, 3)
    extent = np.array([rng.uniform(280, 400), rng.uniform(230, 320), rng.uniform(80, 320)])
    shape = np.clip(np.rint(extent / spacing), 16, 160).astype(int)
    offset = (rng.normal(0, 20), rng.normal(0, 15), rng.normal(0, 50))
    hu = {}
    if rng.random() < 0.4:  # another modality: any tissue may have any value
        hu = {name: float(rng.uniform(-300, 500)) for name in TISSUE_HU}
    elif rng.random() < 0.5:  # weaker contrast between the organs, as without contrast agent
        hu = {n: 40 + 0.4 * (m - 40) + rng.normal(0, 10) for n, (m, _) in TISSUE_HU.items() if -60 < m < 250}
    return make_phantom(
        int(rng.integers(2**31)),
        tuple(shape.tolist()),
        tuple(spacing.tolist()),
        offset=offset,
        contrast=rng.uniform(0.5, 1.5),
        noise=rng.uniform(5, 35),
        tissue_hu=hu,
    )


def _random_shapes(rng: np.random.Generator) -> Phantom:
    """Blobs and tubes of any size and contrast on a textured ground, in the frame of a phantom."""
    shape = tuple(int(n) for n in rng.integers(64, 144, 3))
    names = ["air", *(f"object {i}" for i in range(1, int(rng.integers(8, 24))))]
    spread = np.exp(rng.uniform(np.log(40), np.log(400)))
    hu = {name: float(rng.normal(0, spread)) for name in names}
    canvas = Canvas(rng, shape, (2.5, 2.5, 2.5), (0.0, 0.0, 0.0), hu)
    half = np.array(shape) * 1.25
    for value, name in enumerate(names[1:], start=1):
        centre = tuple(rng.uniform(-half, half))
        size = float(np.exp(rng.uniform(np.log(8), np.log(90))))
        _draw_shape(canvas, rng, name, value, centre, size)
    add = add_noise(canvas, rng.uniform(0.02, 0.3) * spread)
    return Phantom(np.clip(np.rint(10 * add), -32000, 32000).astype(np.int16), canvas.labels, canvas.spacing, hu)


def _draw_shape(canvas: Canvas, rng: np.random.Generator, name: str, value: int, centre: tuple, size: float) -> None:
    if rng.random() < 0.3:
        steps = rng.normal(0, 1, (6, 3)) + 0.7 * rng.normal(0, 1, 3)
        canvas.tube(name, np.array(centre) + np.cumsum(size * 0.5 * steps, 0), max(4.0, 0.25 * size), label=value)
    else:
        radii = tuple(size * np.exp(0.35 * rng.standard_normal(3)))
        canvas.ellipsoid(name, centre, radii, bump=rng.uniform(0, 0.3), tilt=rng.normal(0, 0.3), label=value)


def _vary_intensities(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What scanners do to a volume: another point spread, a bias field, another grey scale, inversion."""
    if rng.random() < 0.3:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.9))
    scale = image.std()
    if rng.random() < 0.3:
        coarse = rng.normal(0, 0.15 * scale, (3, 3, 3))
        zoom = [n / 3 for n in image.shape]
        image = image + ndimage.zoom(coarse, zoom, order=1, grid_mode=True, mode="nearest").astype(np.float32)
    if rng.random() < 0.3:
        low, high = image.min(), image.max()
        image = ((image - low) / max(high - low, 1e-6)) ** np.float32(rng.uniform(0.6, 1.6))
    if rng.random() < 0.3:  # a window, as exported by a viewer
        low, high = np.percentile(image, (rng.uniform(0, 10), rng.uniform(90, 100)))
        image = np.clip(image, low, max(high, low + 1e-3))
    if rng.random() < 0.15:
        image = -image
    return np.asarray(image, np.float32)
