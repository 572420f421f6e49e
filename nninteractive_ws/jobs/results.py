"""results.csv: what became of every segment, and the memory from which a batch goes on after it was stopped."""

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
import csv
from dataclasses import dataclass
import os
from pathlib import Path
from typing import TypeVar

from nninteractive_ws.errors import BadJobs
from nninteractive_ws.files.cells import csv_text, unmark
from nninteractive_ws.files.images import writing
from nninteractive_ws.files.rows import shown

N = TypeVar("N", int, float)

COLUMNS = (
    "image", "segment", "output", "label", "voxels", "ml", "prompts", "passes", "predict_s", "waiting_s", "network_s",
    "read_s", "write_s", "total_s", "model", "license", "error", "job",
)  # fmt: skip


@dataclass(frozen=True)
class SegmentResult:
    """What became of a segment. ``label``: its value in a label map, its number in a DICOM SEG; ``ml``: millilitres.

    ``prompts`` were answered, with ``passes`` of the network. Seconds: ``predict_s`` from the prompts to their
    answers, of which ``waiting_s`` for others and for the image on its way, and ``network_s`` in the network.
    ``error``: why there is no segment, else None.
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
    """What became of an image's rows. ``image``: as the table writes it, empty for a row of which it is not known.

    ``output``: the file with the segments that could be made, or None. ``earlier``: from a run before this one.
    """

    image: str
    segments: tuple[SegmentResult, ...]
    output: Path | None = None
    model: str = ""
    license: str = ""
    read_s: float = 0.0
    write_s: float = 0.0
    total_s: float = 0.0
    earlier: bool = False

    @property
    def errors(self) -> list[str]:
        """What went wrong, each thing once; empty where all segments were made."""
        return list(dict.fromkeys(s.error for s in self.segments if s.error is not None))


class ResultsFile:
    """``results.csv`` in a folder. ``key``: a digest that says which job a line belongs to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / "results.csv"

    def load(self) -> dict[str, VolumeResult]:
        """The results by key; a last line that is not whole is left out. Raises BadJobs where it is another table, or
        one that was edited."""
        if not self.path.exists():
            return {}
        try:
            whole, _, _ = self.path.read_bytes().removeprefix(BOM_UTF8).rpartition(b"\n")
        except OSError as e:
            raise BadJobs(f"{self.path} cannot be read ({e.strerror}): give another folder.") from e
        if not whole:
            return {}
        header, *lines = whole.split(b"\n")
        if header.rstrip(b"\r").decode(errors="replace") != ",".join(COLUMNS):
            raise BadJobs(f"{self.path} is not a table of results as batch writes it: give another folder.")
        rows: dict[str, list[dict[str, str]]] = {}
        segments: dict[str, list[SegmentResult]] = {}
        for number, line in enumerate(lines, start=2):
            try:
                row = _row(line)
                if row is not None and row["job"]:
                    segments.setdefault(row["job"], []).append(_segment(row))
                    rows.setdefault(row["job"], []).append(row)
            except BadJobs as e:
                raise BadJobs(
                    f"{self.path}, line {number}: {e} The file was edited. Delete this line, and its image is "
                    "segmented again; or give another folder."
                ) from e
        return {key: self._volume(found, segments[key]) for key, found in rows.items()}

    def append(self, key: str, result: VolumeResult) -> None:
        """Add a result, at once and on the disk."""
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._lines([(key, result)]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise OSError(f"{self.path} cannot be written ({e.strerror}).") from e

    def rewrite(self, results: Iterable[tuple[str, VolumeResult]]) -> None:
        """Replace all lines."""
        with writing(self.path) as partial:
            partial.write_text(",".join(COLUMNS) + "\n" + self._lines(results), encoding="utf-8", newline="")

    def _lines(self, results: Iterable[tuple[str, VolumeResult]]) -> str:
        return csv_text(row for key, result in results for row in self._rows(key, result))

    def _rows(self, key: str, result: VolumeResult) -> Iterator[Sequence[object]]:
        output = "" if result.output is None else result.output.relative_to(self._folder).as_posix()
        for s in result.segments:
            made = ("", "", "") if s.error else (s.label, s.voxels, f"{s.ml:.3f}")
            times = (s.predict_s, s.waiting_s, s.network_s, result.read_s, result.write_s, result.total_s)
            row = (result.image, s.name, "" if s.error else output, *made, s.prompts, s.passes)
            said = map(_one_line, (result.model, result.license, s.error or ""))
            yield (*row, *(f"{t:.3f}" for t in times), *said, key)

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
            earlier=True,
        )


def _one_line(text: str) -> str:
    """A text on one line: a result is a line, even if an error or the name of a model has several."""
    return " ".join(text.split())


def _row(line: bytes) -> dict[str, str] | None:
    """The cells of a line by their columns; None for an empty line. Raises BadJobs."""
    try:
        cells = next(csv.reader([line.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as e:
        raise BadJobs(f"it is not a line of CSV in UTF-8 ({e}).") from e
    if not cells:
        return None
    if len(cells) != len(COLUMNS):
        raise BadJobs(f"expected {len(COLUMNS)} cells, found {len(cells)}.")
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
    """Raises BadJobs where a cell is not a number of this kind, from 0."""
    try:
        number = kind(row[column])
    except ValueError:
        number = kind(-1)
    if not 0 <= number < float("inf"):
        what = "a whole number" if kind is int else "a number"
        raise BadJobs(f"column {column}: expected {what} from 0, found {shown(row[column])}.")
    return number
