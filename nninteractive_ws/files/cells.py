"""Cells of CSV files that are never a formula to a spreadsheet, and that are read back unchanged.

A cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break is a formula to a spreadsheet, or hides one.
It gets an apostrophe in front, which marks text in spreadsheets. The same is done after a semicolon or a tab, because
spreadsheets may split cells there.
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
    """Rows as lines of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([mark(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue()


def mark(cell: str) -> str:
    """A cell as it is written; numbers stay as they are."""
    return cell if _NUMBER.fullmatch(cell) else _DANGEROUS.sub("'", cell)


def unmark(cell: str) -> str:
    """A cell as it was before :func:`mark`."""
    return _MARKED.sub("", cell)
