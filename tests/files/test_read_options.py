"""Names of volumes chosen from an image with several."""

import pytest

from nninteractive_ws.files.read_options import ReadOptions, options_of, suffix_of, title_of


@pytest.mark.parametrize(
    ("row", "title", "suffix"),
    [
        ({}, "ct", ""),
        ({"series": "2", "time": ""}, "ct (series 2)", "-series2"),
        ({"time": 3}, "ct (time 3)", "-time3"),
        ({"series": 1, "time": "10"}, "ct (series 1, time 10)", "-series1-time10"),
    ],
)
def test_names(row: dict[str, object], title: str, suffix: str) -> None:
    options = options_of(row, False)
    assert (title_of("ct", options), suffix_of(options)) == (title, suffix)


def test_resampling_is_an_option_of_each_row() -> None:
    assert options_of({"series": 2}, True) == ReadOptions(series=2, resample=True)
