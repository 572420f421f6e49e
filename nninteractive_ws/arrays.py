"""Arrays on the wire: packed and unpacked, with every size known and checked before anything is allocated.

``blosc2.decompress2`` must not meet hostile bytes unguarded (4.14.1): it can allocate what a forged header
asks for, and an "uninitialised" special frame returns other memory. :func:`unpack` looks at the header first.
"""

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

_BLOSC2_HEADER_BYTES = 32
# Bits 4 to 6 of the last header byte name a special frame; 4 is "uninitialised".
_SPECIAL_SHIFT, _SPECIAL_MASK, _SPECIAL_UNINITIALISED = 4, 0x7, 4

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
    if len(data) < _BLOSC2_HEADER_BYTES:
        raise BadMessage(f"A blosc2 frame of {len(data)} bytes is shorter than its header.")
    if data[31] >> _SPECIAL_SHIFT & _SPECIAL_MASK == _SPECIAL_UNINITIALISED:
        raise BadMessage("A blosc2 frame holds uninitialised data.")
    try:
        plain_bytes, packed_bytes, _ = blosc2.get_cbuffer_sizes(data)
    except Exception as e:  # the library raises many kinds on bytes that are not its own
        raise BadMessage(f"A blosc2 frame has no valid header ({e}).") from e
    if plain_bytes != nbytes or packed_bytes != len(data):
        raise BadMessage(
            f"A blosc2 frame says that {packed_bytes:,} bytes hold {plain_bytes:,}; "
            f"{len(data):,} bytes came for an array of {nbytes:,}."
        )
    try:
        return bytes(blosc2.decompress2(data, nthreads=1))
    except Exception as e:
        raise BadMessage(f"A blosc2 frame could not be unpacked ({e}).") from e


_UNPACKERS = {"raw": _unpack_raw, "deflate": _unpack_deflate, "blosc2": _unpack_blosc2}
