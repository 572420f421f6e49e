"""Quantities in messages."""

import pytest

from nninteractive_ws.units import format_bytes


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0.00 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (9_994_999, "9.99 MB"),
        (9_996_000, "10.0 MB"),
        (99_960_000, "100 MB"),
        (999_600_000, "1.00 GB"),
        (64_249_000_000, "64.2 GB"),
        (1_234_567_000_000, "1,235 GB"),
    ],
)
def test_three_significant_digits(n: int, text: str) -> None:
    assert format_bytes(n) == text
