"""Files of batch besides its table: markups of 3D Slicer, DICOM series, and DICOM SEG."""

from collections.abc import Callable
import json
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import sys
from typing import Any

from helpers.batch import OBLIQUE, ORIGIN, SHAPE, SLICER_FILES, SPACING, voxels, write_image, write_series
from helpers.shapes import ball
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage, InvalidTable
from nninteractive_ws.files.images import Volume, read_volume, write_segmentation
from nninteractive_ws.files.markups import Lasso, read_markups, smooth
from nninteractive_ws.geometry import Box

#: Tilted as the image is, so that boxes and curves lie along its voxels.
Place = Callable[[float, float, float], list[float]]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    path = tmp_path_factory.mktemp("image") / "a.nii.gz"
    write_image(path)
    return read_volume(path)


@pytest.fixture
def at(volume: Volume) -> Place:
    """A position in voxels, in LPS millimeters."""
    return lambda *ijk: [float(x) for x in (volume.ijk_to_lps @ (*ijk, 1))[:3]]


def markups(path: Path, kind: str, points: list[list[float]], system: str = "LPS", **more: Any) -> Path:
    """A file in the schema that 3D Slicer documents; positions are given in LPS."""
    sign = 1 if system == "LPS" else -1
    controls = [{"position": [sign * x, sign * y, z], "positionStatus": "defined"} for x, y, z in points]
    markup = {"type": kind, "coordinateSystem": system, "controlPoints": controls, **more}
    path.write_text(json.dumps({"markups": [markup]}))
    return path


def roi(path: Path, center: list[float], axes: Any, size: tuple[float, ...]) -> Path:
    """A box whose axes are the columns of ``axes``."""
    turned = np.asarray(axes).ravel().tolist()
    return markups(path, "ROI", [center], center=center, orientation=turned, size=list(size))


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_points(volume: Volume, at: Place, tmp_path: Path, system: str) -> None:
    path = markups(tmp_path / "p.mrk.json", "Fiducial", [at(12, 17, 15), at(3.4, 20.6, 7)], system)
    content = json.loads(path.read_text())
    content["markups"][0]["controlPoints"].insert(1, {"position": "", "positionStatus": "undefined"})
    path.write_text(json.dumps(content))
    assert read_markups(path, volume) == [(12, 17, 15), (3, 21, 7)]


def test_a_box_along_the_voxels(volume: Volume, at: Place, tmp_path: Path) -> None:
    size = (6.2 * SPACING[0], 4.2 * SPACING[1], 0.1)
    expected = Box((9, 18, 15), (16, 23, 16))
    assert read_markups(roi(tmp_path / "r.mrk.json", at(12, 20, 15.2), OBLIQUE, size), volume) == [expected]
    # The same box with its axes named in another order, one of them reversed.
    turned = np.stack((OBLIQUE[:, 2], -OBLIQUE[:, 0], OBLIQUE[:, 1]), axis=1)
    again = roi(tmp_path / "s.mrk.json", at(12, 20, 15.2), turned, (size[2], size[0], size[1]))
    assert read_markups(again, volume) == [expected]


def test_a_box_is_cut_at_the_border(volume: Volume, at: Place, tmp_path: Path) -> None:
    path = roi(tmp_path / "r.mrk.json", at(0, 0, 0), OBLIQUE, (9 * SPACING[0], 5 * SPACING[1], 3 * SPACING[2]))
    assert read_markups(path, volume) == [Box((0, 0, 0), (5, 3, 2))]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_closed_curve_is_filled_in_its_slice(volume: Volume, at: Place, tmp_path: Path, axis: int) -> None:
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.insert(np.stack((18 + 9 * np.cos(turns), 16 + 9 * np.sin(turns)), 1), axis, 14.3, axis=1)
    path = markups(tmp_path / "c.mrk.json", "ClosedCurve", [at(*p) for p in circle.tolist()])
    (lasso,) = read_markups(path, volume)
    assert isinstance(lasso, Lasso)
    assert lasso.box.pairs[axis] == (14, 15)
    filled = np.zeros(SHAPE, bool)
    filled[lasso.box.slices] = lasso.mask
    center = np.insert([18.0, 16.0], axis, 14)
    layer = tuple(slice(14, 15) if a == axis else slice(None) for a in range(3))
    sure, possible = (ball(SHAPE, center.tolist(), 9 + margin)[layer] for margin in (-0.2, 0.2))
    assert not (sure & ~filled[layer]).any()
    assert not (filled[layer] & ~possible).any()


def test_a_curve_beyond_the_border_is_cut(volume: Volume, at: Place, tmp_path: Path) -> None:
    corners = [(-10, -10, 5), (10, -10, 5), (10, 10, 5), (-10, 10, 5)]
    (lasso,) = read_markups(markups(tmp_path / "c.mrk.json", "ClosedCurve", [at(*c) for c in corners]), volume)
    assert isinstance(lasso, Lasso)
    assert lasso.box.start == (0, 0, 5)
    assert lasso.mask[:10, :10].all()


def test_what_cannot_be_used_is_said(volume: Volume, at: Place, tmp_path: Path) -> None:
    path = tmp_path / "m.mrk.json"

    def refused(message: str) -> None:
        with pytest.raises(InvalidTable) as raised:
            read_markups(path, volume)
        assert message in str(raised.value)
        assert str(path) in str(raised.value)

    refused("cannot be read (No such file or directory)")
    path.write_text("{")
    refused("is not a markups file")
    path.write_text('{"markups": [{"type": "Fiducial"}]}')
    refused("is not a markups file")
    markups(path, "Fiducial", [])
    refused("has no point, ROI or closed curve")
    markups(path, "Line", [at(1, 2, 3), at(4, 5, 6)])
    refused("the markup type Line is not supported")
    markups(path, "Fiducial", [at(1, 2, 3)], coordinateSystem="IJK")
    refused("the coordinate system is IJK")
    markups(path, "Fiducial", [[float("nan")] * 3])
    refused("not finite")
    roi(path, at(12, 20, 15), np.eye(3), (20, 20, 20))
    refused("the ROI is rotated by 20 degrees")
    roi(path, at(-40, 20, 15), OBLIQUE, (20, 20, 20))
    refused("the ROI is outside the volume")
    markups(path, "ClosedCurve", [at(1, 2, 3), at(4, 5, 3)])
    refused("has 2 points. Expected at least 3")
    markups(path, "ClosedCurve", [at(5, 5, 3), at(25, 5, 9), at(25, 25, 15), at(5, 25, 9)])
    refused("6.0 voxels away from the slice k = 9")
    markups(path, "ClosedCurve", [at(5.2, 5.2, 3), at(5.4, 5.2, 3), at(5.3, 5.4, 3)])
    refused("encloses no voxel of the volume")


@pytest.mark.slicer_core
@pytest.mark.slow
def test_files_and_curves_of_the_real_slicer(volume: Volume, at: Place, tmp_path: Path) -> None:
    """Run by itself: slicer-core's libraries and this process's are better kept apart."""
    shapes = {"inside": at(12, 17, 15), "corners": [at(5, 5, 9), at(25, 7, 9), at(30, 25, 9), at(18, 20, 9)]}
    (tmp_path / "shapes.json").write_text(json.dumps({**shapes, "axes": OBLIQUE.tolist()}))
    done = subprocess.run(
        [sys.executable, str(SLICER_FILES), "write", str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert read_markups(tmp_path / "points.mrk.json", volume) == [(12, 17, 15)]
    assert read_markups(tmp_path / "roi.mrk.json", volume) == [Box((11, 15, 14), (14, 20, 17))]
    (lasso,) = read_markups(tmp_path / "curve.mrk.json", volume)
    assert isinstance(lasso, Lasso)
    assert lasso.box.pairs[2] == (9, 10)
    curve = np.load(tmp_path / "curve.npy")  # as Slicer draws it, the first point again at its end
    np.testing.assert_allclose(smooth(np.array(shapes["corners"])), curve[:-1], atol=1e-4)


# ---- DICOM --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder)
    return folder


def test_a_series_is_read_in_the_order_of_its_slices(series: Path) -> None:
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.voxels, voxels())
    np.testing.assert_allclose(volume.ijk_to_lps[:3, 3], ORIGIN, atol=1e-6)
    np.testing.assert_allclose(volume.spacing, SPACING, atol=1e-6)
    np.testing.assert_allclose(volume.direction, OBLIQUE, atol=1e-6)
    instances = [pydicom.dcmread(file).InstanceNumber for file in volume.series]
    assert instances == list(range(SHAPE[2], 0, -1))


def edited(series: Path, folder: Path, edit: Callable[[pydicom.Dataset, int], object]) -> Path:
    folder.mkdir()
    for k, file in enumerate(read_volume(series).series):
        slice_ = pydicom.dcmread(file)
        if edit(slice_, k) is not False:
            slice_.save_as(folder / Path(file).name)
    return folder


def test_a_series_that_is_no_even_upright_stack_is_refused(series: Path, tmp_path: Path) -> None:
    missing = edited(series, tmp_path / "missing", lambda _, k: k != 11)
    with pytest.raises(BadImage, match=r"5.000 to 10.000 mm apart. Expected equal distances"):
        read_volume(missing)

    def lean(slice_: pydicom.Dataset, k: int) -> None:
        place = np.array(slice_.ImagePositionPatient, float) + OBLIQUE[:, 1] * k
        slice_.ImagePositionPatient = [f"{x:.6f}" for x in place]

    with pytest.raises(BadImage, match="sheared against each other"):
        read_volume(edited(series, tmp_path / "leaning", lean))

    def another(slice_: pydicom.Dataset, k: int) -> None:
        slice_.SeriesInstanceUID = f"1.2.3.{k % 2}"

    again = edited(series, tmp_path / "again", lambda _, k: None)
    shutil.copy(again / "000.dcm", again / "copy.dcm")
    with pytest.raises(BadImage, match="1 slices at positions of other slices"):
        read_volume(again)
    with pytest.raises(BadImage, match="contains 2 DICOM series"):
        read_volume(edited(series, tmp_path / "two", another))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImage, match="contains no DICOM series"):
        read_volume(tmp_path / "empty")


@pytest.mark.slow
def test_a_dicom_seg_is_read_by_dcmtk(series: Path, tmp_path: Path) -> None:
    """By dcmqi, which stands on DCMTK: no code in common with highdicom and pydicom, which wrote it."""
    volume = read_volume(series)
    masks = {"liver": ball(SHAPE, (12, 17, 15), 6), "Läsion 腫瘍": ball(SHAPE, (14, 17, 20), 3)}
    grid = sitk.ReadImage(volume.series)
    colors = {"liver": (0.9, 0.2, 0.1), "Läsion 腫瘍": (0.1, 0.3, 0.8)}
    write_segmentation(tmp_path / "out.dcm", masks, volume, colors, "demo")
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [program, "--inputDICOM", tmp_path / "out.dcm", "--outputDirectory", tmp_path, "--outputType", "nrrd"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
    described = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]
    for number, (name, mask) in enumerate(masks.items(), start=1):
        (segment,) = (s for group in described for s in group if s["labelID"] == number)
        assert segment["SegmentLabel"] == name
        assert segment["SegmentAlgorithmName"] == "demo"
        np.testing.assert_allclose(segment["recommendedDisplayRGBValue"], np.array(colors[name]) * 255, atol=3)
        read = sitk.ReadImage(str(tmp_path / f"{number}.nrrd"))
        # It keeps only the slices between the first and the last with a voxel: put it into the series' grid.
        read = sitk.Resample(read, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0, read.GetPixelID())
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read).transpose() != 0, mask)


def test_a_dicom_seg_belongs_to_its_series(series: Path, tmp_path: Path) -> None:
    volume = read_volume(series)
    write_segmentation(tmp_path / "out.dcm", {"nothing": np.zeros(SHAPE, bool)}, volume)
    seg, source = pydicom.dcmread(tmp_path / "out.dcm"), pydicom.dcmread(volume.series[0])
    for tag in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[tag].value == source[tag].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {pydicom.dcmread(file).SOPInstanceUID for file in volume.series}


def test_the_patient_s_name_survives_in_whatever_script(series: Path, tmp_path: Path) -> None:
    def in_japan(slice_: pydicom.Dataset, _k: int) -> None:
        slice_.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        slice_.PatientName = "Yamada^Tarou=山田^太郎"

    volume = read_volume(edited(series, tmp_path / "japan", in_japan))
    write_segmentation(tmp_path / "out.dcm", {"腫瘍": ball(SHAPE, (12, 17, 15), 6)}, volume)
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert (written.PatientName, written.SegmentSequence[0].SegmentLabel) == ("Yamada^Tarou=山田^太郎", "腫瘍")


def test_what_lacks_something_for_a_dicom_seg_is_said(series: Path, tmp_path: Path) -> None:
    def without_a_frame(slice_: pydicom.Dataset, _k: int) -> None:
        del slice_.FrameOfReferenceUID

    bare = edited(series, tmp_path / "bare", without_a_frame)
    mask = ball(SHAPE, (12, 17, 15), 6)
    with pytest.raises(BadImage, match=r"A DICOM SEG for the series .* cannot be written"):
        write_segmentation(tmp_path / "out.dcm", {"a": mask}, read_volume(bare))
    write_image(tmp_path / "a.nrrd")
    with pytest.raises(
        BadImage, match=r"requires a DICOM series\. For this image, choose one of \.nii\.gz, \.seg\.nrrd, \.nrrd\."
    ):
        write_segmentation(tmp_path / "out.dcm", {"a": mask}, read_volume(tmp_path / "a.nrrd"))
    assert list(tmp_path.glob("*.dcm")) == []
    assert list(tmp_path.glob(".*")) == []


# ---- files that cannot be written -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.seg.nrrd"])
def test_half_a_file_is_no_file(volume: Volume, tmp_path: Path, name: str) -> None:
    """A limit on the size of files stands for a disk that is full: ITK says nothing of either for NIfTI."""
    noise = np.random.default_rng(0).integers(0, 2, SHAPE, np.uint8).astype(bool)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(OSError, match=rf"{name} cannot be written \("):
            write_segmentation(tmp_path / name, {"a": noise}, volume)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
