"""Corrupted blosc2 chunks, and detection of a library that runs files of the working folder."""

from pathlib import Path
import random
import struct

import blosc2
import numpy as np

from nninteractive_ws import arrays
from nninteractive_ws.errors import BadMessage, TooLarge

CHUNK_SHAPE, CHUNK_DTYPE = (16, 16, 16), "int16"
CHUNK_CODECS = ("ZSTD", "LZ4", "BLOSCLZ", "ZLIB", "LZ4HC")
CHUNK_CONTENTS = ("noise", "runs", "zeros")

#: Plug-ins of C-Blosc2, by their number in a chunk.
PLUG_IN_CODECS = {36: "openhtj2k", 37: "grok", 38: "openzl", 39: "j2k", 40: "htj2k"}


def packed_chunk(codec: str, content: str) -> bytes:
    """A valid chunk."""
    array = {
        "noise": np.random.default_rng(3).integers(-1000, 1000, CHUNK_SHAPE),
        "runs": np.arange(16**3).reshape(CHUNK_SHAPE) // 100,
        "zeros": np.zeros(CHUNK_SHAPE),
    }[content].astype(CHUNK_DTYPE)
    return bytes(
        blosc2.compress2(array, typesize=2, codec=blosc2.Codec[codec], filters=[blosc2.Filter.BITSHUFFLE], nthreads=1)
    )


def accepted_or_refused(data: bytes, dtype: str, shape: tuple[int, ...]) -> bool:
    try:
        array = arrays.unpack(data, "blosc2", dtype, shape)
    except (BadMessage, TooLarge):
        return False
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    return True


def mutated(chunk: bytes, rng: random.Random) -> bytes:
    changed = bytearray(chunk)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        # Half of the changes are in the header, which is decisive.
        at = rng.randrange(min(32, len(changed)) if rng.random() < 0.5 else len(changed))
        what = rng.randrange(8)
        if what < 4:
            changed[at] = rng.randrange(256)
        elif what < 6:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 6:
            changed[at : at + 4] = struct.pack("<i", rng.choice((-1, 0, 1, 31, 32, 4096, 2**31 - 1, len(chunk))))
        elif len(changed) > 40:
            del changed[at : at + rng.randrange(1, 4)]
    return bytes(changed)


def set_trap(folder: Path) -> Path:
    """Return a path that exists once a program has imported a plug-in from its working folder ``folder``."""
    sprung = folder / "sprung"
    for name in PLUG_IN_CODECS.values():
        (folder / f"blosc2_{name}.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    return sprung
