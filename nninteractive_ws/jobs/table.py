"""The table of jobs, CSV or JSON Lines: one prompt per row. Reading it opens no image."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
import math
from pathlib import Path
import re
from typing import Any, Literal, cast

from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files import read_options
from nninteractive_ws.files.images import MAX_NAME_LENGTH, is_segment_name
from nninteractive_ws.files.numbers import decimal
from nninteractive_ws.files.read_options import ReadOptions
from nninteractive_ws.files.rows import (
    Row,
    check_columns,
    empty,
    format_cell,
    lower_names,
    path_of,
    read_rows,
    spelling_of,
    text_of,
)

COLUMNS = ("image", "segment", "prompt", "ijk", "lps", "file", "polarity", *read_options.COLUMNS)
Kind = Literal["point", "bbox", "scribble", "lasso", "markups"]
KINDS: tuple[Kind, ...] = ("point", "bbox", "scribble", "lasso", "markups")

#: Maximum number of sentences about rows of the same segment or image. Thousands of rows may have the same mistake.
_MAX_LISTED = 20

#: Expected content of a cell, by kind of prompt and column.
_NUMBERS = {
    ("point", "ijk"): "three numbers such as 60 50 12",
    ("point", "lps"): "three numbers in millimeters such as -12.5 30 801",
    ("bbox", "ijk"): "start and stop of each axis such as 40:80 30:70 12:13, with each stop greater than its start",
    ("bbox", "lps"): "two opposite corners in millimeters such as -60:-20 10:50 801:801",
}


@dataclass(frozen=True)
class PromptRow:
    """A valid row. ``where``: file and line, for errors.

    ``numbers``: a point's three coordinates, or (i0, i1, j0, j1, k0, k1) of a box. A box is end-exclusive in voxels. In
    millimeters (``lps``) the pairs are those of two opposite corners. ``file``: source of a scribble, lasso or markups.
    """

    where: str
    segment: str
    kind: Kind
    positive: bool
    numbers: tuple[float, ...] = ()
    lps: bool = False
    file: Path | None = None


@dataclass
class Job:
    """The rows of an image, in table order. ``name``: the image's path as first written in the table, and the chosen
    series and time point. ``spelling``: the path as it is spelled on this computer.

    ``faults``: error messages of segments that are skipped because of an invalid row. ``warnings``: about rows that
    are probably a mistake.
    """

    image: Path
    name: str
    spelling: str
    options: ReadOptions = field(default_factory=ReadOptions)
    segments: list[str] = field(default_factory=list)
    prompts: list[PromptRow] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Table:
    """``strays``: invalid rows whose image or segment is unknown, as (image or "", error message)."""

    jobs: list[Job]
    strays: list[tuple[str, str]]


def read_table(jobs: str | Path | Iterable[Mapping[str, object]], resample: bool = False) -> Table:
    """Read a file, or rows with the fields of a JSON Lines file. An invalid row skips its segment.

    Paths are relative to the folder of the file, or to the working directory for rows. ``resample``: an option of
    each image. Raises InvalidTable if the file as a whole is unusable.
    """
    if not isinstance(jobs, str | Path):
        return _collect(Path(), ((f"row {n}", _mapping(row)) for n, row in enumerate(jobs, start=1)), resample)
    path = Path(jobs)
    rows = read_rows(path, COLUMNS, ("image",))
    return _collect(path.parent, ((f"{path.name}, line {line}", row) for line, row in rows), resample)


def _mapping(row: object) -> Row:
    return lower_names(row) if isinstance(row, Mapping) else f"expected a dictionary, found {format_cell(row)}."


def _collect(folder: Path, rows: Iterable[tuple[str, Row]], resample: bool) -> Table:
    table = Table([], [])
    jobs: dict[tuple[Path, ReadOptions], Job] = {}
    errors: dict[tuple[Path, ReadOptions, str], list[str]] = {}
    for where, row in rows:
        if isinstance(row, str):
            table.strays.append(("", f"{where}: {row}"))
            continue
        name = segment = ""
        try:
            expected = "the path of an image"
            name = text_of(row, "image", expected)
            spelling = spelling_of(row, "image", folder, expected)
            chosen = read_options.options_of(row, resample)
            name = read_options.title_of(name, chosen)
            segment = _segment(row)
        except InvalidTable as e:
            table.strays.append((name, f"{where}, {e}"))
            continue
        image = (folder / spelling).resolve()
        job = jobs.setdefault((image, chosen), Job(image, name, spelling, chosen))
        if segment not in job.segments:
            job.segments.append(segment)
        try:
            job.prompts.append(_prompt(row, where, segment, folder))
        except InvalidTable as e:
            errors.setdefault((image, chosen, segment), []).append(f"{where}, {e}")
    for (image, chosen, segment), found in errors.items():
        jobs[image, chosen].faults[segment] = " ".join(_first(found))
    table.jobs = list(jobs.values())
    for job in table.jobs:
        _check_positive(job)
        _check_repeated(job)
    return table


def _check_positive(job: Job) -> None:
    for segment in job.segments:
        prompts = [p for p in job.prompts if p.segment == segment]
        if segment not in job.faults and not any(p.positive for p in prompts):
            job.faults[segment] = (
                f'{prompts[0].where}, column polarity: expected at least one positive row for the segment "{segment}", '
                "found only negative ones."
            )


def _check_repeated(job: Job) -> None:
    """Warn about rows that are the same as an earlier one. They are sent as written."""
    first: dict[PromptRow, str] = {}
    warnings = []
    for prompt in job.prompts:
        earlier = first.setdefault(replace(prompt, where=""), prompt.where)
        if earlier != prompt.where:
            warnings.append(f"{prompt.where} repeats {earlier}. The prompt is sent twice. Delete one of the rows.")
    job.warnings += _first(warnings)


def _first(sentences: list[str]) -> list[str]:
    """Return the first sentences about rows, and one with the number of the others."""
    others = len(sentences) - _MAX_LISTED
    return [*sentences[:_MAX_LISTED], f"Further such rows: {others:,}."] if others > 0 else sentences


def _prompt(row: Mapping[str, object], where: str, segment: str, folder: Path) -> PromptRow:
    """Parse a row. Raises InvalidTable with the column, the expected value and the actual one."""
    check_columns(row, COLUMNS)
    kind = _choice(row, "prompt", KINDS, "point")
    positive = _choice(row, "polarity", ("positive", "negative"), "positive") == "positive"
    filled = [column for column in ("ijk", "lps", "file") if not empty(row.get(column))]
    allowed = ("ijk", "lps") if kind in ("point", "bbox") else ("file",)
    for column in filled:
        if column not in allowed:
            raise InvalidTable(f"column {column}: expected nothing for a {kind}, found {format_cell(row[column])}.")
    if len(filled) != 1:
        found = "both" if filled else "nothing"
        raise InvalidTable(
            f"column {allowed[0]}: expected a value here{' or in lps' * (len(allowed) - 1)}, found {found}."
        )
    column = filled[0]
    if column == "file":
        path = path_of(row, "file", folder, "the path of a file")
        return PromptRow(where, segment, cast("Kind", kind), positive, file=path)
    numbers = _numbers(row, kind, column)
    return PromptRow(where, segment, cast("Kind", kind), positive, numbers, column == "lps")


def _segment(row: Mapping[str, object]) -> str:
    if empty(row.get("segment")):
        return "segment"
    expected = f"a name of at most {MAX_NAME_LENGTH} printable characters without a backslash"
    name = text_of(row, "segment", expected)
    if not is_segment_name(name):
        raise InvalidTable(f"column segment: expected {expected}, found {format_cell(name)}.")
    return name


def _choice(row: Mapping[str, object], column: str, choices: tuple[str, ...], default: str) -> str:
    value = row.get(column)
    if empty(value):
        return default
    if not isinstance(value, str) or value.strip().lower() not in choices:
        raise InvalidTable(f"column {column}: expected one of {', '.join(choices)}, found {format_cell(value)}.")
    return value.strip().lower()


def _numbers(row: Mapping[str, object], kind: str, column: str) -> tuple[float, ...]:
    """Parse three numbers of a point or six of a box, from text, a list of numbers, or a list of pairs."""
    value = row[column]
    try:
        parts = _split(value) if isinstance(value, str) else cast("list[Any]", value)
        if kind == "point":
            pairs = [[_number(n)] for n in parts]
        else:
            pairs = [[_number(n) for n in (p.split(":") if isinstance(p, str) else p)] for p in parts]
        _check_numbers(pairs, kind, column)
    except (OverflowError, RecursionError, TypeError, ValueError):
        expected = _NUMBERS[kind, column]
        raise InvalidTable(f"column {column}: expected {expected}, found {format_cell(value)}.") from None
    return tuple(n for pair in pairs for n in pair)


def _number(value: Any) -> float:
    return decimal(value) if isinstance(value, str) else float(value)


def _split(cell: str) -> list[str]:
    return re.split(r"\s*,\s*|\s+", cell.strip())


def _check_numbers(pairs: list[list[float]], kind: str, column: str) -> None:
    """Check count, finiteness, and for voxels of a box order and wholeness. Raises ValueError."""
    if len(pairs) != 3 or any(len(pair) != (1 if kind == "point" else 2) for pair in pairs):
        raise ValueError
    if not all(math.isfinite(n) for pair in pairs for n in pair):
        raise ValueError
    if (kind, column) == ("bbox", "ijk") and any(a >= b or a % 1 or b % 1 for a, b in pairs):
        raise ValueError
