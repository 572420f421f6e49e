"""Several sessions, each with one image after another: while one uploads, another predicts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass, replace
import logging
from pathlib import Path
import time

from nninteractive_ws.client import events
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.errors import (
    AtCapacity,
    BadImage,
    BadJobs,
    Error,
    InternalError,
    InvalidRequest,
    OutOfMemory,
    WorkerLost,
)
from nninteractive_ws.files.images import Color, Volume, read_volume, write_segmentation
from nninteractive_ws.jobs.prompts import Shape, give, shapes_of
from nninteractive_ws.jobs.results import SegmentResult, VolumeResult
from nninteractive_ws.jobs.table import Job, Prompt

_log = logging.getLogger(__name__)

#: What concerns an image or a prompt alone. Any other error of ours, and of the system's, ends the batch, which can be
#: started again.
_ITS_OWN = (BadJobs, InvalidRequest, OutOfMemory, WorkerLost, InternalError)


@dataclass(frozen=True)
class Activity:
    """What is being done, in words, with the image of this name; an empty name: with a connection.

    ``n`` of ``m`` parts of the image are on the server; both are 0 where nothing new is known of that.
    """

    image: str
    words: str
    n: int = 0
    m: int = 0


@dataclass(frozen=True)
class Task:
    """A job that is to be done, the file to write, and the digest under which it is remembered."""

    job: Job
    output: Path
    key: str


Tell = Callable[[Activity], object]
Finished = Callable[[Task, VolumeResult], object]
Open = Callable[[], Awaitable[AsyncSession]]


async def process(
    tasks: Sequence[Task], open_session: Open, in_flight: int, colors: dict[str, Color], finished: Finished, tell: Tell
) -> None:
    """Do all tasks with ``in_flight`` sessions at most, fewer where the server has no room for so many.

    Raises the Error or OSError after which nothing could go on; other tasks end with it.
    """
    waiting = iter(tasks)
    try:
        async with contextlib.AsyncExitStack() as sessions, asyncio.TaskGroup() as group:
            for number in range(min(in_flight, len(tasks))):
                try:
                    session = await sessions.enter_async_context(await open_session())
                except AtCapacity:
                    if number == 0:
                        raise
                    break
                group.create_task(_Worker(session, colors, tell).work(waiting, finished))
    except* (Error, OSError) as several:
        raise _first(several) from None


def _first(several: BaseException) -> BaseException:
    while isinstance(several, BaseExceptionGroup):
        several = several.exceptions[0]
    return several


class _Worker:
    """A session and the image in it."""

    def __init__(self, session: AsyncSession, colors: dict[str, Color], tell: Tell) -> None:
        self._session, self._colors, self._tell = session, colors, tell
        self._image = self._words = ""
        session.on("image_progress", self._on_image)
        session.on("connection", self._on_connection)

    async def work(self, waiting: Iterator[Task], finished: Finished) -> None:
        await self._session.set_options(previews=False)
        for task in waiting:
            finished(task, await self._do(task))

    async def _do(self, task: Task) -> VolumeResult:
        """Read, prompt, write. What goes wrong with the image goes wrong with all its segments."""
        job, started = task.job, time.monotonic()
        self._image = job.name
        segments = {name: SegmentResult(name, error=job.faults.get(name)) for name in job.segments}
        result = VolumeResult(job.name, ())
        try:
            if len(job.faults) < len(job.segments):
                self._say("reading")
                volume = await asyncio.to_thread(_read, task)
                result = replace(result, read_s=time.monotonic() - started)
                self._say("uploading")
                await self._session.set_image(volume.voxels)
                await self._prompt(job, volume, segments)
                result = await self._write(task, volume, segments, result)
        except Exception as e:
            segments = {name: replace(s, error=s.error or _why(e)) for name, s in segments.items()}
        self._image = ""
        return replace(result, segments=tuple(segments.values()), total_s=time.monotonic() - started)

    async def _prompt(self, job: Job, volume: Volume, segments: dict[str, SegmentResult]) -> None:
        for prompt in job.prompts:
            found = segments[prompt.segment]
            if found.error is None:
                try:
                    segments[prompt.segment] = await self._give(prompt, volume, found)
                except (*_ITS_OWN, AtCapacity) as e:  # the latter: a session holds so many segments, and no more
                    where = "" if isinstance(e, BadJobs) else f"{prompt.where}: "
                    segments[prompt.segment] = replace(found, error=f"{where}{e}")

    async def _give(self, prompt: Prompt, volume: Volume, so_far: SegmentResult) -> SegmentResult:
        """One row; of a markups file all that it holds. Raises what went wrong."""
        self._say(f"predicting {prompt.segment}")
        for shape in await asyncio.to_thread(shapes_of, prompt, volume):
            so_far = await self._give_one(shape, prompt, so_far, volume.voxel_ml)
        return so_far

    async def _give_one(self, shape: Shape, prompt: Prompt, so_far: SegmentResult, voxel_ml: float) -> SegmentResult:
        asked = time.monotonic()
        result = await give(self._session.segment(prompt.segment), shape, prompt.positive)
        timings = result.timings
        return replace(
            so_far,
            voxels=result.voxels,
            ml=result.voxels * voxel_ml,
            prompts=so_far.prompts + 1,
            passes=so_far.passes + timings.passes,
            predict_s=so_far.predict_s + time.monotonic() - asked,
            waiting_s=so_far.waiting_s + timings.queued + timings.waiting_for_image,
            network_s=so_far.network_s + timings.network,
        )

    async def _write(
        self, task: Task, volume: Volume, segments: dict[str, SegmentResult], result: VolumeResult
    ) -> VolumeResult:
        """Write the segments that were made, if there are any, and number them."""
        made = [name for name, s in segments.items() if s.error is None]
        if not made:
            return result
        self._say("writing")
        started = time.monotonic()
        masks = {name: self._session.segment(name).mask for name in made}
        model = self._session.server.model
        task.output.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(write_segmentation, task.output, masks, volume, self._colors, model.name)
        for label, name in enumerate(made, start=1):
            segments[name] = replace(segments[name], label=label)
        return replace(
            result, output=task.output, model=model.name, license=model.license, write_s=time.monotonic() - started
        )

    def _say(self, words: str) -> None:
        self._words = words
        self._tell(Activity(self._image, words))

    def _on_image(self, event: events.ImageProgress) -> None:
        if self._image:
            self._tell(Activity(self._image, self._words, event.present, event.total))

    def _on_connection(self, event: events.Connection) -> None:
        if event.state == "lost":
            self._tell(Activity("", f"{event.reason} Trying again."))


def _why(error: Exception) -> str:
    """What an error says of an image. Raises it again where it concerns the others, too."""
    if isinstance(error, _ITS_OWN):
        return str(error)
    if isinstance(error, Error | OSError):
        raise error
    # Files hold what no reader of them has thought of: it is said of this one, and the rest goes on.
    _log.error("an image failed", exc_info=error)
    return f"It failed in a way that was not foreseen ({error!r}); the log has the details."


def _read(task: Task) -> Volume:
    """Raises BadImage."""
    try:
        if task.output.suffix == ".dcm" and not task.job.image.is_dir():
            raise BadImage(f"{task.job.name} is no folder with a DICOM series, which a DICOM SEG needs.")
        return read_volume(task.job.image)
    except OSError as e:
        raise BadImage(f"{task.job.name} cannot be read ({e.strerror}).") from e
