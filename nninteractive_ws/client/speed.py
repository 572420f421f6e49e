"""How fast a server is from here: what a session does with a volume made for it, and what follows for a real CT."""

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
from nninteractive_ws.client.finding import Look, Trouble
from nninteractive_ws.client.upload import ImageSource
from nninteractive_ws.geometry import Box, Index

#: What is sent: 8 MiB of int16, as a CT around an organ may be.
_TEST_SHAPE: Index = (256, 128, 128)
UPLOAD_WITHIN_S = 60.0
#: For so long the voxels are looked at again and again: once would be over within a moment of the computer's.
_LOOK_S = 0.3
#: Masks come down until so many bytes have, or so long.
_DOWNLOAD_BYTES, _DOWNLOAD_S = 8_000_000, 3.0
#: What the estimate is for, and the size of a first mask (an official model's, of 396,000 voxels).
_CT_SHAPE: Index = (512, 512, 300)
_MASK_BYTES = 20_000


class Speed:
    """Measures a session, in this order: upload, download, prompt, and then the estimate.

    ``round_trip``: seconds. ``here``: whether the server is on this computer. Methods raise Trouble, or the Error that
    ended the session or the request.
    """

    def __init__(self, session: AsyncSession, round_trip: float, here: bool, say: Callable[[str], object]) -> None:
        self._session, self._round_trip, self._here, self._say = session, round_trip, here, say
        # Seconds: to look at a voxel here, to take on an image without any, to make room for a voxel there, and for a
        # prompt of one pass.
        self._looking = self._taking_on = self._room = self._answer = 0.0
        self._up = self._down = 0.0  # bytes a second
        self._packed = 1.0  # bytes on the wire for one of the volume

    async def upload(self) -> Look:
        """The volume, from when the server has taken it on until the last brick is acknowledged."""
        session, volume = self._session, _ct_like()
        self._looking = await asyncio.to_thread(_seconds_to_look, volume) / volume.size
        self._taking_on = await self._seconds_to_take_on(volume[:8, :8, :8])
        parts = len(Grid(_TEST_SHAPE))
        seen: list[tuple[float, int]] = []
        over: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def hear(event: events.ImageProgress) -> None:
            if event.total != parts:
                return  # of the small one before
            seen.append((time.monotonic(), session.bytes_sent))
            self._say(f"upload, part {event.present} of {event.total}")
            if event.present == event.total and not over.done():
                over.set_result(True)

        def fail(event: events.Failed) -> None:
            if event.request is None and not over.done():
                over.set_exception(event.error)

        session.on("image_progress", hear)
        session.on("error", fail)
        more = await self._seconds_to_take_on(volume) - self._taking_on
        self._room = max(0.0, more / volume.size - self._looking)
        await asyncio.wait({over}, timeout=UPLOAD_WITHIN_S)
        (first, before), (last, after) = seen[0], seen[-1]
        sent, seconds = after - before, max(last - first, 1e-9)
        self._up = sent / seconds
        if not over.done():
            raise Trouble(
                "too_slow",
                f"In {UPLOAD_WITHIN_S:g} seconds only {_mb(sent)} went up. Use a faster network (a cable, another "
                "VPN), or a server that is nearer.",
                bytes=sent,
                bytes_per_second=self._up,
            )
        over.result()
        self._packed = sent / volume.nbytes
        words = (
            f"{_mb(self._up)}/s: {_mb(volume.nbytes)} of CT-like noise, {_mb(sent)} packed, in bricks until the last "
            "was acknowledged"
        )
        data = {"volume_bytes": volume.nbytes, "bytes": sent, "seconds": seconds, "bytes_per_second": self._up}
        return Look(words, data)

    async def _seconds_to_take_on(self, volume: npt.NDArray[np.int16]) -> float:
        started = time.monotonic()
        await self._session.set_image(volume)
        return time.monotonic() - started

    async def download(self) -> Look:
        """The hardest of all masks, a bit for every voxel at random, comes and goes with undo and redo."""
        session, segment = self._session, self._session.segment("noise")
        await segment.set_mask(np.random.default_rng(0).integers(0, 2, _TEST_SHAPE, np.uint8).astype(bool))
        before, started, turns, seconds = session.bytes_received, time.monotonic(), 0, 0.0
        while session.bytes_received - before < _DOWNLOAD_BYTES and seconds < _DOWNLOAD_S:
            await (segment.redo() if turns % 2 else segment.undo())
            turns, seconds = turns + 1, time.monotonic() - started
        received = session.bytes_received - before
        travelling = max(seconds - turns * self._round_trip, 1e-9)
        self._down = received / travelling
        words = (
            f"at least {_mb(self._down)}/s: {_mb(received)} of {turns} changes of a mask of noise, packing and "
            "unpacking included"
        )
        data = {"bytes": received, "changes": turns, "seconds": travelling, "bytes_per_second": self._down}
        return Look(words, data)

    async def prompt(self) -> Look:
        """A point on the ball. Zooming out is left out: how often that is needed depends on the object."""
        await self._session.set_options(autozoom=False)
        started = time.monotonic()
        i, j, k = (n // 2 for n in _TEST_SHAPE)
        result = await self._session.segment("ball").add_point((i, j, k))
        seconds, t = time.monotonic() - started, result.timings
        self._answer = seconds - t.queued - t.network + t.network / max(1, t.passes)
        words = (
            f"{seconds:.2f} s for a point on the test volume without zooming out, of it {t.network:.2f} s in the "
            f"network ({t.passes} {'pass' if t.passes == 1 else 'passes'})"
        )
        if t.queued > 0.1:
            words += f" and {t.queued:.2f} s in the queue: others use the device now"
        data = {"seconds": seconds, "network_seconds": t.network, "passes": t.passes, "queued_seconds": t.queued}
        return Look(words, data)

    async def estimate(self) -> Look:
        """How long the first preview on a CT takes, with a click in its middle as soon as it is opened."""
        patch = self._session.server.model.patch_size
        grid = Grid(_CT_SHAPE)
        starts = [n // 2 - p // 2 for n, p in zip(_CT_SHAPE, patch, strict=True)]
        around = Box.from_pairs([(start, start + p) for start, p in zip(starts, patch, strict=True)])
        needed = grid.within(around)
        voxels = sum(math.prod(b - a for a, b in grid.box(index).pairs) for index in needed)
        sent = voxels * np.dtype(np.int16).itemsize * self._packed
        parts = {
            "looking_at_image": self._looking * math.prod(_CT_SHAPE),
            "taking_on": self._taking_on + self._room * math.prod(_CT_SHAPE),
            "upload": sent / self._up,
            "prompt": self._answer,
            "download": _MASK_BYTES / self._down,
        }
        seconds = sum(parts.values())
        words = (
            f"about {seconds:.1f} s from opening a CT of 512 x 512 x 300 voxels and clicking to the first preview of "
            "its mask. This is an estimate, from what was measured above: "
            f"{parts['looking_at_image']:.1f} s to look at the voxels on this computer, {parts['taking_on']:.2f} s "
            f"until the server has made room for them, {parts['upload']:.1f} s for the {len(needed)} of {len(grid)} "
            f"bricks around the click ({_mb(sent)} packed), {parts['prompt']:.2f} s for a prompt of one pass, "
            f"{parts['download']:.2f} s for {_MASK_BYTES // 1000} kB of mask. A large object takes further passes."
        )
        if self._here:
            words += " The rest of the image is packed on the server's own computer meanwhile: where both need the "
            words += "processors, it takes longer; with two of them, half as long again was measured."
        data = {
            "shape": list(_CT_SHAPE),
            "seconds": seconds,
            "bricks": len(needed),
            "bytes": round(sent),
            "parts": parts,
        }
        return Look(words, data)


def _ct_like() -> npt.NDArray[np.int16]:
    """A ball in soft tissue, with noise that packs as a CT does: to somewhat less than half. Its first axis runs
    fastest, as that of a file does: looking at it and packing it take more than twice as long as the other way round.
    """
    axes = zip(np.ogrid[tuple(map(slice, _TEST_SHAPE))], _TEST_SHAPE, strict=True)
    ball = np.asarray(sum(((g - n / 2) / 30) ** 2 for g, n in axes)) <= 1
    noise = np.random.default_rng(0).normal(0, 20, _TEST_SHAPE)
    return np.asfortranarray(np.rint(np.where(ball, 120, 20) + noise).astype(np.int16))


def _seconds_to_look(volume: npt.NDArray[np.int16]) -> float:
    """The median of several times."""
    times: list[float] = []
    while sum(times) < _LOOK_S:
        started = time.monotonic()
        ImageSource.of(volume)
        times.append(time.monotonic() - started)
    return statistics.median(times)


def _mb(n: float) -> str:
    return f"{n / 1e6:.2f} MB" if n < 1e7 else f"{n / 1e6:.0f} MB"
