"""Results as figures: Dice over prompts, and slices of the worst objects with mask and ground truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.evaluation.measures import TARGETS
from nninteractive_ws.evaluation.run import EvaluatedObject, ObjectResult, PromptResult
from nninteractive_ws.evaluation.simulated_user import deepest_voxel
from nninteractive_ws.files.reason import reason
from nninteractive_ws.masks import Mask

#: Number of worst objects that are drawn.
MAX_WORST = 6
#: Names of the written files.
CURVES = "dice.png"
WORST = tuple(f"worst-{number}.png" for number in range(1, MAX_WORST + 1))
_COLUMNS = 4
#: Number of structures with a panel of curves. With the panel of all objects, they fill ten rows.
MAX_STRUCTURES = 39
_MASK, _POSITIVE, _NEGATIVE = "#e6194b", "#3cb44b", "#f58231"
#: Margin around object and mask, in millimeters.
_MARGIN_MM = 25.0
#: Maximum distance in slices at which a point is still drawn.
_MAX_POINT_DISTANCE = 2


def draw_figures(results: Sequence[ObjectResult], worst: "WorstCases", folder: Path, title: str) -> list[str]:
    """Write ``dice.png`` if an object counts, and ``worst-1.png``, ``worst-2.png``, ..., the worst first.

    Figures of an earlier evaluation are removed. Return a sentence for each figure that cannot be drawn. Hours of work
    may lie behind the others.
    """
    figures: dict[str, Callable[[], Figure]] = dict(zip(WORST, worst.figures(), strict=False))
    if counting := [r for r in results if r.counts]:
        figures[CURVES] = partial(curves_figure, counting, title)
    problems = []
    for name in (CURVES, *WORST):
        try:
            (folder / name).unlink(missing_ok=True)
            if name in figures:
                figure = figures[name]()
                with atomic_write(folder / name) as path:
                    figure.savefig(path, dpi=110)
        except Exception as e:
            problems.append(f"{name} could not be drawn ({reason(e)}).")
    return problems


def curves_figure(results: Sequence[ObjectResult], title: str) -> Figure:
    """Return a figure of Dice over prompts: a panel for all objects, then one for each structure.

    A thin line is a case, the thick line their mean. Of many structures, those with the lowest final Dice are drawn,
    the worst first.
    """
    structures: dict[str, list[ObjectResult]] = {}
    for result in results:
        structures.setdefault(result.structure, []).append(result)
    shown = list(structures.items())
    if len(shown) > MAX_STRUCTURES:
        shown = sorted(shown, key=lambda group: float(np.mean([r.dice[-1] for r in group[1]])))[:MAX_STRUCTURES]
        title += f"\n{MAX_STRUCTURES} of {len(structures):,} structures, those with the lowest final Dice"
    groups = [("all", results), *shown]
    rows = -(-len(groups) // _COLUMNS)
    figure = Figure(figsize=(3.0 * _COLUMNS, 0.5 + 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).flat
    for panel, group in zip_longest(panels, groups):
        if group is None:
            panel.set_axis_off()
        else:
            _curves(panel, *group)
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.supxlabel("prompts")
    figure.supylabel("Dice")
    return figure


def _curves(panel: Any, name: str, results: Sequence[ObjectResult]) -> None:
    for target in TARGETS:
        panel.axhline(target, color="0.8", linewidth=0.8, zorder=0)
    numbers = range(1, results[0].budget + 1)
    for result in results:
        panel.plot(numbers, result.dice, color="0.6", linewidth=0.7)
    mean = np.mean([r.dice for r in results], 0)
    panel.plot(numbers, mean, color="#4363d8", linewidth=2, marker="o", markersize=3)
    title = f"{name}  {mean[-1]:.2f}" + (f"  ({len(results)})" if len(results) > 1 else "")
    panel.set_title(title, fontsize=9, parse_math=False)
    panel.set_ylim(0, 1.03)
    panel.set_xticks(numbers if len(numbers) <= 10 else range(1, len(numbers) + 1, -(-len(numbers) // 10)))


@dataclass(frozen=True, eq=False)
class _SliceView:
    """A cropped slice. ``truth`` and ``mask`` have the image's shape. ``aspect``: height of a voxel over its width.
    ``points``: points in the slice or near it, (x, y, positive)."""

    caption: str
    image: npt.NDArray[Any]
    truth: Mask
    mask: Mask
    aspect: float
    points: list[tuple[float, float, bool]]


class WorstCases:
    """Slices of the objects with the lowest final Dice of all that were added."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, ObjectResult, list[_SliceView]]] = []

    def add(self, evaluated: EvaluatedObject) -> None:
        """Add a result while its volumes are loaded."""
        result = evaluated.result
        if not result.counts or evaluated.mask is None:
            return
        if len(self._kept) < MAX_WORST or result.dice[-1] < self._kept[-1][0]:
            case = ReorientedCase(evaluated)
            self._kept.append((result.dice[-1], result, [case.slice_view(axis) for axis in (2, 1, 0)]))
            self._kept = sorted(self._kept, key=lambda kept: kept[0])[:MAX_WORST]

    def figures(self) -> list[Callable[[], Figure]]:
        """Return functions that draw the objects, the worst first."""
        return [partial(_slices_figure, result, views) for _, result, views in self._kept]


class ReorientedCase:
    """The volumes of a result with axes to the patient's left, posterior and superior.

    Slices go through the deepest voxel of the largest error, and are cropped to the object and the mask with a margin.
    """

    def __init__(self, evaluated: EvaluatedObject) -> None:
        scan, truth, mask = evaluated.scan, evaluated.truth, evaluated.mask
        assert scan is not None
        assert truth is not None
        assert mask is not None
        towards = np.abs(scan.direction)
        left = int(towards[0].argmax())  # the axis of i, j, k closest to left
        posterior = max({0, 1, 2} - {left}, key=lambda axis: float(towards[1, axis]))
        self._axes = [left, posterior, 3 - left - posterior]
        self._flips = [bool(scan.direction[row, axis] < 0) for row, axis in enumerate(self._axes)]
        self.spacing = [scan.spacing[axis] for axis in self._axes]
        self.image, self.truth, self.mask = (self._reorient(volume) for volume in (scan.voxels, truth, mask))
        self.points = [
            (self._reorient_point(step), step.positive) for step in evaluated.result.steps if step.kind == "point"
        ]
        error = self.truth ^ self.mask
        self._at = deepest_voxel(
            error if error.any() else self.truth, (self.spacing[0], self.spacing[1], self.spacing[2])
        )
        union = masks.to_delta(self.truth | self.mask).box
        assert union is not None
        margin = np.ceil(_MARGIN_MM / np.array(self.spacing)).astype(int)
        self.low = np.maximum(0, union.start - margin)
        self.high = np.minimum(self.mask.shape, union.stop + margin)

    def _reorient(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return volume.transpose(self._axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self._flips)]

    def _format_slice(self, axis: int) -> str:
        """Format a slice as axis and index in the original image, such as k = 12."""
        at = self.mask.shape[axis] - 1 - self._at[axis] if self._flips[axis] else self._at[axis]
        return f"{'ijk'[self._axes[axis]]} = {at}"

    def _reorient_point(self, step: PromptResult) -> npt.NDArray[np.int_]:
        at = np.array(step.at.split(), int)[self._axes]
        return np.where(self._flips, np.array(self.image.shape) - 1 - at, at)

    def slice_view(self, axis: int) -> _SliceView:
        """Return the slice perpendicular to an axis."""
        x, y = (a for a in range(3) if a != axis)
        at = self._at[axis]

        def crop(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
            cropped = np.take(volume, at, axis)[self.low[x] : self.high[x], self.low[y] : self.high[y]]
            return np.ascontiguousarray(cropped.T)

        return _SliceView(
            caption=f"{('sagittal', 'coronal', 'axial')[axis]}, {self._format_slice(axis)}",
            image=crop(self.image),
            truth=crop(self.truth),
            mask=crop(self.mask),
            aspect=self.spacing[y] / self.spacing[x],
            points=[
                (float(p[x] - self.low[x]), float(p[y] - self.low[y]), positive)
                for p, positive in self.points
                if abs(p[axis] - at) <= _MAX_POINT_DISTANCE
            ],
        )


def _slices_figure(result: ObjectResult, views: Sequence[_SliceView]) -> Figure:
    figure = Figure(figsize=(12, 4.8), facecolor="black", layout="constrained")
    darkest, brightest = _window(views)
    for panel, view in zip(figure.subplots(1, 3), views, strict=True):
        panel.imshow(view.image, cmap="gray", vmin=darkest, vmax=brightest, aspect=view.aspect, interpolation="nearest")
        if view.mask.any():
            panel.contourf(view.mask, levels=[0.5, 1.5], colors=[_MASK], alpha=0.4)
        if view.truth.any():
            panel.contour(view.truth, levels=[0.5], colors="white", linewidths=0.9)
        for x, y, positive in view.points:
            panel.plot(x, y, "+" if positive else "x", color=_POSITIVE if positive else _NEGATIVE, markersize=8)
        if not view.caption.startswith("axial"):
            panel.invert_yaxis()  # superior at the top
        panel.set_axis_off()
        panel.set_title(view.caption, color="white", fontsize=9)
    handles = [
        Line2D([], [], color=_MASK, linewidth=5, label="mask"),
        Line2D([], [], color="white", label="ground truth"),
    ]
    if any(view.points for view in views):
        handles += [
            Line2D([], [], color=_POSITIVE, marker="+", linestyle="", label="positive point"),
            Line2D([], [], color=_NEGATIVE, marker="x", linestyle="", label="negative point"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, labelcolor="white", frameon=False)
    title = f"{result.case}: {result.structure}   Dice {result.dice[-1]:.2f}, NSD {result.nsd[-1]:.2f}"
    figure.suptitle(f"{title} after {len(result.steps)} prompts", color="white", fontsize=11, parse_math=False)
    return figure


def _window(views: Sequence[_SliceView]) -> tuple[float, float]:
    """Return the display window, centered on the object's median, wide enough to show contrast to the surroundings."""
    all_values = np.concatenate([view.image.ravel() for view in views])
    lower, median, upper = np.percentile(
        np.concatenate([view.image[view.truth | view.mask] for view in views]), (25, 50, 75)
    )
    half = max(4 * (upper - lower), np.ptp(np.percentile(all_values, (1, 99))) / 8)
    return float(median - half), float(median + half)
