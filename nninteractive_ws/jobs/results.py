"""results.csv: what became of every segment, and the memory from which a batch goes on after it was stopped."""

from collections.abc import Iterable
import csv
from dataclasses import dataclass
import io
import os
from pathlib import Path

from nninteractive_ws.errors import BadJobs
from nninteractive_ws.files.images import writing

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
        """The results by key; a last line that is not whole is left out. Raises BadJobs where it is another table."""
        if not self.path.exists():
            return {}
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except OSError as e:
            raise BadJobs(f"{self.path} cannot be read ({e.strerror}): give another folder.") from e
        whole, _, _ = text.rpartition("\n")
        if not whole:
            return {}
        reader = csv.DictReader(whole.split("\n"))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise BadJobs(f"{self.path} is not a table of results as batch writes it: give another folder.")
        lines: dict[str, list[dict[str, str]]] = {}
        for line in reader:
            lines.setdefault(line["job"], []).append(line)
        try:
            return {key: self._volume(rows) for key, rows in lines.items()}
        except (TypeError, ValueError) as e:
            raise BadJobs(f"{self.path} was changed and cannot be read any more ({e}): give another folder.") from e

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
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for key, result in results:
            output = "" if result.output is None else result.output.relative_to(self._folder).as_posix()
            for s in result.segments:
                made = ("", "", "") if s.error else (s.label, s.voxels, f"{s.ml:.3f}")
                times = (s.predict_s, s.waiting_s, s.network_s, result.read_s, result.write_s, result.total_s)
                error = " ".join((s.error or "").split())  # a result is a line
                row = (result.image, s.name, "" if s.error else output, *made, s.prompts, s.passes)
                writer.writerow((*row, *(f"{t:.3f}" for t in times), result.model, result.license, error, key))
        return text.getvalue()

    def _volume(self, lines: list[dict[str, str]]) -> VolumeResult:
        outputs = [self._folder / line["output"] for line in lines if line["output"]]
        first = lines[0]
        return VolumeResult(
            image=first["image"],
            segments=tuple(map(_segment, lines)),
            output=outputs[0] if outputs else None,
            model=first["model"],
            license=first["license"],
            read_s=float(first["read_s"]),
            write_s=float(first["write_s"]),
            total_s=float(first["total_s"]),
            earlier=True,
        )


def _segment(line: dict[str, str]) -> SegmentResult:
    return SegmentResult(
        name=line["segment"],
        label=int(line["label"]) if line["label"] else None,
        voxels=int(line["voxels"] or 0),
        ml=float(line["ml"] or 0),
        prompts=int(line["prompts"]),
        passes=int(line["passes"]),
        predict_s=float(line["predict_s"]),
        waiting_s=float(line["waiting_s"]),
        network_s=float(line["network_s"]),
        error=line["error"] or None,
    )
