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
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.images import ReadOptions, read_volume, write_segmentation

#: The element SeriesNumber, with the value of write_series.
NUMBER = b"\x20\0\x11\0IS\2\x002 "


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


def test_a_series_in_two_subfolders(series: Path, tmp_path: Path) -> None:
    for name in ("DIR1", "DIR2"):
        (tmp_path / "disc" / name).mkdir(parents=True)
    for number, file in enumerate(sorted(series.iterdir())):
        file.rename(tmp_path / "disc" / f"DIR{1 + number // 17}" / file.name)
    volume = read_volume(tmp_path / "disc")
    np.testing.assert_array_equal(volume.voxels, voxels())
    read = sitk.ReadImage(volume.series)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).transpose(), volume.voxels)
    np.testing.assert_allclose(read.GetOrigin(), volume.ijk_to_lps[:3, 3], atol=1e-6)
    assert volume.notes == ()


def test_subfolders_of_two_patients_are_not_mixed(series: Path, tmp_path: Path) -> None:
    """Neither if a program that anonymizes files has emptied all UIDs."""

    def anonymous(slice_: Any, _k: int) -> None:
        slice_.SeriesInstanceUID = ""

    for name in ("a", "b"):
        edited(series, tmp_path / "both" / name, anonymous)
    with pytest.raises(BadImage, match=r"2 series \(1: CT, 30 slices; 2: CT, 30 slices\)"):
        read_volume(tmp_path / "both")
    assert is_whole(tmp_path / "both", ReadOptions(series=2))


@pytest.mark.filterwarnings("ignore:Invalid value for VR IS:UserWarning:pydicom")
@pytest.mark.parametrize("change", ["no class", "empty class", "number", "empty UID", "no UID"])
def test_attributes_that_programs_remove(change: str, series: Path) -> None:
    """GDCM reads such files as well."""
    for file in series.iterdir():
        slice_ = pydicom.dcmread(file)
        if change == "no class":
            del slice_.SOPClassUID
        elif change == "empty class":
            slice_.SOPClassUID = ""
        elif change == "empty UID":
            slice_.SeriesInstanceUID = ""
        elif change == "no UID":
            del slice_.SeriesInstanceUID
        slice_.save_as(file)
        if change == "number":
            content = file.read_bytes()
            assert content.count(NUMBER) == 1
            file.write_bytes(content.replace(NUMBER, NUMBER[:-2] + b"A "))
    volume = read_volume(series)
    read = sitk.GetArrayFromImage(sitk.ReadImage(volume.series)).transpose()
    np.testing.assert_array_equal(read, voxels())
    np.testing.assert_array_equal(volume.voxels, read)
    assert volume.notes == ()
    assert is_whole(series / "010.dcm")


def test_a_mosaic(series: Path, tmp_path: Path) -> None:
    def mosaic(slice_: Any, k: int) -> bool:
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "M", "DIS2D", "MOSAIC"]
        return k < 2

    with pytest.raises(BadImage, match=r"is a mosaic: one picture of all slices\. Convert the series"):
        read_volume(edited(series, tmp_path / "mosaic", mosaic))


def test_a_file_of_a_series_selects_the_series(series: Path) -> None:
    volume = read_volume(series / "010.dcm")
    np.testing.assert_array_equal(volume.voxels, voxels())
    assert volume.notes == ("010.dcm is one of 30 files of a series. The whole series is used.",)
    (series / "cut.dcm").write_bytes((series / "011.dcm").read_bytes()[:400])
    assert read_volume(series / "010.dcm").notes == (
        "1 empty or damaged files were skipped. Slices may be missing.",
        *volume.notes,
    )


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
