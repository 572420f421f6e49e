"""The command segment: arguments that it refuses before it starts a server."""

from pathlib import Path
import shutil
import subprocess
import sys

from helpers.batch import write_image, write_series
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from nninteractive_ws.cli.main import make_app


def segment(*arguments: object) -> str:
    """Run the command with the address of no server, and expect an error. Return its output on one line."""
    command = ["segment", *map(str, arguments), "--point", "12,17,15", "--server", "127.0.0.1:9"]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(make_app("segment"), command)
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.split())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("output", ["ct.nii.gz", "./x/../ct.nii.gz", "link.nii.gz", "hard.nrrd", "series/000.dcm",
                                    "series/new.nii.gz", "series/x/new.nii.gz", "mine.nrrd"])  # fmt: skip
def test_the_image_is_not_overwritten(tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "ct.nii.gz")
    (tmp_path / "x").mkdir()
    (tmp_path / "link.nii.gz").symlink_to("ct.nii.gz")
    (tmp_path / "hard.nrrd").hardlink_to("ct.nii.gz")
    write_series(tmp_path / "series")
    (tmp_path / "series" / "x").mkdir()
    (tmp_path / "detached.nhdr").write_text("NRRD0004\ndata file: mine.nrrd\n\n")
    (tmp_path / "mine.nrrd").write_bytes(bytes(10))
    image = "series" if "series" in output else "detached.nhdr" if "mine" in output else "ct.nii.gz"
    before = contents(tmp_path)
    said = segment(image, "-o", output)
    assert "would overwrite the input file" in said or "would become part of its DICOM series" in said
    assert contents(tmp_path) == before
    for picture in ("shot.png", "ct.nii.gz.png"):
        (tmp_path / picture).hardlink_to("ct.nii.gz")
        said = segment("ct.nii.gz", "-o", "out.nii.gz", "--picture", picture)
        assert f"{picture} would overwrite the input file ct.nii.gz" in said
    assert "Nothing listens" in segment("ct.nii.gz", "-o", "out.nii.gz")


def test_time_points_and_series(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    four = sitk.JoinSeries([sitk.ReadImage(str(tmp_path / "a.nrrd"))] * 2)
    sitk.WriteImage(four, str(tmp_path / "four.nrrd"))
    output = tmp_path / "out.nrrd"
    assert "--time" in segment(tmp_path / "four.nrrd", "-o", output)
    assert "Choose one of 1 to 2" in segment(tmp_path / "four.nrrd", "-o", output, "--time", 3)
    assert "Nothing listens" in segment(tmp_path / "four.nrrd", "-o", output, "--time", 2)
    assert "is not a DICOM series" in segment(tmp_path / "a.nrrd", "-o", output, "--series", 1)


@pytest.mark.parametrize(
    "command",
    [
        ["segment", "ct\udcff.nrrd", "--point", "1,1,1", "-o", "out.nrrd"],
        ["segment", "ct.nrrd", "--point", "1,1,1", "-o", "o\udcfeut.nii.gz"],
        ["batch", "jobs\udcff.csv", "-o", "out"],
        ["evaluate", "phantom:1", "-o", "x\udc80/out"],
        ["demo", "--output", "\udcff.png"],
    ],
)
def test_undecodable_paths_do_not_abort_the_process(tmp_path: Path, command: list[str]) -> None:
    write_image(tmp_path / "ct.nrrd")
    shutil.copy(tmp_path / "ct.nrrd", tmp_path / "ct\udcff.nrrd")
    program = [sys.executable, "-m", "nninteractive_ws", *command]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert "is not UTF-8 text. Rename the file or its folder." in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["shot.png", "out.nii.gz"])
def test_an_output_that_is_a_folder_is_found_before_a_server_is_needed(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "ct.nii.gz")
    (tmp_path / name).mkdir()
    said = segment(tmp_path / "ct.nii.gz", "-o", tmp_path / "out.nii.gz", "--picture", tmp_path / "shot.png")
    assert f"The file {tmp_path / name} cannot be written, because it is a folder." in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["ct.nii.gz", name])
