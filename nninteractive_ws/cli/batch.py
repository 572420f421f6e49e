"""``nninteractive-ws batch``."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
import os
from pathlib import Path
from typing import Annotated
import warnings

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
import typer

from nninteractive_ws.cli.console import INTERRUPTED, fail, stderr
from nninteractive_ws.cli.segment import TOKEN_VARIABLE, Ca, Model, Server, Start
from nninteractive_ws.errors import Error
from nninteractive_ws.jobs.pipeline import Activity
from nninteractive_ws.jobs.results import VolumeResult
from nninteractive_ws.jobs.run import Batch
from nninteractive_ws.server.local import ServerDidNotStart


class Format(StrEnum):
    """The endings of the files that are written."""

    SEG_NRRD = "seg.nrrd"
    NII_GZ = "nii.gz"
    DCM = "dcm"


def batch(
    jobs: Annotated[
        Path,
        typer.Argument(metavar="JOBS", help="A .csv or .jsonl file with a prompt in every row.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="For the segmentations and results.csv.")
    ],
    server: Server = None,
    in_flight: Annotated[
        int, typer.Option("--jobs", min=1, help="Volumes at a time: one uploads while another predicts.")
    ] = 2,
    format: Annotated[
        Format, typer.Option(help="For 3D Slicer, a label map, or DICOM SEG (for DICOM series).")
    ] = Format.SEG_NRRD,
    ca: Ca = None,
    start: Start = None,
    model: Model = None,
) -> None:
    """Segment many images by a table of prompts.

    The columns of JOBS: image (a file that SimpleITK reads, or a folder with a DICOM series), segment (a name), prompt
    (point, bbox, scribble, lasso or markups), one of ijk (voxels), lps (millimetres) and file (a label map with the
    scribble or the filled lasso, or markups of 3D Slicer), and polarity (positive or negative). An image's rows are
    given in their order.

    Example:

        nninteractive-ws batch jobs.csv -o segmented --server gpu-box --jobs 4

    Stopped or killed, it goes on where it was when it is started again; what failed is then tried again. The
    exit status is 1 where something failed. A token for the server is taken from the environment variable
    NNINTERACTIVE_WS_TOKEN.
    """
    # About the headers of a series, such as a name without a caret: nothing that the reader of a log could mend.
    warnings.filterwarnings("ignore", module=r"(highdicom|pydicom)\b")
    token = os.environ.get(TOKEN_VARIABLE)
    failed = 0
    try:
        with _display() as display:
            results = Batch(
                jobs,
                output,
                server=server,
                format=format,
                in_flight=in_flight,
                token=token,
                ca=ca,
                start=start,
                model=model,
                on_activity=display.show,
            )
            display.expect(len(results))
            with closing(results):
                for result in results:
                    failed += bool(result.errors)
                    display.finished(result)
    except KeyboardInterrupt:
        stderr.print("Stopped. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None
    except (Error, ServerDidNotStart, OSError) as e:
        fail(e)
    words = f"{failed} of {len(results)} failed" if failed else "all done" if len(results) else "it has no rows"
    stderr.print(f"{escape(str(jobs))}: {words}; see {escape(str(output / 'results.csv'))}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


class _Display:
    """A line for the whole, one for every image in flight with a bar for its upload, and what is finished above."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._all = progress.add_task("images", total=None, count="")
        self._done = self._results = 0
        self._lines: dict[str, TaskID] = {}

    def expect(self, results: int) -> None:
        """So many there will be."""
        self._results = results
        self._progress.update(self._all, total=results, count=f"0/{results}")

    def show(self, activity: Activity) -> None:
        """What is being done; called from the thread that does it."""
        if not activity.image:
            self._progress.update(self._all, description=escape(activity.words))
            return
        if activity.image not in self._lines:
            self._lines[activity.image] = self._progress.add_task("", total=None, count="")
        line, words = self._lines[activity.image], f"  {activity.image}: {activity.words}"
        self._progress.update(line, description=escape(words))
        if activity.m:
            self._progress.update(line, total=activity.m, completed=activity.n)

    def finished(self, result: VolumeResult) -> None:
        """A result, in words; one of an earlier run is only counted."""
        line = self._lines.pop(result.image, None)
        if line is not None:
            self._progress.remove_task(line)
        self._done += 1
        count = f"{self._done}/{self._results}"
        self._progress.update(self._all, description="images", completed=self._done, count=count)
        made = [f"{s.name} {s.voxels:,} voxels, {s.ml:.1f} ml" for s in result.segments if s.error is None]
        if made and not result.earlier:
            stderr.print(escape(f"{result.image}: {'; '.join(made)} ({result.total_s:.1f} s)"), soft_wrap=True)
        for error in result.errors:
            stderr.print(f"[bold red]failed:[/] {escape(f'{result.image}: {error}')}", soft_wrap=True)


@contextmanager
def _display() -> Iterator[_Display]:
    count = TextColumn("{task.fields[count]}")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield _Display(progress)
