"""Metrics after each prompt, and summaries over the prompts of an object.

Names and tolerance follow the CVPR 2025 challenge "Foundation Models for Interactive 3D Biomedical Image Segmentation",
if it defines them.
"""

from collections.abc import Sequence

import numpy as np
from scipy import integrate

from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Delta, Mask

#: Tolerance of the normalized surface Dice in millimeters, as in the challenge.
TOLERANCE_MM = 2.0
#: Dice values for which the number of prompts is reported.
TARGETS = (0.80, 0.85, 0.90)
#: Radius in voxels of the ball around a point that should follow the point.
BALL_RADIUS = 3


def dice(a: Mask, b: Mask) -> float:
    """Return 2 |a and b| / (|a| + |b|); 1 for two empty masks."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 1.0 if total == 0 else float(2 * np.count_nonzero(a & b) / total)


def surface_dice(mask: Mask, truth: Mask, spacing: tuple[float, float, float]) -> float:
    """Return the normalized surface Dice at :data:`TOLERANCE_MM` (Nikolov et al., doi:10.2196/26151).

    It is the share of both surfaces within the tolerance of the other surface; 1 for two empty masks, 0 for one.
    ``spacing``: millimeters along (i, j, k). The surfaces are meshes (MeshMetrics, arXiv:2509.05670).
    """
    from meshmetrics import DistanceMetrics  # the import takes a second

    distances = DistanceMetrics(verbose=False)
    distances.set_input(truth, mask, spacing=spacing)
    return float(distances.nsd(TOLERANCE_MM))


def curve(values: Sequence[float], prompts: int) -> list[float]:
    """Extend values to one for each of ``prompts`` prompts: by the last value, or by 0 if there is none."""
    return [*values, *[values[-1] if values else 0.0] * (prompts - len(values))]


def area_under_curve(values: Sequence[float]) -> float:
    """Return the area under the values after 1, 2, ... prompts (trapezoid rule), relative to the maximum.

    With five prompts, four times this is the challenge's DSC_AUC or NSD_AUC.
    """
    return float(integrate.trapezoid(values) / (len(values) - 1)) if len(values) > 1 else float(values[0])


def prompts_to(values: Sequence[float], target: float) -> int | None:
    """Return the number of prompts after which the target is first reached, or None."""
    return next((n for n, value in enumerate(values, start=1) if value >= target), None)


def obeyed(mask: Mask, truth: Mask, point: Index, positive: bool) -> bool:
    """Whether a mask follows a point.

    The mask must contain (positive) or exclude (negative) the point's voxel, and those voxels of the ball around it
    whose ground truth agrees with the point.
    """
    radius = BALL_RADIUS
    i, j, k = point
    around = Box((i - radius, j - radius, k - radius), (i + radius + 1, j + radius + 1, k + radius + 1)).clip(
        truth.shape
    )
    assert around is not None
    grid = np.ogrid[around.slices]
    ball = sum((g - p) ** 2 for g, p in zip(grid, point, strict=True)) <= radius**2
    expected = ball & (truth[around.slices] == positive)
    return bool((mask[around.slices][expected] == positive).all()) and bool(mask[point]) == positive


def error_left(region: Delta, mask: Mask, truth: Mask) -> int:
    """Return the number of voxels of a region that are still wrong."""
    assert region.box is not None
    at = region.box.slices
    return int(np.count_nonzero(region.flips & (mask[at] ^ truth[at])))
