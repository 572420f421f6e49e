"""The table of jobs: its rows, and errors for invalid ones."""

import json
from pathlib import Path

from helpers.batch import write_table
import pytest

from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.jobs.table import Job, Table, read_table


def read(tmp_path: Path, *rows: str) -> Table:
    return read_table(write_table(tmp_path / "jobs.csv", *rows))


def only(table: Table) -> Job:
    (job,) = table.jobs
    assert table.strays == []
    return job


def test_rows_of_an_image_keep_their_order(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "a.nii.gz,liver,point,60 50 12,,,",
        'b.nrrd,,,"1,2,3",,,',
        "./a.nii.gz,spleen,bbox,40:80 30:70 12:13,,,positive",
        "a.nii.gz,liver,point,,-12.5 30 801,,negative",
        "",
        "a.nii.gz,liver,scribble,,,strokes.nii.gz,Negative",
        'a.nii.gz,spleen,bbox,,"-60:-20, 10:50, 801:801",,',
        "a.nii.gz,liver,markups,,,sub/m.mrk.json,",
    )
    a, b = table.jobs
    assert (a.name, a.image, a.segments, a.faults) == ("a.nii.gz", tmp_path / "a.nii.gz", ["liver", "spleen"], {})
    assert [(p.segment, p.kind, p.positive, p.numbers, p.lps, p.file) for p in a.prompts] == [
        ("liver", "point", True, (60, 50, 12), False, None),
        ("spleen", "bbox", True, (40, 80, 30, 70, 12, 13), False, None),
        ("liver", "point", False, (-12.5, 30, 801), True, None),
        ("liver", "scribble", False, (), False, tmp_path / "strokes.nii.gz"),
        ("spleen", "bbox", True, (-60, -20, 10, 50, 801, 801), True, None),
        ("liver", "markups", True, (), False, tmp_path / "sub" / "m.mrk.json"),
    ]
    assert [p.where for p in a.prompts] == [f"jobs.csv, line {n}" for n in (2, 4, 5, 7, 8, 9)]
    assert (b.segments, b.prompts[0].kind, b.prompts[0].numbers) == (["segment"], "point", (1, 2, 3))


def test_json_lines_and_rows_mean_the_same(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": "a.nii.gz", "segment": "liver", "prompt": "point", "ijk": [60, 50, 12]},
        {"image": "a.nii.gz", "segment": "liver", "prompt": "bbox", "ijk": [[40, 80], [30, 70], [12, 13]]},
        {"image": "a.nii.gz", "segment": "liver", "prompt": "point", "lps": "1.5 2 3", "polarity": "negative"},
    ]
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    from_file = only(read_table(path))
    from_rows = only(read_table([{**row, "image": tmp_path / "a.nii.gz"} for row in rows]))
    assert from_file.image == from_rows.image == tmp_path / "a.nii.gz"
    assert [(p.kind, p.numbers, p.lps, p.positive) for p in from_file.prompts] == [
        ("point", (60, 50, 12), False, True),
        ("bbox", (40, 80, 30, 70, 12, 13), False, True),
        ("point", (1.5, 2, 3), True, False),
    ]
    assert [(p.kind, p.numbers) for p in from_rows.prompts] == [(p.kind, p.numbers) for p in from_file.prompts]
    assert from_rows.prompts[2].where == "row 3"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a,s,point,60 50,,,", 'column ijk: expected three numbers such as 60 50 12, found "60 50".'),
        ("a,s,point,60 50 x,,,", 'column ijk: expected three numbers such as 60 50 12, found "60 50 x".'),
        ("a,s,point,60 50 inf,,,", "column ijk: expected three numbers"),
        ("a,s,point,,1 2,,", 'column lps: expected three numbers in millimeters such as -12.5 30 801, found "1 2".'),
        ("a,s,point,1:2 3:4 5:6,,,", "column ijk: expected three numbers"),
        ("a,s,point,1 2 3,1 2 3,,", "column ijk: expected a value here or in lps, found both."),
        ("a,s,point,,,,", "column ijk: expected a value here or in lps, found nothing."),
        ("a,s,point,1 2 3,,b.nrrd,", 'column file: expected nothing for a point, found "b.nrrd".'),
        ("a,s,bbox,5:2 3:4 1:2,,,", "with each stop greater than its start, found"),
        ("a,s,bbox,1:2.5 3:4 1:2,,,", "with each stop greater than its start, found"),
        ("a,s,bbox,,1 2 3,,", "column lps: expected two opposite corners in millimeters"),
        ("a,s,scribble,1 2 3,,,", 'column ijk: expected nothing for a scribble, found "1 2 3".'),
        ("a,s,scribble,,,,", "column file: expected a value here, found nothing."),
        ("a,s,lasso,,1 2 3,,", 'column lps: expected nothing for a lasso, found "1 2 3".'),
        (
            "a,s,circle,1 2 3,,,",
            'column prompt: expected one of point, bbox, scribble, lasso, markups, found "circle".',
        ),
        ("a,s,point,1 2 3,,,maybe", 'column polarity: expected one of positive, negative, found "maybe".'),
        (
            "a,s,point,1 2 3,,,negative",
            'expected at least one positive row for the segment "s", found only negative ones',
        ),
    ],
)
def test_errors_name_line_column_and_expected_value(tmp_path: Path, row: str, expected: str) -> None:
    table = read(tmp_path, "a,t,point,1 2 3,,,", row, "b,s,point,1 2 3,,,")
    a, b = table.jobs
    assert list(a.faults) == ["s"]
    assert a.faults["s"].startswith("jobs.csv, line 3, column ")
    assert expected in a.faults["s"]
    assert (a.segments, b.faults, table.strays) == (["t", "s"], {}, [])


@pytest.mark.parametrize("count", [20, 21, 3000])
def test_the_first_of_many_invalid_or_repeated_rows_are_listed(tmp_path: Path, count: int) -> None:
    """A cell of results.csv must have space for them."""
    job = only(read(tmp_path, "a,t,point,1 2 3,,,", *["a,t,point,1 2 3,,,"] * count, *["a,s,point,1 2,,,"] * count))
    end = f" Further such rows: {count - 20:,}." if count > 20 else ""
    assert job.faults["s"].count("column ijk: expected") == 20
    assert job.faults["s"].endswith(f'found "1 2".{end}')
    assert [w.partition(" repeats")[0] for w in job.warnings[:20]] == [f"jobs.csv, line {n}" for n in range(3, 23)]
    assert job.warnings[20:] == ([end.strip()] if end else [])


@pytest.mark.parametrize(
    ("row", "image", "expected"),
    [
        (",s,point,1 2 3,,,", "", "column image: expected the path of an image, found nothing."),
        ("a,s,point,1 2 3,,,positive,more", "", "expected 7 cells as in the header, found 8."),
        ('a,"s,point,1 2 3,,,', "", 'expected cells separated by ",", found invalid'),
        (f"a,{'s' * 65},point,1 2 3,,,", "a", "column segment: expected a name of at most 64 printable characters"),
        ("a,s\x07,point,1 2 3,,,", "a", "column segment: expected a name"),
    ],
)
def test_an_unassignable_row_does_not_affect_others(tmp_path: Path, row: str, image: str, expected: str) -> None:
    table = read(tmp_path, "a,t,point,1 2 3,,,", row, "b,s,point,1 2 3,,,")
    ((stray_image, error),) = table.strays
    assert stray_image == image
    assert error.startswith("jobs.csv, line 3")
    assert expected in error
    assert [(job.name, job.segments, job.faults) for job in table.jobs] == [("a", ["t"], {}), ("b", ["s"], {})]


def test_invalid_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"image": "a", "ijk": [1, 2, 3]}\n{"image": "b"\n[1]\n{"image": "a", "segment": "t", "kji": 1}\n')
    table = read_table(path)
    assert [error.split(" (")[0] for _, error in table.strays] == [
        "jobs.jsonl, line 2: expected a JSON object, found invalid JSON",
        "jobs.jsonl, line 3: expected a JSON object, found [1].",
    ]
    (job,) = table.jobs
    assert job.faults == {
        "t": "jobs.jsonl, line 4, column kji: expected one of the columns image, segment, prompt, ijk, lps, file, "
        "polarity, series, time."
    }


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("jobs.txt", b"image\n", "must end with .csv, .tsv or .jsonl"),
        ("jobs.csv", b"", "line 1: expected distinct columns of image, segment"),
        ("jobs.csv", b"image|segment|ijk\na|b|1 2 3\n", 'found "image|segment|ijk"'),
        ("jobs.csv", b"segment,ijk\n", "including image"),
        ("jobs.csv", b"image,ijk,ijk\n", "expected distinct columns"),
        ("jobs.csv", b"image\n\xff\xfe\n", "is not UTF-8 text. Save it as UTF-8 (in Excel, as CSV UTF-8)"),
        ("jobs.csv", None, "cannot be read (No such file or directory)"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidTable) as raised:
        read_table(tmp_path / name)
    assert expected in str(raised.value)


def test_byte_order_mark_and_line_ends_of_a_spreadsheet_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_bytes("\ufeffimage,ijk\r\nä.nii.gz,1 2 3\r\n".encode())
    assert only(read_table(tmp_path / "jobs.csv")).name == "ä.nii.gz"


@pytest.mark.parametrize(
    "content",
    [
        '"image","segment","ijk"\n"a b.nii.gz","Läsion","1,2,3"\n',
        "\ufeffimage;segment;ijk\r\na b.nii.gz;Läsion;1,2,3\r\n;;\r\n",
    ],
    ids=["quoted", "with semicolons"],
)
def test_other_csv_dialects_of_spreadsheets(tmp_path: Path, content: str) -> None:
    (tmp_path / "jobs.csv").write_bytes(content.encode())
    job = only(read_table(tmp_path / "jobs.csv"))
    assert (job.name, job.segments, job.prompts[0].numbers) == ("a b.nii.gz", ["Läsion"], (1, 2, 3))
