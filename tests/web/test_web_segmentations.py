"""Segmentations saved by the page, read by slicerio, nibabel, SimpleITK and highdicom."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.image_files import write
from helpers.web_files import PageFiles, page_files
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

from nninteractive_ws.files.images import read_label_map, read_volume, write_segmentation
from nninteractive_ws.files.volume import check_same_grid

SHAPE = (6, 7, 8)
COLORS = {"liver": (0.9, 0.25, 0.125), "Läsion 腫瘍": (0.1, 0.3, 0.8), "spleen": (0.0, 1.0, 0.5), "none": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageFiles]:
    yield from page_files(tmp_path_factory.mktemp("page"))


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
def test_seg_nrrd(affine: Any, page: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
    image, out = tmp_path / "a.nii.gz", tmp_path / "a.seg.nrrd"
    write(image, np.zeros(SHAPE, np.int16), affine)
    page.save(out, masks, COLORS, image)
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


def test_seg_nrrd_of_one_layer(page: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "a.mha", np.zeros(SHAPE, np.int16))
    name = "a\\nb"
    page.save(tmp_path / "a.seg.nrrd", {name: masks["liver"]}, {name: COLORS["liver"]}, tmp_path / "a.mha")
    image = sitk.ReadImage(tmp_path / "a.seg.nrrd")
    assert image.GetMetaData("Segment0_Name") == name  # read by Teem, as in 3D Slicer
    assert (image.GetDimension(), image.GetNumberOfComponentsPerPixel()) == (3, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(), masks["liver"])
    check_same_grid(read_label_map(tmp_path / "a.seg.nrrd"), read_volume(tmp_path / "a.mha"), "a.seg.nrrd")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
@pytest.mark.parametrize("affine", [np.diag([2.0, 3.0, 4.0, 1.0]), oblique()])
def test_nifti(affine: Any, name: str, page: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
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
    page.save(out, masks, COLORS, image)
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
    np.testing.assert_allclose(grid.TransformIndexToPhysicalPoint((5, 6, 7)), volume.ijk_to_lps[:3] @ (5, 6, 7, 1), atol=1e-3)


def test_forms_of_a_nifti_image_are_copied(page: PageFiles, masks: dict[str, Any], tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 2)
    header.set_sform(oblique(), 4)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), None, header), tmp_path / "a.nii")
    source = nib.load(tmp_path / "a.nii").header
    page.save(tmp_path / "out.nii.gz", masks, COLORS, tmp_path / "a.nii")
    written = nib.load(tmp_path / "out.nii.gz").header
    for name in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(written[name], source[name])
    np.testing.assert_array_equal(written["pixdim"][:4], source["pixdim"][:4])


def test_more_segments_than_a_byte_counts(page: PageFiles, tmp_path: Path) -> None:
    write(tmp_path / "a.nii", np.zeros(SHAPE, np.int16))
    masks = {f"s{n}": np.arange(6 * 7 * 8).reshape(SHAPE) == n for n in range(300)}
    colors = dict.fromkeys(masks, (1.0, 0.0, 0.0))
    for name in ("out.nii.gz", "out.seg.nrrd"):
        page.save(tmp_path / name, masks, colors, tmp_path / "a.nii")
    labels = np.asanyarray(nib.load(tmp_path / "out.nii.gz").dataobj)
    np.testing.assert_array_equal(labels.ravel()[:300], np.arange(1, 301))
    segmentation = slicerio.read_segmentation(tmp_path / "out.seg.nrrd")
    assert np.argwhere(slicerio.segment_mask(segmentation, "s299").ravel()).tolist() == [[299]]
