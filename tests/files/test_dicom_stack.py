"""Slices and frames with different attributes, against pydicom, SimpleITK and dcm2niix."""

from collections.abc import Callable
from pathlib import Path
import shutil
import subprocess
import sys
from typing import Any

from helpers.batch import OBLIQUE, ORIGIN, SHAPE, SPACING, voxels, write_series
from helpers.dicom import edited, enhanced, set_pixels, sorted_slices
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid
import pytest
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.images import ReadOptions, Volume, read_volume

#: A series is a folder, and the same slices can be one multi-frame file.
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder)
    return folder


@pytest.fixture(params=["series", "multi-frame"])
def make(request: pytest.FixtureRequest, series: Path, tmp_path: Path) -> Make:
    """Make a series or a multi-frame file with edited slices."""
    if request.param == "series":
        return lambda edit, name="edited": edited(series, tmp_path / name, edit)
    return lambda edit, name="edited": enhanced(series, tmp_path / f"{name}.dcm", edit)


def same(slice_: Any, k: int) -> None:
    pass


def check_place(volume: Volume) -> None:
    np.testing.assert_allclose(volume.ijk_to_lps[:3, 3], ORIGIN, atol=1e-4)
    np.testing.assert_allclose(volume.spacing, SPACING, atol=1e-4)
    np.testing.assert_allclose(volume.direction, OBLIQUE, atol=1e-4)


def test_voxels_are_read_as_written(make: Make) -> None:
    volume = read_volume(make(same))
    np.testing.assert_array_equal(volume.voxels, voxels())
    check_place(volume)
    assert volume.notes == ()


def test_frames_in_any_order(series: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(SHAPE[2]).tolist()
    volume = read_volume(enhanced(series, tmp_path / "a.dcm", order=order))
    np.testing.assert_array_equal(volume.voxels, voxels())
    check_place(volume)


def test_a_folder_with_a_multi_frame_file(series: Path, tmp_path: Path) -> None:
    enhanced(series, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, voxels())


@pytest.mark.parametrize("first", [1.0, 0.25])
def test_each_slice_has_its_own_slope(first: float, make: Make) -> None:
    """As in PET. A slope of 1 in the first slice does not make the others whole numbers."""
    slopes = [first, *(0.001 * (k + 1) for k in range(1, SHAPE[2]))]

    def rescale(slice_: Any, k: int) -> None:
        slice_.RescaleSlope, slice_.RescaleIntercept = f"{slopes[k]:.6f}", "0"

    found = read_volume(make(rescale)).voxels
    np.testing.assert_allclose(found, voxels() * np.array(slopes), rtol=1e-6)


def test_each_slice_has_its_own_intercept(make: Make) -> None:
    def rescale(slice_: Any, k: int) -> None:
        slice_.RescaleIntercept = 0 if k == 0 else -1024

    expected = voxels().astype(int) - 1024
    expected[:, :, 0] += 1024
    np.testing.assert_array_equal(read_volume(make(rescale)).voxels, expected)


def test_unsigned_slices_among_signed_ones(series: Path, tmp_path: Path) -> None:
    def unsigned(slice_: Any, k: int) -> None:
        if k % 3 == 0:
            set_pixels(slice_, (slice_.pixel_array + 2000).astype(np.uint16))
            slice_.RescaleIntercept = -2000
        else:
            slice_.RescaleIntercept = 0

    np.testing.assert_array_equal(read_volume(edited(series, tmp_path / "mixed", unsigned)).voxels, voxels())


def test_values_beyond_the_stored_type(make: Make) -> None:
    def rescale(slice_: Any, _k: int) -> None:
        slice_.RescaleSlope, slice_.RescaleIntercept = 100, 7

    np.testing.assert_array_equal(read_volume(make(rescale)).voxels, voxels().astype(int) * 100 + 7)


def test_the_voxels_of_a_usual_ct_have_two_bytes(make: Make) -> None:
    def rescale(slice_: Any, k: int) -> None:
        pixels = np.zeros((slice_.Rows, slice_.Columns), np.uint16)
        pixels[0, 0] = 4095 if k % 2 else 100
        set_pixels(slice_, pixels)
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024 if k % 3 else 0

    found = read_volume(make(rescale)).voxels
    assert found.dtype == np.int16
    assert (found.min(), found.max()) == (-1024, 4095)


def test_the_preamble_may_be_the_header_of_a_tiff_file(series: Path, tmp_path: Path) -> None:
    """Such a file is for programs of both formats. Part 10 of DICOM permits it."""
    for file in shutil.copytree(series, tmp_path / "dual").iterdir():
        content = file.read_bytes()
        file.write_bytes(b"II*\0" + content[4:])
    np.testing.assert_array_equal(read_volume(tmp_path / "dual").voxels, voxels())


def test_a_lookup_table_of_values(series: Path, tmp_path: Path) -> None:
    def table(slice_: Any, _k: int) -> None:
        set_pixels(slice_, (slice_.pixel_array > 0).astype(np.uint16))
        del slice_.RescaleSlope, slice_.RescaleIntercept
        item = pydicom.Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [2, 0, 16], "HU", [500, 900]
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
        slice_.ModalityLUTSequence = [item]

    found = read_volume(edited(series, tmp_path / "table", table)).voxels
    np.testing.assert_array_equal(found, np.where(voxels() > 0, 900, 500))


def turn(slice_: Any) -> None:
    slice_.ImageOrientationPatient = [f"{x:.6f}" for x in (*OBLIQUE[:, 1], *OBLIQUE[:, 0])]


def coarser(slice_: Any) -> None:
    slice_.PixelSpacing = [float(x) * 1.5 for x in slice_.PixelSpacing]


def smaller(slice_: Any) -> None:
    set_pixels(slice_, slice_.pixel_array[:20])
    slice_.Rows = 20


def mirrored(slice_: Any) -> None:
    slice_.ImageOrientationPatient = [-float(x) for x in slice_.ImageOrientationPatient[:3]] + [
        float(x) for x in slice_.ImageOrientationPatient[3:]
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (turn, "different orientations: 1 of 30 differ"),
        (mirrored, "different orientations"),
        (coarser, "different pixel distances: 1 of 30"),
        (smaller, "different numbers of rows and columns: 1 of 30"),
    ],
)
@pytest.mark.parametrize("odd", [0, 13])
def test_a_slice_that_differs_from_the_others(
    change: Callable[[Any], None], sentence: str, odd: int, series: Path, tmp_path: Path
) -> None:
    folder = edited(series, tmp_path / "odd", lambda slice_, k: change(slice_) if k == odd else None)
    with pytest.raises(BadImage, match=sentence) as caught:
        read_volume(folder)
    assert sorted_slices(series)[odd].name in str(caught.value)


@pytest.mark.parametrize("change", [turn, coarser])
def test_a_frame_that_differs_from_the_others(change: Callable[[Any], None], series: Path, tmp_path: Path) -> None:
    file = enhanced(series, tmp_path / "a.dcm", lambda frame, k: change(frame) if k == 9 else None)
    with pytest.raises(BadImage, match="1 of 30 differ"):
        read_volume(file)


def test_missing_slices(make: Make) -> None:
    holed = make(lambda _, k: k not in (11, 12))
    with pytest.raises(BadImage, match=r"5\.000 to 15\.000 mm apart\. .* use --resample"):
        read_volume(holed)
    volume = read_volume(holed, ReadOptions(resample=True))
    expected = voxels().astype(float)
    expected[:, :, 11] = expected[:, :, 10] * 2 / 3 + expected[:, :, 13] / 3
    expected[:, :, 12] = expected[:, :, 10] / 3 + expected[:, :, 13] * 2 / 3
    np.testing.assert_allclose(volume.voxels, expected, atol=0.5 + 1e-6)
    check_place(volume)
    assert "interpolated" in volume.notes[0]


def test_slices_that_are_nearly_at_one_position(make: Make) -> None:
    """Even distances as small as the smallest one would fill the memory."""

    def shift(slice_: Any, k: int) -> None:
        if k == 1:
            place = np.array(ORIGIN) + OBLIQUE[:, 2] * 0.05
            slice_.ImagePositionPatient = [f"{x:.6f}" for x in place]

    with pytest.raises(BadImage, match=r"too uneven: some are only 0\.05 mm apart.* 2,900 slices in place of 30\."):
        read_volume(make(shift), ReadOptions(resample=True))


def test_positions_rounded_to_a_tenth_of_a_millimeter(series: Path, tmp_path: Path) -> None:
    """Slices of 0.625 mm are then 0.6 and 0.7 mm apart."""

    def thin(slice_: Any, k: int) -> None:
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [0, 0, f"{k * 0.625:.1f}"]

    volume = read_volume(edited(series, tmp_path / "thin", thin))
    assert volume.spacing[2] == pytest.approx(0.625, abs=0.002)


def lean(slice_: Any, k: int) -> None:
    place = np.array(slice_.ImagePositionPatient, float) + OBLIQUE[:, 1] * k
    slice_.ImagePositionPatient = [f"{x:.6f}" for x in place]


def test_a_tilted_gantry(make: Make) -> None:
    leaning = make(lean)
    with pytest.raises(BadImage, match=r"is sheared.*--resample"):
        read_volume(leaning)
    volume = read_volume(leaning, ReadOptions(resample=True))
    assert "resampled" in volume.notes[0]
    np.testing.assert_allclose(volume.spacing, SPACING, atol=1e-4)
    axes = volume.direction.T @ volume.direction
    np.testing.assert_allclose(axes, np.eye(3), atol=1e-6)
    # Original voxels keep value and position. Interpolated values differ by no more than neighbors.
    source = voxels().astype(float)
    for k in (0, 8, 20, 29):
        i, j = 20, 18
        at = np.array(ORIGIN) + OBLIQUE @ (np.array([i, j, k]) * SPACING) + OBLIQUE[:, 1] * k
        a, b, c = volume.index_of((at[0], at[1], at[2]))
        assert (a, c) == (i, k)
        near = source[i, max(0, j - 1) : j + 2, k]
        assert near.min() - 1 <= volume.voxels[a, b, c] <= near.max() + 1


@pytest.fixture
def dynamic(series: Path, tmp_path: Path) -> Path:
    """A series with two time points. The second one is brighter by 1."""
    folder = edited(series, tmp_path / "dynamic", lambda s, _: setattr(s, "AcquisitionNumber", 1))

    def second(slice_: Any, _k: int) -> None:
        set_pixels(slice_, slice_.pixel_array + np.int16(1))
        slice_.AcquisitionNumber, slice_.SOPInstanceUID = 2, generate_uid()

    for file in edited(series, tmp_path / "second", second).iterdir():
        shutil.copy(file, folder / f"second-{file.name}")
    return folder


def test_time_points(dynamic: Path) -> None:
    with pytest.raises(BadImage, match=r"has 2 volumes at the same place, which differ in AcquisitionNumber \(1, 2\)"):
        read_volume(dynamic)
    for time in (1, 2):
        found = read_volume(dynamic, ReadOptions(time=time)).voxels
        np.testing.assert_array_equal(found, voxels() + np.int16(time - 1))
    with pytest.raises(BadImage, match="Choose one of 1 to 2"):
        read_volume(dynamic, ReadOptions(time=3))


def test_interleaved_time_points_of_frames(series: Path, dynamic: Path, tmp_path: Path) -> None:
    def number(frame: Any, _k: int) -> None:
        frame.TemporalPositionIndex = frame.AcquisitionNumber

    file = enhanced(dynamic, tmp_path / "a.dcm", number, order=np.random.default_rng(1).permutation(60).tolist())
    with pytest.raises(BadImage, match="differ in TemporalPositionIndex"):
        read_volume(file)
    np.testing.assert_array_equal(read_volume(file, ReadOptions(time=2)).voxels, voxels() + np.int16(1))


def test_an_acquisition_that_was_stopped(dynamic: Path) -> None:
    """The second time point lacks slices. The first one is whole."""
    for file in sorted(dynamic.glob("second-*"))[:5]:
        file.unlink()
    np.testing.assert_array_equal(read_volume(dynamic, ReadOptions(time=1)).voxels, voxels())
    with pytest.raises(BadImage, match=r"Choose 1 \(--time N, .*\) instead of 2"):
        read_volume(dynamic, ReadOptions(time=2))


def test_two_indistinguishable_slices_at_one_position(series: Path, tmp_path: Path) -> None:
    folder = edited(series, tmp_path / "again", same)
    twin = pydicom.dcmread(folder / "000.dcm")
    twin.SOPInstanceUID = generate_uid()
    twin.save_as(folder / "twin.dcm")
    with pytest.raises(BadImage, match=r"31 slices at 30 positions.*Remove duplicate files"):
        read_volume(folder)


def test_copies_of_files_are_skipped(series: Path, tmp_path: Path) -> None:
    folder = edited(series, tmp_path / "copies", same)
    shutil.copy(folder / "000.dcm", folder / "000 (1).dcm")
    shutil.copy(folder / "007.dcm", folder / "Copy of 007.dcm")
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.voxels, voxels())
    assert volume.notes == ("2 copies of slices were skipped.",)


def test_the_same_uid_in_every_file(series: Path, tmp_path: Path) -> None:
    """Some anonymizers write it. The slices are complete."""
    folder = edited(series, tmp_path / "anonymous", lambda s, _: setattr(s, "SOPInstanceUID", "1.2.3"))
    np.testing.assert_array_equal(read_volume(folder).voxels, voxels())


@pytest.mark.parametrize(
    ("cut", "sentence"), [(1, r"004\.dcm"), (2000, r"004\.dcm"), (3500, "1 empty or damaged files were skipped")]
)
def test_missing_pixels(cut: int, sentence: str, series: Path, tmp_path: Path) -> None:
    folder = edited(series, tmp_path / "cut", same)
    file = folder / "004.dcm"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(BadImage, match=sentence):
        read_volume(folder)


def test_missing_frames(series: Path, tmp_path: Path) -> None:
    file = enhanced(series, tmp_path / "a.dcm")
    image = pydicom.dcmread(file)
    image.PixelData = image.PixelData[: -3 * 2 * SHAPE[0] * SHAPE[1]]
    image.save_as(file)
    with pytest.raises(BadImage, match=r"a\.dcm"):
        read_volume(file)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices(syntax: Any, series: Path, tmp_path: Path) -> None:
    folder = edited(series, tmp_path / "packed", lambda s, _: s.compress(syntax, generate_instance_uid=False))
    np.testing.assert_array_equal(read_volume(folder).voxels, voxels())


def test_lossless_jpeg(series: Path, tmp_path: Path) -> None:
    """The most frequent compression in archives, written by GDCM."""
    import gdcm

    (tmp_path / "jpeg").mkdir()
    for file in series.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(tmp_path / "jpeg" / file.name))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    np.testing.assert_array_equal(read_volume(tmp_path / "jpeg").voxels, voxels())


def on_grid(image: Any, volume: Volume) -> npt.NDArray[Any]:
    """Return the voxels of a nibabel image on the grid of a volume."""
    to_other = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ image.affine) @ volume.ijk_to_lps
    ijk = np.indices(volume.voxels.shape).reshape(3, -1)
    at = to_other[:3, :3] @ ijk + to_other[:3, 3:]
    np.testing.assert_allclose(at, np.rint(at), atol=1e-2)
    i, j, k = np.rint(at).astype(int)
    return np.asarray(image.dataobj)[i, j, k].reshape(volume.voxels.shape)


@pytest.mark.parametrize("kind", ["CT", "PET", "multi-frame"])
def test_dcm2niix_reads_the_same(kind: str, series: Path, tmp_path: Path) -> None:
    def rescale(slice_: Any, k: int) -> None:
        if kind == "PET":
            slice_.RescaleSlope, slice_.Modality = 1 if k == 0 else f"{0.5 + k / 7:.6f}", "PT"
        else:
            slice_.RescaleIntercept = -1024

    if kind in ("CT", "PET"):
        path = edited(series, tmp_path / "in", rescale)
    else:
        (tmp_path / "in").mkdir()
        path = enhanced(series, tmp_path / "in" / "a.dcm", rescale)
    out = tmp_path / "out"
    out.mkdir()
    program = Path(sys.executable).with_name("dcm2niix")
    command = [program, "-b", "n", "-z", "n", "-f", "a", "-o", out, tmp_path / "in"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
    (file,) = out.glob("*.nii")
    volume = read_volume(path)
    np.testing.assert_allclose(on_grid(nib.load(file), volume), volume.voxels, rtol=1e-5, atol=1e-3)


def test_simpleitk_reads_the_same(series: Path) -> None:
    image = sitk.ReadImage([str(file) for file in sorted_slices(series)])
    volume = read_volume(series)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), volume.voxels)
    np.testing.assert_allclose(image.GetOrigin(), volume.ijk_to_lps[:3, 3], atol=1e-6)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), volume.direction, atol=1e-6)


@pytest.mark.parametrize("change", [1, -1, -3])
def test_as_many_positions_as_frames(change: int, series: Path, tmp_path: Path) -> None:
    """A file with positions of more or fewer slices than it has."""
    file = enhanced(series, tmp_path / "a.dcm")
    image = pydicom.dcmread(file)
    groups = list(image.PerFrameFunctionalGroupsSequence)
    image.PerFrameFunctionalGroupsSequence = groups[:change] if change < 0 else [*groups, *groups[-change:]]
    image.save_as(file)
    with pytest.raises(BadImage, match=rf"a\.dcm has {SHAPE[2]} frames, but the positions of {SHAPE[2] + change}"):
        read_volume(file)


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_places_with_another_number_of_values(name: str, count: int, make: Make) -> None:
    if (name, count) == ("PixelSpacing", 2):
        pytest.skip("these are as many as there must be")

    def change(slice_: Any, k: int) -> None:
        if k == 3:
            slice_[name].value = ([1.0, 0.5, 0.0] * 2)[:count]

    with pytest.raises(BadImage, match=r"(damaged DICOM header|invalid position)"):
        read_volume(make(change))


@pytest.mark.parametrize("missing", ["LUTData", "LUTDescriptor", "both"])
def test_a_damaged_lookup_table(missing: str, series: Path, tmp_path: Path) -> None:
    def change(slice_: Any, k: int) -> None:
        if k == 3:
            table = pydicom.Dataset()
            if missing != "LUTDescriptor":
                table.add_new("LUTDescriptor", "US", [4, 0, 16])
            if missing != "LUTData":
                table.add_new("LUTData", "US", [0, 1, 2, 3])
            if missing == "both":
                table.clear()
            slice_.ModalityLUTSequence = [table]

    with pytest.raises(BadImage, match=r"The pixels of .*\.dcm cannot be read"):
        read_volume(edited(series, tmp_path / "edited", change))
