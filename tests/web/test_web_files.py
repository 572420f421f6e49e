"""Image files read by the page, compared with SimpleITK, nibabel and the Python client."""

from itertools import permutations
from pathlib import Path
from typing import Any

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
