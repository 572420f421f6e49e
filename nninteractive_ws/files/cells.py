"""Escape cells of CSV files, so that no spreadsheet takes them as a formula, and unescape them again.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` as a formula, possibly also after spaces, a tab
or a line break. Such a cell gets a leading apostrophe, which marks text in spreadsheets. The same is done after a
semicolon or a tab within a cell, because spreadsheets may split cells there.
"""

from collections.abc import Iterable, Sequence
import csv
import io
import re

_SEPARATED = r"(^|(?<=[;\t\r\n]))"
_FORMULA = r" *[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
_DANGEROUS = re.compile(rf"{_SEPARATED}(?='*{_FORMULA})")
_MARKED = re.compile(rf"{_SEPARATED}'(?='*{_FORMULA})")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE | re.ASCII)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Format rows as lines of a CSV file, with escaped cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([mark(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def mark(cell: str) -> str:
    """Escape a cell. Numbers are unchanged."""
    return cell if _NUMBER.fullmatch(cell) else _DANGEROUS.sub("'", cell)


def unmark(cell: str) -> str:
    """Undo :func:`mark`."""
    return _MARKED.sub("", cell)
