"""Output folders in which commands cannot write."""

from pathlib import Path
import subprocess
import sys

import pytest
import typer

from nninteractive_ws.cli.console import make_output_folder
from nninteractive_ws.processes import python_module

linux = pytest.mark.skipif(sys.platform != "linux", reason="it needs /proc, in which not even root can write")


def test_an_output_folder_is_created_and_left_empty(tmp_path: Path) -> None:
    make_output_folder(tmp_path / "a" / "b")
    make_output_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, pytest.param("/proc/x", marks=linux)])
def test_a_folder_that_cannot_be_used(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(typer.Exit) as ended:
        make_output_folder(tmp_path / name)
    assert ended.value.exit_code == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: No files can be written in the output folder")
    assert "Choose another folder with --output" in shown


@linux
@pytest.mark.parametrize("arguments", [["demo"], ["evaluate", "phantom:1"], ["bench"], ["batch", "jobs.csv"]])
@pytest.mark.parametrize("folder", ["/proc/x", "/proc/self/status"])
def test_each_command_checks_its_output_folder_first(tmp_path: Path, arguments: list[str], folder: str) -> None:
    (tmp_path / "jobs.csv").write_text("image,segment,prompt,ijk\nct.nii.gz,a,point,1;1;1\n")
    command = python_module("nninteractive_ws", *arguments, "-o", folder)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert folder in done.stderr
    assert "Traceback" not in done.stderr
    assert "server" not in done.stderr


@linux
@pytest.mark.parametrize("file", ["/proc/tokens", "/proc/self/status/tokens"])
def test_a_token_file_that_cannot_be_written(file: str) -> None:
    command = python_module("nninteractive_ws", "token", "anna", "--file", file)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "a token that is not in the file"
