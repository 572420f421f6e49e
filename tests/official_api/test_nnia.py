"""Packed arrays: as nnInteractive's in both directions. Forged ones are refused before anything is allocated."""

import struct
from typing import Any

import blosc2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nnInteractive.inference.remote import serialization as official
import numpy as np
import pytest

from nninteractive_ws.errors import BadMessage
from nninteractive_ws.official_api import nnia

DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
)  # fmt: skip
VOLUME = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def arrays(order: str = "=") -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)
    dtypes = st.sampled_from(DTYPES).map(lambda name: np.dtype(name).newbyteorder(order))
    return dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))


# ---- with nnInteractive's functions -------------------------------------------------------------------------


@given(arrays())
def test_arrays_of_clients_are_read(array: np.ndarray) -> None:
    assert same(nnia.parse(official.pack_array(array)).unpack(), array)


@given(arrays())
def test_clients_read_our_arrays(array: np.ndarray) -> None:
    assert same(official.unpack_array(nnia.pack(array)), array)


@pytest.mark.parametrize("codec", [blosc2.Codec.ZSTD, blosc2.Codec.LZ4])
@pytest.mark.parametrize("filters", [[blosc2.Filter.NOFILTER], [blosc2.Filter.SHUFFLE], [blosc2.Filter.BITSHUFFLE]])
def test_every_codec_and_filter_of_clients(codec: blosc2.Codec, filters: list[blosc2.Filter]) -> None:
    array = np.random.default_rng(0).integers(-50, 50, (20, 30, 40), np.int16)
    assert same(nnia.parse(official.pack_array(array, codec, filters=filters)).unpack(), array)


@given(arrays(">"))
def test_big_endian_arrays(array: np.ndarray) -> None:
    little = array.astype(array.dtype.newbyteorder("<"))
    assert same(official.unpack_array(nnia.pack(array)), little)
    assert same(nnia.parse(official.pack_array(array)).unpack(), little)


@given(arrays())
def test_arrays_in_fortran_order(array: np.ndarray) -> None:
    fortran = np.asfortranarray(array)
    assert same(official.unpack_array(nnia.pack(fortran)), array)
    assert same(nnia.parse(official.pack_array(fortran)).unpack(), array)


def test_views_with_steps() -> None:
    array = np.arange(1000, dtype=np.uint16).reshape(10, 10, 10)[::2, ::-3, 1:]
    assert same(official.unpack_array(nnia.pack(array)), array)


@given(arrays(), st.integers(50, 500))
def test_several_chunks(array: np.ndarray, elements: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nnia, "_MAX_CHUNK_BYTES", 8 * elements)
        patch.setattr(official, "_CHUNK_SIZE", 8 * elements)
        ours, theirs = nnia.pack(array), official.pack_array(array)
        assert same(official.unpack_array(ours), array)
        assert same(nnia.parse(theirs).unpack(), array)
    (chunks,) = struct.unpack_from("<I", ours, 8 + len(array.dtype.name) + 8 * array.ndim)
    assert chunks == -(-array.nbytes // (8 * elements))


def test_an_empty_array_is_refused() -> None:
    """nnInteractive's clients cannot pack most of them."""
    with pytest.raises(BadMessage, match="empty"):
        nnia.parse(official.pack_array(np.zeros(0, np.uint8), filters=[blosc2.Filter.NOFILTER]))


def test_the_header_states_shape_dtype_and_size() -> None:
    packed = nnia.parse(official.pack_array(VOLUME))
    assert (packed.shape, packed.dtype, packed.nbytes) == ((2, 3, 4), np.dtype("int16"), 48)


@given(arrays())
def test_bytes_of_a_bool_array_other_than_0_and_1_are_true(array: np.ndarray) -> None:
    octets = array.reshape(-1).view(np.uint8)
    forged = forge(np.zeros(octets.shape, bool), chunk=pack_chunk(octets))
    read = nnia.parse(forged).unpack()
    assert same(read, octets != 0)


# ---- forged headers -----------------------------------------------------------------------------------------


def pack_chunk(octets: np.ndarray) -> bytes:
    return bytes(blosc2.compress2(octets, typesize=1, codec=blosc2.Codec.ZSTD, filters=[blosc2.Filter.NOFILTER]))


def forge(array: np.ndarray = VOLUME, **changes: Any) -> bytes:
    """Pack an array with other values in its header, or with another chunk."""
    octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    chunk = changes.get("chunk", pack_chunk(octets))
    name = changes.get("dtype", array.dtype.name.encode())
    shape = changes.get("shape", array.shape)
    head = struct.pack(
        "<4s4B", changes.get("magic", b"NNIA"), changes.get("version", 1), 1, changes.get("dimensions", len(shape)),
        changes.get("name_bytes", len(name)),
    )  # fmt: skip
    sizes = struct.pack("<QQ", changes.get("plain_bytes", octets.nbytes), changes.get("packed_bytes", len(chunk)))
    count = struct.pack("<I", changes.get("chunks", 1))
    return head + name + struct.pack(f"<{len(shape)}q", *shape) + count + sizes + chunk + changes.get("tail", b"")


def test_forge_makes_a_valid_array_without_changes() -> None:
    assert same(official.unpack_array(forge()), VOLUME)
    assert same(nnia.parse(forge()).unpack(), VOLUME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"NNIB"}, "Expected the format NNIA"),
        ({"version": 2}, "Expected the format NNIA, version 1"),
        ({"dimensions": 0}, "has 0 dimensions"),
        ({"dimensions": 5}, "has 5 dimensions"),
        ({"dimensions": 255}, "has 255 dimensions"),
        ({"dtype": b"object"}, "unsupported dtype"),
        ({"dtype": b"complex64"}, "unsupported dtype"),
        ({"dtype": b"float128"}, "unsupported dtype"),
        ({"dtype": b"<i2"}, "unsupported dtype"),
        ({"dtype": b"datetime64[s]"}, "unsupported dtype"),
        ({"dtype": b"int16\xff"}, "unsupported dtype"),
        ({"dtype": b""}, "unsupported dtype"),
        ({"name_bytes": 255}, "unsupported dtype"),
        ({"shape": (2, 3, 0)}, "empty"),
        ({"shape": (2, -3, 4)}, "empty"),
        ({"shape": (-(2**63),) * 3}, "empty"),
    ],
)
def test_forged_headers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadMessage, match=message):
        nnia.parse(forge(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 3, 3)}, "does not fit into the array of 36"),
        ({"shape": (2, 3, 5)}, "must have the 60 bytes of the array"),
        ({"dtype": b"int32"}, "must have the 96 bytes of the array"),
        ({"chunks": 0}, "must have the 48 bytes of the array"),
        ({"chunks": 2}, "where a chunk begins"),
        ({"chunks": 2**32 - 1}, "where a chunk begins"),
        ({"plain_bytes": 0}, "chunk of 0 bytes"),
        ({"plain_bytes": 49}, "chunk of 49 bytes"),
        ({"plain_bytes": 2**64 - 1}, "does not fit"),
        ({"plain_bytes": 46}, "blosc2 chunk states"),
        ({"packed_bytes": 0}, "shorter than the header"),
        ({"packed_bytes": 2**64 - 1, "tail": b"x"}, "blosc2 chunk states"),
        ({"tail": b"x"}, "end with the data"),
        ({"chunk": b"\0" * 64}, "header of Blosc 1"),
        ({"chunk": b""}, "shorter than the header"),
    ],
)
def test_forged_chunks_are_refused(changes: dict[str, Any], message: str) -> None:
    packed = nnia.parse(forge(**changes))
    with pytest.raises(BadMessage, match=message):
        packed.unpack()


def test_a_chunk_of_a_plug_in_is_refused() -> None:
    chunk = bytearray(pack_chunk(VOLUME.reshape(-1).view(np.uint8)))
    chunk[2] = chunk[2] & 0x1F | 6 << 5
    with pytest.raises(BadMessage, match="unsupported codec"):
        nnia.parse(forge(chunk=bytes(chunk))).unpack()


def test_chunks_above_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnia, "_MAX_CHUNK_BYTES", 47)
    with pytest.raises(BadMessage, match="does not fit"):
        nnia.parse(forge()).unpack()


def test_the_header_may_state_any_size() -> None:
    """Nothing is allocated before the caller has checked the size."""
    assert nnia.parse(forge(shape=(2**62, 2**62, 2**62))).nbytes == 2**187


@pytest.mark.parametrize("length", range(len(forge())))
def test_truncated_arrays_are_refused(length: int) -> None:
    with pytest.raises(BadMessage):
        nnia.parse(forge()[:length]).unpack()


@given(st.data())
def test_no_bytes_cause_another_error(data: st.DataObject) -> None:
    forged = bytearray(forge())
    for at in data.draw(st.lists(st.integers(0, len(forged) - 1), max_size=6)):
        forged[at] = data.draw(st.integers(0, 255))
    try:
        packed = nnia.parse(bytes(forged))
        if packed.nbytes <= 2**20:
            assert packed.unpack().shape == packed.shape
    except BadMessage:
        pass
