"""Postprocessing of the embedded model's predictions, which is not learned.

It finds unwanted changes of a mask, and predictions that continue outside the patch. All arrays are those of a patch,
(X, Y, Z).
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nninteractive_ws import masks
from nninteractive_ws.masks import Mask

#: Distance from its marks up to which a prompt is meant to change the mask, in voxels.
NEAR = 3
# A prompt closer than _THIN voxels to the border of the previous segmentation corrects a thin error. Farther away than
# NEAR, a change is then more often a mistake than intended, and is kept only if the logits' difference is at least
# _SURE. Chosen on phantoms.
_THIN, _SURE = 3, 4.0
# A thin error is a layer. If its correction changes more than this share of the previous segmentation, only voxels
# change that are at most as far from the border as the prompt. Chosen on phantoms and on real volumes.
_MAX_THIN_CHANGE = 0.1
# A first prediction is cut at a neck, beyond which lies another object. A neck is thinner than the first as a share of
# the thickness at the prompt, and has at most the second as its radius, in voxels. Chosen on phantoms and on real
# volumes. Corrections are not cut, because on two CTs they are better without.
_NECK, _WIDEST_NECK = 1 / 3, 4.0
# The surroundings of a prediction are more than the first and at most the second distance away from it, in voxels.
# Closer voxels hold some of both. Surroundings are similar up to _SPREAD standard deviations of the inside.
_RIM, _SPREAD = (1, 5), 2.0


def unwanted_changes(
    difference: npt.NDArray[np.float32], previous: Mask, newest: Mask, negative: Mask, positive: Mask
) -> Mask:
    """Return the changes that the newest prompt is unlikely to intend, bool (X, Y, Z).

    These are changes that are not connected with the newest prompt (in a first prediction: by more than a neck),
    changes closer to a prompt of the other polarity, and, if the prompt corrects a thin error, distant changes of low
    confidence, or many changes deeper than the error. Without a new prompt, as in the refinement of a mask, the border
    may move, but voxels deep inside are kept.

    ``difference``: of the logits, object minus background, float. ``newest``: marks of the newest prompt. ``negative``,
    ``positive``: marks of points and scribbles. All (X, Y, Z), bool except ``difference``.
    """
    changed: Mask = (difference > 0) != previous
    unwanted: Mask = np.zeros_like(changed)
    if not changed.any():
        return unwanted
    if not newest.any():
        return changed & _deep_inside(previous)
    near = _near(newest)
    far = changed & ~near
    box = _box_around(newest, _THIN)
    depth = _to_border(previous[box])[newest[box]].max()
    if depth < _THIN:
        unwanted = far & (np.abs(difference) < _SURE)
    all_positive, all_negative = positive | (newest & ~negative), negative | (newest & ~positive)
    if (all_negative.any() and (far & ~previous).any()) or (all_positive.any() and (far & previous).any()):
        box = _box_around(far | all_positive | all_negative, 0)
        unwanted[box] |= far[box] & _confirmed(previous[box], all_positive[box], all_negative[box])
    remaining = changed & ~unwanted
    if not previous.any():
        return unwanted | _beyond_necks(remaining, near)
    remaining &= ~_disconnected(remaining, near)
    if depth < _THIN and np.count_nonzero(remaining) > _MAX_THIN_CHANGE * np.count_nonzero(previous):
        box = _box_around(remaining, _THIN)
        remaining[box] &= _to_border(previous[box]) <= depth
        remaining &= ~_disconnected(remaining, near)
    return changed & ~remaining


def continuation_ratio(image: npt.NDArray[np.float32], prediction: Mask) -> float:
    """Return the share of a prediction's surroundings as bright as its inside, which is high if an object continues.

    0 if the prediction is empty or fills the patch. ``image``: float; ``prediction``: bool; both (X, Y, Z).
    """
    if not prediction.any():
        return 0.0
    box = _box_around(prediction, _RIM[1])
    inside, intensities = prediction[box], image[box]
    distance = ndimage.distance_transform_edt(~inside)
    surroundings = intensities[(distance > _RIM[0]) & (distance <= _RIM[1])]
    core = ndimage.binary_erosion(inside, border_value=1)
    of_object = intensities[core if core.any() else inside]
    similar = np.abs(surroundings - of_object.mean()) < _SPREAD * of_object.std()
    return float(similar.mean()) if similar.size else 0.0


def _confirmed(previous: Mask, positive: Mask, negative: Mask) -> Mask:
    """Whether the nearest mark agrees with the previous segmentation, by voxel. All bool (X, Y, Z)."""
    to_positive, to_negative = (
        ndimage.distance_transform_edt(~marks) if marks.any() else np.full(marks.shape, np.inf)
        for marks in (positive, negative)
    )
    return np.where(previous, to_positive < to_negative, to_negative < to_positive)


def _deep_inside(previous: Mask) -> Mask:
    """Voxels more than NEAR inside the border of a mask that may continue outside the patch. Both bool (X, Y, Z)."""
    inside: Mask = ndimage.minimum_filter(previous, 2 * NEAR + 1, mode="nearest")
    return inside


def _to_border(inside: Mask) -> npt.NDArray[np.float64]:
    """Distance of each voxel from the border of a mask, from 1, in voxels. Infinite if there is no border.

    ``inside``: bool, (X, Y, Z), as the result.
    """
    if inside.all() or not inside.any():
        return np.full(inside.shape, np.inf)
    distances: npt.NDArray[np.float64] = ndimage.distance_transform_edt(inside)
    distances += ndimage.distance_transform_edt(~inside)
    return distances


def _near(prompt: Mask) -> Mask:
    """Voxels up to NEAR away from a prompt, which must not be empty. Both bool (X, Y, Z)."""
    box = _box_around(prompt, NEAR)
    near = np.zeros_like(prompt)
    near[box] = ndimage.distance_transform_edt(~prompt[box]) <= NEAR
    return near


def _box_around(mask: Mask, margin: int) -> tuple[slice, slice, slice]:
    """Bounding box of a mask, which must not be empty, with a margin in voxels."""
    box = masks.bounding_box(mask)
    assert box is not None
    a, b, c = (slice(max(0, low - margin), high + margin) for low, high in box)
    return a, b, c


def _disconnected(changed: Mask, near: Mask) -> Mask:
    """Connected components of the changes without a voxel in ``near``. All bool (X, Y, Z)."""
    components, n = ndimage.label(changed)
    is_disconnected = np.ones(n + 1, bool)
    is_disconnected[components[near]] = False
    is_disconnected[0] = False  # the voxels that do not change
    return np.asarray(is_disconnected[components])


def _beyond_necks(prediction: Mask, near: Mask) -> Mask:
    """Voxels of a prediction that are connected with ``near`` not at all, or only by a neck. All bool (X, Y, Z).

    These are the voxels that an opening by reconstruction removes.
    """
    if not (prediction & near).any():
        return prediction
    box = _box_around(prediction, 1)
    inside, close = prediction[box], near[box]
    # Voxels at the border of the patch are taken to continue outside.
    depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    neck = min(_WIDEST_NECK, _NECK * depth[close].max())
    thick = depth > neck
    kept = thick & ~_disconnected(thick, close)
    if neck >= 1:
        kept = ndimage.distance_transform_edt(~kept) < neck + 1
    beyond = prediction.copy()
    beyond[box] &= ~(kept | close)
    return beyond
