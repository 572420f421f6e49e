"""Previews during a prediction: an answer of the patch size for a larger box."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import torch
from torch.nn.functional import interpolate

from nninteractive_ws.engine.preview import nonempty_region, resample_nearest
from nninteractive_ws.geometry import Box

PATCH = (12, 10, 8)


@st.composite
def views(draw: st.DrawFn) -> tuple[np.ndarray, Box, Box]:
    """An answer with few voxels or none, its box in the image, and a part of that box."""
    answer = np.zeros(PATCH, bool)
    for _ in range(draw(st.integers(0, 3))):
        answer[tuple(draw(st.integers(0, n - 1)) for n in PATCH)] = True
    pairs, parts = [], []
    for n in PATCH:
        low = draw(st.integers(-20, 20))
        size = draw(st.integers(n, 5 * n))
        a = draw(st.integers(0, size - 1))
        b = draw(st.integers(a + 1, size))
        pairs.append((low, low + size))
        parts.append((low + a, low + b))
    return answer, Box.from_pairs(pairs), Box.from_pairs(parts)


@settings(max_examples=3 * settings.default.max_examples)
@given(views())
def test_the_nonempty_region_contains_all_voxels(view: tuple[np.ndarray, Box, Box]) -> None:
    answer, box, inside = view
    everything = resample_nearest(answer, box, inside)
    found = nonempty_region(answer, box, inside)
    output = np.zeros_like(everything)
    if found is not None:
        output[found.relative_to(inside).slices] = resample_nearest(answer, box, found)
    assert np.array_equal(output, everything)


def test_resampling_matches_torchs_nearest_neighbor() -> None:
    answer = np.random.default_rng(0).random(PATCH) < 0.5
    box = Box.whole((31, 27, 29))
    voxels = interpolate(torch.from_numpy(answer)[None, None].float(), box.shape, mode="nearest-exact")[0, 0]
    assert np.array_equal(resample_nearest(answer, box, box), voxels.numpy() > 0.5)


def test_the_nonempty_region_is_tight() -> None:
    answer = np.zeros(PATCH, bool)
    answer[3:5, 2, 7] = True
    box = Box((-6, 0, 10), (30, 30, 34))  # three voxels per voxel of the answer
    assert nonempty_region(answer, box, box) == Box((3, 6, 31), (9, 9, 34))
    assert nonempty_region(answer, box, Box((0, 0, 10), (6, 7, 34))) == Box((3, 6, 31), (6, 7, 34))
    assert nonempty_region(answer, box, Box((0, 0, 10), (3, 7, 34))) is None
    assert nonempty_region(np.zeros(PATCH, bool), box, box) is None
