"""The display's axes against nibabel's closest canonical orientation."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from nninteractive_ws.client.display_grid import DisplayGrid
from nninteractive_ws.geometry import Box

SHAPE = (5, 6, 7)
AXES = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
ROTATION = nib.eulerangles.euler2mat(0.2, -0.1, 0.15)


def affine(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """An affine with spacing 1, 2 and 3 mm whose array axes have these world axes and directions."""
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[world, axis] = sign * (axis + 1)
    matrix[:3, 3] = 10, -20, 30
    return matrix


def random(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, SHAPE).astype(dtype)


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_the_display_is_canonical(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    to_world, volume = affine(order, signs), random("int16")
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume, to_world))
    grid = DisplayGrid(SHAPE, to_world)
    shown = nib.Nifti1Image.from_bytes(grid.nifti(volume))
    assert np.array_equal(shown.get_fdata(), canonical.get_fdata())
    assert np.array_equal(shown.affine, canonical.affine)

    grid.labels[...] = volume
    assert np.array_equal(grid.bitmap, canonical.get_fdata().ravel(order="F"))


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_a_position_on_the_display_is_a_voxel(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    to_world = affine(order, signs)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(random("int16"), to_world))
    grid = DisplayGrid(SHAPE, to_world)
    for voxel in ((0, 0, 0), (4, 5, 6), (3, 1, 2)):
        displayed = np.linalg.inv(canonical.affine) @ to_world @ (*voxel, 1)
        for corner in (0.01, 0.5, 0.99):  # within the voxel
            assert grid.voxel((displayed[:3] + corner) / canonical.shape) == voxel


def test_positions_at_the_borders_are_inside() -> None:
    grid = DisplayGrid(SHAPE, np.diag([1, -1, 1, 1]))
    assert grid.voxel((0, 0, 0)) == (0, 5, 0)
    assert grid.voxel((1, 1, 1)) == (4, 0, 6)


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_offsets_are_positions_in_the_bitmap(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    grid = DisplayGrid(SHAPE, affine(order, signs))
    box = Box((1, 2, 3), (4, 6, 7))
    mask = random("int16")[box.slices] > 50
    grid.labels[box.slices][mask] = 1
    assert sorted(grid.offsets(box, mask).tolist()) == np.flatnonzero(grid.bitmap).tolist()


def test_normals_of_the_views() -> None:
    """The array axes are superior, right, anterior. Axial slices are perpendicular to the first."""
    grid = DisplayGrid(SHAPE, affine((2, 0, 1), (1, -1, 1)))
    assert [grid.normal(view) for view in range(3)] == [0, 2, 1]


def test_an_oblique_volume_keeps_its_axes_and_spacing() -> None:
    to_world = affine((1, 0, 2), (1, -1, 1))
    to_world[:3, :3] = ROTATION @ to_world[:3, :3]
    volume = random("int16")
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume, to_world))
    shown = nib.Nifti1Image.from_bytes(DisplayGrid(SHAPE, to_world).nifti(volume))
    assert np.array_equal(shown.get_fdata(), canonical.get_fdata())
    assert np.allclose(shown.affine[:3, :3], np.diag(canonical.header.get_zooms()))
    assert np.allclose(shown.affine[:3, 3], canonical.affine[:3, 3])
