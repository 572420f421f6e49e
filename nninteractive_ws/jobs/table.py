"""The table of jobs, CSV or JSON Lines: a prompt in every row, read and checked without looking at any image."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
import math
from pathlib import Path
import re
from typing import Any, Literal, cast

from nninteractive_ws.errors import BadJobs
from nninteractive_ws.files.images import LONGEST_NAME, is_segment_name
from nninteractive_ws.files.rows import Row, check_columns, empty, path_of, read_rows, shown, text_of

COLUMNS = ("image", "segment", "prompt", "ijk", "lps", "file", "polarity")
Kind = Literal["point", "bbox", "scribble", "lasso", "markups"]
KINDS: tuple[Kind, ...] = ("point", "bbox", "scribble", "lasso", "markups")

#: Where the numbers of a prompt are, and what its cell must hold.
_NUMBERS = {
    ("point", "ijk"): "three numbers such as 60 50 12",
    ("point", "lps"): "three numbers in millimetres such as -12.5 30 801",
    ("bbox", "ijk"): "from and to of each axis such as 40:80 30:70 12:13, where each to is greater than its from",
    ("bbox", "lps"): "two opposite corners in millimetres such as -60:-20 10:50 801:801",
}


@dataclass(frozen=True)
class Prompt:
    """A row that is in order. ``where``: file and line, for errors.

    ``numbers``: three of a point; of a box (i0, i1, j0, j1, k0, k1), half-open in voxels, in millimetres (``lps``)
    the pairs of two opposite corners. ``file``: what a scribble, a lasso or markups are read from.
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
    """The rows of an image, in their order. ``name``: the image as the table first writes it.

    ``faults``: the segments that cannot be made because of a bad row, and why.
    """

    image: Path
    name: str
    segments: list[str] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


@dataclass
class Table:
    """``strays``: bad rows of which not even the image, or the segment, is known: (image or "", what is wrong)."""

    jobs: list[Job]
    strays: list[tuple[str, str]]


def read_table(jobs: str | Path | Iterable[Mapping[str, object]]) -> Table:
    """Read a file (.csv or .jsonl), or rows as a JSON Lines file holds them. Bad rows do not disturb the others.

    Paths are relative to the file's folder, of rows to the working directory. Raises BadJobs where it is no such file.
    """
    if not isinstance(jobs, str | Path):
        return _collect(Path(), ((f"row {n}", _mapping(row)) for n, row in enumerate(jobs, start=1)))
    path = Path(jobs)
    rows = read_rows(path, COLUMNS, ("image",))
    return _collect(path.parent, ((f"{path.name}, line {line}", row) for line, row in rows))


def _mapping(row: object) -> Row:
    return row if isinstance(row, Mapping) else f"expected a dictionary, found {shown(row)}."


def _collect(folder: Path, rows: Iterable[tuple[str, Row]]) -> Table:
    table = Table([], [])
    jobs: dict[Path, Job] = {}
    for where, row in rows:
        if isinstance(row, str):
            table.strays.append(("", f"{where}: {row}"))
            continue
        name = segment = ""
        try:
            expected = "the path of an image"
            name, image = text_of(row, "image", expected), path_of(row, "image", folder, expected).resolve()
            segment = _segment(row)
        except BadJobs as e:
            table.strays.append((name, f"{where}, {e}"))
            continue
        job = jobs.setdefault(image, Job(image, name))
        if segment not in job.segments:
            job.segments.append(segment)
        try:
            job.prompts.append(_prompt(row, where, segment, folder))
        except BadJobs as e:
            job.faults[segment] = f"{job.faults.get(segment, '')} {where}, {e}".strip()
    table.jobs = list(jobs.values())
    for job in table.jobs:
        _check_positive(job)
    return table


def _check_positive(job: Job) -> None:
    for segment in job.segments:
        prompts = [p for p in job.prompts if p.segment == segment]
        if segment not in job.faults and not any(p.positive for p in prompts):
            job.faults[segment] = (
                f'{prompts[0].where}, column polarity: expected positive in one row of the segment "{segment}" at '
                "least, found negative in all."
            )


def _prompt(row: Mapping[str, object], where: str, segment: str, folder: Path) -> Prompt:
    """Raises BadJobs, which names the column, what was found and what was expected."""
    check_columns(row, COLUMNS)
    kind = _choice(row, "prompt", KINDS, "point")
    positive = _choice(row, "polarity", ("positive", "negative"), "positive") == "positive"
    used = [column for column in ("ijk", "lps", "file") if not empty(row.get(column))]
    wanted = ("ijk", "lps") if kind in ("point", "bbox") else ("file",)
    for column in used:
        if column not in wanted:
            raise BadJobs(f"column {column}: expected nothing for a {kind}, found {shown(row[column])}.")
    if len(used) != 1:
        found = "both" if used else "nothing"
        raise BadJobs(f"column {wanted[0]}: expected a value here{' or in lps' * (len(wanted) - 1)}, found {found}.")
    column = used[0]
    if column == "file":
        path = path_of(row, "file", folder, "the path of a file")
        return Prompt(where, segment, cast("Kind", kind), positive, file=path)
    numbers = _numbers(row, kind, column)
    return Prompt(where, segment, cast("Kind", kind), positive, numbers, column == "lps")


def _segment(row: Mapping[str, object]) -> str:
    if empty(row.get("segment")):
        return "segment"
    expected = f"a name of at most {LONGEST_NAME} printable characters without a backslash"
    name = text_of(row, "segment", expected)
    if not is_segment_name(name):
        raise BadJobs(f"column segment: expected {expected}, found {shown(name)}.")
    return name


def _choice(row: Mapping[str, object], column: str, choices: tuple[str, ...], default: str) -> str:
    value = row.get(column)
    if empty(value):
        return default
    if not isinstance(value, str) or value.strip().lower() not in choices:
        raise BadJobs(f"column {column}: expected one of {', '.join(choices)}, found {shown(value)}.")
    return value.strip().lower()


def _numbers(row: Mapping[str, object], kind: str, column: str) -> tuple[float, ...]:
    """Three of a point, six of a box; in a cell, or as a list of numbers, for a box of pairs."""
    value = row[column]
    try:
        parts = _split(value) if isinstance(value, str) else cast("list[Any]", value)
        if kind == "point":
            pairs = [[float(n)] for n in parts]
        else:
            pairs = [[float(n) for n in (p.split(":") if isinstance(p, str) else p)] for p in parts]
        _check_numbers(pairs, kind, column)
    except (OverflowError, RecursionError, TypeError, ValueError):
        expected = _NUMBERS[kind, column]
        raise BadJobs(f"column {column}: expected {expected}, found {shown(value)}.") from None
    return tuple(n for pair in pairs for n in pair)


def _split(cell: str) -> list[str]:
    return re.split(r"\s*,\s*|\s+", cell.strip())


def _check_numbers(pairs: list[list[float]], kind: str, column: str) -> None:
    """Raises ValueError."""
    if len(pairs) != 3 or any(len(pair) != (1 if kind == "point" else 2) for pair in pairs):
        raise ValueError
    if not all(math.isfinite(n) for pair in pairs for n in pair):
        raise ValueError
    if (kind, column) == ("bbox", "ijk") and any(a >= b or a % 1 or b % 1 for a, b in pairs):
        raise ValueError
