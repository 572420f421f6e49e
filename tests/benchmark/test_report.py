"""The report of the benchmark: tables on the console and in Markdown, ratios, and the figure."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
import re

from helpers.documents import ROOT
from helpers.fast_benchmark import all_measurements
import pytest
from rich.console import Console

from nninteractive_ws.benchmark import report, run
from nninteractive_ws.benchmark.measure import Measurement
from nninteractive_ws.benchmark.systems import OFFICIAL, OWN

WIDTH = 100


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> list[Measurement]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return all_measurements(monkeypatch, tmp_path_factory.mktemp("bench"), None)


def printed(tables: list[report.ReportTable], width: int = WIDTH) -> list[str]:
    output = StringIO()
    console = Console(width=width, file=output)
    for table in tables:
        console.print(table.for_console())
    return output.getvalue().splitlines()


def record(system: str, run: int, seconds: float, case: str = "case") -> Measurement:
    return Measurement("part", "1 x 2 x 3", system, case, run, {"s": seconds})


def test_ratios_compare_runs_of_equal_number() -> None:
    official = [record(OFFICIAL.name, run, s) for run, s in enumerate((4.0, 9.0, 6.0))]
    own = [record(OWN.name, run, s) for run, s in enumerate((2.0, 3.0, 1.0))]
    (table,) = report.tables([*official, *own, record(OWN.name, 0, 0.5, "redo")])
    assert table.title == "part, 1 x 2 x 3 voxels"
    assert table.rows == [("case", "s", "6", "2", "3 (2 to 6)"), ("redo", "s", "n/a", "0.5", "")]
    assert "1 to 3 runs" in table.note


def test_a_case_is_named_once() -> None:
    measured = Measurement("part", "", OWN.name, "case", 0, {"a": 1.0, "b": 2.0})
    (table,) = report.tables([measured, replace(measured, case="other")])
    assert [row[:2] for row in table.rows] == [("case", "a"), ("", "b"), ("other", "a"), ("", "b")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.012"), (1.0, "1"), (9.96, "10"), (99.4, "99"), (99.6, "100"), (12345.6, "12,346")],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert report.format_number(value, 2) == text


def test_every_row_of_every_part_has_one_line(measurements: list[Measurement]) -> None:
    # As wide as values and ratios get, such as "1,235  12,346  0.098 (0.091 to 0.11)".
    wide = {run: (1234.56, 12_345.6 * factor) for run, factor in enumerate((0.912, 0.945, 1.012, 1.045, 1.098))}
    wide_measurements = [
        replace(r, measured=dict.fromkeys(r.measured, wide[r.run][r.system == OWN.name])) for r in measurements
    ]
    tables = list(report.tables(wide_measurements))
    lines = [line.rstrip() for line in printed(tables)]
    for table in tables:
        start = next(n for n, line in enumerate(lines) if line.strip() == table.title)
        body = lines[start + 3 : start + 3 + len(table.rows)]
        assert [line.split() for line in body] == [" ".join(row).split() for row in table.rows]
    assert max(map(len, lines)) <= WIDTH
    assert not any("…" in line for line in lines)


def test_all_parts_are_reported(measurements: list[Measurement], tmp_path: Path) -> None:
    parts = list(dict.fromkeys(r.part for r in measurements))
    assert parts == [
        "first mask", "whole image", "first mask at 100 Mbit/s", "prompts", "history", "lost connections",
        "several clients", "a click beside a heavy user", "cost of the HTTP API", "memory", "session memory",
        "GPU, image on the device", "GPU, image on the host",
    ]  # fmt: skip
    for part in parts:
        if part not in ("whole image", "memory", "session memory"):
            quantities = {name for r in measurements if r.part == part for name in r.measured}
            assert any("beyond the network" in name or name == "network, ms" for name in quantities), part
    report.draw(tmp_path / "bench.png", measurements)
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_short_runs_have_at_least_five(measurements: list[Measurement]) -> None:
    def times(part: str, case: str) -> int:
        return len({r.run for r in measurements if r.part == part and case in r.case})

    for part in ("prompts", "history", "lost connections", "cost of the HTTP API"):
        assert times(part, "") == run.SHORT_TIMES >= 5
    assert times("first mask", "loopback") == times("first mask", "1 Gbit/s") == run.SHORT_TIMES
    assert times("first mask", "20 Mbit/s") == times("several clients", "8") == run.LONG_TIMES
    assert times("a click beside a heavy user", "own client") == run.HEAVY_USER_TIMES


def test_the_markdown_has_the_rows_of_the_console(measurements: list[Measurement], tmp_path: Path) -> None:
    report.write_markdown(tmp_path / "bench.md", {"processors": 2}, measurements)
    text = (tmp_path / "bench.md").read_text()
    assert "processors: 2" in text
    for table in report.tables(measurements):
        section = text.partition(f"\n## {table.title}\n")[2].partition("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
        assert cells[0] == table.header
        assert cells[2:] == table.rows


def test_the_tables_of_the_documentation_have_this_form(measurements: list[Measurement]) -> None:
    page = (ROOT / "docs" / "explanation" / "benchmarks.md").read_text()
    of_bench, others = page.split("## On the web page")  # which is not measured by bench
    assert "bench" not in others
    tables = re.findall(r"^(\|.*\n)\|[-:| ]+\n((?:\|.*\n)+)", of_bench, re.MULTILINE)
    expected = list(report.tables(measurements))
    headers = {"| " + " | ".join(table.header) + " |\n" for table in expected}
    assert tables
    for header, rows in tables:
        assert header in headers
        assert {row.count("|") for row in rows.splitlines()} == {header.count("|")}
