"""Report measurements as tables with ratios, on the console and in Markdown, as JSON, and as a figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
import json
import math
from pathlib import Path
import statistics

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.benchmark import session_memory
from nninteractive_ws.benchmark.measure import Measurement
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN

#: The compared systems, and their headers in tables. The second is for a part without nnInteractive's server.
_SYSTEMS = ((OFFICIAL.name, "official"), (OWN.name, "ours"))
_FIGURES = tuple((name, name) for name in (session_memory.ACCOUNTED, session_memory.RESIDENT))
#: Charts of the figure: part and quantity.
_CHARTS = (
    ("first mask", "first mask, s"),
    ("first mask", "beyond the network, s"),
    ("whole image", "with a prompt meanwhile, s"),
    ("whole image", "without a prompt, s"),
    ("prompts", "beyond the network, ms"),
    ("prompts", "down, kB"),
    ("several clients", "result, median s"),
    ("a click beside a heavy user", "beside the heavy user, median s"),
)
_CHARTS_PER_ROW = 2
#: Quantities that are not in the tables, because they explain others.
_ONLY_IN_JSON = ("passes", "passes of all prompts", "first mask, ms")


def write_json(path: Path, machine: Mapping[str, object], measurements: Sequence[Measurement]) -> None:
    """Write all measurements, one entry per run. The file is replaced atomically."""
    content = {"machine": machine, "records": [asdict(measurement) for measurement in measurements]}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class ReportTable:
    """A table of one line a row. The first two cells of a row are a case, only in its first row, and a quantity."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def for_console(self) -> Table:
        """Return the table for a console. Only cases and quantities wrap, on a narrow console."""
        table = Table(
            title=self.title, caption=self.note, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
        )
        for n, name in enumerate(self.header):
            table.add_column(name, justify="left" if n < 2 else "right", no_wrap=n >= 2, style="bold" if n == 0 else "")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def as_markdown(self) -> str:
        """Return the table in Markdown, with its note above it."""
        rules = ["---" if n < 2 else "--:" for n in range(len(self.header))]
        lines = [f"| {' | '.join(row)} |" for row in (self.header, rules, *self.rows)]
        return "\n".join([self.note, "", *lines])


def write_markdown(path: Path, machine: Mapping[str, object], measurements: Sequence[Measurement]) -> None:
    """Write the tables, as in the documentation."""
    sections = ["# Benchmark", ", ".join(f"{name}: {value}" for name, value in machine.items())]
    for table in tables(measurements):
        sections += [f"## {table.title}", table.as_markdown()]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def tables(measurements: Sequence[Measurement]) -> Iterator[ReportTable]:
    """Yield a table for each part: medians, and the first value divided by the second, the official one by ours.

    The lowest and the highest ratio of single runs are in parentheses.
    """
    for part in _in_order(r.part for r in measurements):
        of_part = [r for r in measurements if r.part == part]
        compared = _FIGURES if part == session_memory.PART else _SYSTEMS
        volumes = _in_order(r.volume for r in of_part)
        title = f"{part}, {volumes[0]} voxels" if len(volumes) == 1 else part
        header = ("", "", *(name for _, name in compared), "ratio")
        yield ReportTable(title, _note(of_part), header, list(_rows(of_part, [name for name, _ in compared])))


def _note(measurements: Sequence[Measurement]) -> str:
    """Say how many runs a table summarizes."""
    cases = _in_order(r.case for r in measurements)
    times = sorted({len({r.run for r in measurements if r.case == case}) for case in cases})
    if times == [1]:
        return "One run."
    runs = " to ".join(str(n) for n in dict.fromkeys((times[0], times[-1])))
    return f"Medians of {runs} runs. In parentheses: the lowest and the highest ratio of single runs."


def _rows(measurements: Sequence[Measurement], systems: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for case in _in_order(r.case for r in measurements):
        of_case = [r for r in measurements if r.case == case]
        name = case
        metrics = _in_order(metric for r in of_case for metric in r.measured)
        for metric in (metric for metric in metrics if metric not in _ONLY_IN_JSON):
            yield (name, metric, *_cells(*(_values(of_case, system, metric) for system in systems)))
            name = ""


def _in_order(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _values(measurements: Sequence[Measurement], system: str, metric: str) -> dict[int, float]:
    return {r.run: r.measured[metric] for r in measurements if r.system == system and metric in r.measured}


def _cells(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[str, str, str]:
    medians = [format_number(statistics.median(values.values()), 3) if values else "n/a" for values in (first, second)]
    ratios = sorted(first[run] / second[run] for run in first.keys() & second.keys() if second[run] > 0)
    if not ratios:
        return medians[0], medians[1], ""
    low, median, high = (format_number(ratio, 2) for ratio in (ratios[0], statistics.median(ratios), ratios[-1]))
    return medians[0], medians[1], median if len(ratios) == 1 else f"{median} ({low} to {high})"


def format_number(value: float, digits: int) -> str:
    """Format a number with significant digits, and from 100 on as a whole number."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.{digits}g}"


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
    columns = min(len(drawn), _CHARTS_PER_ROW)
    rows = math.ceil(len(drawn) / columns)
    size = (5 * columns, 4 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, (part, metric) in zip(axes.flat, drawn, strict=False):
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
        axis.set_title(f"{part}\n{metric}", fontsize="medium")
        axis.grid(alpha=0.3, axis="x")
    handles = [Patch(color=color) for color in ("0.65", "tab:blue")]
    figure.legend(handles, [OFFICIAL.name, OWN.name], loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
