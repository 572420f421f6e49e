"""A simulated user: where somebody who knows the truth would point, draw and correct.

It looks for the largest connected error, missed or too much, and prompts there: in its middle, or in the slice where
it is largest. Before the first prompt the whole object is missed, so that the first prompt is found in the same way.
All is done on the voxels of the image as it is, never on a resampled one, with distances in millimetres.
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

#: For whoever counts in voxels.
_VOXELS: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the user gives. ``region``: the error that it points at; ``shape``: a voxel, a box, or strokes in a box."""

    kind: Kind
    positive: bool
    region: Delta
    shape: Index | Box | Delta

    def give(self, segment: Segment) -> Result:
        """Prompt a segment, and wait for the answer."""
        if isinstance(self.shape, Box):
            return segment.add_bbox(self.shape, positive=self.positive)
        if isinstance(self.shape, Delta):
            assert self.shape.box is not None
            add = segment.add_lasso if self.kind == "lasso" else segment.add_scribble
            return add(self.shape.flips, box=self.shape.box, positive=self.positive)
        return segment.add_point(self.shape, positive=self.positive)


class SimulatedUser:
    """Prompts for one object, each for the mask that there is.

    ``spacing``: millimetres per voxel along (i, j, k). ``kinds``: from which ``rng`` draws for every prompt.
    ``brush``: how thick a scribble is, voxels along (i, j, k).
    """

    def __init__(
        self, truth: Mask, spacing: Vector, kinds: Sequence[Kind], rng: np.random.Generator, brush: Vector
    ) -> None:
        self._truth, self._spacing, self._kinds, self._rng, self._brush = truth, spacing, kinds, rng, brush
        self._given: set[object] = set()

    def next(self, mask: Mask) -> Prompt | None:
        """The prompt for the largest error of a mask; None where there is none, or nothing new to say about it.

        The same prompt is not given twice: where it did not help, what it marked is left out of the error, so that the
        next is elsewhere.
        """
        kind = self._kinds[int(self._rng.integers(len(self._kinds)))]
        tried = np.zeros_like(mask)
        while (found := error_region(self._truth, mask, tried)) is not None:
            region, positive = found
            aim = self._aim(kind, region)
            shape = self._shape(kind, aim, positive, first=not mask.any())
            said = (kind, positive, _key(shape))
            if said not in self._given:
                self._given.add(said)
                return Prompt(kind, positive, region, shape)
            assert aim.box is not None
            tried[aim.box.slices] |= aim.flips
        return None

    def _aim(self, kind: Kind, region: Delta) -> Delta:
        """What of a region is marked: a voxel, or a cut."""
        if kind != "point":
            return _largest_cut(region, self._spacing)
        i, j, k = _deepest(region, self._spacing)
        return Delta(Box((i, j, k), (i + 1, j + 1, k + 1)), np.ones((1, 1, 1), bool))

    def _shape(self, kind: Kind, aim: Delta, positive: bool, first: bool) -> Index | Box | Delta:
        assert aim.box is not None
        if kind == "point":
            return aim.box.start
        if kind == "bbox":
            return aim.box
        if kind == "scribble":
            return _stroke(aim, self._spacing, self._brush)
        # A correction that circles what is right already would ask for a new error.
        allowed = None if first else self._truth == positive
        return _outline(aim, self._spacing, self._truth.shape, allowed)


def _key(shape: Index | Box | Delta) -> object:
    return (shape.box, shape.flips.tobytes()) if isinstance(shape, Delta) else shape


def error_region(truth: Mask, mask: Mask, tried: Mask | None = None) -> tuple[Delta, bool] | None:
    """The largest connected error, cut to its box, and whether it is missed (True) or too much (False).

    ``tried``: voxels that do not count. None where there is no error.
    """
    error = truth ^ mask
    if tried is not None:
        error &= ~tried
    missed, extra = _largest_part(error & truth), _largest_part(error & mask)
    region = missed if missed.voxels >= extra.voxels else extra
    return None if region.box is None else (region, region is missed)


def largest_part(mask: Mask) -> Mask:
    """The largest part of a mask of any dimension that is not empty; voxels that touch at a corner are connected."""
    parts, n = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return np.asarray(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())) if n > 1 else mask


def _largest_part(mask: Mask) -> Delta:
    whole = masks.tight(mask)
    return whole if whole.box is None else masks.tight(largest_part(whole.flips), whole.box.start)


def middle(mask: Mask, spacing: Vector = _VOXELS) -> Index:
    """The voxel of the largest part that is farthest from its border; of several the one nearest to its centroid."""
    return _deepest(_largest_part(mask), spacing)


def _deepest(region: Delta, spacing: Vector) -> Index:
    assert region.box is not None
    # The border of the volume counts as a border of the object.
    depth = ndimage.distance_transform_edt(np.pad(region.flips, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    candidates = np.argwhere(depth >= depth.max() * (1 - 1e-9))
    away = (candidates - np.array(ndimage.center_of_mass(region.flips))) * spacing
    i, j, k = (candidates[(away**2).sum(1).argmin()] + region.box.start).tolist()
    return i, j, k


def correction(truth: Mask, mask: Mask, spacing: Vector = _VOXELS) -> tuple[Index, bool] | None:
    """A point in the middle of the largest error, and whether it is positive; None without an error."""
    found = error_region(truth, mask)
    return None if found is None else (_deepest(found[0], spacing), found[1])


def largest_slice(mask: Mask, spacing: Vector = _VOXELS) -> Box:
    """The box, one voxel thick, around the object in the slice where it is largest, of those in which one draws."""
    box = _largest_cut(_largest_part(mask), spacing).box
    assert box is not None
    return box


def lasso(mask: Mask, spacing: Vector = _VOXELS) -> tuple[Mask, Box]:
    """The object in its largest slice, drawn round a voxel too wide, and the box that it fills."""
    return _drawing(_outline(_largest_cut(_largest_part(mask), spacing), spacing, mask.shape, None))


def scribble(mask: Mask, spacing: Vector = _VOXELS, brush: Vector = (2, 2, 2)) -> tuple[Mask, Box]:
    """A stroke along the longer side of the object in its largest slice, never beyond it, and its box."""
    return _drawing(_stroke(_largest_cut(_largest_part(mask), spacing), spacing, brush))


def _drawing(strokes: Delta) -> tuple[Mask, Box]:
    assert strokes.box is not None
    return strokes.flips, strokes.box


def _largest_cut(region: Delta, spacing: Vector) -> Delta:
    """What is connected of a region in the slice where it is largest."""
    assert region.box is not None
    axis = _across(spacing)
    at = int(region.flips.sum(tuple(a for a in range(3) if a != axis)).argmax())
    origin = list(region.box.start)
    origin[axis] += at
    cut = _largest_part(np.take(region.flips, [at], axis))
    assert cut.box is not None
    return Delta(cut.box.shift(origin), cut.flips)


def _across(spacing: Vector) -> int:
    """The axis across which slices lie: that along which voxels are longest, as an image is acquired and looked at; k
    where none is."""
    return 2 if spacing[2] >= 0.99 * max(spacing) else int(np.argmax(spacing))


def _outline(cut: Delta, spacing: Vector, shape: Sequence[int], allowed: Mask | None) -> Delta:
    """A cut without holes and a voxel wider, where that is ``allowed``."""
    assert cut.box is not None
    axis = _across(spacing)
    wide = ndimage.binary_dilation(np.pad(ndimage.binary_fill_holes(cut.flips.squeeze(axis)), 1))
    origin = tuple(s - (a != axis) for a, s in enumerate(cut.box.start))
    frame = Box.whole(np.expand_dims(wide, axis).shape).shift(origin)
    inside = frame.clip(shape)
    assert inside is not None
    drawn = np.expand_dims(wide, axis)[inside.within(frame).slices]
    if allowed is not None:
        drawn = drawn & allowed[inside.slices]
    return masks.tight(drawn, inside.start)


def _stroke(cut: Delta, spacing: Vector, brush: Vector) -> Delta:
    """Along the longer side, through the deepest voxel of every row that is not near a tip; not beyond the cut."""
    assert cut.box is not None
    axis = _across(spacing)
    flat, across = cut.flips.squeeze(axis), [a for a in range(3) if a != axis]
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
    return masks.tight(np.expand_dims(stroke, axis), cut.box.start)
