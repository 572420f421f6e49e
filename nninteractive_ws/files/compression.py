"""Content compressed by gzip or zlib."""

import gzip
from pathlib import Path
import zlib

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.reason import reason

#: The first bytes of a gzip file.
_GZIP = b"\x1f\x8b"
_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


def read_content(path: Path) -> bytes:
    """Return the content of a file, decompressed if it is a gzip file. Raises BadImage, and OSError."""
    content = path.read_bytes()
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except _ERRORS as e:
        raise _damaged(path, e) from e


def read_start(path: Path, size: int) -> tuple[bytes, bool]:
    """Return the first bytes of what :func:`read_content` returns, and whether they were compressed."""
    with path.open("rb") as file:
        start = file.read(size)
    if not start.startswith(_GZIP):
        return start, False
    try:
        with gzip.open(path) as unpacked:
            return unpacked.read(size), True
    except _ERRORS as e:
        raise _damaged(path, e) from e


def decompress(path: Path, content: bytes) -> bytes:
    """Decompress a part of a file, by zlib or gzip. Bytes after its end are ignored. Raises BadImage."""
    unpacked = zlib.decompressobj(wbits=47)  # zlib or gzip
    try:
        decompressed = unpacked.decompress(content)
    except zlib.error as e:
        raise _damaged(path, e) from e
    if not unpacked.eof:
        raise BadImage(f"{path} is incomplete: its compressed data ends too early. Copy or export it again.")
    return decompressed


def _damaged(path: Path, error: Exception) -> BadImage:
    return BadImage(f"{path} is damaged: it cannot be decompressed ({reason(error)}). Copy or export it again.")
