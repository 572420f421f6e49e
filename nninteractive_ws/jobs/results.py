"""results.csv: the result of every segment, from which a stopped batch resumes."""

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
import csv
from dataclasses import dataclass
import os
from pathlib import Path
from typing import TypeVar

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.errors import InvalidTable
from nninteractive_ws.files.cells import csv_text, unmark
from nninteractive_ws.files.names import folded
from nninteractive_ws.files.reason import reason
from nninteractive_ws.files.rows import format_cell

#: Between several warnings in a cell.
_SEPARATOR = " | "
#: Maximum length of a text in a cell, which is that of spreadsheets. Python's csv module reads no more than 131,072.
_MAX_CELL_LENGTH = 32_767

N = TypeVar("N", int, float)

COLUMNS = (
    "image", "segment", "output", "label", "voxels", "ml", "prompts", "passes", "predict_s", "waiting_s", "network_s",
    "read_s", "write_s", "total_s", "model", "license", "warnings", "error", "path", "table", "job",
)  # fmt: skip


@dataclass(frozen=True)
class SegmentResult:
    """The result of a segment. ``label``: its value in a label map, its number in a DICOM SEG. ``ml``: volume in ml.

    ``prompts``: number of answered prompts; ``passes``: forward passes of the network for them. Seconds: ``predict_s``
    from sending the prompts to their results. It includes ``waiting_s`` in the queue and for the upload of the image,
    and ``network_s`` in the network. ``error``: the reason if there is no segment, else None.
    """

    name: str
    label: int | None = None
    voxels: int = 0
    ml: float = 0.0
    prompts: int = 0
    passes: int = 0
    predict_s: float = 0.0
    waiting_s: float = 0.0
    network_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class VolumeResult:
    """The results of an image. ``image``: its path as in the table with the chosen series and time point, or empty for
    a row whose image is unknown.

    ``output``: the file with the successful segments, or None. ``warnings``: sentences about what was unusual in the
    image or its rows. ``path``: the image's absolute path. ``earlier``: loaded from a previous run.
    """

    image: str
    segments: tuple[SegmentResult, ...]
    output: Path | None = None
    model: str = ""
    license: str = ""
    read_s: float = 0.0
    write_s: float = 0.0
    total_s: float = 0.0
    warnings: tuple[str, ...] = ()
    path: str = ""
    earlier: bool = False

    @property
    def errors(self) -> list[str]:
        """The distinct errors of the segments; empty if all of them succeeded."""
        return list(dict.fromkeys(s.error for s in self.segments if s.error is not None))


class ResultsFile:
    """``results.csv`` in a folder. ``key``: digest of a job's inputs, by which its lines are found again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "results.csv"

    def load(self) -> dict[str, VolumeResult]:
        """Return the results by key, without an incomplete last line.

        If several have the same output file, the last one wins, because it wrote the file. Raises InvalidTable if the
        file is a different table, or was edited.
        """
        if not self.path.exists():
            return {}
        try:
            complete, _, _ = self.path.read_bytes().removeprefix(BOM_UTF8).rpartition(b"\n")
        except OSError as e:
            raise InvalidTable(f"{self.path} cannot be read ({reason(e)}). Choose another output folder.") from e
        if not complete:
            return {}
        header, *lines = complete.split(b"\n")
        if header.rstrip(b"\r").decode(errors="replace") != ",".join(COLUMNS):
            raise InvalidTable(f"{self.path} is not a results table of batch. Choose another output folder.")
        rows: dict[str, list[dict[str, str]]] = {}
        segments: dict[str, list[SegmentResult]] = {}
        for number, line in enumerate(lines, start=2):
            try:
                row = _row(line)
                if row is not None and row["job"]:
                    segments.setdefault(row["job"], []).append(_segment(row))
                    rows.setdefault(row["job"], []).append(row)
            except InvalidTable as e:
                raise InvalidTable(
                    f"{self.path}, line {number}: {e} The file was edited. Delete this line to segment its image "
                    "again, or choose another output folder."
                ) from e
        volumes = {key: self._volume(found, segments[key]) for key, found in rows.items()}
        last = {self.output_key(volume.output): key for key, volume in volumes.items() if volume.output is not None}
        return {
            key: volume
            for key, volume in volumes.items()
            if volume.output is None or last[self.output_key(volume.output)] == key
        }

    def output_key(self, output: Path) -> str:
        """Return a key that is equal for names of the same output file on any system."""
        return folded(output.relative_to(self._folder).as_posix())

    def append(self, key: str, result: VolumeResult) -> None:
        """Append a result, and flush it to disk."""
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines([(key, result)]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise OSError(f"{self.path} cannot be written ({reason(e)}).") from e

    def rewrite(
        self, results: Iterable[tuple[str, VolumeResult]], others: Iterable[tuple[str, VolumeResult]] = ()
    ) -> None:
        """Replace all lines. ``others``: results of other tables, which are marked as such."""
        lines = self._lines(results) + self._lines(others, "other")
        with atomic_write(self.path) as partial:
            partial.write_text(",".join(COLUMNS) + "\n" + lines, encoding="utf-8", newline="")

    def _lines(self, results: Iterable[tuple[str, VolumeResult]], table: str = "this") -> str:
        return csv_text(row for key, result in results for row in self._rows(key, result, table))

    def _rows(self, key: str, result: VolumeResult, table: str) -> Iterator[Sequence[object]]:
        output = "" if result.output is None else result.output.relative_to(self._folder).as_posix()
        for s in result.segments:
            cells = ("", "", "") if s.error else (s.label, s.voxels, f"{s.ml:.3f}")
            times = (s.predict_s, s.waiting_s, s.network_s, result.read_s, result.write_s, result.total_s)
            row = (_limited(result.image), s.name, "" if s.error else output, *cells, s.prompts, s.passes)
            warnings = _SEPARATOR.join(warning.replace(_SEPARATOR, " ") for warning in result.warnings)
            texts = map(_one_line, (result.model, result.license, warnings, s.error or ""))
            yield (*row, *(f"{t:.3f}" for t in times), *texts, path_cell(result.path), table, key)

    def _volume(self, rows: list[dict[str, str]], segments: list[SegmentResult]) -> VolumeResult:
        outputs = [self._folder / row["output"] for row in rows if row["output"]]
        first = rows[0]
        return VolumeResult(
            image=first["image"],
            segments=tuple(segments),
            output=outputs[0] if outputs else None,
            model=first["model"],
            license=first["license"],
            read_s=float(first["read_s"]),
            write_s=float(first["write_s"]),
            total_s=float(first["total_s"]),
            warnings=tuple(filter(None, first["warnings"].split(_SEPARATOR))),
            path=first["path"],
            earlier=True,
        )


def _one_line(text: str) -> str:
    """Collapse white space: a result is one line, even if an error or a model name has line breaks."""
    return _limited(" ".join(text.split()))


def _limited(text: str) -> str:
    """Truncate a text that is too long for a cell, such as an error from a server."""
    return text if len(text) <= _MAX_CELL_LENGTH else f"{text[: _MAX_CELL_LENGTH - 1]}…"


def path_cell(path: str) -> str:
    """Return a path as in results.csv: on one line. A folder above a table may have a line break in its name."""
    return _limited(path.replace("\r", "\\r").replace("\n", "\\n"))


def _row(line: bytes) -> dict[str, str] | None:
    """Return the cells of a line by column, or None for an empty line. Raises InvalidTable."""
    try:
        cells = next(csv.reader([line.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as e:
        raise InvalidTable(f"expected a line of CSV in UTF-8 ({e}).") from e
    if not cells:
        return None
    if len(cells) != len(COLUMNS):
        raise InvalidTable(f"expected {len(COLUMNS)} cells, found {len(cells)}.")
    return dict(zip(COLUMNS, map(unmark, cells), strict=True))


def _segment(row: dict[str, str]) -> SegmentResult:
    for column in ("read_s", "write_s", "total_s"):
        _number(row, column, float)
    return SegmentResult(
        name=row["segment"],
        label=_number(row, "label", int) if row["label"] else None,
        voxels=_number(row, "voxels", int) if row["voxels"] else 0,
        ml=_number(row, "ml", float) if row["ml"] else 0.0,
        prompts=_number(row, "prompts", int),
        passes=_number(row, "passes", int),
        predict_s=_number(row, "predict_s", float),
        waiting_s=_number(row, "waiting_s", float),
        network_s=_number(row, "network_s", float),
        error=row["error"] or None,
    )


def _number(row: dict[str, str], column: str, kind: type[N]) -> N:
    """Parse a non-negative number. Raises InvalidTable."""
    try:
        number = kind(row[column])
    except ValueError:
        number = kind(-1)
    if not 0 <= number < float("inf"):
        expected = "a whole number" if kind is int else "a number"
        raise InvalidTable(f"column {column}: expected {expected} from 0, found {format_cell(row[column])}.")
    return number
