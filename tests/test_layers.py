"""Layers of bricks: their bits, their union, and how many bits the enhancement layer has."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from nninteractive_ws.layers import (
    base_layer,
    choose_low_bits,
    combine_layers,
    enhancement_layer,
    estimate_voxels,
    low_bits_of_brick,
    max_low_bits,
)

DTYPES = [np.dtype(d).newbyteorder("<") for d in ("i1", "u1", "i2", "u2", "i4", "u4", "f2", "f4")]


@st.composite
def layered(draw):
    dtype = draw(st.sampled_from(DTYPES))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    voxels = draw(hnp.arrays(dtype, (3, 4, 2), elements=hnp.from_dtype(dtype, **elements)))
    return voxels, draw(st.integers(1, max_low_bits(dtype)))


@given(layered())
def test_the_layers_together_are_the_voxels_bit_for_bit(sample):
    voxels, low_bits = sample
    base, enhancement = base_layer(voxels, low_bits), enhancement_layer(voxels, low_bits)
    assert base.dtype == enhancement.dtype == voxels.dtype
    assert combine_layers(base, enhancement).tobytes() == voxels.tobytes()
    assert combine_layers(base, base).tobytes() == base.tobytes()
    unsigned = f"<u{voxels.itemsize}"
    assert (enhancement.view(unsigned) < 2**low_bits).all()
    assert not (base.view(unsigned) % 2**low_bits).any()


@given(layered())
def test_estimates_are_within_half_an_interval(sample):
    voxels, low_bits = sample
    base = base_layer(voxels, low_bits)
    estimates = estimate_voxels(base, low_bits)
    assert estimates.dtype == voxels.dtype
    assert np.isfinite(estimates.astype(float)).all()
    if voxels.dtype.kind != "f":
        errors = np.abs(estimates.astype(np.int64) - voxels.astype(np.int64))
        assert errors.max() <= 2 ** (low_bits - 1)


@pytest.mark.parametrize(
    ("dtype", "std", "largest", "expected"),
    [
        ("int16", 480.0, 3000.0, 5),  # a CT: intervals of 32 Hounsfield units
        ("int16", 240.0, 3000.0, 4),
        ("int32", 480.0, 3000.0, 5),
        ("uint8", 40.0, 255.0, 0),  # intervals of 2 save too little
        ("uint8", 127.0, 255.0, 3),
        ("int8", 1e9, 127.0, 7),
        ("float32", 480.0, 1500.0, 18),  # a float32 from 1024 to 2048 has steps of 2^-13, so intervals are of 32, too
        ("float32", 4.8e-3, 15e-3, 18),
        ("float32", 1e-6, 1000.0, 0),
        ("float16", 480.0, 1500.0, 5),
        ("float32", 1e30, 1.0, 23),
    ],
)
def test_intervals_are_a_sixteenth_of_the_standard_deviation(dtype, std, largest, expected):
    assert choose_low_bits(np.dtype(dtype), std, largest) == expected


@pytest.mark.parametrize(
    ("distance", "bits"), [(0, 2), (7.9, 2), (8, 3), (15.9, 3), (16, 4), (32, 5), (63.9, 5), (64, 6), (500, 6)]
)
def test_base_layers_are_finer_near_the_prompt(distance, bits):
    assert low_bits_of_brick(5, distance, np.dtype("int16")) == bits


def test_both_layers_have_bits_at_any_distance():
    assert low_bits_of_brick(2, 0, np.dtype("uint8")) == 1
    assert low_bits_of_brick(7, 500, np.dtype("uint8")) == 7
