"""A user's session on the worker: one image, its segments, their prompts and histories.

This is the server's side of a session. The client's side is in ``nninteractive_ws/client``.

:meth:`Session.handle` handles one request on the session's own thread. Bricks and cancellations arrive on other
threads. All messages to the client go into the outbox, in the order of the events.
"""

from collections.abc import Callable, Iterable
import logging
import threading
import traceback
from typing import Any, ClassVar

import numpy as np
import torch

from nninteractive_ws import bricks, masks
from nninteractive_ws.engine.device_scheduler import DeviceScheduler, SchedulerSlot
from nninteractive_ws.engine.image import BrickImage
from nninteractive_ws.engine.mask_updates import MaskUpdateSender
from nninteractive_ws.engine.memory import SessionAccount
from nninteractive_ws.engine.model_loader import LoadedModel
from nninteractive_ws.engine.outbox import Outbox
from nninteractive_ws.engine.prediction import PassRunner, Prediction
from nninteractive_ws.engine.prompts import apply_prompt, check_prompt
from nninteractive_ws.engine.running_request import RunningRequest
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
from nninteractive_ws.history import Segment, make_step
from nninteractive_ws.masks import NO_CHANGE, Delta
from nninteractive_ws.messages import (
    MAX_SEGMENTS,
    MAX_STEPS,
    AddBbox,
    AddLasso,
    AddPoint,
    AddScribble,
    Cancel,
    Done,
    Encoding,
    GetMask,
    ImageBricks,
    ImageProgress,
    Limits,
    Prompt,
    Redo,
    RemoveSegment,
    Request,
    Reset,
    Restore,
    Run,
    RunLengthMask,
    SetImage,
    SetMask,
    SetOptions,
    Timings,
    Undo,
)
from nninteractive_ws.processes import return_freed_memory
from nninteractive_ws.protocol import MAX_MESSAGE_BYTES

_log = logging.getLogger(__name__)

LIMITS = Limits(
    message_bytes=MAX_MESSAGE_BYTES,
    image_voxels=bricks.MAX_VOXELS,
    segments=MAX_SEGMENTS,
    steps=MAX_STEPS,
    # 128 bricks are at most 16 MiB in flight. That is several times the bandwidth-delay product of 100 Mbit/s at 100
    # ms, and little enough that a prompt's message behind them is hardly delayed.
    unacknowledged_bricks=128,
)

# Requests that create a segment, or extend its history.
_STEP_REQUESTS = SetMask | AddPoint | AddBbox | AddScribble | AddLasso | Run | Restore
# Minimum of bytes to reserve for the result of a request that extends a history.
_RESULT_BYTES = 64 * 1024
# Peak bytes per run length while a mask is unpacked, changed and packed again, in addition to the masks that are
# charged with the image. Measured with tracemalloc: 10 if every other voxel of the image is set, 9 if every tenth is.
_RUN_BYTES = 12
# Parts of the messages of torch if memory runs out.
_OUT_OF_MEMORY_MESSAGES = (
    # torch itself, on the host.
    "can't allocate memory",
    "not enough memory",
    # The CUDA driver and runtime, HIP, and MPS.
    "out of memory",
    # cuBLAS and cuDNN 8: CUBLAS_STATUS_ALLOC_FAILED; cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    # torch tries every plan of a convolution, and ends with this message even if each has failed for lack of memory. A
    # GPU that has no plan for the network fails when the model is loaded and warmed up.
    "unable to find an engine to execute this computation",
)
# After a request that used more bytes than this, freed memory is returned to the system.
_TRIM_THRESHOLD_BYTES = 64 * 1024**2


class Session:
    """One session: image, segments, options, and the running request.

    ``encoding``: for arrays that are sent. Received arrays name their own encoding.
    """

    def __init__(
        self, model: LoadedModel, device: DeviceScheduler, outbox: Outbox, encoding: Encoding, account: SessionAccount
    ) -> None:
        self._model, self._device, self._outbox, self._account = model, device, outbox, account
        self._encoding = encoding
        self._updates = MaskUpdateSender(outbox, encoding)
        self._upstream = UpstreamSession(model.artifacts, model.device, model.threads)
        self._slot = SchedulerSlot(self._report_queue)
        self._passes = PassRunner(model, device, self._slot)
        self._image: BrickImage | None = None
        self._segments: dict[str, Segment] = {}
        self._selected: Segment | None = None  # the segment whose prompts are in the interaction channels
        self._unpacked: Segment | None = None  # the only one whose mask may be an array
        self._previews = True
        self._running: RunningRequest | None = None
        self._cancelled: set[int] = set()
        self._cancelled_up_to = 0
        self._lock = threading.RLock()

    # ---- from any thread ----------------------------------------------------------------------------------

    def put_bricks(self, message: ImageBricks) -> tuple[int, ImageProgress | None]:
        """Store bricks. Return the number of new ones or new layers, and the acknowledgement.

        Bricks of another image than the session's are ignored, and not acknowledged. Raises BadMessage, TooLarge or
        BadImage.
        """
        image = self._image
        if image is None or image.name != message.image:
            return 0, None
        try:
            new = image.put(message.bricks)
        finally:
            if image is self._image:
                self._account.charge("base layers", image.base_layer_bytes)
        received: list[int] = []
        base: list[int] = []
        for brick in message.bricks:
            (received if brick.index in image.presence else base).append(brick.index)
        return new, ImageProgress(
            image=image.name,
            received=received,
            received_base=base,
            present=image.presence.count,
            total=len(image.grid),
        )

    def forget_base_layers(self, announced: SetImage | None = None) -> None:
        """Drop the base layers of the image. The client does not know which have arrived, and sends the bricks anew.

        ``announced``: an announcement that was received; if it is not of this image, nothing is dropped. Layers that
        arrive after it are kept, even if the request has to wait.
        """
        image = self._image
        if image is not None and (announced is None or image.matches(announced)):
            image.forget_base_layers()
            self._account.charge("base layers", 0)

    def cancel(self, message: Cancel, last_id: int) -> None:
        """Cancel one request that has no answer yet, or all up to ``last_id``."""
        with self._lock:
            if message.request is None:
                self._cancelled_up_to = last_id
            else:
                self._cancelled.add(message.request)
            # The next request needs the same lock to begin. Without it, that request's pass might be dropped.
            if self._is_cancelled():
                self._device.drop(self._slot, Cancelled("The request was cancelled. The segment is unchanged."))
        image = self._image
        if image is not None:
            image.wake()

    @property
    def awaits_bricks(self) -> bool:
        """Whether the running request waits for bricks of the image."""
        running = self._running
        return running is not None and running.awaits_bricks

    def state(self) -> tuple[BrickImage | None, dict[str, int]]:
        """Return the image, and the revision of every segment."""
        return self._image, {name: segment.revision for name, segment in list(self._segments.items())}

    # ---- requests -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release image and segments. No request must be running."""
        self._forget_segments()
        self._release_image()

    def handle(self, request: Request, arrived: float) -> Done:
        """Handle a request that arrived at ``arrived`` (time.monotonic()). Raises the errors of the protocol."""
        with self._lock:
            self._running = RunningRequest(request, arrived, self._outbox, self._is_cancelled)
        needed = _memory_needed(request)
        try:
            self._check_cancelled()
            if needed:
                self._account.reserve("request", needed)
            return self._HANDLERS[type(request)](self, request)
        except (RuntimeError, MemoryError) as e:
            if not _is_out_of_memory(e):
                raise
            # The traceback holds the tensors of the failed pass. They are freed only when nothing refers to them.
            traceback.clear_frames(e.__traceback__)
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            state = "There is no image now" if self._image is None else "The segment is unchanged"
            raise OutOfMemory(
                f"The server's memory was not enough for this request ({e}). {state}. Use a smaller image, for "
                "instance a crop around the object."
            ) from e
        finally:
            self._count_memory(request, freed=needed)
            with self._lock:
                self._running = None
                # Ids increase, so cancellations up to this one are no longer needed.
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
        if freed + max(0, before - self._account.kept_bytes) > _TRIM_THRESHOLD_BYTES:
            return_freed_memory()

    def _set_image(self, request: SetImage) -> Done:
        bricks.check_size(request.shape)
        if not np.isfinite(request.mean) or not np.isfinite(request.std) or np.float32(request.std) == 0:
            raise BadImage(
                "The image's mean and standard deviation must be finite, and the standard deviation greater than zero."
            )
        self._forget_segments()
        if self._image is None or not self._image.matches(request):
            # The old image is released before the new one is allocated, because both may not fit.
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
        return Done(id=request.id, timings=self._timings())

    def _announce_bricks(self) -> None:
        """Acknowledge the bricks that are present from before, and need not be sent."""
        image = self._image_or_raise()
        present = image.presence.indices()
        self._outbox.put(ImageProgress(image=image.name, received=present, present=len(present), total=len(image.grid)))

    def _release_image(self) -> None:
        if self._image is not None:
            self._image = None
            self._upstream.close_image()
        self._account.release_image()

    def _add_prompt(self, request: Prompt) -> Done:
        check_prompt(request, self._image_or_raise().shape, self._model.description.prompts)
        segment = self._segment_for(request.segment)
        self._load_prompts(segment)
        return self._predict(segment, request, lambda: apply_prompt(self._upstream, request, request.run))

    def _run(self, request: Run) -> Done:
        segment = self._segment_or_raise(request.segment)
        if not segment.pending():
            return self._done(request, segment, NO_CHANGE)
        self._check_steps(segment)
        self._load_prompts(segment)
        return self._predict(segment, request, self._upstream.predict_pending)

    def _set_mask(self, request: SetMask) -> Done:
        image = self._image_or_raise()
        if "mask" not in self._model.description.prompts:
            supported = ", ".join(self._model.description.prompts)
            raise UnsupportedPrompt(f"The loaded model cannot start from a mask. Use one of {supported}.")
        mask = masks.unpack(request.mask, image.shape)
        segment = self._segment_for(request.segment)
        assert mask.box is not None
        frame = mask.box.union(segment.extent)
        values = segment.mask[frame.slices].copy() if request.flip else np.zeros(frame.shape, bool)
        values[mask.box.relative_to(frame).slices] ^= mask.flips
        change = masks.diff(segment.mask[frame.slices], values, frame.start)
        if not request.run:
            return self._commit(request, change, segment)
        # The prediction starts from the new mask. History and journal get one step with the change of both.
        segment.apply(change)
        self._selected = None
        try:
            self._upstream.clear()
            self._upstream.write_previous(segment.mask, frame)
            return self._predict(
                segment, request, lambda: self._upstream.predict_whole_mask(segment.writable_mask), prior=change
            )
        except BaseException:
            segment.apply(change)
            raise

    def _reset(self, request: Reset) -> Done:
        segment = self._segment_or_raise(request.segment)
        self._check_steps(segment)
        mask = masks.crop(segment.mask, segment.extent)
        # A copy, because the change must not be a view of the mask that it is applied to.
        return self._commit(request, NO_CHANGE if mask.box is None else Delta(mask.box, mask.flips.copy()), segment)

    def _undo(self, request: Undo) -> Done:
        segment = self._segment_or_raise(request.segment)
        if not segment.steps:
            raise NothingToUndo(f'Segment "{segment.name}" has no step to undo.')
        return self._move_in_history(request, segment, segment.undo())

    def _redo(self, request: Redo) -> Done:
        segment = self._segment_or_raise(request.segment)
        if not segment.undone:
            raise NothingToUndo(f'Segment "{segment.name}" has no step to redo.')
        return self._move_in_history(request, segment, segment.redo())

    def _move_in_history(self, request: Request, segment: Segment, change: Delta) -> Done:
        self._selected = None if self._selected is segment else self._selected
        segment.apply(change)
        self._updates.send_change(request.id, segment, change, segment.mask, final=True)
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
                segment.apply(masks.unpack(step.change, shape))
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
        return Done(id=request.id, segment=segment.name, timings=self._timings())

    def _get_mask(self, request: GetMask) -> Done:
        segment = self._segment_or_raise(request.segment)
        self._updates.send_snapshot(request.id, segment)
        return self._done(request, segment, NO_CHANGE)

    def _set_options(self, request: SetOptions) -> Done:
        if request.autozoom is not None:
            self._upstream.set_do_autozoom(request.autozoom)
        if request.previews is not None:
            self._previews = request.previews
        return Done(id=request.id, timings=self._timings())

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
            raise NoImage("There is no image. Call set_image before the first prompt.")
        return self._image

    def _segment_or_raise(self, name: str) -> Segment:
        self._image_or_raise()
        if name not in self._segments:
            raise UnknownSegment(f'There is no segment "{name}" in this session. Create it with a prompt.')
        return self._unpack_only(self._segments[name])

    def _segment_for(self, name: str) -> Segment:
        """Return the segment of a name. Create it if there is none."""
        image = self._image_or_raise()
        if name not in self._segments:
            self._check_segment_limit(name)
            self._segments[name] = Segment.empty(name, image.shape)
        self._check_steps(self._segments[name])
        return self._unpack_only(self._segments[name])

    def _check_segment_limit(self, name: str) -> None:
        if name not in self._segments and len(self._segments) >= LIMITS.segments:
            raise AtCapacity(f"This session has {LIMITS.segments} segments, which is the limit. Remove one first.")

    def _check_steps(self, segment: Segment) -> None:
        if len(segment.steps) >= LIMITS.steps:
            raise AtCapacity(
                f'Segment "{segment.name}" has {LIMITS.steps:,} steps, which is the limit. Set its mask in a new '
                "segment, and continue with that one."
            )

    def _unpack_only(self, segment: Segment) -> Segment:
        """Make this segment the only one whose mask is an array. Pack the mask of the previous one."""
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

    def _load_prompts(self, segment: Segment) -> None:
        """Put the segment's prompts and mask into the interaction channels, in the state after its last prompt.

        Every prompt is written again without prediction, which repeats the decay and its renormalization step by step.
        Then the mask becomes the previous segmentation, as after any prompt.
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
        self, segment: Segment, request: Prompt | Run | SetMask, predict: Callable[[], None], prior: Delta = NO_CHANGE
    ) -> Done:
        """Run a prediction and append its step. The segment is unchanged if it fails. ``prior``: see Prediction."""
        running, image = self._running_or_raise(), self._image_or_raise()
        prediction = Prediction(running, segment, image, self._passes, self._updates, self._previews, prior)
        self._upstream.hooks = prediction
        self._selected = None
        try:
            step, change = prediction.run(request, predict)
        finally:
            self._upstream.hooks = None
        self._selected = segment
        segment.append(step)
        return self._done(request, segment, change)

    def _commit(self, request: SetMask | Reset, change: Delta, segment: Segment) -> Done:
        """Apply a change without a prediction, and append its step."""
        self._selected = None if self._selected is segment else self._selected
        step = make_step(request, change, self._encoding)
        segment.apply(change)
        self._updates.send_change(request.id, segment, change, segment.mask, final=True)
        segment.append(step)
        return self._done(request, segment, change)

    # ---- to the client ------------------------------------------------------------------------------------

    def _done(self, request: Request, segment: Segment, change: Delta) -> Done:
        return Done(
            id=request.id,
            segment=segment.name,
            revision=segment.revision,
            changed=None if change.box is None else change.box.pairs,
            voxels=segment.voxels,
            timings=self._timings(),
        )

    def _timings(self) -> Timings:
        return self._running_or_raise().timings()

    def _report_queue(self, ahead: int) -> None:
        running = self._running
        if running is not None:
            running.report_queue(ahead)

    # ---- cancellation -------------------------------------------------------------------------------------

    def _is_cancelled(self) -> bool:
        with self._lock:
            running = self._running
            return running is not None and (running.id <= self._cancelled_up_to or running.id in self._cancelled)

    def _check_cancelled(self) -> None:
        self._running_or_raise().check_cancelled()

    def _running_or_raise(self) -> RunningRequest:
        assert self._running is not None, "only handlers of requests may call this"
        return self._running


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the host or on the device.

    torch has an exception class for its own allocations on a GPU. For others, it raises RuntimeError.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        s in str(error) for s in _OUT_OF_MEMORY_MESSAGES
    )


def _memory_needed(request: Request) -> int:
    """Return the bytes of temporary memory of a request, beyond the masks that are charged with the image."""
    if not isinstance(request, _STEP_REQUESTS):
        return 0
    if isinstance(request, Restore):
        steps = (*request.steps, *request.undone)
        per_step = (_memory_of_runs((step.change, getattr(step.request, "mask", None))) for step in steps)
        return _RESULT_BYTES + max(per_step, default=0)
    return _RESULT_BYTES + _memory_of_runs((getattr(request, "mask", None),))


def _memory_of_runs(run_length_masks: Iterable[RunLengthMask | None]) -> int:
    return sum(_RUN_BYTES * mask.runs for mask in run_length_masks if mask is not None)
