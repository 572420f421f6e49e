"""Tables of cases: chosen volumes, warnings, and outputs that would replace them."""

import csv
from pathlib import Path

from helpers import image_files
from helpers.batch import SHAPE, voxels
from helpers.fast_server import quick_server
import numpy as np
import pytest
from typer.testing import CliRunner

from nninteractive_ws.cli.main import make_app
from nninteractive_ws.evaluation.cases import read_cases
from nninteractive_ws.files.images import ReadOptions


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("image,labels,label,name,time,series", *lines)) + "\n")
    return path


def evaluate(*arguments: object) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(make_app("evaluate"), ["evaluate", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:16, 12:22, 10:20] = 1
    image_files.write(tmp_path / "labels.nii.gz", labels)
    unusual = np.stack([voxels(1), voxels(2)], axis=3).astype(np.float32)
    unusual[0, 0, 0, 1] = np.nan
    image_files.write(tmp_path / "four.nii.gz", unusual)
    return tmp_path


def test_time_points_are_separate_cases(folder: Path) -> None:
    rows = ("four.nii.gz,labels.nii.gz,1,a,1,", "four.nii.gz,labels.nii.gz,1,a,2,", "four.nii.gz,labels.nii.gz,2,b,2,")
    first, second = read_cases(table(folder / "CASES.CSV", *rows), resample=True)
    assert (first.name, first.options) == ("four.nii.gz (time 1)", ReadOptions(time=1, resample=True))
    assert (second.name, second.structures) == ("four.nii.gz (time 2)", {"a": 1, "b": 2})
    np.testing.assert_array_equal(first.read().voxels, voxels(1))
    (warning,) = second.read().warnings
    assert "NaN or infinite" in warning
    assert first.read().warnings == ()


@pytest.mark.slow
def test_warnings_are_printed_and_written(folder: Path) -> None:
    cases = table(folder / "cases.csv", "four.nii.gz,labels.nii.gz,,,2,", "four.nii.gz,labels.nii.gz,,,3,")
    with quick_server() as server:
        status, output = evaluate(cases, "-o", folder / "report", "--server", server.address, "--prompts-per-object", 2)
    assert status == 1
    assert output.count("note: four.nii.gz (time 2): 1 voxels are NaN or infinite") == 1
    with (folder / "report" / "objects.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert "NaN or infinite" in good["warnings"]
    assert (bad["case"], bad["warnings"]) == ("four.nii.gz (time 3)", "")
    assert "Choose one of 1 to 2" in bad["error"]


@pytest.mark.parametrize("name", ["prompts.csv", "objects.csv", "dice.png", "worst-3.png"])
def test_reports_replace_no_input(folder: Path, name: str) -> None:
    cases = folder / name if name.endswith(".csv") else folder / "cases.csv"
    image = "four.nii.gz"
    if name.endswith(".png"):
        (folder / image).rename(folder / name)
        image = name
    table(cases, f"{image},labels.nii.gz,,,1,")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    status, output = evaluate(cases, "-o", folder, "--server", "127.0.0.1:9")
    assert status == 1
    assert f"{folder}/{name} would overwrite the input file {folder}/{name}. Choose another output." in output
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    status, output = evaluate(cases, "-o", folder / "report", "--server", "127.0.0.1:9")
    assert "Nothing listens" in output
