"""DICOM segmentation objects, read by dcmqi, pydicom and highdicom."""

import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from helpers.batch import SHAPE, write_image, write_series
from helpers.dicom import edited, enhanced, sorted_slices
from helpers.shapes import ball
import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.images import ReadOptions, check_output, read_volume, write_segmentation


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder)
    return folder


@pytest.mark.slow
def test_a_dicom_seg_is_read_by_dcmtk(series: Path, tmp_path: Path) -> None:
    """With dcmqi, which uses DCMTK and shares no code with highdicom and pydicom, which wrote the file."""
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
        # Its result has only the slices between the first and the last voxel, so it is placed in the series' grid.
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


def test_names_of_patients_in_any_script(series: Path, tmp_path: Path) -> None:
    def in_japan(slice_: Any, _k: int) -> None:
        slice_.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        slice_.PatientName = "Yamada^Tarou=山田^太郎"

    volume = read_volume(edited(series, tmp_path / "japan", in_japan))
    write_segmentation(tmp_path / "out.dcm", {"腫瘍": ball(SHAPE, (12, 17, 15), 6)}, volume)
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert (written.PatientName, written.SegmentSequence[0].SegmentLabel) == ("Yamada^Tarou=山田^太郎", "腫瘍")


def test_a_series_without_a_frame_of_reference(series: Path, tmp_path: Path) -> None:
    def without_a_frame(slice_: Any, _k: int) -> None:
        del slice_.FrameOfReferenceUID

    volume = read_volume(edited(series, tmp_path / "bare", without_a_frame))
    with pytest.raises(BadImage, match=r"A DICOM SEG for the series .* cannot be written.*\.seg\.nrrd"):
        check_output(tmp_path / "out.dcm", volume)
    with pytest.raises(BadImage, match=r"cannot be written.*kept as .*out\.seg\.nrrd"):
        write_segmentation(tmp_path / "out.dcm", {"a": ball(SHAPE, (12, 17, 15), 6)}, volume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "out.seg.nrrd"]


def test_an_image_that_is_not_dicom(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd")
    with pytest.raises(
        BadImage, match=r"requires a DICOM image\. For this image, choose one of \.nii\.gz, \.seg\.nrrd, \.nrrd\."
    ):
        check_output(tmp_path / "out.dcm", read_volume(tmp_path / "a.nrrd"))


def place(path: Path) -> tuple[Any, Any]:
    """Return the voxels (i, j, k) of a SEG and their affine to LPS, read by highdicom in spatial order."""
    volume = hd.seg.segread(path).get_volume(segment_numbers=[1], combine_segments=True)
    return np.asarray(volume.array).transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]]


def positions(mask: Any, affine: Any) -> list[list[float]]:
    """Return the positions of a mask's voxels in LPS, rounded to a tenth of a millimeter."""
    return sorted(np.round(np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3], 1).tolist())


def anonymous(slice_: Any, _k: int) -> None:
    for name in ("StudyID", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "StudyTime"):
        if name in slice_:
            del slice_[name]
    slice_.PatientBirthDate, slice_.StudyDate, slice_.PatientSex = "ANON", "00000000", "U"


def without_thickness(slice_: Any, _k: int) -> None:
    slice_.SliceThickness = None


def with_a_wrong_distance(slice_: Any, _k: int) -> None:
    slice_.SpacingBetweenSlices = 9.0


def of_old_times(slice_: Any, _k: int) -> None:
    slice_.StudyDate, slice_.StudyTime, slice_.PatientBirthDate = "2026.01.01", "12:00:00", "19501332"
    slice_.PatientSex, slice_.PatientID = "male", None


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("edit", [anonymous, without_thickness, with_a_wrong_distance, of_old_times])
@pytest.mark.parametrize("multi_frame", [False, True])
def test_values_left_by_anonymizers(edit: Any, multi_frame: bool, series: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
        folder = edited(series, tmp_path / "in", edit)
        path = enhanced(folder, tmp_path / "a.dcm") if multi_frame else folder
    volume = read_volume(path)
    check_output(tmp_path / "out.dcm", volume)
    mask = ball(SHAPE, (12, 17, 15), 6)
    write_segmentation(tmp_path / "out.dcm", {"a": mask}, volume)
    found, affine = place(tmp_path / "out.dcm")
    assert positions(found, affine) == positions(mask, volume.ijk_to_lps)


def test_frames_in_another_order(series: Path, tmp_path: Path) -> None:
    """Each frame of the segmentation refers to the frame of the image at its position."""
    file = enhanced(series, tmp_path / "a.dcm", order=list(reversed(range(SHAPE[2]))))
    mask = np.zeros(SHAPE, bool)
    mask[5, 6, 7] = True
    write_segmentation(tmp_path / "out.dcm", {"a": mask}, read_volume(file))
    image, seg = pydicom.dcmread(file), pydicom.dcmread(tmp_path / "out.dcm")
    (frame,) = seg.PerFrameFunctionalGroupsSequence
    position = image.PerFrameFunctionalGroupsSequence[SHAPE[2] - 1 - 7].PlanePositionSequence[0].ImagePositionPatient
    np.testing.assert_allclose(
        np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float), np.array(position, float), atol=1e-3
    )
    assert np.argwhere(seg.pixel_array).tolist() == [[6, 5]]


def test_a_resampled_series(series: Path, tmp_path: Path) -> None:
    """The segmentation has the position of the segment, although no slice of the series is there."""
    holed = edited(series, tmp_path / "holed", lambda _, k: k != 11)
    volume = read_volume(holed, ReadOptions(resample=True))
    mask = np.zeros(SHAPE, bool)
    mask[5, 6, 11] = True
    write_segmentation(tmp_path / "out.dcm", {"a": mask}, volume)
    (frame,) = pydicom.dcmread(tmp_path / "out.dcm").PerFrameFunctionalGroupsSequence
    missing = pydicom.dcmread(sorted_slices(series)[11]).ImagePositionPatient
    np.testing.assert_allclose(
        np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float), np.array(missing, float), atol=1e-3
    )
