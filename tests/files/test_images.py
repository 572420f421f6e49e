"""Volumes and segmentations in every format, against nibabel, SimpleITK, pynrrd and numpy."""

import gzip
import locale
import os
from pathlib import Path
import re
import resource
import shutil
import signal
from typing import Any

from helpers import image_files
from hypothesis import given, settings
from hypothesis import strategies as st
import nibabel as nib
import nrrd
import numpy as np
import numpy.typing as npt
from PIL import Image
import pytest
import SimpleITK as sitk
import slicerio

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.images import (
    check_output,
    notes_on_overlaps,
    read_label_map,
    read_volume,
    write_segmentation,
)
from nninteractive_ws.files.read_options import ReadOptions
from nninteractive_ws.files.volume import Volume

RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")

rotations = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(x * x for x in q) > 0.1)


def rotation(q: list[float]) -> npt.NDArray[np.float64]:
    """A rotation matrix from a quaternion that is not normalized."""
    w, x, y, z = np.array(q) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


@st.composite
def affines(draw: st.DrawFn) -> npt.NDArray[np.float64]:
    """Affines from voxels to RAS: rotated, left- or right-handed, with axes in any order."""
    affine = np.eye(4)
    spacing = [draw(st.floats(0.2, 8)) for _ in range(3)]
    signs = [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    turned = draw(st.one_of(st.just(np.eye(3)), rotations.map(rotation)))
    affine[:3, :3] = (turned @ np.diag(np.multiply(spacing, signs)))[:, draw(st.permutations(range(3)))]
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


@st.composite
def arrays(draw: st.DrawFn) -> npt.NDArray[Any]:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(3))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    if dtype.kind == "f":
        return random.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def write_image(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    if path.name.endswith((".nii", ".nii.gz", ".hdr")):
        kind: Any = nib.Nifti1Pair if path.suffix == ".hdr" else nib.Nifti1Image
        nib.save(kind(voxels, affine), path)
        return
    lps = RAS_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=path.name.endswith("z.mha"))


def read_mask(path: Path) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return the mask of a file and its affine to RAS, read by nibabel or pynrrd."""
    if path.name.endswith(".nii.gz"):
        image = nib.load(path)
        return np.asarray(image.dataobj) != 0, image.affine
    values, header = nrrd.read(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(header["space directions"])[-3:].T
    affine[:3, 3] = header["space origin"]
    return values != 0, RAS_LPS @ affine


@pytest.mark.parametrize("source", ["a.nii", "a.nii.gz", "a.hdr", "a.nrrd", "a.mha", "z.mha", "a.mhd", "a.nhdr"])
@pytest.mark.parametrize("target", ["m.nii.gz", "m.nrrd", "m.seg.nrrd"])
@settings(max_examples=12)
@given(voxels=arrays(), affine=affines(), seed=st.integers(0, 99))
def test_voxels_positions_and_milliliters(
    source: str, target: str, voxels: npt.NDArray[Any], affine: npt.NDArray[np.float64], seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("images")
    write_image(folder / source, voxels, affine)
    volume = read_volume(folder / source)
    np.testing.assert_array_equal(volume.voxels, voxels)
    mask = np.random.default_rng(seed).random(voxels.shape) < 0.5
    write_segmentation(folder / target, {"a": mask}, volume)
    found, found_affine = read_mask(folder / target)
    np.testing.assert_array_equal(found, mask)
    ijk = np.argwhere(mask)
    places = [ijk @ a[:3, :3].T + a[:3, 3] for a in (affine, found_affine, RAS_LPS @ volume.ijk_to_lps)]
    size = np.linalg.norm(affine[:3, :3], axis=0).max() * max(voxels.shape) + np.abs(affine[:3, 3]).max()
    np.testing.assert_allclose(places[1], places[0], atol=1e-5 * size)
    np.testing.assert_allclose(places[2], places[0], atol=1e-5 * size)
    assert volume.voxel_ml == pytest.approx(abs(np.linalg.det(affine[:3, :3])) / 1000, rel=1e-4)
    shutil.rmtree(folder)


def shear(amount: float) -> npt.NDArray[np.float64]:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[0, 2] = amount
    return affine


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_a_sheared_image(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    voxels = np.cumsum(random.integers(0, 50, (20, 18, 12)), axis=0).astype(np.int16)
    write_image(tmp_path / name, voxels, shear(1.5))
    with pytest.raises(BadImage, match=r"is sheared.*--resample"):
        read_volume(tmp_path / name)
    volume = read_volume(tmp_path / name, ReadOptions(resample=True))
    axes = volume.direction.T @ volume.direction
    np.testing.assert_allclose(axes, np.eye(3), atol=1e-6)
    assert volume.voxel_ml == pytest.approx(0.024, rel=1e-4)
    # In every slice k the original is shifted along i by 1.5 k / 2 voxels, between which it is linear.
    lps = RAS_LPS @ shear(1.5)
    for i, j, k in [(3, 4, 0), (9, 9, 5), (18, 2, 11)]:
        at = (lps @ (i, j, k, 1))[:3]
        a, b, c = np.linalg.solve(volume.ijk_to_lps, (*at, 1))[:3]
        assert (b, c) == pytest.approx((round(b), round(c)), abs=1e-4)
        low = int(np.floor(a + 1e-6))
        row = volume.voxels[:, round(b), round(c)].astype(float)
        between = row[low] * (1 - (a - low)) + row[min(low + 1, len(row) - 1)] * (a - low)
        assert between == pytest.approx(voxels[i, j, k], abs=60)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resampled_image_keeps_its_type(dtype: str, tmp_path: Path) -> None:
    """Whole numbers are rounded. SimpleITK interpolates floats, and truncates integers."""
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.iinfo("int16")
    random = np.random.default_rng(0)
    voxels = random.integers(max(limits.min, -(2**20)), min(limits.max, 2**20), (9, 8, 7)).astype(dtype)
    write_image(tmp_path / "a.nii.gz", voxels, shear(1.5))
    volume = read_volume(tmp_path / "a.nii.gz", ReadOptions(resample=True))
    assert volume.voxels.dtype == np.dtype(dtype)
    source = sitk.GetImageFromArray(voxels.transpose().astype(np.float64))
    # In voxels of the new grid, so that the source needs no sheared direction.
    to_source = np.linalg.inv(RAS_LPS @ shear(1.5)) @ volume.ijk_to_lps
    transform = sitk.AffineTransform(to_source[:3, :3].ravel().tolist(), to_source[:3, 3].tolist())
    grid = sitk.Image(list(volume.shape), sitk.sitkFloat64)
    lowest = float(voxels.min())
    between = sitk.GetArrayFromImage(sitk.Resample(source, grid, transform, sitk.sitkLinear, lowest)).transpose()
    if voxels.dtype.kind == "f":
        np.testing.assert_allclose(volume.voxels, between, rtol=1e-5, atol=1e-2)
    else:
        assert np.abs(volume.voxels - between).max() <= 0.5 + 1e-6


def test_a_shear_of_rounding_errors_is_ignored(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", np.ones((20, 20, 20), np.uint8), shear(0.001))
    assert read_volume(tmp_path / "a.nii.gz").notes == ()


def set_forms(path: Path, q_code: int, s_code: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Write a NIfTI file whose two orientations differ by 51 mm."""
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), None)
    image.header.set_zooms((1, 2, 3))
    q_form, s_form = np.diag([1.0, 2.0, 3.0, 1.0]), np.diag([-1.0, -2.0, 3.0, 1.0])
    q_form[:3, 3], s_form[:3, 3] = (10, 20, 30), (61, 20, 30)
    image.set_qform(q_form, q_code)
    image.set_sform(s_form, s_code)
    nib.save(image, path)
    return q_form, s_form


@pytest.mark.parametrize("q_code", [0, 1, 2])
@pytest.mark.parametrize("s_code", [0, 1, 2, 4])
def test_the_mask_lies_on_the_image_in_every_program(q_code: int, s_code: int, tmp_path: Path) -> None:
    set_forms(tmp_path / "a.nii.gz", q_code, s_code)
    volume = read_volume(tmp_path / "a.nii.gz")
    write_segmentation(tmp_path / "m.nii.gz", {"a": volume.voxels > 30}, volume)
    for read in (lambda p: nib.load(p).affine, lambda p: nib.load(p).get_qform(), lambda p: nib.load(p).get_sform()):
        np.testing.assert_allclose(read(tmp_path / "m.nii.gz"), read(tmp_path / "a.nii.gz"))
    image, mask = (sitk.ReadImage(str(tmp_path / name)) for name in ("a.nii.gz", "m.nii.gz"))
    assert (mask.GetOrigin(), mask.GetDirection()) == (image.GetOrigin(), image.GetDirection())
    if q_code and s_code:
        assert "two orientations, up to 51 voxels apart" in volume.notes[0]
    elif not q_code and not s_code:
        assert "does not say how the image is oriented" in volume.notes[0]
    else:
        assert volume.notes == ()


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 0.001), ("meter", 1000), ("unknown", 1)])
def test_units_of_nifti(unit: str, factor: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.spacing, np.array([2, 3, 4]) * factor)
    np.testing.assert_allclose(volume.spacing, sitk.ReadImage(str(tmp_path / "a.nii")).GetSpacing(), rtol=1e-6)
    write_segmentation(tmp_path / "m.nii.gz", {"a": volume.voxels > 3}, volume)
    assert nib.load(tmp_path / "m.nii.gz").header.get_xyzt_units()[0] == unit


def test_a_similar_name_is_not_opened(tmp_path: Path) -> None:
    """Niftilib opens ``ct.nii`` instead of ``ct.nii.gz``."""
    for number, name in enumerate(("ct.nii", "ct.nii.gz", "ct.hdr", "ct.img.gz"), start=1):
        if name != "ct.img.gz":
            write_image(tmp_path / name, np.full((2, 3, 4), number, np.int16), np.eye(4))
    assert [int(read_volume(tmp_path / name).voxels[0, 0, 0]) for name in ("ct.nii", "ct.nii.gz", "ct.hdr")] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.vtk"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_voxels(name: str, value: float, tmp_path: Path) -> None:
    voxels = np.linspace(-7, 9, 60, dtype=np.float32).reshape(3, 4, 5)
    voxels[1, 2, 3] = voxels[0, 0, 1] = value
    write_image(tmp_path / name, voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.voxels, np.where(np.isfinite(voxels), voxels, -7))
    assert volume.notes == ("2 voxels are NaN or infinite. They were set to -7.",)
    write_image(tmp_path / name, np.full((3, 4, 5), value, np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(BadImage, match="no finite voxel"):
        read_volume(tmp_path / name)


def test_a_label_map_is_never_changed(tmp_path: Path) -> None:
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[0, 0, 0] = np.nan
    write_image(tmp_path / "a.nrrd", voxels, np.eye(4))
    assert np.isnan(read_label_map(tmp_path / "a.nrrd").voxels[0, 0, 0])


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_four_dimensions(name: str, tmp_path: Path) -> None:
    voxels = np.arange(3 * 4 * 5 * 2, dtype=np.int16).reshape(3, 4, 5, 2)
    if name == "a.nii.gz":
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
    else:
        sitk.WriteImage(
            sitk.JoinSeries([sitk.GetImageFromArray(voxels[..., t].T.copy()) for t in (0, 1)]), tmp_path / name
        )
    with pytest.raises(BadImage, match=r"Choose one of 1 to 2 \(--time N"):
        read_volume(tmp_path / name)
    for time in (1, 2):
        np.testing.assert_array_equal(
            read_volume(tmp_path / name, ReadOptions(time=time)).voxels, voxels[..., time - 1]
        )
    with pytest.raises(BadImage, match="Choose one of 1 to 2"):
        read_volume(tmp_path / name, ReadOptions(time=0))


def test_a_fourth_dimension_of_one(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(voxels[..., None, None], np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").voxels, voxels)


def test_nifti_2_and_a_large_dimension(tmp_path: Path) -> None:
    voxels = np.zeros((40_000, 2, 2), np.uint8)
    voxels[39_999, 1, 0] = 7
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    write_segmentation(tmp_path / "m.nii.gz", {"a": volume.voxels > 0}, volume)
    assert np.argwhere(np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj)).tolist() == [[39_999, 1, 0]]


def test_gzip_without_the_extension(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", np.ones((2, 3, 4), np.int16), np.eye(4))
    (tmp_path / "a.nii.gz").rename(tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").voxels.shape == (2, 3, 4)


def test_scaled_integers(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").voxels, nib.load(tmp_path / "a.nii").get_fdata())


CONTENTS = [
    (b"", "is empty"),
    (b"\0" * 5000, "filled with zeros"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
    (b"../../.git/annex/objects/xx/SHA256E-s12--aa.nii.gz/aa.nii.gz", "git annex get"),
    (b"/annex/objects/SHA256E-s12--aa.nii.gz\n", "git annex get"),
    (b"<!DOCTYPE html>\n<html><title>404</title>", "web page"),
    (b"\n<html lang=en>", "web page"),
    (b'{"message": "Not found"}', "JSON or XML"),
    (b"PK\x03\x04" + b"a" * 100, "ZIP archive"),
    (b"BZh91AY" + b"a" * 100, "bzip2"),
    (b"\x89PNG\r\n\x1a\n" + b"a" * 100, "PNG picture"),
    (b"\x89HDF\r\n" + b"a" * 100, "HDF5 or MINC"),
    (b"patient,age\n1,50\n", "unknown format"),
    (b"\x5c\x01\0\0" + b"\0" * 344, "Analyze 7.5"),
    (b"\0\0\x01\x5c" + b"\0" * 344, "Analyze 7.5"),
]


@pytest.mark.parametrize(("content", "sentence"), CONTENTS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a"])
def test_a_file_of_another_type(content: bytes, sentence: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImage, match=sentence):
        read_volume(tmp_path / name)
    if content:
        (tmp_path / name).write_bytes(gzip.compress(content))
        with pytest.raises(BadImage, match=sentence):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.hdr", "a.mhd", "a.nhdr"])
def test_the_file_with_the_voxels_names_its_header(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / name, np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    other = next(file for file in tmp_path.iterdir() if file.name != name)
    if other.suffix == ".gz":
        other = other.rename(tmp_path / "a.gz")
    with pytest.raises(BadImage, match=rf"voxels of {name}. Choose that file instead"):
        read_volume(other)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_more_bytes_than_the_header_announces(name: str, tmp_path: Path) -> None:
    """The header may be wrong: a smaller dimension scrambles the image."""
    write_image(tmp_path / name, np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    whole = (tmp_path / name).read_bytes()
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(gzip.decompress(whole) + b"more"))
    elif name == "a.nrrd":
        (tmp_path / name).write_bytes(whole.replace(b"sizes: 3 4 5", b"sizes: 3 4 4"))
    else:
        (tmp_path / name).write_bytes(whole + b"more")
    (note,) = read_volume(tmp_path / name).notes
    assert re.match(r"The file has (4|24) bytes more than its header announces", note)


#: Ends of binary files by VTK 9.6, and of other programs.
VTK_ENDS = [
    b"\n",
    b"\r\n",
    b"\nMETADATA\nCOMPONENT_NAMES\nhu\n\n",
    b"\nMETADATA\nINFORMATION 1\nNAME UNITS_LABEL LOCATION vtkDataArray\nDATA mm\n\n",
]


@pytest.mark.parametrize("end", VTK_ENDS)
def test_the_end_of_a_vtk_file(end: bytes, tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image_files.write(tmp_path / "a.vtk", voxels)
    whole = (tmp_path / "a.vtk").read_bytes()
    (tmp_path / "a.vtk").write_bytes(whole + end)
    volume = read_volume(tmp_path / "a.vtk")
    np.testing.assert_array_equal(volume.voxels, image_files.read_plainly(tmp_path / "a.vtk"))
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.notes == ()
    for other in (b"more" + end, whole[-4:], b"\n" * 4):
        (tmp_path / "a.vtk").write_bytes(whole + other)
        assert "bytes more than its header announces" in read_volume(tmp_path / "a.vtk").notes[0]
    (tmp_path / "a.vtk").write_bytes(whole[: -len(end)] + end)
    assert not np.array_equal(read_volume(tmp_path / "a.vtk").voxels, voxels)  # its last voxels are the line break
    (tmp_path / "a.vtk").write_bytes(whole[:-2])
    with pytest.raises(BadImage, match=r"incomplete|damaged"):
        read_volume(tmp_path / "a.vtk")


def test_a_nrrd_file_with_bzip2(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for encoding in ("bzip2", "gzip"):
        nrrd.write(str(tmp_path / f"{encoding}.nrrd"), voxels, {"encoding": encoding})
    with pytest.raises(BadImage, match=r"bzip2\.nrrd uses bzip2, which is not supported\. Save it with gzip\.$"):
        read_volume(tmp_path / "bzip2.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "gzip.nrrd").voxels, voxels)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["time", "domain"])
def test_a_nrrd_file_with_a_fourth_axis_that_itk_refuses(kind: str, first: bool, tmp_path: Path) -> None:
    """The advice in the message works."""
    voxels = np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5)
    kinds, directions = [kind, *["domain"] * 3], [[np.nan] * 3, *np.diag([2.0, 3.0, 4.0])]
    if not first:
        voxels, kinds, directions = np.moveaxis(voxels, 0, -1), kinds[::-1], [*directions[1:], directions[0]]
    header = {"space": "left-posterior-superior", "space directions": np.array(directions), "kinds": kinds}
    nrrd.write(str(tmp_path / "a.nrrd"), voxels, {**header, "space origin": [1, 2, 3]})
    with pytest.raises(BadImage, match=rf"has 4 axes in space or time \(kinds: {' '.join(kinds)}\)\. Expected 3\."):
        read_volume(tmp_path / "a.nrrd")
    content = (tmp_path / "a.nrrd").read_bytes()
    line = f"kinds: {' '.join(kinds)}\n".encode()
    kinds[0 if first else 3] = "list"
    (tmp_path / "a.nrrd").write_bytes(content.replace(line, f"kinds: {' '.join(kinds)}\n".encode()))
    expected = nrrd.read(str(tmp_path / "a.nrrd"))[0].take(1, axis=0 if first else 3)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd", ReadOptions(time=2)).voxels, expected)


def write_tiff(path: Path, pages: npt.NDArray[Any], description: str = "") -> None:
    images = [Image.fromarray(page) for page in pages]
    images[0].save(path, save_all=True, append_images=images[1:], tiffinfo={270: description} if description else {})


def ome(c: int, t: int) -> str:
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" SizeC="{c}" SizeT="{t}" SizeX="5" SizeY="4" SizeZ="3"/></Image></OME>'
    )


ONE_STACK = ["", "a note", "ImageJ=1.53\nimages=6\nslices=6\nunit=um\nspacing=2.0\n", ome(1, 1)]
SEVERAL_STACKS = {
    "ImageJ=1.53\nimages=6\nchannels=2\nslices=3\nhyperstack=true\n": "2 channels",
    "ImageJ=1.53\nimages=6\nslices=2\nframes=3\n": "3 time points",
    "ImageJ=1.53\nimages=6\nchannels=3\nframes=2\n": "3 channels and 2 time points",
    ome(2, 1): "2 channels",
    ome(1, 12): "12 time points",
}


@pytest.mark.parametrize("description", ONE_STACK)
def test_a_tiff_file_has_a_note_on_its_voxel_size(description: str, tmp_path: Path) -> None:
    pages = np.arange(120, dtype=np.uint8).reshape(6, 4, 5)
    write_tiff(tmp_path / "a.tif", pages, description)
    volume = read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.voxels, pages.transpose())
    read = sitk.ReadImage(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(read).transpose())
    np.testing.assert_allclose(volume.spacing, read.GetSpacing())
    assert volume.notes == (
        "A TIFF file does not say the size of voxels reliably. Millimeters and volumes may be wrong.",
    )


@pytest.mark.parametrize(("description", "found"), SEVERAL_STACKS.items())
def test_channels_and_time_points_of_tiff_are_no_slices(description: str, found: str, tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", np.arange(120, dtype=np.uint8).reshape(6, 4, 5), description)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[270] == description
    with pytest.raises(BadImage, match=rf"a\.tif has {found}\. Expected one volume\. Save one channel of one time"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.tif", "a.nrrd", "a.mha"])
def test_an_image_of_two_dimensions(name: str, tmp_path: Path) -> None:
    page = np.arange(20, dtype=np.uint8).reshape(1, 4, 5)
    if name == "a.tif":
        write_tiff(tmp_path / name, page)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(page[0]), str(tmp_path / name))
    assert sitk.ReadImage(str(tmp_path / name)).GetDimension() == 2
    with pytest.raises(BadImage, match=rf"{name} has 2 dimensions\. Expected a volume with 3\."):
        read_volume(tmp_path / name)


def test_a_header_that_announces_gigabytes(tmp_path: Path) -> None:
    """Refused before memory for them is allocated."""
    header = nib.Nifti1Header()
    header.set_data_shape((32000, 32000, 32000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(header.binaryblock) + b"\0" * 100))
    with pytest.raises(BadImage, match=r"announces 131,072,000,000,000 bytes of voxels, found 96"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    with pytest.raises(BadImage, match="neither a file nor a folder"):
        read_volume(tmp_path / "a.nii.gz")


def test_components_of_nifti_are_chosen_as_time_points(tmp_path: Path) -> None:
    """As SimpleITK writes vectors: five dimensions, the fourth of one element."""
    voxels = np.arange(3 * 4 * 5 * 2, dtype=np.int16).reshape(3, 4, 5, 1, 2)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    found = read_volume(tmp_path / "a.nii", ReadOptions(time=2)).voxels
    np.testing.assert_array_equal(found, voxels[..., 0, 1])


def test_a_color_image_and_a_complex_one(tmp_path: Path) -> None:
    rgb = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4)), tmp_path / "complex.nii")
    for name in ("rgb.nii", "complex.nii"):
        with pytest.raises(BadImage, match="Expected real numbers"):
            read_volume(tmp_path / name)
    sitk.WriteImage(sitk.Image([3, 4, 5], sitk.sitkVectorUInt8, 3), str(tmp_path / "rgb.nrrd"))
    with pytest.raises(BadImage, match="3 components per voxel, like a color image"):
        read_volume(tmp_path / "rgb.nrrd")


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.diag([1, 1, 0]), np.diag([1, np.nan, 1]), np.ones((3, 3))])
def test_invalid_axes(matrix: npt.NDArray[np.float64], tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4))
    for row, values in zip(("srow_x", "srow_y", "srow_z"), matrix, strict=True):
        image.header[row][:3] = values
    image.header["sform_code"] = 1
    (tmp_path / "a.nii").write_bytes(bytes(image.header.binaryblock) + b"\0" * 4 + image.dataobj.tobytes())
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[108:112] = np.float32(352).tobytes()
    raw[344:348] = b"n+1\0"
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(BadImage, match="Expected three finite directions"):
        read_volume(tmp_path / "a.nii")


def test_bytes_that_are_not_utf8_in_a_path(tmp_path: Path) -> None:
    """SimpleITK would abort the process."""
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        write_image(tmp_path / name, voxels, np.eye(4))
        (tmp_path / name).rename(tmp_path / f"\udce4{name}")
    np.testing.assert_array_equal(read_volume(tmp_path / "\udce4a.nii.gz").voxels, voxels)
    for name in ("\udce4a.nrrd", "\udce4a.mha"):
        with pytest.raises(BadImage, match="bytes that are not UTF-8"):
            read_volume(tmp_path / name)
    volume = read_volume(tmp_path / "\udce4a.nii.gz")
    for target in ("\udcffm.nii.gz", "\udcffm.nrrd", "\udcffm.seg.nrrd"):
        write_segmentation(tmp_path / target, {"a": voxels > 30}, volume)
        assert np.count_nonzero(read_label_map_bytes(tmp_path / target, tmp_path)) == 29


def read_label_map_bytes(path: Path, folder: Path) -> npt.NDArray[np.bool_]:
    """Read a file under a name that every reader accepts."""
    copy = folder / path.name.replace("\udcff", "copy-")
    shutil.copy(path, copy)
    return read_mask(copy)[0]


def test_an_unwritable_segmentation_is_saved_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    write_image(tmp_path / "a.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    volume = read_volume(tmp_path / "a.nii")
    mask = volume.voxels > 30
    with pytest.raises(BadImage, match=r"requires a DICOM image.*kept as .*m\.seg\.nrrd\.") as caught:
        write_segmentation(tmp_path / "m.dcm", {"a": mask}, volume)
    kept = tmp_path / "m.seg.nrrd"
    assert str(kept) in str(caught.value)
    np.testing.assert_array_equal(slicerio.segment_mask(slicerio.read_segmentation(str(kept)), "a"), mask)
    with pytest.raises(OSError, match="kept as") as refused:
        write_segmentation(Path("/proc/nothing/m.nii.gz"), {"a": mask}, volume)
    kept = tmp_path / "temporary" / "m.seg.nrrd"
    assert str(kept) in str(refused.value)
    np.testing.assert_array_equal(read_mask(kept)[0], mask)
    # An existing file is not replaced by the rescued one.
    before = kept.read_bytes()
    with pytest.raises(OSError, match=r"kept as .*m-2\.seg\.nrrd"):
        write_segmentation(Path("/proc/nothing/m.nii.gz"), {"a": ~mask}, volume)
    assert kept.read_bytes() == before
    np.testing.assert_array_equal(read_mask(kept.with_name("m-2.seg.nrrd"))[0], ~mask)


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.seg.nrrd"])
def test_an_output_that_is_a_folder_is_found_before_the_work(name: str, tmp_path: Path) -> None:
    image_files.write(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16))
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=rf"{name} cannot be written, because it is a folder"):
        check_output(tmp_path / name, read_volume(tmp_path / "a.nii"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".partial")] == []


@pytest.mark.parametrize(("spacing", "origin", "stored"), [
    (1e-3, 7654.321, False), (1e-3, 12.3, True), (0.5, 98765.4321, True), (1.0, 1e39, False)
])  # fmt: skip
def test_a_position_that_nifti_cannot_store_is_found_before_the_work(
    spacing: float, origin: float, stored: bool, tmp_path: Path
) -> None:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[0, 3] = origin
    volume = Volume(np.zeros((20, 20, 20), np.int16), affine)
    for name in ("m.nrrd", "m.seg.nrrd"):
        check_output(tmp_path / name, volume)
    with np.errstate(over="ignore"):
        moved = abs(float(np.float32(origin)) - origin) / spacing
    assert (moved <= 0.01) == stored
    if stored:
        check_output(tmp_path / "m.nii.gz", volume)
        write_segmentation(tmp_path / "m.nii.gz", {"a": volume.voxels == 0}, volume)
        np.testing.assert_allclose(nib.load(tmp_path / "m.nii.gz").affine, RAS_LPS @ affine, atol=0.01 * spacing)
    else:
        with pytest.raises(BadImage, match=r"^NIfTI cannot store this position precisely enough\. Choose \.nrrd or"):
            check_output(tmp_path / "m.nii.gz", volume)
    assert not list(tmp_path.glob(".partial*"))


def test_a_nifti_image_keeps_its_distant_position(tmp_path: Path) -> None:
    affine = np.diag([1e-3, 1e-3, 1e-3, 1.0])
    affine[0, 3] = 7654.321
    write_image(tmp_path / "a.nii.gz", np.ones((20, 20, 20), np.int16), affine)
    volume = read_volume(tmp_path / "a.nii.gz")
    check_output(tmp_path / "m.nii.gz", volume)
    write_segmentation(tmp_path / "m.nii.gz", {"a": volume.voxels > 0}, volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "m.nii.gz").affine, nib.load(tmp_path / "a.nii.gz").affine)


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.seg.nrrd"])
def test_voxels_of_several_segments(name: str, tmp_path: Path) -> None:
    image_files.write(tmp_path / "a.nii", np.zeros((5, 6, 7), np.int16))
    volume = read_volume(tmp_path / "a.nii")
    liver, lesion, vessel = (np.zeros((5, 6, 7), bool) for _ in range(3))
    lesion[1:3, 1:3, 1], vessel[1, :, 1], liver[:4, :4, 1] = True, True, True
    masks = {"lesion": lesion, "vessel": vessel, "liver": liver, "none": np.zeros_like(liver)}
    write_segmentation(tmp_path / name, masks, volume)
    notes = notes_on_overlaps(tmp_path / name, masks)
    if name == "m.seg.nrrd":
        assert notes == {}
        return
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))).transpose()
    left = [int((labels == value).sum()) for value in (1, 2, 3)]
    assert left == [0, 2, 16]
    assert list(notes.values()) == [
        "lesion lost 4 of 4 voxels to other segments in the label map. The format seg.nrrd keeps overlaps.",
        "vessel lost 4 of 6 voxels to other segments in the label map. The format seg.nrrd keeps overlaps.",
    ]
    assert liver.sum() == 16  # the masks are unchanged


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
def test_several_label_maps_in_a_file(name: str, tmp_path: Path) -> None:
    """No option chooses one of them."""
    labels = np.zeros((3, 4, 5, 2), np.uint8)
    if name == "a.nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(labels.transpose(), isVector=False), str(tmp_path / name))
    else:
        image_files.write(tmp_path / name, labels)
    with pytest.raises(BadImage, match=r"with 2 volumes\. Expected one label map\. Save it as a file") as refused:
        read_label_map(tmp_path / name)
    assert "--time" not in str(refused.value)


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + "/a.nii.gz"])
def test_errors_of_the_system_are_sentences(path: str, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"(x|a\.nii\.gz) cannot be read \(File name too long\)\. Check its path"):
        read_volume(tmp_path / path)


@pytest.mark.parametrize("name", ["a.vtk", "a.nrrd", "a.mha"])
def test_the_locale_is_unchanged(name: str, tmp_path: Path) -> None:
    """ITK's reader of VTK files changes it, which would change the encoding of text files."""
    write_image(tmp_path / name, np.ones((2, 3, 4), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    before = locale.setlocale(locale.LC_ALL)
    read_volume(tmp_path / name)
    assert locale.setlocale(locale.LC_ALL) == before


def test_an_index_of_a_distant_position(tmp_path: Path) -> None:
    volume = Volume(np.zeros((3, 4, 5)), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert volume.index_of((1e30, 3.0, -3.0)) == (int(5e29), 2, -1)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.seg.nrrd"])
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    """A file size limit simulates a full disk."""
    volume = Volume(np.zeros((40, 36, 30)), np.eye(4))
    noise = np.random.default_rng(0).integers(0, 2, (40, 36, 30), np.uint8).astype(bool)
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
