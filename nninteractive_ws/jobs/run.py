"""A batch: which jobs are still to be done, and the results as they come."""

import asyncio
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
from functools import partial
import hashlib
import os
from pathlib import Path, PurePath
from queue import SimpleQueue
import stat
from typing import Any

from nninteractive_ws.client.address import printable_address
from nninteractive_ws.client.aio import AsyncSession, aconnect
from nninteractive_ws.errors import BadJobs
from nninteractive_ws.files.images import color_of, partial_path
from nninteractive_ws.files.names import folded, safe_name, with_digest
from nninteractive_ws.jobs.pipeline import Activity, Open, Task, process
from nninteractive_ws.jobs.results import ResultsFile, SegmentResult, VolumeResult
from nninteractive_ws.jobs.table import Job, read_table
from nninteractive_ws.server.local import local_server

FORMATS = ("seg.nrrd", "nii.gz", "dcm")


class Batch(Iterator[VolumeResult]):
    """The results of a table of jobs, as they are done; ``len()``: how many there will be. See :func:`batch`.

    Work begins with the first ``next`` and stops, unfinished volumes forgotten, with :meth:`close`.
    """

    def __init__(
        self,
        jobs: str | Path | Iterable[Mapping[str, object]],
        output: str | Path,
        *,
        server: str | None,
        format: str,
        in_flight: int,
        token: str | None,
        ca: str | Path | None,
        start: str | None,
        model: str | None,
        on_activity: Callable[[Activity], object] | None,
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f'there is no format "{format}"; there are {", ".join(FORMATS)}')
        if in_flight < 1:
            raise ValueError(f"{in_flight} volumes in flight; there must be one at least")
        table = read_table(jobs)
        folder = Path(output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadJobs(f"{folder} cannot be a folder for the results ({e.strerror}); give another.") from e
        self._file = ResultsFile(folder)
        self._tasks = _plan(table.jobs, folder, format)
        self._strays = [VolumeResult(name, (SegmentResult("", error=error),)) for name, error in table.strays]
        names = dict.fromkeys(name for job in table.jobs for name in job.segments)
        self._colors = {name: color_of(number) for number, name in enumerate(names)}
        self._server, self._model, self._in_flight = server, model, in_flight
        self._how: dict[str, Any] = {"token": token, "ca": ca, "start": start}
        self._tell = on_activity or (lambda _activity: None)
        self._results = self._run()

    def __len__(self) -> int:
        return len(self._tasks) + len(self._strays)

    def __iter__(self) -> "Batch":
        return self

    def __next__(self) -> VolumeResult:
        return next(self._results)

    def close(self) -> None:
        """Stop: what is finished stays finished."""
        self._results.close()

    def _run(self) -> Generator[VolumeResult]:
        known = self._file.load()
        results = {task.key: known[task.key] for task in self._tasks if _is_done(task, known.get(task.key))}
        todo = [task for task in self._tasks if task.key not in results]
        for task in todo:
            _tidy(task)
        self._file.rewrite(results.items())
        yield from list(results.values())
        yield from self._strays
        try:
            if todo:
                yield from self._do(todo, results)
        finally:
            in_order = [(task.key, results[task.key]) for task in self._tasks if task.key in results]
            self._file.rewrite([*in_order, *(("", stray) for stray in self._strays)])

    def _do(self, todo: list[Task], results: dict[str, VolumeResult]) -> Iterator[VolumeResult]:
        """On a thread with an event loop, while this one waits. ``results`` also gets what nobody takes."""
        fresh: SimpleQueue[VolumeResult | None] = SimpleQueue()
        running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = Future()

        def finished(task: Task, result: VolumeResult) -> None:
            self._file.append(task.key, result)
            results[task.key] = result
            fresh.put(result)

        async def work(open_session: Open) -> None:
            main = asyncio.current_task()
            assert main is not None
            running.set_result((asyncio.get_running_loop(), main))
            await process(todo, open_session, self._in_flight, self._colors, finished, self._tell)

        with self._address() as address, ThreadPoolExecutor(1, "nninteractive-ws batch") as thread:
            done = thread.submit(asyncio.run, work(partial(self._open, address)))
            done.add_done_callback(lambda _: fresh.put(None))
            try:
                while (found := fresh.get()) is not None:
                    yield found
            finally:
                loop, main = running.result()
                with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                    loop.call_soon_threadsafe(main.cancel)
            done.result()

    def _address(self) -> contextlib.AbstractContextManager[str]:
        if self._server is not None:
            return contextlib.nullcontext(self._server)
        self._tell(Activity("", "starting a server"))
        return local_server("--log-level", "warning", *(("--model", self._model) if self._model else ()))

    async def _open(self, address: str) -> AsyncSession:
        self._tell(Activity("", f"connecting to {printable_address(address)}"))
        notice = lambda event: self._tell(Activity("", event.message))  # noqa: E731
        return await aconnect(address, on={"notice": notice}, **self._how)


def _plan(jobs: list[Job], folder: Path, format: str) -> list[Task]:
    """Where every job's segmentation goes; a job whose file would take another's place gets none."""
    inputs = {path for job in jobs for path in (job.image, *(p.file.resolve() for p in job.prompts if p.file))}
    taken: dict[str, tuple[Path, Job]] = {}
    tasks = []
    for job in jobs:
        name = _output_name(job, format)
        if taken.get(folded(name.as_posix()), (name, job))[0] != name:
            # The names differ only by case, or in the encoding of accents. On Windows and macOS they are one file.
            name = name.with_name(f"{with_digest(_stem(name, format), job.name)}.{format}")
        output = folder / name
        other = taken.setdefault(folded(name.as_posix()), (name, job))[1]
        wrong = ""
        if output.resolve() in inputs:
            wrong = f"{output} would be written over a file that is read; give another folder."
        elif other is not job:
            wrong = f"{output} is where the segments of {other.name} go; give one of the images another name."
        if wrong:
            job.faults = dict.fromkeys(job.segments, wrong)
        tasks.append(Task(job, output, _key(job, format)))
    _check_folders(tasks, folder)
    return tasks


def _stem(name: Path, format: str) -> str:
    return name.name.removesuffix(f".{format}")


def _check_folders(tasks: list[Task], folder: Path) -> None:
    """Set an error on jobs whose output folder would be an output of another job, or the table of results."""
    files = {folded("results.csv"), *(folded(t.output.relative_to(folder).as_posix()) for t in tasks)}
    for task in tasks:
        parents = [p.as_posix() for p in task.output.relative_to(folder).parents]
        if blocked := [p for p in parents if folded(p) in files]:
            wrong = f"{task.output} would lie in a folder that is the file {blocked[0]}; give the image another name."
            task.job.faults = dict.fromkeys(task.job.segments, wrong)


def _tidy(task: Task) -> None:
    """Remove what a run that was killed may have left; a job whose file can have no place is told so."""
    try:
        partial_path(task.output).unlink(missing_ok=True)
    except OSError as e:
        task.job.faults = dict.fromkeys(task.job.segments, f"{task.output} cannot be written ({e.strerror}).")


def _output_name(job: Job, format: str) -> Path:
    """The image's path as the table writes it, from its root, with another ending, and valid on any system."""
    written = PurePath(os.path.normpath(job.name))
    parts = [part for part in written.parts if part not in (written.anchor, "..", ".")]
    *folders, name = parts or [job.image.name or "image"]  # of ".", a series beside its table
    if not _is_folder(job.image):
        name = name.removesuffix(".gz")
        name = name.removesuffix(PurePath(name).suffix)
    return Path(*map(safe_name, folders), f"{safe_name(name)}.{format}")


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _key(job: Job, format: str) -> str:
    """A digest of all that a result depends on, the server's model apart: rows, format, and the state of files."""
    rows = [(p.segment, p.kind, p.positive, p.numbers, p.lps, p.file and p.file.name) for p in job.prompts]
    files = [_state(path) for path in (job.image, *(p.file for p in job.prompts if p.file is not None))]
    return hashlib.sha256(repr((job.name, job.segments, rows, format, files)).encode()).hexdigest()[:16]


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Size and time of change, of a folder those of the files in it; nothing where there is no such file."""
    try:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        return [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files]
    except OSError:
        return []


def _is_done(task: Task, result: VolumeResult | None) -> bool:
    return (
        result is not None
        and not result.errors
        and result.output == task.output
        and task.output.exists()
        and [s.name for s in result.segments] == task.job.segments
    )
