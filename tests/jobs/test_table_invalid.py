"""Invalid tables and results cause an error for the row or the table, never a traceback."""

from collections.abc import Callable
import csv
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from helpers.batch import INSIDE, results, write_image
from helpers.fast_server import QuickServer, quick_server
from hypothesis import given
from hypothesis import strategies as st
import pytest

import nninteractive_ws as nni
from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.evaluation.cases import read_cases
from nninteractive_ws.evaluation.report import write_tables
from nninteractive_ws.evaluation.run import ObjectResult
from nninteractive_ws.files.images import read_volume
from nninteractive_ws.files.markups import read_markups
from nninteractive_ws.jobs.results import COLUMNS, ResultsFile, SegmentResult, VolumeResult
from nninteractive_ws.jobs.table import read_table

DEEP = "[" * 100_000 + "]" * 100_000
POINT = " ".join(map(str, INSIDE))


@pytest.fixture(scope="module")
def quick() -> Any:
    with quick_server() as server:
        yield server


# ---- rows -----------------------------------------------------------------------------------------------------

#: Lines of JSON, and a part of their error.
BAD_LINES = {
    "deep": ('{"image": ' + DEEP + "}", "nested too deeply"),
    "deep numbers": ('{"image": "a", "segment": "s", "ijk": ' + "[" * 900 + "]" * 900 + "}", "three numbers"),
    "deep image": ('{"image": ' + "[" * 900 + "]" * 900 + "}", "the path of an image"),
    "surrogate": ('{"image": "a\\udc80"}', "the path of an image"),
    "surrogate in a name": ('{"image": "a", "segment": "\\ud800"}', "a name of at most 64"),
    "surrogate in a column": ('{"image": "a", "\\udc80": 1}', "column \\udc80: expected one of the columns"),
    "surrogate in a file": ('{"image": "a", "prompt": "lasso", "file": "\\udfff"}', "the path of a file"),
    "line break": ('{"image": "a\\nb"}', "the path of an image"),
    "NUL": ('{"image": "a\\u0000"}', "the path of an image"),
    "escape sequence": ('{"image": "\\u001b[31m"}', "the path of an image"),
    "huge number": ('{"image": "a", "ijk": [1' + "0" * 400 + ", 1, 1]}", "three numbers"),
    "too many digits": ('{"image": "a", "ijk": [1' + "0" * 5000 + ", 1, 1]}", "expected a JSON object"),
    "long": ('{"image": "a", "ijk": "' + "x" * 100_000 + '"}', "three numbers"),
    "object": ('{"image": {"a": 1}}', "the path of an image"),
    "boolean": ('{"image": true}', "the path of an image"),
}


def faults(table: Any) -> list[str]:
    return [error for _, error in table.strays] + [error for job in table.jobs for error in job.faults.values()]


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_line_of_json(tmp_path: Path, kind: str) -> None:
    line, output = BAD_LINES[kind]
    path = tmp_path / "jobs.jsonl"
    path.write_text(f'{{"image": "fine", "ijk": [1, 2, 3]}}\n{line}\n')
    table = read_table(path)
    (fault,) = faults(table)
    assert fault.startswith("jobs.jsonl, line 2")
    assert output in fault
    assert len(fault) < 500
    assert fault.isprintable()
    fine = next(job for job in table.jobs if job.name == "fine")
    assert len(fine.prompts) == 1


@pytest.mark.parametrize("kind", ["deep", "surrogate", "line break", "NUL", "object"])
def test_a_line_of_cases(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(BAD_LINES[kind][0].replace('"image"', '"labels": "b", "image"') + "\n")
    with pytest.raises(InvalidTable, match="line 1"):
        read_cases(path)


@pytest.mark.parametrize("label", [DEEP, "[" * 900 + "]" * 900, "true", "1e999", "1" + "0" * 30, '"x"', "-1", "1.5"])
def test_a_label(tmp_path: Path, label: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"image": "a", "labels": "b", "label": ' + label + "}\n")
    with pytest.raises(InvalidTable, match="line 1"):
        read_cases(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"x" * 200_000 + b"\na\n", "line 1"),
        (b'"image\na\n', "line 1"),
        ("image\n".encode("utf-16") + b"\n", "UTF-8"),
        ("image\ngröße\n".encode("latin-1"), "UTF-8"),
        (b"im\x00age\na\n", "line 1"),
    ],
)
def test_a_table_as_a_whole(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidTable, match=expected) as refused:
        read_table(path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "row", [f"{'x' * 200_000},s,1 2 3", "a\x00b,s,1 2 3", "a,s\x00,1 2 3", f"a,s,{'1' * 200_000} 2 3"]
)
def test_a_row_of_a_table(tmp_path: Path, row: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(f"image,segment,ijk\nfine,s,1 2 3\n{row}\n")
    table = read_table(path)
    (fault,) = faults(table)
    assert fault.startswith("jobs.csv, line 3")
    assert len(fault) < 600


def test_circular_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (fault,) = faults(read_table([{"image": tmp_path / "a" / "c.nrrd", "ijk": [1, 2, 3]}]))
    assert fault.startswith("row 1, column image")


def test_a_name_that_is_not_text() -> None:
    (fault,) = faults(read_table([{"image": Path("ct\udcff.nrrd"), "ijk": [1, 2, 3]}]))
    assert "the path of an image" in fault
    assert fault.isprintable()


def circular() -> list[object]:
    made: list[object] = []
    made.append(made)
    return made


VALUES = {
    "circular": circular(),
    "digits": 10**5000,
    "bytes": b"\xff",
    "set": {1, 2},
    "object": object(),
    "nan": float("nan"),
    "surrogate": "\udc80",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("column", ["image", "segment", "ijk", "lps", "file", "prompt", "polarity"])
def test_any_object_in_a_row(column: str, value: object) -> None:
    table = read_table([{"image": "a", "segment": "s", "ijk": [1, 2, 3], column: value}])
    assert all(fault.startswith("row 1, column") for fault in faults(table))
    assert len(faults(table)) == 1


def test_rows_of_other_types() -> None:
    rows: Any = ["image", 3, None, [1]]
    assert [fault.partition(":")[0] for fault in faults(read_table(rows))] == ["row 1", "row 2", "row 3", "row 4"]


@pytest.mark.parametrize(
    "content",
    [DEEP, '{"markups": ' + DEEP + "}", '{"markups": ["x"]}', '{"markups": [{"type": "\\udc80"}]}', "[1]", "null",
     '{"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": ["x"]}]}',
     '{"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [{"position": [1e999, 1, 1]}]}]}',
     '{"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [{"position": [1' + "0" * 400
     + ", 1, 1]}]}]}",
     '{"markups": [{"type": "ROI", "coordinateSystem": "LPS", "center": [1e300, 0, 0], "size": [1, 1, 1], '
     '"orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1]}]}',
     '{"markups": [{"type": "ROI", "coordinateSystem": "LPS", "center": [0, 0], "size": [1, 1], "orientation": [1]}]}'],
)  # fmt: skip
def test_markups(tmp_path: Path, content: str) -> None:
    write_image(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    path = tmp_path / "m.mrk.json"
    path.write_text(content)
    with pytest.raises(InvalidTable) as refused:
        read_markups(path, volume)
    assert str(path) in str(refused.value)
    assert str(refused.value).isprintable()


# ---- results.csv ----------------------------------------------------------------------------------------------


def written(folder: Path) -> ResultsFile:
    segments = (SegmentResult("liver", 1, 10, 0.5, 2, 3, 0.1, 0.1, 0.1), SegmentResult("=x", error="-1+cmd"))
    result = VolumeResult("ct1.nrrd", segments, folder / "ct1.seg.nrrd", "+model", "@license", 0.1, 0.2, 0.3)
    file = ResultsFile(folder)
    file.rewrite([("k1", result), ("k2", result)])
    return file


Edit = Callable[[bytes], bytes]


def cell(column: str, value: str) -> Edit:
    """Replace a cell of the second result's first line, which is line 4."""

    def edit(content: bytes) -> bytes:
        rows = list(csv.reader(content.decode().splitlines()))
        rows[3][COLUMNS.index(column)] = value
        return (
            "\n".join(",".join(f'"{c}"' for c in row) if n else ",".join(row) for n, row in enumerate(rows)).encode()
            + b"\n"
        )

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (cell("label", "x"), 'line 4: column label: expected a whole number from 0, found "x".'),
        (cell("voxels", "1.5"), "line 4: column voxels: expected a whole number"),
        (cell("voxels", "9" * 5000), "line 4: column voxels"),
        (cell("prompts", ""), "line 4: column prompts: expected a whole number from 0, found nothing."),
        (cell("prompts", "-1"), "line 4: column prompts"),
        (cell("total_s", "soon"), 'line 4: column total_s: expected a number from 0, found "soon".'),
        (cell("ml", "nan"), "line 4: column ml"),
        (cell("ml", "inf"), "line 4: column ml"),
        (cell("error", "x" * 200_000), "line 4: expected a line of CSV"),
        (lambda c: c.replace(b",k2\n", b"\n", 1), "line 4: expected 21 cells, found 20"),
        (lambda c: c.replace(b",k2\n", b",k2,more\n", 1), "line 4: expected 21 cells, found 22"),
        (lambda c: c.replace(b",k2\n", b',"k2\n', 1), "line 4: expected a line of CSV"),
        (lambda c: c.replace(b"ct1.nrrd", "größe".encode("latin-1"), 1), "line 2: expected a line of CSV in UTF-8"),
        (lambda c: c.replace(b",", b";"), "not a results table"),
        (lambda c: c.decode().encode("utf-16"), "not a results table"),
        (lambda c: c.replace(b",label", b"", 1), "not a results table"),
    ],
)  # fmt: skip
def test_an_edited_table_of_results(tmp_path: Path, edit: Edit, expected: str) -> None:
    file = written(tmp_path)
    file.path.write_bytes(edit(file.path.read_bytes()))
    with pytest.raises(InvalidTable) as refused:
        file.load()
    assert expected in str(refused.value)
    assert "hoose another output folder" in str(refused.value)
    assert "edited" in str(refused.value) or "not a results table" in expected
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content,
        lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
        lambda content: content + b"\n\n",
        lambda content: content + "größe".encode()[:-2],
        lambda content: content.replace(b"k1", b"", 2),
    ],
    ids=["as it was", "by a spreadsheet", "empty lines", "cut", "without a key"],
)
def test_a_harmless_edit_of_the_results_is_accepted(tmp_path: Path, edit: Edit) -> None:
    file = written(tmp_path)
    file.path.write_bytes(edit(file.path.read_bytes()))
    found = file.load()["k2"]
    assert [(s.name, s.label, s.voxels, s.error) for s in found.segments] == [
        ("liver", 1, 10, None),
        ("=x", None, 0, "-1+cmd"),
    ]
    assert (found.model, found.license, found.output) == ("+model", "@license", tmp_path / "ct1.seg.nrrd")


NAMES = st.text(
    st.one_of(st.sampled_from("=+-@';\",|"), st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))), min_size=1
)


@given(st.lists(NAMES, min_size=1, max_size=4), NAMES, NAMES)
def test_results_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], image: str, model: str
) -> None:
    folder = tmp_path_factory.mktemp("results")
    file = ResultsFile(folder)
    result = VolumeResult(image, tuple(SegmentResult(name, 1) for name in names), folder / "a.dcm", model)
    file.rewrite([("k", result)])
    file.append("l", result)
    for found in file.load().values():
        assert (found.image, [s.name for s in found.segments]) == (image, names)
        assert (found.output, found.model) == (result.output, " ".join(model.split()))


def test_long_texts_and_line_breaks_are_read_back(tmp_path: Path) -> None:
    """The table stays readable after each rewrite, whatever text a server or a file system adds."""
    long = "; -1 " * 50_000
    segments = (SegmentResult("liver", error=long), SegmentResult("spleen", 1))
    output, path = tmp_path / "a.seg.nrrd", "/data/a\r\nb/ct.nrrd"
    result = VolumeResult(long, segments, output, long, long, warnings=("Odd.", long), path=path)
    file = ResultsFile(tmp_path)
    file.rewrite([("k", result)])
    first = file.path.read_bytes()
    assert len(first.splitlines()) == 3
    (found,) = file.load().values()
    assert found.path == r"/data/a\r\nb/ct.nrrd"
    assert found.warnings[0] == "Odd."
    assert {len(found.image), len(found.model), len(found.errors[0])} == {32_767}
    file.rewrite([("k", found)])
    assert file.path.read_bytes() == first


def test_cells_of_tables_are_not_formulas(tmp_path: Path) -> None:
    written(tmp_path)
    results_of = [ObjectResult('=HYPERLINK("x")', "@liver", 5, error="+1+cmd|x")]
    write_tables(tmp_path, results_of, "-model", "=license", 0)
    for table in ("results.csv", "objects.csv", "prompts.csv"):
        for row in csv.reader((tmp_path / table).read_text().splitlines()):
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row), row
    assert "'=HYPERLINK" in (tmp_path / "objects.csv").read_text()


@pytest.mark.slow
def test_a_batch_with_names_like_formulas_resumes(quick: QuickServer, tmp_path: Path) -> None:
    names = ["=HYPERLINK(1).nrrd", "-1.nrrd", "'=a;+b.nrrd"]
    for n, name in enumerate(names):
        write_image(tmp_path / name, n)
    rows = [{"image": tmp_path / name, "segment": "@sum", "ijk": INSIDE} for name in names]
    first = list(nni.batch(rows, tmp_path / "out", server=quick.address))
    assert [r.errors for r in first] == [[], [], []]
    again = list(nni.batch(rows, tmp_path / "out", server="127.0.0.1:9"))
    assert {(r.image, r.segments[0].name, r.output) for r in again} == {
        (r.image, r.segments[0].name, r.output) for r in first
    }


@pytest.mark.slow
def test_an_output_that_was_edited_is_made_again(quick: QuickServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    rows = [{"image": tmp_path / "a.nrrd", "ijk": INSIDE}]
    list(nni.batch(rows, tmp_path / "out", server=quick.address))
    table = tmp_path / "out" / "results.csv"
    before = results(tmp_path / "out")[0]["output"]
    table.write_text(table.read_text().replace(before, "../a.nrrd"))
    (result,) = nni.batch(rows, tmp_path / "out", server=quick.address)
    assert not result.earlier
    assert results(tmp_path / "out")[0]["output"] == before


# ---- names of files -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_that_other_systems_do_not_allow(
    quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        "CON.nrrd",
        "aux/lpt1.nrrd",
        "a:b.nrrd",
        "a?b.nrrd",
        "CT.nrrd",
        "ct.nrrd",
        "trailing /x.nrrd",
        f"{'x' * 250}.nrrd",
    ]
    for n, name in enumerate(names):
        write_image(tmp_path / name, n)
    rows = [{"image": name, "ijk": INSIDE} for name in names]
    found = {r.image: r for r in nni.batch(rows, "out", server=quick.address)}
    assert [name for name, r in found.items() if r.errors] == []
    outputs = [str(r.output) for r in found.values()]
    assert len({output.casefold() for output in outputs}) == len(names)
    assert all(Path(output).is_file() for output in outputs)
    assert str(found["CT.nrrd"].output) == "out/CT.seg.nrrd"
    assert {line["image"]: f"out/{line['output']}" for line in results(tmp_path / "out")} == {
        name: str(r.output) for name, r in found.items()
    }
    assert all(r.earlier for r in nni.batch(rows, "out", server="127.0.0.1:9"))


def test_an_output_folder_that_is_a_file(quick: QuickServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a.nrrd", "A.seg.nrrd/b.nrrd", "results.csv/c.nrrd"]
    for n, name in enumerate(names):
        write_image(tmp_path / name, n)
    found = {r.image: r for r in nni.batch([{"image": n, "ijk": INSIDE} for n in names], "out", server=quick.address)}
    assert found["a.nrrd"].errors == []
    assert all("Rename the image" in found[name].errors[0] for name in names[1:])


def test_the_command_prints_no_traceback(tmp_path: Path) -> None:
    table = tmp_path / "jobs.jsonl"
    table.write_text("\n".join(line for line, _ in BAD_LINES.values()) + "\n")
    command = [sys.executable, "-m", "nninteractive_ws", "batch", str(table), "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, "--server", "127.0.0.1:9"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    document = json.dumps(results(tmp_path / "out"))
    assert "nested too deeply" in document or "Nothing listens" in done.stderr
