"""Image files read by the page, compared with SimpleITK, nibabel and the Python client."""

import gzip
from itertools import permutations
from pathlib import Path
import re
from typing import Any
import zlib

from helpers.image_files import NAMES, data_file, write
from helpers.web_files import PageFiles
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.images import read_volume

SHAPE = (5, 7, 4)
#: Names of files in the formats that the page reads.
SUPPORTED = [name for name in NAMES if name.endswith((".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd"))]
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def voxels_of(dtype: Any, shape: tuple[int, ...] = SHAPE) -> Any:
    """Return voxels without any symmetry, that use the range of their type."""
    values = np.random.default_rng(1).integers(-30_000, 30_000, shape)
    return (values / 7).astype(dtype) if np.dtype(dtype).kind == "f" else values.astype(dtype)


def assert_as_python(page_files: PageFiles, *files: Path) -> None:
    """The page reads the same voxels at the same places as the Python client."""
    found, expected = page_files.read(*files), read_volume(files[0])
    assert found.error == ""
    np.testing.assert_array_equal(found.voxels, expected.voxels.astype(found.voxels.dtype))
    np.testing.assert_allclose(found.ijk_to_lps, expected.ijk_to_lps, atol=1e-5)
    assert list(found.notes) == list(expected.notes)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_types_and_formats(name: str, dtype: str, page_files: PageFiles, tmp_path: Path) -> None:
    voxels = voxels_of(dtype)
    write(tmp_path / name, voxels)
    files = dict.fromkeys((tmp_path / name, data_file(tmp_path / name)))
    if name == "a.hdr":
        files[tmp_path / "a.img"] = None
    found = page_files.read(*files)
    kept = "f4" if dtype == "f8" else dtype
    assert found.voxels.dtype == kept
    np.testing.assert_array_equal(found.voxels, voxels.astype(kept))
    assert found.labels == [name]
    assert_as_python(page_files, *files)


def orientations() -> list[Any]:
    """Return affine matrices to RAS: axial, coronal and sagittal in every handedness, and oblique ones."""
    affines = []
    for axes in permutations(range(3)):
        for signs in ((1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, list(axes)] * signs * (0.7, 1.3, 2.9)
            affine[:3, 3] = (-101.5, 33.25, 7.125)
            affines.append(affine)
    for order in ("xyz", "zxy"):
        rotation = np.eye(3)
        for axis, angle in zip(order, (0.3, -0.5, 1.1), strict=True):
            a, b = [n for n in range(3) if n != "xyz".index(axis)]
            turn = np.eye(3)
            turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            rotation = rotation @ turn
        for flip in (1, -1):
            affine = np.eye(4)
            affine[:3, :3] = rotation * (0.7, 1.3, 2.9 * flip)
            affine[:3, 3] = (-101.5, 33.25, 7.125)
            affines.append(affine)
    return affines


@pytest.mark.parametrize("ras", orientations())
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_orientations(name: str, ras: Any, page_files: PageFiles, tmp_path: Path) -> None:
    lps = RAS_LPS @ ras
    path = tmp_path / name
    if name == "a.nii.gz":
        nib.save(nib.Nifti1Image(voxels_of("i2"), ras), path)
    else:
        image = sitk.GetImageFromArray(voxels_of("i2").transpose())
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetDirection((lps[:3, :3] / spacing).ravel())
        image.SetOrigin(lps[:3, 3])
        sitk.WriteImage(image, path)
    found = page_files.read(path)
    np.testing.assert_allclose(found.ijk_to_lps, lps, atol=1e-5)
    image = sitk.ReadImage(path)
    np.testing.assert_array_equal(found.voxels, sitk.GetArrayFromImage(image).transpose())
    for index in ((0, 0, 0), (4, 0, 0), (0, 6, 0), (0, 0, 3)):
        position = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(found.ijk_to_lps[:3] @ (*index, 1), position, atol=1e-4)


def nifti(path: Path, voxels: Any, **fields: Any) -> Path:
    """Write a NIfTI image, and then fields of its header. ``big``: in big-endian byte order."""
    header = nib.Nifti1Header(endianness=">" if fields.pop("big", False) else "<")
    header.set_data_dtype(voxels.dtype)
    image = nib.Nifti1Image(voxels, np.diag([2.0, 3.0, 4.0, 1.0]), header)
    nib.save(image, path)
    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    written = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        written[name] = value
    content[:348] = written.binaryblock
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"big": True},
        {"scl_slope": 0.25, "scl_inter": -1000.5},
        {"scl_slope": 2, "scl_inter": 0},
        {"scl_slope": np.nan, "scl_inter": 7},
        {"scl_slope": 0, "scl_inter": 7},
        {"sform_code": 0, "qform_code": 1, "pixdim": [-1, 2, 3, 4, 0, 0, 0, 0], "quatern_b": 0.6, "quatern_d": 0.2},
        {"sform_code": 0, "qform_code": 2, "pixdim": [0, -2, 0, 4, 1, 1, 1, 1], "quatern_c": 1, "qoffset_x": 17.5},
        {"sform_code": 2, "qform_code": 1, "srow_x": [2, 0, 0, 50]},
        {"sform_code": 0, "qform_code": 0},
        {"xyzt_units": 1, "srow_x": [0.002, 0, 0, -0.05], "srow_y": [0, 0.003, 0, 0], "srow_z": [0, 0, 0.004, 0]},
        {"xyzt_units": 3 | 8},
        {"dim": [5, 5, 7, 4, 1, 1, 1, 1]},
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_headers(name: str, fields: dict[str, Any], page_files: PageFiles, tmp_path: Path) -> None:
    assert_as_python(page_files, nifti(tmp_path / name, voxels_of("i2"), **fields))


@pytest.mark.parametrize("dtype", ["i8", "u8", "f8", "f4"])
def test_wide_and_real_types_with_a_slope(dtype: str, page_files: PageFiles, tmp_path: Path) -> None:
    for fields in ({}, {"scl_slope": 0.1, "scl_inter": 3}, {"big": True}):
        voxels = np.abs(voxels_of("i2")).astype(dtype)
        assert_as_python(page_files, nifti(tmp_path / "a.nii", voxels, **fields))


def test_nifti_2(page_files: PageFiles, tmp_path: Path) -> None:
    for affine in orientations()[-4:]:
        nib.save(nib.Nifti2Image(voxels_of("i2"), affine), tmp_path / "a.nii.gz")
        assert_as_python(page_files, tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_voxels_that_are_not_finite(name: str, page_files: PageFiles, tmp_path: Path) -> None:
    voxels = voxels_of("f4")
    voxels[0, :2], voxels[3, 3, 3] = np.nan, -np.inf
    write(tmp_path / name, voxels)
    found, expected = page_files.read(tmp_path / name), read_volume(tmp_path / name)
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    assert found.notes[0].startswith("9 voxels are NaN or infinite. They were set to -")
    write(tmp_path / name, np.full(SHAPE, np.nan, np.float32))
    assert (
        page_files.read(tmp_path / name).error
        == f"{name} has no finite voxel: all are NaN or infinite. Export it again."
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dim": [4, 5, 7, 2, 2, 1, 1, 1]}, "has 4 dimensions, 5 x 7 x 2 x 2. Expected one volume."),
        ({"dim": [2, 5, 7, 1, 1, 1, 1, 1]}, "has 2 dimensions. Expected a volume with 3."),
        ({"dim": [3, 5, 0, 4, 1, 1, 1, 1]}, "is damaged: it has 5 x 0 x 4 voxels."),
        ({"dim": [3, 5, 7, -4, 1, 1, 1, 1]}, "is damaged: it has 5 x 7 x -4 voxels."),
        ({"dim": [3, 5, 7, 5, 1, 1, 1, 1]}, "is incomplete: its header announces 350 bytes of voxels, found "),
        ({"dim": [3, 1000, 1000, 1000, 1, 1, 1, 1]}, "is incomplete: its header announces 2,000,000,000 bytes"),
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "has 32767 x 32767 x 32767 voxels, which are too many"),
        ({"datatype": 128}, "has voxels of colors (RGB). Expected real numbers."),
        ({"datatype": 32}, "has voxels of complex numbers. Expected real numbers."),
        ({"datatype": 3}, "has voxels of the unknown type 3."),
        ({"scl_slope": 2, "scl_inter": np.inf}, "is damaged: its scl_inter is Infinity."),
        ({"srow_x": [2, 1, 0, 0]}, "is sheared: its axes are not perpendicular"),
        ({"srow_x": [0, 0, 0, 0]}, "Expected three directions that are not in one plane."),
        ({"srow_x": [np.nan, 0, 0, 0]}, "Expected three directions that are not in one plane."),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 2}, "its quaternion (2, 0, 0) is no rotation."),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_refused(name: str, fields: Any, sentence: str, page_files: PageFiles, tmp_path: Path) -> None:
    path = nifti(tmp_path / name, voxels_of("i2"), **fields)
    assert sentence in page_files.read(path).error
    with pytest.raises(BadImage):
        read_volume(path)


def test_bytes_after_the_voxels(page_files: PageFiles, tmp_path: Path) -> None:
    write(tmp_path / "a.nii", voxels_of("i2"))
    content = (tmp_path / "a.nii").read_bytes() + b"12345"
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    for name in ("a.nii", "a.nii.gz"):
        assert_as_python(page_files, tmp_path / name)


def test_damaged_gzip(page_files: PageFiles, tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", voxels_of("i2"))
    content = (tmp_path / "a.nii.gz").read_bytes()
    for damaged in (content[:-1], content[:-20], content[:-8] + b"\1" + content[-7:], content[:50]):
        (tmp_path / "a.nii.gz").write_bytes(damaged)
        assert re.match(r"a\.nii\.gz (is|cannot be)", page_files.read(tmp_path / "a.nii.gz").error)


def test_gzip_in_several_members(page_files: PageFiles, tmp_path: Path) -> None:
    """As bgzip and parallel compressors write it."""
    write(tmp_path / "a.nii", voxels_of("i2"))
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    assert_as_python(page_files, tmp_path / "b.nii.gz")


def itk_image() -> Any:
    image = sitk.GetImageFromArray(voxels_of("i2").transpose())
    image.SetSpacing((0.7, 1.3, 2.9))
    image.SetOrigin((1.5, -2.5, 3.25))
    image.SetDirection((0, 0, 1, -1, 0, 0, 0, 1, 0))
    return image


def nrrd(path: Path, data: bytes, *lines: str, **changes: str | None) -> Path:
    """Write a NRRD file with voxels. ``changes``: of fields of its header, by their names with underscores."""
    fields: dict[str, str | None] = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "space dimension": None,
        "sizes": "5 7 4", "encoding": "raw", "endian": "little",
        "space directions": "(0,2,0) (0,0,-3) (4,0,0)", "space origin": "(1.5,-2,3)",
    }  # fmt: skip
    fields |= {name.replace("_", " "): value for name, value in changes.items()}
    header = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    path.write_bytes("\n".join(["NRRD0005", "# by hand", *header, *lines, "", ""]).encode() + data)
    return path


RAW = voxels_of("i2").tobytes(order="F")


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (RAW, {"space": "right-anterior-superior"}),
        (RAW, {"space": "RAS"}),
        (RAW, {"space": "left-anterior-superior"}),
        (RAW, {"space": "LPS", "type": "int16_t"}),
        (RAW, {"space": "scanner-xyz"}),
        (RAW, {"space": None, "space_dimension": "3"}),
        (RAW, {"space_origin": None}),
        (RAW, {"space": None, "space_directions": None, "space_origin": None, "spacings": "2 3 4"}),
        (RAW, {"space": None, "space_directions": None, "space_origin": None}),
        (voxels_of(">i2").tobytes(order="F"), {"endian": "big"}),
        (gzip.compress(RAW, mtime=0), {"encoding": "gz"}),
        (" ".join(map(str, voxels_of("i2").ravel(order="F"))).encode(), {"encoding": "ascii"}),
        (b"12345678" + RAW, {"byte_skip": "8"}),
        (b"12345678" + RAW, {"byte_skip": "-1"}),
        (RAW, {"dimension": "4", "sizes": "1 5 7 4", "kinds": "vector domain domain domain",
               "space_directions": "none (0,2,0) (0,0,-3) (4,0,0)"}),
    ],
)  # fmt: skip
def test_nrrd_headers(data: bytes, changes: dict[str, str], page_files: PageFiles, tmp_path: Path) -> None:
    """With SimpleITK as the oracle, which the Python client uses, but for its checks."""
    path = nrrd(tmp_path / "a.nrrd", data, **changes)
    found, image = page_files.read(path), sitk.ReadImage(path)
    np.testing.assert_array_equal(found.voxels, sitk.GetArrayFromImage(image).squeeze().transpose())
    np.testing.assert_allclose(found.ijk_to_lps, affine_of(image), atol=1e-6)


def affine_of(image: Any) -> Any:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"endian": None}, "does not give the byte order"),
        ({"sizes": "3 5 7 4", "dimension": "4", "kinds": "RGB-color domain domain domain",
          "space_directions": "none (0,2,0) (0,0,-3) (4,0,0)"}, "has 3 components per voxel"),
        ({"sizes": "5 7 4 2", "dimension": "4", "space": None, "space_directions": None, "space_origin": None},
         "has 4 dimensions, 5 x 7 x 4 x 2. Expected one volume."),
        ({"sizes": "5 28", "dimension": "2", "space": None, "space_directions": None, "space_origin": None},
         "has 2 dimensions"),
        ({"sizes": "5 7 40"}, "is incomplete: its header announces 2,800 bytes of voxels, found at most 280."),
        ({"encoding": "bzip2"}, 'the encoding "bzip2"'),
        ({"type": "block"}, "has voxels of the type block"),
        ({"space_directions": "(1,0,0) (1,1,0) (0,0,1)"}, "is sheared"),
        ({"space_directions": "(1,0,0) (x,1,0) (0,0,1)"}, "has the vector (x,1,0)"),
    ],
)  # fmt: skip
def test_nrrd_refused(changes: Any, sentence: str, page_files: PageFiles, tmp_path: Path) -> None:
    error = page_files.read(nrrd(tmp_path / "a.nrrd", RAW, **changes)).error
    assert sentence.replace("at most ", "") in error.replace("at most ", "")


def test_detached_files(page_files: PageFiles, tmp_path: Path) -> None:
    """One file, a list and a pattern of files, beside others."""
    slices = [voxels_of("i2")[:, :, k].tobytes(order="F") for k in range(4)]
    for k, content in enumerate(slices):
        (tmp_path / f"s{k + 1:02}.raw").write_bytes(content)
    (tmp_path / "Whole ü.raw").write_bytes(RAW)
    data = sorted(tmp_path.iterdir())
    names = [file.name for file in data if file.name.startswith("s")]
    image = nrrd(tmp_path / "a.nhdr", b"", "data file: Whole ü.raw")
    listed = nrrd(tmp_path / "b.nhdr", b"", "data file: LIST", *names)
    numbered = nrrd(tmp_path / "c.nhdr", b"", "data file: s%02d.raw 1 4 1 2")
    for header in (image, listed, numbered):
        if header == listed:  # a list ends with the header
            header.write_bytes(header.read_bytes().rstrip(b"\n") + b"\n")
        found = page_files.read(header, *data)
        assert found.error == ""
        np.testing.assert_array_equal(found.voxels, voxels_of("i2"))
    missing = page_files.read(image, *data[1:])
    assert missing.error == "The file Whole ü.raw with voxels of a.nhdr is missing. Choose both files together."


def metaimage(path: Path, data: bytes, **changes: str | None) -> Path:
    """Write a MetaImage with voxels."""
    fields: dict[str, str | None] = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "0 1 0 0 0 -1 1 0 0", "Offset": "1.5 -2 3", "ElementSpacing": "2 3 4",
        "DimSize": "5 7 4", "ElementType": "MET_SHORT", **changes, "ElementDataFile": "LOCAL",
    }  # fmt: skip
    path.write_bytes("".join(f"{name} = {value}\n" for name, value in fields.items() if value).encode() + data)
    return path


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (RAW, {}),
        (RAW, {"TransformMatrix": None, "Offset": None, "ElementSpacing": None}),
        (RAW, {"TransformMatrix": None, "Orientation": "0 1 0 0 0 -1 1 0 0", "Offset": None, "Position": "1 2 3"}),
        (RAW, {"ElementSpacing": None, "ElementSize": "2 3 4"}),
        (voxels_of(">i2").tobytes(order="F"), {"BinaryDataByteOrderMSB": "True"}),
        (voxels_of(">i2").tobytes(order="F"), {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"}),
        (zlib.compress(RAW), {"CompressedData": "True", "CompressedDataSize": str(len(zlib.compress(RAW)))}),
        (
            " ".join(map(str, voxels_of("i2").ravel(order="F"))).encode() + b"\n",
            {"BinaryData": "False", "BinaryDataByteOrderMSB": None},
        ),
        (b"12345678" + RAW, {"HeaderSize": "-1"}),
    ],
)
def test_metaimage_headers(data: bytes, changes: dict[str, str], page_files: PageFiles, tmp_path: Path) -> None:
    path = metaimage(tmp_path / "a.mha", data, **changes)
    found, image = page_files.read(path), sitk.ReadImage(path)
    np.testing.assert_array_equal(found.voxels, sitk.GetArrayFromImage(image).transpose())
    np.testing.assert_allclose(found.ijk_to_lps, affine_of(image), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ElementNumberOfChannels": "3"}, "has 3 components per voxel"),
        ({"NDims": "2", "DimSize": "5 28", "TransformMatrix": "1 0 0 1", "Offset": "0 0", "ElementSpacing": "1 1"},
         "has 2 dimensions"),
        ({"DimSize": "5 7 40"}, "is incomplete"),
        ({"DimSize": "5 7 nan"}, "is damaged: it has 5 x 7 x NaN voxels"),
        ({"ElementType": "MET_STRING"}, "has voxels of the type MET_STRING"),
        ({"Offset": "1 2"}, "places only some of its axes"),
    ],
)  # fmt: skip
def test_metaimage_refused(changes: Any, sentence: str, page_files: PageFiles, tmp_path: Path) -> None:
    assert sentence in page_files.read(metaimage(tmp_path / "a.mha", RAW, **changes)).error


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty (0 bytes)"),
        (b"PK\x03\x04" + bytes(100), "it is a ZIP archive. Unpack it."),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page (HTML)"),
        (bytes(2000), "filled with zeros"),
        (b"\x5c\x01\0\0" + bytes(400), "an Analyze 7.5 file"),
        (gzip.compress(b"NRRD0004\n", mtime=0), "compressed by gzip. Decompress it"),
        (b"\x1f\x8b\x08 no gzip", "cannot be read"),
        (b"hello", "of an unknown format"),
        (b"NRRD0004\ntype: short\n", "ends within its header"),
        (b"ObjectType = Image\n", "does not end with ElementDataFile"),
        (b"\0" * 128 + b"DICM\x02\0", "is damaged"),
    ],
)
def test_other_files(content: bytes, sentence: str, page_files: PageFiles, tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(content)
    assert sentence in page_files.read(tmp_path / "a.nii").error


def test_images_among_other_files(page_files: PageFiles, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nrrd", "c.mha"):
        write(tmp_path / name, voxels_of("i2"))
    (tmp_path / "readme.txt").write_text("a text")
    assert page_files.read(tmp_path).labels == ["a.nii.gz", "b.nrrd", "c.mha"]
    others = page_files.read(tmp_path / "readme.txt", tmp_path / "readme.txt").error
    assert others == "None of the 2 files is an image. Expected NIfTI, NRRD or MetaImage files, or a DICOM series."
