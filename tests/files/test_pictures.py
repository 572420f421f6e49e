"""Pictures of segments: orientation against SimpleITK, outline, prompts, and unusual voxels."""

from itertools import permutations, product
from typing import Any

from helpers.batch import OBLIQUE
import numpy as np
import numpy.typing as npt
from PIL import Image
import pytest
import SimpleITK as sitk

from nninteractive_ws.files.pictures import Orientation, Plane, Prompt, picture, three_views
from nninteractive_ws.files.volume import Volume
from nninteractive_ws.geometry import Box

COLOR = (1.0, 0.0, 0.0)
RED = [255, 0, 0]
FRAME = 2
#: All orientations along the anatomical axes, such as LPS or IAR.
CODES = ["".join(code) for p in permutations(("LR", "PA", "SI")) for code in product(*p)]


def image_of(voxels: npt.NDArray[Any], spacing: tuple[float, float, float] = (1, 1, 1)) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels.transpose())
    image.SetSpacing(spacing)
    image.SetOrigin((-31.0, 12.0, 700.0))
    return image


def volume_of(image: sitk.Image) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).transpose(), affine)


def random_voxels(shape: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    return np.random.default_rng(7).integers(0, 200, shape).astype(np.int16)


def blob(shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """An asymmetric mask with one largest slice along each axis."""
    mask = np.zeros(shape, bool)
    mask[8:20, 9:16, 5:9] = True
    mask[11, 20:22, 6] = True
    mask[14, 12, 6:12] = True
    return mask


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels without the frame."""
    return np.asarray(image)[FRAME:-FRAME, FRAME:-FRAME]


def is_red(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    return np.asarray((rgb == RED).all(-1))


# ---- orientation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_pixels_are_where_a_radiologist_expects_them(plane: Plane) -> None:
    """The reference is SimpleITK's array of an LPS volume. Its rows lead to posterior, its columns to the left."""
    shape = (96, 90, 72)  # all of it is shown
    voxels, mask = random_voxels(shape), np.kron(blob((32, 30, 24)), np.ones((3, 3, 3), bool))
    image = image_of(voxels)
    lps = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))  # [superior, posterior, left]
    size = 90 if plane == "sagittal" else 96
    found = picture(voxels, mask, volume_of(image).ijk_to_lps, COLOR, plane=plane, size=size)
    at = int(found.at.partition(" = ")[2])
    expected = lps[at] if plane == "axial" else lps[::-1, at] if plane == "coronal" else lps[::-1, :, at]
    shown = pixels(found.image)
    assert shown.shape[:2] == expected.shape  # a pixel per voxel
    gray = (shown[..., 0] == shown[..., 1]) & (shown[..., 1] == shown[..., 2]) & ~letters(shown.shape[:2])
    order = np.argsort(expected[gray], kind="stable")
    assert gray.sum() > 4000
    assert (np.diff(shown[..., 0][gray][order].astype(int)) >= 0).all()  # a higher value is brighter
    assert np.ptp(shown[..., 0][gray]) > 150


def letters(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return the center of each border, where the letters are."""
    height, width = shape
    mask = np.zeros(shape, bool)
    rows, columns = slice(height // 2 - 8, height // 2 + 8), slice(width // 2 - 8, width // 2 + 8)
    mask[rows, :12] = mask[rows, -12:] = mask[:12, columns] = mask[-12:, columns] = True
    return mask


@pytest.mark.parametrize("code", CODES)
def test_the_storage_order_of_a_volume_does_not_change_its_picture(code: str) -> None:
    shape = (40, 32, 24)
    image = image_of(random_voxels(shape), (1.0, 1.3, 1.7))
    mask = image_of(blob(shape).astype(np.uint8), (1.0, 1.3, 1.7))
    views = []
    for name in ("LPS", code):
        turned, turned_mask = volume_of(sitk.DICOMOrient(image, name)), volume_of(sitk.DICOMOrient(mask, name))
        point = turned.index_of(image.TransformIndexToPhysicalPoint((14, 12, 6)))
        prompts = [Prompt.of(point, True)]
        views.append(three_views(turned.voxels, turned_mask.voxels != 0, turned.ijk_to_lps, COLOR, prompts))
        found = picture(turned.voxels, turned_mask.voxels != 0, turned.ijk_to_lps, COLOR, prompts)
        axis, _, index = found.at.partition(" = ")
        slices = np.moveaxis(turned_mask.voxels != 0, "ijk".index(axis), 0)
        assert slices[int(index)].sum() == slices.sum((1, 2)).max()
    # The captions name different axes. They are in the topmost 24 rows.
    first, second = (np.asarray(view)[24:] for view in views)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SAL", "AIL"])
@pytest.mark.parametrize("sheared", [False, True])
def test_an_oblique_volume_is_shown_as_its_nearest_planes(code: str, sheared: bool) -> None:
    turned = volume_of(sitk.DICOMOrient(image_of(random_voxels((20, 18, 16)), (1, 2, 3)), code))
    straight = turned.ijk_to_lps
    tilted = np.eye(4)
    tilted[:3, :3] = OBLIQUE @ (np.eye(3) + 0.1 * np.triu(np.ones((3, 3)), 1)) if sheared else OBLIQUE
    found, expected = Orientation.of(tilted @ straight), Orientation.of(straight)
    assert (found.axes, found.flips) == (expected.axes, expected.flips)
    if not sheared:
        np.testing.assert_allclose(found.spacing, expected.spacing)


def test_right_is_on_the_left_and_anterior_at_the_top() -> None:
    voxels, mask = np.zeros((30, 30, 9), np.int16), np.zeros((30, 30, 9), bool)
    mask[3:6, 3:6, 4] = True  # with the identity, small indices are right, anterior, inferior
    rows, columns = np.nonzero(is_red(pixels(picture(voxels, mask, np.eye(4), COLOR).image)))
    assert columns.max() < 120 > rows.max()
    planes: tuple[Plane, ...] = ("coronal", "sagittal")
    for plane in planes:
        shown = np.asarray(picture(voxels, mask, np.eye(4), COLOR, plane=plane).image)
        assert np.nonzero(is_red(shown))[1].max() < 120  # right, and anterior


@pytest.mark.parametrize(
    ("spacing", "plane", "size"),
    [
        ((0.5, 0.5, 0.5), "axial", (240, 120)),
        ((0.5, 0.5, 5.0), "axial", (240, 120)),
        ((0.5, 1.0, 1.0), "axial", (240, 240)),
        ((0.7, 4.0, 0.7), "coronal", (240, 120)),
        ((4.0, 0.6, 0.6), "sagittal", (240, 240)),
    ],
)
def test_thick_slices_are_shown_as_acquired_and_undistorted(
    spacing: tuple[float, float, float], plane: str, size: tuple[int, int]
) -> None:
    mask = np.zeros((60, 30, 30), bool)
    mask[20:40, 10:20, 10:20] = True
    found = picture(np.zeros(mask.shape), mask, np.diag([*spacing, 1.0]), COLOR)
    assert (found.plane, found.image.size) == (plane, (size[0] + 2 * FRAME, size[1] + 2 * FRAME))


# ---- the outline and the prompts ----------------------------------------------------------------------------


@pytest.mark.parametrize("voxels_per_pixel", [1, 2])
def test_the_outline_surrounds_the_segment_and_does_not_cover_it(voxels_per_pixel: int) -> None:
    side = 240 * voxels_per_pixel
    mask = np.zeros((side, side, 3), bool)
    for value, columns, rows in ((True, (40, 160), (50, 120)), (False, (80, 100), (70, 90))):
        mask[slice(*np.multiply(columns, voxels_per_pixel)), slice(*np.multiply(rows, voxels_per_pixel)), 1] = value
    shown = is_red(pixels(picture(np.zeros(mask.shape), mask, np.eye(4), COLOR, size=240).image))
    inside = mask[:, :, 1].T.reshape(240, voxels_per_pixel, 240, voxels_per_pixel).any((1, 3))
    assert not (shown & inside).any()
    grown = np.pad(inside, 1)
    neighbors = grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]
    assert shown[neighbors & ~inside].all()


def test_thin_and_tiny_segments_are_visible_in_large_slices() -> None:
    line = np.zeros((2000, 1500, 2), bool)
    line[10:1990, 700, 1] = True
    shown = is_red(np.asarray(picture(np.zeros(line.shape, np.uint8), line, np.eye(4), COLOR).image))
    assert (shown.any(0)).sum() > 230
    dot = np.zeros((2000, 1500, 2), bool)
    dot[1999, 0, 0] = True
    shown = is_red(np.asarray(picture(np.zeros(dot.shape, np.uint8), dot, np.eye(4), COLOR).image))
    assert shown.sum() >= 4


def test_only_prompts_near_the_slice_are_marked() -> None:
    mask = np.zeros((60, 60, 20), bool)
    mask[20:40, 20:40, 10] = True

    def colors(*prompts: Prompt) -> set[tuple[int, ...]]:
        found = np.asarray(picture(np.zeros(mask.shape), mask, np.eye(4), COLOR, prompts).image)
        return {tuple(int(n) for n in rgb) for rgb in found.reshape(-1, 3)}

    plain = colors()
    for at, shown in ((10, True), (12, True), (8, True), (13, False), (7, False)):
        for prompt in (Prompt.of((25, 25, at), True), Prompt.of(Box((22, 22, at), (30, 30, at + 1)), False)):
            assert (len(colors(prompt) - plain) > 0) is shown, (at, prompt)
    assert colors(Prompt.of((25, 25, 10), True)) != colors(Prompt.of((25, 25, 10), False))


def test_an_empty_segment_is_shown_where_its_prompt_was() -> None:
    empty = np.zeros((50, 50, 30), bool)
    prompts = [Prompt.of((1, 1, 1), False), Prompt.of(Box((10, 10, 20), (20, 20, 23)), True)]
    assert picture(np.zeros(empty.shape), empty, np.eye(4), COLOR, prompts).at == "k = 21"
    assert picture(np.zeros(empty.shape), empty, np.eye(4), COLOR).at == "k = 15"
    outside = [Prompt.of((900, 1, 1), True)]
    assert picture(np.zeros(empty.shape), empty, np.eye(4), COLOR, outside).at == "k = 15"


# ---- unusual volumes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "voxels",
    [
        np.full((9, 9, 9), 7, np.int16),
        np.zeros((9, 9, 9), bool),
        np.full((9, 9, 9), np.nan),
        np.full((9, 9, 9), np.inf, np.float32),
        np.linspace(-1.7, 1.7, 729).reshape(9, 9, 9) * 1e308,
        np.arange(729, dtype=np.uint64).reshape(9, 9, 9) + (2**64 - 1000),
        np.arange(729).reshape(9, 9, 9).astype(np.float16),
        np.arange(729, dtype=">i4").reshape(9, 9, 9),
        np.where(np.arange(729).reshape(9, 9, 9) % 3, -np.inf, np.nan),
    ],
    ids=["constant", "bool", "nan", "inf", "overflow", "uint64", "float16", "big-endian", "no finite voxel"],
)
def test_any_voxels_make_a_picture(voxels: npt.NDArray[Any]) -> None:
    mask = np.zeros(voxels.shape, bool)
    mask[4, 4, 4] = True
    for segment in (mask, ~mask, np.ones_like(mask), np.zeros_like(mask)):
        assert picture(voxels, segment, np.eye(4), COLOR).image.size == (244, 244)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (40, 1, 40), (40, 40, 1), (2000, 1, 1)])
def test_any_shape_makes_a_picture(shape: tuple[int, int, int]) -> None:
    views = three_views(np.zeros(shape, np.int16), np.ones(shape, bool), np.eye(4), COLOR)
    assert min(views.size) > 0


def test_one_bright_voxel_does_not_darken_the_organ() -> None:
    """An implant is bright, and air is dark: soft tissue keeps its contrast."""
    rng = np.random.default_rng(0)
    mask = np.zeros((100, 100, 3), bool)
    mask[30:70, 30:70] = True
    voxels = np.where(mask, 110, 20) + rng.normal(0, 10, mask.shape)
    voxels[:, :20] = -1000
    voxels[48:52, 45:50] = 20000
    shown = pixels(picture(voxels, mask, np.eye(4), COLOR, size=100).image)[..., 1].astype(int)
    assert np.median(shown[60:68, 35:65]) - np.median(shown[80:95, 20:40]) > 60


def test_the_same_input_makes_the_same_picture() -> None:
    voxels, mask = random_voxels((40, 32, 24)), blob((40, 32, 24))
    first, second = (picture(voxels.copy(), mask.copy(), np.eye(4), COLOR).image.tobytes() for _ in range(2))
    assert first == second
