"""Image files: read volumes, and write segmentations with the geometry of their volume."""

from collections.abc import Mapping, Sequence
import colorsys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
import re
import tempfile
from typing import Any, NoReturn

import nrrd
import numpy as np
import numpy.typing as npt
import slicerio

from nninteractive_ws.atomic_files import atomic_write, check_writable
from nninteractive_ws.errors import BadImage
from nninteractive_ws.files.finite import replace_non_finite
from nninteractive_ws.files.identify import identify
from nninteractive_ws.files.read_options import ReadOptions, SeveralVolumes, time_index
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.volume import Affine, Volume, check_same_grid, orthogonal
from nninteractive_ws.masks import Mask

#: File name extensions of segmentations. ``.dcm`` is only for DICOM images.
SEGMENTATION_ENDINGS = (".nii.gz", ".seg.nrrd", ".nrrd", ".dcm")

#: Maximum number of kept files of a name in a folder.
_MAX_KEPT = 1000
#: Maximum length of a segment label in DICOM.
MAX_NAME_LENGTH = 64

#: Red, green and blue, from 0 to 1.
Color = tuple[float, float, float]

_DEFAULT = ReadOptions()


def read_volume(path: Path, options: ReadOptions = _DEFAULT) -> Volume:
    """Read an image file, or the DICOM series in a folder or of a file. Raises BadImage.

    Voxels that are not finite get the lowest finite value. ``notes`` has their number.
    """
    volume = _read(path, options)
    voxels, note = replace_non_finite(volume.voxels, str(path))
    notes = [] if note is None else [note]
    straight = orthogonal(volume.ijk_to_lps, voxels.shape)
    if straight is None:
        if not options.resample:
            raise BadImage(
                f"{path} is sheared: its axes are not perpendicular, as with a tilted gantry. Use --resample to "
                "interpolate it to a grid with perpendicular axes."
            )
        from nninteractive_ws.files.straighten import straighten

        voxels, straight = straighten(voxels, volume.ijk_to_lps)
        size = " x ".join(map(str, voxels.shape))
        notes.append(f"The image was sheared. It was resampled to {size} voxels, and voxel indices count these.")
        volume = replace(volume, nifti=None)
    return replace(volume, voxels=voxels, ijk_to_lps=straight, notes=(*volume.notes, *notes))


def read_label_map(path: Path) -> Volume:
    """Read a file of labels, whole numbers from 0. Its grid may be sheared. Raises BadImage."""
    try:
        volume = _read(path, _DEFAULT)
    except SeveralVolumes as e:
        raise BadImage(f"{e.found} Expected one label map. Save it as a file of its own.") from e
    return replace(volume, ijk_to_lps=_label_affine(volume.ijk_to_lps, volume.shape))


def _label_affine(affine: Affine, shape: Sequence[int]) -> Affine:
    """Return the affine of a label map: straightened as that of its image, or left sheared."""
    straight = orthogonal(affine, shape)
    return affine if straight is None else straight


def _read(path: Path, options: ReadOptions) -> Volume:
    """Read a volume as it is in its file: voxels can be NaN, and axes sheared. Raises BadImage."""
    try:
        return _read_file(path, options)
    except OSError as e:
        raise BadImage(f"{path} cannot be read ({reason(e)}). Check its path and its permissions.") from e
    except MemoryError as e:
        raise BadImage(f"{path} is too large for the memory of this computer. Crop or resample it.") from e


def _read_file(path: Path, options: ReadOptions) -> Volume:
    if not path.exists():
        raise BadImage(f"The file {path} does not exist. Check its path.")
    if not path.is_dir() and not path.is_file():
        raise BadImage(f"{path} is neither a file nor a folder, but for example a pipe. Save the image in a file.")
    kind = "dicom" if path.is_dir() else identify(path)
    if kind == "dicom":
        return _read_dicom(path, options)
    if options.series is not None:
        raise BadImage(f"{path} is not a DICOM series. Leave out the number (--series, or the column series).")
    if kind == "nifti":
        from nninteractive_ws.files.nifti import read_nifti

        voxels, affine, header, notes = read_nifti(path)
        components = 1
    else:
        from nninteractive_ws.files.itk import read_itk

        (voxels, affine, components, notes), header = read_itk(path, kind), None
    voxels = _one_volume(voxels, components, path, options.time)
    return Volume(voxels, affine, nifti=header, notes=tuple(notes))


def _read_dicom(path: Path, options: ReadOptions) -> Volume:
    # The imports take half a second.
    from nninteractive_ws.files.dicom_series import find_series
    from nninteractive_ws.files.dicom_stack import read_stack

    series, notes = find_series(path, options.series)
    try:
        voxels, affine, files, more = read_stack(series.files, options.time, resample=options.resample)
    except SeveralVolumes:
        raise
    except BadImage as e:  # files that were skipped can be the reason
        raise BadImage(" ".join((str(e), *notes))) from e
    return Volume(voxels, affine, series=tuple(map(str, files)), notes=(*notes, *more))


def _one_volume(voxels: npt.NDArray[Any], components: int, path: Path, time: int | None) -> npt.NDArray[Any]:
    """Return a volume of 3 dimensions, a chosen one of several. Raises BadImage."""
    if voxels.dtype.kind not in "biuf":
        raise BadImage(f"{path} has voxels of the type {voxels.dtype}, like a color image. Expected real numbers.")
    # Further axes of one element, such as the fourth axis of NIfTI files of vectors.
    further = [axis for axis in range(3, voxels.ndim) if voxels.shape[axis] == 1 and components == 1]
    voxels = voxels.squeeze(tuple(further))
    if voxels.ndim == 3 and components == 1:
        if time is not None:
            time_index(time, 1, f"{path} has one volume.")
        return voxels
    if voxels.ndim != 4:
        raise BadImage(f"{path} has {voxels.ndim - (components > 1)} dimensions. Expected a volume with 3.")
    count = voxels.shape[3]
    volumes = (
        f"{count} components per voxel, like a color image, a vector field or time points"
        if components > 1
        else f"4 dimensions, with {count} volumes"
    )
    return voxels[..., time_index(time, count, f"{path} has {volumes}.")]


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

    ``.seg.nrrd`` and ``.dcm`` (DICOM SEG, only for a DICOM image) keep names, colors and overlaps. The others are
    label maps with the first segment as 1, in which later segments overwrite earlier ones, see
    :func:`notes_on_overlaps`. ``colors``: one for each segment, by default from :func:`color_of`. ``model``: the
    algorithm name in a DICOM SEG.

    The file is replaced atomically. If the process is killed, its ``.partial-`` file may remain. If the file cannot be
    written, the segments are kept in another one, and the message of the BadImage or OSError says where.
    """
    colors = colors or {name: color_of(number) for number, name in enumerate(masks)}
    try:
        _write(path, masks, volume, colors, model)
    except (BadImage, OSError) as e:
        keep_and_raise(e, path, masks, volume, colors)


def keep_and_raise(
    error: BadImage | OSError, path: Path, masks: Mapping[str, Mask], volume: Volume, colors: Mapping[str, Color]
) -> NoReturn:
    """Keep segments in another file than ``path``. Raise the error, with a message that says where."""
    kept = _keep(path, masks, volume, colors)
    if kept is None:
        raise error
    raise type(error)(f"{error} The segmentation was kept as {kept}.") from error


def notes_on_overlaps(path: Path, masks: Mapping[str, Mask]) -> dict[str, str]:
    """Return a note for each segment that loses voxels to later ones, if the file of the name is a label map."""
    if len(masks) < 2 or path.name.endswith((".seg.nrrd", ".dcm")):
        return {}
    notes = {}
    later = np.zeros_like(next(iter(masks.values())))
    for name, mask in reversed(list(masks.items())):
        if lost := np.count_nonzero(mask & later):
            notes[name] = (
                f"{name} lost {lost:,} of {np.count_nonzero(mask):,} voxels to other segments in the label map. The "
                "format seg.nrrd keeps overlaps."
            )
        later |= mask
    return {name: notes[name] for name in masks if name in notes}


def check_output(path: Path, volume: Volume) -> None:
    """Raise BadImage or OSError if a segmentation of a volume cannot be written: before work on it is lost."""
    if path.name.endswith(".dcm"):
        from nninteractive_ws.files.dicom_seg import check_seg  # its imports take half a second

        _check_is_dicom(volume)
        check_seg(volume.ijk_to_lps, volume.voxels.shape, volume.series)
    elif path.name.endswith(".nii.gz"):
        from nninteractive_ws.files.nifti import check_precision

        check_precision(volume)
    check_writable(path)


def _check_is_dicom(volume: Volume) -> None:
    if not volume.series:
        others = ", ".join(ending for ending in SEGMENTATION_ENDINGS if ending != ".dcm")
        raise BadImage(f"A DICOM SEG (.dcm) requires a DICOM image. For this image, choose one of {others}.")


def _keep(path: Path, masks: Mapping[str, Mask], volume: Volume, colors: Mapping[str, Color]) -> Path | None:
    """Write a .seg.nrrd in place of a file that cannot be written, beside it or in the folder of temporary files."""
    stem = without_ending(path.name)
    for folder in (path.parent, Path(tempfile.gettempdir())):
        names = (f"{stem}{number}.seg.nrrd" for number in ("", *(f"-{n}" for n in range(2, _MAX_KEPT))))
        other = next((folder / name for name in names if not (folder / name).exists()), None)
        if other is not None and other != path:
            with suppress(BadImage, OSError):
                _write(other, masks, volume, colors, "")
                return other
    return None


def without_ending(name: str) -> str:
    """Return the name of a segmentation's file without its extension."""
    return next((name.removesuffix(ending) for ending in SEGMENTATION_ENDINGS if name.endswith(ending)), name)


def _write(path: Path, masks: Mapping[str, Mask], volume: Volume, colors: Mapping[str, Color], model: str) -> None:
    with atomic_write(path) as partial:
        if path.name.endswith(".dcm"):
            from nninteractive_ws.files.dicom_seg import write_seg

            _check_is_dicom(volume)
            write_seg(partial, masks, volume.ijk_to_lps, volume.series, colors, model)
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


def _write_label_map(path: Path, masks: Mapping[str, Mask], volume: Volume) -> None:
    labels = np.zeros(volume.voxels.shape, np.min_scalar_type(len(masks)))
    for value, mask in enumerate(masks.values(), start=1):
        labels[mask] = value
    if path.name.endswith(".nii.gz"):
        from nninteractive_ws.files.nifti import read_nifti, write_nifti

        write_nifti(path, labels, volume)
        written, affine = read_nifti(path)[:2]
    else:
        _write_nrrd(path, labels, volume)
        written, affine = _read_nrrd(path)
    # On a full disk, a library can write a truncated file without an error.
    if not np.array_equal(written, labels):
        raise OSError("the written file is incomplete; check the free disk space")
    check_same_grid(Volume(written, _label_affine(affine, written.shape)), volume, path)


def _write_nrrd(path: Path, labels: npt.NDArray[Any], volume: Volume) -> None:
    header = {
        "space": "left-posterior-superior",
        "space directions": volume.ijk_to_lps[:3, :3].T,
        "space origin": volume.ijk_to_lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
    }
    nrrd.write(str(path), labels, header, compression_level=4)


def _read_nrrd(path: Path) -> tuple[npt.NDArray[Any], Affine]:
    labels, header = nrrd.read(str(path))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    return labels, affine
