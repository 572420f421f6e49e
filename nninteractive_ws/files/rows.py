"""Rows of a table written by a user, CSV or JSON Lines. An invalid row does not affect the others."""

import codecs
from collections.abc import Iterator, Mapping, Sequence
import csv
import json
from pathlib import Path
import re
import unicodedata

from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files.names import is_utf8
from nninteractive_ws.files.numbers import whole_number
from nninteractive_ws.files.paths import UnusablePath, find_spelling
from nninteractive_ws.files.reason import reason
from nninteractive_ws.redaction import escaped

Row = Mapping[str, object] | str  # a string is the error message of an invalid row

#: Maximum number of characters of a cell in an error message.
_MAX_ERROR_CHARS = 120

#: Maximum number of digits of a whole number in a table, such as a label of 64 bits.
_MAX_DIGITS = 19

#: Control characters, lone surrogates (Python's stand-in for bytes that are not UTF-8), line and paragraph separators.
_CONTROL_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")

#: Byte order marks. Those of UTF-32 come first, because they begin with those of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Separators of cells. Spreadsheets write semicolons in locales with a decimal comma.
_SEPARATORS = ",;\t"


def read_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a ``.csv``, ``.tsv`` or ``.jsonl`` file with their line numbers.

    ``columns``: the allowed columns. ``required``: columns that a CSV file must have. Raises InvalidTable if the file
    as a whole is unusable.
    """
    suffix = path.suffix.lower()
    if not is_utf8(str(path)):
        raise InvalidTable(f"The path {format_cell(str(path))} of the table is not UTF-8 text. Rename it.")
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise InvalidTable(f"The name of the table {path} must end with .csv, .tsv or .jsonl (JSON Lines).")
    text = _read_text(path)
    return _jsonl_rows(text) if suffix == ".jsonl" else _csv_rows(path, text, columns, required)


def check_is_file(path: Path) -> None:
    """Raise InvalidTable for a pipe or a folder in place of a file. Reading a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise InvalidTable(f"{path} is not a file, but for example a folder or a pipe. Choose a file.")


def _read_text(path: Path) -> str:
    try:
        check_is_file(path)
        content = path.read_bytes()
    except OSError as e:
        raise InvalidTable(f"{path} cannot be read ({reason(e)}).") from e
    except ValueError as e:  # a NUL in the path
        raise InvalidTable(f"{format_cell(str(path))} is not a valid path ({e}).") from e
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as e:
        raise InvalidTable(f"{path} is not UTF-8 text. Save it as UTF-8 (in Excel, as CSV UTF-8).") from e
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _csv_rows(path: Path, text: str, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[int, Row]]:
    # A line is a row, even with an unclosed quote: no cell needs a line break.
    lines = text.split("\n")
    # Spreadsheets may write and read a first line such as sep=; that is not part of the table.
    start = 1 if re.fullmatch(r'"?sep=[,;\t]"?[,;\t]*', lines[0], re.IGNORECASE) and len(lines) > 1 else 0
    first = lines[start]
    separator = max(_SEPARATORS, key=first.count)
    try:
        header = _cells(first, separator)
    except csv.Error as e:
        raise InvalidTable(f"{path}, line {start + 1}: expected column names, found invalid CSV ({e}).") from e
    header = _without_empty_end([name.strip().lower() for name in header], 0)
    if not set(required) <= set(header) <= set(columns) or len(set(header)) < len(header):
        raise InvalidTable(
            f"{path}, line {start + 1}: expected distinct columns of {', '.join(columns)}, including "
            f"{' and '.join(required)}, found {format_cell(first)}."
        )
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        if not line.strip(f" {separator}"):
            continue
        try:
            cells = _without_empty_end(_cells(line, separator), len(header))
        except csv.Error as e:
            yield number, f"expected cells separated by {json.dumps(separator)}, found invalid CSV ({e})."
            continue
        if len(cells) > len(header):
            yield number, f"expected {len(header)} cells as in the header, found {len(cells)}."
        else:
            yield number, dict(zip(header, cells, strict=False))


def _cells(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, strict=True), [])


def _without_empty_end(cells: list[str], keep: int) -> list[str]:
    """Remove empty cells from the end, which spreadsheets write for columns that were emptied, but keep some."""
    while len(cells) > keep and not cells[-1].strip():
        cells = cells[:-1]
    return cells


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
        if isinstance(row, dict):
            yield number, lower_names(row)
        else:
            yield number, f"expected a JSON object, found {escaped(line.strip()[:40])}."


def lower_names(row: Mapping[str, object]) -> Row:
    """Return a row with the names of its columns in lower case and without blanks around them."""
    named = {name.strip().lower() if isinstance(name, str) else name: value for name, value in row.items()}
    if len(named) < len(row):
        return f"expected distinct columns, found {', '.join(escaped(str(name)[:_MAX_ERROR_CHARS]) for name in row)}."
    return named


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


def path_of(row: Mapping[str, object], column: str, folder: Path, expected: str) -> Path:
    """Return the path in a cell, relative to ``folder``. Raises InvalidTable."""
    return folder / spelling_of(row, column, folder, expected)


def spelling_of(row: Mapping[str, object], column: str, folder: Path, expected: str) -> str:
    """Return the path in a cell as it is spelled on this computer, see :func:`find_spelling`. Raises InvalidTable."""
    text = text_of(row, column, expected)
    try:
        spelling = find_spelling(text, folder)
        path = (folder / spelling).resolve()
    except UnusablePath as e:
        raise InvalidTable(f"column {column}: expected {expected}, found {format_cell(text)}{e}") from e
    except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: a symlink loop
        found = format_cell(str(folder / text))
        raise InvalidTable(f"column {column}: expected {expected}, found {found} ({e}).") from e
    if not is_utf8(f"{folder / spelling}{path}"):
        raise InvalidTable(
            f"column {column}: expected {expected}, found {format_cell(str(path))}, which is not UTF-8 text. Rename "
            "the file or its folder."
        )
    return spelling


def whole_number_of(row: Mapping[str, object], column: str) -> int | None:
    """Return a whole number from 1, or None for an empty cell. Raises InvalidTable."""
    value = row.get(column)
    if empty(value):
        return None
    try:
        number = whole_number(value, _MAX_DIGITS) if isinstance(value, str) else _whole(value)
    except (OverflowError, TypeError, ValueError):
        number = 0
    if not 1 <= number < 2**63:
        raise InvalidTable(f"column {column}: expected a whole number from 1, found {format_cell(value)}.")
    return number


def _whole(value: object) -> int:
    """Return a number of a JSON file as an integer. Raises TypeError, OverflowError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
        raise TypeError
    return int(value)


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
