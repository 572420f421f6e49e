"""Rows of a table written by a user, CSV or JSON Lines. An invalid row does not affect the others."""

from collections.abc import Iterator, Mapping, Sequence
import csv
import json
from pathlib import Path
import unicodedata

from nninteractive_ws.errors import InvalidTable

Row = Mapping[str, object] | str  # a string is the error message of an invalid row

#: Maximum number of characters of a cell in an error message.
_MAX_ERROR_CHARS = 120


def read_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a ``.csv`` or ``.jsonl`` file with their line numbers.

    ``columns``: the allowed columns. ``required``: columns that a CSV file must have. Raises InvalidTable if the file
    as a whole is unusable.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise InvalidTable(f"The name of the table {path} must end with .csv or .jsonl (JSON Lines).")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise InvalidTable(f"{path} cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        raise InvalidTable(f"{path} is not UTF-8 text. Save it as UTF-8 (in Excel, as CSV UTF-8).") from e
    except ValueError as e:  # a NUL in the path, or a lone surrogate
        raise InvalidTable(f"{format_cell(str(path))} is not a valid path ({e}).") from e
    return _jsonl_rows(text) if path.suffix == ".jsonl" else _csv_rows(path, text, columns, required)


def _csv_rows(path: Path, text: str, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    # A line is a row, even with an unclosed quote: no cell needs a line break.
    first, *lines = text.split("\n")
    # Spreadsheets separate cells by semicolons in locales with a decimal comma.
    separator = ";" if ";" in first and "," not in first else ","
    try:
        header = [cell.strip() for cell in next(csv.reader([first], delimiter=separator, strict=True), [])]
    except csv.Error as e:
        raise InvalidTable(f"{path}, line 1: expected column names, found invalid CSV ({e}).") from e
    if not set(required) <= set(header) <= set(columns) or len(set(header)) < len(header):
        raise InvalidTable(
            f"{path}, line 1: expected distinct columns of {', '.join(columns)}, including {' and '.join(required)}, "
            f"found {format_cell(first)}."
        )
    for number, line in enumerate(lines, start=2):
        if not line.strip(f" {separator}"):
            continue
        try:
            cells = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error as e:
            yield number, f'expected cells separated by "{separator}", found invalid CSV ({e}).'
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
            yield number, f"expected a JSON object, found invalid JSON ({e})."
            continue
        except RecursionError:
            yield number, "expected a JSON object, found values nested too deeply. The deepest is a list of pairs."
            continue
        yield number, row if isinstance(row, dict) else f"expected a JSON object, found {escaped(line.strip()[:40])}."


def check_columns(row: Mapping[str, object], columns: Sequence[str]) -> None:
    """Raise InvalidTable if a row has an unknown column, which is possible in JSON Lines."""
    unknown = [name for name in row if name not in columns]
    if unknown:
        name = escaped(str(unknown[0])[:_MAX_ERROR_CHARS])
        raise InvalidTable(f"column {name}: expected one of the columns {', '.join(columns)}.")


def text_of(row: Mapping[str, object], column: str, expected: str) -> str:
    """Return the text of a cell. Raises InvalidTable with the ``expected`` value.

    An empty cell is an error. So are line breaks, other control characters, and bytes that are not UTF-8, because a
    results table could not store them.
    """
    value = row.get(column)
    if isinstance(value, Path):
        value = str(value)
    elif isinstance(value, str):
        value = value.strip()
    if not isinstance(value, str) or not value or any(unicodedata.category(c) in _CONTROL_CATEGORIES for c in value):
        raise InvalidTable(f"column {column}: expected {expected}, found {format_cell(value)}.")
    return value


#: Control characters, lone surrogates (Python's stand-in for bytes that are not UTF-8), line and paragraph separators.
_CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")


def path_of(row: Mapping[str, object], column: str, folder: Path, expected: str) -> Path:
    """Return the path in a cell, relative to ``folder``. Raises InvalidTable."""
    path = folder / text_of(row, column, expected)
    try:
        path.resolve()
    except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: a symlink loop
        raise InvalidTable(f"column {column}: expected {expected}, found {format_cell(str(path))} ({e}).") from e
    return path


def empty(value: object) -> bool:
    """Whether a cell is empty."""
    return value is None or (isinstance(value, str) and not value.strip())


def format_cell(value: object) -> str:
    """Format a cell for an error message: on one line, truncated."""
    if empty(value):
        return "nothing"
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError):  # too deep, cyclic, or an integer with too many digits
        return f"a {type(value).__name__} that cannot be displayed"
    return escaped(text if len(text) <= _MAX_ERROR_CHARS else f"{text[:_MAX_ERROR_CHARS]}…")


def escaped(text: str) -> str:
    """Escape characters that cannot be printed or encoded in UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
