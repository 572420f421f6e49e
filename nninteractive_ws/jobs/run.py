"""A batch: skip finished jobs, process the others, and yield results."""

import asyncio
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
from dataclasses import replace
from functools import partial
import hashlib
import os
from pathlib import Path, PurePath
from queue import SimpleQueue
import re
import stat

from nninteractive_ws.atomic_files import make_folder, partial_path
from nninteractive_ws.client.aio import AsyncSession, aconnect
from nninteractive_ws.errors import BadOutput
from nninteractive_ws.files.data_files import files_of
from nninteractive_ws.files.images import color_of
from nninteractive_ws.files.names import folded, safe_name, with_digest
from nninteractive_ws.files.overwrites import InputFiles
from nninteractive_ws.files.read_options import suffix_of
from nninteractive_ws.files.reason import reason
from nninteractive_ws.jobs.lock import lock_folder
from nninteractive_ws.jobs.pipeline import BatchProgress, Open, PendingJob, process
from nninteractive_ws.jobs.records import record_path, recorded_outputs, remove_other_records, write_empty_record
from nninteractive_ws.jobs.report import FILE_NAME, Report
from nninteractive_ws.jobs.results import ResultsFile, SegmentResult, VolumeResult, path_cell
from nninteractive_ws.jobs.table import Job, read_table
from nninteractive_ws.server.local_server import ServerOptions

#: Files of the batch as a whole.
_FILES = ("results.csv", FILE_NAME)
#: The extension of an image in any case, such as .nii.gz.
_IMAGE_EXTENSION = re.compile(
    r"(?<=.)(\.(nii|hdr|img|nrrd|nhdr|mha|mhd|vtk|gipl|tiff?|dcm|ima|mgz|mgh))?(\.gz)?\Z", re.IGNORECASE | re.DOTALL
)
FORMATS = ("seg.nrrd", "nii.gz", "dcm")


class Batch(Iterator[VolumeResult]):
    """Iterator over the results of a table of jobs in order of completion. ``len()``: their number. See :func:`batch`.

    Processing starts with the first ``next``. :meth:`close` stops it and discards unfinished volumes.
    """

    def __init__(
        self,
        jobs: str | Path | Iterable[Mapping[str, object]],
        output: str | Path,
        *,
        server: ServerOptions,
        format: str,
        in_flight: int,
        resample: bool,
        on_activity: Callable[[BatchProgress], object] | None,
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f'Unknown format "{format}". Expected one of {", ".join(FORMATS)}.')
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}. Expected at least 1.")
        table = read_table(jobs, resample)
        folder = Path(output)
        inputs = _inputs(table.jobs, jobs)
        for name in _FILES:
            inputs.check(folder / name)
        try:
            make_folder(folder)
        except OSError as e:
            raise BadOutput(f"{e} Choose another one.") from e
        self._folder, self._file = folder, ResultsFile(folder)
        self._tasks = _plan(table.jobs, folder, format, inputs)
        self._strays = [VolumeResult(name, (SegmentResult("", error=error),)) for name, error in table.strays]
        names = dict.fromkeys(name for job in table.jobs for name in job.segments)
        self._colors = {name: color_of(number) for number, name in enumerate(names)}
        self._report_file = Report(folder, len(self))
        self._server, self._in_flight = server, in_flight
        self._on_activity = on_activity or (lambda _activity: None)
        self._others: dict[str, VolumeResult] = {}
        self._results = self._run()

    def __len__(self) -> int:
        return len(self._tasks) + len(self._strays)

    @property
    def kept(self) -> int:
        """The number of results of other tables in results.csv, whose output files still exist."""
        return len(self._others)

    def __iter__(self) -> "Batch":
        return self

    def __next__(self) -> VolumeResult:
        return next(self._results)

    def close(self) -> None:
        """Stop. Finished volumes are kept."""
        self._results.close()

    def _run(self) -> Generator[VolumeResult]:
        with lock_folder(self._folder):
            yield from self._run_locked()

    def _run_locked(self) -> Generator[VolumeResult]:
        self._report_file.check()
        known = self._file.load()
        results = {
            task.key: replace(known[task.key], path=str(task.job.image))
            for task in self._tasks
            if _is_done(task, known.get(task.key))
        }
        todo = [task for task in self._tasks if task.key not in results]
        keys = {task.key for task in self._tasks}
        self._others = {k: r for k, r in known.items() if k not in keys and r.output is not None and r.output.exists()}
        self._check_others(todo)
        self._check_foreign(todo, known.values())
        for task in todo:
            _remove_partial(task)
        self._file.rewrite(results.items(), self._others.items())
        remove_other_records(self._folder, (*keys, *self._others))
        yield from list(results.values())
        yield from self._strays
        try:
            if todo:
                yield from self._process(todo, results)
        finally:
            in_order = self._in_order(results)
            self._drop_replaced(results.values())
            self._file.rewrite(in_order, self._others.items())
            remove_other_records(self._folder, (*keys, *self._others))
            self._report_file.write(in_order)

    def _check_others(self, todo: list[PendingJob]) -> None:
        """Set a fault on jobs whose output file is the result of another image of another table."""
        owners = {self._file.output_key(r.output): r for r in self._others.values() if r.output is not None}
        for task in todo:
            other = owners.get(self._file.output_key(task.output))
            if other is not None and other.path != path_cell(str(task.job.image)):
                fault = (
                    f"{task.output} is already the output of another image of another table, {other.path}. Choose "
                    "another output folder."
                )
                task.job.faults = dict.fromkeys(task.job.segments, fault)

    def _check_foreign(self, todo: list[PendingJob], known: Iterable[VolumeResult]) -> None:
        """Set a fault on jobs whose output is a file that batch did not write, such as a label map of the same name.

        Batch wrote a file that results.csv or a record names. After a run that was killed, there can be only a record,
        which may be that of a row that was edited since then.
        """
        ours = {self._file.output_key(r.output) for r in known if r.output is not None}
        unknown = [
            task
            for task in todo
            if len(task.job.faults) < len(task.job.segments)
            and os.path.lexists(task.output)
            and not task.output.is_dir()  # reported as such
            and not task.record.exists()
            and self._file.output_key(task.output) not in ours
        ]
        recorded = {folded(name) for name in recorded_outputs(self._folder)} if unknown else set()
        for task in unknown:
            if folded(task.output_name) in recorded:
                write_empty_record(task.record, task.output_name)  # the other record is removed
            else:
                fault = f"{task.output} exists and is not a result of batch. Move it, or choose another output folder."
                task.job.faults = dict.fromkeys(task.job.segments, fault)

    def _drop_replaced(self, results: Iterable[VolumeResult]) -> None:
        """Drop the results of other tables whose files were replaced."""
        replaced = {self._file.output_key(r.output) for r in results if r.output is not None}
        self._others = {
            key: r
            for key, r in self._others.items()
            if r.output is not None and self._file.output_key(r.output) not in replaced
        }

    def _in_order(self, results: dict[str, VolumeResult]) -> list[tuple[str, VolumeResult]]:
        """Return the results so far with their keys, in the order of the table, and the invalid rows."""
        in_order = [(task.key, results[task.key]) for task in self._tasks if task.key in results]
        return [*in_order, *(("", stray) for stray in self._strays)]

    def _process(self, todo: list[PendingJob], results: dict[str, VolumeResult]) -> Iterator[VolumeResult]:
        """Process jobs on a thread with an event loop. ``results`` also gets results that are never yielded."""
        finished: SimpleQueue[VolumeResult | None] = SimpleQueue()
        running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

        def on_finished(task: PendingJob, result: VolumeResult) -> None:
            self._file.append(task.key, result)
            results[task.key] = result
            finished.put(result)

        async def process_all(open_session: Open) -> None:
            main = asyncio.current_task()
            assert main is not None
            running.set_result((asyncio.get_running_loop(), main))
            await process(todo, open_session, self._in_flight, self._colors, on_finished, self._on_activity)

        with self._server.running(self._report) as address, ThreadPoolExecutor(1, "nninteractive-ws batch") as thread:
            processing = thread.submit(asyncio.run, process_all(partial(self._open, address)))
            processing.add_done_callback(lambda _: finished.put(None))
            try:
                while (result := finished.get()) is not None:
                    self._report_file.update(self._in_order(results))
                    yield result
            finally:
                loop, main = running.result()
                with contextlib.suppress(RuntimeError):  # the loop has already ended
                    loop.call_soon_threadsafe(main.cancel)
            processing.result()

    def _report(self, message: str) -> None:
        """Report what concerns all images."""
        self._on_activity(BatchProgress("", message))

    async def _open(self, address: str) -> AsyncSession:
        self._report("opening a session")
        notice = lambda event: self._report(event.message)  # noqa: E731
        return await aconnect(address, on={"notice": notice}, **self._server.connect_arguments)


def _inputs(jobs: list[Job], table: object) -> InputFiles:
    """Return all files that a batch reads. ``table``: its path, if it is a file."""
    files = [path for job in jobs for path in (job.image, *(p.file for p in job.prompts if p.file is not None))]
    return InputFiles([Path(table), *files] if isinstance(table, str | Path) else files)


def _plan(jobs: list[Job], folder: Path, format: str, inputs: InputFiles) -> list[PendingJob]:
    """Assign an output file to each job. A job whose output collides with another file gets a fault instead."""
    owners: dict[str, tuple[Path, Job]] = {}
    tasks = []
    for job in jobs:
        name = _output_name(job, format)
        if owners.get(folded(name.as_posix()), (name, job))[0] != name:
            # The names differ only in case or Unicode normalization. Windows and macOS take them as the same file.
            name = name.with_name(f"{with_digest(_stem(name, format), job.name)}.{format}")
        output = folder / name
        other = owners.setdefault(folded(name.as_posix()), (name, job))[1]
        fault = ""
        try:
            inputs.check(output)
        except BadOutput as e:
            fault = str(e)
        if not fault and other is not job:
            fault = f"{output} is already the output of {other.name}. Rename one of the images."
        if fault:
            job.faults = dict.fromkeys(job.segments, fault)
        key = _key(job, format)
        tasks.append(PendingJob(job, folder, output, key, record_path(folder, key)))
    _check_folders(tasks, folder)
    return tasks


def _stem(name: Path, format: str) -> str:
    return name.name.removesuffix(f".{format}")


def _check_folders(tasks: list[PendingJob], folder: Path) -> None:
    """Set a fault on jobs whose output folder has the name of another job's output file, or of a file of batch."""
    files = {*map(folded, _FILES), *(folded(t.output.relative_to(folder).as_posix()) for t in tasks)}
    for task in tasks:
        parents = [p.as_posix() for p in task.output.relative_to(folder).parents]
        if blocked := [p for p in parents if folded(p) in files]:
            fault = f"{task.output} needs a folder in place of the file {blocked[0]}. Rename the image."
            task.job.faults = dict.fromkeys(task.job.segments, fault)


def _remove_partial(task: PendingJob) -> None:
    """Remove the partial output of a killed run. If it cannot be removed, set a fault on the job."""
    try:
        partial_path(task.output).unlink(missing_ok=True)
    except OSError as e:
        task.job.faults = dict.fromkeys(task.job.segments, f"{task.output} cannot be written ({reason(e)}).")


def _output_name(job: Job, format: str) -> Path:
    """Return the image's path in the table, relative to its root, with another suffix, and valid on any system.

    Only extensions of images are replaced: names of DICOM files are often UIDs, with dots. The chosen series and time
    point are appended to the name.
    """
    path = PurePath(os.path.normpath(job.spelling))
    parts = [part for part in path.parts if part not in (path.anchor, "..", ".")]
    *folders, name = parts or [job.image.name or "image"]  # "." is a series in the folder of the table
    if not _is_folder(job.image):
        name = _IMAGE_EXTENSION.sub("", name)
    return Path(*map(safe_name, folders), f"{safe_name(name + suffix_of(job.options))}.{format}")


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _key(job: Job, format: str) -> str:
    """Return a digest of the inputs of a result, without the model: rows, format, and the state of files."""
    rows = [(p.segment, p.kind, p.positive, p.numbers, p.lps, p.file and p.file.name) for p in job.prompts]
    files = [_state(path) for path in (job.image, *(p.file for p in job.prompts if p.file is not None))]
    inputs = repr((job.name, job.options, job.segments, rows, str(format), files))
    return hashlib.sha256(inputs.encode()).hexdigest()[:16]


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time of each file that is read for an input; empty if there is none."""
    try:
        return [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files_of(path)]
    except OSError:
        return []


def _is_done(task: PendingJob, result: VolumeResult | None) -> bool:
    return (
        result is not None
        and not result.errors
        and result.output == task.output
        and task.output.exists()
        and [s.name for s in result.segments] == task.job.segments
    )
