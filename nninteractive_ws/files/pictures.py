"""Small pictures of segments: the outline over a slice, oriented as radiologists view it.

Axial and coronal slices have the patient's right on the left side, sagittal slices have anterior there. Anterior
(axial) or superior (coronal, sagittal) is at the top. An oblique volume is shown in its own slices, which are named
after the nearest anatomical plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from nninteractive_ws.files.images import Color
from nninteractive_ws.files.volume import Affine
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Mask, bounding_box

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
Floats = npt.NDArray[np.float32]

#: Side of the pictures of a report, in pixels.
SMALL = 240
#: Side of each of the three views of :func:`three_views`.
LARGE = 400
#: Pixels around the slice, so that an outline at the border of the image is visible.
_FRAME = 2
#: Part of a slice that is shown, relative to the extent of the segment.
_CONTEXT = 2.5
#: Minimum part of a slice that is shown, in voxels. A tiny segment needs surroundings to be recognized.
_MIN_VOXELS = 96
#: Maximum voxels per pixel that are resampled. Larger slices are subsampled first, which bounds time and memory.
_MAX_SUPERSAMPLING = 8
#: Width of the outline in pixels: thin, because it covers the surroundings of the segment.
_OUTLINE = 2
#: Width of the surroundings that determine the display window, relative to the picture.
_RING = 0.06
#: Display window relative to the typical values of the segment and its surroundings.
_WINDOW = 2.5
#: Minimum display window relative to the range of values in the picture, and to the median absolute deviation from
#: their median. Without them, noise would fill the window, or tissue would be black and white.
_MIN_WINDOW, _MIN_DEVIATIONS = 0.25, 4.0
#: Spacing between slices over spacing within slices from which the acquired slices are shown, of any orientation.
_THICK = 2.0
#: Maximum distance in slices at which a prompt is still drawn.
_MAX_PROMPT_DISTANCE = 2

# For each plane, in anatomical axes (0: to the left, 1: to posterior, 2: to superior): its normal, the axis to the
# right of the picture, the axis along its height, and whether that one points upwards.
_LAYOUT: dict[Plane, tuple[int, int, int, bool]] = {
    "axial": (2, 0, 1, False),
    "coronal": (1, 0, 2, True),
    "sagittal": (0, 1, 2, True),
}
_LETTERS = ("RL", "AP", "IS")
_POSITIVE, _NEGATIVE, _TEXT = (80, 255, 80), (255, 140, 40), (255, 255, 255)


@dataclass(frozen=True)
class Prompt:
    """A prompt to mark in a picture. A box of one voxel is drawn as a point."""

    box: Box
    positive: bool = True

    @classmethod
    def of(cls, shape: Box | Index, positive: bool) -> "Prompt":
        """Return the mark of a box or a point."""
        return cls(shape if isinstance(shape, Box) else Box.from_pairs([(n, n + 1) for n in shape]), positive)


@dataclass(frozen=True)
class Picture:
    """A picture, and its slice: the plane, and the index in the volume such as "k = 12"."""

    image: Image.Image
    plane: Plane
    at: str


@dataclass(frozen=True)
class Orientation:
    """The axes of a volume in anatomical order: to the left, to posterior, to superior.

    ``axes``: the axis (0 for i, 1 for j, 2 for k) nearest to each direction. ``flips``: whether it points the other
    way. ``spacing``: millimeters along each.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]

    @classmethod
    def of(cls, ijk_to_lps: Affine) -> "Orientation":
        """Return the orientation of an affine matrix (4, 4) from voxel indices to LPS millimeters."""
        lengths = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
        cosines = ijk_to_lps[:3, :3] / lengths
        axes = max(permutations(range(3)), key=lambda p: round(sum(abs(cosines[row, p[row]]) for row in range(3)), 9))
        flips = tuple(bool(cosines[row, axis] < 0) for row, axis in enumerate(axes))
        spacing = tuple(float(lengths[axis]) for axis in axes)
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), (spacing[0], spacing[1], spacing[2]))

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of an array (i, j, k) with anatomical axes."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def box(self, box: Box, shape: Sequence[int]) -> Box:
        """Return a box of voxels (i, j, k) in anatomical axes. ``shape``: of the volume, in (i, j, k)."""
        pairs = []
        for axis, flip in zip(self.axes, self.flips, strict=True):
            start, stop = box.pairs[axis]
            pairs.append((shape[axis] - stop, shape[axis] - start) if flip else (start, stop))
        return Box.from_pairs(pairs)

    def best_plane(self) -> Plane:
        """Return axial, or the plane of the acquired slices if these are thick."""
        within = sorted(self.spacing)[1]
        for plane in PLANES:
            if self.spacing[_LAYOUT[plane][0]] >= _THICK * within:
                return plane
        return "axial"


@dataclass(frozen=True)
class _Section:
    """A rectangle of a slice, in anatomical axes. ``at``: index of the slice. ``pixels``: its width and height."""

    plane: Plane
    at: int
    across: tuple[int, int]
    along: tuple[int, int]
    pixels: tuple[int, int]

    def cut(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the rows of the picture from an array with anatomical axes."""
        _, across, along, upwards = _LAYOUT[self.plane]
        index: list[int | slice] = [self.at] * 3
        index[across], index[along] = slice(*self.across), slice(*self.along)
        rows = array[tuple(index)].T  # in every plane, across comes before along
        return rows[::-1] if upwards else rows

    def corners(self, box: Box) -> tuple[float, float, float, float] | None:
        """Return left, top, right and bottom of a box in pixels, or None if it is in other slices."""
        normal, across, along, upwards = _LAYOUT[self.plane]
        start, stop = box.pairs[normal]
        if not start - _MAX_PROMPT_DISTANCE <= self.at < stop + _MAX_PROMPT_DISTANCE:
            return None
        (x0, x1), (y0, y1) = self.across, self.along
        left, right = (self.pixels[0] * (n - x0) / (x1 - x0) for n in box.pairs[across])
        top, bottom = (self.pixels[1] * (n - y0) / (y1 - y0) for n in box.pairs[along])
        if upwards:
            top, bottom = self.pixels[1] - bottom, self.pixels[1] - top
        return left + _FRAME, top + _FRAME, right + _FRAME, bottom + _FRAME


def picture(
    voxels: npt.NDArray[Any],
    mask: Mask,
    ijk_to_lps: Affine,
    color: Color,
    prompts: Sequence[Prompt] = (),
    *,
    plane: Plane | None = None,
    size: int = SMALL,
) -> Picture:
    """Draw the outline of a segment in the slice where it is largest, in the best plane or the given one.

    ``voxels`` (any real dtype) and ``mask`` are indexed (i, j, k). Without voxels in the mask, the slice is that of the
    first positive prompt. The outline lies outside the segment. ``size``: pixels of the longer side, without a frame.
    """
    orientation = Orientation.of(ijk_to_lps)
    volume, segment = orientation.apply(voxels), orientation.apply(mask)
    marks = [Prompt(orientation.box(p.box, mask.shape), p.positive) for p in prompts]
    section = _section(segment, marks, orientation, plane or orientation.best_plane(), size)
    width, height = section.pixels
    canvas = Image.new("RGB", (width + 2 * _FRAME, height + 2 * _FRAME))
    canvas.paste(_render(section.cut(volume), section.cut(segment), section.pixels, color), (_FRAME, _FRAME))
    for mark in marks:
        if corners := section.corners(mark.box):
            _draw_prompt(canvas, corners, mark, size)
    normal, across, along, upwards = _LAYOUT[section.plane]
    _draw_letters(canvas, _LETTERS[across], _LETTERS[along][::-1] if upwards else _LETTERS[along], size)
    axis = orientation.axes[normal]
    index = mask.shape[axis] - 1 - section.at if orientation.flips[normal] else section.at
    return Picture(canvas, section.plane, f"{'ijk'[axis]} = {index}")


def _section(segment: Mask, marks: Sequence[Prompt], orientation: Orientation, plane: Plane, size: int) -> _Section:
    """Choose the slice and its visible part."""
    normal, across, along, _ = _LAYOUT[plane]
    extent = bounding_box(segment)
    focus = extent or _focus(marks, segment.shape)
    at = _largest_slice(segment, extent, normal) if extent else sum(focus.pairs[normal]) // 2
    spacing = (orientation.spacing[across], orientation.spacing[along])
    columns, rows = _field_of_view(focus, segment.shape, (across, along), spacing)
    lengths = [(stop - start) * mm for (start, stop), mm in zip((columns, rows), spacing, strict=True)]
    width, height = (max(1, round(size * length / max(lengths))) for length in lengths)
    return _Section(plane, at, columns, rows, (width, height))


def three_views(
    voxels: npt.NDArray[Any], mask: Mask, ijk_to_lps: Affine, color: Color, prompts: Sequence[Prompt] = ()
) -> Image.Image:
    """Draw axial, coronal and sagittal views side by side, each in the slice where the segment is largest there."""
    views = [picture(voxels, mask, ijk_to_lps, color, prompts, plane=plane, size=LARGE) for plane in PLANES]
    font = ImageFont.load_default(14)
    height = max(view.image.height for view in views)
    canvas = Image.new("RGB", (sum(view.image.width for view in views), height + 24))
    draw, left = ImageDraw.Draw(canvas), 0
    for view in views:
        canvas.paste(view.image, (left, 24 + (height - view.image.height) // 2))
        draw.text((left + 6, 4), f"{view.plane}, {view.at}", _TEXT, font)
        left += view.image.width
    return canvas


def _focus(marks: Sequence[Prompt], shape: Sequence[int]) -> Box:
    """Return the box of the first positive prompt, or the whole volume."""
    boxes = [box for mark in marks if mark.positive and (box := mark.box.clip(shape))]
    return boxes[0] if boxes else Box.whole(shape)


def _largest_slice(segment: Mask, extent: Box, normal: int) -> int:
    """Return the index of the slice with the most voxels; of several, the one in the middle."""
    areas = np.count_nonzero(segment[extent.slices], axis=tuple(a for a in range(3) if a != normal))
    largest = np.flatnonzero(areas == areas.max())
    return int(largest[len(largest) // 2]) + extent.start[normal]


def _field_of_view(
    focus: Box, shape: Sequence[int], axes: tuple[int, int], spacing: tuple[float, float]
) -> list[tuple[int, int]]:
    """Return the ranges of a slice to show: a square around the focus, moved and clipped to the slice."""
    extents = [focus.shape[axis] * mm for axis, mm in zip(axes, spacing, strict=True)]
    side = max(_CONTEXT * max(extents), _MIN_VOXELS * min(spacing))
    ranges = []
    for axis, mm in zip(axes, spacing, strict=True):
        length = min(shape[axis], max(1, round(side / mm)))
        start = (sum(focus.pairs[axis]) - length) // 2
        start = min(max(start, 0), shape[axis] - length)
        ranges.append((start, start + length))
    return ranges


def _render(values: npt.NDArray[Any], mask: Mask, pixels: tuple[int, int], color: Color) -> Image.Image:
    """Resample a slice (rows, columns) and its mask to ``pixels`` (width, height), and draw the outline."""
    steps = [max(1, n // (p * _MAX_SUPERSAMPLING)) for n, p in zip(values.shape, pixels[::-1], strict=True)]
    gray = _resample(values[:: steps[0], :: steps[1]], pixels)
    # Each pixel with a part of the segment belongs to it, so that thin segments stay visible.
    covered = Image.fromarray(np.uint8(255) * mask[:: steps[0], :: steps[1]])
    inside = np.asarray(covered.resize(pixels, Image.Resampling.BOX)) > 0
    low, high = _display_window(gray, inside)
    shades = np.clip((gray - low) / (high - low), 0, 1) * 255
    image = np.repeat(shades.astype(np.uint8)[:, :, None], 3, axis=2)
    if inside.any():
        image[_dilate(inside, _OUTLINE) & ~inside] = [round(255 * part) for part in color]
    return Image.fromarray(image)


def _resample(values: npt.NDArray[Any], pixels: tuple[int, int]) -> Floats:
    """Scale the values of a slice to 0..1 and resample it. Values that are not finite become the smallest one."""
    numbers = np.clip(values.astype(np.float64), -1e300, 1e300)  # their range must not overflow
    finite = np.isfinite(values)
    low, high = (numbers[finite].min(), numbers[finite].max()) if finite.any() else (0.0, 0.0)
    scaled = (np.where(finite, numbers, low) - low) / ((high - low) or 1.0)
    return np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(pixels, Image.Resampling.BICUBIC))


def _display_window(gray: Floats, inside: Mask) -> tuple[float, float]:
    """Return the values that are displayed as black and as white.

    The window is centered between the middle half of the segment and the middle fifth of its surroundings. Air on one
    side of an organ must not flatten the contrast to the soft tissue on the others.
    """
    ring = _dilate(inside, round(max(gray.shape) * _RING)) & ~inside
    regions = [(gray[part], limits) for part, limits in ((inside, (25, 75)), (ring, (40, 60))) if part.any()]
    ranges = [np.percentile(values, limits) for values, limits in regions or [(gray, (25, 75))]]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    overall = float(np.ptp(np.percentile(gray, (1, 99))))
    deviation = float(np.median(np.abs(gray - np.median(gray))))
    half = max(_WINDOW * (high - low), _MIN_WINDOW * overall, _MIN_DEVIATIONS * deviation, 1e-6) / 2
    return float(low + high) / 2 - half, float(low + high) / 2 + half


def _dilate(mask: Mask, pixels: int) -> Mask:
    """Add the four neighbors of each pixel, several times."""
    for _ in range(pixels):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


def _draw_prompt(canvas: Image.Image, corners: Sequence[float], mark: Prompt, size: int) -> None:
    """Draw a box as a rectangle, a positive point as a plus, a negative one as a cross. ``corners``: of the box."""
    draw, color = ImageDraw.Draw(canvas), _POSITIVE if mark.positive else _NEGATIVE
    left, top, right, bottom = corners
    if mark.box.voxels > 1:
        draw.rectangle((round(left), round(top), round(right) - 1, round(bottom) - 1), outline=color)
        return
    x, y, r = round((left + right) / 2), round((top + bottom) / 2), max(3, size // 60)
    if mark.positive:
        draw.line((x - r, y, x + r, y), color)
        draw.line((x, y - r, x, y + r), color)
    else:
        draw.line((x - r, y - r, x + r, y + r), color)
        draw.line((x - r, y + r, x + r, y - r), color)


def _draw_letters(canvas: Image.Image, across: str, along: str, size: int) -> None:
    """Draw the orientation at the four borders."""
    font, draw = ImageFont.load_default(max(10, size // 20)), ImageDraw.Draw(canvas)
    width, height = canvas.size
    for letter, position, anchor in (
        (across[0], (3, height / 2), "lm"),
        (across[1], (width - 3, height / 2), "rm"),
        (along[0], (width / 2, 2), "mt"),
        (along[1], (width / 2, height - 3), "mb"),
    ):
        draw.text(position, letter, _TEXT, font, anchor, stroke_width=1, stroke_fill=(0, 0, 0))
