"""Marks of prompts in pictures."""

import numpy as np
import pytest

from nninteractive_ws.files.markups import Lasso
from nninteractive_ws.files.pictures import Prompt
from nninteractive_ws.geometry import Box
from nninteractive_ws.jobs.prompts import Scribble, Shape, mark_of

BOX = Box((2, 3, 4), (5, 7, 5))


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((2, 3, 4), Box((2, 3, 4), (3, 4, 5))),
        (BOX, BOX),
        (Scribble(BOX, np.ones(BOX.shape, bool)), BOX),
        (Lasso(BOX, np.ones(BOX.shape, bool)), BOX),
    ],
    ids=["point", "box", "scribble", "lasso"],
)
@pytest.mark.parametrize("positive", [True, False])
def test_a_mark_is_the_bounding_box_of_its_prompt(shape: Shape, box: Box, positive: bool) -> None:
    assert mark_of(shape, positive) == Prompt(box, positive)
