"""Image files: volumes in, segmentations out, with their place in the patient kept."""

from collections.abc import Iterator, Mapping
import colorsys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import slicerio

from nninteractive_ws.errors import BadImage
from nninteractive_ws.geometry import Index
from nninteractive_ws.masks import Mask

#: File name endings that a segmentation may be written with; ``.dcm`` for DICOM series alone.
SEGMENTATION_ENDINGS = (".nii.gz", ".seg.nrrd", ".nrrd", ".dcm")

#: How far apart two grids may be, in voxels, and still be the same.
_SAME_PLACE = 0.01
#: What DICOM allows for the label of a segment.
LONGEST_NAME = 64

#: Red, green and blue, from 0 to 1.
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Volume:
    """``voxels`` are indexed (i, j, k) as SimpleITK, ITK and Slicer count them: not as its numpy arrays.

    ``image``: what was read, for its origin, spacing (mm) and direction in LPS. ``series``: the files of a DICOM
    series, along k.
    """

    voxels: npt.NDArray[Any]
    image: sitk.Image
    series: tuple[str, ...] = ()

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in millilitres."""
        return float(np.prod(self.image.GetSpacing())) / 1000

    def index_of(self, lps: tuple[float, float, float]) -> Index:
        """The voxel at a position in LPS millimetres; it may lie outside."""
        i, j, k = self.image.TransformPhysicalPointToIndex(lps)
        return int(i), int(j), int(k)

    @property
    def ijk_to_lps(self) -> npt.NDArray[np.float64]:
        """4 x 4."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(self.image.GetDirection()).reshape(3, 3) * self.image.GetSpacing()
        matrix[:3, 3] = self.image.GetOrigin()
        return matrix


def read_volume(path: Path) -> Volume:
    """Read an image of any format that SimpleITK knows, or the DICOM series in a folder. Raises BadImage."""
    if not path.exists():
        raise BadImage(f"There is no file {path}.")
    if path.is_dir():
        from nninteractive_ws.files.dicom import read_series  # its packages take half a second

        image, series = read_series(path)
    else:
        image, series = _read_file(path), ()
    if image.GetNumberOfComponentsPerPixel() != 1:
        n = image.GetNumberOfComponentsPerPixel()
        raise BadImage(f"{path} has {n} values in every voxel (colour, or a vector field); one is needed.")
    if image.GetDimension() != 3:
        raise BadImage(f"{path} has {image.GetDimension()} dimensions; a volume of 3 is needed.")
    return Volume(sitk.GetArrayFromImage(image).transpose(), image, series)


def check_same_grid(other: Volume, volume: Volume, path: Path) -> None:
    """Raises BadImage where ``other``, read from ``path``, does not have its voxels where ``volume`` has them."""
    if other.voxels.shape != volume.voxels.shape:
        raise BadImage(f"{path} has {other.voxels.shape} voxels; {volume.voxels.shape} are needed, as the image has.")
    away = np.abs(np.linalg.inv(volume.ijk_to_lps) @ other.ijk_to_lps - np.eye(4)) @ (*volume.voxels.shape, 1)
    if away.max() > _SAME_PLACE:
        raise BadImage(f"{path} lies elsewhere than the image: up to {away.max():.2f} voxels apart.")


def _read_file(path: Path) -> sitk.Image:
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as e:
        raise BadImage(f"{path} could not be read as an image: {_reason(e)}") from e


def _reason(error: RuntimeError) -> str:
    """What ITK says at the end of several lines."""
    return str(error).strip().splitlines()[-1]


def is_segment_name(name: str) -> bool:
    """Whether every format can keep it: up to 64 printable characters, no backslash."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and "\\" not in name


def color_of(number: int) -> Color:
    """A colour for the segment of a number from 0: neighbours differ much, and there is no last one."""
    return colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.6, 0.9)


def write_segmentation(
    path: Path,
    masks: Mapping[str, Mask],
    volume: Volume,
    colors: Mapping[str, Color] | None = None,
    model: str = "nnInteractive",
) -> None:
    """Write segments with the geometry of their volume; the name's ending says the format.

    ``.seg.nrrd`` and ``.dcm`` (DICOM SEG, of a DICOM series) keep names, colours and overlaps; the others are label
    maps, the first segment 1, later segments over earlier ones. ``colors``: of every segment; some are chosen where
    none are given. ``model``: what a DICOM SEG names as its maker. Nothing half-written is left under ``path``, but
    where the process is killed, :func:`partial_path` may be. Raises BadImage where it cannot be a DICOM SEG, and
    OSError with a sentence.
    """
    colors = colors or {name: color_of(number) for number, name in enumerate(masks)}
    with writing(path) as partial:
        if path.name.endswith(".dcm"):
            _write_seg(partial, masks, volume, colors, model)
        elif path.name.endswith(".seg.nrrd"):
            _write_seg_nrrd(partial, masks, volume, colors)
        else:
            _write_label_map(partial, masks, volume)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """What to write to, which then takes the place of ``path``; nothing is left of it where it fails. Raises OSError
    with a sentence."""
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    except OSError as e:
        raise OSError(f"{path} cannot be written ({e.strerror or e}).") from e
    finally:
        with suppress(OSError):  # there may not even be a folder
            partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(f".partial-{path.name}")


def _write_seg_nrrd(path: Path, masks: Mapping[str, Mask], volume: Volume, colors: Mapping[str, Color]) -> None:
    segmentation = slicerio.create_segmentation(volume.voxels.shape, volume.ijk_to_lps)
    for number, (name, mask) in enumerate(masks.items()):
        slicerio.add_segment(segmentation, mask, {"id": f"{number}", "name": "", "color": list(colors[name])})
    slicerio.write_segmentation(str(path), segmentation)
    # The names come last: what writes the header knows ASCII alone, and 3D Slicer has UTF-8.
    names = [name.encode() for name in masks]
    header, blank, voxels = path.read_bytes().partition(b"\n\n")
    header = re.sub(rb"(?m)^(Segment(\d+)_(?:ID|Name):=).*$", lambda found: found[1] + names[int(found[2])], header)
    path.write_bytes(header + blank + voxels)


def _write_seg(path: Path, masks: Mapping[str, Mask], volume: Volume, colors: Mapping[str, Color], model: str) -> None:
    from nninteractive_ws.files.dicom import write_seg  # its packages take half a second

    if not volume.series:
        raise BadImage("A DICOM SEG belongs to a DICOM series, and this image is none.")
    write_seg(path, masks, volume.series, colors, model)


def _write_label_map(path: Path, masks: Mapping[str, Mask], volume: Volume) -> None:
    labels = np.zeros(volume.voxels.shape, np.min_scalar_type(len(masks)))
    for value, mask in enumerate(masks.values(), start=1):
        labels[mask] = value
    image = sitk.GetImageFromArray(labels.transpose())
    image.CopyInformation(volume.image)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        # On a full disk, ITK writes half a NIfTI file, or nothing, and finds that well.
        whole = np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), labels.transpose())
    except RuntimeError as e:
        raise OSError(_reason(e)) from e
    if not whole:
        raise OSError("what was written is not whole; is there room left?")
