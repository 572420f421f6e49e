"""Which changes of a mask the newest prompt is not believed to mean, and whether an answer ends where it seems to: the
part of the embedded model that is not learnt.

All on arrays of a patch, (X, Y, Z).
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nninteractive_ws import masks
from nninteractive_ws.masks import Mask

#: A prompt means what is up to so many voxels away from what it marks.
NEAR = 3
# A prompt so close to the border of the previous segmentation corrects a thin error. Farther away than NEAR, it then
# changes only what the logits say by so much: there a change is more often a mistake than meant. Chosen on phantoms.
_THIN, _SURE = 3, 4.0
# A first answer ends at a neck thinner than this share of what it is at the prompt, and than so many voxels to either
# side: behind it lies something else. Chosen on phantoms and on real volumes; on two CTs, corrections are better
# without.
_NECK, _WIDEST_NECK = 1 / 3, 4.0
# What surrounds an answer: what is farther away than the first, where voxels hold some of both, and at most the second,
# in voxels. It is as bright as the inside up to so many standard deviations of that.
_RIM, _SPREAD = (1, 5), 2.0


def undone(difference: npt.NDArray[np.float32], previous: Mask, newest: Mask, negative: Mask, positive: Mask) -> Mask:
    """The changes that the newest prompt is not believed to mean: those that do not hang together with it, in a first
    answer by more than a neck, that lie nearer to a prompt that says the contrary, and, where it corrects a thin error,
    those farther away of which the network is not sure. Where there is no new prompt, as in the refinement of a mask, a
    border may move, but what is farther inside stays. difference: of the logits, float; previous; what the newest
    prompt marks; what points and scribbles mark: bool; all (X, Y, Z)."""
    changed: Mask = (difference > 0) != previous
    back: Mask = np.zeros_like(changed)
    if not changed.any():
        return back
    if not newest.any():
        return changed & _deep_inside(previous)
    near = _near(newest)
    far = changed & ~near
    if _is_thin(newest, previous):
        back = far & (np.abs(difference) < _SURE)
    says_object, says_not = positive | (newest & ~negative), negative | (newest & ~positive)
    if (says_not.any() and (far & ~previous).any()) or (says_object.any() and (far & previous).any()):
        box = _around(far | says_object | says_not, 0)
        back[box] |= far[box] & _confirmed(previous[box], says_object[box], says_not[box])
    left = changed & ~back
    back |= _apart(left, near) if previous.any() else _behind_necks(left, near)
    return back


def share_going_on(image: npt.NDArray[np.float32], answer: Mask) -> float:
    """The share of what surrounds an answer that is as bright as its inside, as where an object goes on behind it; 0
    where there is no answer, or nothing but it. image: float; answer: bool; both (X, Y, Z)."""
    if not answer.any():
        return 0.0
    box = _around(answer, _RIM[1])
    inside, seen = answer[box], image[box]
    away = ndimage.distance_transform_edt(~inside)
    around = seen[(away > _RIM[0]) & (away <= _RIM[1])]
    core = ndimage.binary_erosion(inside, border_value=1)
    of_object = seen[core if core.any() else inside]
    alike = np.abs(around - of_object.mean()) < _SPREAD * of_object.std()
    return float(alike.mean()) if alike.size else 0.0


def _confirmed(previous: Mask, says_object: Mask, says_not: Mask) -> Mask:
    """Where the nearest mark says what the previous segmentation says. All bool (X, Y, Z)."""
    to_object, to_not = (
        ndimage.distance_transform_edt(~marks) if marks.any() else np.full(marks.shape, np.inf)
        for marks in (says_object, says_not)
    )
    return np.where(previous, to_object < to_not, to_not < to_object)


def _deep_inside(previous: Mask) -> Mask:
    """The voxels more than NEAR from all that is not in it; what lies beyond the patch may be. Both bool (X, Y, Z)."""
    inside: Mask = ndimage.minimum_filter(previous, 2 * NEAR + 1, mode="nearest")
    return inside


def _is_thin(prompt: Mask, previous: Mask) -> bool:
    """Whether all of a prompt is less than _THIN from the border of the previous segmentation. Both bool (X, Y, Z)."""
    box = _around(prompt, _THIN)
    inside = previous[box]
    if inside.all() or not inside.any():
        return False
    depth = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside)
    return bool(depth[prompt[box]].max() < _THIN)


def _near(prompt: Mask) -> Mask:
    """The voxels up to NEAR away from a prompt that is there. Both bool (X, Y, Z)."""
    box = _around(prompt, NEAR)
    near = np.zeros_like(prompt)
    near[box] = ndimage.distance_transform_edt(~prompt[box]) <= NEAR
    return near


def _around(prompt: Mask, margin: int) -> tuple[slice, slice, slice]:
    """The box around a prompt that is there, and so many voxels more."""
    box = masks.hull(prompt)
    assert box is not None
    a, b, c = (slice(max(0, low - margin), high + margin) for low, high in box)
    return a, b, c


def _apart(changed: Mask, near: Mask) -> Mask:
    """The changes of which no voxel that they are connected with is near. All bool (X, Y, Z)."""
    parts, n = ndimage.label(changed)
    apart = np.ones(n + 1, bool)
    apart[parts[near]] = False
    apart[0] = False  # what does not change at all
    return np.asarray(apart[parts])


def _behind_necks(answer: Mask, near: Mask) -> Mask:
    """What of an answer hangs together with what is near by nothing, or by a neck: what an opening by reconstruction
    leaves out. All bool (X, Y, Z)."""
    if not (answer & near).any():
        return answer
    box = _around(answer, 1)
    inside, close = answer[box], near[box]
    # What reaches the border of the patch goes on behind it.
    depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    neck = min(_WIDEST_NECK, _NECK * depth[close].max())
    thick = depth > neck
    kept = thick & ~_apart(thick, close)
    if neck >= 1:
        kept = ndimage.distance_transform_edt(~kept) < neck + 1
    behind = answer.copy()
    behind[box] &= ~(kept | close)
    return behind
