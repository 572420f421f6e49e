"""Previews of a mask while a prompt is predicted, and its final result."""

import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import NO_CHANGE, Delta, Mask


class MaskPreview:
    """A mask during a prediction: the state before the prompt, the current preview, and the parts of the result.

    ``overlay``: the change from the state before to the preview.
    """

    def __init__(self, before: Mask) -> None:
        self._before = before
        self._results: list[tuple[Box, npt.NDArray[np.uint8]]] = []
        self.overlay = NO_CHANGE

    def replace(self, box: Box, values: Mask) -> Delta:
        """Preview ``values`` in ``box``, and the state before everywhere else. Return the change of the preview."""
        overlay = masks.diff(self._before[box.slices], values, box.start)
        change = masks.compose(self.overlay, overlay)
        self.overlay = overlay
        return change

    def patch(self, box: Box, values: Mask) -> Delta:
        """Preview ``values`` in ``box``, and keep the preview elsewhere. Return the change of the preview."""
        change = masks.diff(self.view(box), values, box.start)
        self.overlay = masks.compose(self.overlay, change)
        return change

    def revert(self) -> Delta:
        """Return to the state before the prompt. Return the change of the preview."""
        change, self.overlay = self.overlay, NO_CHANGE
        return change

    def view(self, box: Box) -> Mask:
        """Return the voxels of ``box`` in the preview, as a new array."""
        values: Mask = self._before[box.slices].copy()
        common = self.overlay.box.intersection(box) if self.overlay.box is not None else None
        if common is not None and self.overlay.box is not None:
            part = values[common.relative_to(box).slices]
            np.logical_xor(part, self.overlay.flips[common.relative_to(self.overlay.box).slices], out=part)
        return values

    def add_result(self, box: Box, values: Mask) -> None:
        """Store a part of the result. Later parts overwrite earlier ones."""
        # As bits, because refinement boxes overlap, and hundreds of them have many times the volume's voxels.
        self._results.append((box, np.packbits(values)))

    def final(self) -> Delta:
        """Return the change from the state before to the result."""
        if not self._results:
            return NO_CHANGE
        union = self._results[0][0]
        for box, _ in self._results[1:]:
            union = union.union(box)
        before = self._before[union.slices]
        after = before.copy()
        for box, bits in self._results:
            after[box.relative_to(union).slices] = np.unpackbits(bits, count=box.voxels).reshape(box.shape)
        return masks.diff(before, after, union.start)


def nonempty_region(prediction: Mask, box: Box, inside: Box) -> Box | None:
    """Return the bounding box, clipped to ``inside``, of a patch-sized prediction for the voxels of ``box``."""
    in_patch = masks.bounding_box(prediction)
    if in_patch is None:
        return None
    bounds = []
    for n, (low, high), (a, b), of_patch in zip(prediction.shape, box, inside, in_patch, strict=True):
        first, last = np.searchsorted(_nearest_indices(n, low, high, a, b), of_patch)
        bounds.append((a + int(first), a + int(last)))
    return None if any(a == b for a, b in bounds) else Box.from_pairs(bounds)


def resample_nearest(prediction: Mask, box: Box, inside: Box) -> Mask:
    """Resample a patch-sized prediction for the voxels of ``box`` to those of ``inside``, by nearest neighbors."""
    indices = [_nearest_indices(n, *of, *part) for n, of, part in zip(prediction.shape, box, inside, strict=True)]
    return np.asarray(prediction[np.ix_(*indices)])


def _nearest_indices(n: int, low: int, high: int, a: int, b: int) -> npt.NDArray[np.int_]:
    """Return the nearest of ``n`` samples that span [low, high), for each voxel of [a, b)."""
    return (np.arange(a - low, b - low) * n + n // 2) // (high - low)
