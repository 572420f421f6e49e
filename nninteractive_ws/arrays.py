"""Arrays on the wire: packed and unpacked, with every size known and checked before anything is allocated.

``blosc2.decompress2`` must not meet hostile bytes unguarded (4.14.1). It allocates what a forged header asks for,
returns other memory for a chunk of uninitialized values, and for a plug-in codec or filter it runs ``python -c`` in
the working folder and loads the library whose path that prints. :func:`unpack` checks the whole header first.
"""

import struct
import zlib

import blosc2
import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadMessage, TooLarge
from nninteractive_ws.messages import Encoding

#: Encodings this installation can pack and unpack, the preferred first.
ENCODINGS: tuple[Encoding, ...] = ("blosc2", "deflate", "raw")

#: The largest array that may be unpacked. A brick has at most 32^3 four-byte voxels (128 KiB); the run lengths
#: of a mask are the largest: 256 MiB are 67 million runs, more than a noisy mask of 512 x 512 x 256 has.
MAX_ARRAY_BYTES = 256 * 1024**2

# The header of a chunk, as C-Blosc2's README_CHUNK_FORMAT.rst has it: version, version of the codec's format, flags,
# type size, sizes (plain, block, packed), six filters, user-defined codec and its metadata, metadata of the filters,
# flags2, blosc2_flags.
_BLOSC2_HEADER = struct.Struct("<4B3i6s2B6s2B")
# Bits 0 and 2 of the flags together announce the header of 32 bytes; bits 5 to 7 name the codec.
_EXTENDED_HEADER, _CODEC_SHIFT = 0b101, 5
# BloscLZ, LZ4 (and LZ4HC), zlib, Zstandard. 6 is a plug-in; 2, 5 and 7 are reserved.
_CODECS = frozenset({0, 1, 3, 4})
# None, shuffle, bit shuffle, delta, truncated precision, byte delta. All others are plug-ins.
_BLOSC2_FILTERS = frozenset({0, 1, 2, 3, 4, 35})
# Bits 4 to 6 of blosc2_flags name a special chunk: none, zeros, NaN, one value. 4 is "uninitialized". The other bits
# are for dictionaries, longer headers, lazy chunks (of a file) and instrumentation, which are never needed on the wire.
_SPECIAL_SHIFT, _SPECIAL_CHUNKS = 4, frozenset({0, 1, 2, 3})

# Bytes of the same place side by side, which makes the run lengths of masks a fifth smaller than bits would. Nearby
# voxels of two bytes differ little, too: their differences make a CT 5 to 14 % smaller.
_FILTERS = (blosc2.Filter.SHUFFLE,)
_VOXEL_FILTERS = (blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA)

# Other threads (the event loop above all) go on while a brick is packed.
blosc2.set_releasegil(True)


def pack(array: npt.NDArray[np.generic], encoding: Encoding) -> bytes:
    """The array's voxels in C order and little-endian, packed."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    if encoding == "raw":
        return little.tobytes()
    if encoding == "deflate":
        return zlib.compress(little.tobytes(), level=1)
    filters = _VOXEL_FILTERS if little.dtype.kind in "iu" and little.itemsize == 2 else _FILTERS
    packed = blosc2.compress2(
        little,
        typesize=little.itemsize,
        codec=blosc2.Codec.ZSTD,
        clevel=1,
        filters=list(filters),
        filters_meta=[0 if f is blosc2.Filter.SHUFFLE else little.itemsize for f in filters],
        nthreads=1,
    )
    return bytes(packed)


def unpack(data: bytes, encoding: Encoding, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """The array of ``shape`` and ``dtype`` that was packed; not writable.

    Raises TooLarge where the array would be over MAX_ARRAY_BYTES, and BadMessage where the bytes are not
    exactly such an array.
    """
    little = np.dtype(dtype).newbyteorder("<")
    nbytes = int(np.prod(shape, dtype=np.float64)) * little.itemsize
    if nbytes > MAX_ARRAY_BYTES:
        raise TooLarge(f"An array of {nbytes:,} bytes was announced; at most {MAX_ARRAY_BYTES:,} are accepted.")
    plain = _UNPACKERS[encoding](data, nbytes)
    if len(plain) != nbytes:
        raise BadMessage(f"An array of {len(plain):,} bytes came where {nbytes:,} were announced.")
    return np.frombuffer(plain, little).reshape(shape)


def _unpack_raw(data: bytes, nbytes: int) -> bytes:
    return data


def _unpack_deflate(data: bytes, nbytes: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        # One byte more than announced: then a longer stream is noticed, whatever its real length.
        plain = decompressor.decompress(data, nbytes + 1)
    except zlib.error as e:
        raise BadMessage(f"A deflate stream could not be unpacked ({e}).") from e
    if not decompressor.eof or decompressor.unused_data:
        raise BadMessage("A deflate stream does not end where its array does.")
    return plain


def _unpack_blosc2(data: bytes, nbytes: int) -> bytes:
    _check_blosc2_header(data, nbytes)
    try:
        return bytes(blosc2.decompress2(data, nthreads=1))
    except Exception as e:  # the library raises many kinds
        raise BadMessage(f"A blosc2 chunk could not be unpacked ({e}).") from e


def _check_blosc2_header(data: bytes, nbytes: int) -> None:
    """Raise BadMessage unless the chunk states these sizes and needs nothing but the library's built-in code."""
    if len(data) < _BLOSC2_HEADER.size:
        raise BadMessage(f"A blosc2 chunk of {len(data)} bytes is shorter than its header.")
    fields = _BLOSC2_HEADER.unpack_from(data)
    _, _, flags, _, plain_bytes, _, packed_bytes, filters, _, _, _, flags2, blosc2_flags = fields
    if flags & _EXTENDED_HEADER != _EXTENDED_HEADER:
        raise BadMessage("A blosc2 chunk has the header of Blosc 1; one of Blosc 2, of 32 bytes, is expected.")
    if plain_bytes != nbytes or packed_bytes != len(data):
        raise BadMessage(
            f"A blosc2 chunk states that {packed_bytes:,} bytes hold {plain_bytes:,}; "
            f"{len(data):,} bytes came for an array of {nbytes:,}."
        )
    if flags >> _CODEC_SHIFT not in _CODECS:
        raise BadMessage("A blosc2 chunk names a codec that is not BloscLZ, LZ4, zlib or Zstandard; use one of these.")
    if not _BLOSC2_FILTERS.issuperset(filters):
        raise BadMessage(f"A blosc2 chunk names the filters {list(filters)}; accepted are {sorted(_BLOSC2_FILTERS)}.")
    special, others = divmod(blosc2_flags, 1 << _SPECIAL_SHIFT)
    if special not in _SPECIAL_CHUNKS or others or flags2:
        raise BadMessage(
            "A blosc2 chunk is uninitialized, lazy or instrumented, or uses a dictionary or variable-length blocks; "
            "pack the array without these."
        )


_UNPACKERS = {"raw": _unpack_raw, "deflate": _unpack_deflate, "blosc2": _unpack_blosc2}
