"""Table cells that are not formulas in a spreadsheet, and that round-trip."""

import csv
import re

from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from nninteractive_ws.files.cells import csv_text, mark, unmark

TEXT = st.text(st.one_of(st.sampled_from("='+-@; ,\t\r\n\"1.e|＝"), st.characters(exclude_categories=("Cs",))))


@given(TEXT)
@example('=HYPERLINK("http://evil")')
@example("'=1")
@example("''-1")
@example(";\t=")
def test_a_cell_round_trips(cell: str) -> None:
    assert unmark(mark(cell)) == cell


@given(TEXT, st.sampled_from(["", ";", "\t"]))
def test_no_part_of_a_split_cell_is_a_formula(cell: str, separator: str) -> None:
    written = mark(cell)
    for part in [written] if not separator else written.split(separator):
        formula = re.match(r" *[=+\-@\t\r\n＝＋－＠]", part)
        assert formula is None or re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", written, re.IGNORECASE)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-x", "'-x"),
        ("  =1", "'  =1"),
        ("a;=1", "a;'=1"),
        ("＝1", "'＝1"),
        ("-12.5", "-12.5"),
        ("+1e-3", "+1e-3"),
        ("liver", "liver"),
        ("'quoted'", "'quoted'"),
        ("a=1", "a=1"),
    ],
)
def test_marked_cells(cell: str, written: str) -> None:
    assert mark(cell) == written


def test_rows() -> None:
    text = csv_text([("image", "n"), ("=a,b", -1), ('x"y', 0.5)])
    assert text == 'image,n\n"\'=a,b",-1\n"x""y",0.5\n'
    assert [[unmark(c) for c in row] for row in csv.reader(text.splitlines())][1] == ["=a,b", "-1"]
