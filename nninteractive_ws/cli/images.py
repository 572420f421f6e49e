"""Image files: volumes in, segmentations out, with their place in the patient kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import slicerio

from nninteractive_ws.errors import BadImage
from nninteractive_ws.geometry import Index
from nninteractive_ws.masks import Mask

#: File name endings that a segmentation may be written with.
SEGMENTATION_ENDINGS = (".nii.gz", ".seg.nrrd", ".nrrd")


@dataclass(frozen=True)
class Volume:
    """``voxels`` are indexed (i, j, k) as SimpleITK, ITK and Slicer count them: not as its numpy arrays.

    ``image``: what was read, for its origin, spacing (mm) and direction in LPS.
    """

    voxels: npt.NDArray[Any]
    image: sitk.Image

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
    """Read an image of any format that SimpleITK knows. Raises BadImage."""
    if not path.exists():
        raise BadImage(f"There is no file {path}.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as e:
        reason = str(e).strip().splitlines()[-1]
        raise BadImage(f"{path} could not be read as an image: {reason}") from e
    if image.GetNumberOfComponentsPerPixel() != 1:
        n = image.GetNumberOfComponentsPerPixel()
        raise BadImage(f"{path} has {n} values in every voxel (colour, or a vector field); one is needed.")
    if image.GetDimension() != 3:
        raise BadImage(f"{path} has {image.GetDimension()} dimensions; a volume of 3 is needed.")
    return Volume(sitk.GetArrayFromImage(image).transpose(), image)


def write_segmentation(path: Path, masks: dict[str, Mask], volume: Volume) -> None:
    """Write segments with the geometry of their volume; the name's ending says the format.

    ``.seg.nrrd`` keeps names and overlaps as Slicer does; the others are label maps, uint8, the first segment 1,
    later segments over earlier ones. Nothing half-written is left under ``path``.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        if path.name.endswith(".seg.nrrd"):
            segmentation = slicerio.create_segmentation(volume.voxels.shape, volume.ijk_to_lps)
            for name, mask in masks.items():
                slicerio.add_segment(segmentation, mask, {"id": name, "name": name})
            slicerio.write_segmentation(str(partial), segmentation)
        else:
            _write_label_map(partial, masks, volume)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_label_map(path: Path, masks: dict[str, Mask], volume: Volume) -> None:
    labels = np.zeros(volume.voxels.shape, np.uint8)
    for value, mask in enumerate(masks.values(), start=1):
        labels[mask] = value
    image = sitk.GetImageFromArray(labels.transpose())
    image.CopyInformation(volume.image)
    sitk.WriteImage(image, str(path), useCompression=True)
