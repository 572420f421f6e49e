"""Cases to be judged on: a volume, and the labels that are true of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nninteractive_ws.errors import BadImage, BadJobs
from nninteractive_ws.files.images import Volume, check_same_grid, read_volume
from nninteractive_ws.files.rows import check_columns, empty, path_of, read_rows, shown, text_of

COLUMNS = ("image", "labels", "label", "name")
#: The largest label of a label map.
_MAX_LABEL = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Scan:
    """A case that was read. ``voxels`` and ``labels`` (whole numbers) are indexed (i, j, k).

    ``spacing``: millimetres per voxel along them. ``direction``: 3 x 3, its columns say where i, j and k lead in LPS.
    ``structures``: the label of each by its name.
    """

    voxels: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    spacing: tuple[float, float, float]
    direction: npt.NDArray[np.float64]
    structures: Mapping[str, int]


class Case(Protocol):
    """Something that can be read when its turn comes."""

    @property
    def name(self) -> str: ...

    def read(self) -> Scan:
        """Raises BadImage or OSError."""


@dataclass(frozen=True)
class FileCase:
    """An image file, or a folder with a DICOM series, and a label map on its grid.

    ``name``: the image as the table writes it. ``structures``: without any, every label of the map is one.
    """

    name: str
    image: Path
    labels: Path
    structures: dict[str, int] = field(default_factory=dict)

    def read(self) -> Scan:
        volume, truth = read_volume(self.image), read_volume(self.labels)
        check_same_grid(truth, volume, self.labels)
        values = _values(truth, self.labels)
        structures = self.structures or {str(value): value for value in values if value}
        if not structures:
            raise BadImage(f"{self.labels} has no labels: all its voxels are 0.")
        direction = np.array(volume.image.GetDirection()).reshape(3, 3)
        i, j, k = volume.image.GetSpacing()
        return Scan(volume.voxels, truth.voxels, (i, j, k), direction, structures)


def _values(truth: Volume, path: Path) -> list[int]:
    values = np.unique(truth.voxels)
    wrong = values[(values < 0) | (values % 1 != 0)]
    if len(wrong):
        raise BadImage(f"{path} is no label map: whole numbers from 0 are expected, and it has {wrong[0]:g}.")
    return [int(value) for value in values]


def read_cases(path: Path) -> list[FileCase]:
    """The cases of a table, ``.csv`` or ``.jsonl``, with a structure in every row: ``image`` and ``labels``, paths
    relative to the table; ``label``, its value, or empty for every label there is; and ``name``, or empty: the value.

    Raises BadJobs for a table or a row that cannot be used. Image files are not looked at yet.
    """
    cases: dict[Path, FileCase] = {}
    for line, row in read_rows(path, COLUMNS, ("image", "labels")):
        try:
            if isinstance(row, str):
                raise BadJobs(row)
            _collect(row, path.parent, cases)
        except BadJobs as e:
            raise BadJobs(f"{path}, line {line}, {e}") from e
    if not cases:
        raise BadJobs(f"{path} has no rows: an image and its labels are expected in each.")
    return list(cases.values())


def _collect(row: Mapping[str, object], folder: Path, cases: dict[Path, FileCase]) -> None:
    check_columns(row, COLUMNS)
    expected = "the path of an image"
    name, image = text_of(row, "image", expected), path_of(row, "image", folder, expected)
    labels = path_of(row, "labels", folder, "the path of a label map")
    case = cases.get(image)
    value = _label(row.get("label"))
    if case is not None and (value is None or not case.structures):
        raise BadJobs("column label: expected a value in every row of an image that has several, found nothing.")
    if case is not None and case.labels != labels:
        raise BadJobs(f"column labels: expected {case.labels.name} as in the image's first row, found {labels.name}.")
    case = cases.setdefault(image, FileCase(name, image, labels))
    if value is None:
        if not empty(row.get("name")):
            raise BadJobs("column label: expected the value of the structure that column name names, found nothing.")
        return
    structure = str(value) if empty(row.get("name")) else text_of(row, "name", "a name")
    if structure in case.structures:
        raise BadJobs(f"column name: expected another name for each structure of an image, found {shown(structure)}.")
    case.structures[structure] = value


def _label(cell: object) -> int | None:
    if empty(cell):
        return None
    try:
        value = int(cell) if isinstance(cell, int | str) and not isinstance(cell, bool) else 0
    except ValueError:
        value = 0
    if not 1 <= value <= _MAX_LABEL:
        raise BadJobs(f"column label: expected a whole number from 1, found {shown(cell)}.")
    return value
