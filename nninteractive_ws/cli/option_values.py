"""Points and boxes in the text of options."""

import typer

from nninteractive_ws.files.numbers import decimal, whole_number
from nninteractive_ws.files.rows import format_cell
from nninteractive_ws.geometry import Box

_MAX_MM = 1e9


def voxel(text: str, option: str) -> tuple[int, int, int]:
    """Return the whole numbers of "60,50,12". Raises BadParameter."""
    try:
        i, j, k = map(whole_number, text.split(","))
    except ValueError:
        raise _invalid(
            text, option, "three whole numbers of at most 9 digits, separated by commas, such as 60,50,12"
        ) from None
    return i, j, k


def position(text: str, option: str) -> tuple[float, float, float]:
    """Return the numbers of "-31.5,12,800", in millimeters. Raises BadParameter."""
    try:
        x, y, z = map(decimal, text.split(","))
        if max(abs(x), abs(y), abs(z)) >= _MAX_MM:
            raise ValueError
    except ValueError:
        expected = (
            "three numbers of millimeters with a decimal point, separated by commas and below a billion, such as "
            "-31.5,12,800"
        )
        raise _invalid(text, option, expected) from None
    return x, y, z


def box(text: str, option: str) -> Box:
    """Return the end-exclusive box of "40:80,30:70,12:13". Raises BadParameter."""
    try:
        first, second, third = (_range(part) for part in text.split(","))
    except ValueError:
        expected = (
            "three ranges of whole numbers of at most 9 digits, end-exclusive and not empty, such as 40:80,30:70,12:13"
        )
        raise _invalid(text, option, expected) from None
    return Box.from_pairs((first, second, third))


def _range(text: str) -> tuple[int, int]:
    """Return start and stop of a range that is not empty. Raises ValueError."""
    start, stop = map(whole_number, text.split(":"))
    if start >= stop:
        raise ValueError
    return start, stop


def _invalid(text: str, option: str, expected: str) -> typer.BadParameter:
    return typer.BadParameter(f"Expected {expected}, found {format_cell(text)}.", param_hint=f"'{option}'")
