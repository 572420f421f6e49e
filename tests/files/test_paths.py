"""Paths in the notation of other systems, and the files that they refer to."""

import os
from pathlib import Path
import unicodedata

import pytest

from nninteractive_ws.files.paths import UnusablePath, find_spelling

NFC, NFD = (unicodedata.normalize(form, "Köln é/größe Å.nrrd") for form in ("NFC", "NFD"))


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    return write


@pytest.mark.parametrize(("written", "on_disk"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFC.replace("/", "\\"), NFD)])
def test_unicode_normalization(tmp_path: Path, write, written: str, on_disk: str) -> None:
    write(on_disk)
    assert find_spelling(written, tmp_path) == on_disk
    assert find_spelling(str(tmp_path / written), Path("/nowhere")) == str(tmp_path / on_disk)


def test_both_normalizations_beside_each_other(tmp_path: Path, write) -> None:
    write(NFC)
    write(NFD)
    assert find_spelling(NFC, tmp_path) == NFC
    assert find_spelling(NFD, tmp_path) == NFD


@pytest.mark.skipif(os.sep != "/", reason="backslashes are separators there")
def test_backslashes(tmp_path: Path, write) -> None:
    write("scans/a b/c.nrrd")
    assert find_spelling("scans\\a b\\c.nrrd", tmp_path) == "scans/a b/c.nrrd"
    assert find_spelling(".\\scans/a b\\c.nrrd", tmp_path) == "scans/a b/c.nrrd"
    assert find_spelling("scans\\missing.nrrd", tmp_path) == "scans/missing.nrrd"
    write("real\\name.nrrd")
    write("real/name.nrrd")
    assert find_spelling("real\\name.nrrd", tmp_path) == "real\\name.nrrd"


@pytest.mark.skipif(os.sep != "/", reason="they are valid there")
@pytest.mark.parametrize("path", ["C:\\scans\\a.nrrd", "d:/scans/a.nrrd", "\\\\server\\share\\a.nrrd"])
def test_paths_of_windows(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnusablePath, match="a path of Windows"):
        find_spelling(path, tmp_path)


def test_the_user_s_folder(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert find_spelling("~/x.nrrd", tmp_path) == str(home / "x.nrrd")
    assert find_spelling("~", tmp_path) == str(home)
    assert find_spelling("~\\x.nrrd", tmp_path) == str(home / "x.nrrd")
    write("~/x.nrrd")
    assert find_spelling("~/x.nrrd", tmp_path) == "~/x.nrrd"
    with pytest.raises(UnusablePath, match="no such user"):
        find_spelling("~nobody with this name/x.nrrd", tmp_path)


@pytest.mark.parametrize("path", ["$DATA/a.nrrd", "x/${DATA_9}/a.nrrd", "%USERPROFILE%\\a.nrrd", "a$b.nrrd"])
def test_environment_variables(tmp_path: Path, write, path: str) -> None:
    with pytest.raises(UnusablePath, match=r"Environment variables such as .* are not expanded"):
        find_spelling(path, tmp_path)
    write(path)
    assert find_spelling(path, tmp_path) == path


MISSING = ("a.nrrd", "cost $5.nrrd", "100%.nrrd", "50% of 100%.nrrd", "../a/./b.nrrd", "é.nrrd", "x" * 300, "a/" * 50)


@pytest.mark.parametrize("path", MISSING)
def test_a_missing_file_keeps_its_path(tmp_path: Path, path: str) -> None:
    assert Path(find_spelling(path, tmp_path)) == Path(path)
