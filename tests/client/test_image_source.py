"""Statistics of a volume against numpy and exact fractions, and invalid volumes."""

from collections.abc import Callable
from fractions import Fraction
import hashlib
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from nninteractive_ws import arrays
from nninteractive_ws.client import image_source
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.upload import BrickPart
from nninteractive_ws.errors import BadImage
from nninteractive_ws.geometry import Box, Index

Volume = np.ndarray[Any, Any]

#: Side lengths around multiples of a brick's edge, where rounding errors occur.
SIDES = st.integers(1, 200) | st.sampled_from([1, 63, 64, 65, 127, 128, 129, 192])
SHAPES = st.tuples(SIDES, SIDES, SIDES)
#: Volumes of small size with one long axis.
LONG = st.integers(1, 200).flatmap(lambda n: st.permutations([n, 2, 3]).map(tuple))

# ---- statistics -------------------------------------------------------------------------------------------

#: numpy's dtypes, and their dtypes on the wire.
WIRE = {
    "bool": "uint8",
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "uint32": "uint32",
    "int64": "float32",
    "uint64": "float32",
    "float16": "float16",
    "float32": "float32",
    "float64": "float32",
    "longdouble": "float32",
}
every_dtype = pytest.mark.parametrize("dtype", WIRE)


def nonzero_part(volume: Volume) -> Volume:
    """Return the voxels for the statistics: values on the wire, in the bounding box of the non-zero ones."""
    sent = volume.astype(WIRE["longdouble" if volume.dtype == np.longdouble else volume.dtype.name])
    at = np.argwhere(sent)
    return sent[tuple(slice(a, b) for a, b in zip(at.min(axis=0), at.max(axis=0) + 1, strict=True))]


def by_numpy(volume: Volume) -> tuple[float, float]:
    part = nonzero_part(volume).astype(np.float64)
    return float(part.mean()), float(part.std(ddof=1))


def by_fractions(volume: Volume) -> tuple[float, float]:
    """Return the statistics, exact except for the last step."""
    values = [Fraction(v) for v in nonzero_part(volume).ravel().tolist()]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return float(mean), math.sqrt(variance)


def sample(dtype: str, shape: Index, seed: int = 0, border: int = 3) -> Volume:
    """Return positive and, if possible, negative values and zeros, in a border of zeros."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    low, high = (0, 2) if kind == "b" else (0, 200) if kind == "u" else (-100, 100)
    values = rng.integers(low, high, shape) * (rng.random(shape) < 0.8)
    return np.pad(values.astype(dtype) / (8 if kind == "f" else 1), border).astype(dtype)


@every_dtype
def test_the_dtype_on_the_wire(dtype: str) -> None:
    expected = np.dtype(WIRE[dtype]).newbyteorder("<")
    for order in "<>":
        assert image_source.to_wire(np.zeros((1, 1, 1), np.dtype(dtype).newbyteorder(order))).dtype == expected


@pytest.mark.parametrize(
    ("dtype", "values", "sent"),
    [
        ("float64", (0, 255), "uint8"),
        ("float32", (-1024, 3071), "int16"),
        ("float32", (0, 65535), "uint16"),
        ("float32", (-1, 40000), "float32"),
        ("float32", (0.5, 3), "float32"),
        ("float16", (0, 3), "float16"),
        ("int64", (-5, 5), "int16"),
        ("uint32", (0, 70000), "uint32"),
        ("int32", (-70000, 3), "int32"),
        ("int16", (0, 3), "int16"),
    ],
)
def test_integers_travel_in_a_small_type_that_holds_them(dtype: str, values: tuple[float, float], sent: str) -> None:
    volume = np.zeros((70, 40, 3), dtype)
    volume[0, 0, 0], volume[1, 1, 1], volume[66, 39, 2] = values[0], 1, values[1]
    source = ImageSource.of(volume)
    assert source.dtype == sent
    received = np.empty(volume.shape, sent)
    for index in range(len(source.grid)):
        box, brick = source.grid.box(index), source.brick(BrickPart(index), "raw")
        received[box.slices] = arrays.unpack(brick.data, "raw", sent, box.shape)
    assert np.array_equal(received, volume)
    assert source.statistics == image_source.statistics(volume.astype(WIRE[dtype]))


def test_doubles_are_rounded_before_they_travel_as_integers() -> None:
    """Such as those of an intensity that was scaled and scaled back: 32.99999999999999 is 33 in float32."""
    volume = (np.arange(256) * (1 / 255) * 255).reshape(8, 8, 4)
    assert not np.array_equal(volume.astype(np.uint8), volume.astype(np.float32)), "the case is not covered"
    source = ImageSource.of(volume)
    assert source.dtype == "uint8"
    sent = arrays.unpack(source.brick(BrickPart(0), "raw").data, "raw", "uint8", volume.shape)
    assert np.array_equal(sent, volume.astype(np.float32))


def test_the_name_of_an_image_does_not_depend_on_the_type_in_which_it_travels() -> None:
    """Journals of earlier versions belong to the same image."""
    volume = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    digest = hashlib.sha256(b"float32 (3, 4, 5)" + hashlib.sha256(volume.tobytes()).digest())
    assert ImageSource.of(volume).name == digest.hexdigest()[:32]


@every_dtype
@pytest.mark.parametrize("shape", [(5, 6, 7), (61, 3, 4), (3, 126, 2), (60, 70, 3), (2, 3, 140)])
def test_statistics_match_numpy_and_fractions(dtype: str, shape: Index) -> None:
    volume = sample(dtype, shape)
    found = image_source.statistics(volume)
    assert (found.mean, found.std) == pytest.approx(by_numpy(volume), rel=1e-12)
    assert (found.mean, found.std) == pytest.approx(by_fractions(volume), rel=1e-12)


@every_dtype
@given(st.data())
@settings(max_examples=settings.default.max_examples * 3 // 10)
def test_statistics_of_any_small_volume(dtype: str, data: st.DataObject) -> None:
    kind = np.dtype(dtype).kind
    elements: st.SearchStrategy[Any] = (
        st.booleans()
        if kind == "b"
        else st.integers(*((0, 255) if kind == "u" else (-128, 127)))
        if kind in "iu"
        # Sums of multiples of an eighth are exact.
        else st.integers(-1000, 1000).map(lambda n: n / 8)
    )
    volume = data.draw(hnp.arrays(dtype, data.draw(LONG), elements=elements, fill=st.just(0)))
    expected = by_fractions(volume) if volume.any() and nonzero_part(volume).size > 1 else (0.0, 0.0)
    if expected[1] == 0:
        with pytest.raises(BadImage):
            image_source.statistics(volume)
    else:
        found = image_source.statistics(volume)
        assert type(found.mean) is type(found.std) is float
        assert (found.mean, found.std) == pytest.approx(expected, rel=1e-12, abs=1e-15)


LAYOUTS: dict[str, Callable[[Volume], Volume]] = {
    "Fortran": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "transposed": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "subclass": lambda a: a.view(np.memmap),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@every_dtype
def test_the_memory_layout_does_not_affect_statistics(dtype: str, layout: str) -> None:
    volume = sample(dtype, (70, 66, 5), border=0)
    if np.dtype(dtype).kind == "f":
        # With so many magnitudes, the order of the sum affects its last digits.
        volume = np.asarray(np.random.default_rng(5).normal(size=volume.shape) ** 7, dtype)
    laid_out = LAYOUTS[layout](volume)
    assert np.array_equal(laid_out, volume)
    before = laid_out.copy()
    assert image_source.statistics(laid_out) == image_source.statistics(volume)
    assert np.array_equal(laid_out, before)


@pytest.mark.parametrize(("dtype", "middle"), [("int16", 32001), ("uint16", 65001), ("int16", -32001)])
def test_statistics_of_small_integers_are_exact(dtype: str, middle: int) -> None:
    """The sum of their squares exceeds the exact integers of a double."""
    off = np.random.default_rng(6).integers(-1, 2, (192, 192, 256), np.int8)
    volume = (off.astype(np.int32) + middle).astype(dtype)
    n, total, squares = off.size, int(off.sum(dtype=np.int64)), int(np.count_nonzero(off))
    assert middle**2 * n > 2**53
    found = image_source.statistics(volume)
    assert found.mean == float(middle + Fraction(total, n))
    assert found.std == pytest.approx(math.sqrt((squares - Fraction(total**2, n)) / (n - 1)), rel=1e-15)


def test_extreme_integers() -> None:
    for dtype in ("int32", "uint32", "int64", "uint64"):
        volume = sample(dtype, (4, 5, 6))
        volume[4, 4, 4], volume[5, 5, 5] = np.iinfo(dtype).max, np.iinfo(dtype).min
        found = image_source.statistics(volume)
        mean, std = by_fractions(volume)
        # Next to 2^63, a double cannot represent 100. So the error of the mean is relative to the deviation.
        assert found.mean == pytest.approx(mean, rel=1e-12, abs=1e-15 * std)
        assert found.std == pytest.approx(std, rel=1e-12)


def test_nonzero_refers_to_values_on_the_wire() -> None:
    """A double that float32 rounds to zero does not widen the box."""
    volume = np.zeros((6, 6, 6))
    volume[2, 2, 2:5] = 1, 2, 4
    volume[0, 0, 0] = 1e-60
    found = image_source.statistics(volume)
    assert (found.mean, found.std) == pytest.approx((7 / 3, math.sqrt(7 / 3)))


def test_the_cubes_partition_the_volume_and_are_small() -> None:
    seen = np.zeros((130, 70, 5), int)
    for box in image_source._boxes_of_blocks(seen):
        assert math.prod(box.shape) <= 64**3
        seen[box.slices] += 1
    assert (seen == 1).all()


def test_the_digest_of_a_cube_uses_values_on_the_wire() -> None:
    volume = sample("float64", (4, 5, 6))
    box = Box((1, 0, 2), (4, 5, 6))
    expected = hashlib.sha256(volume[1:4, :5, 2:6].astype("<f4").tobytes(order="C")).digest()
    assert image_source.block_statistics(volume, box).digest == expected
    assert image_source.block_statistics(np.asfortranarray(volume), box).digest == expected


# ---- valid and invalid images -----------------------------------------------------------------------------


@every_dtype
def test_a_volume_is_accepted_and_not_copied(dtype: str) -> None:
    volume = sample(dtype, (3, 4, 5))
    checked = image_source.check_volume(volume)
    assert checked is volume or np.shares_memory(checked, volume)


def test_nested_lists_are_a_volume() -> None:
    assert image_source.check_volume([[[1, 2]], [[3, 4]]]).shape == (2, 1, 2)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5)), r"2 dimensions \(shape \(4, 5\)\).* 3 is needed.*image\[:, :, None\]"),
        (np.zeros(4), r"1 dimensions"),
        (np.zeros((2, 3, 4, 5)), r"4 dimensions .* 3 is needed.*one channel or time point"),
        (np.float64(7), r"0 dimensions"),
        (None, r"is None. Expected a numpy array"),
        ("ct.nii.gz", r"is a path or a text"),
        (np.ma.masked_array(np.zeros((4, 5, 6)), mask=True), r"120 masked voxels"),
        (np.zeros((0, 5, 6)), r"empty \(shape \(0, 5, 6\)\)"),
        (np.zeros((5, 6, 0)), r"empty"),
        (np.zeros((4, 5, 6), complex), r"complex128.*real numbers.*numpy.abs"),
        (np.zeros((4, 5, 6), np.complex64), r"complex64.*real numbers"),
        (np.zeros((4, 5, 6), object), r"object.*real numbers"),
        (np.zeros((4, 5, 6), "U3"), r"real numbers.*astype"),
        (np.zeros((4, 5, 6), "datetime64[s]"), r"real numbers"),
        (np.zeros((4, 5, 6), [("r", "u1"), ("g", "u1")]), r'real numbers.*image\["r"\]'),
        ([[[1, 2]], [[3]]], r"not an array"),
    ],
)
def test_errors_for_invalid_volumes_name_the_reason(image: Any, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        image_source.check_volume(image)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0, 0), (69, 65, 4), (64, 64, 1), (3, 65, 2)])
def test_the_error_for_nonfinite_voxels_names_the_index(dtype: str, value: float, at: Index) -> None:
    volume = sample(dtype, (70, 66, 5), border=0)
    volume[at] = value
    with pytest.raises(BadImage) as raised:
        image_source.statistics(volume)
    assert str(at) in str(raised.value)
    assert str(value) in str(raised.value)
    assert "nan_to_num" in str(raised.value)


def test_opposite_infinities_are_refused() -> None:
    volume = sample("float32", (4, 5, 6))
    volume[1, 1, 1], volume[2, 2, 2] = np.inf, -np.inf
    with pytest.raises(BadImage, match=r"\(1, 1, 1\): inf"):
        image_source.statistics(volume)


@pytest.mark.parametrize("value", [1e39, -1e300])
@pytest.mark.parametrize("dtype", ["float64", "longdouble"])
def test_voxels_that_become_infinite_on_the_wire_are_refused(dtype: str, value: float) -> None:
    volume = sample(dtype, (4, 5, 6))
    volume[3, 4, 5] = value
    with pytest.raises(BadImage, match=r"too large for float32, the first at \(3, 4, 5\)"):
        image_source.statistics(volume)


@every_dtype
@pytest.mark.parametrize("value", [0, 1])
def test_a_constant_image_is_refused(dtype: str, value: int) -> None:
    with pytest.raises(BadImage, match=f"Every voxel of the image is {value};"):
        image_source.statistics(np.full((70, 4, 5), value, dtype))


@every_dtype
def test_a_constant_box_in_zeros_is_refused(dtype: str) -> None:
    """The statistics exclude the zeros around it."""
    volume = np.zeros((10, 10, 10), dtype)
    volume[2:5, 3:6, 4:7] = 1
    with pytest.raises(BadImage, match=r"cannot be normalized.*deviation is 0"):
        image_source.statistics(volume)
    volume[2, 3, 4] = 0
    assert image_source.statistics(volume).mean == pytest.approx(26 / 27)


def test_one_voxel_that_is_not_zero_is_refused() -> None:
    volume = np.zeros((10, 10, 10), np.int16)
    volume[9, 0, 5] = 1000
    with pytest.raises(BadImage, match="cannot be normalized"):
        image_source.statistics(volume)


@pytest.mark.parametrize("scale", [1e-39, 1e-44, 3e38])
def test_a_deviation_that_float32_cannot_hold_is_refused(scale: float) -> None:
    volume = np.array([[[1, -1]]], np.float32) * np.float32(scale)
    with pytest.raises(BadImage, match="cannot be normalized"):
        image_source.statistics(volume)


def test_a_volume_over_time_of_nibabel_is_refused_with_its_own_index() -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4, 5), np.int16), np.eye(4))
    with pytest.raises(BadImage, match=r"image.slicer\[..., 0\]"):
        image_source.check_volume(image)
    assert image_source.check_volume(image.slicer[..., 0]).shape == (2, 3, 4)


# ---- numbers that float32 cannot hold ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "base", "spread"),
    [
        ("int64", 2**24, 3),
        ("int32", 2**30, 500),
        ("uint32", 2**32 - 100_000, 5000),
        ("uint64", 2**63, 2**44),
        ("int64", -(2**40), 2**20),
        ("float64", 1e8, 300),
        ("float64", 1.0, 1e-6),
    ],
)
def test_a_volume_that_would_be_rounded_to_few_steps_is_refused(dtype: str, base: float, spread: float) -> None:
    steps = np.random.default_rng(0).integers(0, 100, (8, 9, 10))
    volume = (np.asarray(base, dtype) + (steps * spread / 100).astype(dtype)).astype(dtype)
    with pytest.raises(BadImage, match=r"rounded to steps of .*image - image.mean\(\)"):
        image_source.statistics(volume)
    assert image_source.statistics(volume - volume.mean()).std > 0


@pytest.mark.parametrize(
    ("dtype", "base", "spread"),
    [
        ("int64", 2**24 - 200, 100),
        ("uint32", 2**20, 3),
        ("float64", 1e8, 1e5),
        ("float32", 1e6, 800),
        ("int64", 0, 2**40),
    ],
)
def test_a_volume_that_float32_resolves_is_accepted(dtype: str, base: float, spread: float) -> None:
    steps = np.random.default_rng(0).integers(0, 100, (8, 9, 10))
    volume = (np.asarray(base, dtype) + (steps * spread / 100).astype(dtype)).astype(dtype)
    assert image_source.statistics(volume).std == pytest.approx(volume.std(ddof=1), rel=1e-3)


def test_a_volume_with_lost_differences_is_distinguished_from_a_constant_one() -> None:
    volume = 1e9 + np.arange(24.0).reshape(2, 3, 4)
    with pytest.raises(BadImage, match=r"Every voxel of the image is 1e\+09.*subtract their mean"):
        image_source.statistics(volume)
    with pytest.raises(BadImage, match=r"Every voxel of the image is 3; there is nothing to segment in it.$"):
        image_source.statistics(np.full((2, 3, 4), 3, np.int64))
