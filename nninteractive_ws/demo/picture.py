"""The figure of the demonstration: segmentations and ground truth."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.demo.phantom import Phantom
from nninteractive_ws.demo.walkthrough import OrganResult
from nninteractive_ws.geometry import Box

_WINDOW = {"vmin": -160, "vmax": 300, "cmap": "gray", "origin": "lower", "interpolation": "nearest"}
#: Upper limit of the air around the body, in Hounsfield units.
_AIR_HU = -500
#: Axes of the views: axial, coronal, sagittal.
_AXES = (2, 1, 0)
#: Width of the figure, and height of its text.
_WIDTH_INCHES, _TEXT_INCHES = 13.0, 0.9
_COLORS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45")


def draw(phantom: Phantom, results: list[OrganResult], path: Path) -> None:
    """Write a PNG with three views of the organs: segmentations as areas, ground truth as outlines."""
    body = masks.bounding_box(phantom.image > _AIR_HU)
    assert body is not None
    size = [n * s for n, s in zip(body.shape, phantom.spacing, strict=True)]
    shapes = {axis: [n for a, n in enumerate(size) if a != axis] for axis in _AXES}  # millimeters to the right and up
    widths = [width / height for width, height in shapes.values()]  # of panels of equal height
    height = _WIDTH_INCHES / sum(widths)
    figure = Figure(figsize=(_WIDTH_INCHES, height + _TEXT_INCHES), facecolor="black", layout="constrained")
    for panel, axis in zip(figure.subplots(1, len(_AXES), width_ratios=widths), _AXES, strict=True):
        _view(panel, phantom, results, axis, body)
    handles = [
        Line2D([], [], color=c, linewidth=5, label=f"{s.organ}  {s.dice:.2f}")
        for s, c in zip(results, _COLORS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(results), labelcolor="white", frameon=False)
    figure.suptitle("areas: segmentation (Dice), white lines: ground truth", color="white", fontsize=11)
    figure.savefig(path, dpi=100)


def _view(panel: Any, phantom: Phantom, results: list[OrganResult], axis: int, body: Box) -> None:
    at = _best_slice(results, axis)
    slices = tuple(at if a == axis else s for a, s in enumerate(body.slices))

    def take_slice(volume: Any) -> Any:
        return volume[slices].T

    spacing = [s for a, s in enumerate(phantom.spacing) if a != axis]
    panel.imshow(take_slice(phantom.image), aspect=spacing[1] / spacing[0], **_WINDOW)
    for result, color in zip(results, _COLORS, strict=False):
        mask, truth = take_slice(result.mask), take_slice(phantom.mask(result.organ))
        if mask.any():
            panel.contourf(mask, levels=[0.5, 1.5], colors=[color], alpha=0.45)
        if truth.any():
            panel.contour(truth, levels=[0.5], colors="white", linewidths=0.8)
    panel.set_axis_off()
    if axis == 2:
        panel.invert_yaxis()  # radiological view: anterior at the top
    panel.set_title(f"{('sagittal', 'coronal', 'axial')[axis]} {at}", color="white", fontsize=9)


def _best_slice(results: list[OrganResult], axis: int) -> int:
    """Return the slice with the most organs, and of those the one with the most voxels."""
    other = tuple(a for a in range(3) if a != axis)
    counts = np.array([s.mask.sum(other) for s in results])
    return int(((counts > 0).sum(0) + counts.sum(0) / (1 + counts.sum(0).max())).argmax())
