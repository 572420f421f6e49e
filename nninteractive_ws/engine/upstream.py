"""A subclass of nnInteractive's session that waits for bricks, and calls hooks at every pass.

Upstream's code decides the effect of a prompt. The subclass overrides private methods of nnInteractive 2.6.
``tests/engine/test_upstream_contract.py`` tests each of them, so that an incompatible release fails there and not in a
user's mask.
"""

from collections.abc import Sequence
import logging
import threading
from typing import Any, Protocol

from nnInteractive.interaction.point import PointInteraction_stub
from nnInteractive.utils.rounding import round_to_nearest_odd
import numpy as np
import torch
from torch.nn.functional import interpolate

from nninteractive_ws.engine.image import BrickImage, zeros
from nninteractive_ws.engine.inference_session import inference_session, nnInteractiveInferenceSession
from nninteractive_ws.engine.zoom_out import ResampleGrid, zoomed_interactions
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Mask

_log = logging.getLogger(__name__)

# Upstream prints to standard output. A global of its module shadows the builtin and logs instead.
inference_session.print = lambda *parts: _log.debug("%s", " ".join(map(str, parts)))

# Upstream's fallback plan is drawn from numpy's global generator. Under the lock, each plan starts from the same seed.
_PLAN_LOCK = threading.Lock()

# Limit of written boxes. Beyond it, those of a channel are merged into one bounding box. Otherwise a day of clicks
# would take megabytes that no session is charged for.
_MAX_WRITTEN = 1024


class InferenceHooks(Protocol):
    """Hooks of a running prompt, implemented by :class:`~nninteractive_ws.engine.prediction.Prediction`."""

    def wait_for_estimate(self, box: Box) -> bool:
        """Wait until at least the base layers of the image are present in ``box``, or raise Cancelled.

        Return whether to predict a preview from them, because the image is not exact yet.
        """

    def wait_for_image(self, box: Box, refinements: int) -> None:
        """Wait until the image is present in ``box``, or raise Cancelled.

        ``refinements``: the number of refinement passes to follow; 0: a first or zoomed-out pass over ``box``.
        """

    def run_pass(self, inputs: torch.Tensor, refines: bool) -> torch.Tensor:
        """Run the network, or raise Cancelled."""

    def on_coarse(self, prediction: torch.Tensor, box: Box) -> None:
        """Take a first or zoomed-out prediction: bool or integer, of patch size, for the voxels of ``box``."""

    def on_refined(self, prediction: torch.Tensor, box: Box, done: int, total: int) -> None:
        """Take a refinement prediction: bool, of the shape of ``box``. ``done``: its number, from 1 to ``total``."""

    def on_result(self, prediction: torch.Tensor, box: Box) -> None:
        """Take a part of the final prediction, of the shape of ``box``. Later parts overwrite earlier ones."""


class UpstreamSession(nnInteractiveInferenceSession):  # type: ignore[misc]
    """Upstream's session, with the interaction channels of one image. Boxes may extend beyond the image."""

    def __init__(self, artifacts: dict[str, Any], device: torch.device, threads: int) -> None:
        super().__init__(device=device, torch_n_threads=threads, enable_undo=False)
        #: Hooks of the running prompt.
        self.hooks: InferenceHooks | None = None
        self._refining: list[Box] = []
        self._refined = 0
        self._written: set[tuple[int, Box]] = set()
        self._image_device = torch.device("cpu")
        self._point_radius = artifacts["point_interaction"].point_radius
        self.initialize_from_loaded_artifacts({**artifacts, "network": self._run_network})

    # ---- the image ----------------------------------------------------------------------------------------

    def close_image(self) -> None:
        """Release the image and its interaction channels."""
        self._reset_session()
        self.clear_pending()
        self._written.clear()

    def open_image(self, image: BrickImage) -> None:
        """Set an image, whose bricks may still be missing, and clear all prompts."""
        self.close_image()
        self._image_device = image.voxels.device
        on_device = self._image_device.type != "cpu"
        self.interactions_storage = "tensor" if on_device else "auto"
        self.point_interaction = (_PointOnDevice if on_device else PointInteraction_stub)(self._point_radius, True)
        self.preprocessed_image = image.voxels
        self.original_image_shape = (1, *image.shape)
        self._initialize_interactions(image.voxels)

    @property
    def image_shape(self) -> Index:
        i, j, k = self.original_image_shape[1:]
        return i, j, k

    def _new_interactions_array(self, shape: Sequence[int], compression_nthreads: int) -> Any:
        if self._interactions_storage_resolved == "tensor":
            return zeros(tuple(shape), torch.float16, self._image_device)
        return super()._new_interactions_array(shape, compression_nthreads)

    def _interactions_inplace_maximum(self, channel_idx: int, int_slicer: Any, new_values: Any) -> None:
        if self._image_device.type != "cpu":
            new_values = torch.as_tensor(new_values).to(self._image_device)
        super()._interactions_inplace_maximum(channel_idx, int_slicer, new_values)

    def _compute_prev_seg_positive_bbox(self) -> Any:
        if self._image_device.type == "cpu":
            return super()._compute_prev_seg_positive_bbox()
        return self._nonzero_spatial_bbox((self.interactions[self._get_prev_seg_channel()] > 0.5)[None])

    # ---- prompts without prediction -----------------------------------------------------------------------

    def clear(self) -> None:
        """Clear all prompts and the previous segmentation. Only the regions that were written are set to zero."""
        for channel, box in self._written:
            self.interactions[(channel, *box.slices)] = 0
        self._written.clear()
        self._dirty_channels: set[int] = set()
        self.current_interaction_intensity = 1.0
        self.clear_pending()

    def clear_pending(self) -> None:
        """Clear the list of prompts that wait for a prediction."""
        self.new_interaction_centers: list[Any] = []
        self.new_interaction_zoom_out_factors: list[float] = []

    def write_previous(self, mask: Mask, box: Box | None) -> None:
        """Make ``mask`` the previous segmentation. It is empty outside ``box``; None: everywhere."""
        if box is None:
            return
        channel = self._get_prev_seg_channel()
        self._record_interactions_region(channel, box.slices)
        values = np.ascontiguousarray(mask[box.slices]).astype(np.float16)
        on_blosc2 = not isinstance(self.interactions, torch.Tensor)
        self.interactions[(channel, *box.slices)] = values if on_blosc2 else torch.from_numpy(values)

    def predict_whole_mask(self, mask: Mask) -> None:
        """Refine a whole mask that was just written, as upstream does for an initial segmentation."""
        self._generic_add_patch_from_image(torch.from_numpy(mask))
        self._predict(force_full_refine=True)

    def predict_pending(self) -> None:
        """Predict from the prompts added without prediction."""
        self._predict()

    def _record_interactions_region(self, channel: int, spatial_slicer: Any, current: Any = None) -> None:
        # Upstream calls this before every write, for its undo. The region is recorded here, to be cleared later.
        super()._record_interactions_region(channel, spatial_slicer, current)
        bounds = [sl.indices(int(n))[:2] for sl, n in zip(spatial_slicer, self.interactions.shape[1:], strict=True)]
        if all(b > a for a, b in bounds):
            self._written.add((channel, Box.from_pairs(bounds)))
        if len(self._written) > _MAX_WRITTEN:
            self._written = set(self._written_boxes().items())

    def _written_boxes(self) -> dict[int, Box]:
        """Bounding box of all writes, by channel."""
        boxes: dict[int, Box] = {}
        for channel, box in self._written:
            boxes[channel] = box.union(boxes.get(channel))
        return boxes

    # ---- prediction ---------------------------------------------------------------------------------------

    @property
    def _running_hooks(self) -> InferenceHooks:
        assert self.hooks is not None, "hooks must be set before a prediction"
        return self.hooks

    def _predict(self, force_full_refine: bool = False) -> Any:
        self._refining, self._refined = [], 0
        return super()._predict(force_full_refine)

    def _build_network_input(self, prediction_center: Any, zoom_out_factor: float) -> Any:
        sizes = [round(p * zoom_out_factor) for p in self.configuration_manager.patch_size]
        view = [(c - p // 2, c + p // 2 + p % 2) for c, p in zip(prediction_center, sizes, strict=True)]
        self._view = Box.from_pairs(view)
        zoomed_on_cpu = self.device.type == "cpu" and tuple(sizes) != tuple(self.configuration_manager.patch_size)

        def build() -> Any:
            if not zoomed_on_cpu:
                return super(UpstreamSession, self)._build_network_input(prediction_center, zoom_out_factor)
            inputs, previous = self._zoomed_input(zoom_out_factor)
            return inputs, sizes, [list(pair) for pair in view], previous

        if self._running_hooks.wait_for_estimate(self._view):
            inputs, *_ = build()
            logits = self._running_hooks.run_pass(inputs[None].contiguous(), False)
            self._running_hooks.on_coarse(logits[0, 1] > logits[0, 0], self._view)
        self._running_hooks.wait_for_image(self._view, refinements=0)
        return build()

    def _zoomed_input(self, zoom: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return upstream's network input for a view larger than the patch, and the previous segmentation in it."""
        view, patch = self._view, self.configuration_manager.patch_size
        interactions, previous = zoomed_interactions(
            ResampleGrid(view, patch),
            self._written_boxes(),
            self.num_interaction_channels,
            set(self._get_dilation_channels_for_resample()),
            round_to_nearest_odd(2 * zoom - 1),
            self._get_prev_seg_channel(),
            self._read,
        )
        self._normalize_interaction_channels_for_network_(interactions)
        image = torch.zeros((len(self.preprocessed_image), *view.shape), dtype=self.preprocessed_image.dtype)
        inside = view.clip(self.image_shape)
        if inside is not None:
            image[(slice(None), *inside.relative_to(view).slices)] = self.preprocessed_image[
                (slice(None), *inside.slices)
            ]
        image = interpolate(image[None], patch, mode="trilinear")[0]
        return torch.cat((image, interactions)), previous

    def _read(self, channel: int, box: Box, into: torch.Tensor) -> None:
        self._interactions_region_into((channel, channel + 1), [list(pair) for pair in box], into[None])

    def _run_network(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self._running_hooks.run_pass(inputs, bool(self._refining))
        if self._refining:
            self._refined += 1
            box = self._refining[self._refined - 1]
            self._running_hooks.on_refined(logits[0, 1] > logits[0, 0], box, self._refined, len(self._refining))
        # Upstream's argmax follows. Across two separate planes, it takes a CPU half as long as a small network's pass.
        return logits.contiguous(memory_format=torch.channels_last_3d) if logits.device.type == "cpu" else logits

    def _detect_change_at_border(self, pred: torch.Tensor, prev_pred: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
        self._running_hooks.on_coarse(pred, self._view)
        return bool(super()._detect_change_at_border(pred, prev_pred, *args, **kwargs))

    def _plan_refinement_bboxes(self, *args: Any, **kwargs: Any) -> Any:
        with _PLAN_LOCK:
            state = np.random.get_state()
            np.random.seed(0)
            try:
                return super()._plan_refinement_bboxes(*args, **kwargs)
            finally:
                np.random.set_state(state)

    def _refine_coarse_with_local_cache(self, bboxes_ordered: Any, *args: Any, **kwargs: Any) -> None:
        boxes = [Box.from_pairs(b) for b in bboxes_ordered]
        union = boxes[0]
        for box in boxes[1:]:
            union = union.union(box)
        self._running_hooks.wait_for_image(union, refinements=len(boxes))
        self._refining = boxes
        super()._refine_coarse_with_local_cache(bboxes_ordered, *args, **kwargs)

    def _paste_prediction_to_target_buffer(self, prediction: torch.Tensor, bbox: Any, record_undo: bool = True) -> None:
        # There is no target buffer, because engine.session.Session keeps a mask for each segment.
        self._running_hooks.on_result(prediction, Box.from_pairs(bbox))


class _PointOnDevice(PointInteraction_stub):  # type: ignore[misc]
    """Upstream's point interaction for channels on the device. The ball is drawn in a crop on the CPU."""

    def place_point(self, position: Any, interaction_map: Any, **kwargs: Any) -> Any:
        channel, before_write = kwargs.pop("channel_idx"), kwargs.pop("before_write")
        margin = int(np.ceil(self.point_radius)) + 1
        box = Box.from_pairs([(p - margin, p + margin + 1) for p in position]).clip(interaction_map.shape[1:])
        assert box is not None, "points are checked to be inside the volume"
        region = (channel, *box.slices)
        before_write(region, None)
        crop = interaction_map[region].cpu()[None]
        local: Index = tuple(p - o for p, o in zip(position, box.start, strict=True))
        super().place_point(local, crop, channel_idx=0, **kwargs)
        interaction_map[region] = crop[0].to(interaction_map.device)
        return interaction_map
