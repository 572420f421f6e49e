"""A mask while a prompt is predicted: as it is shown, and what becomes of it."""

import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.geometry import Box
from nninteractive_ws.masks import NO_CHANGE, Delta, Mask


class Shown:
    """A mask while it is predicted: as before the prompt, as shown, and the change between two showings."""

    def __init__(self, before: Mask) -> None:
        self._before = before
        self._results: list[tuple[Box, npt.NDArray[np.uint8]]] = []
        self.overlay = NO_CHANGE

    def replace(self, box: Box, values: Mask) -> Delta:
        """Show ``values`` in ``box`` and the mask from before everywhere else. Returns what changed."""
        overlay = masks.diff(self._before[box.slices], values, box.start)
        change = masks.compose(self.overlay, overlay)
        self.overlay = overlay
        return change

    def patch(self, box: Box, values: Mask) -> Delta:
        """Show ``values`` in ``box`` and leave the rest as it is shown. Returns what changed."""
        change = masks.diff(self.view(box), values, box.start)
        self.overlay = masks.compose(self.overlay, change)
        return change

    def back(self) -> Delta:
        """Show the mask from before. Returns what changed."""
        change, self.overlay = self.overlay, NO_CHANGE
        return change

    def view(self, box: Box) -> Mask:
        """The voxels of ``box`` as shown: a new array."""
        shown: Mask = self._before[box.slices].copy()
        common = self.overlay.box.intersection(box) if self.overlay.box is not None else None
        if common is not None and self.overlay.box is not None:
            part = shown[common.within(box).slices]
            np.logical_xor(part, self.overlay.flips[common.within(self.overlay.box).slices], out=part)
        return shown

    def add_result(self, box: Box, values: Mask) -> None:
        """Remember a part of the final answer; later parts lie over earlier ones."""
        # As bits: refinement boxes overlap, and hundreds of them have many times the volume's voxels.
        self._results.append((box, np.packbits(values)))

    def final(self) -> Delta:
        """What all results change of the mask from before."""
        if not self._results:
            return NO_CHANGE
        hull = self._results[0][0]
        for box, _ in self._results[1:]:
            hull = hull.union(box)
        before = self._before[hull.slices]
        after = before.copy()
        for box, bits in self._results:
            after[box.within(hull).slices] = np.unpackbits(bits, count=box.voxels).reshape(box.shape)
        return masks.diff(before, after, hull.start)


def occupied(prediction: Mask, box: Box, inside: Box) -> Box | None:
    """The part of ``inside`` beyond which a patch-sized answer that stands for ``box`` says nothing."""
    found = masks.hull(prediction)
    if found is None:
        return None
    bounds = []
    for n, (low, high), (a, b), of_patch in zip(prediction.shape, box, inside, found, strict=True):
        first, last = np.searchsorted(_picks(n, low, high, a, b), of_patch)
        bounds.append((a + int(first), a + int(last)))
    return None if any(a == b for a, b in bounds) else Box.from_pairs(bounds)


def resampled(prediction: Mask, box: Box, inside: Box) -> Mask:
    """The nearest voxels of a patch-sized answer that stands for ``box``, for the part ``inside``."""
    picks = [_picks(n, *of, *part) for n, of, part in zip(prediction.shape, box, inside, strict=True)]
    return np.asarray(prediction[np.ix_(*picks)])


def _picks(n: int, low: int, high: int, a: int, b: int) -> npt.NDArray[np.int_]:
    """Which of n voxels that stand for low to high is nearest to each from a to b."""
    return (np.arange(a - low, b - low) * n + n // 2) // (high - low)
