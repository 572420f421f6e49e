"""Cases of an evaluation: a volume with its ground truth labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage, InvalidTable
from nninteractive_ws.files import read_options
from nninteractive_ws.files.images import read_label_map, read_volume
from nninteractive_ws.files.read_options import ReadOptions
from nninteractive_ws.files.rows import check_columns, empty, format_cell, path_of, read_rows, text_of, whole_number_of
from nninteractive_ws.files.volume import check_same_grid

COLUMNS = ("image", "labels", "label", "name", *read_options.COLUMNS)
#: Tolerance for rounding errors of labels that are stored as floats.
_LABEL_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Scan:
    """A loaded case. ``voxels`` and ``labels`` (integers) are indexed (i, j, k).

    ``spacing``: millimeters per voxel along (i, j, k). ``direction``: 3 x 3, whose columns are the directions of i, j
    and k in LPS. ``structures``: label values by name. ``warnings``: sentences for the user about the files.
    """

    voxels: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    spacing: tuple[float, float, float]
    direction: npt.NDArray[np.float64]
    structures: Mapping[str, int]
    warnings: tuple[str, ...] = ()


class Case(Protocol):
    """A case that is loaded when it is processed."""

    @property
    def name(self) -> str: ...

    def read(self) -> Scan:
        """Raises BadImage or OSError."""


@dataclass(frozen=True)
class FileCase:
    """An image file, or a folder with a DICOM series, and a label map on its grid.

    ``name``: the image's path in the table, and the chosen series and time point. ``structures``: if empty, each label
    of the map is a structure. ``options``: for the image.
    """

    name: str
    image: Path
    labels: Path
    structures: dict[str, int] = field(default_factory=dict)
    options: ReadOptions = field(default_factory=ReadOptions)

    def read(self) -> Scan:
        volume, truth = read_volume(self.image, self.options), read_label_map(self.labels)
        check_same_grid(truth, volume, self.labels)
        labels = _to_labels(truth.voxels, self.labels)
        values = [int(value) for value in np.unique(labels)]
        structures = self.structures or {str(value): value for value in values if value}
        if not structures:
            raise BadImage(f"{self.labels} has no labels. Expected at least one voxel that is not 0.")
        i, j, k = volume.spacing.tolist()
        warnings = tuple(dict.fromkeys((*volume.notes, *truth.notes)))
        return Scan(volume.voxels, labels, (i, j, k), volume.direction, structures, warnings)


def _to_labels(voxels: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Return the voxels of a label map as integers. Raises BadImage."""
    values = np.unique(voxels)
    nearest = np.rint(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        is_label = (np.abs(values - nearest) <= _LABEL_TOLERANCE) & (nearest >= 0) & (nearest < 2.0**63)
    if not is_label.all():
        raise BadImage(f"{path} is not a label map. Expected whole numbers from 0, found {values[~is_label][0]}.")
    if voxels.dtype.kind != "f":
        return voxels
    labels: npt.NDArray[Any] = np.rint(voxels).astype(np.min_scalar_type(int(nearest.max())))
    return labels


def read_cases(path: Path, resample: bool = False) -> list[FileCase]:
    """Read the cases of a table with one structure per row.

    ``image`` and ``labels`` are paths relative to the table. ``label`` is the value of the structure, or empty for each
    value in the label map. ``name`` is its name, or empty for the value. ``series`` and ``time``
    choose a volume of the image. ``resample``: an option of each image. Image files are not read yet.

    Raises InvalidTable for an unusable table or row.
    """
    cases: dict[tuple[Path, ReadOptions], FileCase] = {}
    for line, row in read_rows(path, COLUMNS, ("image", "labels")):
        try:
            if isinstance(row, str):
                raise InvalidTable(row)
            _collect(row, path.parent, resample, cases)
        except InvalidTable as e:
            raise InvalidTable(f"{path}, line {line}, {e}") from e
    if not cases:
        raise InvalidTable(f"{path} has no rows. Expected an image and its labels in each row.")
    return list(cases.values())


def _collect(
    row: Mapping[str, object], folder: Path, resample: bool, cases: dict[tuple[Path, ReadOptions], FileCase]
) -> None:
    check_columns(row, COLUMNS)
    expected = "the path of an image"
    name, image = text_of(row, "image", expected), path_of(row, "image", folder, expected)
    chosen = read_options.options_of(row, resample)
    labels = path_of(row, "labels", folder, "the path of a label map")
    if labels.resolve() == image.resolve():
        raise InvalidTable("column labels: expected the path of a label map, found the image itself.")
    case = cases.get((image, chosen))
    value = whole_number_of(row, "label")
    if case is not None and (value is None or not case.structures):
        raise InvalidTable("column label: expected a value in each row of an image with several rows, found nothing.")
    if case is not None and case.labels != labels:
        raise InvalidTable(
            f"column labels: expected {case.labels.name} as in the first row of the image, found {labels.name}."
        )
    title = read_options.title_of(name, chosen)
    case = cases.setdefault((image, chosen), FileCase(title, image, labels, options=chosen))
    if value is None:
        if not empty(row.get("name")):
            raise InvalidTable(
                "column label: expected the value of the structure that is named in column name, found nothing."
            )
        return
    structure = str(value) if empty(row.get("name")) else text_of(row, "name", "a name")
    if structure in case.structures:
        raise InvalidTable(
            f"column name: expected a unique name for each structure of an image, found {format_cell(structure)} again."
        )
    case.structures[structure] = value
