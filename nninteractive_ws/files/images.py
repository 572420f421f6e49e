"""Image files: read volumes, and write segmentations with the geometry of their volume."""

from collections.abc import Mapping
import colorsys
from dataclasses import dataclass
from pathlib import Path
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import slicerio

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.errors import BadImage, OutOfBounds
from nninteractive_ws.geometry import Index
from nninteractive_ws.masks import Mask

#: File name extensions of segmentations. ``.dcm`` is only for images that are DICOM series.
SEGMENTATION_ENDINGS = (".nii.gz", ".seg.nrrd", ".nrrd", ".dcm")

#: Tolerance in voxels between the corners of two equal grids.
_GRID_TOLERANCE = 0.01
#: Limit of the voxel indices of a position outside the volume.
_MAX_INDEX = 2.0**31
#: Maximum length of a segment label in DICOM.
MAX_NAME_LENGTH = 64

#: Red, green and blue, from 0 to 1.
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Volume:
    """A volume. ``voxels`` are indexed (i, j, k) as in ITK and Slicer, the reverse of SimpleITK's numpy arrays.

    ``image``: source of origin (LPS), spacing (mm) and direction. ``series``: the files of a DICOM series, along k.
    """

    voxels: npt.NDArray[Any]
    image: sitk.Image
    series: tuple[str, ...] = ()

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in milliliters."""
        return float(np.prod(self.image.GetSpacing())) / 1000

    @property
    def shape(self) -> Index:
        """Number of voxels along (i, j, k)."""
        i, j, k = self.voxels.shape
        return i, j, k

    def index_of(self, lps: tuple[float, float, float]) -> Index:
        """Return the voxel at a position in LPS millimeters. It may be outside the volume.

        Raises OutOfBounds if it is so far outside that ITK's integers overflow.
        """
        if not all(abs(n) < _MAX_INDEX for n in self.image.TransformPhysicalPointToContinuousIndex(lps)):
            x, y, z = lps
            raise OutOfBounds(f"The position ({x:g}, {y:g}, {z:g}) in LPS millimeters is far outside the volume.")
        i, j, k = self.image.TransformPhysicalPointToIndex(lps)
        return int(i), int(j), int(k)

    @property
    def ijk_to_lps(self) -> npt.NDArray[np.float64]:
        """Affine matrix (4, 4) from voxel indices to LPS millimeters."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(self.image.GetDirection()).reshape(3, 3) * self.image.GetSpacing()
        matrix[:3, 3] = self.image.GetOrigin()
        return matrix


def read_volume(path: Path) -> Volume:
    """Read an image file of a format of SimpleITK, or the DICOM series in a folder. Raises BadImage."""
    if not path.exists():
        raise BadImage(f"The file {path} does not exist.")
    if path.is_dir():
        from nninteractive_ws.files.dicom import read_series  # its imports take half a second

        image, series = read_series(path)
    else:
        image, series = _read_file(path), ()
    if image.GetNumberOfComponentsPerPixel() != 1:
        n = image.GetNumberOfComponentsPerPixel()
        raise BadImage(f"{path} has {n} components per voxel, like a color image or a vector field. Expected one.")
    if image.GetDimension() != 3:
        raise BadImage(f"{path} has {image.GetDimension()} dimensions. Expected a volume with 3.")
    return Volume(sitk.GetArrayFromImage(image).transpose(), image, series)


def check_same_grid(other: Volume, volume: Volume, path: Path) -> None:
    """Raise BadImage unless ``other``, read from ``path``, has the voxel grid of ``volume``."""
    affine = np.linalg.inv(volume.ijk_to_lps) @ other.ijk_to_lps  # from voxels of other to voxels of volume
    if (order := _reordered_axes(affine, other.shape, volume.shape)) is not None:
        raise BadImage(
            f"{path} has the grid of the image, but {order}. Resample it to the image, for instance with "
            "SimpleITK.Resample(labels, image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)."
        )
    if other.shape != volume.shape:
        raise BadImage(f"{path} has {other.shape} voxels. Expected {volume.shape}, as in the image.")
    distance = np.abs(affine - np.eye(4)) @ (*volume.shape, 1)
    if distance.max() > _GRID_TOLERANCE:
        raise BadImage(
            f"{path} is not on the grid of the image. Its voxels are up to {distance.max():.2f} voxels away. Resample "
            "it to the image."
        )


def _reordered_axes(affine: npt.NDArray[np.float64], other: Index, shape: Index) -> str | None:
    """Return how a grid differs from another one that has the same voxels in another order, or None."""
    axes = np.rint(affine[:3, :3])
    if not (np.abs(axes).sum(0) == 1).all() or not (np.abs(axes).sum(1) == 1).all() or (axes == np.eye(3)).all():
        return None
    ends = np.stack([np.zeros(3), np.array(other) - 1])
    mapped = ends @ affine[:3, :3].T + affine[:3, 3]
    expected = np.stack([np.zeros(3), np.array(shape) - 1])
    if np.abs(np.sort(mapped, axis=0) - expected).max() > _GRID_TOLERANCE:
        return None
    names = ["ijk"[int(np.abs(column).argmax())] for column in axes.T]
    flipped = [name for name, column in zip(names, axes.T, strict=True) if column.sum() < 0]
    flips = f"flipped along {' and '.join(sorted(flipped))}" if flipped else ""
    permutation = "" if names == [*"ijk"] else f"with its axes in the order {', '.join(names)}"
    return " and ".join(filter(None, (permutation, flips)))


def _read_file(path: Path) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as e:
        raise BadImage(
            f"{path} cannot be read as an image. Supported are NIfTI, NRRD, MetaImage and the other formats of "
            f"SimpleITK, and folders with a DICOM series. ITK reports: {_reason(e)}"
        ) from e


def _reason(error: RuntimeError) -> str:
    """Return the last line of an ITK error, which has the reason."""
    return str(error).strip().splitlines()[-1]


def is_segment_name(name: str) -> bool:
    """Whether every format can store the name: up to 64 printable characters, no backslash."""
    return 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and "\\" not in name


def color_of(number: int) -> Color:
    """Return a color for the n-th segment, n from 0. Consecutive colors differ clearly, without an upper limit of n."""
    return colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.6, 0.9)


def write_segmentation(
    path: Path,
    masks: Mapping[str, Mask],
    volume: Volume,
    colors: Mapping[str, Color] | None = None,
    model: str = "nnInteractive",
) -> None:
    """Write segments with the geometry of their volume, in the format of the file name extension.

    ``.seg.nrrd`` and ``.dcm`` (DICOM SEG, only for a DICOM series) keep names, colors and overlaps. The others are
    label maps with the first segment as 1, in which later segments overwrite earlier ones. ``colors``: one for each
    segment, by default from :func:`color_of`. ``model``: the algorithm name in a DICOM SEG.

    The file is replaced atomically. If the process is killed, :func:`partial_path` may remain. Raises BadImage if a
    DICOM SEG is impossible, and OSError with a message for the user.
    """
    colors = colors or {name: color_of(number) for number, name in enumerate(masks)}
    with atomic_write(path) as partial:
        if path.name.endswith(".dcm"):
            _write_seg(partial, masks, volume, colors, model)
        elif path.name.endswith(".seg.nrrd"):
            _write_seg_nrrd(partial, masks, volume, colors)
        else:
            _write_label_map(partial, masks, volume)


def _write_seg_nrrd(path: Path, masks: Mapping[str, Mask], volume: Volume, colors: Mapping[str, Color]) -> None:
    segmentation = slicerio.create_segmentation(volume.voxels.shape, volume.ijk_to_lps)
    for number, (name, mask) in enumerate(masks.items()):
        slicerio.add_segment(segmentation, mask, {"id": f"{number}", "name": "", "color": list(colors[name])})
    slicerio.write_segmentation(str(path), segmentation)
    # Names are inserted afterwards: pynrrd writes an ASCII header, and 3D Slicer expects UTF-8.
    names = [name.encode() for name in masks]
    header, blank, voxels = path.read_bytes().partition(b"\n\n")
    header = re.sub(rb"(?m)^(Segment(\d+)_(?:ID|Name):=).*$", lambda field: field[1] + names[int(field[2])], header)
    path.write_bytes(header + blank + voxels)


def _write_seg(path: Path, masks: Mapping[str, Mask], volume: Volume, colors: Mapping[str, Color], model: str) -> None:
    from nninteractive_ws.files.dicom import write_seg  # its imports take half a second

    if not volume.series:
        others = ", ".join(ending for ending in SEGMENTATION_ENDINGS if ending != ".dcm")
        raise BadImage(f"A DICOM SEG (.dcm) requires a DICOM series. For this image, choose one of {others}.")
    write_seg(path, masks, volume.series, colors, model)


def _write_label_map(path: Path, masks: Mapping[str, Mask], volume: Volume) -> None:
    labels = np.zeros(volume.voxels.shape, np.min_scalar_type(len(masks)))
    for value, mask in enumerate(masks.values(), start=1):
        labels[mask] = value
    image = sitk.GetImageFromArray(labels.transpose())
    image.CopyInformation(volume.image)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        # On a full disk, ITK can write a truncated or empty NIfTI file without an error.
        complete = np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), labels.transpose())
    except RuntimeError as e:
        raise OSError(_reason(e)) from e
    if not complete:
        raise OSError("the written file is incomplete; check the free disk space")
