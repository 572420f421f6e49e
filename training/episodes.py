"""A simulated user on one scene: an object is chosen, prompted, and corrected from the network's own answers.

The state is the inference session's: interaction channels of the whole volume in which older prompts have
decayed, and the previous segmentation. A view of it is cut, zoomed and padded as the session does it, so the
network learns from what it will meet.
"""

from dataclasses import dataclass

from nnInteractive.interaction.point import build_point
from nnInteractive.utils.erosion_dilation import iterative_3x3_same_padding_pool3d
from nnInteractive.utils.rounding import round_to_nearest_odd
import numpy as np
from scipy import ndimage
import torch
from torch.nn import functional

from training.scenes import Scene

PATCH = 96
POINT_RADIUS = 4
DECAY = 0.9
MAX_STEPS = 5
CHANNELS = {"bbox": (1, 2), "lasso": (1, 2), "point": (3, 4), "scribble": (5, 6)}
THIN = {*CHANNELS["point"], *CHANNELS["scribble"]}


@dataclass
class View:
    """What the network sees and should answer. inputs (8, P, P, P), target and weight (P, P, P), float32."""

    inputs: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    centre: np.ndarray
    zoom: float


class Episode:
    """One object of one scene, from the first prompt to the last correction."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.rng = rng
        self.image = scene.image
        self.truth = _choose_object(scene.labels, rng)
        self.channels = np.zeros((7, *scene.image.shape), np.float32)
        # Some end early, so that first prompts are a fourth of all: they are what a user judges by.
        self._steps = MAX_STEPS if rng.random() < 0.7 else int(rng.integers(1, MAX_STEPS + 1))
        self.written = {0}  # the channels that are not all zero
        self.step = 0
        self.refinements = 0
        self.coarse: np.ndarray | None = None

    @property
    def over(self) -> bool:
        return self.step >= self._steps

    def next_view(self) -> View:
        """Place the next prompt, or look at the next part of a coarse answer that needs refinement."""
        if self.refinements:
            return self._refinement_view()
        error = self.truth != (self.channels[0] > 0.5)
        place, size, newest = self._prompt(error)
        zoom = max(1.0, float(((size + PATCH // 3) / PATCH).max()))
        if self.rng.random() < 0.2 or (self._truth_leaves(place) and self.rng.random() < 0.5):
            zoom *= 1.5 ** int(self.rng.integers(1, 3))
        return self._view(place, min(zoom, 4.0), error, newest)

    def accept(self, view: View, answer: np.ndarray) -> None:
        """Take the network's answer for the last view: bool (P, P, P)."""
        if self.coarse is not None:
            self._paste(self.coarse, answer, view.centre, PATCH)
            self.refinements -= 1
            if not self.refinements:
                self.channels[0], self.coarse = self.coarse, None
                self.step += 1
        elif view.zoom > 1:
            size = round(PATCH * view.zoom)
            grown = functional.interpolate(
                torch.from_numpy(answer[None, None].astype(np.float32)), (size,) * 3, mode="trilinear"
            )
            self.coarse = self.channels[0].copy()
            self._paste(self.coarse, grown[0, 0].numpy() >= 0.5, view.centre, size)
            self.refinements = int(self.rng.integers(1, 4))
        else:
            self._paste(self.channels[0], answer, view.centre, PATCH)
            self.step += 1

    # ---- prompts ------------------------------------------------------------------------------------------

    def _prompt(self, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[slice, ...] | None]:
        """Write one prompt. Returns its centre, its extent, and the box in which it must be obeyed."""
        rng = self.rng
        first = self.step == 0
        region = self.truth if first else _error_component(error, rng)
        if not region.any():
            region = self.truth
        deepest = rng.random() < (0.5 if first else 0.6)
        place = _deepest_voxel(region) if deepest else _random_voxel(region, rng)
        positive = bool(self.truth[tuple(place)])
        kinds = ("point", "scribble", "lasso", "bbox")
        kind = str(rng.choice(kinds, p=(0.68, 0.13, 0.1, 0.09)))
        for written in self.written - {0}:
            self.channels[written] *= DECAY
        channel = CHANNELS[kind][0 if positive else 1]
        self.written.add(channel)
        if kind == "point":
            self._write_point(channel, place)
            box = tuple(slice(max(0, c - 3), c + 4) for c in place)
            return place, np.zeros(3), box
        axis = int(rng.integers(3))
        flat = np.take(region, place[axis], axis)
        drawn = {"scribble": _scribble, "lasso": _lasso, "bbox": _rectangle}[kind](flat, np.delete(place, axis), rng)
        where = [slice(None)] * 3
        where[axis] = int(place[axis])
        target = self.channels[(channel, *where)]
        np.maximum(target, drawn, out=target)
        ij = np.argwhere(drawn)
        low = np.insert(ij.min(0), axis, place[axis])
        high = np.insert(ij.max(0), axis, place[axis]) + 1
        obeyed = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return (low + high) // 2, high - low, obeyed if kind == "scribble" else None

    def _write_point(self, channel: int, place: np.ndarray) -> None:
        ball = build_point((POINT_RADIUS,) * 3, True, False).numpy()
        target, source = _overlap(self.truth.shape, place, ball.shape[0])
        view = self.channels[(channel, *target)]
        np.maximum(view, ball[source], out=view)

    # ---- views --------------------------------------------------------------------------------------------

    def _truth_leaves(self, centre: np.ndarray) -> bool:
        box = tuple(slice(max(0, int(c) - PATCH // 2), int(c) + PATCH // 2) for c in centre)
        return bool(self.truth[box].sum() < 0.9 * self.truth.sum())

    def _refinement_view(self) -> View:
        assert self.coarse is not None
        changed = self.coarse != (self.channels[0] > 0.5)
        if not changed.any() or self.rng.random() < 0.2:
            changed = self.truth
        centre = _random_voxel(changed, self.rng)
        previous, self.channels[0] = self.channels[0], self.coarse
        view = self._view(centre, 1.0, self.truth != (self.coarse > 0.5), None)
        self.channels[0] = previous
        return view

    def _view(self, centre: np.ndarray, zoom: float, error: np.ndarray, newest: tuple[slice, ...] | None) -> View:
        size = round(PATCH * zoom)
        weight = np.ones(self.truth.shape, np.float32)
        if self.step or self.coarse is not None:
            weight += 1.5 * error
        if newest is not None:
            weight[newest] += 4.0
        truth = self._cut(self.truth.astype(np.float32), centre, size)
        image = self._cut(self.image, centre, size)
        channels = {c: self._cut(self.channels[c], centre, size) for c in self.written}
        weight_t = self._cut(weight, centre, size)
        if zoom > 1:
            image = _resize(image, "trilinear")
            truth = (_resize(truth, "area") >= 0.5).float()
            weight_t = _resize(weight_t, "area")
            kernel = round_to_nearest_odd(2 * zoom - 1)
            for c in channels:
                if c in THIN:  # dilated before they are averaged, as in the session
                    channels[c] = iterative_3x3_same_padding_pool3d(channels[c][None, None], kernel)[0, 0]
            channels = {c: _resize(channel, "area") for c, channel in channels.items()}
        inputs = torch.zeros((1 + len(self.channels), PATCH, PATCH, PATCH))
        inputs[0] = image
        for c, channel in channels.items():
            inputs[1 + c] = channel
        return View(inputs, truth, weight_t, centre, zoom)

    def _cut(self, volume: np.ndarray, centre: np.ndarray, size: int) -> torch.Tensor:
        out = torch.zeros((size,) * 3)
        source, target = _overlap(volume.shape, centre, size)
        out[target] = torch.from_numpy(volume[source])
        return out

    def _paste(self, volume: np.ndarray, answer: np.ndarray, centre: np.ndarray, size: int) -> None:
        target, source = _overlap(volume.shape, centre, size)
        volume[target] = answer[source]


def _resize(volume: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.interpolate(volume[None, None], (PATCH,) * 3, mode=mode)[0, 0]


def _overlap(shape: tuple[int, ...], centre: np.ndarray, size: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a cube of ``size`` about ``centre`` lies in a volume, and that part in the cube's own indices."""
    inner, outer = [], []
    for n, c in zip(shape, centre, strict=True):
        low = int(c) - size // 2
        a, b = max(0, low), max(0, min(n, low + size))
        inner.append(slice(a, b))
        outer.append(slice(a - low, a - low + max(0, b - a)))
    return tuple(inner), tuple(outer)


def _choose_object(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One connected object of at least 60 voxels; every label is as likely as any other."""
    counts = np.bincount(labels.ravel())[1:]
    values = np.flatnonzero(counts >= 60) + 1
    if len(values) == 0:
        raise ValueError("a scene without an object of 60 voxels")
    mask = labels == rng.choice(values)
    parts, n = ndimage.label(mask)
    if n > 1:
        sizes = np.bincount(parts.ravel())[1:]
        mask = parts == 1 + (rng.choice(n, p=sizes / sizes.sum()) if rng.random() < 0.3 else int(sizes.argmax()))
    return mask


def _error_component(error: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts, n = ndimage.label(error)
    if n == 0:
        return error
    sizes = np.bincount(parts.ravel())[1:].astype(float)
    chosen = int(sizes.argmax()) if rng.random() < 0.7 else rng.choice(n, p=sizes / sizes.sum())
    return parts == chosen + 1


def _deepest_voxel(mask: np.ndarray) -> np.ndarray:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1, 1:-1]
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape)) + [s.start for s in box]


def _random_voxel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flat = np.flatnonzero(mask)
    return np.array(np.unravel_index(int(rng.choice(flat)), mask.shape))


def _scribble(flat: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stroke two voxels wide through the place and one to three more voxels of its slice of the region."""
    inside = np.argwhere(ndimage.binary_erosion(flat)) if ndimage.binary_erosion(flat).any() else np.argwhere(flat)
    stops = [place, *inside[rng.integers(len(inside), size=int(rng.integers(1, 4)))]]
    near = [s for s in stops if np.abs(s - place).max() <= 40]
    drawn = np.zeros(flat.shape, bool)
    for a, b in zip(near, near[1:] or near, strict=False):
        steps = np.linspace(a, b, 2 * int(np.abs(b - a).max()) + 2).astype(int)
        drawn[tuple(steps.T)] = True
    drawn = ndimage.binary_dilation(drawn, np.ones((2, 2)))
    kept = drawn & flat
    return kept if kept.any() else drawn


def _lasso(flat: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The part of the slice that holds the place, drawn round a little too tightly or too generously."""
    parts, _ = ndimage.label(flat)
    part = parts == parts[tuple(place)]
    margin = int(rng.integers(-1, 3))
    if margin < 0 and ndimage.binary_erosion(part).any():
        return np.asarray(ndimage.binary_erosion(part))
    return np.asarray(ndimage.binary_dilation(part, iterations=margin)) if margin > 0 else part


def _rectangle(flat: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts, _ = ndimage.label(flat)
    ij = np.argwhere(parts == parts[tuple(place)])
    low = np.maximum(0, ij.min(0) - rng.integers(0, 3, 2))
    high = ij.max(0) + 1 + rng.integers(0, 3, 2)
    drawn = np.zeros(flat.shape, bool)
    drawn[low[0] : high[0], low[1] : high[1]] = True
    return drawn
