"""Tables in the formats of spreadsheets and of people."""

import codecs
from pathlib import Path

import pytest

from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files.rows import Row, read_rows, whole_number_of

COLUMNS = ("image", "segment", "ijk")
EXPECTED = [{"image": "ä.nrrd", "segment": "liver", "ijk": "1 2 3"}, {"image": "b.nrrd", "segment": "", "ijk": "4 5 6"}]
TABLE = "image,segment,ijk\nä.nrrd,liver,1 2 3\nb.nrrd,,4 5 6\n"


def read(path: Path, content: bytes) -> list[Row]:
    path.write_bytes(content)
    return [row for _, row in read_rows(path, COLUMNS, ("image",))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("jobs.csv", TABLE.encode()),
        ("JOBS.CSV", TABLE.encode()),
        ("jobs.Csv", TABLE.encode("utf-8-sig")),
        ("jobs.csv", TABLE.encode("utf-16")),
        ("jobs.csv", codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be")),
        ("jobs.csv", TABLE.encode("utf-32")),
        ("jobs.csv", TABLE.replace(",", ";").encode()),
        ("jobs.csv", TABLE.replace(",", "\t").encode("utf-16")),
        ("jobs.tsv", TABLE.replace(",", "\t").encode()),
        ("jobs.TSV", TABLE.replace(",", "\t").encode()),
        ("jobs.csv", TABLE.replace("\n", "\r\n").encode()),
        ("jobs.csv", TABLE.replace("\n", "\r").encode()),
        ("jobs.csv", ("sep=;\n" + TABLE.replace(",", ";")).encode()),
        ("jobs.csv", ("SEP=\t\r\n" + TABLE.replace(",", "\t")).encode("utf-16")),
        ("jobs.csv", TABLE.replace("\n", ",,\n").encode()),
        ("jobs.csv", TABLE.replace("\n", ", ,\n").replace("ijk, ,", "ijk").encode()),
        ("jobs.csv", TABLE.replace("image,segment", "Image, SEGMENT ").encode()),
        ("jobs.csv", TABLE.replace("ä.nrrd", '"ä.nrrd"').replace("segment", '"segment"').encode()),
        ("jobs.csv", (TABLE + ",,\n\n,,,,\n").encode()),
    ],
)
def test_the_same_table(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path / name, content) == EXPECTED


@pytest.mark.parametrize("suffix", [".jsonl", ".JSONL"])
def test_names_in_json_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"jobs{suffix}"
    assert read(path, b'{"Image": "a", " IJK ": [1, 2, 3]}\r\n') == [{"image": "a", "ijk": [1, 2, 3]}]
    (row,) = read(path, b'{"Image": "a", "image": "b"}\n')
    assert row == "expected distinct columns, found Image, image."


def test_line_numbers_count_the_first_line_of_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\nimage;ijk\n\na;1 2 3\nb;1;2;3\n")
    assert list(read_rows(tmp_path / "a.csv", COLUMNS, ("image",))) == [
        (4, {"image": "a", "ijk": "1 2 3"}),
        (5, "expected 2 cells as in the header, found 4."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("jobs.txt", TABLE.encode(), r"must end with \.csv, \.tsv or \.jsonl"),
        ("jobs.xlsx", b"PK", r"must end with \.csv, \.tsv or \.jsonl"),
        ("jobs.csv", TABLE.encode("latin-1"), "Save it as UTF-8"),
        ("jobs.csv", TABLE.encode("utf-16")[:-1], "Save it as UTF-8"),
        ("jobs.csv", TABLE.replace(",segment", ",,").encode(), "expected distinct columns"),
        ("jobs.csv", TABLE.replace("segment", "IMAGE").encode(), "expected distinct columns"),
        ("jobs.csv", b"sep=;\n", "expected distinct columns"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    with pytest.raises(InvalidTable, match=expected):
        read(tmp_path / name, content)


def test_a_table_whose_name_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "jobs\udcff.csv"
    path.write_text(TABLE)
    with pytest.raises(InvalidTable, match="is not UTF-8 text") as refused:
        list(read_rows(path, COLUMNS, ("image",)))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(("value", "number"), [("", None), (None, None), ("1", 1), (" 12 ", 12), (3, 3), (2.0, 2)])
def test_a_whole_number(value: object, number: int | None) -> None:
    assert whole_number_of({"time": value}, "time") == number


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", "x", 0, 1.5, True, float("nan"), float("inf"), [1], "9" * 5000, "1_0", "٣", 2**63]
)
def test_not_a_whole_number(value: object) -> None:
    with pytest.raises(InvalidTable, match="column time: expected a whole number from 1"):
        whole_number_of({"time": value}, "time")
