"""The prompts of a job, in the voxels of its image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.client.aio import AsyncSegment
from nninteractive_ws.client.events import Result
from nninteractive_ws.errors import BadImage, BadJobs
from nninteractive_ws.files.images import Volume, check_same_grid, read_volume
from nninteractive_ws.files.markups import Lasso, Markup, read_markups
from nninteractive_ws.geometry import Box
from nninteractive_ws.jobs.table import Prompt


@dataclass(frozen=True)
class Scribble:
    """Strokes: a mask of ``box``'s shape."""

    box: Box
    mask: masks.Mask


Shape = Markup | Scribble


def shapes_of(prompt: Prompt, volume: Volume) -> Sequence[Shape]:
    """What a row marks in its image: one thing, or all that its markups file holds. Raises BadJobs."""
    try:
        if prompt.kind == "markups":
            assert prompt.file is not None
            return read_markups(prompt.file, volume)
        if prompt.kind in ("scribble", "lasso"):
            return [_drawn(prompt, volume)]
        return [_point(prompt, volume) if prompt.kind == "point" else _box(prompt, volume)]
    except (BadJobs, BadImage, OSError) as e:
        raise BadJobs(f"{prompt.where}: {e}") from e


async def give(segment: AsyncSegment, shape: Shape, positive: bool) -> Result:
    """Prompt a segment, and wait for the answer."""
    if isinstance(shape, Lasso):
        return await segment.add_lasso(shape.mask, box=shape.box, positive=positive)
    if isinstance(shape, Scribble):
        return await segment.add_scribble(shape.mask, box=shape.box, positive=positive)
    if isinstance(shape, Box):
        return await segment.add_bbox(shape, positive=positive)
    return await segment.add_point(shape, positive=positive)


def _point(prompt: Prompt, volume: Volume) -> tuple[int, int, int]:
    a, b, c = prompt.numbers
    return volume.index_of((a, b, c)) if prompt.lps else (round(a), round(b), round(c))


def _box(prompt: Prompt, volume: Volume) -> Box:
    a0, a1, b0, b1, c0, c1 = prompt.numbers
    if not prompt.lps:
        return Box.from_pairs(((int(a0), int(a1)), (int(b0), int(b1)), (int(c0), int(c1))))
    corners = zip(volume.index_of((a0, b0, c0)), volume.index_of((a1, b1, c1)), strict=True)
    return Box.from_pairs([(min(pair), max(pair) + 1) for pair in corners])


def _drawn(prompt: Prompt, volume: Volume) -> Scribble | Lasso:
    assert prompt.file is not None
    drawn = read_volume(prompt.file)
    check_same_grid(drawn, volume, prompt.file)
    labels = np.unique(drawn.voxels[drawn.voxels != 0])
    if len(labels) != 1:
        found = ", ".join(map(str, labels[:5].tolist())) or "none"
        raise BadJobs(f"{prompt.file} has the labels {found}; one is needed: a drawing in a file, a file in a row.")
    marked = masks.tight(drawn.voxels != 0)
    assert marked.box is not None
    if prompt.kind == "scribble":
        return Scribble(marked.box, marked.flips)
    if min(marked.box.shape) > 1:
        raise BadJobs(f"{prompt.file} marks {marked.box.shape} voxels; a lasso is an outline, filled, in one slice.")
    return Lasso(marked.box, marked.flips)
