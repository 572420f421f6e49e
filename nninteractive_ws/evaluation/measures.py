"""What is measured after every prompt, and what an object's prompts add up to.

Names and tolerance are those of the CVPR 2025 challenge "Foundation Models for Interactive 3D Biomedical Image
Segmentation" where it has them.
"""

from collections.abc import Sequence

import numpy as np
from scipy import integrate

from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Delta, Mask

#: Of the normalised surface Dice, in millimetres; the challenge's.
TOLERANCE_MM = 2.0
#: The Dice for which prompts are counted.
TARGETS = (0.80, 0.85, 0.90)
#: How far around a point, in voxels, it is to be obeyed.
BALL_RADIUS = 3


def dice(a: Mask, b: Mask) -> float:
    """2 |a and b| / (|a| + |b|); 1 for two empty masks."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 1.0 if total == 0 else float(2 * np.count_nonzero(a & b) / total)


def surface_dice(mask: Mask, truth: Mask, spacing: tuple[float, float, float]) -> float:
    """Normalised surface Dice at :data:`TOLERANCE_MM` (Nikolov et al., doi:10.2196/26151): the share of both surfaces
    that is no farther from the other. 1 for two empty masks, 0 for one. ``spacing``: millimetres along (i, j, k).

    The surfaces are meshes (MeshMetrics, arXiv:2509.05670).
    """
    from meshmetrics import DistanceMetrics  # takes a second

    distances = DistanceMetrics(verbose=False)
    distances.set_input(truth, mask, spacing=spacing)
    return float(distances.nsd(TOLERANCE_MM))


def curve(values: Sequence[float], prompts: int) -> list[float]:
    """The value after each of ``prompts`` prompts: the last stays where there were fewer, and is 0 where there was
    none."""
    return [*values, *[values[-1] if values else 0.0] * (prompts - len(values))]


def area_under_curve(values: Sequence[float]) -> float:
    """The area under a curve of values after 1, 2, ... prompts by the trapezoid rule, as a share of what it could be.

    With five prompts, four times this is what the challenge calls DSC_AUC or NSD_AUC.
    """
    return float(integrate.trapezoid(values) / (len(values) - 1)) if len(values) > 1 else float(values[0])


def prompts_to(values: Sequence[float], target: float) -> int | None:
    """After how many prompts the target is reached first; None: not at all."""
    return next((n for n, value in enumerate(values, start=1) if value >= target), None)


def obeyed(mask: Mask, truth: Mask, point: Index, positive: bool) -> bool:
    """Whether a mask does what a point says: its voxel and those of the ball around it that are like it in truth
    belong to the mask after a positive one, and do not after a negative one."""
    reach = BALL_RADIUS
    i, j, k = point
    around = Box((i - reach, j - reach, k - reach), (i + reach + 1, j + reach + 1, k + reach + 1)).clip(truth.shape)
    assert around is not None
    grid = np.ogrid[around.slices]
    ball = sum((g - p) ** 2 for g, p in zip(grid, point, strict=True)) <= reach**2
    meant = ball & (truth[around.slices] == positive)
    return bool((mask[around.slices][meant] == positive).all()) and bool(mask[point]) == positive


def error_left(region: Delta, mask: Mask, truth: Mask) -> int:
    """How many voxels of a region are still wrong."""
    assert region.box is not None
    at = region.box.slices
    return int(np.count_nonzero(region.flips & (mask[at] ^ truth[at])))
