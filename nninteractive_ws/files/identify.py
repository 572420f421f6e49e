"""The format of a file by its content. Names and extensions can be wrong."""

from pathlib import Path
import re
import struct

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.compression import read_start

#: The formats that can be read, in sentences.
_SUPPORTED = "NIfTI, NRRD, MetaImage, VTK, GIPL and TIFF, and DICOM series"

_HEADER_BYTES = 4096
#: Extensions of headers whose voxels are in another file.
_HEADERS = (".hdr", ".mhd", ".nhdr")

#: First bytes of files that are no images, and a description with the remedy.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS. Run `git lfs pull` to download the file itself"),
    (b"PK\x03\x04", "a ZIP archive. Unpack it"),
    (b"Rar!", "a RAR archive. Unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive. Unpack it"),
    (b"BZh", "compressed by bzip2. Decompress it"),
    (b"\xfd7zXZ", "compressed by xz. Decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard. Decompress it"),
    (b"\x89PNG", "a PNG picture. Expected a volume"),
    (b"\xff\xd8\xff", "a JPEG picture. Expected a volume"),
    (b"BM", "a BMP picture. Expected a volume"),
    (b"GIF8", "a GIF picture. Expected a volume"),
    (b"%PDF", "a PDF document. Expected a volume"),
    (b"\x89HDF", "an HDF5 or MINC file. Convert it to NIfTI or NRRD"),
    (b"\x00\x00\x00\x01\x00\x00", "a FreeSurfer MGH file. Convert it with mri_convert to NIfTI"),
)


def identify(path: Path) -> str:
    """Return the format of a file: nifti, nrrd, metaimage, vtk, gipl, tiff or dicom.

    Raises BadImage with a sentence that says what the file is, and OSError.
    """
    content, compressed = read_start(path, _HEADER_BYTES)
    if not content:
        raise BadImage(f"{path} is empty (0 bytes). Copy or export it again.")
    kind = _kind(content)
    if kind is not None and not (compressed and kind in ("nrrd", "metaimage", "vtk", "tiff", "dicom")):
        return kind
    if header := next((h for h in map(path.with_suffix, _HEADERS) if h != path and h.exists()), None):
        raise BadImage(f"{path} seems to have the voxels of {header.name}. Choose that file instead.")
    advice = f"{_describe(content)}, compressed by gzip. Decompress it" if compressed else _describe(content)
    raise BadImage(f"{path} cannot be read: it is {advice}. Supported formats are {_SUPPORTED}.")


def _kind(content: bytes) -> str | None:
    if content[128:132] == b"DICM":  # first, because its preamble may be the header of a TIFF file
        return "dicom"
    if _is_nifti(content):
        return "nifti"
    if content.startswith(b"NRRD000"):
        return "nrrd"
    if content.startswith(b"# vtk DataFile"):
        return "vtk"
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if content[252:256] in (b"\xef\xff\xe9\xb0", b"\x2a\xe3\x89\xb8"):
        return "gipl"
    if content[:4] in (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0"):
        return "dicom"
    if re.search(rb"(?m)^\s*(ObjectType|NDims)\s*=", content[:1024]):
        return "metaimage"
    return None


def _is_nifti(content: bytes) -> bool:
    return content[344:348] in (b"n+1\0", b"ni1\0") or content[4:8] in (b"n+2\0", b"ni2\0")


def _describe(content: bytes) -> str:
    if len(content) >= 348 and 348 in (struct.unpack(order + "i", content[:4])[0] for order in "<>"):
        return "an Analyze 7.5 file, which does not say what is left and right. Convert it to NIfTI"
    if content[257:262] == b"ustar":
        return "a tar archive. Unpack it"
    if re.match(rb"\s*(<!doctype html|<html)", content, re.IGNORECASE):
        return "a web page (HTML), probably an error page of a download. Download the image again"
    if b"/annex/objects/" in content[:200]:
        return "a pointer of git-annex. Run `git annex get` to download the file itself"
    if content.lstrip().startswith((b"{", b"<")):
        return "a text file (JSON or XML). Expected an image"
    for start, what in _OTHERS:
        if content.startswith(start):
            return what
    if not content.strip(b"\0"):
        return "filled with zeros, as after an interrupted copy. Copy it again"
    return "of an unknown format"
