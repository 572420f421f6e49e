"""A user's session on the worker: one image, its segments, their prompts and histories.

:meth:`Session.handle` does one request on the session's own thread. Bricks and cancellations come in from
other threads. Everything the client is to see goes into the outbox, in the order in which it happens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
import logging
import threading
import time
from typing import Any, ClassVar

import numpy as np
import torch

from nninteractive_ws import bricks, masks
from nninteractive_ws.engine.device import DeviceThread, Seat
from nninteractive_ws.engine.image import BrickImage
from nninteractive_ws.engine.memory import SessionAccount
from nninteractive_ws.engine.models import LoadedModel
from nninteractive_ws.engine.prompts import apply_prompt, check_prompt
from nninteractive_ws.engine.shown import Shown, occupied, resampled
from nninteractive_ws.engine.teller import Teller
from nninteractive_ws.engine.upstream import UpstreamSession
from nninteractive_ws.errors import (
    AtCapacity,
    BadImage,
    Cancelled,
    NoImage,
    NothingToUndo,
    OutOfMemory,
    UnknownSegment,
    UnsupportedPrompt,
)
from nninteractive_ws.geometry import Box
from nninteractive_ws.history import Segment, make_step
from nninteractive_ws.masks import NO_CHANGE, Delta
from nninteractive_ws.messages import (
    MAX_SEGMENTS,
    MAX_STEPS,
    AddBbox,
    AddLasso,
    AddPoint,
    AddScribble,
    Bits,
    Cancel,
    Done,
    Encoding,
    GetMask,
    ImageBricks,
    ImageProgress,
    Limits,
    Progress,
    Prompt,
    Redo,
    RemoveSegment,
    Request,
    Reset,
    Restore,
    Run,
    SetImage,
    SetMask,
    SetOptions,
    Timings,
    Undo,
)
from nninteractive_ws.processes import return_freed_memory
from nninteractive_ws.protocol import MAX_MESSAGE_BYTES
from nninteractive_ws.server.outbox import Outbox

_log = logging.getLogger(__name__)

LIMITS = Limits(
    message_bytes=MAX_MESSAGE_BYTES,
    image_voxels=bricks.MAX_VOXELS,
    segments=MAX_SEGMENTS,
    steps=MAX_STEPS,
    # 128 bricks are at most 16 MiB on the way: enough to fill 100 Mbit/s at 100 ms several times over, little
    # enough that a prompt's message is never more than a blink behind them.
    unacknowledged_bricks=128,
)

# Requests that create a segment, or add to it.
_GROWING = SetMask | AddPoint | AddBbox | AddScribble | AddLasso | Run | Restore
# Bytes of the result of a growing request, at least.
_RESULT_BYTES = 64 * 1024
# Peak bytes of a run length, while a mask is unpacked, changed and packed again. They come on top of the masks that are
# charged with the image. Measured with tracemalloc: 10 where every other voxel of the image is set, 9 with every
# tenth.
_RUN_BYTES = 12
# A request that needed more than this returns freed memory to the system afterwards.
_MUCH_BYTES = 64 * 1024**2


@dataclass
class _Clock:
    """Where the time of the request in hand goes; seconds."""

    arrived: float
    queued: float = 0.0
    waiting_for_image: float = 0.0
    network: float = 0.0
    passes: int = 0

    def timings(self) -> Timings:
        total = time.monotonic() - self.arrived
        return Timings(
            queued=self.queued,
            waiting_for_image=self.waiting_for_image,
            network=self.network,
            passes=self.passes,
            total=total,
        )


@dataclass
class _Prediction:
    """A prompt being predicted. ``extent``: outside it, the mask was empty before."""

    request: Request
    segment: Segment
    shown: Shown
    extent: Box | None


class Session:
    """See the module. ``encoding`` packs what is sent; what comes in says its own."""

    def __init__(
        self, model: LoadedModel, device: DeviceThread, outbox: Outbox, encoding: Encoding, account: SessionAccount
    ) -> None:
        self._model, self._device, self._outbox, self._account = model, device, outbox, account
        self._encoding = encoding
        self._teller = Teller(outbox, encoding)
        self._upstream = UpstreamSession(model.artifacts, model.device, model.threads, watcher=self)
        self._seat = Seat(self._report_queue)
        self._image: BrickImage | None = None
        self._segments: dict[str, Segment] = {}
        self._selected: Segment | None = None  # whose prompts are in the interaction channels now
        self._unpacked: Segment | None = None  # the only one whose mask may be an array
        #: Whether the running request waits for bricks of the image.
        self.awaits_bricks = False
        self._previews = True
        self._prediction: _Prediction | None = None
        self._request: Request | None = None
        self._clock = _Clock(0.0)
        self._cancelled: set[int] = set()
        self._cancelled_up_to = 0
        self._lock = threading.RLock()

    # ---- from any thread ----------------------------------------------------------------------------------

    def put_bricks(self, message: ImageBricks) -> tuple[int, ImageProgress | None]:
        """Store bricks. Return the number of new ones, and the acknowledgement. Bricks of another image than the
        session's are ignored, and not acknowledged.

        Raises BadMessage, TooLarge or BadImage.
        """
        image = self._image
        if image is None or image.name != message.image:
            return 0, None
        before = image.presence.count
        image.put(message.bricks)
        present = image.presence.count
        return present - before, ImageProgress(
            image=image.name,
            received=[b.index for b in message.bricks],
            present=present,
            total=len(image.grid),
        )

    def cancel(self, message: Cancel, last_id: int) -> None:
        """Cancel one request that has no answer yet, or all up to ``last_id``."""
        with self._lock:
            if message.request is None:
                self._cancelled_up_to = last_id
            else:
                self._cancelled.add(message.request)
            # Under the lock that a next request needs to begin: else its pass might be the one that is dropped.
            if self._is_cancelled():
                self._device.drop(self._seat, Cancelled("The request was cancelled while it waited for its turn."))
        image = self._image
        if image is not None:
            image.wake()

    def state(self) -> tuple[BrickImage | None, dict[str, int]]:
        """The image, and of every segment the revision."""
        return self._image, {name: segment.revision for name, segment in list(self._segments.items())}

    # ---- requests -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of everything, while no request is done."""
        self._forget_segments()
        self._release_image()

    def handle(self, request: Request, arrived: float) -> Done:
        """Do a request that arrived at ``arrived`` (time.monotonic()). Raises the errors of the protocol."""
        with self._lock:
            self._request = request
        self._clock = _Clock(arrived, queued=time.monotonic() - arrived)
        needed = _memory_needed(request)
        try:
            self._check_cancelled()
            if needed:
                self._account.reserve("request", needed)
            return self._HANDLERS[type(request)](self, request)
        except (RuntimeError, MemoryError) as e:
            if not _is_out_of_memory(e):
                raise
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            state = "There is no image now" if self._image is None else "The segment is as it was before"
            raise OutOfMemory(
                f"The server's memory was not enough for this request ({e}). {state}; a smaller image, a crop around "
                "the object for instance, needs less."
            ) from e
        finally:
            self._count_memory(request, freed=needed)
            with self._lock:
                self._request = None
                # Ids grow, so what was cancelled before or at this one is done with.
                self._cancelled = {i for i in self._cancelled if i > request.id}

    def _count_memory(self, request: Request, freed: int) -> None:
        """Charge the memory that is kept after a request, and release the rest. ``freed``: its temporary memory."""
        segment = self._segments.get(getattr(request, "segment", None) or "")
        if segment is not None and segment.is_empty and isinstance(request, SetMask | Prompt):
            self._forget(segment)  # its first request failed
        kept = sum(s.memory for s in self._segments.values())
        before = self._account.kept_bytes
        self._account.charge("segments", kept)
        self._account.charge("request", 0)
        if freed + max(0, before - self._account.kept_bytes) > _MUCH_BYTES:
            return_freed_memory()

    def _set_image(self, request: SetImage) -> Done:
        bricks.check_size(request.shape)
        if not np.isfinite(request.mean) or not np.isfinite(request.std) or np.float32(request.std) == 0:
            raise BadImage("The image's mean and standard deviation must be finite, and the latter above zero.")
        self._forget_segments()
        if self._image is None or not self._image.is_of(request):
            # The old one goes before the next one is allocated: the two may not fit side by side.
            if self._image is not None:
                self._release_image()
                return_freed_memory()
            device = self._account.reserve_image(request.shape, self._upstream.num_interaction_channels)
            try:
                self._image = BrickImage(request, device)
                self._upstream.open_image(self._image)
            except BaseException:
                self._release_image()
                raise
        else:
            self._upstream.open_image(self._image)
        self._announce_bricks()
        return Done(id=request.id, timings=self._clock.timings())

    def _announce_bricks(self) -> None:
        """Tell which bricks need not be sent: those that are there from before."""
        image = self._image_or_raise()
        there = image.presence.indices()
        self._outbox.put(ImageProgress(image=image.name, received=there, present=len(there), total=len(image.grid)))

    def _release_image(self) -> None:
        if self._image is not None:
            self._image = None
            self._upstream.close_image()
        self._account.release_image()

    def _add_prompt(self, request: Prompt) -> Done:
        check_prompt(request, self._image_or_raise().shape, self._model.description.prompts)
        segment = self._segment_for(request.segment)
        self._select(segment)
        return self._predict(segment, request, lambda: apply_prompt(self._upstream, request, request.run))

    def _run(self, request: Run) -> Done:
        segment = self._segment_or_raise(request.segment)
        if not segment.pending():
            return self._done(request, segment, NO_CHANGE)
        self._check_steps(segment)
        self._select(segment)
        return self._predict(segment, request, self._upstream.predict_pending)

    def _set_mask(self, request: SetMask) -> Done:
        image = self._image_or_raise()
        if "mask" not in self._model.description.prompts:
            raise UnsupportedPrompt("The loaded model cannot start from a mask.")
        given = masks.unpack(request.mask, image.shape)
        segment = self._segment_for(request.segment)
        assert given.box is not None
        frame = given.box.union(segment.extent)
        values = segment.mask[frame.slices].copy() if request.flip else np.zeros(frame.shape, bool)
        values[given.box.within(frame).slices] ^= given.flips
        change = masks.diff(segment.mask[frame.slices], values, frame.start)
        if not request.run:
            return self._commit(request, change, segment)
        # Predicted on top of the given mask; history and journal see one step with the change of both.
        masks.apply(change, segment.mask)
        self._selected = None
        try:
            self._upstream.clear()
            self._upstream.write_previous(segment.mask, frame)
            return self._predict(
                segment, request, lambda: self._upstream.predict_whole_mask(segment.mask), given=change
            )
        except BaseException:
            masks.apply(change, segment.mask)
            raise

    def _reset(self, request: Reset) -> Done:
        segment = self._segment_or_raise(request.segment)
        self._check_steps(segment)
        mask = masks.crop(segment.mask, segment.extent)
        # A copy: the change must not be a view of the mask that it is applied to.
        return self._commit(request, NO_CHANGE if mask.box is None else Delta(mask.box, mask.flips.copy()), segment)

    def _undo(self, request: Undo) -> Done:
        segment = self._segment_or_raise(request.segment)
        if not segment.steps:
            raise NothingToUndo(f'Segment "{segment.name}" has no prompt to undo.')
        return self._move_in_history(request, segment, segment.undo())

    def _redo(self, request: Redo) -> Done:
        segment = self._segment_or_raise(request.segment)
        if not segment.undone:
            raise NothingToUndo(f'Segment "{segment.name}" has nothing to redo.')
        return self._move_in_history(request, segment, segment.redo())

    def _move_in_history(self, request: Request, segment: Segment, change: Delta) -> Done:
        self._selected = None if self._selected is segment else self._selected
        masks.apply(change, segment.mask)
        self._teller.change(request.id, segment, change, segment.mask, final=True)
        return self._done(request, segment, change)

    def _restore(self, request: Restore) -> Done:
        shape = self._image_or_raise().shape
        for step in (*request.steps, *request.undone):
            self._check_cancelled()
            if isinstance(step.request, AddPoint | AddBbox | AddScribble | AddLasso):
                check_prompt(step.request, shape, self._model.description.prompts)
            elif isinstance(step.request, SetMask):
                masks.check(step.request.mask, shape)
        self._check_segment_limit(request.segment)
        segment = Segment(
            request.segment, shape, request.revision, steps=list(request.steps), undone=list(request.undone)
        )
        for step in request.steps:
            # A long history takes minutes, so cancellation is checked at each step.
            self._check_cancelled()
            if step.change is not None:
                masks.apply(masks.unpack(step.change, shape), segment.mask)
        for step in request.undone:
            self._check_cancelled()
            if step.change is not None:
                masks.check(step.change, shape)
        segment.voxels = masks.crop(segment.mask, segment.extent).voxels
        if (old := self._segments.get(request.segment)) is not None:
            self._forget(old)
        self._unpack_only(segment)
        self._segments[request.segment] = segment
        return self._done(request, segment, NO_CHANGE)

    def _remove_segment(self, request: RemoveSegment) -> Done:
        segment = self._segment_or_raise(request.segment)
        self._forget(segment)
        return Done(id=request.id, segment=segment.name, timings=self._clock.timings())

    def _get_mask(self, request: GetMask) -> Done:
        segment = self._segment_or_raise(request.segment)
        self._teller.snapshot(request.id, segment)
        return self._done(request, segment, NO_CHANGE)

    def _set_options(self, request: SetOptions) -> Done:
        if request.autozoom is not None:
            self._upstream.set_do_autozoom(request.autozoom)
        if request.previews is not None:
            self._previews = request.previews
        return Done(id=request.id, timings=self._clock.timings())

    _HANDLERS: ClassVar[dict[type, Callable[["Session", Any], Done]]] = {
        SetImage: _set_image,
        SetMask: _set_mask,
        AddPoint: _add_prompt,
        AddBbox: _add_prompt,
        AddScribble: _add_prompt,
        AddLasso: _add_prompt,
        Run: _run,
        Undo: _undo,
        Redo: _redo,
        Reset: _reset,
        Restore: _restore,
        RemoveSegment: _remove_segment,
        GetMask: _get_mask,
        SetOptions: _set_options,
    }

    # ---- segments -----------------------------------------------------------------------------------------

    def _image_or_raise(self) -> BrickImage:
        if self._image is None:
            raise NoImage("There is no image yet: call set_image before the first prompt.")
        return self._image

    def _segment_or_raise(self, name: str) -> Segment:
        self._image_or_raise()
        if name not in self._segments:
            raise UnknownSegment(f'There is no segment "{name}" in this session; a prompt makes one.')
        return self._unpack_only(self._segments[name])

    def _segment_for(self, name: str) -> Segment:
        """The segment of a name, made where it is not there."""
        image = self._image_or_raise()
        if name not in self._segments:
            self._check_segment_limit(name)
            self._segments[name] = Segment.empty(name, image.shape)
        self._check_steps(self._segments[name])
        return self._unpack_only(self._segments[name])

    def _check_segment_limit(self, name: str) -> None:
        if name not in self._segments and len(self._segments) >= LIMITS.segments:
            raise AtCapacity(f"This session has {LIMITS.segments} segments, which is the limit; remove one first.")

    def _check_steps(self, segment: Segment) -> None:
        if len(segment.steps) >= LIMITS.steps:
            raise AtCapacity(
                f'Segment "{segment.name}" has {LIMITS.steps:,} steps, which is the limit. Set its mask in a new '
                "segment, and continue with that one."
            )

    def _unpack_only(self, segment: Segment) -> Segment:
        """Make this segment the only one whose mask is an array. The mask of the previous one is packed."""
        if self._unpacked is not None and self._unpacked is not segment:
            self._unpacked.pack_mask(self._encoding)
        self._unpacked = segment
        return segment

    def _forget(self, segment: Segment) -> None:
        self._segments.pop(segment.name, None)
        if self._selected is segment:
            self._selected = None
        if self._unpacked is segment:
            self._unpacked = None

    def _forget_segments(self) -> None:
        self._segments.clear()
        self._selected = self._unpacked = None

    def _select(self, segment: Segment) -> None:
        """Put the segment's prompts and mask into the interaction channels, as prompting once more would.

        Every prompt is written again without prediction, which repeats the decay and its renormalisation step
        for step; then the mask becomes the previous segmentation, which is what it equals after any prompt.
        """
        if self._selected is segment:
            return
        self._selected = None
        self._upstream.clear()
        for step in segment.active_steps():
            self._check_cancelled()
            if isinstance(step.request, AddPoint | AddBbox | AddScribble | AddLasso):
                apply_prompt(self._upstream, step.request, run=False)
            if step.predicted:
                self._upstream.clear_pending()
        self._upstream.write_previous(segment.mask, segment.extent)
        self._selected = segment

    # ---- prediction ---------------------------------------------------------------------------------------

    def _predict(
        self, segment: Segment, request: Prompt | Run | SetMask, work: Callable[[], None], given: Delta = NO_CHANGE
    ) -> Done:
        """Do ``work``, which may call back below; then the segment has one more step, or is as it was.

        ``given``: a change of the mask that is part of the step and has been made, but not been sent.
        """
        shown = Shown(segment.mask)
        extent = segment.extent if given.box is None else given.box.union(segment.extent)
        self._prediction = _Prediction(request, segment, shown, extent)
        try:
            if given.box is not None:
                self._teller.change(request.id, segment, given, segment.mask, final=False)
            self._emit_progress("predicting")
            work()
            final = shown.final()
            change = masks.compose(shown.overlay, final)
            # Packed before the mask changes, since memory may run out: as a step, and to be sent.
            made = masks.compose(given, final)
            step = make_step(request, made, self._encoding)
            if change.box is not None:
                masks.pack(change, self._encoding)
        except BaseException:
            self._selected = None
            change = masks.compose(shown.back(), given)
            if change.box is not None:
                before = segment.mask.copy() if given.box is not None else segment.mask
                masks.apply(given, before)
                self._teller.change(request.id, segment, change, before, final=True)
            raise
        finally:
            self._prediction = None
        masks.apply(final, segment.mask)
        self._teller.change(request.id, segment, change, segment.mask, final=True)
        self._selected = segment
        segment.append(step)
        return self._done(request, segment, made)

    def _commit(self, request: SetMask | Reset, change: Delta, segment: Segment) -> Done:
        """Make a step that needs no prediction."""
        self._selected = None if self._selected is segment else self._selected
        step = make_step(request, change, self._encoding)
        masks.apply(change, segment.mask)
        self._teller.change(request.id, segment, change, segment.mask, final=True)
        segment.append(step)
        return self._done(request, segment, change)

    # ---- called back by upstream's session (see upstream.Watcher) -----------------------------------------

    def need(self, box: Box, refinements: int) -> None:
        image = self._image_or_raise()
        clipped = box.clip(image.shape)
        if clipped is None:
            return

        def report(present: int, needed: int) -> None:
            self.awaits_bricks = True
            self._emit_progress("waiting_for_image", present, needed, clipped)

        try:
            waited = image.wait_for(clipped, self._is_cancelled, report)
        finally:
            self.awaits_bricks = False
        if waited:
            self._clock.waiting_for_image += waited
            self._emit_progress("refining" if refinements else "predicting", 0, refinements)

    def run_pass(self, inputs: torch.Tensor, refines: bool) -> torch.Tensor:
        self._check_cancelled()
        submitted = time.monotonic()
        network = self._model.artifacts["network"]
        cuda = self._model.device.type == "cuda"

        def work() -> tuple[torch.Tensor, float, float]:
            # Both modes are thread-local: the device thread has to enter them as upstream's caller did.
            started = time.monotonic()
            with torch.inference_mode(), torch.autocast(self._model.device.type, enabled=cuda):
                logits: torch.Tensor = network(inputs)
            if cuda:
                torch.cuda.synchronize(self._model.device)
            return logits, started, time.monotonic()

        logits, started, ended = self._device.run(self._seat, work, refines=refines)
        self._clock.queued += started - submitted
        self._clock.network += ended - started
        self._clock.passes += 1
        self._check_cancelled()
        return logits

    def coarse(self, prediction: torch.Tensor, box: Box) -> None:
        inside = box.clip(self._image_or_raise().shape)
        if self._prediction is None or not self._previews or inside is None:
            return
        answer = prediction.cpu().numpy() != 0
        before = self._prediction.extent.intersection(inside) if self._prediction.extent is not None else None
        said = occupied(answer, box, inside)
        looked = before if said is None else said.union(before)
        shown = self._prediction.shown
        self._preview(shown.back() if looked is None else shown.replace(looked, resampled(answer, box, looked)))

    def refined(self, prediction: torch.Tensor, box: Box, n: int, of: int) -> None:
        self._emit_progress("refining", n, of)
        inside = box.clip(self._image_or_raise().shape)
        if self._prediction is None or not self._previews or inside is None:
            return
        values = prediction.cpu().numpy()[inside.within(box).slices]
        self._preview(self._prediction.shown.patch(inside, values))

    def result(self, prediction: torch.Tensor, box: Box) -> None:
        inside = box.clip(self._image_or_raise().shape)
        assert self._prediction is not None
        if inside is not None:
            values = prediction[inside.within(box).slices].cpu().numpy() > 0.5
            self._prediction.shown.add_result(inside, values)

    def _preview(self, change: Delta) -> None:
        assert self._prediction is not None
        if change.box is not None:
            p = self._prediction
            self._teller.change(p.request.id, p.segment, change, p.shown, final=False)

    # ---- to the client ------------------------------------------------------------------------------------

    def _done(self, request: Request, segment: Segment, change: Delta) -> Done:
        return Done(
            id=request.id,
            segment=segment.name,
            revision=segment.revision,
            changed=None if change.box is None else change.box.pairs,
            voxels=segment.voxels,
            timings=self._clock.timings(),
        )

    def _emit_progress(self, state: Any, n: int = 0, m: int = 0, box: Box | None = None) -> None:
        if self._request is not None:
            pairs = None if box is None else box.pairs
            self._outbox.put(Progress(id=self._request.id, state=state, n=n, m=m, box=pairs))

    def _report_queue(self, ahead: int) -> None:
        self._emit_progress("queued" if ahead else "predicting", ahead)

    # ---- cancellation -------------------------------------------------------------------------------------

    def _is_cancelled(self) -> bool:
        with self._lock:
            request = self._request
            return request is not None and (request.id <= self._cancelled_up_to or request.id in self._cancelled)

    def _check_cancelled(self) -> None:
        if self._is_cancelled():
            raise Cancelled("The request was cancelled; the segment is as it was before.")


def _is_out_of_memory(error: Exception) -> bool:
    # For the machine's memory, torch has but a sentence; for a GPU's it has a class of RuntimeError.
    sentences = ("can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in sentences)


def _memory_needed(request: Request) -> int:
    """Bytes of temporary memory of a request, beyond the masks that are charged with the image."""
    if not isinstance(request, _GROWING):
        return 0
    if isinstance(request, Restore):
        steps = (*request.steps, *request.undone)
        each = (_memory_of_runs((step.change, getattr(step.request, "mask", None))) for step in steps)
        return _RESULT_BYTES + max(each, default=0)
    return _RESULT_BYTES + _memory_of_runs((getattr(request, "mask", None),))


def _memory_of_runs(parts: Iterable[Bits | None]) -> int:
    return sum(_RUN_BYTES * bits.runs for bits in parts if bits is not None)
