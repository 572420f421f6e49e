"""NRRD, MetaImage, VTK, GIPL and TIFF files, read by SimpleITK.

For some of these formats ITK takes a truncated or damaged file for a whole one, with zeros or arbitrary memory in place
of the missing voxels. They are checked before.
"""

from collections.abc import Callable
import gzip
import math
from pathlib import Path
import re
from typing import Any
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.volume import Affine

_IMAGE_IO = {
    "nrrd": "NrrdImageIO",
    "metaimage": "MetaImageIO",
    "vtk": "VTKImageIO",
    "gipl": "GiplImageIO",
    "tiff": "TIFFImageIO",
}
#: Bytes of a voxel by type, in VTK's and in GIPL's words.
_VTK_SIZES = {
    "bit": 1 / 8, "char": 1, "signed_char": 1, "unsigned_char": 1, "short": 2, "unsigned_short": 2, "int": 4,
    "unsigned_int": 4, "long": 8, "unsigned_long": 8, "long_long": 8, "unsigned_long_long": 8, "float": 4, "double": 8,
}  # fmt: skip
_GIPL_SIZES = {1: 1 / 8, 7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_GIPL_HEADER_BYTES = 256
#: Values of each voxel by kind of data of a VTK file.
_VTK_COMPONENTS = {"VECTORS": 3, "NORMALS": 3, "TENSORS": 9, "SCALARS": 1, "COLOR_SCALARS": 1}


def read_itk(path: Path, kind: str) -> tuple[npt.NDArray[Any], Affine, int]:
    """Return the voxels (i, j, k, and further axes), the affine from voxels to LPS, and the components of a voxel.

    ``kind``: the format, as of :func:`identify`. Components are the last axis of the voxels, if there are several.
    Raises BadImage.
    """
    if check := _CHECKS.get(kind):
        check(path)
    if not is_utf8(path):
        raise BadImage(f"The path {path} has bytes that are not UTF-8. Rename the file or folder.")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[kind])
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as e:
        raise BadImage(f"{path} cannot be read. It may be damaged. ITK reports: {itk_reason(e)}") from e
    components = image.GetNumberOfComponentsPerPixel()
    array = sitk.GetArrayFromImage(image)
    spatial = range(image.GetDimension() - 1, -1, -1)
    voxels = array.transpose(*spatial, *range(image.GetDimension(), array.ndim))
    return voxels, affine_of(image), components


def is_utf8(path: Path) -> bool:
    """Whether SimpleITK can be given a path. It ends the process if a name has bytes that are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def affine_of(image: sitk.Image) -> Affine:
    """Return the affine matrix of the first three axes of an image."""
    n = image.GetDimension()
    spatial = min(n, 3)
    matrix = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(n, n)[:spatial, :spatial]
    matrix[:spatial, :spatial] = direction * image.GetSpacing()[:spatial]
    matrix[:spatial, 3] = image.GetOrigin()[:spatial]
    return matrix


def itk_reason(error: RuntimeError) -> str:
    """Return the last line of an ITK error, which has the reason."""
    return str(error).strip().splitlines()[-1]


def _incomplete(path: Path, expected: float, found: float) -> BadImage:
    return BadImage(
        f"{path} is incomplete: its header announces {math.ceil(expected):,} bytes of voxels, found {int(found):,}. "
        "Copy or export it again."
    )


def _check_metaimage(path: Path) -> None:
    """Check compressed data, whose checksum ITK ignores."""
    content = path.read_bytes()
    last = re.search(rb"(?m)^\s*ElementDataFile\s*=([^\n]*)(\n|\Z)", content)
    if last is None or not re.search(rb"(?im)^\s*CompressedData\s*=\s*True\s*$", content[: last.start()]):
        return
    name, data = last[1].strip(), content[last.end() :]
    if name.upper() != b"LOCAL":
        data = (path.parent / name.decode(errors="surrogateescape")).read_bytes()
    try:
        unpacked = zlib.decompressobj(wbits=47)  # zlib or gzip
        size = len(unpacked.decompress(data))
    except zlib.error as e:
        raise BadImage(f"{path} is damaged: its voxels cannot be decompressed ({e}). Copy or export it again.") from e
    if not unpacked.eof:
        raise BadImage(
            f"{path} is incomplete: its compressed voxels end after {size:,} bytes. Copy or export it again."
        )


def _check_vtk(path: Path) -> None:
    content = path.read_bytes()
    dimensions = re.search(rb"DIMENSIONS\s+(\d+)\s+(\d+)\s+(\d+)", content[:4096])
    values = re.search(
        rb"(SCALARS|COLOR_SCALARS|VECTORS|NORMALS|TENSORS)[ \t]+\S+[ \t]+(\w+)(?:[ \t]+(\d+))?[^\n]*\n"
        rb"(?:LOOKUP_TABLE[^\n]*\n)?",
        content[:4096],
    )
    if dimensions is None or values is None:
        return  # not a format that ITK reads: it says so
    kind, type_name = values[1].decode(), values[2].decode().lower()
    count = math.prod(map(int, dimensions.groups())) * (int(values[3]) if values[3] else _VTK_COMPONENTS[kind])
    data = content[values.end() :]
    if re.search(rb"(?m)^\s*ASCII\s*$", content[: values.start()]):
        size, found = 1.0, len(data.split())
    else:
        size, found = _VTK_SIZES.get(type_name, 1), len(data)
    if found < count * size:
        raise _incomplete(path, count * size, found)


def _check_gipl(path: Path) -> None:
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as e:
            raise BadImage(f"{path} is damaged: its gzip data cannot be decompressed ({e}). Copy it again.") from e
    dimensions, kind = np.frombuffer(content[:8], ">u2"), int.from_bytes(content[8:10], "big")
    expected = math.prod(max(1, int(n)) for n in dimensions) * _GIPL_SIZES.get(kind, 1)
    found = len(content) - _GIPL_HEADER_BYTES
    if found < expected:
        raise _incomplete(path, expected, found)


def _check_tiff(path: Path) -> None:
    """Decode every page: ITK leaves pages that it cannot decode as they are in memory."""
    try:
        with Image.open(path) as image:
            for page in range(getattr(image, "n_frames", 1)):
                image.seek(page)
                image.load()
    except (EOFError, OSError, SyntaxError, TypeError, ValueError, KeyError, zlib.error) as e:
        raise BadImage(f"{path} is damaged or of an unusual kind of TIFF ({e}). Convert it to NRRD or NIfTI.") from e


_CHECKS: dict[str, Callable[[Path], None]] = {
    "metaimage": _check_metaimage,
    "vtk": _check_vtk,
    "gipl": _check_gipl,
    "tiff": _check_tiff,
}
