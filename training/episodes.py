"""A simulated user on one scene: choose an object, prompt it, and correct the network's own predictions.

The state is that of the inference session: interaction channels of the whole volume with decayed older prompts, and the
previous segmentation. Views of it are cropped, zoomed and padded as in the session, so training inputs match those at
inference. Many episodes begin midway, with older prompts and a previous segmentation with typical errors. From them the
network learns to use the previous segmentation as a hint, and to follow the newest prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from nnInteractive.interaction.point import build_point
from nnInteractive.utils.erosion_dilation import iterative_3x3_same_padding_pool3d
from nnInteractive.utils.rounding import round_to_nearest_odd
import numpy as np
from scipy import ndimage
import torch
from torch.nn import functional

from training.mask_corruption import corrupt
from training.scenes import MIN_OBJECT_VOXELS, Scene

PATCH = 96
POINT_RADIUS = 4
DECAY = 0.9
MAX_STEPS = 8
MAX_ZOOM = 4.0
MIDWAY = 0.3  # share of episodes that begin with a corrupted mask
SECOND_PASS = 0.5  # share of first predictions that are refined by a second pass, as the network does at inference
CHANNELS = {"bbox": (1, 2), "lasso": (1, 2), "point": (3, 4), "scribble": (5, 6)}
THIN = {*CHANNELS["point"], *CHANNELS["scribble"]}
# A point is obeyed if the voxels within this distance follow it, as far as the ground truth agrees.
OBEDIENCE_RADIUS = 3


@dataclass
class View:
    """Input and target of the network. inputs (8, P, P, P) and target (P, P, P), float32.

    wrong: errors of the previous segmentation. obey: voxels marked by the newest prompt that agree with the ground
    truth. pointed_at: the part of ``wrong`` that the newest prompt should correct. All bool (P, P, P). The latter two
    are None if the view has no new prompt, or is zoomed out.
    """

    inputs: torch.Tensor
    target: torch.Tensor
    wrong: torch.Tensor
    obey: torch.Tensor | None
    pointed_at: torch.Tensor | None
    positive: bool
    center: np.ndarray
    zoom: float


@dataclass
class EpisodePrompt:
    """A prompt. center and size in voxels. region: the targeted error, bool, with the volume's shape. obeyed: a box,
    and the mask in it of voxels that should follow the prompt."""

    center: np.ndarray
    size: np.ndarray
    positive: bool
    region: np.ndarray
    obeyed: tuple[tuple[slice, ...], np.ndarray] | None = field(default=None)


class Episode:
    """One object of one scene, from the first prompt to the last correction."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.rng = rng
        self.image = scene.image
        self.truth = _choose_object(scene, rng)
        self.channels = np.zeros((7, *scene.image.shape), np.float32)
        self.written = {0}  # channels with nonzero values
        self.step = 0
        self.refinements = 0
        self.coarse: np.ndarray | None = None
        self.again: EpisodePrompt | None = None
        # Many episodes end after the first prompt, because users judge by it. Otherwise it would be rare.
        self._last = 1 if rng.random() < 0.3 else int(rng.integers(2, MAX_STEPS + 1))
        if rng.random() < MIDWAY:
            self._begin_midway(scene.labels)

    @property
    def over(self) -> bool:
        return self.step >= self._last

    def next_view(self) -> View:
        """Place the next prompt, or refine the next part of a coarse prediction."""
        if self.refinements:
            return self._refinement_view()
        wrong = self.truth != (self.channels[0] > 0.5)
        if self.again is not None:
            return self._view(self.again.center, 1.0, wrong, self.again)
        prompt = self._prompt(wrong)
        if self.step == 0 and self.rng.random() < SECOND_PASS:
            self.again = prompt
        zoom = max(1.0, float(((prompt.size + PATCH // 3) / PATCH).max()))
        if self.rng.random() < (0.5 if self._truth_leaves(prompt.center) else 0.1):
            zoom *= 1.5 ** int(self.rng.integers(1, 4))
        return self._view(prompt.center, min(zoom, MAX_ZOOM), wrong, prompt)

    def accept(self, view: View, answer: np.ndarray) -> None:
        """Accept the network's prediction for the last view: bool (P, P, P)."""
        if self.coarse is not None:
            self._paste(self.coarse, answer, view.center, PATCH)
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
            self._paste(self.coarse, grown[0, 0].numpy() >= 0.5, view.center, size)
            self.refinements = int(self.rng.integers(1, 3))
        else:
            before = self.channels[0].any()
            self._paste(self.channels[0], answer, view.center, PATCH)
            # After the first of two passes, only the previous segmentation has changed.
            self.step += 0 if self.again is not None and not before and answer.any() else 1
        if self.step:
            self.again = None

    # ---- prompts ------------------------------------------------------------------------------------------

    def _begin_midway(self, labels: np.ndarray) -> None:
        """Start with older points, and a corrupted mask as their result."""
        near = _near(self.truth)
        self.step = int(self.rng.integers(1, MAX_STEPS))
        self._last = min(MAX_STEPS, self.step + int(self.rng.integers(1, 3)))
        for n in range(self.step):
            positive = n == 0 or not near.any() or self.rng.random() < 0.5
            position = (
                _deepest_voxel(self.truth) if n == 0 else _random_voxel(self.truth if positive else near, self.rng)
            )
            self._decay()
            self._write_point(CHANNELS["point"][0 if positive else 1], position)
        self.channels[0] = corrupt(self.truth, labels, self.rng)

    def _decay(self) -> None:
        for written in self.written - {0}:
            self.channels[written] *= DECAY

    def _prompt(self, wrong: np.ndarray) -> EpisodePrompt:
        """Draw a prompt, and write it into the channels."""
        rng = self.rng
        first = self.step == 0
        region = self.truth if first else _error_region(self.truth, wrong, rng)
        if not region.any():
            region = self.truth
        position = _deepest_voxel(region) if rng.random() < (0.7 if first else 0.6) else _random_voxel(region, rng)
        positive = bool(self.truth[tuple(position)])
        kind = str(rng.choice(("point", "scribble", "lasso", "bbox"), p=(0.7, 0.13, 0.09, 0.08)))
        self._decay()
        channel = CHANNELS[kind][0 if positive else 1]
        if kind == "point":
            self._write_point(channel, position)
            box, inside = _ball(self.truth.shape, position, OBEDIENCE_RADIUS)
            return EpisodePrompt(position, np.zeros(3), positive, region, (box, inside & (self.truth[box] == positive)))
        self.written.add(channel)
        axis = int(rng.integers(3))
        flat = np.take(region, position[axis], axis)
        draw: Callable[..., np.ndarray] = {"scribble": _scribble, "lasso": _lasso, "bbox": _rectangle}[kind]
        drawn = draw(flat, np.delete(position, axis), rng)
        where = [slice(None)] * 3
        where[axis] = slice(int(position[axis]), int(position[axis]) + 1)
        marked = np.expand_dims(drawn, axis)
        target = self.channels[channel][tuple(where)]
        np.maximum(target, marked, out=target)
        ij = np.argwhere(drawn)
        low = np.insert(ij.min(0), axis, position[axis])
        high = np.insert(ij.max(0), axis, position[axis]) + 1
        box = tuple(where)
        obeyed = (box, marked & (self.truth[box] == positive)) if kind == "scribble" else None
        return EpisodePrompt((low + high) // 2, high - low, positive, region, obeyed)

    def _write_point(self, channel: int, position: np.ndarray) -> None:
        ball = build_point((POINT_RADIUS,) * 3, True, False).numpy()
        target, source = _overlap(self.truth.shape, position, ball.shape[0])
        view = self.channels[channel][tuple(target)]
        np.maximum(view, ball[source], out=view)
        self.written.add(channel)

    # ---- views --------------------------------------------------------------------------------------------

    def _truth_leaves(self, center: np.ndarray) -> bool:
        box = tuple(slice(max(0, int(c) - PATCH // 2), int(c) + PATCH // 2) for c in center)
        return bool(self.truth[box].sum() < 0.9 * self.truth.sum())

    def _refinement_view(self) -> View:
        assert self.coarse is not None
        changed = self.coarse != (self.channels[0] > 0.5)
        if not changed.any() or self.rng.random() < 0.2:
            changed = self.truth
        center = _random_voxel(changed, self.rng)
        previous, self.channels[0] = self.channels[0], self.coarse
        view = self._view(center, 1.0, self.truth != (self.coarse > 0.5), None)
        self.channels[0] = previous
        return view

    def _view(self, center: np.ndarray, zoom: float, wrong: np.ndarray, prompt: EpisodePrompt | None) -> View:
        size = round(PATCH * zoom)
        target = self._cut(self.truth, center, size)
        errors = self._cut(wrong, center, size)
        image = self._cut(self.image, center, size)
        channels = {c: self._cut(self.channels[c], center, size) for c in self.written}
        obey = pointed_at = None
        if zoom > 1:
            image = _resize(image, "trilinear")
            target = (_resize(target, "area") >= 0.5).float()
            errors = _resize(errors, "area")
            kernel = round_to_nearest_odd(2 * zoom - 1)
            for c in channels:
                if c in THIN:  # dilated before averaging, as in the session
                    _dilate(channels[c], kernel)
            channels = {c: _resize(channel, "area") for c, channel in channels.items()}
        elif prompt is not None:
            if prompt.obeyed is not None:
                marked = np.zeros(self.truth.shape, bool)
                marked[prompt.obeyed[0]] = prompt.obeyed[1]
                obey = self._cut(marked, center, size) > 0
            if self.step:
                pointed_at = self._cut(prompt.region & wrong, center, size) > 0
        inputs = torch.zeros((1 + len(self.channels), PATCH, PATCH, PATCH))
        inputs[0] = image
        for c, channel in channels.items():
            inputs[1 + c] = channel
        positive = prompt is not None and prompt.positive
        return View(inputs, target, errors > 0.5, obey, pointed_at, positive, center, zoom)

    def _cut(self, volume: np.ndarray, center: np.ndarray, size: int) -> torch.Tensor:
        out = torch.zeros((size,) * 3)
        source, target = _overlap(volume.shape, center, size)
        out[target] = torch.from_numpy(volume[source])
        return out

    def _paste(self, volume: np.ndarray, answer: np.ndarray, center: np.ndarray, size: int) -> None:
        target, source = _overlap(volume.shape, center, size)
        volume[target] = answer[source]


def _resize(volume: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.interpolate(volume[None, None], (PATCH,) * 3, mode=mode)[0, 0]


def _dilate(channel: torch.Tensor, kernel: int) -> None:
    """Dilate in place, only in the bounding box of nonzero voxels."""
    found = [channel.amax(tuple(a for a in range(3) if a != axis)).nonzero() for axis in range(3)]
    if not len(found[0]):
        return
    box = tuple(slice(max(0, int(f[0]) - kernel), int(f[-1]) + kernel + 1) for f in found)
    channel[box] = iterative_3x3_same_padding_pool3d(channel[box][None, None], kernel)[0, 0]


def _ball(shape: tuple[int, ...], center: np.ndarray, radius: int) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the box of a ball in a volume, and the mask of voxels within ``radius`` of the center."""
    box = tuple(slice(max(0, int(c) - radius), min(n, int(c) + radius + 1)) for c, n in zip(center, shape, strict=True))
    grid = np.ogrid[box]
    return box, np.asarray(sum((g - int(c)) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2)


def _overlap(shape: tuple[int, ...], center: np.ndarray, size: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Intersect a volume with a cube of ``size`` around ``center``. Return the slices in the volume and in the cube."""
    inner, outer = [], []
    for n, c in zip(shape, center, strict=True):
        low = int(c) - size // 2
        a, b = max(0, low), max(0, min(n, low + size))
        inner.append(slice(a, b))
        outer.append(slice(a - low, a - low + max(0, b - a)))
    return tuple(inner), tuple(outer)


def _choose_object(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return a connected object of a label with at least MIN_OBJECT_VOXELS voxels, drawn by the scene's weights."""
    counts = np.bincount(scene.labels.ravel())[1:]
    values = np.flatnonzero(counts >= MIN_OBJECT_VOXELS) + 1
    shares = scene.shares[values]
    mask = scene.labels == rng.choice(values, p=shares / shares.sum())
    parts, n = ndimage.label(mask)
    if n > 1:
        sizes = np.bincount(parts.ravel())[1:]
        mask = parts == 1 + (rng.choice(n, p=sizes / sizes.sum()) if rng.random() < 0.3 else int(sizes.argmax()))
    return np.asarray(mask)


def _error_region(truth: np.ndarray, wrong: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a connected component of false negatives or false positives, mostly the largest, as users correct."""
    region = np.zeros_like(wrong)
    if not wrong.any():
        return region
    box = ndimage.find_objects(wrong.view(np.uint8))[0]
    labelled = [ndimage.label(wrong[box] & (truth[box] == value), np.ones((3, 3, 3))) for value in (True, False)]
    sizes = [np.bincount(parts.ravel(), minlength=n + 1)[1:] for parts, n in labelled]
    all_sizes = np.concatenate(sizes).astype(float)
    chosen = (
        int(all_sizes.argmax())
        if rng.random() < 0.75
        else int(rng.choice(len(all_sizes), p=all_sizes / all_sizes.sum()))
    )
    kind = int(chosen >= len(sizes[0]))
    region[box] = labelled[kind][0] == 1 + chosen - kind * len(sizes[0])
    return region


def _deepest_voxel(mask: np.ndarray) -> np.ndarray:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1, 1:-1]
    return np.asarray(np.array(np.unravel_index(int(depth.argmax()), depth.shape)) + [s.start for s in box])


def _near(mask: np.ndarray) -> np.ndarray:
    """Return the voxels outside a mask that are at most 6 steps away from it."""
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - 6), s.stop + 6) for s in found)
    near = np.zeros(mask.shape, bool)
    near[box] = ndimage.binary_dilation(mask[box], iterations=6) & ~mask[box]
    return near


def _random_voxel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flat = np.flatnonzero(mask)
    return np.array(np.unravel_index(int(rng.choice(flat)), mask.shape))


def _scribble(flat: np.ndarray, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a stroke two voxels wide through the position and one to three more voxels of its slice of the region."""
    inside = np.argwhere(ndimage.binary_erosion(flat)) if ndimage.binary_erosion(flat).any() else np.argwhere(flat)
    stops = [position, *inside[rng.integers(len(inside), size=int(rng.integers(1, 4)))]]
    near = [s for s in stops if np.abs(s - position).max() <= 40]
    drawn = np.zeros(flat.shape, bool)
    for a, b in zip(near, near[1:] or near, strict=False):
        steps = np.linspace(a, b, 2 * int(np.abs(b - a).max()) + 2).astype(int)
        drawn[tuple(steps.T)] = True
    drawn = ndimage.binary_dilation(drawn, np.ones((2, 2)))
    kept = drawn & flat
    return np.asarray(kept if kept.any() else drawn)


def _lasso(flat: np.ndarray, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the component of the slice at the position, outlined slightly too tightly or too generously."""
    parts, _ = ndimage.label(flat)
    part = parts == parts[tuple(position)]
    margin = int(rng.integers(-1, 3))
    if margin < 0 and ndimage.binary_erosion(part).any():
        return np.asarray(ndimage.binary_erosion(part))
    return np.asarray(ndimage.binary_dilation(part, iterations=margin)) if margin > 0 else part


def _rectangle(flat: np.ndarray, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts, _ = ndimage.label(flat)
    ij = np.argwhere(parts == parts[tuple(position)])
    low = np.maximum(0, ij.min(0) - rng.integers(0, 3, 2))
    high = ij.max(0) + 1 + rng.integers(0, 3, 2)
    drawn = np.zeros(flat.shape, bool)
    drawn[low[0] : high[0], low[1] : high[1]] = True
    return drawn
