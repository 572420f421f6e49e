"""nnInteractive's own session, fed by bricks and watched pass by pass.

The subclass overrides private methods of nnInteractive 2.6; ``tests/test_upstream_contract.py`` holds each of
them, so that a new release fails there and not in a user's mask. What a prompt does is upstream's code.
"""

from collections.abc import Sequence
import logging
import threading
from typing import Any, Protocol

import nnInteractive.inference.inference_session as upstream_module
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnInteractive.interaction.point import PointInteraction_stub
from nnInteractive.utils.rounding import round_to_nearest_odd
import numpy as np
import torch
from torch.nn.functional import interpolate

from nninteractive_ws.engine.image import BrickImage, zeros
from nninteractive_ws.engine.zoomed import Grid, zoomed_interactions
from nninteractive_ws.geometry import Box, Index
from nninteractive_ws.masks import Mask

_log = logging.getLogger(__name__)

# Upstream reports on standard output with print; a name of its own module's shadows the builtin.
upstream_module.print = lambda *words: _log.debug("%s", " ".join(map(str, words)))

# numpy's global generator decides upstream's fallback plan: one plan at a time, each from the same seed.
_PLAN_LOCK = threading.Lock()

# Limit of written boxes. Beyond it, those of a channel are merged into one bounding box: a day of clicks would take
# megabytes that no session is charged for.
_MAX_WRITTEN = 1024


class Watcher(Protocol):
    """What the session above does at each seam."""

    def need(self, box: Box, refinements: int) -> None:
        """Return once the image is there in ``box``, or raise Cancelled. ``refinements``: for how many; 0: for a look
        at all of ``box``."""

    def run_pass(self, inputs: torch.Tensor, refines: bool) -> torch.Tensor:
        """Run the network, or raise Cancelled."""

    def coarse(self, prediction: torch.Tensor, box: Box) -> None:
        """A first or zoomed-out answer: uint8 or int64 of patch size, standing for the voxels of ``box``."""

    def refined(self, prediction: torch.Tensor, box: Box, n: int, of: int) -> None:
        """The n-th of ``of`` refinement answers: bool, the shape of ``box``."""

    def result(self, prediction: torch.Tensor, box: Box) -> None:
        """A part of the final answer, the shape of ``box``; later parts overwrite earlier ones."""


class UpstreamSession(nnInteractiveInferenceSession):  # type: ignore[misc]
    """One image's interaction channels. Boxes here may reach outside the image, as upstream's do."""

    def __init__(self, artifacts: dict[str, Any], device: torch.device, threads: int, watcher: Watcher) -> None:
        super().__init__(device=device, torch_n_threads=threads, enable_undo=False)
        self._watcher = watcher
        self._refining: list[Box] = []
        self._refined = 0
        self._written: set[tuple[int, Box]] = set()
        self._image_device = torch.device("cpu")
        self._point_radius = artifacts["point_interaction"].point_radius
        self.initialize_from_loaded_artifacts({**artifacts, "network": self._run_network})

    # ---- the image ----------------------------------------------------------------------------------------

    def close_image(self) -> None:
        """Let go of the image and its interaction channels."""
        self._reset_session()
        self.clear_pending()
        self._written.clear()

    def open_image(self, image: BrickImage) -> None:
        """Take an image whose bricks may still be missing, and no prompts yet."""
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
        """Forget all prompts and the previous segmentation: zero what was written, and only that."""
        for channel, box in self._written:
            self.interactions[(channel, *box.slices)] = 0
        self._written.clear()
        self._dirty_channels: set[int] = set()
        self.current_interaction_intensity = 1.0
        self.clear_pending()

    def clear_pending(self) -> None:
        """Let no prompt wait for a prediction."""
        self.new_interaction_centers: list[Any] = []
        self.new_interaction_zoom_out_factors: list[float] = []

    def write_previous(self, mask: Mask, box: Box | None) -> None:
        """Make ``mask``, empty outside ``box``, the previous segmentation."""
        if box is None:
            return
        channel = self._get_prev_seg_channel()
        self._record_interactions_region(channel, box.slices)
        values = np.ascontiguousarray(mask[box.slices]).astype(np.float16)
        on_blosc2 = not isinstance(self.interactions, torch.Tensor)
        self.interactions[(channel, *box.slices)] = values if on_blosc2 else torch.from_numpy(values)

    def predict_whole_mask(self, mask: Mask) -> None:
        """Refine all of a mask that was just written, as upstream does for an initial segmentation."""
        self._generic_add_patch_from_image(torch.from_numpy(mask))
        self._predict(force_full_refine=True)

    def predict_pending(self) -> None:
        """Predict from the prompts added without prediction."""
        self._predict()

    def _record_interactions_region(self, channel: int, spatial_slicer: Any, current: Any = None) -> None:
        # Upstream announces every write here, for its undo; we remember where, to clear it later.
        super()._record_interactions_region(channel, spatial_slicer, current)
        bounds = [sl.indices(int(n))[:2] for sl, n in zip(spatial_slicer, self.interactions.shape[1:], strict=True)]
        if all(b > a for a, b in bounds):
            self._written.add((channel, Box.from_pairs(bounds)))
        if len(self._written) > _MAX_WRITTEN:
            self._written = set(self._written_hulls().items())

    def _written_hulls(self) -> dict[int, Box]:
        """The bounding box of all writes, by channel."""
        hulls: dict[int, Box] = {}
        for channel, box in self._written:
            hulls[channel] = box.union(hulls.get(channel))
        return hulls

    # ---- prediction ---------------------------------------------------------------------------------------

    def _predict(self, force_full_refine: bool = False) -> Any:
        self._refining, self._refined = [], 0
        return super()._predict(force_full_refine)

    def _build_network_input(self, prediction_center: Any, zoom_out_factor: float) -> Any:
        sizes = [round(p * zoom_out_factor) for p in self.configuration_manager.patch_size]
        view = [(c - p // 2, c + p // 2 + p % 2) for c, p in zip(prediction_center, sizes, strict=True)]
        self._view = Box.from_pairs(view)
        self._watcher.need(self._view, refinements=0)
        if self.device.type != "cpu" or tuple(sizes) == tuple(self.configuration_manager.patch_size):
            return super()._build_network_input(prediction_center, zoom_out_factor)
        inputs, previous = self._zoomed_input(zoom_out_factor)
        return inputs, sizes, [list(pair) for pair in view], previous

    def _zoomed_input(self, zoom: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What upstream builds of a view larger than the patch, and the previous segmentation in it."""
        view, patch = self._view, self.configuration_manager.patch_size
        interactions, previous = zoomed_interactions(
            Grid(view, patch),
            self._written_hulls(),
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
            image[(slice(None), *inside.within(view).slices)] = self.preprocessed_image[(slice(None), *inside.slices)]
        image = interpolate(image[None], patch, mode="trilinear")[0]
        return torch.cat((image, interactions)), previous

    def _read(self, channel: int, box: Box, into: torch.Tensor) -> None:
        self._interactions_region_into((channel, channel + 1), [list(pair) for pair in box], into[None])

    def _run_network(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self._watcher.run_pass(inputs, bool(self._refining))
        if self._refining:
            self._refined += 1
            box = self._refining[self._refined - 1]
            self._watcher.refined(logits[0, 1] > logits[0, 0], box, self._refined, len(self._refining))
        # Upstream's argmax follows; across two planes it takes a CPU as long as half of a small network's pass.
        return logits.contiguous(memory_format=torch.channels_last_3d) if logits.device.type == "cpu" else logits

    def _detect_change_at_border(self, pred: torch.Tensor, prev_pred: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
        self._watcher.coarse(pred, self._view)
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
        hull = boxes[0]
        for box in boxes[1:]:
            hull = hull.union(box)
        self._watcher.need(hull, refinements=len(boxes))
        self._refining = boxes
        super()._refine_coarse_with_local_cache(bboxes_ordered, *args, **kwargs)

    def _paste_prediction_to_target_buffer(self, prediction: torch.Tensor, bbox: Any, record_undo: bool = True) -> None:
        # There is no target buffer: the session above keeps a mask for each segment.
        self._watcher.result(prediction, Box.from_pairs(bbox))


class _PointOnDevice(PointInteraction_stub):  # type: ignore[misc]
    """Upstream's point, for interaction channels that live on the device: the ball is drawn in a CPU crop."""

    def place_point(self, position: Any, interaction_map: Any, **kwargs: Any) -> Any:
        channel, before_write = kwargs.pop("channel_idx"), kwargs.pop("before_write")
        reach = int(np.ceil(self.point_radius)) + 1
        around = Box.from_pairs([(p - reach, p + reach + 1) for p in position]).clip(interaction_map.shape[1:])
        assert around is not None, "points are checked to be inside the volume"
        where = (channel, *around.slices)
        before_write(where, None)
        crop = interaction_map[where].cpu()[None]
        local: Index = tuple(p - o for p, o in zip(position, around.start, strict=True))
        super().place_point(local, crop, channel_idx=0, **kwargs)
        interaction_map[where] = crop[0].to(interaction_map.device)
        return interaction_map
