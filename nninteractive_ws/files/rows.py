"""Rows of a table that a person wrote, CSV or JSON Lines. A bad row does not disturb the others."""

from collections.abc import Iterator, Mapping, Sequence
import csv
import json
from pathlib import Path
import unicodedata

from nninteractive_ws.errors import BadJobs

Row = Mapping[str, object] | str  # a string says why there is no row

#: Characters of a cell that an error shows, at most.
_MAX_SHOWN = 120


def read_rows(path: Path, columns: Sequence[str], needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """The rows of a ``.csv`` or ``.jsonl`` file with their lines. ``columns``: those there may be; ``needed``: of a
    CSV file, those there must be. Raises BadJobs where it is no such file."""
    if path.suffix not in (".csv", ".jsonl"):
        raise BadJobs(f"{path}: the name must end with .csv or .jsonl (JSON Lines).")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise BadJobs(f"{path} cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        raise BadJobs(f"{path} is not a text file in UTF-8: save it as one (in Excel, as CSV UTF-8).") from e
    except ValueError as e:  # a NUL in the path, or a lone surrogate
        raise BadJobs(f"{shown(str(path))} is not the path of a file ({e}).") from e
    return _jsonl_rows(text) if path.suffix == ".jsonl" else _csv_rows(path, text, columns, needed)


def _csv_rows(path: Path, text: str, columns: Sequence[str], needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
    # A line is a row, also where a quote is not closed: no cell needs a line break.
    first, *lines = text.split("\n")
    # Where a comma is the decimal sign, spreadsheets put a semicolon between cells.
    separator = ";" if ";" in first and "," not in first else ","
    try:
        header = [cell.strip() for cell in next(csv.reader([first], delimiter=separator, strict=True), [])]
    except csv.Error as e:
        raise BadJobs(f"{path}, line 1: expected the names of columns, found something else ({e}).") from e
    if not set(needed) <= set(header) <= set(columns) or len(set(header)) < len(header):
        raise BadJobs(
            f"{path}, line 1: expected some of the columns {', '.join(columns)}, {' and '.join(needed)} among them and "
            f"none twice; found {shown(first)}."
        )
    for number, line in enumerate(lines, start=2):
        if not line.strip(f" {separator}"):
            continue
        try:
            cells = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as e:
            yield number, f'expected cells separated by "{separator}", found something else ({e}).'
            continue
        if len(cells) > len(header):
            yield number, f"expected {len(header)} cells as in the header, found {len(cells)}."
        else:
            yield number, dict(zip(header, cells, strict=False))


def _jsonl_rows(text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            yield number, f"expected a JSON object, found something else ({e})."
            continue
        except RecursionError:
            yield number, "expected a JSON object, found values nested too deeply. A list of pairs is the deepest."
            continue
        yield number, row if isinstance(row, dict) else f"expected a JSON object, found {escaped(line.strip()[:40])}."


def check_columns(row: Mapping[str, object], columns: Sequence[str]) -> None:
    """Raises BadJobs where a row has a column that is not one of these, as one of JSON Lines may."""
    unknown = [name for name in row if name not in columns]
    if unknown:
        name = escaped(str(unknown[0])[:_MAX_SHOWN])
        raise BadJobs(f"column {name}: expected one of the columns {', '.join(columns)}.")


def text_of(row: Mapping[str, object], column: str, expected: str) -> str:
    """The text in a cell. Raises BadJobs, which says what was ``expected``, if there is none, or if it has line
    breaks, other control characters, or bytes that are not text: no table of results could hold them."""
    value = row.get(column)
    if isinstance(value, Path):
        value = str(value)
    elif isinstance(value, str):
        value = value.strip()
    if not isinstance(value, str) or not value or any(unicodedata.category(c) in _NO_TEXT for c in value):
        raise BadJobs(f"column {column}: expected {expected}, found {shown(value)}.")
    return value


#: Control characters, lone surrogates (what Python has for bytes that are not UTF-8), line and paragraph separators.
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")


def path_of(row: Mapping[str, object], column: str, folder: Path, expected: str) -> Path:
    """The path in a cell, which is relative to ``folder``. Raises BadJobs where there is none."""
    path = folder / text_of(row, column, expected)
    try:
        path.resolve()
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links is a RuntimeError
        raise BadJobs(f"column {column}: expected {expected}, found {shown(str(path))} ({e}).") from e
    return path


def empty(value: object) -> bool:
    """Whether there is nothing in a cell."""
    return value is None or (isinstance(value, str) and not value.strip())


def shown(value: object) -> str:
    """A cell for an error: on one line, and shortened."""
    if empty(value):
        return "nothing"
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError):  # nested too deeply or in itself, or a number with too many digits
        return f"a {type(value).__name__} that cannot be shown"
    return escaped(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def escaped(text: str) -> str:
    """A text with escape sequences for characters that cannot be printed, or written as UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
