"""Synthetic training volumes: phantoms in many variations, and scenes of random anatomy."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nninteractive_ws.demo.phantom import ORGANS, TISSUE_HU, Canvas, Phantom, Vector, make_phantom
from nninteractive_ws.geometry import Index

# Minimum size of an object that is prompted.
MIN_OBJECT_VOXELS = 60
# Shares of the scenes: phantoms as in the demo, and varied phantoms. The rest is random anatomy.
_DEMO, _VARIED = 0.35, 0.3
# Share of scenes in the original orientation, with i, j and k along LPS as in axial DICOM slices, and share mirrored
# along i and j only, as in files with another convention (RAS, LAS). The others have any orientation.
_AS_DRAWN, _AXIAL = 0.4, 0.35
# Share of varied phantoms with voxels of about a millimeter.
_FINE = 0.3
# Share of all scenes but the first kind with unlabeled structures between and within organs.
_CLUTTERED = 0.6
# Hounsfield units of a torso without contrast agent: organs hardly differ, and are separated by fat.
_UNENHANCED = {
    "muscle": 50, "liver": 55, "spleen": 46, "right kidney": 30, "left kidney": 30, "stomach": 25, "aorta": 40,
    "vena cava": 40, "gallbladder": 8, "spine": 160, "pancreas": 36, "bowel": 25, "liver lesion": 35,
}  # fmt: skip
_FAT_HU = -100.0
# Relative frequencies with which organs are prompted: lower for those learned early, higher for hard ones.
_SHARES = dict.fromkeys(("spleen", "right kidney", "left kidney", "stomach", "right lung", "left lung"), 0.4)
_SHARES |= dict.fromkeys(("aorta", "vena cava", "gallbladder", "pancreas", "bowel"), 1.5) | {"liver lesion": 4}


@dataclass
class Scene:
    """image: float32, z-scored as in the inference session. labels: uint8, 0 is background; same shape.

    shares: relative frequency with which each label is prompted; float (256,).
    """

    image: np.ndarray
    labels: np.ndarray
    shares: np.ndarray


def make_scene(rng: np.random.Generator) -> Scene:
    """Generate a scene of a kind drawn by the shares above."""
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
    if np.bincount(labels.ravel())[1:].max(initial=0) < MIN_OBJECT_VOXELS or not image.std():
        return make_scene(rng)
    image -= image.mean()
    image /= image.std()
    shares = np.ones(256)
    if kind < _DEMO + _VARIED:
        for name, share in _SHARES.items():
            shares[ORGANS[name]] = share
    order, mirrored = pose(rng)
    image = np.ascontiguousarray(np.flip(image.transpose(order), mirrored))
    labels = np.ascontiguousarray(np.flip(labels.transpose(order), mirrored))
    return Scene(image, labels, shares)


def pose(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Draw an orientation by the shares above: the order of the axes, and the axes that are mirrored afterwards."""
    kind = rng.random()
    if kind < _AS_DRAWN:
        return (0, 1, 2), ()
    mirrored = rng.random(3) < 0.5
    if kind < _AS_DRAWN + _AXIAL:
        return (0, 1, 2), tuple(np.flatnonzero(mirrored[:2]).tolist())
    return tuple(rng.permutation(3).tolist()), tuple(np.flatnonzero(mirrored).tolist())


def _crop_of_demo(rng: np.random.Generator) -> tuple[Index, Vector]:
    i, j, k = (float(s) for s in 2.5 * np.exp(0.05 * rng.standard_normal(3)))
    return (160, 128, 112), (i, j, k)


def _varied_phantom(rng: np.random.Generator) -> Phantom:
    # More fine ones, in which an organ fills the whole patch.
    finest, coarsest = (0.6, 1.2) if rng.random() < _FINE else (0.7, 3.6)
    base = np.exp(rng.uniform(np.log(finest), np.log(coarsest)))
    spacing = base * np.exp(0.1 * rng.standard_normal(3))
    if rng.random() < 0.3:
        spacing[rng.integers(3)] *= rng.uniform(1.5, 3)
    extent = np.array([rng.uniform(280, 400), rng.uniform(230, 320), rng.uniform(80, 320)])
    shape = np.clip(np.rint(extent / spacing), 16, 160).astype(int)
    cut_away = np.maximum(0, extent - shape * spacing) / 2  # fine voxels do not cover the whole body
    offset = tuple((rng.normal(0, (20, 15, 50)) + rng.uniform(-cut_away, cut_away)).tolist())
    hu = {}
    if rng.random() < 0.4:  # another modality, with arbitrary values
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
    """Crop a volume to a few slices, as in many real ones."""
    axis, n = int(rng.integers(3)), int(rng.integers(16, 56))
    first = int(rng.integers(max(1, image.shape[axis] - n)))
    where = [slice(None)] * 3
    where[axis] = slice(first, first + n)
    return image[tuple(where)].copy(), labels[tuple(where)].copy()


# ---- random anatomy -----------------------------------------------------------------------------------------


def _random_anatomy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Generate a body of adjacent parts with organs, vessels, walls and lesions: image and labels."""
    shape = rng.integers(64, 144, 3)
    spacing = np.ones(3)
    if rng.random() < 0.35:
        axis = int(rng.integers(3))
        spacing[axis] = rng.uniform(1.5, 4)
        shape[axis] = max(20, int(shape[axis] / spacing[axis]))
    n = int(rng.integers(12, 36))
    hu, is_ct, separated = _tissues(rng, n)
    si, sj, sk = spacing.tolist()
    canvas = Canvas(rng, tuple(shape.tolist()), (si, sj, sk), (0.0, 0.0, 0.0), hu)
    half = shape * spacing / 2
    used = _draw_parts(canvas, rng, half, separated) if rng.random() < 0.6 else 0
    small = rng.random() < 0.3  # many small objects: vessels, nodes, lesions
    for value in range(used + 1, n):
        largest = half.max() * (0.25 if small else 0.8)
        size = float(np.exp(rng.uniform(np.log(3), np.log(max(6.0, largest)))))
        _draw_organ(canvas, rng, value, rng.uniform(-half, half), size, separated)
    image = ndimage.gaussian_filter(canvas.image, rng.uniform(0.3, 0.9))
    spread = float(np.std([mean for name, mean in hu.items() if name.isdigit()]))
    image += _texture(canvas, rng, n, spread)
    if not is_ct and rng.random() < 0.5:  # magnitude images have Rician noise
        image = np.hypot(image, rng.uniform(0.02, 0.15) * spread * rng.standard_normal(image.shape, np.float32))
    return np.asarray(image, np.float32), canvas.labels


def _whole(canvas: Canvas) -> tuple[slice, slice, slice]:
    i, j, k = canvas.image.shape
    return slice(0, i), slice(0, j), slice(0, k)


def _tissues(rng: np.random.Generator, n: int) -> tuple[dict[str, float], bool, bool]:
    """Draw mean values of air, of tissue between organs, and of tissues "1" to "n-1".

    Also return whether they are Hounsfield units, and whether the organs are alike, so that they need separation.
    """
    is_ct, similar = bool(rng.random() < 0.5), bool(rng.random() < 0.4)
    if is_ct:
        soft = rng.normal(40, rng.uniform(4, 14), n) if similar else rng.normal(60, rng.uniform(15, 60), n)
        other = rng.choice((-850.0, -100.0, 10.0, 350.0), n) + rng.normal(0, 30, n)
        values = np.where(rng.random(n) < 0.75, soft, other)
        values[0] = -1000
        between = _FAT_HU + rng.normal(0, 15)
    else:
        values = rng.uniform(0.1, 1, n) ** rng.uniform(0.5, 2)
        if similar:
            values = 0.5 + 0.15 * (values - 0.5)
        values[0] = rng.choice((0.0, 0.0, 0.5, 1.0))
        between = rng.choice((rng.uniform(0, 0.35), rng.uniform(0.65, 1)))
    hu = {"air" if i == 0 else str(i): float(v) for i, v in enumerate(values)}
    return hu | {"between": float(between)}, is_ct, similar


def _draw_parts(canvas: Canvas, rng: np.random.Generator, half: np.ndarray, separated: bool) -> int:
    """Fill a body with parts that touch or almost touch, like organs and muscles. Return the highest label."""
    n = int(rng.integers(3, 10))
    box = _whole(canvas)
    grid = [g + rng.uniform(2, 8) * canvas.bumps(box, rng.uniform(12, 40)) for g in canvas.grid(box)]
    nearest, second = np.full((2, *canvas.image.shape), np.inf, np.float32)
    owner = np.zeros(canvas.image.shape, np.uint8)
    for value in range(1, n + 1):
        offset = rng.uniform(-half, half)
        distance = np.asarray(sum((g - np.float32(c)) ** 2 for g, c in zip(grid, offset, strict=True)))
        closer = distance < nearest
        second = np.minimum(second, np.maximum(distance, nearest))
        nearest[closer], owner[closer] = distance[closer], value
    body = half * rng.uniform(0.7, 1.6, 3)
    inside = sum((g / np.float32(b)) ** 2 for g, b in zip(grid, body, strict=True)) < 1
    owner[~inside] = 0
    values = np.array([canvas.hu["air" if v == 0 else str(v)] for v in range(n + 1)], np.float32)
    canvas.image[...] = values[owner]
    if separated or rng.random() < 0.2:
        septum = (owner > 0) & (np.sqrt(second) - np.sqrt(nearest) < rng.uniform(1, 5))
        canvas.image[septum], owner[septum] = canvas.hu["between"], 0
    canvas.labels[...] = owner
    return n


def _draw_organ(
    canvas: Canvas, rng: np.random.Generator, value: int, center: np.ndarray, size: float, separated: bool
) -> None:
    name, position, kind = str(value), tuple(center.tolist()), rng.random()
    if kind < 0.25:  # a vessel, perhaps with branches
        radius = max(1.2, float(rng.uniform(0.1, 0.35)) * size)
        path = center + np.cumsum(0.5 * size * (rng.normal(0, 0.8, (6, 3)) + rng.normal(0, 0.8, 3)), 0)
        if separated:
            canvas.tube("between", path, radius + rng.uniform(1, 3), label=0)
        canvas.tube(name, path, radius, label=value)
        for _ in range(int(rng.integers(0, 3))):
            branch = path[int(rng.integers(6))] + np.cumsum(0.4 * size * rng.normal(0, 0.8, (4, 3)), 0)
            canvas.tube(name, branch, max(1.0, 0.7 * radius), label=value)
        return
    radii = tuple((size * np.exp(rng.uniform(0.1, 0.5) * rng.standard_normal(3))).tolist())
    if kind < 0.4:
        _draw_wall(canvas, rng, value, position, radii)
        return
    tilt, bump = float(rng.normal(0, 0.3)), float(rng.uniform(0, 0.3))
    if separated or rng.random() < 0.2:
        rim = tuple(r + rng.uniform(1, 4) for r in radii)
        canvas.ellipsoid("between", position, rim, bump=0.5 * bump, tilt=tilt, label=0)
    canvas.ellipsoid(name, position, radii, bump=bump, tilt=tilt, label=value)
    if rng.random() < 0.25:
        _draw_inside(canvas, rng, value, position, radii)


def _draw_inside(canvas: Canvas, rng: np.random.Generator, value: int, position: Vector, radii: Vector) -> None:
    """Draw a part of an organ that looks like another tissue: marrow, contents, a lesion, or a gas level."""
    tissue = _other_tissue(canvas, rng)
    mean = canvas.hu[str(value)]
    canvas.hu["inside"] = mean + float(rng.uniform(0.2, 1.0)) * (canvas.hu[tissue] - mean)
    x, y, z = (1.2 * r for r in radii)
    box = canvas.box(position, (x, y, z))
    if box is None:
        return
    organ = canvas.labels[box] == value
    if rng.random() < 0.25:
        axis = int(rng.integers(3))
        level = canvas.grid(box)[axis] - np.float32(position[axis] + rng.uniform(-0.6, 0.6) * radii[axis])
        distance = np.broadcast_to(level * rng.choice((-1, 1)), organ.shape)
    else:
        size = rng.uniform(0.3, 0.8) * np.asarray(radii)
        offset = np.asarray(position) + rng.uniform(-1, 1, 3) * 0.5 * (np.asarray(radii) - size)
        grid = zip(canvas.grid(box), offset, size, strict=True)
        radius = np.sqrt(sum(((g - np.float32(c)) / np.float32(r)) ** 2 for g, c, r in grid))
        distance = (radius + rng.uniform(0, 0.4) * canvas.bumps(box, max(3.0, size.min())) - 1) * size.min()
    distance = np.where(organ, distance, np.inf)
    canvas.paint("inside", box, np.asarray(distance, np.float32), label=value)


def _other_tissue(canvas: Canvas, rng: np.random.Generator) -> str:
    return str(rng.choice([name for name in canvas.hu if name.isdigit()]))


def _draw_wall(canvas: Canvas, rng: np.random.Generator, value: int, position: Vector, radii: Vector) -> None:
    """Draw a shell, closed or open at one side: the wall of a hollow organ, a cortex, a sheet."""
    x, y, z = (1.5 * r + 4 for r in radii)
    box = canvas.box(position, (x, y, z))
    if box is None:
        return
    grid = [g - np.float32(c) for g, c in zip(canvas.grid(box), position, strict=True)]
    radius = np.sqrt(sum((g / np.float32(r)) ** 2 for g, r in zip(grid, radii, strict=True)))
    radius = radius + rng.uniform(0, 0.2) * canvas.bumps(box, 0.8 * min(radii))
    distance = np.abs(radius - 1) * min(radii) - rng.uniform(1.0, max(1.5, 0.2 * min(radii)))
    if rng.random() < 0.5:
        axis = int(rng.integers(3))
        distance = np.maximum(distance, grid[axis] - rng.uniform(-0.5, 0.8) * radii[axis])
    canvas.paint(str(value), box, np.asarray(distance, np.float32), label=value)


def _texture(canvas: Canvas, rng: np.random.Generator, n: int, spread: float) -> np.ndarray:
    """Return scanner noise, and a texture of individual strength for each tissue."""
    box = _whole(canvas)
    noise = rng.standard_normal(canvas.image.shape, np.float32)
    if rng.random() < 0.6:
        noise = ndimage.gaussian_filter(noise, rng.uniform(0.4, 1.0))
        noise /= noise.std()
    strength = np.exp(rng.uniform(np.log(0.02), np.log(0.4))) * spread
    own = (rng.uniform(0, 0.4, n + 1) * (rng.random(n + 1) < 0.4) * spread).astype(np.float32)
    return np.asarray(np.float32(strength) * noise + own[canvas.labels] * canvas.bumps(box, rng.uniform(3, 12)))


def _clutter(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Draw unlabeled structures as in real bodies.

    These are vessels, fasciae and lumps of another tissue in a tissue between the organs, and faint vessels in organs.
    """
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
    """Return the volume fraction of curves on the zero sets of two smooth fields, or of sheets on that of one."""
    size = float(np.exp(rng.uniform(np.log(5), np.log(25))))
    width = np.float32(rng.uniform(1, 3) / size)
    distance = np.abs(_field(shape, size, rng))
    if rng.random() < 0.75:
        distance = np.maximum(distance, np.abs(_field(shape, size, rng)))
    return np.asarray(np.clip(2 - 2 * distance / width, 0, 1))


def _field(shape: tuple[int, ...], size: float, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random field of about unit variance with features of ``size`` voxels: float32."""
    return _enlarged(rng.standard_normal([max(2, round(n / size) + 2) for n in shape]), shape)


def _enlarged(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    zoom = [n / c for n, c in zip(shape, coarse.shape, strict=True)]
    return np.asarray(ndimage.zoom(coarse.astype(np.float32), zoom, order=1, grid_mode=True, mode="nearest"))


def _vary_intensities(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate effects of scanners and exports: thick slices, bias field, another gray scale, inversion."""
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
    """Simulate a scan in slices ``n`` times as thick, interpolated afterwards."""
    thick = ndimage.uniform_filter1d(image, n, axis=axis)
    scanned = np.take(thick, np.arange(n // 2, image.shape[axis], n), axis)
    at = np.clip((np.arange(image.shape[axis]) - n // 2) / n, 0, scanned.shape[axis] - 1)
    below = np.minimum(at.astype(int), max(0, scanned.shape[axis] - 2))
    above = np.minimum(below + 1, scanned.shape[axis] - 1)
    share = (at - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(np.take(scanned, below, axis) * (1 - share) + np.take(scanned, above, axis) * share)
