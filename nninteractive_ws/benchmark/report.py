"""Measurements as tables with ratios, as JSON, and as a figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
import json
from pathlib import Path
import statistics

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nninteractive_ws.benchmark.measure import Record
from nninteractive_ws.benchmark.sides import OFFICIAL, OWN
from nninteractive_ws.files.images import writing

#: What is drawn: of a part, what was measured.
_DRAWN = (
    ("first mask", "first mask, s"),
    ("first mask", "whole image, s"),
    ("prompt", "beyond the network, ms"),
    ("prompt", "down, kB"),
)


def write_json(path: Path, machine: Mapping[str, object], records: Sequence[Record]) -> None:
    """All that was measured, one entry for each time; never half written."""
    content = {"machine": machine, "records": [asdict(record) for record in records]}
    with writing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tables(records: Sequence[Record]) -> Iterator[Table]:
    """A table for each part: medians, and how many times as much the official side takes.

    In brackets the lowest and the highest of the ratios of the single runs.
    """
    for part in _in_order(r.part for r in records):
        table = Table(title=part, box=SIMPLE_HEAD, show_edge=False)
        table.add_column("")
        for word in (OFFICIAL.name, OWN.name, "ratio"):
            table.add_column(word, justify="right", no_wrap=True)
        of_part = [r for r in records if r.part == part]
        for case in _in_order(r.case for r in of_part):
            of_case = [r for r in of_part if r.case == case]
            table.add_row(case, style="bold")
            for what in _in_order(what for r in of_case for what in r.measured):
                table.add_row(f"  {what}", *_cells(of_case, what))
        yield table


def _in_order(words: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _values(records: Sequence[Record], side: str, what: str) -> dict[int, float]:
    return {r.run: r.measured[what] for r in records if r.side == side and what in r.measured}


def _cells(records: Sequence[Record], what: str) -> tuple[str, str, str]:
    official, own = (_values(records, side.name, what) for side in (OFFICIAL, OWN))
    shown = [_figure(statistics.median(values.values())) if values else "cannot" for values in (official, own)]
    ratios = sorted(official[run] / own[run] for run in official.keys() & own.keys() if own[run] > 0)
    if not ratios:
        return shown[0], shown[1], ""
    spread = f" ({ratios[0]:.2g} to {ratios[-1]:.2g})" if len(ratios) > 1 else ""
    return shown[0], shown[1], f"{statistics.median(ratios):.2g}{spread}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw(path: Path, records: Sequence[Record]) -> None:
    """Medians as bars, ours beside the official ones, with lines from the least to the most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    drawn = [(part, what) for part, what in _DRAWN if any(r.part == part and what in r.measured for r in records)]
    if not drawn:
        return
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(5 * len(drawn), 4.5), layout="constrained", squeeze=False)
    for axis, (part, what) in zip(axes[0], drawn, strict=True):
        of_part = [r for r in records if r.part == part and what in r.measured]
        cases = _in_order(r.case for r in of_part)
        for (n, case), (shift, side) in product(enumerate(cases), ((0.2, OFFICIAL), (-0.2, OWN))):
            values = list(_values([r for r in of_part if r.case == case], side.name, what).values())
            if not values:
                continue
            middle = statistics.median(values)
            reach = [[middle - min(values)], [max(values) - middle]]
            axis.barh(-n + shift, middle, 0.38, xerr=reach, color="0.65" if side is OFFICIAL else "tab:blue")
        axis.set_yticks([-n for n in range(len(cases))], cases, fontsize="small")
        axis.set(title=f"{part}: {what}", xscale="log")
        axis.grid(alpha=0.3, axis="x")
    handles = [Patch(color=color) for color in ("0.65", "tab:blue")]
    figure.legend(handles, [OFFICIAL.name, OWN.name], loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
