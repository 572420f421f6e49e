"""A running prompt. The network's predictions, pass by pass, become previews and then a step of the segment."""

from collections.abc import Callable
import time

import torch

from nninteractive_ws import masks
from nninteractive_ws.engine.device_scheduler import DeviceScheduler, SchedulerSlot
from nninteractive_ws.engine.image import BrickImage
from nninteractive_ws.engine.mask_updates import MaskUpdateSender
from nninteractive_ws.engine.model_loader import LoadedModel
from nninteractive_ws.engine.preview import MaskPreview, nonempty_region, resample_nearest
from nninteractive_ws.engine.running_request import RunningRequest
from nninteractive_ws.geometry import Box
from nninteractive_ws.history import Segment, make_step
from nninteractive_ws.masks import NO_CHANGE, Delta
from nninteractive_ws.messages import Prompt, Run, SetMask, Step

#: A preview from base layers takes a pass, during which the other bricks arrive. If a pass takes longer than this, the
#: result would often have to wait for it.
_MAX_ESTIMATE_S = 1.0


class PassRunner:
    """The forward passes of one session, on the device thread."""

    def __init__(self, model: LoadedModel, device: DeviceScheduler, slot: SchedulerSlot) -> None:
        self._model, self._device, self._slot = model, device, slot

    @property
    def last_s(self) -> float:
        """Seconds of the last pass of any session; 0 before the first one."""
        return self._device.last_pass_s

    def run(self, inputs: torch.Tensor, refines: bool) -> tuple[torch.Tensor, float, float]:
        """Run the network. Return the logits, and the times of its start and end (time.monotonic())."""
        network = self._model.artifacts["network"]
        logits, started, ended = self._device.run(self._slot, lambda: self._pass(network, inputs), refines=refines)
        self._device.last_pass_s = ended - started
        return logits, started, ended

    def _pass(self, network: torch.nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, float, float]:
        device, is_cuda = self._model.device, self._model.device.type == "cuda"
        started = time.monotonic()
        # Both modes are thread-local, so the device thread has to enter them, as upstream does in its own thread.
        with torch.inference_mode(), torch.autocast(device.type, enabled=is_cuda):
            logits: torch.Tensor = network(inputs)
        if is_cuda:
            torch.cuda.synchronize(device)
        return logits, started, time.monotonic()


class Prediction:
    """A prompt while it is predicted, with the inference hooks that :class:`~upstream.UpstreamSession` calls.

    ``prior``: a change of the mask that is part of the step. It has been applied, but not sent. ``previews``: whether
    to send masks before the result.
    """

    def __init__(
        self,
        request: RunningRequest,
        segment: Segment,
        image: BrickImage,
        passes: PassRunner,
        updates: MaskUpdateSender,
        previews: bool,
        prior: Delta = NO_CHANGE,
    ) -> None:
        self._request, self._segment, self._image = request, segment, image
        self._passes, self._updates, self._previews, self._prior = passes, updates, previews, prior
        self._preview = MaskPreview(segment.mask)
        # Outside of this box the mask was empty before the prediction.
        self._extent = segment.extent if prior.box is None else prior.box.union(segment.extent)

    def run(self, request: Prompt | Run | SetMask, predict: Callable[[], None]) -> tuple[Step, Delta]:
        """Call ``predict``, which calls the hooks, and apply the result to the segment's mask.

        Return the step for the segment's history, and its change. If it raises, the client's mask has been reverted to
        the state before ``prior``, and the caller has to apply ``prior`` again to revert the segment's mask.
        """
        segment, updates = self._segment, self._updates
        try:
            if self._prior.box is not None:
                updates.send_change(request.id, segment, self._prior, segment.mask, final=False)
            self._request.report("predicting")
            predict()
            final = self._preview.final()
            unsent = masks.compose(self._preview.overlay, final)
            change = masks.compose(self._prior, final)
            # Step and message are packed before the mask changes, because memory may run out.
            step = make_step(request, change, updates.encoding)
            if unsent.box is not None:
                masks.pack(unsent, updates.encoding)
        except BaseException:
            self._revert()
            raise
        segment.apply(final)
        updates.send_change(request.id, segment, unsent, segment.mask, final=True)
        return step, change

    def _revert(self) -> None:
        """Send the change that reverts the client's mask to the state before the prompt."""
        change = masks.compose(self._preview.revert(), self._prior)
        if change.box is None:
            return
        before = self._segment.mask
        if self._prior.box is not None:
            before = before.copy()
            masks.apply(self._prior, before)
        self._updates.send_change(self._request.id, self._segment, change, before, final=True)

    # ---- hooks --------------------------------------------------------------------------------------------

    def wait_for_estimate(self, box: Box) -> bool:
        if not self._previews or self._passes.last_s > _MAX_ESTIMATE_S:
            return False
        self._wait_for_bricks(box, refinements=0, estimates=True)
        inside = box.clip(self._image.shape)
        return inside is not None and not self._image.is_present(inside)

    def wait_for_image(self, box: Box, refinements: int) -> None:
        self._wait_for_bricks(box, refinements, estimates=False)

    def _wait_for_bricks(self, box: Box, refinements: int, estimates: bool) -> None:
        clipped = box.clip(self._image.shape)
        if clipped is None:
            return

        def report(present: int, needed: int) -> None:
            self._request.awaits_bricks = True
            self._request.report("waiting_for_image", present, needed, clipped, base_layers_suffice=estimates)

        try:
            waited = self._image.wait_for(clipped, self._request.is_cancelled, report, estimates=estimates)
        finally:
            self._request.awaits_bricks = False
        if waited:
            self._request.waiting_for_image += waited
            self._request.report("refining" if refinements else "predicting", 0, refinements)

    def run_pass(self, inputs: torch.Tensor, refines: bool) -> torch.Tensor:
        self._request.check_cancelled()
        submitted = time.monotonic()
        logits, started, ended = self._passes.run(inputs, refines)
        self._request.queued += started - submitted
        self._request.network += ended - started
        self._request.passes += 1
        self._request.check_cancelled()
        return logits

    def on_coarse(self, prediction: torch.Tensor, box: Box) -> None:
        inside = box.clip(self._image.shape)
        if not self._previews or inside is None:
            return
        # Compared on the device, because the labels are int64, eight times the bytes of the mask.
        mask = (prediction != 0).cpu().numpy()
        before = None if self._extent is None else self._extent.intersection(inside)
        nonempty = nonempty_region(mask, box, inside)
        region = before if nonempty is None else nonempty.union(before)
        if region is None:
            self._send_preview(self._preview.revert())
        else:
            self._send_preview(self._preview.replace(region, resample_nearest(mask, box, region)))

    def on_refined(self, prediction: torch.Tensor, box: Box, done: int, total: int) -> None:
        self._request.report("refining", done, total)
        inside = box.clip(self._image.shape)
        if self._previews and inside is not None:
            values = prediction.cpu().numpy()[inside.relative_to(box).slices]
            self._send_preview(self._preview.patch(inside, values))

    def on_result(self, prediction: torch.Tensor, box: Box) -> None:
        inside = box.clip(self._image.shape)
        if inside is not None:
            values = (prediction[inside.relative_to(box).slices] > 0.5).cpu().numpy()
            self._preview.add_result(inside, values)

    def _send_preview(self, change: Delta) -> None:
        if change.box is not None:
            self._updates.send_change(self._request.id, self._segment, change, self._preview, final=False)
