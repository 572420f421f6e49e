"""Validation of prompts, and their conversion to calls of upstream's session."""

import numpy as np

from nninteractive_ws import masks
from nninteractive_ws.engine.upstream import UpstreamSession
from nninteractive_ws.errors import OutOfBounds, UnsupportedPrompt
from nninteractive_ws.geometry import Box, Index, box_in_volume
from nninteractive_ws.messages import AddBbox, AddLasso, AddPoint, AddScribble, Prompt


def check_prompt(prompt: Prompt, shape: Index, supported: list[str]) -> None:
    """Raise OutOfBounds, UnsupportedPrompt or BadMessage if the prompt cannot be used on a volume of ``shape``."""
    kind = _KINDS[type(prompt)]
    if isinstance(prompt, AddPoint):
        if not all(0 <= p < n for p, n in zip(prompt.point, shape, strict=True)):
            raise OutOfBounds(
                f"The point {prompt.point} is outside the volume of shape {shape}. Use indices from (0, 0, 0) to "
                f"{tuple(n - 1 for n in shape)}."
            )
    elif isinstance(prompt, AddBbox):
        kind = _check_box(prompt, shape, supported)
    elif not masks.unpack(prompt.mask, shape).flips.any():
        raise UnsupportedPrompt(f"The {kind} is empty. Mark at least one voxel.")
    if kind not in supported:
        raise UnsupportedPrompt(f"The loaded model does not support {kind} prompts. Use one of {', '.join(supported)}.")


_KINDS = {AddPoint: "point", AddBbox: "bbox2d", AddScribble: "scribble", AddLasso: "lasso"}


def _check_box(prompt: AddBbox, shape: Index, supported: list[str]) -> str:
    box = box_in_volume(prompt.box, shape)
    if 1 in box.shape:
        return "bbox2d" if "bbox2d" in supported else "bbox3d"
    return "bbox3d" if "bbox3d" in supported else "bbox2d"


def apply_prompt(session: UpstreamSession, prompt: Prompt, run: bool) -> None:
    """Add a checked prompt to upstream's session. ``run``: whether to predict."""
    if isinstance(prompt, AddPoint):
        session.add_point_interaction(prompt.point, prompt.positive, run_prediction=run)
    elif isinstance(prompt, AddBbox):
        *first, last = boxes_for(prompt, session.supported_interactions["bbox3d"])
        for box in first:
            session.add_bbox_interaction(box.pairs, prompt.positive, run_prediction=False)
        session.add_bbox_interaction(last.pairs, prompt.positive, run_prediction=run)
    else:
        strokes = masks.unpack(prompt.mask, session.image_shape)
        assert strokes.box is not None
        add = session.add_scribble_interaction if isinstance(prompt, AddScribble) else session.add_lasso_interaction
        crop = strokes.flips.astype(np.uint8)
        add(crop, prompt.positive, run_prediction=run, interaction_bbox=[list(r) for r in strokes.box.pairs])


def boxes_for(prompt: AddBbox, model_takes_3d: bool) -> list[Box]:
    """Return the boxes to pass to the model for one prompt.

    A model trained on 2-D boxes gets the three middle slices of a 3-D box, which together have the same information.
    The slice that spans the two longest sides comes last, because upstream centers and zooms on the last prompt.
    """
    box = Box.from_pairs(prompt.box)
    if model_takes_3d or 1 in box.shape:
        return [box]
    slices = []
    for axis in sorted(range(3), key=lambda a: -box.shape[a]):
        pairs = list(box.pairs)
        middle = sum(pairs[axis]) // 2
        pairs[axis] = (middle, middle + 1)
        slices.append(Box.from_pairs(pairs))
    return slices
