"""Marks, previews and results in rendered views, and the tutorial's screenshots."""

import re

from logic_harness import SHAPE, blobs
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.prompts import NEGATIVE, POSITIVE
from NNInteractiveWSLib.segmentationBinding import SegmentationBinding
import numpy as np
import pictures
from PIL import Image
import pytest
from rendering import Views

LINES = {
    "scribble": [(20, 20, 24), (30, 24, 24), (40, 20, 24)],
    "lasso": [(20, 20, 24), (40, 20, 24), (30, 35, 24)],
    "box": [(20, 20, 24), (40, 35, 24)],
}
SPACING = (1.0, 1.5, 3.0)


@pytest.fixture
def views(scene):
    made = Views(scene, scene.kept[0], (300, 240))
    yield made
    made.close()


@pytest.fixture
def volume(views, add_volume):
    made = add_volume(blobs(), spacing=SPACING)
    made.CreateDefaultDisplayNodes()
    views.show(made)
    return made


@pytest.fixture
def binding(scene, volume):
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    return SegmentationBinding(scene, volume, segmentation, None)


@pytest.fixture
def marks(binding):
    binding.prompts.select("A")
    return binding.prompts


def colored(view, color):
    """The pixels of a color, (n, 2): rows and columns."""
    return np.argwhere(np.abs(view.pixels() - 255 * np.array(color)).max(axis=2) < 40)


def test_the_volume_is_visible(views, volume):
    for view in views.slices.values():
        assert view.pixels().std() > 3


def test_a_mark_is_where_the_prompt_is(views, volume, marks):
    voxel = (30, 24, 20)
    views.jump(geometry.ijkToWorld(volume, voxel))
    for positive, color in ((True, POSITIVE), (False, NEGATIVE)):
        node = marks.place("point", "A", positive, [voxel])
        for view in views.slices.values():
            seen = colored(view, color)
            np.testing.assert_allclose(seen.mean(axis=0), view.at(geometry.ijkToWorld(volume, voxel)), atol=1)
            high, wide = np.ptp(seen, axis=0) + 1
            assert 8 < wide < 24
            assert (high > 8) == positive, "a plus is as high as wide, a minus is not"
        marks.remove(node)


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("positive", [True, False], ids=["positive", "negative"])
def test_a_line_is_visible_only_in_its_slice(views, volume, marks, kind, positive):
    color = POSITIVE if positive else NEGATIVE
    marks.place(kind, "A", positive, LINES[kind], axis=2)
    axial = views.slices["Red"]
    counts = {}
    for k in (23, 23.55, 24, 24.45, 25):
        views.jump(geometry.ijkToWorld(volume, (30, 24, k)))
        counts[k] = len(colored(axial, color))
    assert counts[23] == counts[25] == 0
    assert min(counts[23.55], counts[24], counts[24.45]) > 60
    # In the other views, only a few dots are visible.
    assert all(len(colored(views.slices[name], color)) < 40 for name in ("Yellow", "Green"))
    assert len(colored(views.threeD, color)) == 0


def test_negative_lines_differ_in_shape(views, volume, marks):
    views.jump(geometry.ijkToWorld(volume, (30, 24, 24)))
    heights = {}
    for positive, color in ((True, POSITIVE), (False, NEGATIVE)):
        node = marks.place("scribble", "A", positive, [(i, 24, 24) for i in range(10, 60)], axis=2)
        seen = colored(views.slices["Red"], color)
        heights[positive] = {int((seen[:, 1] == column).sum()) for column in np.unique(seen[:, 1])[4:-4]}
        marks.remove(node)
    assert max(heights[True]) <= 4
    assert max(heights[False]) > 4, "no glyphs"
    assert min(heights[False]) <= 4, "a continuous band"


def test_only_active_marks_are_visible(views, volume, marks):
    views.jump(geometry.ijkToWorld(volume, (30, 24, 24)))
    red = views.slices["Red"]
    node = marks.place("point", "A", True, [(30, 24, 24)])
    marks.append("A", 0, node)
    marks.place("point", "B", False, [(40, 24, 24)])
    assert len(colored(red, NEGATIVE)) == 0
    marks.sync("A", 0, 0, 1)
    assert len(colored(red, POSITIVE)) == 0
    marks.sync("A", 0, 1, 0)
    assert len(colored(red, POSITIVE)) > 0
    marks.remove(node)
    assert len(colored(red, POSITIVE)) == 0


def test_a_preview_is_paler_than_a_result(views, volume, binding):
    segmentation = binding.segmentation.GetSegmentation()
    name = segmentation.AddEmptySegment("")
    segmentation.GetSegment(name).SetColor(1, 0, 1)
    mask = np.zeros(SHAPE, bool)
    mask[20:50, 15:45, 10:40] = True
    views.jump(geometry.ijkToWorld(volume, (35, 30, 24)))
    colors = []
    for preview in (True, False):
        binding.write(name, geometry.boxBetween(SHAPE, (0, 0, 0), SHAPE), mask, preview=preview)
        binding.writePending(0.0)
        picture = views.slices["Red"].pixels().astype(int)
        row, column = views.slices["Red"].at(geometry.ijkToWorld(volume, (35, 30, 24)))
        inside = picture[row - 20 : row + 20, column - 20 : column + 20].mean(axis=(0, 1))
        colors.append(inside[0] - inside[1])
        assert len(colored(views.slices["Red"], (1, 0, 1))) > 50, "the outline is there"
    assert 15 < colors[0] < 0.5 * colors[1]


# ---- the tutorial -----------------------------------------------------------------------------------------


def opened(path):
    """Open a screenshot, and blacken the bars above the views."""
    picture = np.array(Image.open(path).convert("RGB"))
    for bar in pictures.BARS.values():
        picture[(picture == np.array(bar) & 0xFC).all(axis=2)] = 0
    return picture


def blended(picture, color, least):
    """Whether at least so many pixels are not gray and have a hue close to that of a segment's color."""
    pixels = picture.reshape(-1, 3).astype(float)
    pixels = pixels[np.ptp(pixels, axis=1) > 25]
    centered = pixels - pixels.mean(axis=1, keepdims=True)
    wanted = np.array(color) - np.mean(color)
    alike = centered @ wanted / np.linalg.norm(centered, axis=1) / np.linalg.norm(wanted)
    return (alike > 0.95).sum() >= least


def has(picture, color):
    return (np.abs(picture - 255 * np.array(color)).max(axis=2) < 40).sum() > 15


@pytest.mark.timeout(400)
def test_the_tutorials_screenshots(demo, tmp_path):
    pictures.write(tmp_path, demo)
    shown = {path.stem: opened(path) for path in tmp_path.glob("*.png")}
    assert all(path.stat().st_size < 200_000 for path in tmp_path.glob("*.png"))
    assert shown.keys() == {"first-prompt", "preview", "correction", "segments"}
    assert blended(shown["first-prompt"], pictures.COLORS["right kidney"], 3000)
    assert has(shown["first-prompt"], POSITIVE)
    preview, result = np.array_split(shown["preview"], 2, axis=1)
    assert has(preview, POSITIVE)
    assert blended(result, pictures.COLORS["liver"], 3000)
    assert not blended(preview, pictures.COLORS["liver"], 3000)
    before, after = np.array_split(shown["correction"], 2, axis=1)
    assert not has(before, NEGATIVE)
    assert has(after, NEGATIVE)
    for organ in ("liver", "stomach", "spleen", "left kidney", "right kidney"):
        assert blended(shown["segments"], pictures.COLORS[organ], 1000), organ


def test_the_tutorial_uses_all_screenshots():
    readme = (pictures.FOLDER.parent / "README.md").read_text()
    shown = set(re.findall(r"\]\(Screenshots/([^)]+)\)", readme))
    assert shown == {path.name for path in pictures.FOLDER.iterdir()}
