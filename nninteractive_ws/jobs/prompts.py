"""The prompts of a job, converted to voxels of its image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.client.aio import AsyncSegment
from nninteractive_ws.client.events import Result
from nninteractive_ws.errors import BadImage, InvalidTable
from nninteractive_ws.files.images import read_label_map
from nninteractive_ws.files.markups import Lasso, Markup, read_markups
from nninteractive_ws.files.pictures import Prompt
from nninteractive_ws.files.volume import Volume, check_same_grid
from nninteractive_ws.geometry import Box
from nninteractive_ws.jobs.table import PromptRow


@dataclass(frozen=True)
class Scribble:
    """A mask of strokes, with the shape of ``box``."""

    box: Box
    mask: masks.Mask


Shape = Markup | Scribble


def shapes_of(prompt: PromptRow, volume: Volume) -> Sequence[Shape]:
    """Convert a row to shapes: one, or all those of its markups file. Raises InvalidTable."""
    try:
        if prompt.kind == "markups":
            assert prompt.file is not None
            return read_markups(prompt.file, volume)
        if prompt.kind in ("scribble", "lasso"):
            return [_mask_prompt(prompt, volume)]
        return [_point(prompt, volume) if prompt.kind == "point" else _box(prompt, volume)]
    except (InvalidTable, BadImage) as e:
        raise InvalidTable(f"{prompt.where}: {e}") from e


def mark_of(shape: Shape, positive: bool) -> Prompt:
    """Return the mark of a prompt in a picture: its bounding box."""
    return Prompt.of(shape.box if isinstance(shape, Scribble | Lasso) else shape, positive)


async def send_prompt(segment: AsyncSegment, shape: Shape, positive: bool) -> Result:
    """Prompt a segment, and wait for the result."""
    if isinstance(shape, Lasso):
        return await segment.add_lasso(shape.mask, box=shape.box, positive=positive)
    if isinstance(shape, Scribble):
        return await segment.add_scribble(shape.mask, box=shape.box, positive=positive)
    if isinstance(shape, Box):
        return await segment.add_bbox(shape, positive=positive)
    return await segment.add_point(shape, positive=positive)


def _point(prompt: PromptRow, volume: Volume) -> tuple[int, int, int]:
    a, b, c = prompt.numbers
    return volume.index_of((a, b, c)) if prompt.lps else (round(a), round(b), round(c))


def _box(prompt: PromptRow, volume: Volume) -> Box:
    a0, a1, b0, b1, c0, c1 = prompt.numbers
    if not prompt.lps:
        return Box.from_pairs(((int(a0), int(a1)), (int(b0), int(b1)), (int(c0), int(c1))))
    corners = zip(volume.index_of((a0, b0, c0)), volume.index_of((a1, b1, c1)), strict=True)
    return Box.from_pairs([(min(pair), max(pair) + 1) for pair in corners])


def _mask_prompt(prompt: PromptRow, volume: Volume) -> Scribble | Lasso:
    assert prompt.file is not None
    labels = read_label_map(prompt.file)
    check_same_grid(labels, volume, prompt.file)
    values = np.unique(labels.voxels[labels.voxels != 0])
    if len(values) != 1:
        found = ", ".join(map(str, values[:5].tolist())) or "none"
        raise InvalidTable(
            f"{prompt.file} has the labels {found}. Expected exactly one: one drawing per file, one file per row."
        )
    drawn = masks.to_delta(labels.voxels != 0)
    assert drawn.box is not None
    if prompt.kind == "scribble":
        return Scribble(drawn.box, drawn.flips)
    if min(drawn.box.shape) > 1:
        extent = " x ".join(map(str, drawn.box.shape))
        raise InvalidTable(
            f"{prompt.file} marks a region of {extent} voxels. Expected a filled outline in a single slice for a lasso."
        )
    return Lasso(drawn.box, drawn.flips)
