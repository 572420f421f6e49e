"""Several sessions, each with one image at a time. While one session uploads, another predicts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass, replace
import logging
from pathlib import Path
import time

from nninteractive_ws.atomic_files import make_folder, partial_path
from nninteractive_ws.client import events
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.errors import (
    AtCapacity,
    BadOutput,
    Error,
    InternalError,
    InvalidRequest,
    InvalidTable,
    OutOfMemory,
    WorkerLost,
)
from nninteractive_ws.files.images import (
    Color,
    check_output,
    keep_and_raise,
    notes_on_overlaps,
    read_volume,
    write_segmentation,
)
from nninteractive_ws.files.pictures import Prompt
from nninteractive_ws.files.volume import Volume
from nninteractive_ws.jobs.prompts import Shape, mark_of, send_prompt, shapes_of
from nninteractive_ws.jobs.records import write_empty_record, write_record
from nninteractive_ws.jobs.results import SegmentResult, VolumeResult
from nninteractive_ws.jobs.table import Job, PromptRow
from nninteractive_ws.masks import Mask

_log = logging.getLogger(__name__)

#: Errors of a single image or prompt. Any other error of this project or of the system ends the batch, which can be
#: resumed.
_ITEM_ERRORS = (InvalidTable, InvalidRequest, BadOutput, OutOfMemory, WorkerLost, InternalError)
#: Bytes that the output folder must accept after a segmentation could not be written. Otherwise the batch ends.
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class BatchProgress:
    """The current activity for an image. An empty ``image`` stands for the connection.

    ``done`` of ``total`` parts of the image are on the server. Both are 0 if the event is not about the upload.
    """

    image: str
    message: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class PendingJob:
    """A job to process, its output file in the ``folder`` of the batch, and the digest of its inputs under which
    results.csv records it.

    ``record``: the file with the pictures and measures for the report.
    """

    job: Job
    folder: Path
    output: Path
    key: str
    record: Path

    @property
    def output_name(self) -> str:
        """The output relative to the folder, as in results.csv."""
        return self.output.relative_to(self.folder).as_posix()


OnProgress = Callable[[BatchProgress], object]
OnFinished = Callable[[PendingJob, VolumeResult], object]
Open = Callable[[], Awaitable[AsyncSession]]


async def process(
    tasks: Sequence[PendingJob],
    open_session: Open,
    in_flight: int,
    colors: dict[str, Color],
    on_finished: OnFinished,
    on_progress: OnProgress,
) -> None:
    """Process all jobs in up to ``in_flight`` sessions, or in fewer if the server is at capacity.

    Raises the first Error or OSError that concerns more than one image, after cancelling the other sessions.
    """
    pending = iter(tasks)
    try:
        async with contextlib.AsyncExitStack() as sessions, asyncio.TaskGroup() as group:
            for number in range(min(in_flight, len(tasks))):
                try:
                    session = await sessions.enter_async_context(await open_session())
                except AtCapacity:
                    if number == 0:
                        raise
                    break
                group.create_task(_SessionWorker(session, colors, on_progress).run(pending, on_finished))
    except* (Error, OSError) as group_error:
        raise _first(group_error) from None


def _first(group_error: BaseException) -> BaseException:
    while isinstance(group_error, BaseExceptionGroup):
        group_error = group_error.exceptions[0]
    return group_error


class _SessionWorker:
    """A session that processes one image after another."""

    def __init__(self, session: AsyncSession, colors: dict[str, Color], on_progress: OnProgress) -> None:
        self._session, self._colors, self._on_progress = session, colors, on_progress
        self._image = self._message = ""
        self._marks: dict[str, list[Prompt]] = {}
        session.on("image_progress", self._on_image)
        session.on("connection", self._on_connection)

    async def run(self, pending: Iterator[PendingJob], on_finished: OnFinished) -> None:
        await self._session.set_options(previews=False)
        for task in pending:
            on_finished(task, await self._process(task))

    async def _process(self, task: PendingJob) -> VolumeResult:
        """Read, prompt, write. An error of the image is recorded for each of its segments."""
        job, started = task.job, time.monotonic()
        self._image, self._marks = job.name, {}
        segments = {name: SegmentResult(name, error=job.faults.get(name)) for name in job.segments}
        result = VolumeResult(job.name, (), warnings=tuple(job.warnings), path=str(job.image))
        try:
            if len(job.faults) < len(job.segments):
                self._report("reading")
                volume = await asyncio.to_thread(_read, task)
                warnings = (*volume.notes, *job.warnings)
                result = replace(result, read_s=time.monotonic() - started, warnings=warnings)
                self._report("uploading")
                await self._session.set_image(volume.voxels)
                await self._prompt(job, volume, segments)
                result = await self._write(task, volume, segments, result)
        except Exception as e:
            segments = {name: replace(s, error=s.error or _reason(e)) for name, s in segments.items()}
        self._image = ""
        return replace(result, segments=tuple(segments.values()), total_s=time.monotonic() - started)

    async def _prompt(self, job: Job, volume: Volume, segments: dict[str, SegmentResult]) -> None:
        for prompt in job.prompts:
            found = segments[prompt.segment]
            if found.error is None:
                try:
                    segments[prompt.segment] = await self._send_prompts(prompt, volume, found)
                # AtCapacity: the session has reached its number of segments.
                except (*_ITEM_ERRORS, AtCapacity) as e:
                    where = "" if isinstance(e, InvalidTable) else f"{prompt.where}: "
                    segments[prompt.segment] = replace(found, error=f"{where}{e}")

    async def _send_prompts(self, prompt: PromptRow, volume: Volume, so_far: SegmentResult) -> SegmentResult:
        """Send one row, which may be several prompts from a markups file. Raises the error of the first failed one."""
        self._report(f"predicting {prompt.segment}")
        for shape in await asyncio.to_thread(shapes_of, prompt, volume):
            so_far = await self._send_prompt(shape, prompt, so_far, volume.voxel_ml)
        return so_far

    async def _send_prompt(
        self, shape: Shape, prompt: PromptRow, so_far: SegmentResult, voxel_ml: float
    ) -> SegmentResult:
        started = time.monotonic()
        result = await send_prompt(self._session.segment(prompt.segment), shape, prompt.positive)
        self._marks.setdefault(prompt.segment, []).append(mark_of(shape, prompt.positive))
        timings = result.timings
        return replace(
            so_far,
            voxels=result.voxels,
            ml=result.voxels * voxel_ml,
            prompts=so_far.prompts + 1,
            passes=so_far.passes + timings.passes,
            predict_s=so_far.predict_s + time.monotonic() - started,
            waiting_s=so_far.waiting_s + timings.queued + timings.waiting_for_image,
            network_s=so_far.network_s + timings.network,
        )

    async def _write(
        self, task: PendingJob, volume: Volume, segments: dict[str, SegmentResult], result: VolumeResult
    ) -> VolumeResult:
        """Write the successful segments, if there are any, and set their labels.

        Raises BadOutput if their file cannot be written, and OSError if nothing can be written to the folder.
        """
        successful = [name for name, s in segments.items() if s.error is None]
        if not successful:
            return result
        self._report("writing")
        started = time.monotonic()
        masks = {name: self._session.segment(name).mask for name in successful}
        model = self._session.server.model
        lost = await asyncio.to_thread(self._write_files, task, masks, volume, model.name)
        for label, name in enumerate(successful, start=1):
            segments[name] = replace(segments[name], label=label)
        return replace(
            result,
            output=task.output,
            model=model.name,
            license=model.license,
            write_s=time.monotonic() - started,
            warnings=(*result.warnings, *lost.values()),
        )

    def _write_files(self, task: PendingJob, masks: Mapping[str, Mask], volume: Volume, model: str) -> dict[str, str]:
        """Write the files of a volume, and return notes on segments that lost voxels to others.

        Without a record, the segmentation is kept elsewhere. The next run would take it for a file of the user.
        """
        lost = notes_on_overlaps(task.output, masks)
        # First: it marks the segmentation as a result of batch, also if the process is killed in between.
        failure: Exception | None = None
        try:
            write_record(task.record, masks, volume, self._colors, self._marks, lost, task.output_name)
        except Exception as e:
            self._write_empty_record(task, masks, volume)  # it needs less space, and no picture
            failure = e  # raised once the segmentation is written or kept elsewhere
        with _writing(task):
            write_segmentation(task.output, masks, volume, self._colors, model)
        if failure is not None:
            raise failure
        return lost

    def _write_empty_record(self, task: PendingJob, masks: Mapping[str, Mask], volume: Volume) -> None:
        try:
            write_empty_record(task.record, task.output_name)
        except OSError as e:
            keep_and_raise(e, task.output, masks, volume, self._colors)

    def _report(self, message: str) -> None:
        self._message = message
        self._on_progress(BatchProgress(self._image, message))

    def _on_image(self, event: events.ImageProgress) -> None:
        if self._image:
            self._on_progress(BatchProgress(self._image, self._message, event.present, event.total))

    def _on_connection(self, event: events.Connection) -> None:
        if event.state == "lost":
            self._on_progress(BatchProgress("", f"{event.reason} Reconnecting."))


def _reason(error: Exception) -> str:
    """Return the message of an error of one image. Reraise an error that concerns the other images too."""
    if isinstance(error, _ITEM_ERRORS):
        return str(error)
    if isinstance(error, Error | OSError):
        raise error
    # Malformed files can raise any exception. It concerns this image only.
    _log.error("unexpected error in an image", exc_info=error)
    return f"Unexpected error: {error!r}. See the log for details."


@contextlib.contextmanager
def _writing(task: PendingJob) -> Iterator[None]:
    """Raise BadOutput in place of an OSError that concerns a single file, because others can be written."""
    try:
        yield
    except OSError as e:
        try:
            _probe(partial_path(task.folder / task.key))  # no file of the user has such a name
        except OSError:
            raise e from None
        raise BadOutput(str(e)) from e


def _probe(path: Path) -> None:
    """Raise OSError if a file of some size cannot be written."""
    try:
        path.write_bytes(bytes(_PROBE_BYTES))
    finally:
        path.unlink(missing_ok=True)


def _read(task: PendingJob) -> Volume:
    """Read the image of a job, and check that its output can be written.

    Raises BadImage and BadOutput, and OSError if nothing can be written to the folder.
    """
    volume = read_volume(task.job.image, task.job.options)
    with _writing(task):
        make_folder(task.output.parent)
        check_output(task.output, volume)
    return volume
