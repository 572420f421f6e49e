"""NIfTI files, read and written by nibabel."""

from collections.abc import Mapping
from io import BytesIO
import math
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.compression import read_content
from nninteractive_ws.files.data_files import paired_files
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.volume import GRID_TOLERANCE, Affine, Volume, grid_distance, notes_on_size

#: From the RAS of NIfTI to LPS, and back.
_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: The largest dimension in a NIfTI-1 header, which stores dimensions as int16.
_MAX_NIFTI1_DIMENSION = 2**15 - 1
#: Distance between the positions of qform and sform, in voxels, from which a viewer shows a different place.
_FORM_TOLERANCE = 0.5
_MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}
#: The fields of a header that say where the voxels are.
_FORM_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def read_nifti(path: Path) -> tuple[npt.NDArray[Any], Affine, Any, list[str]]:
    """Return the voxels, the affine matrix from voxels to LPS, the header, and notes for the user.

    The affine is the sform, or without one the qform, as in nibabel. Without either it is the one that ITK and 3D
    Slicer assume. The whole file is read, so that the checksum of gzip is verified. Raises BadImage or OSError.
    """
    try:
        with np.errstate(over="raise"):  # sizes that are too large to multiply
            image, stored = _open(path)
            more = _check_size(image, stored)
            voxels = np.asanyarray(image.dataobj)
            affine, notes = _affine(image, voxels.shape[:3])
    except (ImageFileError, HeaderDataError, OSError, ArithmeticError, ValueError, KeyError, TypeError) as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise BadImage(f"{path} is damaged or incomplete: {reason(e)}. Copy or export it again.") from e
    if voxels.dtype == np.float64 and image.dataobj.slope is not None and image.get_data_dtype() != np.float64:
        voxels = voxels.astype(np.float32)  # stored integers times a slope: nibabel computes in double precision
    return voxels, affine, image.header, [*notes, *more]


def _check_size(image: Any, stored: int) -> list[str]:
    """Raise ValueError if the file has fewer bytes than its header announces: before memory for them is allocated."""
    announced = math.prod(map(int, image.header.get_data_shape())) * image.header.get_data_dtype().itemsize
    found = stored - image.dataobj.offset
    if found < announced:
        raise ValueError(f"its header announces {announced:,} bytes of voxels, found {max(found, 0):,}")
    return notes_on_size(found, announced)


def _open(path: Path) -> tuple[Any, int]:
    """Return the image, and the number of bytes in the file with its voxels."""
    data = read_content(path)
    kind = nib.Nifti2Image if data[4:7] in (b"n+2", b"ni2") else nib.Nifti1Image
    pair = nib.Nifti2Pair if kind is nib.Nifti2Image else nib.Nifti1Pair
    if data[344:347] != b"ni1" and data[4:7] != b"ni2":
        return kind.from_bytes(data), len(data)
    voxels = next((file for file in paired_files(path) if ".img" in map(str.lower, file.suffixes)), None)
    if voxels is None:
        raise BadImage(f"{path} has no voxels: its .img file is missing. Copy it to the same folder.")
    content = read_content(voxels)
    files = {"header": FileHolder(fileobj=BytesIO(data)), "image": FileHolder(fileobj=BytesIO(content))}
    return pair.from_file_map(files), len(content)


def _affine(image: Any, shape: tuple[int, ...]) -> tuple[Affine, list[str]]:
    sform, s_code = image.header.get_sform(coded=True)
    qform, q_code = image.header.get_qform(coded=True)
    in_mm = np.diag([*[_MM_PER_UNIT.get(image.header.get_xyzt_units()[0], 1.0)] * 3, 1.0])
    if not s_code and not q_code:
        spacing = np.array(image.header.get_zooms()[:3], float)
        note = (
            "The file does not say how the image is oriented (qform and sform are not set). Left and right, and "
            "positions in millimeters, are a guess."
        )
        return in_mm @ np.diag([*spacing, 1.0]), [note]
    affine = in_mm @ _RAS_LPS @ np.asarray(sform if s_code else qform, float)
    notes = []
    if s_code and q_code and np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]):
        distance = grid_distance(affine, in_mm @ _RAS_LPS @ np.asarray(qform, float), shape)
        if distance > _FORM_TOLERANCE:
            notes.append(
                f"The file has two orientations, up to {distance:.0f} voxels apart (qform and sform). The sform is "
                "used; other programs may show the image elsewhere."
            )
    return affine, notes


def check_precision(volume: Volume) -> None:
    """Raise BadImage if NIfTI, which stores positions as float32, would move the voxels of a volume.

    The positions of a NIfTI image are float32 already, and are copied.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        stored = volume.ijk_to_lps.astype(np.float32).astype(np.float64)
        moved = grid_distance(volume.ijk_to_lps, stored, volume.shape)
    if volume.nifti is None and not moved <= GRID_TOLERANCE:  # also NaN
        raise BadImage("NIfTI cannot store this position precisely enough. Choose .nrrd or .seg.nrrd.")


def write_nifti(path: Path, voxels: npt.NDArray[Any], volume: Volume) -> None:
    """Write voxels of a volume. qform and sform of a NIfTI image are copied: every program shows both at one place."""
    large = max(voxels.shape) > _MAX_NIFTI1_DIMENSION
    affine = _RAS_LPS @ volume.ijk_to_lps
    kind: Any = nib.Nifti2Image if large else nib.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(voxels.dtype)
    if volume.nifti is None:
        header.set_xyzt_units("mm")
        header.set_qform(affine, 1)
        header.set_sform(affine, 1)
    else:
        _copy_forms(volume.nifti, header)
    nib.save(kind(voxels, None, header), path)  # with an affine, nibabel would set both forms again


def _copy_forms(source: Mapping[str, Any], target: Any) -> None:
    for name in _FORM_FIELDS:
        target[name] = source[name]
    target["pixdim"][:4] = source["pixdim"][:4]  # the first is a sign of the qform
