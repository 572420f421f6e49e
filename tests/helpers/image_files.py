"""Image files of every supported format, damaged ones, and independent readers."""

from collections.abc import Callable
import gzip
import math
from pathlib import Path
import re
import struct
from typing import Any
import zlib

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

Voxels = npt.NDArray[Any]

#: Names of files of every format, whose extensions choose how SimpleITK or nibabel writes them.
NAMES = (
    "a.nii", "a.nii.gz", "a.hdr", "a.nrrd", "a.raw.nrrd", "a.nhdr", "a.mha", "a.z.mha", "a.mhd", "a.z.mhd", "a.vtk",
    "a.gipl", "a.gipl.gz", "a.tif",
)  # fmt: skip
_VTK_TYPES = {"unsigned_char": ">u1", "short": ">i2", "unsigned_short": ">u2", "float": ">f4", "int": ">i4"}
_META_TYPES = {"MET_SHORT": "i2", "MET_USHORT": "u2", "MET_FLOAT": "f4", "MET_UCHAR": "u1", "MET_INT": "i4"}


def write(path: Path, voxels: Voxels, affine: npt.NDArray[np.float64] | None = None) -> None:
    """Write voxels (i, j, k). ``affine``: from voxels to RAS, for NIfTI. Other formats get a spacing of 2, 3, 4."""
    name = path.name
    if name.endswith((".nii", ".nii.gz", ".hdr")):
        kind: Any = nib.Nifti1Pair if name.endswith(".hdr") else nib.Nifti1Image
        nib.save(kind(voxels, np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine), path)
        return
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing((2.0, 3.0, 4.0))
    sitk.WriteImage(image, str(path), useCompression=name not in ("a.raw.nrrd", "a.mha", "a.mhd"))


def data_file(path: Path) -> Path:
    """Return the file that has the voxels of an image: itself, or one beside it."""
    others = {".hdr": (".img",), ".nhdr": (".raw.gz", ".raw"), ".mhd": (".zraw", ".raw")}
    candidates = [path.with_name(f"{path.stem}{suffix}") for suffix in others.get(path.suffix, ())]
    return next((candidate for candidate in candidates if candidate.exists()), path)


def read_plainly(path: Path) -> Voxels:
    """Read the voxels (i, j, k) with only the standard library and numpy, by the header. Raises any error."""
    return np.asarray(_READERS[path.suffixes[-1] if path.suffix != ".gz" else path.suffixes[-2]](path))


def _unzipped(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _shaped(data: bytes, dtype: str, shape: tuple[int, ...]) -> Voxels:
    count = math.prod(shape)
    return np.frombuffer(data[: count * np.dtype(dtype).itemsize], dtype).reshape(shape, order="F")


def _nifti(path: Path) -> Voxels:
    header = _unzipped(path.read_bytes())
    order = "<" if struct.unpack("<i", header[:4])[0] == 348 else ">"
    n, *dims = struct.unpack(f"{order}8h", header[40:56])
    code = struct.unpack(f"{order}h", header[70:72])[0]
    offset, slope, intercept = struct.unpack(f"{order}3f", header[108:120])
    dtype = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}[
        code
    ]
    voxels = header if header[344:347] == b"n+1" else _unzipped(data_file(path).read_bytes())
    shape = [max(1, d) for d in dims[:n]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    values = _shaped(voxels[int(offset) :], order + dtype, tuple(shape))
    if slope and math.isfinite(slope) and math.isfinite(intercept) and (slope, intercept) != (1, 0):
        return np.asarray(values * np.float64(slope) + intercept, np.float32)
    return values


def _meta(path: Path) -> Voxels:
    header, _, data = path.read_bytes().partition(b"ElementDataFile = ")
    name, _, data = data.partition(b"\n")
    fields = dict(re.findall(rb"(?m)^(\w+) = (.*)$", header))
    if name.strip() != b"LOCAL":
        data = (path.parent / name.strip().decode()).read_bytes()
    if fields.get(b"CompressedData") == b"True":
        data = zlib.decompress(data)
    order = ">" if fields.get(b"BinaryDataByteOrderMSB") == b"True" else "<"
    shape = tuple(map(int, fields[b"DimSize"].split()))
    return _shaped(data, order + _META_TYPES[fields[b"ElementType"].decode()], shape)


def _vtk(path: Path) -> Voxels:
    content = path.read_bytes()
    shape = tuple(int(n) for n in re.search(rb"DIMENSIONS (\d+) (\d+) (\d+)", content).groups())  # type: ignore[union-attr]
    found = re.search(rb"SCALARS \S+ (\w+) 1\nLOOKUP_TABLE [^\n]*\n", content)
    assert found is not None
    return _shaped(content[found.end() :], _VTK_TYPES[found[1].decode()], shape)


def _gipl(path: Path) -> Voxels:
    content = _unzipped(path.read_bytes())
    i, j, k, _, kind = struct.unpack(">5H", content[:10])
    return _shaped(content[256:], {8: ">u1", 15: ">i2", 16: ">u2", 64: ">f4"}[kind], (i, j, k))


def _nrrd(path: Path) -> Voxels:
    header, _, data = path.read_bytes().partition(b"\n\n")
    fields = {k.lower(): v for k, v in re.findall(rb"(?m)^([\w ]+):\s*(.*?)\s*$", header)}
    if b"data file" in fields:
        data = (path.parent / fields[b"data file"].decode()).read_bytes()
    if fields[b"encoding"].lower() in (b"gzip", b"gz"):
        data = gzip.decompress(data)
    types = {b"short": "i2", b"unsigned short": "u2", b"int16": "i2", b"uint16": "u2", b"float": "f4", b"int": "i4"}
    order = {b"little": "<", b"big": ">"}[fields[b"endian"].lower()]
    return _shaped(data, order + types[fields[b"type"].lower()], tuple(map(int, fields[b"sizes"].split())))


def _tiff(path: Path) -> Voxels:
    from PIL import Image

    with Image.open(path) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            pages.append(np.array(image))
    return np.stack(pages).transpose(2, 1, 0)


_READERS: dict[str, Callable[[Path], Voxels]] = {
    ".nii": _nifti, ".hdr": _nifti, ".nrrd": _nrrd, ".nhdr": _nrrd, ".mha": _meta, ".mhd": _meta, ".vtk": _vtk,
    ".gipl": _gipl, ".tif": _tiff,
}  # fmt: skip
