"""Files that are replaced in one step."""

from pathlib import Path
import stat
import sys

import pytest

from nninteractive_ws.atomic_files import atomic_write, partial_path


@pytest.mark.parametrize("private", [False, True])
def test_the_old_file_exists_until_the_new_one_is_complete(tmp_path: Path, private: bool) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("old")
    with atomic_write(path, private=private) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, private: bool, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path, private=private) as partial:
            partial.write_text("half of")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("private", [False, True])
def test_a_missing_folder_is_reported(tmp_path: Path, private: bool) -> None:
    path = tmp_path / "missing" / "a"
    with (
        pytest.raises(OSError, match=r"a cannot be written \(No such file"),
        atomic_write(path, private=private) as partial,
    ):
        partial.write_text("new")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_the_user_may_read_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_write(path, private=True) as partial:
        partial.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_ending_is_kept(tmp_path: Path) -> None:
    """It determines the image format."""
    assert partial_path(tmp_path / "a.seg.nrrd").name == ".partial-a.seg.nrrd"
