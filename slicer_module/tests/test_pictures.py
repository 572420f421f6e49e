"""What one sees: marks, previews and results in views that are really rendered, and the tutorial's pictures."""

import re

from desk import SHAPE, blobs
from NNInteractiveWSLib import geometry
from NNInteractiveWSLib.prompts import NEGATIVE, POSITIVE
from NNInteractiveWSLib.work import Work
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
def work(scene, volume):
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    return Work(scene, volume, segmentation, None)


@pytest.fixture
def marks(work):
    work.prompts.select("A")
    return work.prompts


def coloured(view, colour):
    """The pixels of a colour, (n, 2): rows and columns."""
    return np.argwhere(np.abs(view.pixels() - 255 * np.array(colour)).max(axis=2) < 40)


def test_the_volume_is_seen(views, volume):
    for view in views.slices.values():
        assert view.pixels().std() > 3


def test_a_mark_is_where_the_prompt_is(views, volume, marks):
    voxel = (30, 24, 20)
    views.jump(geometry.ijkToWorld(volume, voxel))
    for positive, colour in ((True, POSITIVE), (False, NEGATIVE)):
        node = marks.place("point", "A", positive, [voxel])
        for view in views.slices.values():
            seen = coloured(view, colour)
            np.testing.assert_allclose(seen.mean(axis=0), view.at(geometry.ijkToWorld(volume, voxel)), atol=1)
            high, wide = np.ptp(seen, axis=0) + 1
            assert 8 < wide < 24
            assert (high > 8) == positive, "a plus is as high as wide, a minus is not"
        marks.remove(node)


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("positive", [True, False], ids=["positive", "negative"])
def test_a_line_is_seen_in_its_slice_alone(views, volume, marks, kind, positive):
    colour = POSITIVE if positive else NEGATIVE
    marks.place(kind, "A", positive, LINES[kind], axis=2)
    axial = views.slices["Red"]
    counts = {}
    for k in (23, 23.55, 24, 24.45, 25):
        views.jump(geometry.ijkToWorld(volume, (30, 24, k)))
        counts[k] = len(coloured(axial, colour))
    assert counts[23] == counts[25] == 0
    assert min(counts[23.55], counts[24], counts[24.45]) > 60
    # Across it, it is no more than some dots.
    assert all(len(coloured(views.slices[name], colour)) < 40 for name in ("Yellow", "Green"))
    assert len(coloured(views.threeD, colour)) == 0


def test_negative_lines_are_told_apart_without_colours(views, volume, marks):
    views.jump(geometry.ijkToWorld(volume, (30, 24, 24)))
    heights = {}
    for positive, colour in ((True, POSITIVE), (False, NEGATIVE)):
        node = marks.place("scribble", "A", positive, [(i, 24, 24) for i in range(10, 60)], axis=2)
        seen = coloured(views.slices["Red"], colour)
        heights[positive] = {int((seen[:, 1] == column).sum()) for column in np.unique(seen[:, 1])[4:-4]}
        marks.remove(node)
    assert max(heights[True]) <= 4
    assert max(heights[False]) > 4, "beads"
    assert min(heights[False]) <= 4, "no band"


def test_only_what_counts_is_seen(views, volume, marks):
    views.jump(geometry.ijkToWorld(volume, (30, 24, 24)))
    red = views.slices["Red"]
    node = marks.place("point", "A", True, [(30, 24, 24)])
    marks.append("A", 0, node)
    marks.place("point", "B", False, [(40, 24, 24)])
    assert len(coloured(red, NEGATIVE)) == 0
    marks.sync("A", 0, 0, 1)
    assert len(coloured(red, POSITIVE)) == 0
    marks.sync("A", 0, 1, 0)
    assert len(coloured(red, POSITIVE)) > 0
    marks.remove(node)
    assert len(coloured(red, POSITIVE)) == 0


def test_a_preview_is_paler_than_a_result(views, volume, work):
    segmentation = work.segmentation.GetSegmentation()
    name = segmentation.AddEmptySegment("")
    segmentation.GetSegment(name).SetColor(1, 0, 1)
    mask = np.zeros(SHAPE, bool)
    mask[20:50, 15:45, 10:40] = True
    views.jump(geometry.ijkToWorld(volume, (35, 30, 24)))
    colours = []
    for preview in (True, False):
        work.write(name, geometry.boxBetween(SHAPE, (0, 0, 0), SHAPE), mask, preview=preview)
        work.proceed(0.0)
        picture = views.slices["Red"].pixels().astype(int)
        row, column = views.slices["Red"].at(geometry.ijkToWorld(volume, (35, 30, 24)))
        inside = picture[row - 20 : row + 20, column - 20 : column + 20].mean(axis=(0, 1))
        colours.append(inside[0] - inside[1])
        assert len(coloured(views.slices["Red"], (1, 0, 1))) > 50, "the outline is there"
    assert 15 < colours[0] < 0.5 * colours[1]


# ---- the tutorial -----------------------------------------------------------------------------------------


def opened(path):
    """A picture without the bars above the views."""
    picture = np.array(Image.open(path).convert("RGB"))
    for bar in pictures.BARS.values():
        picture[(picture == np.array(bar) & 0xFC).all(axis=2)] = 0
    return picture


def blended(picture, colour, least):
    """Whether so many pixels have about the hue of a segment's colour, and are not grey."""
    pixels = picture.reshape(-1, 3).astype(float)
    pixels = pixels[np.ptp(pixels, axis=1) > 25]
    centred = pixels - pixels.mean(axis=1, keepdims=True)
    wanted = np.array(colour) - np.mean(colour)
    alike = centred @ wanted / np.linalg.norm(centred, axis=1) / np.linalg.norm(wanted)
    return (alike > 0.95).sum() >= least


def has(picture, colour):
    return (np.abs(picture - 255 * np.array(colour)).max(axis=2) < 40).sum() > 15


@pytest.mark.timeout(400)
def test_the_tutorials_pictures(demo, tmp_path):
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


def test_the_tutorial_shows_them_all():
    readme = (pictures.FOLDER.parent / "README.md").read_text()
    shown = set(re.findall(r"\]\(Screenshots/([^)]+)\)", readme))
    assert shown == {path.name for path in pictures.FOLDER.iterdir()}
