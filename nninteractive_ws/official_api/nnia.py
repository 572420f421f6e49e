"""Arrays of nnInteractive's HTTP API: the format ``NNIA``, version 1.

The format comes from nnInteractive 2.6, ``inference/remote/serialization.py``. All numbers are little-endian: the magic
bytes, version, codec, number of dimensions and length of the dtype's name (one byte each), the name, the shape (int64
each), the number of chunks (uint32). Each chunk has its unpacked and its packed size (uint64 each), and is a Blosc2
chunk of at most 1 GiB of the elements in C order.
"""

from dataclasses import dataclass
import math
import struct
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from nninteractive_ws.arrays import check_blosc2_chunk
from nninteractive_ws.errors import BadMessage

MEDIA_TYPE = "application/octet-stream"

_HEADER = struct.Struct("<4s4B")
_MAGIC, _VERSION, _ZSTD = b"NNIA", 1, 1
_COUNT, _SIZES = struct.Struct("<I"), struct.Struct("<QQ")
_MAX_CHUNK_BYTES = 2**30
_DTYPES = frozenset(
    ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
)
# Images and masks. Any other number is a mistake.
_MAX_DIMENSIONS = 4
_THREADS = 4


@dataclass(frozen=True)
class PackedArray:
    """A packed array whose header was read. ``shape`` has no zero."""

    data: bytes | bytearray
    dtype: "np.dtype[np.generic]"
    shape: tuple[int, ...]
    _chunks_start: int

    @property
    def nbytes(self) -> int:
        """Number of bytes of the unpacked array. The header states it, so it may be any number."""
        return math.prod(self.shape) * self.dtype.itemsize

    def unpack(self) -> npt.NDArray[np.generic]:
        """Return the array. It allocates :attr:`nbytes`, which the caller has to check first. Raises BadMessage."""
        plain = np.empty(self.nbytes, np.uint8)
        offset, written = self._chunks_start, 0
        (chunks,) = _read(self.data, _COUNT, offset)
        offset += _COUNT.size
        packed = memoryview(self.data)
        for _ in range(chunks):
            plain_bytes, packed_bytes = _read(self.data, _SIZES, offset)
            offset += _SIZES.size
            if not 0 < plain_bytes <= min(_MAX_CHUNK_BYTES, self.nbytes - written):
                raise BadMessage(f"A chunk of {plain_bytes:,} bytes does not fit into the array of {self.nbytes:,}.")
            _unpack_chunk(packed[offset : offset + packed_bytes], plain[written : written + plain_bytes])
            offset, written = offset + packed_bytes, written + plain_bytes
        if written != self.nbytes or offset != len(self.data):
            raise BadMessage(
                f"The chunks must have the {self.nbytes:,} bytes of the array and end with the data, not {written:,} "
                f"and at byte {offset:,} of {len(self.data):,}."
            )
        # Bytes of a bool array other than 0 and 1 would be invalid in numpy.
        values = plain != 0 if self.dtype.kind == "b" else plain.view(self.dtype)
        return values.reshape(self.shape)


def parse(data: bytes | bytearray) -> PackedArray:
    """Read the header of a packed array. Raises BadMessage if the array is none of this format."""
    magic, version, _, dimensions, name_bytes = _read(data, _HEADER, 0)
    if magic != _MAGIC or version != _VERSION:
        raise BadMessage("The body is no packed array. Expected the format NNIA, version 1, of nnInteractive.")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise BadMessage(f"The array has {dimensions} dimensions. Expected 1 to {_MAX_DIMENSIONS}.")
    start = _HEADER.size + name_bytes
    name = bytes(data[_HEADER.size : start]).decode("ascii", "replace")
    if name not in _DTYPES:
        raise BadMessage(f"The array has an unsupported dtype. Use one of {', '.join(sorted(_DTYPES))}.")
    sizes = struct.Struct(f"<{dimensions}q")
    shape = _read(data, sizes, start)
    if min(shape) < 1:
        raise BadMessage(f"The array of shape {shape} is empty.")
    return PackedArray(data, np.dtype(name), shape, start + sizes.size)


def pack(array: npt.NDArray[np.generic]) -> bytes:
    """Pack an array."""
    values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    name = values.dtype.name.encode()
    plain = values.reshape(-1).view(np.uint8)
    chunks = [plain[start : start + _MAX_CHUNK_BYTES] for start in range(0, plain.nbytes, _MAX_CHUNK_BYTES)]
    parts = [_HEADER.pack(_MAGIC, _VERSION, _ZSTD, values.ndim, len(name)), name]
    parts += [struct.pack(f"<{values.ndim}q", *values.shape), _COUNT.pack(len(chunks))]
    for chunk in chunks:
        # Level and filter are those of nnInteractive's server. Clients can unpack any.
        packed = blosc2.compress2(
            chunk, typesize=values.itemsize, codec=blosc2.Codec.ZSTD, clevel=3, filters=[blosc2.Filter.NOFILTER],
            nthreads=_THREADS,
        )  # fmt: skip
        parts += [_SIZES.pack(chunk.nbytes, len(packed)), packed]
    return b"".join(parts)


def _unpack_chunk(chunk: memoryview, plain: npt.NDArray[np.uint8]) -> None:
    check_blosc2_chunk(chunk, plain.nbytes)
    try:
        blosc2.decompress2(chunk, dst=plain, nthreads=_THREADS)
    except Exception as e:  # the library raises many types of exceptions
        raise BadMessage(f"A chunk of the array could not be unpacked ({e}).") from e


def _read(data: bytes | bytearray, part: struct.Struct, offset: int) -> tuple[Any, ...]:
    try:
        return part.unpack_from(data, offset)
    except struct.error as e:
        raise BadMessage(f"The packed array of {len(data):,} bytes ends in its header, or where a chunk begins.") from e
