"""The options of a row that choose a volume of its image."""

from collections.abc import Mapping

from nninteractive_ws.files.images import ReadOptions
from nninteractive_ws.files.rows import whole_number_of

#: Columns of tables with images.
COLUMNS = ("series", "time")


def options_of(row: Mapping[str, object], resample: bool) -> ReadOptions:
    """Return the options of a row. Raises InvalidTable."""
    return ReadOptions(whole_number_of(row, "series"), whole_number_of(row, "time"), resample)


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
