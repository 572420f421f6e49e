"""Measure the throughput and latency of a session with a test volume, and estimate the first preview on a real CT."""

import asyncio
from collections.abc import Callable
import math
import statistics
import time

import numpy as np
import numpy.typing as npt

from nninteractive_ws.bricks import Grid
from nninteractive_ws.client import events
from nninteractive_ws.client.aio import AsyncSession
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.doctor.results import StepFailed, StepOutput
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.units import format_bytes

#: Shape of the test volume: 8 MiB of int16, as a CT cropped to an organ may have.
_TEST_SHAPE: Index = (256, 128, 128)
UPLOAD_TIMEOUT_S = 60.0
#: Seconds for which the statistics of the volume are repeated. A single run is too short to measure.
_STATISTICS_S = 0.3
#: Limits of the download, in bytes of masks and in seconds.
_DOWNLOAD_BYTES, _DOWNLOAD_S = 8_000_000, 3.0
#: Shape of the CT of the estimate, and bytes of its first mask (one of an official model, of 396,000 voxels).
_CT_SHAPE: Index = (512, 512, 300)
_MASK_BYTES = 20_000


class ThroughputTest:
    """Measurements of a session, in this order: upload, download, prompt, estimate.

    ``round_trip``: in seconds. ``same_host``: whether the server is on this computer. Methods raise StepFailed, or the
    Error that ended the session or the request.
    """

    def __init__(
        self, session: AsyncSession, round_trip: float, same_host: bool, on_status: Callable[[str], object]
    ) -> None:
        self._session, self._round_trip, self._same_host, self._on_status = session, round_trip, same_host, on_status
        # Seconds: statistics of a voxel on this computer, set_image apart from its voxels, allocation of a voxel on the
        # server, and a prompt of one pass.
        self._statistics_s = self._set_image_s = self._allocation_s = self._prompt_s = 0.0
        self._upload_rate = self._download_rate = 0.0  # bytes per second
        self._packing_ratio = 1.0  # bytes on the wire per byte of the volume

    async def upload(self) -> StepOutput:
        """Measure the upload of the volume, from the server's allocation until the last brick is acknowledged."""
        session, volume = self._session, _ct_like()
        self._statistics_s = await asyncio.to_thread(_seconds_for_statistics, volume) / volume.size
        self._set_image_s = await self._measure_set_image(volume[:8, :8, :8])
        parts = len(Grid(_TEST_SHAPE))
        progress: list[tuple[float, int]] = []
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_progress(event: events.ImageProgress) -> None:
            if event.total != parts:
                return  # from the small image before
            progress.append((time.monotonic(), session.bytes_sent))
            self._on_status(f"upload, part {event.present} of {event.total}")
            if event.present == event.total and not done.done():
                done.set_result(True)

        def on_error(event: events.Failed) -> None:
            if event.request is None and not done.done():
                done.set_exception(event.error)

        session.on("image_progress", on_progress)
        session.on("error", on_error)
        for_voxels = await self._measure_set_image(volume) - self._set_image_s
        self._allocation_s = max(0.0, for_voxels / volume.size - self._statistics_s)
        await asyncio.wait({done}, timeout=UPLOAD_TIMEOUT_S)
        (first, before), (last, after) = progress[0], progress[-1]
        sent, seconds = after - before, max(last - first, 1e-9)
        self._upload_rate = sent / seconds
        if not done.done():
            raise StepFailed(
                "too_slow",
                f"Only {format_bytes(sent)} were uploaded in {UPLOAD_TIMEOUT_S:g} seconds. Use a faster network (a "
                "cable, another VPN), or a server that is nearer.",
                bytes=sent,
                bytes_per_second=self._upload_rate,
            )
        done.result()
        self._packing_ratio = sent / volume.nbytes
        message = (
            f"{format_bytes(self._upload_rate)}/s for {format_bytes(volume.nbytes)} of CT-like noise "
            f"({format_bytes(sent)} packed), in bricks until the last was acknowledged"
        )
        data = {"volume_bytes": volume.nbytes, "bytes": sent, "seconds": seconds, "bytes_per_second": self._upload_rate}
        return StepOutput(message, data)

    async def _measure_set_image(self, volume: npt.NDArray[np.int16]) -> float:
        started = time.monotonic()
        await self._session.set_image(volume)
        return time.monotonic() - started

    async def download(self) -> StepOutput:
        """Measure the download of a mask of random voxels, the hardest to compress, by undo and redo."""
        session, segment = self._session, self._session.segment("noise")
        await segment.set_mask(np.random.default_rng(0).integers(0, 2, _TEST_SHAPE, np.uint8).astype(bool))
        before, started, changes, seconds = session.bytes_received, time.monotonic(), 0, 0.0
        while session.bytes_received - before < _DOWNLOAD_BYTES and seconds < _DOWNLOAD_S:
            await (segment.redo() if changes % 2 else segment.undo())
            changes, seconds = changes + 1, time.monotonic() - started
        received = session.bytes_received - before
        transfer = max(seconds - changes * self._round_trip, 1e-9)
        self._download_rate = received / transfer
        message = (
            f"at least {format_bytes(self._download_rate)}/s for {format_bytes(received)} of {changes} changes of a "
            "mask of noise, including compression and decompression"
        )
        data = {"bytes": received, "changes": changes, "seconds": transfer, "bytes_per_second": self._download_rate}
        return StepOutput(message, data)

    async def prompt(self) -> StepOutput:
        """Measure a point on the ball without zooming out, because the need for that depends on the object."""
        await self._session.set_options(autozoom=False)
        started = time.monotonic()
        i, j, k = (n // 2 for n in _TEST_SHAPE)
        result = await self._session.segment("ball").add_point((i, j, k))
        seconds, t = time.monotonic() - started, result.timings
        self._prompt_s = seconds - t.queued - t.network + t.network / max(1, t.passes)
        message = (
            f"{seconds:.2f} s for a point on the test volume without zooming out, including {t.network:.2f} s in the "
            f"neural network ({t.passes} {'pass' if t.passes == 1 else 'passes'})"
        )
        if t.queued > 0.1:
            message += f" and {t.queued:.2f} s in the queue behind other users"
        data = {"seconds": seconds, "network_seconds": t.network, "passes": t.passes, "queued_seconds": t.queued}
        return StepOutput(message, data)

    async def estimate(self) -> StepOutput:
        """Estimate the time to the first preview on a CT, with a click in its middle as soon as it is opened."""
        patch = self._session.server.model.patch_size
        grid = Grid(_CT_SHAPE)
        starts = [n // 2 - p // 2 for n, p in zip(_CT_SHAPE, patch, strict=True)]
        around = Box.from_pairs([(start, start + p) for start, p in zip(starts, patch, strict=True)])
        needed = grid.within(around)
        voxels = sum(math.prod(b - a for a, b in grid.box(index).pairs) for index in needed)
        sent = voxels * np.dtype(np.int16).itemsize * self._packing_ratio
        parts = {
            "statistics": self._statistics_s * math.prod(_CT_SHAPE),
            "allocation": self._set_image_s + self._allocation_s * math.prod(_CT_SHAPE),
            "upload": sent / self._upload_rate,
            "prompt": self._prompt_s,
            "download": _MASK_BYTES / self._download_rate,
        }
        seconds = sum(parts.values())
        message = (
            f"about {seconds:.1f} s from opening a CT of 512 x 512 x 300 voxels and clicking to the first preview of "
            "its mask. This estimate is the sum of the measurements above: "
            f"{parts['statistics']:.1f} s for the statistics of the image on this computer, "
            f"{parts['allocation']:.2f} s for the allocation on the server, {parts['upload']:.1f} s for the "
            f"{len(needed)} of {len(grid)} bricks around the click ({format_bytes(sent)} packed), "
            f"{parts['prompt']:.2f} s for a prompt of one pass, and {parts['download']:.2f} s for "
            f"{_MASK_BYTES // 1000} kB of mask. A large object needs more passes."
        )
        if self._same_host:
            message += (
                " Meanwhile, the rest of the image is packed on the server's own computer. If both need the "
                "processors, it takes longer. With two processors, 1.5 times as long was measured."
            )
        data = {
            "shape": list(_CT_SHAPE),
            "seconds": seconds,
            "bricks": len(needed),
            "bytes": round(sent),
            "parts": parts,
        }
        return StepOutput(message, data)


def _ct_like() -> npt.NDArray[np.int16]:
    """Return a ball in soft tissue, with noise that packs as a CT does, to somewhat less than half.

    Its first axis is contiguous, as in a file. Its statistics and packing take more than twice as long as with the last
    axis contiguous.
    """
    axes = zip(np.ogrid[tuple(map(slice, _TEST_SHAPE))], _TEST_SHAPE, strict=True)
    ball = np.asarray(sum(((g - n / 2) / 30) ** 2 for g, n in axes)) <= 1
    noise = np.random.default_rng(0).normal(0, 20, _TEST_SHAPE)
    return np.asfortranarray(np.rint(np.where(ball, 120, 20) + noise).astype(np.int16))


def _seconds_for_statistics(volume: npt.NDArray[np.int16]) -> float:
    """Return the median time of the statistics of a volume."""
    times: list[float] = []
    while sum(times) < _STATISTICS_S:
        started = time.monotonic()
        ImageSource.of(volume)
        times.append(time.monotonic() - started)
    return statistics.median(times)
