"""Packing and unpacking of arrays for the wire. Every size is checked before anything is allocated.

``blosc2.decompress2`` (4.14.1) is not safe for untrusted bytes. It allocates the size in a forged header. It returns
unrelated memory for a chunk of uninitialized values. For a plug-in codec or filter, it runs ``python -c`` in the
working folder, and loads the library whose path that prints. :func:`unpack` checks the whole header first.
"""

import math
import struct
from typing import Literal
import zlib

import blosc2
import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadMessage, TooLarge
from nninteractive_ws.messages import Encoding

#: Encodings that this installation can pack and unpack, the preferred one first.
ENCODINGS: tuple[Encoding, ...] = ("blosc2", "deflate", "raw")

#: Limit of an unpacked array. A brick has at most 32^3 four-byte voxels (128 KiB). The run lengths of a mask are the
#: largest arrays. 256 MiB are 67 million runs, more than a noisy mask of 512 x 512 x 256 has.
MAX_ARRAY_BYTES = 256 * 1024**2

# The header of a chunk, from C-Blosc2's README_CHUNK_FORMAT.rst: version, version of the codec's format, flags, type
# size, sizes (plain, block, packed), six filters, user-defined codec and its metadata, metadata of the filters, flags2,
# blosc2_flags.
_BLOSC2_HEADER = struct.Struct("<4B3i6s2B6s2B")
# Bits 0 and 2 of the flags together indicate the header of 32 bytes. Bits 5 to 7 are the codec.
_EXTENDED_HEADER, _CODEC_SHIFT = 0b101, 5
# BloscLZ, LZ4 (and LZ4HC), zlib, Zstandard. 6 is for plug-ins; 2, 5 and 7 are reserved.
_CODECS = frozenset({0, 1, 3, 4})
# None, shuffle, bit shuffle, delta, truncated precision, byte delta. All others are plug-ins.
_BLOSC2_FILTERS = frozenset({0, 1, 2, 3, 4, 35})
# Bits 4 to 6 of blosc2_flags indicate a special chunk: none, zeros, NaN, one value. 4 is "uninitialized". The other
# bits are for dictionaries, longer headers, lazy chunks (of a file) and instrumentation, which are never needed on the
# wire.
_SPECIAL_SHIFT, _SPECIAL_CHUNKS = 4, frozenset({0, 1, 2, 3})

#: How blosc2 compresses an array. "small" suits most links. "fast" packs a CT three times faster, to a half instead of
#: a third of its bytes. "bits" suits layers of voxels, some of whose bits are all 0.
Compression = Literal["small", "fast", "bits"]

# Other threads, in particular the event loop, can run while a brick is packed.
blosc2.set_releasegil(True)


def pack(array: npt.NDArray[np.generic], encoding: Encoding, compression: Compression = "small") -> bytes:
    """Pack the array's elements in C order and little-endian. ``compression``: for the encoding blosc2."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    if encoding == "raw":
        return little.tobytes()
    if encoding == "deflate":
        return zlib.compress(little.tobytes(), level=1)
    filters = _filters(little.dtype, compression)
    packed = blosc2.compress2(
        little,
        typesize=little.itemsize,
        codec=blosc2.Codec.LZ4 if compression == "fast" else blosc2.Codec.ZSTD,
        clevel=1,
        filters=filters,
        filters_meta=[little.itemsize if f is blosc2.Filter.BYTEDELTA else 0 for f in filters],
        nthreads=1,
    )
    return bytes(packed)


def _filters(dtype: "np.dtype[np.generic]", compression: Compression) -> list[blosc2.Filter]:
    if compression == "bits":
        return [blosc2.Filter.BITSHUFFLE]
    # Nearby voxels of two bytes differ little, so that byte delta makes a CT 5 to 14 % smaller. For the run lengths of
    # masks, byte shuffle alone is better by a fifth than bit shuffle.
    if compression == "small" and dtype.kind in "iu" and dtype.itemsize == 2:
        return [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA]
    return [blosc2.Filter.SHUFFLE]


def unpack(data: bytes, encoding: Encoding, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """Unpack an array of ``shape`` and ``dtype``. The result is not writable.

    Raises TooLarge if the array would exceed MAX_ARRAY_BYTES, and BadMessage if the bytes are not exactly such an
    array.
    """
    little = np.dtype(dtype).newbyteorder("<")
    nbytes = math.prod(shape) * little.itemsize
    if nbytes > MAX_ARRAY_BYTES:
        raise TooLarge(
            f"An array of {nbytes:,} bytes was announced, but at most {MAX_ARRAY_BYTES:,} are accepted. Send a smaller "
            "image or mask."
        )
    plain = _UNPACKERS[encoding](data, nbytes)
    if len(plain) != nbytes:
        raise BadMessage(f"An array must have the announced {nbytes:,} bytes, not {len(plain):,}.")
    return np.frombuffer(plain, little).reshape(shape)


def _unpack_raw(data: bytes, nbytes: int) -> bytes:
    return data


def _unpack_deflate(data: bytes, nbytes: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        # One byte more than announced, so that any longer stream is noticed.
        plain = decompressor.decompress(data, nbytes + 1)
    except zlib.error as e:
        raise BadMessage(f"A deflate stream could not be unpacked ({e}). Send one zlib stream per array.") from e
    if not decompressor.eof or decompressor.unused_data:
        raise BadMessage("A deflate stream must end with its array. Send one zlib stream per array.")
    return plain


def _unpack_blosc2(data: bytes, nbytes: int) -> bytes:
    check_blosc2_chunk(data, nbytes)
    try:
        return bytes(blosc2.decompress2(data, nthreads=1))
    except Exception as e:  # the library raises many types of exceptions
        raise BadMessage(f"A blosc2 chunk could not be unpacked ({e}). Send one valid chunk per array.") from e


def check_blosc2_chunk(data: bytes | memoryview, nbytes: int) -> None:
    """Raise BadMessage unless the chunk states these sizes and needs only the library's built-in code.

    Only a chunk that passes may be given to ``blosc2.decompress2``.
    """
    if len(data) < _BLOSC2_HEADER.size:
        raise BadMessage(
            f"A blosc2 chunk of {len(data)} bytes is shorter than the header, which has {_BLOSC2_HEADER.size} bytes."
        )
    fields = _BLOSC2_HEADER.unpack_from(data)
    _, _, flags, _, plain_bytes, _, packed_bytes, filters, _, _, _, flags2, blosc2_flags = fields
    if flags & _EXTENDED_HEADER != _EXTENDED_HEADER:
        raise BadMessage("A blosc2 chunk has the header of Blosc 1. Send the one of Blosc 2, which has 32 bytes.")
    if plain_bytes != nbytes or packed_bytes != len(data):
        raise BadMessage(
            f"A blosc2 chunk states {packed_bytes:,} packed and {plain_bytes:,} unpacked bytes. Expected are "
            f"{len(data):,}, the size of the chunk, and {nbytes:,}, the size of the array."
        )
    if flags >> _CODEC_SHIFT not in _CODECS:
        raise BadMessage("A blosc2 chunk has an unsupported codec. Use BloscLZ, LZ4, zlib or Zstandard.")
    if not _BLOSC2_FILTERS.issuperset(filters):
        raise BadMessage(f"A blosc2 chunk has the filters {list(filters)}. Use only {sorted(_BLOSC2_FILTERS)}.")
    special, other_flags = divmod(blosc2_flags, 1 << _SPECIAL_SHIFT)
    if special not in _SPECIAL_CHUNKS or other_flags or flags2:
        raise BadMessage(
            "A blosc2 chunk is uninitialized, lazy or instrumented, or uses a dictionary or variable-length blocks. "
            "Pack the array without these."
        )


_UNPACKERS = {"raw": _unpack_raw, "deflate": _unpack_deflate, "blosc2": _unpack_blosc2}
