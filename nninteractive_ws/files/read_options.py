"""Choices for image files that do not hold exactly one volume on an orthogonal grid."""

from collections.abc import Mapping
from dataclasses import dataclass

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.rows import whole_number_of

#: Columns of tables with images.
COLUMNS = ("series", "time")


@dataclass(frozen=True)
class ReadOptions:
    """How to read an image file.

    ``series``: the number of a DICOM series in a folder with several, from 1. ``time``: the number of a time point,
    from 1. ``resample``: interpolate sheared or unevenly spaced slices to an orthogonal grid.
    """

    series: int | None = None
    time: int | None = None
    resample: bool = False


def options_of(row: Mapping[str, object], resample: bool) -> ReadOptions:
    """Return the options of a row. Raises InvalidTable."""
    return ReadOptions(whole_number_of(row, "series"), whole_number_of(row, "time"), resample)


class SeveralVolumes(BadImage):
    """A file or folder with several volumes, of which none was chosen. ``found``: the sentence about them."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found} {advice}")
        self.found = found


def time_index(time: int | None, count: int, found: str) -> int:
    """Return the index, from 0, of the chosen one of ``count`` time points.

    Raises SeveralVolumes. ``found``: a sentence about the volumes of the image.
    """
    if time is None or not 1 <= time <= count:
        numbers = "1" if count == 1 else f"one of 1 to {count}"
        instead = "" if time is None else f" instead of {time}"
        raise SeveralVolumes(found, f"Choose {numbers} (--time N, or the column time){instead}.")
    return time - 1


def title_of(name: str, options: ReadOptions) -> str:
    """Return the name of a volume for users: its path in the table, and the chosen series and time point."""
    chosen = _chosen(options, " ")
    return f"{name} ({', '.join(chosen)})" if chosen else name


def suffix_of(options: ReadOptions) -> str:
    """Return the end of the name of an output file, before its extension, such as ``-series2-time3``."""
    return "".join(f"-{part}" for part in _chosen(options, ""))


def _chosen(options: ReadOptions, separator: str) -> list[str]:
    numbers = (("series", options.series), ("time", options.time))
    return [f"{name}{separator}{number}" for name, number in numbers if number is not None]
