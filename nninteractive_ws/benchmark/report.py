"""Report measurements as tables with ratios, as JSON, and as a figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
import json
from pathlib import Path
import statistics

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.benchmark.measure import Measurement
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN

#: Charts of the figure: part and quantity.
_CHARTS = (
    ("first mask", "first mask, s"),
    ("first mask", "whole image, s"),
    ("prompt", "beyond the network, ms"),
    ("prompt", "down, kB"),
    ("a click beside a heavy user", "beside it, median s"),
    ("cost of the HTTP API", "first mask, s"),
)


def write_json(path: Path, machine: Mapping[str, object], measurements: Sequence[Measurement]) -> None:
    """Write all measurements, one entry per run. The file is replaced atomically."""
    content = {"machine": machine, "records": [asdict(measurement) for measurement in measurements]}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tables(measurements: Sequence[Measurement]) -> Iterator[Table]:
    """Yield a table for each part: medians, and the official value divided by ours.

    The lowest and the highest ratio of single runs are in parentheses.
    """
    for part in _in_order(r.part for r in measurements):
        table = Table(title=part, box=SIMPLE_HEAD, show_edge=False)
        table.add_column("")
        for header in (OFFICIAL.name, OWN.name, "ratio"):
            table.add_column(header, justify="right", no_wrap=True)
        of_part = [r for r in measurements if r.part == part]
        for case in _in_order(r.case for r in of_part):
            of_case = [r for r in of_part if r.case == case]
            table.add_row(case, style="bold")
            for metric in _in_order(metric for r in of_case for metric in r.measured):
                table.add_row(f"  {metric}", *_cells(of_case, metric))
        yield table


def _in_order(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _values(measurements: Sequence[Measurement], system: str, metric: str) -> dict[int, float]:
    return {r.run: r.measured[metric] for r in measurements if r.system == system and metric in r.measured}


def _cells(measurements: Sequence[Measurement], metric: str) -> tuple[str, str, str]:
    official, own = (_values(measurements, system.name, metric) for system in (OFFICIAL, OWN))
    medians = [_format_number(statistics.median(values.values())) if values else "n/a" for values in (official, own)]
    ratios = sorted(official[run] / own[run] for run in official.keys() & own.keys() if own[run] > 0)
    if not ratios:
        return medians[0], medians[1], ""
    spread = f" ({ratios[0]:.2g} to {ratios[-1]:.2g})" if len(ratios) > 1 else ""
    return medians[0], medians[1], f"{statistics.median(ratios):.2g}{spread}"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def charts(measurements: Sequence[Measurement]) -> list[tuple[str, str]]:
    """Return part and quantity of each chart for which there are measurements."""
    return [
        (part, metric) for part, metric in _CHARTS if any(r.part == part and metric in r.measured for r in measurements)
    ]


def draw(path: Path, measurements: Sequence[Measurement]) -> None:
    """Draw the charts, of which there must be one: medians as bars, ours next to the official ones.

    The error bars are from the minimum to the maximum.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    drawn = charts(measurements)
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(5 * len(drawn), 4.5), layout="constrained", squeeze=False)
    for axis, (part, metric) in zip(axes[0], drawn, strict=True):
        of_part = [r for r in measurements if r.part == part and metric in r.measured]
        cases = _in_order(r.case for r in of_part)
        for (n, case), (shift, system) in product(enumerate(cases), ((0.2, OFFICIAL), (-0.2, OWN))):
            values = list(_values([r for r in of_part if r.case == case], system.name, metric).values())
            if not values:
                continue
            median = statistics.median(values)
            error = [[median - min(values)], [max(values) - median]]
            axis.barh(-n + shift, median, 0.38, xerr=error, color="0.65" if system is OFFICIAL else "tab:blue")
        axis.set_yticks([-n for n in range(len(cases))], cases, fontsize="small")
        axis.set(title=f"{part}: {metric}", xscale="log")
        axis.grid(alpha=0.3, axis="x")
    handles = [Patch(color=color) for color in ("0.65", "tab:blue")]
    figure.legend(handles, [OFFICIAL.name, OWN.name], loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
