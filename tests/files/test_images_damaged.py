"""Damaged files are refused with an error, or read exactly as by an independent reader."""

from pathlib import Path
import random
import re
from typing import Any

from helpers import image_files
from helpers.batch import SHAPE as SLICE_SHAPE
from helpers.batch import write_series
from helpers.dicom import sorted_slices
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.images import read_volume

SHAPE = (12, 10, 8)
#: Number of damaged files per name, larger with --slow.
COUNT, COUNT_SLOW = 8, 200


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int16]:
    return np.random.default_rng(1).integers(0, 1500, SHAPE).astype(np.int16)


def damaged(data: bytes, number: int, random_: random.Random) -> bytes:
    """Cut, flip bits of, delete from, swap or overwrite a part of a file."""
    a, b = sorted(random_.sample(range(len(data)), 2))
    if number % 5 == 0:
        return data[:a]
    if number % 5 == 1:
        return data[:a] + bytes([data[a] ^ 1 << random_.randrange(8)]) + data[a + 1 :]
    if number % 5 == 2:
        return data[:a] + data[b:]
    if number % 5 == 3:
        return data[:a] + data[b:] + data[a:b]
    return data[:a] + random_.randbytes(16) + data[a + 16 :]


def check(path: Path) -> str:
    """Read a file. Raises AssertionError if it was read differently by the independent reader."""
    try:
        volume = read_volume(path)
    except BadImage as e:
        if not re.fullmatch(r".{1,1000}\.", str(e), re.DOTALL):
            raise AssertionError("not a sentence") from e
        return "refused"
    plain = image_files.read_plainly(path)
    finite = np.isfinite(plain)
    np.testing.assert_array_equal(volume.voxels[finite], plain[finite])
    return "read"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("name", image_files.NAMES)
def test_a_damaged_file(name: str, voxels: npt.NDArray[Any], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / name
    image_files.write(path, voxels.astype(np.uint16) if name.endswith(".tif") else voxels)
    assert check(path) == "read"
    random_ = random.Random(name)
    outcomes = []
    for number in range(COUNT_SLOW if request.config.getoption("--slow") else COUNT):
        target = image_files.data_file(path) if number % 3 else path
        whole = target.read_bytes()
        target.write_bytes(damaged(whole, number, random_))
        outcomes.append(check(path))
        target.write_bytes(whole)
    assert "refused" in outcomes
    assert check(path) == "read"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@pytest.mark.parametrize("name", image_files.NAMES)
@pytest.mark.parametrize("missing", [1, 100])
def test_a_cut_file_is_refused(name: str, missing: int, voxels: npt.NDArray[Any], tmp_path: Path) -> None:
    path = tmp_path / name
    image_files.write(path, voxels.astype(np.uint16) if name.endswith(".tif") else voxels)
    data = image_files.data_file(path)
    data.write_bytes(data.read_bytes()[:-missing])
    if name == "a.tif" and missing == 1:
        return  # the last byte of libtiff's files is unused
    with pytest.raises(BadImage, match=r"incomplete|damaged|cannot be read"):
        read_volume(path)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder)
    for file in sorted_slices(folder)[4:]:
        file.unlink()
    return folder


def read_slice(file: Path) -> npt.NDArray[Any] | None:
    """Return the pixels (i, j) of a slice, read by GDCM, or None if it refuses the file."""
    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[0].T)
    except RuntimeError:
        return None


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_damaged_slice(series: Path, request: pytest.FixtureRequest) -> None:
    random_ = random.Random(3)
    files = sorted_slices(series)
    outcomes = []
    for number in range(COUNT_SLOW if request.config.getoption("--slow") else 2 * COUNT):
        file = random_.choice(files)
        whole = file.read_bytes()
        # Most bytes are pixels, so half of the changes are in the header.
        end = len(whole) if number % 2 else len(whole) - 2 * SLICE_SHAPE[0] * SLICE_SHAPE[1]
        file.write_bytes(damaged(whole[:end], number // 2, random_) + whole[end:])
        try:
            volume = read_volume(series)
        except BadImage as e:
            outcomes.append("refused" if re.fullmatch(r".{1,1500}\.", str(e), re.DOTALL) else f"no sentence: {e}")
        else:
            outcomes.append("skipped" if volume.notes else "read")
            for k, name in enumerate(volume.series):
                expected = read_slice(Path(name))
                if expected is not None:
                    np.testing.assert_allclose(volume.voxels[:, :, k], expected, rtol=1e-6)
        file.write_bytes(whole)
    assert {"refused", "read"} <= set(outcomes) <= {"refused", "read", "skipped"}
    assert read_volume(series).notes == ()
