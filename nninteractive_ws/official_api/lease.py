"""A lease of nnInteractive's HTTP API: a session with one segment, and the state of the client's target buffer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import math
import time
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nninteractive_ws import masks
from nninteractive_ws.client.aio import AsyncSegment, AsyncSession
from nninteractive_ws.client.events import MaskDelta
from nninteractive_ws.client.image_source import ImageSource
from nninteractive_ws.client.inputs import box_inside, to_mask
from nninteractive_ws.errors import BadImage, BadMask, NoImage, OutOfBounds, UnsupportedPrompt
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Delta, bounding_box
from nninteractive_ws.official_api.memory import MemoryBudget, Reservation
from nninteractive_ws.official_api.nnia import PackedArray
from nninteractive_ws.official_api.payloads import (
    AddBbox,
    AddInitialSegmentation,
    AddMask,
    AddPoint,
    SetTargetBuffer,
)

#: The name of a lease's segment.
SEGMENT = "object"
#: Limit of a request's wait for the server. nnInteractive's client waits 60 seconds for an answer, and then gives up.
ANSWER_TIMEOUT_S = 50.0

_T = TypeVar("_T")
_AddStrokes = Callable[..., Awaitable[object]]


class AnswerTimeout(Exception):
    """The server has not answered in time, and the request was cancelled. ``str()`` is a sentence for the user."""


@dataclass(frozen=True)
class Answer:
    """The answer to a prompt. ``ran``: whether it predicted or undid. ``box``: the part of the mask to send, if any."""

    ran: bool
    box: Box | None


class Lease:
    """A session with one segment.

    ``token``: the bearer token of its user, "" without one. Requests have to hold :attr:`lock`.
    """

    def __init__(self, session: AsyncSession, token: str, budget: MemoryBudget) -> None:
        self.session, self.token = session, token
        self.lock = asyncio.Lock()
        self.last_active = self.last_seen = time.monotonic()
        self._budget = budget
        self._image_memory: Reservation | None = None
        self._shape: Index | None = None
        #: The dtype of the client's target buffer; None before there is one.
        self.dtype: np.dtype[Any] | None = None
        # A box of all voxels in which the target buffer differs from the mask.
        self._unsent: Box | None = None
        # Number of steps up to the last initial segmentation, which can be undone only while it is the newest step.
        # Clients send an existing segment before its first prompt, and one undo too many would empty it.
        self._initial_steps = 0
        self._is_initial_newest = False
        session.on("mask_delta", self._on_mask_delta)

    def mark_active(self) -> None:
        """Note an action of the user."""
        self.last_active = self.last_seen = time.monotonic()

    @property
    def shape(self) -> Index:
        """The shape of the image. Raises NoImage."""
        if self._shape is None:
            raise NoImage("There is no image. Send it with /set_image first.")
        return self._shape

    async def close(self) -> None:
        """End the session and release its memory."""
        await self.session.close()
        self.forget_image()

    # ---- requests -----------------------------------------------------------------------------------------

    async def set_image(self, packed: PackedArray) -> None:
        """Use an image of shape (1, X, Y, Z). If the session refuses it, there is no image.

        Raises BadImage, TooLarge or BadMessage, and the previous image stays in use; or OutOfMemory.
        """
        if len(packed.shape) != 4 or packed.shape[0] != 1:
            raise BadImage(f"The image has the shape {packed.shape}. Expected (1, X, Y, Z): one channel is supported.")
        # For the image and the mask of its segment. The previous ones are in use until the session has this image.
        memory = self._budget.reserve(packed.nbytes + math.prod(packed.shape))
        try:
            source = await asyncio.to_thread(lambda: ImageSource.of(packed.unpack()[0]))
        except BaseException:
            memory.release()
            raise
        self._shape = self.dtype = self._unsent = None
        try:
            await self._answer(self.session.set_image(source))
        except BaseException:
            # The session still has one of the two images.
            self._image_memory = _larger(memory, self._image_memory)
            raise
        self.forget_image()
        self._image_memory, self._shape = memory, source.grid.shape

    async def set_target_buffer(self, payload: SetTargetBuffer) -> None:
        """Note a new target buffer, which is empty. Raises NoImage, OutOfBounds, BadMask or TooLarge."""
        if payload.shape != self.shape:
            raise OutOfBounds(f"The target buffer has the shape {payload.shape}. Expected {self.shape}, the image's.")
        try:
            dtype = np.dtype(payload.dtype)
        except (TypeError, ValueError, SyntaxError) as e:
            raise BadMask("The target buffer has an unknown dtype. Use uint8, for instance.") from e
        if dtype.kind not in "biu":
            raise BadMask(f"The target buffer has the dtype {dtype}. Use bool or an integer type, such as uint8.")
        self._budget.check(math.prod(self.shape) * dtype.itemsize)
        self.dtype, self._unsent = dtype, None
        if self._exists:
            self._extend_unsent(await asyncio.to_thread(bounding_box, self._segment.mask))

    async def set_do_autozoom(self, enabled: bool) -> None:
        """Allow or prevent zooming out."""
        await self._answer(self.session.set_options(autozoom=enabled))

    async def reset(self) -> None:
        """Remove all prompts and the mask. The client empties its target buffer itself."""
        with self._overwritten_buffer():
            if self._exists:
                await self._answer(self._segment.remove())
        self._unsent, self._initial_steps = None, 0

    async def add_point(self, payload: AddPoint) -> Answer:
        """Add a point. Raises the errors of the request."""
        point = payload.coordinates
        request = self._segment.add_point(point, positive=payload.include_interaction, run=payload.run_prediction)
        return await self._prompt(request, payload.run_prediction)

    async def add_bbox(self, payload: AddBbox) -> Answer:
        """Add a bounding box. Raises the errors of the request."""
        box = clip_box(payload.bbox_coords, self.shape, self.session.server.model.prompts)
        request = self._segment.add_bbox(box, positive=payload.include_interaction, run=payload.run_prediction)
        return await self._prompt(request, payload.run_prediction)

    async def add_scribble(self, payload: AddMask, packed: PackedArray) -> Answer:
        """Add a scribble. Raises the errors of the request."""
        return await self._add_strokes(self._segment.add_scribble, payload, packed)

    async def add_lasso(self, payload: AddMask, packed: PackedArray) -> Answer:
        """Add a lasso. Raises the errors of the request."""
        return await self._add_strokes(self._segment.add_lasso, payload, packed)

    async def add_initial_segmentation(self, payload: AddInitialSegmentation, packed: PackedArray) -> Answer:
        """Start from a mask, which the client writes into its target buffer itself. Raises the request's errors."""
        with self._overwritten_buffer():
            with self._budget.reserve(packed.nbytes):
                given = await self._unpack_mask(packed, Box.whole(self.shape))
            # An empty mask has no box. One unset voxel says the same.
            box = given.box or Box((0, 0, 0), (1, 1, 1))
            flips = given.flips if given.box else np.zeros(box.shape, bool)
            await self._answer(self._segment.set_mask(flips, box=box, run=payload.run_prediction))
            self._unsent = None
            with self._budget.reserve(math.prod(self.shape)):
                self._extend_unsent(await asyncio.to_thread(_difference, self._segment.mask, given))
        self._initial_steps, self._is_initial_newest = self._segment.can_undo, True
        return self._take_answer(payload.run_prediction)

    async def predict(self) -> Answer:
        """Predict from pending prompts."""
        if not self._exists:
            return Answer(False, None)
        steps = self._segment.can_undo
        await self._answer(self._segment.run())
        ran = self._segment.can_undo > steps
        self._is_initial_newest &= not ran
        return self._take_answer(ran)

    async def undo(self) -> Answer:
        """Undo the last step, if there is one."""
        if not self._exists or not self._segment.can_undo:
            return Answer(False, None)
        is_initial = self._segment.can_undo == self._initial_steps
        if is_initial and not self._is_initial_newest:
            return Answer(False, None)
        await self._answer(self._segment.undo())
        if is_initial:
            self._initial_steps = 0  # a later step may take its place, and can be undone
        return self._take_answer(True)

    # ---- answers ------------------------------------------------------------------------------------------

    def reserve_part(self, box: Box) -> Reservation:
        """Reserve the memory of :meth:`part`. Raises TooLarge or OutOfMemory.

        Its packed form is not counted, because runs of equal voxels are small when packed.
        """
        assert self.dtype is not None
        return self._budget.reserve(box.voxels * self.dtype.itemsize)

    def part(self, box: Box) -> npt.NDArray[Any]:
        """Return a part of the mask, in the target buffer's dtype. It may run on any thread."""
        assert self.dtype is not None
        return self._segment.mask[box.slices].astype(self.dtype)

    def not_received(self, answer: Answer) -> None:
        """Note that the client has not received an answer, so that the next one has to repeat it."""
        self._extend_unsent(answer.box)

    def _take_answer(self, ran: bool) -> Answer:
        if not ran or self.dtype is None:
            return Answer(ran, None)
        box, self._unsent = self._unsent, None
        return Answer(ran, box)

    def _on_mask_delta(self, event: MaskDelta) -> None:
        self._extend_unsent(event.box)

    def _extend_unsent(self, box: Box | None) -> None:
        if box is not None:
            self._unsent = box.union(self._unsent)

    @contextmanager
    def _overwritten_buffer(self) -> Iterator[None]:
        """Send the whole mask next if a request fails before which the client overwrites its target buffer."""
        try:
            yield
        except BaseException:
            if self._shape is not None:
                self._unsent = Box.whole(self._shape)
            raise

    # ---- private ------------------------------------------------------------------------------------------

    @property
    def _segment(self) -> AsyncSegment:
        return self.session.segment(SEGMENT)

    @property
    def _exists(self) -> bool:
        return SEGMENT in self.session.segments

    async def _prompt(self, request: Awaitable[object], run: bool) -> Answer:
        self._is_initial_newest = False
        await self._answer(request)
        return self._take_answer(run)

    async def _add_strokes(self, add: _AddStrokes, payload: AddMask, packed: PackedArray) -> Answer:
        pairs = payload.interaction_bbox
        box = Box.whole(self.shape) if pairs is None else box_inside(pairs, self.shape)
        with self._budget.reserve(packed.nbytes):
            strokes = await self._unpack_mask(packed, box)
        if strokes.box is None:
            return Answer(payload.run_prediction, None)  # as nnInteractive's server answers
        request = add(strokes.flips, box=strokes.box, positive=payload.include_interaction, run=payload.run_prediction)
        return await self._prompt(request, payload.run_prediction)

    async def _unpack_mask(self, packed: PackedArray, box: Box) -> Delta:
        """Return the set voxels of a mask of a box's shape. On a thread, because a mask may be as large as an image."""
        if packed.shape != box.shape:
            raise OutOfBounds(
                f"The mask has the shape {packed.shape}. Expected {box.shape}, that of the image or of the box."
            )
        return await asyncio.to_thread(lambda: to_mask(packed.unpack(), box, self.shape))

    @staticmethod
    async def _answer(request: Awaitable[_T]) -> _T:
        """Wait for the server. Raises AnswerTimeout."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await request
        except TimeoutError as e:
            raise AnswerTimeout(
                f"The server has not finished this request in {ANSWER_TIMEOUT_S:.0f} seconds, and cancelled it. The "
                "segment is as before. Try again later."
            ) from e

    def forget_image(self) -> None:
        """Release the image, which the session no longer has."""
        self._shape = self.dtype = self._unsent = None
        self._initial_steps = 0
        if self._image_memory is not None:
            self._image_memory.release()
            self._image_memory = None


def clip_box(pairs: Sequence[tuple[float, float]], shape: Index, prompts: Sequence[str]) -> Box:
    """Round a box to voxels, and clip it to the image, as nnInteractive 2.6 does (``add_bbox_interaction``).

    Along an axis on which nothing is left, it is one voxel thick. ``prompts``: those that the model supports. Raises
    UnsupportedPrompt or OutOfBounds.
    """
    if not all(math.isfinite(edge) for pair in pairs for edge in pair):
        raise OutOfBounds(f"The box {_format(pairs)} is no box of voxels: its ranges must be finite.")
    sizes = [stop - start for start, stop in pairs]
    if "bbox3d" not in prompts and 1 not in sizes:
        raise UnsupportedPrompt(f"The loaded model supports boxes of one slice only, and {_format(pairs)} has more.")
    clipped = []
    for (start, stop), n in zip(pairs, shape, strict=True):
        if stop <= start or stop <= 0 or start >= n:
            raise OutOfBounds(
                f"The box {_format(pairs)} has no voxel of the image of shape {shape}. Expected ranges (start, stop) "
                "in voxels, with start below stop."
            )
        first, end = max(0, round(start)), min(n, round(stop))
        if end <= first:
            first, end = (0, 1) if first == 0 else (first - 1, first)
        clipped.append((first, end))
    return Box.from_pairs(clipped)


def _format(pairs: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{start:g}:{stop:g}" for start, stop in pairs)


def _difference(mask: npt.NDArray[np.bool_], given: Delta) -> Box | None:
    """Return the bounding box of the voxels in which a mask differs from a given one."""
    difference = mask.copy()
    masks.apply(given, difference)
    return bounding_box(difference)


def _larger(one: Reservation, other: Reservation | None) -> Reservation:
    """Keep the larger of two reservations, and release the other."""
    if other is None:
        return one
    smaller, larger = sorted((one, other), key=lambda reservation: reservation.nbytes)
    smaller.release()
    return larger
