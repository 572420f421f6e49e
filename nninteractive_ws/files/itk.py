"""NRRD, MetaImage, VTK, GIPL and TIFF files, read by SimpleITK.

ITK takes many truncated or damaged files for whole ones, with zeros or arbitrary memory in place of the missing voxels.
So its voxels are compared with those that are in the file.
"""

from collections.abc import Callable
import locale
from pathlib import Path
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
import SimpleITK as sitk

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.compression import decompress, read_content
from nninteractive_ws.files.data_files import named_files
from nninteractive_ws.files.names import is_utf8
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.volume import Affine, notes_on_size

Voxels = npt.NDArray[Any]

_IMAGE_IO = {
    "nrrd": "NrrdImageIO",
    "metaimage": "MetaImageIO",
    "vtk": "VTKImageIO",
    "gipl": "GiplImageIO",
    "tiff": "TIFFImageIO",
}
_GIPL_HEADER_BYTES = 256
#: Exceptions of Pillow for damaged files.
_TIFF_ERRORS = (EOFError, OSError, SyntaxError, TypeError, ValueError, KeyError)
_TIFF_NOTE = "A TIFF file does not say the size of voxels reliably. Millimeters and volumes may be wrong."
_IMAGE_DESCRIPTION = 270
#: Axes of a TIFF file besides its slices, by their names in ImageJ and in OME-XML.
_TIFF_AXES = {"channels": "channels", "frames": "time points", "SizeC": "channels", "SizeT": "time points"}
#: Bytes after the voxels that other writers of VTK files add: a line break, and names of components.
_VTK_END = re.compile(rb"\r?\n?|\s*METADATA\s.*", re.DOTALL)
#: Kinds of NRRD axes that ITK counts as axes in space, although one of them can be time.
_DOMAIN_KINDS = ("domain", "space", "time", "none", "???")


def read_itk(path: Path, kind: str) -> tuple[Voxels, Affine, int, list[str]]:
    """Return the voxels (i, j, k, and further axes), the affine from voxels to LPS, components of a voxel, and notes.

    ``kind``: the format, as of :func:`identify`. Components are the last axis of the voxels, if there are several.
    Raises BadImage or OSError.
    """
    if not is_utf8(str(path)):
        raise BadImage(f"The path {path} has bytes that are not UTF-8. Rename the file or folder.")
    if kind == "tiff":
        _check_tiff(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_IMAGE_IO[kind])
    reader.SetFileName(str(path))
    kept = locale.setlocale(locale.LC_ALL)
    try:
        image = reader.Execute()
    except RuntimeError as e:
        if missing := [file for file in named_files(path, kind) if not file.exists()]:
            raise BadImage(f"The file {missing[0]} with voxels of {path.name} is missing. Copy it as well.") from e
        if kind == "nrrd" and (sentence := _unsupported_nrrd(path)):
            raise BadImage(sentence) from e
        raise BadImage(f"{path} cannot be read. It may be damaged. ITK reports: {_last_line(e)}") from e
    finally:
        locale.setlocale(locale.LC_ALL, kept)  # the reader of VTK files changes it for the whole process
    array = sitk.GetArrayFromImage(image)  # the order in the file: the last axis is the fastest
    notes = [_TIFF_NOTE] if kind == "tiff" else []
    notes += _check(path, kind, array)
    spatial = range(image.GetDimension() - 1, -1, -1)
    voxels = array.transpose(*spatial, *range(image.GetDimension(), array.ndim))
    return voxels, _affine_of(image), image.GetNumberOfComponentsPerPixel(), notes


def _affine_of(image: sitk.Image) -> Affine:
    """Return the affine matrix of the first three axes of an image."""
    n = image.GetDimension()
    spatial = min(n, 3)
    matrix = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(n, n)[:spatial, :spatial]
    matrix[:spatial, :spatial] = direction * image.GetSpacing()[:spatial]
    matrix[:spatial, 3] = image.GetOrigin()[:spatial]
    return matrix


def _last_line(error: RuntimeError) -> str:
    """Return the last line of an ITK error, which has the reason, as a sentence."""
    last = reason(RuntimeError(str(error).strip().splitlines()[-1]))
    return "the file ends too early." if last == "Reason: Success" else f"{last}."


def _check(path: Path, kind: str, array: Voxels) -> list[str]:
    """Raise BadImage unless the array has the voxels that are in the file. Return notes."""
    data = _STORED[kind](path, array)
    if data is None:
        return []
    if len(data) < array.nbytes:
        raise BadImage(
            f"{path} is incomplete: its header announces {array.nbytes:,} bytes of voxels, found {len(data):,}. Copy "
            "or export it again."
        )
    stored = np.frombuffer(data, array.dtype, array.size)
    if array.tobytes() not in (stored.tobytes(), stored.byteswap().tobytes()):
        raise BadImage(f"{path} is damaged. Copy or export it again.")
    return notes_on_size(len(data), array.nbytes)


def _metaimage(path: Path, array: Voxels) -> bytes | None:
    content = path.read_bytes()
    last = re.search(rb"(?m)^\s*ElementDataFile\s*=([^\n]*)(\n|\Z)", content)
    assert last is not None  # ITK has read it
    header, name = content[: last.start()], last[1].strip()
    data = content[last.end() :] if name.upper() == b"LOCAL" else _detached(path, "metaimage")
    if data is None:
        return None
    if _field(header, b"CompressedData", b"=").lower() == b"true":
        return decompress(path, data)
    if _field(header, b"BinaryData", b"=").lower() == b"false":
        return _from_text(data, array)
    skipped = int(_field(header, b"HeaderSize", b"=") or 0)
    return data[-array.nbytes :] if skipped < 0 else data[skipped:]


def _nrrd(path: Path, array: Voxels) -> bytes | None:
    header, _, attached = re.split(rb"(\r?\n\r?\n|\Z)", path.read_bytes(), maxsplit=1)
    data = _detached(path, "nrrd") if _field(header, b"data ?file", b":") else attached
    if data is None:
        return None
    encoding = _field(header, b"encoding", b":").lower()
    if encoding in (b"txt", b"text", b"ascii"):
        return _from_text(data, array)
    if array.itemsize > 1 and not _field(header, b"endian", b":"):
        raise BadImage(f"{path} is damaged: its header does not give the byte order (endian). Export it again.")
    if encoding in (b"gz", b"gzip"):
        data = decompress(path, data)
    # ITK moves an axis of components to the front. Hexadecimal digits have a check of their own.
    if encoding not in (b"raw", b"gz", b"gzip") or array.ndim > 3:
        return None
    lines, skipped = (int(_field(header, name, b":") or 0) for name in (b"line ?skip", b"byte ?skip"))
    data = data.split(b"\n", lines)[-1]
    return data[-array.nbytes :] if skipped < 0 else data[skipped:]


def _unsupported_nrrd(path: Path) -> str:
    """Return a sentence about what ITK does not support in a NRRD file, or an empty text."""
    header = re.split(rb"\r?\n\r?\n", path.read_bytes(), maxsplit=1)[0]
    if _field(header, b"encoding", b":").lower() in (b"bzip2", b"bz2"):
        return f"{path} uses bzip2, which is not supported. Save it with gzip."
    kinds = _field(header, b"kinds", b":").decode("ascii", "replace").lower().split()
    domain = [kind for kind in kinds if kind in _DOMAIN_KINDS]
    if len(domain) > 3:
        return (
            f"{path} has {len(domain)} axes in space or time (kinds: {' '.join(kinds)}). Expected 3. Save each volume "
            "as a file of its own, or replace the kind of the further axis with list."
        )
    return ""


def _vtk(path: Path, array: Voxels) -> bytes | None:
    header = re.match(
        rb".*?\n(SCALARS|COLOR_SCALARS|VECTORS|NORMALS|TENSORS)[ \t]+\S+[ \t]+\w+[ \t\d]*\r?\n(LOOKUP_TABLE[^\n]*\n)?",
        path.read_bytes(),
        re.DOTALL,
    )
    if header is None:
        raise BadImage(f"{path} is damaged: its header has no line of scalars or vectors. Export it again.")
    data = header.string[header.end() :]
    if re.search(rb"(?m)^\s*ASCII\s*$", header[0]):
        return _from_text(data, array)
    return data[: array.nbytes] if _VTK_END.fullmatch(data, array.nbytes) else data


def _gipl(path: Path, _array: Voxels) -> bytes:
    return read_content(path)[_GIPL_HEADER_BYTES:]


def _check_tiff(path: Path) -> None:
    """Raise BadImage if a file has several channels or time points, which ITK would stack like slices."""
    try:
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})  # of Pillow's class for TIFF only
            description = str(tags.get(_IMAGE_DESCRIPTION, ""))
    except _TIFF_ERRORS:
        return  # reported as damaged, unless ITK reads it
    if description.startswith("ImageJ="):
        numbers = re.findall(r"(?m)^(channels|frames)=(\d{1,9})", description)
    else:
        pixels = "".join(re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", description))
        numbers = re.findall(r"\b(SizeC|SizeT)=[\"'](\d{1,9})", pixels)
    several = [f"{number} {_TIFF_AXES[name]}" for name, number in numbers if int(number) > 1]
    if several:
        found = " and ".join(dict.fromkeys(several))
        raise BadImage(
            f"{path} has {found}. Expected one volume. Save one channel of one time point as a file of its own."
        )


def _tiff(path: Path, array: Voxels) -> bytes:
    """Read by Pillow: it and ITK skip different damages."""
    try:
        with Image.open(path) as image:
            pages = []
            for page in range(getattr(image, "n_frames", 1)):
                image.seek(page)
                pages.append(np.array(image))
        stored = np.stack(pages) if len(pages) > 1 else pages[0]
        if stored.shape != array.shape:
            raise ValueError(f"{len(pages)} pages")
        return stored.astype(array.dtype).tobytes()
    except _TIFF_ERRORS as e:
        raise BadImage(
            f"{path} is damaged or of an unusual kind of TIFF ({reason(e)}). Convert it to NRRD or NIfTI."
        ) from e


#: The voxels as they are in a file, by format. None if they cannot be compared.
_STORED: dict[str, Callable[[Path, Voxels], bytes | None]] = {
    "metaimage": _metaimage,
    "nrrd": _nrrd,
    "vtk": _vtk,
    "gipl": _gipl,
    "tiff": _tiff,
}


def _field(header: bytes, name: bytes, separator: bytes) -> bytes:
    """Return the value of a field of a header, or nothing."""
    found = re.search(rb"(?im)^\s*" + name + rb"\s*" + separator + rb"=?\s*(.*?)\s*$", header)
    return found[1] if found else b""


def _from_text(data: bytes, array: Voxels) -> bytes:
    try:
        return np.array(data.split()[: array.size], array.dtype).tobytes()
    except ValueError:
        return b""


def _detached(path: Path, kind: str) -> bytes | None:
    """Return the content of the file with the voxels that a header names, or None if it names several."""
    files = list(named_files(path, kind))
    if not files:
        raise BadImage(f"{path} is damaged: its header does not name the file with the voxels. Export it again.")
    return files[0].read_bytes() if len(files) == 1 else None
