"""A simulated user, who knows the ground truth and prompts at the largest error.

The user finds the largest connected error, false negative or false positive, and prompts there: at its deepest voxel,
or in the slice with its largest cross-section. Before the first prompt the whole object is missing, so the first prompt
is found in the same way. All computations use the voxels of the original image, never a resampled one, with distances
in millimeters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from nninteractive_ws import masks
from nninteractive_ws.client.blocking import Segment
from nninteractive_ws.client.events import Result
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Delta, Mask

Vector = tuple[float, float, float]
Kind = Literal["point", "scribble", "bbox", "lasso"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Spacing for distances in voxels.
_VOXELS: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class SimulatedPrompt:
    """A prompt. ``region``: the error that it targets. ``shape``: a voxel, a box, or strokes in a box."""

    kind: Kind
    positive: bool
    region: Delta
    shape: Index | Box | Delta

    def send(self, segment: Segment) -> Result:
        """Prompt a segment, and wait for the result."""
        if isinstance(self.shape, Box):
            return segment.add_bbox(self.shape, positive=self.positive)
        if isinstance(self.shape, Delta):
            assert self.shape.box is not None
            add = segment.add_lasso if self.kind == "lasso" else segment.add_scribble
            return add(self.shape.flips, box=self.shape.box, positive=self.positive)
        return segment.add_point(self.shape, positive=self.positive)


class SimulatedUser:
    """Generator of prompts for one object, each for the current mask.

    ``spacing``: millimeters per voxel along (i, j, k). ``kinds``: the kinds from which ``rng`` draws each prompt.
    ``brush``: thickness of a scribble in voxels along (i, j, k).
    """

    def __init__(
        self, truth: Mask, spacing: Vector, kinds: Sequence[Kind], rng: np.random.Generator, brush: Vector
    ) -> None:
        self._truth, self._spacing, self._kinds, self._rng, self._brush = truth, spacing, kinds, rng, brush
        self._sent: set[object] = set()

    def next(self, mask: Mask) -> SimulatedPrompt | None:
        """Return the prompt for the largest error of a mask, or None if there is no error or no new prompt for it.

        No prompt is repeated. Instead, its target is excluded from the error, so that the next one is elsewhere.
        """
        kind = self._kinds[int(self._rng.integers(len(self._kinds)))]
        tried = np.zeros_like(mask)
        while (found := error_region(self._truth, mask, tried)) is not None:
            region, positive = found
            target = self._target(kind, region)
            shape = self._shape(kind, target, positive, first=not mask.any())
            key = (kind, positive, _key(shape))
            if key not in self._sent:
                self._sent.add(key)
                return SimulatedPrompt(kind, positive, region, shape)
            assert target.box is not None
            tried[target.box.slices] |= target.flips
        return None

    def _target(self, kind: Kind, region: Delta) -> Delta:
        """Return the part of a region to mark: its deepest voxel, or a cross-section."""
        if kind != "point":
            return _largest_section(region, self._spacing)
        i, j, k = _deepest(region, self._spacing)
        return Delta(Box((i, j, k), (i + 1, j + 1, k + 1)), np.ones((1, 1, 1), bool))

    def _shape(self, kind: Kind, target: Delta, positive: bool, first: bool) -> Index | Box | Delta:
        assert target.box is not None
        if kind == "point":
            return target.box.start
        if kind == "bbox":
            return target.box
        if kind == "scribble":
            return _stroke(target, self._spacing, self._brush)
        # A correction must not enclose correct voxels, or it would prompt for a new error.
        allowed = None if first else self._truth == positive
        return _outline(target, self._spacing, self._truth.shape, allowed)


def _key(shape: Index | Box | Delta) -> object:
    return (shape.box, shape.flips.tobytes()) if isinstance(shape, Delta) else shape


def error_region(truth: Mask, mask: Mask, tried: Mask | None = None) -> tuple[Delta, bool] | None:
    """Return the largest connected error, cropped to its box, and whether it is missing (True) or excess (False).

    ``tried``: voxels to exclude. Returns None if there is no error.
    """
    error = truth ^ mask
    if tried is not None:
        error &= ~tried
    missed, extra = _largest_component(error & truth), _largest_component(error & mask)
    region = missed if missed.voxels >= extra.voxels else extra
    return None if region.box is None else (region, region is missed)


def largest_part(mask: Mask) -> Mask:
    """Return the largest connected component of a nonempty mask of any dimension, including diagonal neighbors."""
    labels, n = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return np.asarray(labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())) if n > 1 else mask


def _largest_component(mask: Mask) -> Delta:
    delta = masks.to_delta(mask)
    return delta if delta.box is None else masks.to_delta(largest_part(delta.flips), delta.box.start)


def deepest_voxel(mask: Mask, spacing: Vector = _VOXELS) -> Index:
    """Return the voxel of the largest component that is farthest from its border. Ties go to the one nearest the
    centroid."""
    return _deepest(_largest_component(mask), spacing)


def _deepest(region: Delta, spacing: Vector) -> Index:
    assert region.box is not None
    # The border of the volume counts as a border of the object.
    depth = ndimage.distance_transform_edt(np.pad(region.flips, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    candidates = np.argwhere(depth >= depth.max() * (1 - 1e-9))
    offsets = (candidates - np.array(ndimage.center_of_mass(region.flips))) * spacing
    i, j, k = (candidates[(offsets**2).sum(1).argmin()] + region.box.start).tolist()
    return i, j, k


def correction(truth: Mask, mask: Mask, spacing: Vector = _VOXELS) -> tuple[Index, bool] | None:
    """Return the deepest voxel of the largest error, and whether it is positive; None without an error."""
    found = error_region(truth, mask)
    return None if found is None else (_deepest(found[0], spacing), found[1])


def largest_slice(mask: Mask, spacing: Vector = _VOXELS) -> Box:
    """Return the box, one voxel thick, of the object's largest cross-section in the slice orientation of the image."""
    box = _largest_section(_largest_component(mask), spacing).box
    assert box is not None
    return box


def lasso(mask: Mask, spacing: Vector = _VOXELS) -> tuple[Mask, Box]:
    """Return the largest cross-section of the object, dilated by one voxel, and its box."""
    return _drawing(_outline(_largest_section(_largest_component(mask), spacing), spacing, mask.shape, None))


def scribble(mask: Mask, spacing: Vector = _VOXELS, brush: Vector = (2, 2, 2)) -> tuple[Mask, Box]:
    """Return a stroke along the longer side of the object's largest cross-section, within it, and its box."""
    return _drawing(_stroke(_largest_section(_largest_component(mask), spacing), spacing, brush))


def _drawing(strokes: Delta) -> tuple[Mask, Box]:
    assert strokes.box is not None
    return strokes.flips, strokes.box


def _largest_section(region: Delta, spacing: Vector) -> Delta:
    """Return the largest connected part of the region's largest cross-section."""
    assert region.box is not None
    axis = _across(spacing)
    at = int(region.flips.sum(tuple(a for a in range(3) if a != axis)).argmax())
    origin = list(region.box.start)
    origin[axis] += at
    section = _largest_component(np.take(region.flips, [at], axis))
    assert section.box is not None
    return Delta(section.box.shift(origin), section.flips)


def _across(spacing: Vector) -> int:
    """Return the axis perpendicular to the slices: the one with the longest voxels, as images are acquired and viewed
    in slices; k if all are equal."""
    return 2 if spacing[2] >= 0.99 * max(spacing) else int(np.argmax(spacing))


def _outline(section: Delta, spacing: Vector, shape: Sequence[int], allowed: Mask | None) -> Delta:
    """Fill the holes of a cross-section, and dilate it by one voxel. ``allowed`` limits the result."""
    assert section.box is not None
    axis = _across(spacing)
    dilated = ndimage.binary_dilation(np.pad(ndimage.binary_fill_holes(section.flips.squeeze(axis)), 1))
    origin = tuple(s - (a != axis) for a, s in enumerate(section.box.start))
    frame = Box.whole(np.expand_dims(dilated, axis).shape).shift(origin)
    inside = frame.clip(shape)
    assert inside is not None
    drawn = np.expand_dims(dilated, axis)[inside.relative_to(frame).slices]
    if allowed is not None:
        drawn = drawn & allowed[inside.slices]
    return masks.to_delta(drawn, inside.start)


def _stroke(section: Delta, spacing: Vector, brush: Vector) -> Delta:
    """Return a stroke along the longer side, within the cross-section. It goes through the deepest voxel of each row
    that is not near a tip."""
    assert section.box is not None
    axis = _across(spacing)
    flat, across = section.flips.squeeze(axis), [a for a in range(3) if a != axis]
    depth = ndimage.distance_transform_edt(np.pad(flat, 1), sampling=[spacing[a] for a in across])[1:-1, 1:-1]
    lengths = [n * spacing[a] for n, a in zip(flat.shape, across, strict=True)]
    longer = int(np.argmax(lengths))
    rows = np.moveaxis(depth, longer, 0)
    line = np.zeros(rows.shape, bool)
    for at in np.flatnonzero(rows.max(1) >= rows.max() / 2):
        deepest = np.flatnonzero(rows[at] >= rows[at].max() * (1 - 1e-9))
        line[at, deepest[len(deepest) // 2]] = True
    width = [max(1, round(brush[a])) for a in across]
    stroke = ndimage.binary_dilation(np.moveaxis(line, 0, longer), np.ones(width)) & flat
    return masks.to_delta(np.expand_dims(stroke, axis), section.box.start)
