"""The demonstration's picture: what was found, beside what there is."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np

from nninteractive_ws.demo.phantom import Phantom
from nninteractive_ws.demo.tour import Stop

_WINDOW = {"vmin": -160, "vmax": 300, "cmap": "gray", "origin": "lower", "interpolation": "nearest"}
_COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45")


def draw(phantom: Phantom, stops: list[Stop], path: Path) -> None:
    """Write a PNG: three views through the organs, results as areas and the truth as outlines."""
    figure = Figure(figsize=(13, 6.2), facecolor="black", layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[1.25, 1.25, 1])
    for panel, axis in zip(panels, (2, 1, 0), strict=True):
        _view(panel, phantom, stops, axis)
    handles = [
        Line2D([], [], color=c, linewidth=5, label=f"{s.organ}  {s.dice:.2f}")
        for s, c in zip(stops, _COLOURS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(stops), labelcolor="white", frameon=False)
    figure.suptitle("areas: what was segmented (Dice), white lines: the truth", color="white", fontsize=11)
    figure.savefig(path, dpi=100)


def _view(panel: Any, phantom: Phantom, stops: list[Stop], axis: int) -> None:
    at = _busiest(stops, axis)

    def cut(volume: Any) -> Any:
        return np.take(volume, at, axis).T

    spacing = [s for a, s in enumerate(phantom.spacing) if a != axis]
    panel.imshow(cut(phantom.image), aspect=spacing[1] / spacing[0], **_WINDOW)
    for stop, colour in zip(stops, _COLOURS, strict=False):
        found, truth = cut(stop.mask), cut(phantom.mask(stop.organ))
        if found.any():
            panel.contourf(found, levels=[0.5, 1.5], colors=[colour], alpha=0.45)
        if truth.any():
            panel.contour(truth, levels=[0.5], colors="white", linewidths=0.8)
    panel.set_axis_off()
    if axis == 2:
        panel.invert_yaxis()  # as radiologists look at it: the front at the top
    panel.set_title(f"{('sagittal', 'coronal', 'axial')[axis]} {at}", color="white", fontsize=9)


def _busiest(stops: list[Stop], axis: int) -> int:
    """The slice in which most organs are seen, and of those the one with most voxels."""
    other = tuple(a for a in range(3) if a != axis)
    counts = np.array([s.mask.sum(other) for s in stops])
    return int(((counts > 0).sum(0) + counts.sum(0) / (1 + counts.sum(0).max())).argmax())
