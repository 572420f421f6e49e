"""Results as pictures: Dice over prompts, and the worst objects, what was found over what is true."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.evaluation.measures import TARGETS
from nninteractive_ws.evaluation.run import Evaluated, ObjectResult, Step
from nninteractive_ws.evaluation.user import middle
from nninteractive_ws.files.images import writing
from nninteractive_ws.masks import Mask

#: How many of the worst objects are drawn.
WORST = 6
_COLUMNS = 4
_FOUND, _POSITIVE, _NEGATIVE = "#e6194b", "#3cb44b", "#f58231"
#: How much is seen around object and mask, in millimetres.
_MARGIN_MM = 25.0
#: How many slices away a point may be, and still be drawn.
_NEAR = 2


def draw_curves(results: Sequence[ObjectResult], path: Path, title: str) -> None:
    """Write a PNG: Dice over prompts, a panel for each structure, a thin line for each case and a thick one for their
    mean; the first panel for all objects. Where none counts, there is no picture, nor an older one."""
    path.unlink(missing_ok=True)
    counted = [r for r in results if r.counts]
    if not counted:
        return
    names = dict.fromkeys(r.structure for r in counted)
    groups = [("all", counted), *((name, [r for r in counted if r.structure == name]) for name in names)]
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
    _save(figure, path)


def _curves(panel: Any, name: str, results: Sequence[ObjectResult]) -> None:
    for target in TARGETS:
        panel.axhline(target, color="0.8", linewidth=0.8, zorder=0)
    numbers = range(1, results[0].budget + 1)
    for result in results:
        panel.plot(numbers, result.dice, color="0.6", linewidth=0.7)
    mean = np.mean([r.dice for r in results], 0)
    panel.plot(numbers, mean, color="#4363d8", linewidth=2, marker="o", markersize=3)
    words = f"{name}  {mean[-1]:.2f}" + (f"  ({len(results)})" if len(results) > 1 else "")
    panel.set_title(words, fontsize=9, parse_math=False)
    panel.set_ylim(0, 1.03)
    panel.set_xticks(numbers if len(numbers) <= 10 else range(1, len(numbers) + 1, -(-len(numbers) // 10)))


@dataclass(frozen=True, eq=False)
class _Cut:
    """A slice as it is looked at. ``truth`` and ``mask``: of the image's shape. ``aspect``: height of a voxel over its
    width. ``points``: what was clicked in the slice or near it, (x, y, positive)."""

    words: str
    image: npt.NDArray[Any]
    truth: Mask
    mask: Mask
    aspect: float
    points: list[tuple[float, float, bool]]


class Worst:
    """Keeps slices of the objects with the lowest final Dice, of all that it is shown."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, ObjectResult, list[_Cut]]] = []

    def consider(self, evaluated: Evaluated) -> None:
        """Look at a result while its volumes are there."""
        result = evaluated.result
        if not result.counts or evaluated.mask is None:
            return
        if len(self._kept) < WORST or result.dice[-1] < self._kept[-1][0]:
            turned = Turned(evaluated)
            self._kept.append((result.dice[-1], result, [turned.cut(axis) for axis in (2, 1, 0)]))
            self._kept = sorted(self._kept, key=lambda kept: kept[0])[:WORST]

    def draw(self, folder: Path) -> None:
        """Write ``worst-1.png``, ``worst-2.png``, ..., the worst first, and remove those of an earlier evaluation."""
        for old in folder.glob("worst-*.png"):
            old.unlink()
        for number, (_, result, cuts) in enumerate(self._kept, start=1):
            _draw(result, cuts, folder / f"worst-{number}.png")


class Turned:
    """A result's volumes with axes to the patient's left, back and head; the part of them that is drawn; and the middle
    of the largest error, through which it is cut."""

    def __init__(self, evaluated: Evaluated) -> None:
        scan, truth, mask = evaluated.scan, evaluated.truth, evaluated.mask
        assert scan is not None
        assert truth is not None
        assert mask is not None
        towards = np.abs(scan.direction)
        left = int(towards[0].argmax())  # which of i, j, k leads there
        back = max({0, 1, 2} - {left}, key=lambda axis: float(towards[1, axis]))
        self._axes = [left, back, 3 - left - back]
        self._flips = [bool(scan.direction[row, axis] < 0) for row, axis in enumerate(self._axes)]
        self.spacing = [scan.spacing[axis] for axis in self._axes]
        self.image, self.truth, self.mask = (self._turn(volume) for volume in (scan.voxels, truth, mask))
        self.points = [
            (self._turn_point(step), step.positive) for step in evaluated.result.steps if step.kind == "point"
        ]
        error = self.truth ^ self.mask
        self._at = middle(error if error.any() else self.truth, (self.spacing[0], self.spacing[1], self.spacing[2]))
        either = masks.tight(self.truth | self.mask).box
        assert either is not None
        margin = np.ceil(_MARGIN_MM / np.array(self.spacing)).astype(int)
        self.low = np.maximum(0, either.start - margin)
        self.high = np.minimum(self.mask.shape, either.stop + margin)

    def _turn(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return volume.transpose(self._axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self._flips)]

    def _written(self, axis: int) -> str:
        """Which slice it is in the voxels of the image."""
        at = self.mask.shape[axis] - 1 - self._at[axis] if self._flips[axis] else self._at[axis]
        return f"{'ijk'[self._axes[axis]]} = {at}"

    def _turn_point(self, step: Step) -> npt.NDArray[np.int_]:
        at = np.array(step.at.split(), int)[self._axes]
        return np.where(self._flips, np.array(self.image.shape) - 1 - at, at)

    def cut(self, axis: int) -> _Cut:
        """The slice across an axis."""
        x, y = (a for a in range(3) if a != axis)
        at = self._at[axis]

        def picture(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
            seen = np.take(volume, at, axis)[self.low[x] : self.high[x], self.low[y] : self.high[y]]
            return np.ascontiguousarray(seen.T)

        return _Cut(
            words=f"{('sagittal', 'coronal', 'axial')[axis]}, {self._written(axis)}",
            image=picture(self.image),
            truth=picture(self.truth),
            mask=picture(self.mask),
            aspect=self.spacing[y] / self.spacing[x],
            points=[
                (float(p[x] - self.low[x]), float(p[y] - self.low[y]), positive)
                for p, positive in self.points
                if abs(p[axis] - at) <= _NEAR
            ],
        )


def _draw(result: ObjectResult, cuts: Sequence[_Cut], path: Path) -> None:
    figure = Figure(figsize=(12, 4.8), facecolor="black", layout="constrained")
    darkest, brightest = _window(cuts)
    for panel, cut in zip(figure.subplots(1, 3), cuts, strict=True):
        panel.imshow(cut.image, cmap="gray", vmin=darkest, vmax=brightest, aspect=cut.aspect, interpolation="nearest")
        if cut.mask.any():
            panel.contourf(cut.mask, levels=[0.5, 1.5], colors=[_FOUND], alpha=0.4)
        if cut.truth.any():
            panel.contour(cut.truth, levels=[0.5], colors="white", linewidths=0.9)
        for x, y, positive in cut.points:
            panel.plot(x, y, "+" if positive else "x", color=_POSITIVE if positive else _NEGATIVE, markersize=8)
        if not cut.words.startswith("axial"):
            panel.invert_yaxis()  # the head at the top
        panel.set_axis_off()
        panel.set_title(cut.words, color="white", fontsize=9)
    handles = [
        Line2D([], [], color=_FOUND, linewidth=5, label="found"),
        Line2D([], [], color="white", label="true"),
    ]
    if any(cut.points for cut in cuts):
        handles += [
            Line2D([], [], color=_POSITIVE, marker="+", linestyle="", label="positive point"),
            Line2D([], [], color=_NEGATIVE, marker="x", linestyle="", label="negative point"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, labelcolor="white", frameon=False)
    words = f"{result.case}: {result.structure}   Dice {result.dice[-1]:.2f}, NSD {result.nsd[-1]:.2f}"
    figure.suptitle(f"{words} after {len(result.steps)} prompts", color="white", fontsize=11, parse_math=False)
    _save(figure, path)


def _window(cuts: Sequence[_Cut]) -> tuple[float, float]:
    """What is drawn black and white: around what the object has, so wide that it is told from what is beside it."""
    everything = np.concatenate([cut.image.ravel() for cut in cuts])
    quarter, middle, three_quarters = np.percentile(
        np.concatenate([cut.image[cut.truth | cut.mask] for cut in cuts]), (25, 50, 75)
    )
    half = max(4 * (three_quarters - quarter), np.ptp(np.percentile(everything, (1, 99))) / 8)
    return float(middle - half), float(middle + half)


def _save(figure: Figure, path: Path) -> None:
    with writing(path) as partial:
        figure.savefig(partial, dpi=110)
