"""Segmentations saved by the page, read by slicerio, nibabel, SimpleITK and highdicom."""

from pathlib import Path
import subprocess
import sys
from typing import Any

from helpers.batch import SHAPE as SERIES_SHAPE
from helpers.batch import write_series
from helpers.dicom import edited, enhanced
from helpers.image_files import write
from helpers.shapes import ball
from helpers.web_files import PageFiles
import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import slicerio

from nninteractive_ws.files.images import read_label_map, read_volume, write_segmentation
from nninteractive_ws.files.volume import Volume, check_same_grid

SHAPE = (6, 7, 8)
COLORS = {
    "liver": (0.9, 0.25, 0.125),
    "Läsion 腫瘍": (0.1, 0.3, 0.8),
    "spleen": (0.0, 1.0, 0.5),
    "none": (1.0, 1.0, 1.0),
}


@pytest.fixture
def masks() -> dict[str, Any]:
    """Three segments, of which the first two overlap, and an empty one."""
    random = np.random.default_rng(2).random((3, *SHAPE))
    first, second, third = random[0] < 0.3, random[1] < 0.3, np.zeros(SHAPE, bool)
    third[5, 6, 1:4] = True
    first[5, 6] = second[5, 6] = False
    assert (first & second).any()
    return dict(zip(COLORS, (first, second, third, None), strict=True))


def oblique() -> Any:
    """Return a left-handed affine to RAS."""
    rotation = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.7, 1.3, -2.9)
    affine[:3, 3] = (-101.5, 33.25, 7.125)
    return affine


@pytest.mark.parametrize("affine", [np.diag([2.0, 3.0, 4.0, 1.0]), oblique()])
def test_seg_nrrd(affine: Any, page_files: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
    image, out = tmp_path / "a.nii.gz", tmp_path / "a.seg.nrrd"
    write(image, np.zeros(SHAPE, np.int16), affine)
    page_files.save(out, masks, COLORS, image)
    segmentation = slicerio.read_segmentation(out)
    np.testing.assert_allclose(segmentation["ijkToLPS"], read_volume(image).ijk_to_lps, atol=1e-5)
    # slicerio reads ASCII only, and ITK reads the UTF-8 of 3D Slicer.
    fields = sitk.ReadImage(out)
    assert [fields.GetMetaData(f"Segment{number}_Name") for number in range(len(masks))] == list(masks)
    assert [(s["layer"], s["labelValue"]) for s in segmentation["segments"]] == [(0, 1), (1, 1), (0, 2), (0, 3)]
    assert len({s["id"] for s in segmentation["segments"]}) == len(masks)
    for segment, (name, mask) in zip(segmentation["segments"], masks.items(), strict=True):
        np.testing.assert_allclose(segment["color"], COLORS[name])
        found = slicerio.segment_mask(segmentation, segment["id"])
        np.testing.assert_array_equal(found, np.zeros(SHAPE, bool) if mask is None else mask)
        if mask is not None:
            ends = [index for axis in np.nonzero(mask) for index in (axis.min(), axis.max())]
            assert segment["extent"] == ends


def test_seg_nrrd_of_one_layer(page_files: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "a.mha", np.zeros(SHAPE, np.int16))
    name = "a\\nb"
    page_files.save(tmp_path / "a.seg.nrrd", {name: masks["liver"]}, {name: COLORS["liver"]}, tmp_path / "a.mha")
    image = sitk.ReadImage(tmp_path / "a.seg.nrrd")
    assert image.GetMetaData("Segment0_Name") == name  # read by Teem, as in 3D Slicer
    assert (image.GetDimension(), image.GetNumberOfComponentsPerPixel()) == (3, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), masks["liver"])
    check_same_grid(read_label_map(tmp_path / "a.seg.nrrd"), read_volume(tmp_path / "a.mha"), "a.seg.nrrd")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
@pytest.mark.parametrize("affine", [np.diag([2.0, 3.0, 4.0, 1.0]), oblique()])
def test_nifti(affine: Any, name: str, page_files: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
    """The label map is the one that the Python client writes."""
    image, out, expected = tmp_path / name, tmp_path / "out.nii.gz", tmp_path / "expected.nii.gz"
    write(image, np.zeros(SHAPE, np.int16), affine)
    if name == "a.nrrd":
        grid = sitk.ReadImage(image)
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        grid.SetSpacing(spacing)
        grid.SetDirection((lps[:3, :3] / spacing).ravel())
        grid.SetOrigin(lps[:3, 3])
        sitk.WriteImage(grid, image)
    page_files.save(out, masks, COLORS, image)
    volume = read_volume(image)
    write_segmentation(expected, {n: np.zeros(SHAPE, bool) if m is None else m for n, m in masks.items()}, volume)
    ours, theirs = nib.load(out), nib.load(expected)
    assert ours.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
    for form in ("get_sform", "get_qform"):
        np.testing.assert_allclose(getattr(ours, form)(), getattr(theirs, form)(), atol=1e-4)
    for code in ("sform_code", "qform_code"):
        assert ours.header[code] == theirs.header[code]
    assert ours.header.get_xyzt_units() == theirs.header.get_xyzt_units()
    check_same_grid(read_label_map(out), volume, out)
    grid = sitk.ReadImage(out)
    np.testing.assert_allclose(
        grid.TransformIndexToPhysicalPoint((5, 6, 7)), volume.ijk_to_lps[:3] @ (5, 6, 7, 1), atol=1e-3
    )


def test_forms_of_a_nifti_image_are_copied(page_files: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 2)
    header.set_sform(oblique(), 4)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), None, header), tmp_path / "a.nii")
    source = nib.load(tmp_path / "a.nii").header
    page_files.save(tmp_path / "out.nii.gz", masks, COLORS, tmp_path / "a.nii")
    written = nib.load(tmp_path / "out.nii.gz").header
    for name in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(written[name], source[name])
    np.testing.assert_array_equal(written["pixdim"][:4], source["pixdim"][:4])


def test_more_segments_than_a_byte_counts(page_files: PageFiles, tmp_path: Path) -> None:
    write(tmp_path / "a.nii", np.zeros(SHAPE, np.int16))
    masks = {f"s{n}": np.arange(6 * 7 * 8).reshape(SHAPE) == n for n in range(300)}
    colors = dict.fromkeys(masks, (1.0, 0.0, 0.0))
    for name in ("out.nii.gz", "out.seg.nrrd"):
        page_files.save(tmp_path / name, masks, colors, tmp_path / "a.nii")
    labels = np.asanyarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    np.testing.assert_array_equal(labels.ravel()[:300], np.arange(1, 301))
    segmentation = slicerio.read_segmentation(tmp_path / "out.seg.nrrd")
    assert np.argwhere(slicerio.segment_mask(segmentation, "s299").ravel()).tolist() == [[299]]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "series"
    write_series(folder)
    return folder


def dicom_masks() -> dict[str, Any]:
    """Overlapping segments, and an empty one between them."""
    liver, lesion = ball(SERIES_SHAPE, (12, 17, 15), 6), ball(SERIES_SHAPE, (14, 17, 20), 3)
    assert (liver & lesion).any()
    return {"liver": liver, "none": None, "Läsion 腫瘍": lesion}


def assert_seg(path: Path, masks: dict[str, Any], volume: Volume) -> None:
    """highdicom reads these masks at the positions of the volume's voxels."""
    seg = hd.seg.segread(path)
    for number, (name, mask) in enumerate(masks.items(), start=1):
        description = seg.get_segment_description(number)
        assert description.segment_label == name
        color = np.array(description.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(color, hd.color.CIELabColor.from_rgb(*np.array(COLORS[name]) * 255).value, atol=300)
        if mask is None:
            assert not any(f.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number for f in frames(seg))
            continue
        read = seg.get_volume(segment_numbers=[number], combine_segments=True)
        found = positions(np.asarray(read.array).transpose(), read.affine[:, [2, 1, 0, 3]])
        assert found == positions(mask, volume.ijk_to_lps)


def positions(mask: Any, affine: Any) -> list[list[float]]:
    """Return the positions of a mask's voxels in LPS, rounded to a tenth of a millimeter."""
    return sorted(np.round(np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3], 1).tolist())


def frames(seg: Any) -> Any:
    return seg.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize("multi_frame", [False, True])
def test_dicom_seg(multi_frame: bool, series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    path = enhanced(series, tmp_path / "a.dcm", order=range(29, -1, -1)) if multi_frame else series
    masks, volume = dicom_masks(), read_volume(path)
    page_files.save(tmp_path / "seg.dcm", masks, COLORS, path)
    assert_seg(tmp_path / "seg.dcm", masks, volume)
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(volume.series[0])
    assert seg.file_meta.MediaStorageSOPInstanceUID == seg.SOPInstanceUID
    for name in ("PatientID", "PatientName", "PatientSex", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
        assert seg[name].value == source[name].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    instances = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert instances == {pydicom.dcmread(file).SOPInstanceUID for file in volume.series}
    first = frames(seg)[0]
    k = first.FrameContentSequence[0].DimensionIndexValues[1] - 1
    (image,) = first.DerivationImageSequence[0].SourceImageSequence
    if multi_frame:
        assert image.ReferencedFrameNumber == 30 - k
    else:
        assert image.ReferencedSOPInstanceUID == pydicom.dcmread(volume.series[k]).SOPInstanceUID
    assert {s.SegmentAlgorithmName for s in seg.SegmentSequence} == {"demo"}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_dicom_seg_of_an_anonymized_image(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    def anonymous(slice_: Any, _k: int) -> None:
        del slice_.StudyID, slice_.AccessionNumber
        slice_.PatientBirthDate, slice_.StudyDate, slice_.PatientSex, slice_.StudyTime = (
            "ANON",
            "00000000",
            "U",
            "12:00",
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
        folder = edited(series, tmp_path / "in", anonymous)
    page_files.save(tmp_path / "seg.dcm", dicom_masks(), COLORS, folder)
    assert_seg(tmp_path / "seg.dcm", dicom_masks(), read_volume(folder))
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    for name in ("PatientBirthDate", "StudyDate", "PatientSex", "StudyTime", "StudyID", "AccessionNumber"):
        assert not seg[name].value


@pytest.mark.parametrize(
    ("character_set", "name"), [("ISO 2022 IR 87", "Yamada^Tarou=山田^太郎"), ("ISO_IR 100", "Müller^Jörg")]
)
def test_names_of_patients_in_any_script(
    character_set: str, name: str, series: Path, page_files: PageFiles, tmp_path: Path
) -> None:
    def renamed(slice_: Any, _k: int) -> None:
        slice_.SpecificCharacterSet = ["", character_set] if "2022" in character_set else character_set
        slice_.PatientName = name

    page_files.save(tmp_path / "seg.dcm", dicom_masks(), COLORS, edited(series, tmp_path / "in", renamed))
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientName == name


def test_dicom_seg_without_voxels(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    page_files.save(tmp_path / "seg.dcm", {"none": None}, COLORS, series)
    assert not hd.seg.segread(tmp_path / "seg.dcm").pixel_array.any()


def test_a_series_without_a_frame_of_reference(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    def without_a_frame(slice_: Any, _k: int) -> None:
        del slice_.FrameOfReferenceUID

    folder = edited(series, tmp_path / "in", without_a_frame)
    assert "no FrameOfReferenceUID" in page_files.save(tmp_path / "seg.dcm", dicom_masks(), COLORS, folder).error


def test_dicom_seg_of_another_image(page_files: PageFiles, tmp_path: Path) -> None:
    write(tmp_path / "a.nii", np.zeros(SHAPE, np.int16))
    error = page_files.save(tmp_path / "seg.dcm", {"none": None}, COLORS, tmp_path / "a.nii").error
    assert error == "A DICOM SEG requires a DICOM image. Save the segmentation as .seg.nrrd or .nii.gz."


@pytest.mark.slow
def test_dicom_seg_is_read_by_dcmtk(series: Path, page_files: PageFiles, tmp_path: Path) -> None:
    """With dcmqi, which uses DCMTK."""
    masks = {name: mask for name, mask in dicom_masks().items() if mask is not None}
    page_files.save(tmp_path / "seg.dcm", masks, COLORS, series)
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [program, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--outputType", "nrrd"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
    grid = sitk.ReadImage(read_volume(series).series)
    for number, mask in enumerate(masks.values(), start=1):
        read = sitk.ReadImage(str(tmp_path / f"{number}.nrrd"))
        read = sitk.Resample(read, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0, read.GetPixelID())
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read).transpose() != 0, mask)
