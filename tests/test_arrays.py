"""Packed arrays against numpy, and errors for invalid data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
import random
import struct
import tracemalloc
from typing import Any, get_args
import zlib

import blosc2
from helpers.hostile_chunks import CHUNK_DTYPE, CHUNK_SHAPE, accepted_or_refused, mutated, packed_chunk, set_trap
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from nninteractive_ws import arrays
from nninteractive_ws.errors import BadMessage, TooLarge
from nninteractive_ws.messages import DType, Encoding

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
DTYPES: tuple[str, ...] = get_args(DType)

encodings = pytest.mark.parametrize("encoding", ENCODINGS)


@contextmanager
def peak_memory_below(limit: int) -> Iterator[None]:
    """Check the peak of Python's allocations, which include all unpacked results."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes at the peak"


def test_this_installation_supports_every_encoding_of_the_protocol() -> None:
    assert set(arrays.ENCODINGS) == set(ENCODINGS)


# ---- round trips ------------------------------------------------------------------------------------------


@encodings
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_round_trips_bit_for_bit(encoding: Encoding, dtype: str) -> None:
    @given(hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=12)))
    def check(array: "np.ndarray[Any, Any]") -> None:
        back = arrays.unpack(arrays.pack(array, encoding), encoding, dtype, array.shape)
        assert back.shape == array.shape
        assert back.dtype == np.dtype(dtype).newbyteorder("<")
        assert back.tobytes() == array.tobytes()  # also for NaN
        assert not back.flags.writeable

    check()


@encodings
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", ["noise", "zeros", "ones", "ramp"])
def test_a_brick_round_trips(encoding: Encoding, dtype: str, values: str) -> None:
    shape, size = (64, 64, 64), 64**3
    made = {
        "noise": lambda: np.random.default_rng(0).bytes(size * np.dtype(dtype).itemsize),
        "zeros": lambda: np.zeros(size, dtype).tobytes(),
        "ones": lambda: np.ones(size, dtype).tobytes(),
        "ramp": lambda: (np.arange(size) % 100).astype(dtype).tobytes(),
    }[values]()
    array = np.frombuffer(made, dtype).reshape(shape)
    assert arrays.unpack(arrays.pack(array, encoding), encoding, dtype, shape).tobytes() == made


LAYOUTS: dict[str, Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]] = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian Fortran": lambda a: np.asfortranarray(a.astype(a.dtype.newbyteorder(">"))),
    "every second": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
    "transposed": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
    "a part": lambda a: np.pad(a, 3)[3:-3, 3:-3, 3:-3],
}


@encodings
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(encoding: Encoding, dtype: str, layout: str) -> None:
    array = np.random.default_rng(1).integers(0, 100, (5, 6, 7)).astype(dtype)
    laid_out = LAYOUTS[layout](array)
    assert np.array_equal(laid_out, array)
    back = arrays.unpack(arrays.pack(laid_out, encoding), encoding, dtype, array.shape)
    assert np.array_equal(back, array)


def test_the_bytes_are_those_of_the_protocol() -> None:
    """Little-endian bytes in C order, a zlib stream, and a blosc2 chunk."""
    array = np.array([[1, -2], [300, 4]], ">i2")
    plain = struct.pack("<4h", 1, -2, 300, 4)
    assert arrays.pack(array, "raw") == plain
    assert zlib.decompress(arrays.pack(array, "deflate")) == plain
    assert blosc2.decompress2(arrays.pack(array, "blosc2")) == plain
    for other in (
        blosc2.compress2(plain, typesize=2, codec=blosc2.Codec.LZ4, filters=[blosc2.Filter.SHUFFLE]),
        blosc2.compress2(plain, typesize=1, clevel=0),
    ):
        assert np.array_equal(arrays.unpack(other, "blosc2", "int16", (2, 2)), array)
    best = zlib.compress(plain, 9)
    assert np.array_equal(arrays.unpack(best, "deflate", "int16", (2, 2)), array)


@encodings
def test_compression_reduces_smooth_data(encoding: Encoding) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64 * 64)).astype(np.int16)
    size = len(arrays.pack(smooth, encoding))
    assert size == smooth.nbytes if encoding == "raw" else size < smooth.nbytes / 3


# ---- sizes that do not fit --------------------------------------------------------------------------------


@encodings
@pytest.mark.parametrize("shape", [(2**26 + 1,), (2**13, 2**13 + 1), (2**31 - 1,) * 3, (2**31 - 1,)])
def test_an_array_over_the_limit_is_refused_before_decoding(encoding: Encoding, shape: tuple[int, ...]) -> None:
    with peak_memory_below(2**16), pytest.raises(TooLarge):
        arrays.unpack(b"", encoding, "<u4", shape)


@encodings
@given(st.integers(0, 40), st.integers(0, 40))
def test_another_size_than_announced_is_refused(encoding: Encoding, real: int, announced: int) -> None:
    packed = arrays.pack(np.arange(real, dtype=np.uint32), encoding)
    if real == announced:
        assert arrays.unpack(packed, encoding, "<u4", (announced,)).tolist() == list(range(real))
    else:
        with pytest.raises(BadMessage):
            arrays.unpack(packed, encoding, "<u4", (announced,))


@encodings
def test_surplus_and_missing_bytes_are_refused(encoding: Encoding) -> None:
    array = np.random.default_rng(2).integers(0, 2**16, 50, np.uint16)
    packed = arrays.pack(array, encoding)
    for wrong in (packed + b"\0", packed + packed, *(packed[:n] for n in range(len(packed)))):
        with pytest.raises(BadMessage):
            arrays.unpack(wrong, encoding, "uint16", (50,))


def test_a_deflate_bomb_is_refused_with_little_memory() -> None:
    bomb = zlib.compress(bytes(2**26), 9)
    assert len(bomb) < 2**17
    with peak_memory_below(2**20), pytest.raises(BadMessage, match="deflate"):
        arrays.unpack(bomb, "deflate", "uint8", (100, 100, 10))


# ---- blosc2 behind its guard ------------------------------------------------------------------------------

_PLAIN_BYTES, _PACKED_BYTES, _SPECIAL = 4, 12, 31  # offsets in a chunk's header


def chunk_of_zeros(size: int) -> bytes:
    chunk = bytes(blosc2.compress2(np.zeros(size, np.uint8), typesize=1))
    assert len(chunk) == 32
    return chunk


def forged(chunk: bytes, offset: int, value: int) -> bytes:
    return chunk[:offset] + struct.pack("<i", value) + chunk[offset + 4 :]


def test_without_the_guard_a_forged_header_determines_the_allocation() -> None:
    """Shows why the header is checked, and that the other tests would detect the allocation."""
    chunk = forged(chunk_of_zeros(2**20), _PLAIN_BYTES, 2**26)
    with pytest.raises(AssertionError, match="at the peak"), peak_memory_below(2**25):
        blosc2.decompress2(chunk, nthreads=1)


@pytest.mark.parametrize("size", [2**26, 2**31 - 100, 2**31 - 1, -1, 0, 2**20 - 1, 2**20 + 1])
def test_a_forged_size_is_refused_before_anything_is_allocated(size: int) -> None:
    chunk = forged(chunk_of_zeros(2**20), _PLAIN_BYTES, size)
    with peak_memory_below(2**16), pytest.raises(BadMessage):
        arrays.unpack(chunk, "blosc2", "uint8", (2**20,))


@pytest.mark.parametrize("size", [0, 31, 33, 2**20, 2**31 - 1, -1])
def test_a_forged_length_is_refused(size: int) -> None:
    chunk = forged(chunk_of_zeros(2**20), _PACKED_BYTES, size)
    with peak_memory_below(2**16), pytest.raises(BadMessage):
        arrays.unpack(chunk, "blosc2", "uint8", (2**20,))


def test_a_chunk_of_uninitialized_values_is_refused() -> None:
    chunk = chunk_of_zeros(4096)
    assert arrays.unpack(chunk, "blosc2", "uint8", (4096,)).tobytes() == bytes(4096)
    uninitialized = chunk[:_SPECIAL] + bytes([chunk[_SPECIAL] & 0x8F | 4 << 4])
    assert blosc2.get_cbuffer_sizes(uninitialized)[0] == 4096  # the library accepts it
    with pytest.raises(BadMessage, match="uninitialized"):
        arrays.unpack(uninitialized, "blosc2", "uint8", (4096,))


@pytest.mark.parametrize("special", range(8))
def test_every_kind_of_special_chunk_is_right_sized_or_refused(special: int) -> None:
    for low_bits in range(16):
        for top in (0, 0x80):
            chunk = chunk_of_zeros(4096)[:_SPECIAL] + bytes([top | special << 4 | low_bits])
            for extra in (b"", b"\1", bytes(4)):
                accepted_or_refused(forged(chunk + extra, _PACKED_BYTES, 32 + len(extra)), "uint8", (4096,))


@pytest.mark.parametrize("codec", ["ZSTD", "LZ4", "BLOSCLZ", "ZLIB", "LZ4HC"])
@pytest.mark.parametrize("content", ["noise", "runs", "zeros"])
def test_mutated_chunks_are_right_sized_or_refused(codec: str, content: str) -> None:
    rng = random.Random(f"{codec} {content}")
    chunk = packed_chunk(codec, content)
    shape, dtype = CHUNK_SHAPE, CHUNK_DTYPE
    assert accepted_or_refused(chunk, dtype, shape)
    outcomes = [accepted_or_refused(mutated(chunk, rng), dtype, shape) for _ in range(400)]
    assert False in outcomes


@given(st.binary(max_size=100))
def test_random_bytes_are_right_sized_or_refused(data: bytes) -> None:
    accepted_or_refused(data, "uint8", (4096,))
    # After a partial header that passes the first checks of the guard.
    for chunk in (chunk_of_zeros(4096), bytes(blosc2.compress2(np.arange(4096) % 7, typesize=8))):
        for kept in (16, 24, 31, 32):
            spliced = chunk[:kept] + data
            size = struct.unpack_from("<i", spliced, _PLAIN_BYTES)[0]
            accepted_or_refused(forged(spliced, _PACKED_BYTES, len(spliced)), "uint8", (size,))


# ---- plug-ins ---------------------------------------------------------------------------------------------

PLUG_IN_FORMAT = 6  # in bits 5 to 7 of the flags: the codec is the one that byte 22 names
_FLAGS, _FILTERS, _CODEC = 2, 16, 22


def with_byte(chunk: bytes, offset: int, value: int) -> bytes:
    return chunk[:offset] + bytes([value]) + chunk[offset + 1 :]


def chunk_of(content: str) -> bytes:
    array = {"runs": np.arange(4096) // 100, "noise": np.random.default_rng(4).integers(0, 2**15, 4096)}[content]
    return arrays.pack(array.astype(np.int16), "blosc2")


def plug_in_chunk(codec: int) -> bytes:
    chunk = chunk_of("runs")
    return with_byte(with_byte(chunk, _FLAGS, chunk[_FLAGS] & 0x1F | PLUG_IN_FORMAT << 5), _CODEC, codec)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that exists after the library has imported a plug-in from the working folder."""
    monkeypatch.chdir(tmp_path)
    return set_trap(tmp_path)


def test_without_the_guard_a_program_in_the_working_folder_runs(trap: Path) -> None:
    """Shows why plug-ins are refused, and that the next test would detect one. Needs a program python or python3."""
    with pytest.raises(ValueError, match="decompressing"):
        blosc2.decompress2(plug_in_chunk(37), nthreads=1)
    assert trap.exists()


@pytest.mark.parametrize("codec", range(256))
def test_a_plug_in_codec_is_refused(codec: int, trap: Path) -> None:
    with pytest.raises(BadMessage, match="codec"):
        arrays.unpack(plug_in_chunk(codec), "blosc2", "int16", (4096,))
    assert not trap.exists()


@pytest.mark.parametrize("slot", range(6))
def test_a_plug_in_filter_is_refused(slot: int, trap: Path) -> None:
    for number in range(256):
        chunk = with_byte(chunk_of("runs"), _FILTERS + slot, number)
        if number in (0, 1, 2, 3, 4, 35):
            accepted_or_refused(chunk, "int16", (4096,))
        else:
            with pytest.raises(BadMessage, match="filters"):
                arrays.unpack(chunk, "blosc2", "int16", (4096,))
    assert not trap.exists()


@pytest.mark.parametrize("offset", range(32))
def test_every_byte_of_a_header_is_checked(offset: int, trap: Path) -> None:
    """For every value of every byte, accepted chunks have the right size, and no program runs."""
    for chunk in (chunk_of("runs"), chunk_of("noise"), chunk_of_zeros(8192)):
        for value in range(256):
            accepted_or_refused(with_byte(chunk, offset, value), "int16", (4096,))
            # Also with a plug-in codec, which must never run.
            accepted_or_refused(with_byte(plug_in_chunk(36), offset, value), "int16", (4096,))
    assert not trap.exists()


@pytest.mark.parametrize("bit", [0, 1, 2, 3, 7])
def test_chunks_that_are_not_self_contained_are_refused(bit: int) -> None:
    """Dictionaries, longer headers, lazy chunks of a file, instrumentation."""
    chunk = chunk_of("runs")
    with pytest.raises(BadMessage, match="dictionary"):
        arrays.unpack(with_byte(chunk, _SPECIAL, chunk[_SPECIAL] | 1 << bit), "blosc2", "int16", (4096,))


@pytest.mark.parametrize("bit", [0, 2])
def test_a_chunk_of_blosc_1_is_refused(bit: int) -> None:
    chunk = chunk_of("runs")
    with pytest.raises(BadMessage, match="Blosc 1"):
        arrays.unpack(with_byte(chunk, _FLAGS, chunk[_FLAGS] & ~(1 << bit)), "blosc2", "int16", (4096,))


@pytest.mark.parametrize("codec", ["BLOSCLZ", "LZ4", "LZ4HC", "ZLIB", "ZSTD"])
@pytest.mark.parametrize("filters", [["NOFILTER"], ["SHUFFLE"], ["BITSHUFFLE"], ["DELTA"], ["SHUFFLE", "BYTEDELTA"]])
def test_the_codecs_and_filters_of_the_protocol_are_accepted(codec: str, filters: list[str]) -> None:
    array = np.random.default_rng(5).integers(0, 50, 4096).astype(np.int16)
    kinds = [blosc2.Filter[name] for name in filters]
    meta = [2 if kind is blosc2.Filter.BYTEDELTA else 0 for kind in kinds]
    chunk = blosc2.compress2(array, typesize=2, codec=blosc2.Codec[codec], filters=kinds, filters_meta=meta)
    assert np.array_equal(arrays.unpack(bytes(chunk), "blosc2", "int16", (4096,)), array)


def test_a_frame_of_the_library_is_not_a_chunk() -> None:
    frame = blosc2.SChunk(data=np.arange(100, dtype=np.int16)).to_cframe()
    assert not accepted_or_refused(frame, "int16", (100,))


def test_a_pickled_array_is_refused() -> None:
    """A result of the library's pack_array. Unpacking it with the library would run its code."""
    packed = blosc2.pack_tensor(np.arange(100, dtype=np.int16))
    assert not accepted_or_refused(packed, "int16", (100,))
