"""Processes that a command starts do not import files of its working folder."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

import nninteractive_ws
from nninteractive_ws.demo.phantom import make_phantom
from nninteractive_ws.processes import python_module

PACKAGE = Path(nninteractive_ws.__file__).parent
SLICER_MODULE = PACKAGE.parent / "slicer_module" / "NNInteractiveWS"
#: What a server and its worker import; and modules of the standard library.
IMPORTED = ("psutil", "numpy", "torch", "msgspec", "websockets", "json", "random", "logging", "nninteractive_ws")


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """Each module says that it was imported, and then fails."""
    for name in IMPORTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n1 / 0\n")
    return tmp_path


def test_without_the_option_the_working_folder_comes_first(hostile_folder: Path) -> None:
    """Shows why the option is needed, and that the next test would notice an import."""
    command = [word for word in python_module("nninteractive_ws", "--help") if word != "-P"]
    done = subprocess.run(command, cwd=hostile_folder, capture_output=True, check=False)
    assert done.returncode != 0
    assert (hostile_folder / "imported").exists()


def test_a_command_its_server_and_its_worker_import_nothing_from_the_working_folder(hostile_folder: Path) -> None:
    import SimpleITK as sitk

    image = make_phantom(5, (72, 64, 56), (4.0, 4.0, 4.0)).image
    sitk.WriteImage(sitk.GetImageFromArray(image.transpose()), hostile_folder / "ct.nii.gz")
    program = Path(sys.executable).with_name("nninteractive-ws")
    words = ["segment", "ct.nii.gz", "--point", "28,30,30", "-o", "out.nii.gz", "--model", "demo"]
    done = subprocess.run([program, *words], cwd=hostile_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (hostile_folder / "imported").exists(), (hostile_folder / "imported").read_text()
    assert (hostile_folder / "out.nii.gz").exists()


@pytest.mark.parametrize("folder", [PACKAGE, SLICER_MODULE], ids=lambda folder: folder.name)
def test_python_is_started_in_one_place(folder: Path) -> None:
    """Elsewhere, a command with ``-m`` could lack ``-P``."""
    for path in folder.rglob("*.py"):
        words = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        assert "-m" not in words or path == PACKAGE / "processes.py", path
