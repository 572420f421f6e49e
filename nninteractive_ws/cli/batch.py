"""``nninteractive-ws batch``."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated
import warnings

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
import typer

from nninteractive_ws.cli.console import fail, print_notes, stderr
from nninteractive_ws.cli.read_options import Resample
from nninteractive_ws.cli.server_options import Ca, Model, Server, Start, server_options
from nninteractive_ws.errors import Error
from nninteractive_ws.interrupts import INTERRUPTED
from nninteractive_ws.jobs.pipeline import BatchProgress
from nninteractive_ws.jobs.results import VolumeResult
from nninteractive_ws.jobs.run import Batch
from nninteractive_ws.server.local_server import ServerDidNotStart


class Format(StrEnum):
    """Formats of segmentations, named by their file extensions."""

    SEG_NRRD = "seg.nrrd"
    NII_GZ = "nii.gz"
    DCM = "dcm"


def batch(
    jobs: Annotated[
        Path,
        typer.Argument(metavar="JOBS", help="Table with one prompt per row, .csv, .tsv or .jsonl.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for segmentations, results.csv, report.html."),
    ],
    server: Server = None,
    in_flight: Annotated[
        int, typer.Option("--in-flight", min=1, help="Number of volumes in flight. One uploads while another predicts.")
    ] = 2,
    format: Annotated[
        Format, typer.Option(help="Format: segmentation of 3D Slicer, label map, or DICOM SEG (for DICOM series only).")
    ] = Format.SEG_NRRD,
    resample: Resample = False,
    ca: Ca = None,
    start: Start = None,
    model: Model = None,
) -> None:
    """Segment many images with the prompts of a table.

    Columns of JOBS: image (a file, or a folder with a DICOM series), segment (a name), prompt
    (point, bbox, scribble, lasso or markups), one of ijk (voxels), lps (millimeters) and file (a label map with the
    scribble or the filled lasso, or a markups file of 3D Slicer), polarity (positive or negative), and series and time
    (numbers from 1, of an image with several). The prompts of an image are sent in table order.

    Example:

        nninteractive-ws batch jobs.csv -o segmented --server gpu-box --in-flight 4

    Run the same command again to resume a stopped batch and to retry failed images. The exit status is 1 if an image
    or segment failed. The token for the server is read from the environment variable NNINTERACTIVE_WS_TOKEN.
    """
    # Warnings about headers of a series, such as a name without a caret, are of no use to the user.
    warnings.filterwarnings("ignore", module=r"(highdicom|pydicom)\b")
    failed = 0
    try:
        with _display() as display:
            results = Batch(
                jobs,
                output,
                server=server_options(server, ca, start, model),
                format=format,
                in_flight=in_flight,
                resample=resample,
                on_activity=display.show,
            )
            display.set_jobs(len(results))
            with closing(results):
                for result in results:
                    failed += bool(result.errors)
                    display.finished(result)
    except KeyboardInterrupt:
        stderr.print("Stopped. Run the same command again to resume.")
        raise typer.Exit(INTERRUPTED) from None
    except (Error, ServerDidNotStart, OSError) as e:
        fail(e)
    message = (
        f"{failed} of {len(results)} failed" if failed else "all done" if len(results) else "the table has no rows"
    )
    stderr.print(f"{escape(str(jobs))}: {message}. Results: {escape(str(output / 'results.csv'))}", soft_wrap=True)
    if results.kept:
        files = "file" if results.kept == 1 else "files"
        stderr.print(f"results.csv also has the results of other tables, in {results.kept} {files}.")
    stderr.print(f"Pictures of all segments: {escape(str(output / 'report.html'))}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


class _Display:
    """Progress lines: one for the batch, and one with an upload bar for each image in flight. Results scroll above."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._all = progress.add_task("images", total=None, count="")
        self._done = self._results = 0
        self._lines: dict[str, TaskID] = {}

    def set_jobs(self, results: int) -> None:
        """Set the total number of results."""
        self._results = results
        self._progress.update(self._all, total=results, count=f"0/{results}")

    def show(self, activity: BatchProgress) -> None:
        """Show the current activity. Called from the thread of the batch."""
        if not activity.image:
            self._progress.update(self._all, description=escape(activity.message))
            return
        if activity.image not in self._lines:
            self._lines[activity.image] = self._progress.add_task("", total=None, count="")
        line, message = self._lines[activity.image], f"  {activity.image}: {activity.message}"
        self._progress.update(line, description=escape(message))
        if activity.total:
            self._progress.update(line, total=activity.total, completed=activity.done)

    def finished(self, result: VolumeResult) -> None:
        """Print a result, unless it is from an earlier run, and update the count."""
        line = self._lines.pop(result.image, None)
        if line is not None:
            self._progress.remove_task(line)
        self._done += 1
        count = f"{self._done}/{self._results}"
        self._progress.update(self._all, description="images", completed=self._done, count=count)
        summaries = [f"{s.name} {s.voxels:,} voxels, {s.ml:.1f} ml" for s in result.segments if s.error is None]
        if summaries and not result.earlier:
            stderr.print(escape(f"{result.image}: {'; '.join(summaries)} ({result.total_s:.1f} s)"), soft_wrap=True)
        if not result.earlier:
            print_notes(result.warnings, result.image)
        for error in result.errors:
            message = ": ".join(filter(None, (result.image, error)))  # a row whose image is unknown has no name
            stderr.print(f"[bold red]failed:[/] {escape(message)}", soft_wrap=True)


@contextmanager
def _display() -> Iterator[_Display]:
    count = TextColumn("{task.fields[count]}")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield _Display(progress)
