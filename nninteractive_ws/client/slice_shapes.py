"""Boxes, scribbles and lassos drawn in a slice, as voxels."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from nninteractive_ws import masks
from nninteractive_ws.geometry import Index
from nninteractive_ws.masks import Delta

Shape = Literal["box", "scribble", "lasso"]


def draw_shape(shape: Shape, path: Sequence[Index], normal: int, volume: Index, width: int) -> Delta:
    """Return the voxels of a shape.

    ``path``: voxels (i, j, k) of the pointer from press to release, in one slice of a volume of shape ``volume``.
    ``normal``: axis perpendicular to the slice. ``width``: thickness of a scribble, in voxels.

    The first and the last voxel are corners of a box. A lasso has the closed path and the voxels inside.
    """
    rows, columns = (axis for axis in range(3) if axis != normal)
    image = Image.new("1", (volume[columns], volume[rows]))
    points = [(voxel[columns], voxel[rows]) for voxel in path]
    draw = ImageDraw.Draw(image)
    if shape == "box":
        draw.rectangle(_corners(points[0], points[-1]), fill=1)
    elif shape == "lasso":
        # A polygon needs two points.
        draw.polygon([*points, points[0]], fill=1, outline=1)
    else:
        _draw_stroke(draw, points, width)
    origin = [0, 0, 0]
    origin[normal] = path[0][normal]
    return masks.to_delta(np.expand_dims(np.asarray(image, bool), normal), origin)


Point = tuple[int, int]


def _corners(a: Point, b: Point) -> tuple[Point, Point]:
    (ax, ay), (bx, by) = a, b
    return (min(ax, bx), min(ay, by)), (max(ax, bx), max(ay, by))


def _draw_stroke(draw: ImageDraw.ImageDraw, points: Sequence[Point], width: int) -> None:
    """Draw a line with round ends and joints."""
    draw.line([*points, points[-1]], fill=1, width=width)
    before, after = (width - 1) // 2, width // 2
    for x, y in points:
        draw.ellipse((x - before, y - before, x + after, y + after), fill=1)
