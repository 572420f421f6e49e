"""Text that Python takes for a number is refused where it could be a slip."""

import pytest

from nninteractive_ws.files.numbers import decimal, whole_number
from nninteractive_ws.jobs.table import read_table


@pytest.mark.parametrize(("text", "number"), [("7", 7), (" -12 ", -12), ("+3", 3), ("999999999", 999_999_999)])
def test_whole_numbers(text: str, number: int) -> None:
    assert whole_number(text) == decimal(text) == number


@pytest.mark.parametrize(("text", "number"), [("-31.5", -31.5), (".5", 0.5), ("3.", 3.0), ("1e3", 1000.0)])
def test_decimal_numbers(text: str, number: float) -> None:
    assert decimal(text) == number
    with pytest.raises(ValueError, match="not a whole number"):
        whole_number(text)


@pytest.mark.parametrize("text", ["1_0", "٣", "²", "0x1", "nan", "inf", "1,5", "1 2", "", "-", "1" * 10, "1e400"])
def test_no_numbers(text: str) -> None:
    for parse in (whole_number, decimal):
        with pytest.raises(ValueError, match="not a "):
            parse(text)


@pytest.mark.parametrize("text", ["1_0", "١٢", "1_2.5"])
@pytest.mark.parametrize("column", ["ijk", "lps"])
@pytest.mark.parametrize("prompt", ["point", "bbox"])
def test_a_table_misreads_no_number(text: str, column: str, prompt: str) -> None:
    cell = f"{text} 2 3" if prompt == "point" else f"{text}:99 2:3 4:5"
    (job,) = read_table([{"image": "a.nrrd", "prompt": prompt, column: cell}]).jobs
    assert f"column {column}: expected" in job.faults["segment"]
