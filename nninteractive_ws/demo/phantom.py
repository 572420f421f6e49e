"""A CT-like torso, generated from a seed: the image in Hounsfield units, and its label map.

Organs are implicit surfaces, whose value is a signed distance in millimeters (negative inside), deformed by smooth
random fields. A voxel crossed by a surface gets a mixture of both sides (partial volume). Then noise like that of a
reconstructed CT is added, which is correlated, and stronger in the center of the body.

The module does not need torch. The client, the tests and the documentation use the phantom as a realistic image without
patient data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Vector = tuple[float, float, float]
Shape = tuple[int, int, int]
FloatArray = npt.NDArray[np.float32]

#: Label value of each organ in ``Phantom.labels``; 0 is background.
ORGANS: dict[str, int] = {
    "liver": 1,
    "spleen": 2,
    "right kidney": 3,
    "left kidney": 4,
    "stomach": 5,
    "aorta": 6,
    "vena cava": 7,
    "gallbladder": 8,
    "right lung": 9,
    "left lung": 10,
    "spine": 11,
    "pancreas": 12,
    "bowel": 13,
    "liver lesion": 14,
}

DEFAULT_SHAPE: Shape = (160, 128, 112)
DEFAULT_SPACING: Vector = (2.5, 2.5, 2.5)

# Mean Hounsfield units and standard deviation between patients, in the portal venous phase.
TISSUE_HU: dict[str, tuple[float, float]] = {
    "air": (-1000, 0),
    "fat": (-100, 10),
    "muscle": (55, 10),
    "rib": (500, 120),
    "liver": (110, 15),
    "spleen": (125, 15),
    "right kidney": (180, 25),
    "left kidney": (180, 25),
    "stomach": (25, 20),
    "aorta": (170, 35),
    "vena cava": (145, 25),
    "gallbladder": (8, 8),
    "right lung": (-830, 40),
    "left lung": (-830, 40),
    "spine": (260, 60),
    "pancreas": (90, 15),
    "bowel": (40, 25),
    "liver lesion": (50, 15),
}


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT volume. Arrays are indexed (i, j, k): patient right to left, front to back, feet to head.

    image: int16, Hounsfield units. labels: uint8, the values of ``ORGANS``, same shape.
    spacing: millimeters per voxel along each axis. hu: mean value of each tissue.
    """

    image: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    spacing: Vector
    hu: dict[str, float] = field(repr=False)

    def mask(self, organ: str) -> npt.NDArray[np.bool_]:
        """Return the mask of an organ of ``ORGANS``: bool, with the shape of the image."""
        return np.asarray(self.labels == ORGANS[organ])

    def organs(self) -> Iterator[str]:
        """Return the names of the organs that have voxels in this phantom."""
        present = np.bincount(self.labels.ravel(), minlength=len(ORGANS) + 1)
        return (name for name, value in ORGANS.items() if present[value])


def make_phantom(
    seed: int = 0,
    shape: Shape = DEFAULT_SHAPE,
    spacing: Vector = DEFAULT_SPACING,
    *,
    offset: Vector = (0.0, 0.0, 0.0),
    contrast: float = 1.0,
    noise: float = 14.0,
    tissue_hu: Mapping[str, float] | None = None,
) -> Phantom:
    """Generate the phantom of a seed.

    shape: voxels along (i, j, k). spacing: millimeters. offset: position of the volume's center relative to the body's
    center, in millimeters; with it a small volume can show any part of the body.
    contrast: scale of the differences between patients' tissue values; with 0 all seeds have the mean values.
    noise: standard deviation in Hounsfield units at the center of the body.
    tissue_hu: values by tissue that replace the random ones.
    """
    rng = np.random.default_rng(seed)
    hu = {name: mean + contrast * sd * rng.standard_normal() for name, (mean, sd) in TISSUE_HU.items()}
    hu.update(tissue_hu or {})
    canvas = Canvas(rng, shape, spacing, offset, hu)
    _draw_body(canvas)
    _draw_skeleton(canvas)
    _draw_organs(canvas)
    image = add_noise(canvas, noise)
    return Phantom(np.rint(image).astype(np.int16), canvas.labels, spacing, hu)


class Canvas:
    """A volume to draw on: image (float32) and labels. Coordinates are in millimeters from the center of the body."""

    def __init__(
        self, rng: np.random.Generator, shape: Shape, spacing: Vector, offset: Vector, hu: dict[str, float]
    ) -> None:
        self.rng = rng
        self.hu = hu
        self.spacing = spacing
        self.voxel = float(np.cbrt(np.prod(spacing)))
        self.axes = [
            ((np.arange(n) - (n - 1) / 2) * s + o).astype(np.float32)
            for n, s, o in zip(shape, spacing, offset, strict=True)
        ]
        self.image: FloatArray = np.full(shape, hu["air"], np.float32)
        self.labels: npt.NDArray[np.uint8] = np.zeros(shape, np.uint8)

    def jitter(self, values: Vector, sd: float) -> Vector:
        """Add a normal deviate with a standard deviation of ``sd`` millimeters to each component."""
        x, y, z = np.asarray(values) + sd * self.rng.standard_normal(3)
        return float(x), float(y), float(z)

    def box(self, center: Vector, reach: Vector) -> tuple[slice, slice, slice] | None:
        """Return the part of the volume within ``reach`` of ``center``, or None if it is outside."""
        slices = []
        for axis, c, r in zip(self.axes, center, reach, strict=True):
            lo, hi = np.searchsorted(axis, (c - r, c + r))
            if lo >= hi:
                return None
            slices.append(slice(int(lo), int(hi)))
        return slices[0], slices[1], slices[2]

    def grid(self, box: tuple[slice, slice, slice]) -> list[FloatArray]:
        return list(np.meshgrid(*(a[s] for a, s in zip(self.axes, box, strict=True)), indexing="ij", sparse=True))

    def bumps(self, box: tuple[slice, slice, slice], size: float) -> FloatArray:
        """Return a smooth random field of unit variance with features of about ``size`` millimeters."""
        shape = [s.stop - s.start for s in box]
        coarse_shape = [max(2, round(n * sp / size) + 2) for n, sp in zip(shape, self.spacing, strict=True)]
        coarse = self.rng.standard_normal(coarse_shape).astype(np.float32)
        zoom = [n / c for n, c in zip(shape, coarse_shape, strict=True)]
        return np.asarray(ndimage.zoom(coarse, zoom, order=1, grid_mode=True, mode="nearest"), np.float32)

    def paint(
        self,
        tissue: str,
        box: tuple[slice, slice, slice],
        distance: FloatArray,
        within: str | None = None,
        texture: float = 0.0,
        label: int | None = None,
    ) -> None:
        """Fill voxels with negative ``distance`` (millimeters, negative inside), with partial volume at the surface.

        ``within``: restrict to the voxels of this organ, as for a lesion.
        ``label``: the value in the label map, by default that of ``ORGANS``.
        """
        share = np.clip(0.5 - distance / self.voxel, 0, 1)
        inside = distance < 0
        if within is not None:
            allowed = self.labels[box] == ORGANS[within]
            share, inside = share * allowed, inside & allowed
        value = self.hu[tissue] + (texture * self.bumps(box, 8.0) if texture else 0.0)
        self.image[box] += share * (value - self.image[box])
        self.labels[box][inside] = ORGANS.get(tissue, 0) if label is None else label

    def ellipsoid(
        self,
        tissue: str,
        center: Vector,
        radii: Vector,
        bump: float = 0.12,
        tilt: float = 0.0,
        texture: float = 0.0,
        label: int | None = None,
    ) -> None:
        """Paint a deformed ellipsoid. ``tilt``: shear of the first axis along the third."""
        box = self.box(center, tuple(1.45 * r + abs(tilt) * radii[2] for r in radii))  # type: ignore[arg-type]
        if box is None:
            return
        x, y, z = (g - c for g, c in zip(self.grid(box), center, strict=True))
        x = x + tilt * z
        radius = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
        radius = radius + bump * self.bumps(box, 0.9 * min(radii))
        self.paint(tissue, box, (radius - 1) * min(radii), texture=texture, label=label)

    def tube(self, tissue: str, points: npt.ArrayLike, radius: float, label: int | None = None) -> None:
        """Paint a tube of ``radius`` millimeters along a polyline (n, 3) in millimeters."""
        path = np.asarray(points, np.float64)
        steps = np.linspace(0, len(path) - 1, 8 * len(path))
        path = np.stack([np.interp(steps, np.arange(len(path)), p) for p in path.T], 1)
        path = ndimage.gaussian_filter1d(path, 4, axis=0, mode="nearest")
        center, reach = (path.min(0) + path.max(0)) / 2, np.ptp(path, axis=0) / 2 + 1.5 * radius + 2 * self.voxel
        box = self.box(tuple(center), tuple(reach))
        if box is None:
            return
        grid = self.grid(box)
        nearest = np.full(np.broadcast_shapes(*(g.shape for g in grid)), np.inf, np.float32)
        for point in path:
            np.minimum(nearest, sum((g - np.float32(c)) ** 2 for g, c in zip(grid, point, strict=True)), out=nearest)
        distance = np.sqrt(nearest) - radius * (1 + 0.08 * self.bumps(box, 4 * radius))
        self.paint(tissue, box, distance.astype(np.float32), label=label)


_BODY_RADII: Vector = (165.0, 110.0, 1e6)
_CAVITY_RADII: Vector = (138.0, 84.0, 1e6)


def _draw_body(canvas: Canvas) -> None:
    whole_volume = tuple(slice(0, n) for n in canvas.image.shape)
    box = (whole_volume[0], whole_volume[1], whole_volume[2])
    x, y, _ = canvas.grid(box)
    wave = canvas.bumps(box, 120.0)
    thickness = 0.04 * canvas.rng.standard_normal()
    for tissue, radii, shift in (
        ("fat", _BODY_RADII, thickness),
        ("muscle", (150.0, 96.0, 0.0), 0.0),
        ("fat", _CAVITY_RADII, 0.0),
    ):
        radius = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2) + 0.015 * wave - shift
        canvas.paint(tissue, box, np.asarray((radius - 1) * radii[1], np.float32))


def _draw_skeleton(canvas: Canvas) -> None:
    rng = canvas.rng
    # Ribs: slanted arcs in the body wall, every 26 mm.
    for z in np.arange(-120, 170, 26) + rng.uniform(-6, 6):
        for side in (-1, 1):
            angle = np.linspace(0.25, 2.6, 10) * side
            arc = np.stack([143 * np.sin(angle), 89 * np.cos(angle), z - 28 * (1 - np.cos(angle)) / 2], 1)
            canvas.tube("rib", arc, 4.5)
    canvas.tube("muscle", [(-45, 68, -200), (-42, 66, 20)], 24)
    canvas.tube("muscle", [(45, 68, -200), (42, 66, 20)], 24)
    sway = 3 * rng.standard_normal()
    column = [(sway * np.sin(z / 90), 62 + 4 * np.cos(z / 80), z) for z in np.linspace(-260, 260, 12)]
    canvas.tube("spine", column, float(rng.normal(20, 1.5)))


def _draw_organs(canvas: Canvas) -> None:
    rng, jitter = canvas.rng, canvas.jitter
    size = float(np.exp(0.06 * rng.standard_normal()))

    def radii(x: float, y: float, z: float) -> Vector:
        a, b, c = size * np.array([x, y, z]) * np.exp(0.08 * rng.standard_normal(3))
        return float(a), float(b), float(c)

    diaphragm = 62 + 8 * rng.standard_normal()
    for organ, x in (("right lung", -72.0), ("left lung", 74.0)):
        canvas.ellipsoid(organ, jitter((x, 2, diaphragm + 95), 4), radii(56, 72, 105), bump=0.05)
    canvas.ellipsoid("muscle", jitter((22, -22, diaphragm + 62), 5), radii(48, 44, 50), bump=0.05)  # the heart
    start = np.array([rng.uniform(-70, 70), rng.uniform(-40, 0), -60.0])
    path = start + np.cumsum(rng.normal((0, 0, -9), (34, 22, 12), (9, 3)), 0)
    canvas.tube("bowel", np.clip(path, (-100, -62, -190), (100, 20, -50)), float(rng.uniform(10, 15)))
    canvas.ellipsoid("stomach", jitter((62, -32, 22), 6), radii(40, 30, 44), tilt=0.35, bump=0.08)
    canvas.ellipsoid("spleen", jitter((104, 30, 28), 5), radii(22, 30, 42), tilt=-0.2, bump=0.08, texture=6)
    canvas.ellipsoid("liver", jitter((-62, -8, 22), 5), radii(66, 62, 60), tilt=-0.25, bump=0.1, texture=8)
    canvas.ellipsoid("right kidney", jitter((-62, 44, -48), 5), radii(25, 24, 46), tilt=0.15, bump=0.06, texture=10)
    canvas.ellipsoid("left kidney", jitter((64, 44, -36), 5), radii(25, 24, 46), tilt=-0.15, bump=0.06, texture=10)
    tail = jitter((70, 12, 12), 6)
    canvas.tube("pancreas", [jitter((-28, -6, -26), 4), jitter((0, -2, -12), 4), jitter((34, 4, 0), 4), tail], 11)
    bend = 6 * rng.standard_normal()
    heights = np.linspace(-260, 260, 12)
    canvas.tube(
        "aorta", [(12 + bend * np.sin(z / 110), 32 + 3 * np.cos(z / 70), z) for z in heights], rng.normal(11, 1.2)
    )
    canvas.tube("vena cava", [(-20 + bend * np.sin(z / 120), 26, z) for z in heights], rng.normal(12, 1.5))
    canvas.ellipsoid("gallbladder", jitter((-44, -46, -24), 5), radii(15, 15, 25), tilt=0.3, bump=0.05)
    _draw_lesions(canvas)


def _draw_lesions(canvas: Canvas) -> None:
    inside = np.argwhere(canvas.labels == ORGANS["liver"])
    if len(inside) == 0:
        return
    voxel = inside[canvas.rng.integers(len(inside))]
    center = tuple(float(axis[i]) for axis, i in zip(canvas.axes, voxel, strict=True))
    radius = float(canvas.rng.uniform(9, 18))
    box = canvas.box((center[0], center[1], center[2]), (1.5 * radius,) * 3)
    if box is None:
        return
    grid = canvas.grid(box)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, center, strict=True))) - radius
    distance = distance + 0.12 * radius * canvas.bumps(box, radius)
    canvas.paint("liver lesion", box, np.asarray(distance, np.float32), within="liver")


def add_noise(canvas: Canvas, sd: float) -> FloatArray:
    """Add correlated noise, which decreases from the center of the body to the surrounding air."""
    shape = canvas.image.shape
    blurred = ndimage.gaussian_filter(canvas.rng.standard_normal(shape, np.float32), 0.6)
    x, y, _ = canvas.grid((slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])))
    strength = sd * (0.4 + 0.6 * np.exp(-((x / 150) ** 2 + (y / 110) ** 2)))
    return np.asarray(canvas.image + strength * blurred / blurred.std(), np.float32)
