"""Numbers in the text of options. Only the digits 0 to 9 and a decimal point count, so that no text is misread."""

from collections.abc import Sequence
import re

import typer

from nninteractive_ws.files.rows import format_cell
from nninteractive_ws.geometry import Box

#: At most 9 digits before the decimal point. More are beyond any image, and overflow in image libraries.
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,9}(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
_MAX_MM = 1e9


def voxel(text: str, option: str) -> tuple[int, int, int]:
    """Return the whole numbers of "60,50,12". Raises BadParameter."""
    parts = _parts(text, ",")
    if len(parts) != 3 or not all(map(_WHOLE.fullmatch, parts)):
        raise _invalid(text, option, "three whole numbers of at most 9 digits, separated by commas, such as 60,50,12")
    i, j, k = map(int, parts)
    return i, j, k


def position(text: str, option: str) -> tuple[float, float, float]:
    """Return the numbers of "-31.5,12,800", in millimeters. Raises BadParameter."""
    parts = _parts(text, ",")
    if len(parts) == 3 and all(map(_DECIMAL.fullmatch, parts)):
        x, y, z = map(float, parts)
        if max(abs(x), abs(y), abs(z)) < _MAX_MM:
            return x, y, z
    raise _invalid(
        text,
        option,
        "three numbers of millimeters with a decimal point, separated by commas and below a billion, such as "
        "-31.5,12,800",
    )


def box(text: str, option: str) -> Box:
    """Return the end-exclusive box of "40:80,30:70,12:13". Raises BadParameter."""
    pairs = [_parts(part, ":") for part in text.split(",")]
    if len(pairs) == 3 and all(len(pair) == 2 and all(map(_WHOLE.fullmatch, pair)) for pair in pairs):
        bounds = [(int(start), int(stop)) for start, stop in pairs]
        if all(start < stop for start, stop in bounds):
            return Box.from_pairs(bounds)
    raise _invalid(
        text,
        option,
        "three ranges of whole numbers of at most 9 digits, end-exclusive and not empty, such as 40:80,30:70,12:13",
    )


def _parts(text: str, separator: str) -> Sequence[str]:
    return [part.strip() for part in text.split(separator)]


def _invalid(text: str, option: str, expected: str) -> typer.BadParameter:
    return typer.BadParameter(f"Expected {expected}, found {format_cell(text)}.", param_hint=f"'{option}'")
