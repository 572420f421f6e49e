"""DICOM series read by the page, compared with the Python client and SimpleITK."""

from pathlib import Path
import shutil
from typing import Any

import gdcm
from helpers.batch import OBLIQUE, SHAPE, voxels, write_series
from helpers.dicom import Edit, edited, enhanced, set_pixels
from helpers.web_files import PageFiles
import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
import pytest
import SimpleITK as sitk

from nninteractive_ws.files.images import read_volume


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder)
    return folder


def assert_as_python(page_files: PageFiles, path: Path) -> None:
    """The page reads the same voxels at the same places as the Python client."""
    found, expected = page_files.read(path), read_volume(path)
    assert found.error == ""
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_allclose(found.ijk_to_lps, expected.ijk_to_lps, atol=1e-6)
    assert len(found.notes) == len(expected.notes)


def test_simpleitk_reads_the_same(series: Path, page_files: PageFiles) -> None:
    found = page_files.read(series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    image = reader.Execute()
    np.testing.assert_array_equal(found.voxels, sitk.GetArrayFromImage(image).transpose())
    for index in ((0, 0, 0), (39, 0, 0), (0, 35, 0), (0, 0, 29)):
        position = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(found.ijk_to_lps[:3] @ (*index, 1), position, atol=1e-3)
    assert found.voxels.dtype == np.int16
    assert found.labels == ["CT, 30 slices"]


def same(_slice: Any, _k: int) -> None:
    pass


def with_slopes(slice_: Any, k: int) -> None:
    slice_.RescaleSlope, slice_.RescaleIntercept = f"{1 if k == 0 else 0.001 * (k + 1):.6f}", "0"


def with_intercepts(slice_: Any, k: int) -> None:
    slice_.RescaleIntercept = 0 if k == 0 else -1024


def with_large_values(slice_: Any, _k: int) -> None:
    slice_.RescaleSlope, slice_.RescaleIntercept = 100, 7


def partly_unsigned(slice_: Any, k: int) -> None:
    if k % 3 == 0:
        set_pixels(slice_, (slice_.pixel_array + 2000).astype(np.uint16))
        slice_.RescaleIntercept = -2000


def inverted(slice_: Any, _k: int) -> None:
    slice_.PhotometricInterpretation = "MONOCHROME1"


def of_twelve_bits(slice_: Any, _k: int) -> None:
    """Other data, such as an overlay, in the bits that are not used."""
    set_pixels(slice_, (slice_.pixel_array.astype(np.uint16) & 0x0FFF) | 0x5000)
    slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 12, 11, 1


def thin(slice_: Any, k: int) -> None:
    """Positions rounded to a tenth of a millimeter: slices are then 0.6 and 0.7 mm apart."""
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.ImagePositionPatient = [0, 0, f"{k * 0.625:.1f}"]


def without_thickness(slice_: Any, _k: int) -> None:
    slice_.SliceThickness = None


def one_slice(_slice: Any, k: int) -> bool:
    return k == 3


@pytest.mark.parametrize(
    "edit",
    [
        same,
        with_slopes,
        with_intercepts,
        with_large_values,
        inverted,
        of_twelve_bits,
        thin,
        without_thickness,
        one_slice,
    ],
)
@pytest.mark.parametrize("multi_frame", [False, True])
def test_values_and_places(multi_frame: bool, edit: Edit, series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    if multi_frame:
        count = 1 if edit is one_slice else SHAPE[2]
        order = np.random.default_rng(0).permutation(count).tolist()
        assert_as_python(page_files, enhanced(series, tmp_path / "a.dcm", edit, order))
    else:
        assert_as_python(page_files, edited(series, tmp_path / "edited", edit))


def test_unsigned_slices_among_signed_ones(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    assert_as_python(page_files, edited(series, tmp_path / "edited", partly_unsigned))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("multi_frame", [False, True])
def test_compressed(multi_frame: bool, syntax: Any, series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    def compress(slice_: Any, _k: int) -> None:
        slice_.compress(syntax, generate_instance_uid=False)

    if multi_frame:
        path = enhanced(series, tmp_path / "a.dcm")
        image = pydicom.dcmread(path)
        compress(image, 0)
        image.save_as(path)
    else:
        path = edited(series, tmp_path / "packed", compress)
    np.testing.assert_array_equal(page_files.read(path).voxels, voxels())


def compressed_by_gdcm(folder: Path, syntax: str) -> Path:
    """Compress the files of a series in place."""
    for file in folder.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    return folder


def test_lossy_jpeg(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    """Decoders of JPEG may differ by 1."""

    def of_a_byte(slice_: Any, _k: int) -> None:
        pixels = np.clip(slice_.pixel_array // 8 + 128, 0, 255).astype(np.uint8)
        slice_.PixelData, slice_.PixelRepresentation = pixels.tobytes(), 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 8, 8, 7

    folder = compressed_by_gdcm(edited(series, tmp_path / "plain", of_a_byte), "JPEGBaselineProcess1")
    found, expected = page_files.read(folder), read_volume(folder)
    np.testing.assert_allclose(found.voxels.astype(int), expected.voxels.astype(int), atol=1)


def test_an_unknown_compression(page_files: PageFiles, series: Path, tmp_path: Path) -> None:
    def in_htj2k(slice_: Any, _k: int) -> None:
        slice_.compress(RLELossless, generate_instance_uid=False)
        slice_.file_meta.TransferSyntaxUID = HTJ2K

    error = page_files.read(edited(series, tmp_path / "packed", in_htj2k)).error
    assert "is compressed by a method that this page cannot decode (transfer syntax 1.2.840.10008.1.2.4.203)" in error


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLosslessProcess14", "JPEG2000Lossless"])
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_by_gdcm(signed: bool, syntax: str, series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    def unsigned(slice_: Any, _k: int) -> None:
        if not signed:
            set_pixels(slice_, (slice_.pixel_array + 2000).astype(np.uint16))
            slice_.RescaleIntercept = -2000

    folder = compressed_by_gdcm(edited(series, tmp_path / "plain", unsigned), syntax)
    np.testing.assert_array_equal(page_files.read(folder).voxels, voxels())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_transfer_syntaxes(syntax: Any, series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    def encode(slice_: Any, _k: int) -> None:
        if syntax == ExplicitVRBigEndian:
            slice_.PixelData = slice_.pixel_array.byteswap().tobytes()
        slice_.file_meta.TransferSyntaxUID = syntax

    folder = tmp_path / "encoded"
    folder.mkdir()
    for k, file in enumerate(sorted(series.iterdir())):
        slice_ = pydicom.dcmread(file)
        encode(slice_, k)
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(folder / file.name, slice_, implicit_vr=implicit, little_endian=little)
    np.testing.assert_array_equal(page_files.read(folder).voxels, voxels())


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_a_preamble(implicit: bool, series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for file in series.iterdir():
        slice_ = pydicom.dcmread(file)
        del slice_.file_meta
        slice_.preamble = None
        pydicom.dcmwrite(folder / file.name, slice_, implicit_vr=implicit, little_endian=True)
    np.testing.assert_array_equal(page_files.read(folder).voxels, voxels())


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm",
        "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm", "examples_overlay.dcm",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The pixel data is .* excess padding:UserWarning")
def test_files_of_scanners(name: str, page_files: PageFiles, tmp_path: Path) -> None:
    """Those of pydicom, by many programs."""
    shutil.copy(get_testdata_file(name, download=False), tmp_path / name)
    assert_as_python(page_files, tmp_path)


def lean(slice_: Any, k: int) -> None:
    place = np.array(slice_.ImagePositionPatient, float) + OBLIQUE[:, 1] * k
    slice_.ImagePositionPatient = [f"{x:.6f}" for x in place]


def turned(slice_: Any, k: int) -> None:
    if k == 5:
        slice_.ImageOrientationPatient = [f"{x:.6f}" for x in (*OBLIQUE[:, 1], *OBLIQUE[:, 0])]


def coarser(slice_: Any, k: int) -> None:
    if k == 0:
        slice_.PixelSpacing = [float(x) * 1.5 for x in slice_.PixelSpacing]


def without_a_position(slice_: Any, k: int) -> None:
    if k == 4:
        del slice_.ImagePositionPatient


def in_no_direction(slice_: Any, _k: int) -> None:
    slice_.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]


def in_color(slice_: Any, _k: int) -> None:
    slice_.SamplesPerPixel = 3


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda _, k: k not in (11, 12), "5.000 to 15.000 mm apart. Expected equal distances. Slices are missing"),
        (lean, "is sheared: its axes are not perpendicular, as with a tilted gantry. Resample it"),
        (turned, "have different orientations: 1 of 30 differ from the others"),
        (coarser, "have different pixel distances: 1 of 30 differ from the others"),
        (without_a_position, "has no position, orientation or pixel distance. Expected slices of a volume."),
        (in_no_direction, "has rows and columns that are not perpendicular"),
        (in_color, "is a color image. Expected one value per pixel."),
    ],
)
def test_refused(edit: Edit, sentence: str, series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    assert sentence in page_files.read(edited(series, tmp_path / "edited", edit)).error


def test_time_points(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    folder = edited(series, tmp_path / "dynamic", lambda s, _: setattr(s, "AcquisitionNumber", 1))

    def second(slice_: Any, _k: int) -> None:
        slice_.AcquisitionNumber, slice_.SOPInstanceUID = 2, generate_uid()

    for file in edited(series, tmp_path / "second", second).iterdir():
        shutil.copy(file, folder / f"second-{file.name}")
    error = page_files.read(folder).error
    assert "has 2 volumes at the same place, which differ in AcquisitionNumber (1, 2). Expected one volume." in error


def test_copies(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    folder = edited(series, tmp_path / "copies", same)
    shutil.copy(folder / "000.dcm", folder / "000 (1).dcm")
    assert_as_python(page_files, folder)
    twin = pydicom.dcmread(folder / "000.dcm")
    twin.SOPInstanceUID = generate_uid()
    twin.save_as(folder / "twin.dcm")
    assert "31 slices at 30 positions" in page_files.read(folder).error


def test_a_folder_of_an_archive(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    """Several series, a localizer, other objects and files, and a damaged slice."""
    folder = edited(series, tmp_path / "all", same)

    def other(number: int, **attributes: Any) -> Edit:
        def edit(slice_: Any, k: int) -> bool:
            slice_.SeriesInstanceUID, slice_.SeriesNumber = f"1.2.3.{number}", number
            for name, value in attributes.items():
                setattr(slice_, name, value)
            return k < 3

        return edit

    second = other(7, SeriesDescription="Lunge ü", SpecificCharacterSet="ISO_IR 192")
    for name, edit in (
        ("scout", other(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        ("sr", other(9, Modality="SR")),
        ("second", second),
    ):
        for file in edited(series, tmp_path / name, edit).iterdir():
            shutil.copy(file, folder / f"{name}-{file.name}")
    (folder / "notes.txt").write_text("a note")
    (folder / "Thumbs.db").write_bytes(b"\0" * 1000)
    found = page_files.read(folder)
    assert found.labels == ["CT, 30 slices", "CT, Lunge ü, 3 slices"]
    np.testing.assert_array_equal(found.voxels, voxels())
    chosen = page_files.read(folder, choice=1)
    np.testing.assert_array_equal(chosen.voxels, voxels()[:, :, :3])
    for file in folder.glob("second-*"):
        file.unlink()
    (folder / "cut.dcm").write_bytes((folder / "000.dcm").read_bytes()[:700])
    found = page_files.read(folder)
    assert found.labels == ["CT, 30 slices"]
    assert list(found.notes) == [
        "1 damaged files were skipped. Slices may be missing.",
        "There are 2 series. Used: CT, 30 slices. The others are localizers or pictures.",
    ]


def test_a_file_that_ends_within_its_pixels(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    folder = edited(series, tmp_path / "cut", same)
    file = folder / "004.dcm"
    file.write_bytes(file.read_bytes()[:-2000])
    assert page_files.read(folder).error.startswith("The pixels of 004.dcm cannot be read")


def test_an_object_without_an_image(page_files: PageFiles) -> None:
    file = Path(get_testdata_file("rtstruct.dcm", download=False))
    assert page_files.read(file).error == "rtstruct.dcm is a DICOM object without an image. Expected a DICOM series."
