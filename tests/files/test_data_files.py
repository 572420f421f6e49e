"""The files of which an image consists: they are read, they are named if they are missing, and they are watched."""

from pathlib import Path
import shutil

from helpers import image_files
from helpers.batch import write_series
from helpers.dicom import enhanced
import numpy as np
import pytest

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.data_files import files_of
from nninteractive_ws.files.images import read_volume

VOXELS = np.arange(12 * 10 * 8, dtype=np.int16).reshape(12, 10, 8)


def names(path: Path) -> set[str]:
    return {str(file.relative_to(path.parent)) for file in files_of(path)}


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.hdr", "a.img"), ("a.mhd", "a.raw"), ("a.z.mhd", "a.z.zraw"), ("a.nhdr", "a.raw.gz"), ("a.nii.gz", None)],
)
def test_an_image_and_its_data_file(name: str, data: str | None, tmp_path: Path) -> None:
    path = tmp_path / name
    image_files.write(path, VOXELS)
    (tmp_path / "other.raw").touch()
    assert names(path) == {name, *([data] if data else [])}
    if data is not None:
        (tmp_path / data).unlink()
        with pytest.raises(BadImage, match=r"(The file .*a\.z?\.?z?raw(\.gz)?|\.img file) .*is missing"):
            read_volume(path)
        assert names(path) == {name}


@pytest.mark.parametrize(("header", "data"), [("a.HDR", "a.img"), ("a.hdr", "a.Img"), ("A.hdr", "a.IMG")])
def test_a_pair_in_any_case(header: str, data: str, tmp_path: Path) -> None:
    image_files.write(tmp_path / "a.hdr", VOXELS)
    (tmp_path / "a.img").rename(tmp_path / data)
    (tmp_path / "a.hdr").rename(tmp_path / header)
    np.testing.assert_array_equal(read_volume(tmp_path / header).voxels, VOXELS)


def test_series(tmp_path: Path) -> None:
    write_series(tmp_path / "patient" / "ct")
    slices = {f"patient/ct/{k:03}.dcm" for k in range(30)}
    assert names(tmp_path / "patient") == slices
    assert names(tmp_path / "patient" / "ct" / "003.dcm") == {Path(name).name for name in slices}
    shutil.copy(tmp_path / "patient" / "ct" / "003.dcm", tmp_path / "patient" / "DICOMDIR")
    assert names(tmp_path / "patient" / "DICOMDIR") == {"DICOMDIR", *(name.removeprefix("patient/") for name in slices)}


def test_a_multi_frame_file_stands_for_itself(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    for name in ("a.dcm", "b.dcm"):
        enhanced(tmp_path / "ct", tmp_path / name)
    assert names(tmp_path / "a.dcm") == {"a.dcm"}


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.mrk.json").write_text("{}")
    assert names(tmp_path / "a.mrk.json") == {"a.mrk.json"}
    assert files_of(tmp_path / "missing.nrrd") == []
