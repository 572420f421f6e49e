"""Volumes to train on, all of them made by code: phantoms in many variations, and scenes of random anatomy."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nninteractive_ws.demo.phantom import ORGANS, TISSUE_HU, Canvas, Phantom, make_phantom

# An object smaller than this is not asked for.
LEAST_VOXELS = 60
# Shares of the scenes: phantoms as the demo shows them, phantoms varied, the rest random anatomy.
_DEMO, _VARIED = 0.35, 0.3
# How many stay as they were drawn, i, j and k leading to LPS, as in DICOM's axial slices; and how many are mirrored
# along i and j alone, as where files follow another convention (RAS, LAS). The others may lie in any way.
_AS_DRAWN, _AXIAL = 0.4, 0.35
# How many of the varied ones have voxels of about a millimetre.
_FINE = 0.3
# How many of all but the first have what no label names between their organs and in them.
_CLUTTERED = 0.6
# Hounsfield units of a torso without contrast agent: organs hardly differ, and what parts them is fat.
_UNENHANCED = {
    "muscle": 50, "liver": 55, "spleen": 46, "right kidney": 30, "left kidney": 30, "stomach": 25, "aorta": 40,
    "vena cava": 40, "gallbladder": 8, "spine": 160, "pancreas": 36, "bowel": 25, "liver lesion": 35,
}  # fmt: skip
_FAT_HU = -100.0
# How often an organ of the phantom is asked for: those that are learnt early less often, the hard ones more.
_SHARES = dict.fromkeys(("spleen", "right kidney", "left kidney", "stomach", "right lung", "left lung"), 0.4)
_SHARES |= dict.fromkeys(("aorta", "vena cava", "gallbladder", "pancreas", "bowel"), 1.5) | {"liver lesion": 4}


@dataclass
class Scene:
    """image: float32, z-scored as the inference session does it. labels: uint8, 0 is background; same shape.

    shares: for every value of a label, how often it is asked for, relative to the others; float (256,).
    """

    image: np.ndarray
    labels: np.ndarray
    shares: np.ndarray


def make_scene(rng: np.random.Generator) -> Scene:
    """A new scene, of a kind drawn by the shares above."""
    kind = rng.random()
    if kind < _DEMO:
        phantom = make_phantom(int(rng.integers(1_000_000, 2**31)), *_crop_of_demo(rng))
        image, labels = phantom.image.astype(np.float32), phantom.labels
    elif kind < _DEMO + _VARIED:
        phantom = _varied_phantom(rng)
        image, labels = phantom.image.astype(np.float32), phantom.labels
    else:
        image, labels = _random_anatomy(rng)
    if kind >= _DEMO:
        if rng.random() < _CLUTTERED:
            _clutter(image, labels, rng)
        image = _vary_intensities(image, rng)
    if kind >= _DEMO and rng.random() < 0.3:
        image, labels = _slab(image, labels, rng)
    if np.bincount(labels.ravel())[1:].max(initial=0) < LEAST_VOXELS or not image.std():
        return make_scene(rng)
    image -= image.mean()
    image /= image.std()
    shares = np.ones(256)
    if kind < _DEMO + _VARIED:
        for name, share in _SHARES.items():
            shares[ORGANS[name]] = share
    order, mirrored = pose(rng)
    turned = (np.ascontiguousarray(np.flip(a.transpose(order), mirrored)) for a in (image, labels))
    return Scene(*turned, shares)


def pose(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How a volume lies in its array, drawn by the shares above: the order of its axes, and which are mirrored then."""
    kind = rng.random()
    if kind < _AS_DRAWN:
        return (0, 1, 2), ()
    mirrored = rng.random(3) < 0.5
    if kind < _AS_DRAWN + _AXIAL:
        return (0, 1, 2), tuple(np.flatnonzero(mirrored[:2]).tolist())
    return tuple(rng.permutation(3).tolist()), tuple(np.flatnonzero(mirrored).tolist())


def _crop_of_demo(rng: np.random.Generator) -> tuple:
    spacing = tuple(float(s) for s in 2.5 * np.exp(0.05 * rng.standard_normal(3)))
    return (160, 128, 112), spacing


def _varied_phantom(rng: np.random.Generator) -> Phantom:
    # Of fine ones more: there, an organ fills all that the network sees.
    finest, coarsest = (0.6, 1.2) if rng.random() < _FINE else (0.7, 3.6)
    base = np.exp(rng.uniform(np.log(finest), np.log(coarsest)))
    spacing = base * np.exp(0.1 * rng.standard_normal(3))
    if rng.random() < 0.3:
        spacing[rng.integers(3)] *= rng.uniform(1.5, 3)
    extent = np.array([rng.uniform(280, 400), rng.uniform(230, 320), rng.uniform(80, 320)])
    shape = np.clip(np.rint(extent / spacing), 16, 160).astype(int)
    cut_away = np.maximum(0, extent - shape * spacing) / 2  # of fine voxels there are not enough for all of the body
    offset = tuple((rng.normal(0, (20, 15, 50)) + rng.uniform(-cut_away, cut_away)).tolist())
    hu = {}
    if rng.random() < 0.4:  # another modality: any tissue may have any value
        hu = {name: float(rng.uniform(-300, 500)) for name in TISSUE_HU}
    elif rng.random() < 0.6:
        hu = {name: mean + float(rng.normal(0, 6)) for name, mean in _UNENHANCED.items()}
        hu["left kidney"] = hu["right kidney"]
    return make_phantom(
        int(rng.integers(2**31)),
        tuple(shape.tolist()),
        tuple(spacing.tolist()),
        offset=offset,
        contrast=rng.uniform(0.5, 1.5),
        noise=rng.uniform(5, 35),
        tissue_hu=hu,
    )


def _slab(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A few slices of a volume, as many real ones are."""
    axis, n = int(rng.integers(3)), int(rng.integers(16, 56))
    first = int(rng.integers(max(1, image.shape[axis] - n)))
    where = [slice(None)] * 3
    where[axis] = slice(first, first + n)
    return image[tuple(where)].copy(), labels[tuple(where)].copy()


# ---- random anatomy -----------------------------------------------------------------------------------------


def _random_anatomy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A body of touching parts, with organs, vessels, walls and lesions in it: image and labels."""
    shape = rng.integers(64, 144, 3)
    spacing = np.ones(3)
    if rng.random() < 0.35:
        axis = int(rng.integers(3))
        spacing[axis] = rng.uniform(1.5, 4)
        shape[axis] = max(20, int(shape[axis] / spacing[axis]))
    n = int(rng.integers(12, 36))
    hu, is_ct, apart = _tissues(rng, n)
    canvas = Canvas(rng, tuple(shape.tolist()), tuple(spacing.tolist()), (0.0, 0.0, 0.0), hu)
    half = shape * spacing / 2
    used = _draw_parts(canvas, rng, half, apart) if rng.random() < 0.6 else 0
    small = rng.random() < 0.3  # many small things: vessels, nodes, lesions
    for value in range(used + 1, n):
        largest = half.max() * (0.25 if small else 0.8)
        size = float(np.exp(rng.uniform(np.log(3), np.log(max(6.0, largest)))))
        _draw_organ(canvas, rng, value, rng.uniform(-half, half), size, apart)
    image = ndimage.gaussian_filter(canvas.image, rng.uniform(0.3, 0.9))
    spread = float(np.std([mean for name, mean in hu.items() if name.isdigit()]))
    image += _texture(canvas, rng, n, spread)
    if not is_ct and rng.random() < 0.5:  # magnitude images: noise has no sign
        image = np.hypot(image, rng.uniform(0.02, 0.15) * spread * rng.standard_normal(image.shape, np.float32))
    return np.asarray(image, np.float32), canvas.labels


def _tissues(rng: np.random.Generator, n: int) -> tuple[dict[str, float], bool, bool]:
    """Mean values of air, of what lies between organs, and of tissues "1" to "n-1"; whether they are Hounsfield units;
    and whether the organs hardly differ, so that each needs something that parts it from the next."""
    is_ct, alike = bool(rng.random() < 0.5), bool(rng.random() < 0.4)
    if is_ct:
        soft = rng.normal(40, rng.uniform(4, 14), n) if alike else rng.normal(60, rng.uniform(15, 60), n)
        other = rng.choice((-850.0, -100.0, 10.0, 350.0), n) + rng.normal(0, 30, n)
        values = np.where(rng.random(n) < 0.75, soft, other)
        values[0] = -1000
        between = _FAT_HU + rng.normal(0, 15)
    else:
        values = rng.uniform(0.1, 1, n) ** rng.uniform(0.5, 2)
        if alike:
            values = 0.5 + 0.15 * (values - 0.5)
        values[0] = rng.choice((0.0, 0.0, 0.5, 1.0))
        between = rng.choice((rng.uniform(0, 0.35), rng.uniform(0.65, 1)))
    hu = {"air" if i == 0 else str(i): float(v) for i, v in enumerate(values)}
    return hu | {"between": float(between)}, is_ct, alike


def _draw_parts(canvas: Canvas, rng: np.random.Generator, half: np.ndarray, apart: bool) -> int:
    """Fill a body with parts that touch, as organs and muscles do, or almost; the highest label used."""
    n = int(rng.integers(3, 10))
    box = tuple(slice(0, s) for s in canvas.image.shape)
    grid = [g + rng.uniform(2, 8) * canvas.bumps(box, rng.uniform(12, 40)) for g in canvas.grid(box)]
    nearest, second = np.full((2, *canvas.image.shape), np.inf, np.float32)
    owner = np.zeros(canvas.image.shape, np.uint8)
    for value in range(1, n + 1):
        place = rng.uniform(-half, half)
        distance = sum(((g - np.float32(c)) ** 2 for g, c in zip(grid, place, strict=True)))
        closer = distance < nearest
        second = np.minimum(second, np.maximum(distance, nearest))
        nearest[closer], owner[closer] = distance[closer], value
    body = half * rng.uniform(0.7, 1.6, 3)
    inside = sum((g / np.float32(b)) ** 2 for g, b in zip(grid, body, strict=True)) < 1
    owner[~inside] = 0
    values = np.array([canvas.hu["air" if v == 0 else str(v)] for v in range(n + 1)], np.float32)
    canvas.image[...] = values[owner]
    if apart or rng.random() < 0.2:
        septum = (owner > 0) & (np.sqrt(second) - np.sqrt(nearest) < rng.uniform(1, 5))
        canvas.image[septum], owner[septum] = canvas.hu["between"], 0
    canvas.labels[...] = owner
    return n


def _draw_organ(
    canvas: Canvas, rng: np.random.Generator, value: int, centre: np.ndarray, size: float, apart: bool
) -> None:
    name, middle, kind = str(value), tuple(centre.tolist()), rng.random()
    if kind < 0.25:  # a vessel, perhaps with branches
        radius = max(1.2, float(rng.uniform(0.1, 0.35)) * size)
        path = centre + np.cumsum(0.5 * size * (rng.normal(0, 0.8, (6, 3)) + rng.normal(0, 0.8, 3)), 0)
        if apart:
            canvas.tube("between", path, radius + rng.uniform(1, 3), label=0)
        canvas.tube(name, path, radius, label=value)
        for _ in range(int(rng.integers(0, 3))):
            branch = path[int(rng.integers(6))] + np.cumsum(0.4 * size * rng.normal(0, 0.8, (4, 3)), 0)
            canvas.tube(name, branch, max(1.0, 0.7 * radius), label=value)
        return
    radii = tuple((size * np.exp(rng.uniform(0.1, 0.5) * rng.standard_normal(3))).tolist())
    if kind < 0.4:
        _draw_wall(canvas, rng, value, middle, radii)
        return
    tilt, bump = float(rng.normal(0, 0.3)), float(rng.uniform(0, 0.3))
    if apart or rng.random() < 0.2:
        rim = tuple(r + rng.uniform(1, 4) for r in radii)
        canvas.ellipsoid("between", middle, rim, bump=0.5 * bump, tilt=tilt, label=0)
    canvas.ellipsoid(name, middle, radii, bump=bump, tilt=tilt, label=value)
    if rng.random() < 0.25:
        _draw_inside(canvas, rng, value, middle, radii)


def _draw_inside(canvas: Canvas, rng: np.random.Generator, value: int, middle: tuple, radii: tuple) -> None:
    """Parts of an organ that look like another tissue and belong to it: marrow, contents, a lesion, a level of gas."""
    tissue = _other_tissue(canvas, rng)
    mean = canvas.hu[str(value)]
    canvas.hu["inside"] = mean + float(rng.uniform(0.2, 1.0)) * (canvas.hu[tissue] - mean)
    box = canvas.box(middle, tuple(1.2 * r for r in radii))
    if box is None:
        return
    organ = canvas.labels[box] == value
    if rng.random() < 0.25:
        axis = int(rng.integers(3))
        level = canvas.grid(box)[axis] - np.float32(middle[axis] + rng.uniform(-0.6, 0.6) * radii[axis])
        distance = np.broadcast_to(level * rng.choice((-1, 1)), organ.shape)
    else:
        size = rng.uniform(0.3, 0.8) * np.asarray(radii)
        place = np.asarray(middle) + rng.uniform(-1, 1, 3) * 0.5 * (np.asarray(radii) - size)
        grid = zip(canvas.grid(box), place, size, strict=True)
        radius = np.sqrt(sum(((g - np.float32(c)) / np.float32(r)) ** 2 for g, c, r in grid))
        distance = (radius + rng.uniform(0, 0.4) * canvas.bumps(box, max(3.0, size.min())) - 1) * size.min()
    distance = np.where(organ, distance, np.inf)
    canvas.paint("inside", box, np.asarray(distance, np.float32), label=value)


def _other_tissue(canvas: Canvas, rng: np.random.Generator) -> str:
    return str(rng.choice([name for name in canvas.hu if name.isdigit()]))


def _draw_wall(canvas: Canvas, rng: np.random.Generator, value: int, middle: tuple, radii: tuple) -> None:
    """A shell, whole or open at one side: the wall of a hollow organ, a cortex, a sheet."""
    box = canvas.box(middle, tuple(1.5 * r + 4 for r in radii))
    if box is None:
        return
    grid = [g - np.float32(c) for g, c in zip(canvas.grid(box), middle, strict=True)]
    radius = np.sqrt(sum((g / np.float32(r)) ** 2 for g, r in zip(grid, radii, strict=True)))
    radius = radius + rng.uniform(0, 0.2) * canvas.bumps(box, 0.8 * min(radii))
    distance = np.abs(radius - 1) * min(radii) - rng.uniform(1.0, max(1.5, 0.2 * min(radii)))
    if rng.random() < 0.5:
        axis = int(rng.integers(3))
        distance = np.maximum(distance, grid[axis] - rng.uniform(-0.5, 0.8) * radii[axis])
    canvas.paint(str(value), box, np.asarray(distance, np.float32), label=value)


def _texture(canvas: Canvas, rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    """Noise of the scanner, and a texture of its own strength for every tissue."""
    box = tuple(slice(0, s) for s in canvas.image.shape)
    noise = rng.standard_normal(canvas.image.shape, np.float32)
    if rng.random() < 0.6:
        noise = ndimage.gaussian_filter(noise, rng.uniform(0.4, 1.0))
        noise /= noise.std()
    strength = np.exp(rng.uniform(np.log(0.02), np.log(0.4))) * spread
    own = (rng.uniform(0, 0.4, n + 1) * (rng.random(n + 1) < 0.4) * spread).astype(np.float32)
    return np.asarray(np.float32(strength) * noise + own[canvas.labels] * canvas.bumps(box, rng.uniform(3, 12)))


def _clutter(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Draw what real bodies are full of and no label names: vessels, fasciae and lumps of another tissue in one of
    those between the organs, and faint vessels in organs."""
    smooth, spread = ndimage.gaussian_filter(image, 1.0), float(image.std())
    near, beside = (ndimage.binary_dilation(labels > 0, iterations=n) for n in (2, 4))
    beside &= ~near
    if not beside.any():
        return
    at, other = (smooth.ravel()[rng.choice(np.flatnonzero(where))] for where in (beside, labels > 0))
    between = (labels == 0) & (np.abs(smooth - at) < 0.2 * spread)
    contrast = np.where(between, (other - at) * rng.uniform(0.4, 1.2), 0)
    organs = rng.normal(0, rng.uniform(0.02, 0.12) * spread, 256) * (rng.random(256) < 0.5)
    organs[0] = 0
    vessels = _filaments(image.shape, rng)
    image += np.float32(contrast) * np.maximum(vessels, _filaments(image.shape, rng))
    if rng.random() < 0.5:
        lumps = _field(image.shape, rng.uniform(4, 16), rng) - np.float32(rng.uniform(0.3, 1.2))
        image += np.float32(contrast) * np.clip(4 * lumps, 0, 1)
    image += organs.astype(np.float32)[labels] * vessels


def _filaments(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Curves where two smooth fields are about 0, or sheets where one is: how much of each voxel they fill."""
    size = float(np.exp(rng.uniform(np.log(5), np.log(25))))
    width = np.float32(rng.uniform(1, 3) / size)
    distance = np.abs(_field(shape, size, rng))
    if rng.random() < 0.75:
        distance = np.maximum(distance, np.abs(_field(shape, size, rng)))
    return np.asarray(np.clip(2 - 2 * distance / width, 0, 1))


def _field(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field of about unit variance whose features are ``size`` voxels wide: float32."""
    return _enlarged(rng.standard_normal([max(2, round(n / size) + 2) for n in shape]), shape)


def _enlarged(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    zoom = [n / c for n, c in zip(shape, coarse.shape, strict=True)]
    return ndimage.zoom(coarse.astype(np.float32), zoom, order=1, grid_mode=True, mode="nearest")


def _vary_intensities(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What scanners and exports do to a volume: thick slices, a bias field, another grey scale, inversion."""
    if rng.random() < 0.2:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.9))
    if rng.random() < 0.2:
        image = _thick_slices(image, int(rng.integers(3)), int(rng.integers(2, 5)))
    scale = image.std()
    if rng.random() < 0.3:
        image = image + _enlarged(rng.normal(0, rng.uniform(0.05, 0.3) * scale, (3, 3, 3)), image.shape)
    if rng.random() < 0.3:
        low, high = image.min(), image.max()
        image = ((image - low) / max(high - low, 1e-6)) ** np.float32(rng.uniform(0.6, 1.6))
    if rng.random() < 0.4:  # a window, as exported by a viewer
        low, high = np.percentile(image, (rng.uniform(0, 20), rng.uniform(90, 100)))
        image = np.clip(image, low, max(high, low + 1e-3))
    if rng.random() < 0.15:
        image = -image
    return np.array(image, np.float32)


def _thick_slices(image: np.ndarray, axis: int, n: int) -> np.ndarray:
    """The volume as it looks when it was scanned in slices ``n`` times as thick and interpolated afterwards."""
    thick = ndimage.uniform_filter1d(image, n, axis=axis)
    scanned = np.take(thick, np.arange(n // 2, image.shape[axis], n), axis)
    at = np.clip((np.arange(image.shape[axis]) - n // 2) / n, 0, scanned.shape[axis] - 1)
    below = np.minimum(at.astype(int), max(0, scanned.shape[axis] - 2))
    above = np.minimum(below + 1, scanned.shape[axis] - 1)
    share = (at - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(np.take(scanned, below, axis) * (1 - share) + np.take(scanned, above, axis) * share)
