"""The choice of a series by a path, in folders with other DICOM files."""

from pathlib import Path
import shutil
from typing import Any

from helpers.batch import voxels, write_series
from helpers.dicom import edited, enhanced
import numpy as np
import pydicom
from pydicom.uid import MediaStorageDirectoryStorage, SecondaryCaptureImageStorage, generate_uid
import pytest

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.images import ReadOptions, read_volume, write_segmentation


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder)
    return folder


@pytest.fixture
def series(source: Path, tmp_path: Path) -> Path:
    """A series in a folder that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "series"))


def add_series(series: Path, name: str, **attributes: Any) -> None:
    """Put another series of two slices into the folder."""
    uid = generate_uid()
    for file in sorted(series.glob("0*.dcm"))[:2]:
        slice_ = pydicom.dcmread(file)
        slice_.SeriesInstanceUID, slice_.SOPInstanceUID = uid, generate_uid()
        for attribute, value in attributes.items():
            if value is None:
                del slice_[attribute]
            else:
                setattr(slice_, attribute, value)
        slice_.save_as(series / f"{name}-{file.name}")


def is_whole(path: Path, options: ReadOptions = ReadOptions()) -> bool:  # noqa: B008 - immutable
    return np.array_equal(read_volume(path, options).voxels, voxels())


def test_several_series_are_listed_and_chosen_by_number(series: Path) -> None:
    add_series(series, "thin", SeriesNumber=1, SeriesDescription="Thin 1 mm")
    with pytest.raises(BadImage) as caught:
        read_volume(series)
    assert "2 series (1: CT, Thin 1 mm, 2 slices; 2: CT, 30 slices)" in str(caught.value)
    assert "--series N" in str(caught.value)
    assert is_whole(series, ReadOptions(series=2))
    assert read_volume(series, ReadOptions(series=1)).voxels.shape[2] == 2
    with pytest.raises(BadImage, match="has no series 3"):
        read_volume(series, ReadOptions(series=3))


def test_localizers_and_pictures_are_not_chosen(series: Path) -> None:
    add_series(series, "scout", SeriesNumber=0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    add_series(series, "dose", SOPClassUID=SecondaryCaptureImageStorage, ImagePositionPatient=None, SeriesNumber=9)
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.voxels, voxels())
    assert volume.notes == ("The folder has 3 series. Used: CT, 30 slices. The others are localizers or pictures.",)


def test_a_localizer_within_the_series(series: Path) -> None:
    scout = pydicom.dcmread(series / "003.dcm")
    scout.ImageType, scout.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]
    scout.SOPInstanceUID = generate_uid()
    scout.save_as(series / "scout.dcm")
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.voxels, voxels())
    assert volume.notes == ("1 localizers in the series were skipped.",)


def test_a_segmentation_saved_among_the_slices(series: Path, tmp_path: Path) -> None:
    write_segmentation(tmp_path / "a.dcm", {"a": voxels() > 0}, read_volume(series))
    shutil.copy(tmp_path / "a.dcm", series / "seg.dcm")
    assert is_whole(series)
    with pytest.raises(BadImage, match=r"without an image \(SEG\)"):
        read_volume(series / "seg.dcm")


@pytest.mark.parametrize("name", ["notes.txt", "DICOMDIR.txt", "thumbs.db", ".DS_Store", "VERSION", "image.png"])
def test_other_files_among_the_slices(name: str, series: Path) -> None:
    (series / name).write_bytes(b"II\x08\0\x05\0 nothing of DICOM " * 20)
    assert is_whole(series)
    assert read_volume(series).notes == ()


def test_a_series_in_a_subfolder(series: Path, tmp_path: Path) -> None:
    nested = tmp_path / "patient" / "study" / "series"
    shutil.copytree(series, nested)
    (tmp_path / "patient" / "readme.txt").write_text("hello")
    assert is_whole(tmp_path / "patient")


def test_a_file_of_a_series_selects_the_series(series: Path) -> None:
    volume = read_volume(series / "010.dcm")
    np.testing.assert_array_equal(volume.voxels, voxels())
    assert volume.notes == ("010.dcm is one of 30 files of a series. The whole series is used.",)


def test_a_single_file(series: Path, tmp_path: Path) -> None:
    shutil.copy(series / "010.dcm", tmp_path / "alone.dcm")
    volume = read_volume(tmp_path / "alone.dcm")
    assert volume.voxels.shape[2] == 1
    assert volume.spacing[2] == pytest.approx(5)


@pytest.mark.parametrize("suffix", ["", ".ima", ".img"])
def test_files_of_any_name(suffix: str, series: Path) -> None:
    for file in series.iterdir():
        file.rename(file.with_suffix(suffix))
    assert is_whole(series)


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_a_preamble(implicit: bool, series: Path) -> None:
    for file in series.iterdir():
        slice_ = pydicom.dcmread(file)
        with file.open("wb") as opened:
            pydicom.dcmwrite(opened, pydicom.Dataset(slice_), implicit_vr=implicit, little_endian=True)
    assert is_whole(series)


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM\x02\0\0\0UL\x04"])
def test_empty_and_damaged_files_are_counted(content: bytes, series: Path) -> None:
    (series / "cut.dcm").write_bytes(content)
    (series / "cut2.dcm").write_bytes(content)
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.voxels, voxels())
    assert volume.notes == ("2 empty or damaged files were skipped. Slices may be missing.",)


def test_a_dicomdir_selects_its_folder(series: Path) -> None:
    shutil.copy(series / "000.dcm", series / "DICOMDIR")
    directory = pydicom.dcmread(series / "DICOMDIR")
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    for name in ("SOPClassUID", "PixelData"):
        del directory[name]
    directory.save_as(series / "DICOMDIR")
    assert is_whole(series / "DICOMDIR")
    assert read_volume(series).notes == ()


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="contains no DICOM image"):
        read_volume(tmp_path)
    (tmp_path / "a.dcm").touch()
    with pytest.raises(BadImage, match="contains 1 empty or damaged files"):
        read_volume(tmp_path)
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(BadImage, match=r"is empty \(0 bytes\)"):
        read_volume(tmp_path / "a.nii.gz")


def test_bytes_that_are_not_utf8_in_a_name(series: Path) -> None:
    (series / "004.dcm").rename(series / "004\udcff.dcm")
    assert is_whole(series)
    assert is_whole(Path(series.rename(series.with_name("s\udce9rie"))))


def test_a_color_image_and_a_film(series: Path, tmp_path: Path) -> None:
    def in_color(slice_: Any, _k: int) -> None:
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 3, "RGB"

    with pytest.raises(BadImage, match="is a color image"):
        read_volume(edited(series, tmp_path / "color", in_color))
    film = pydicom.dcmread(enhanced(series, tmp_path / "film.dcm"))
    del film.PerFrameFunctionalGroupsSequence
    film.save_as(tmp_path / "film.dcm")
    with pytest.raises(BadImage, match="several frames without positions"):
        read_volume(tmp_path / "film.dcm")
