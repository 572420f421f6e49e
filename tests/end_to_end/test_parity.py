"""Parity with the masks of nnInteractive's own session, prompt by prompt.

The masks are equal bit for bit if upstream gets the image normalized with our statistics, which are sums in float64.
Without that, it sums in float32, and the masks are nearly equal. Upstream's refinement plans may draw from numpy's
global generator, so upstream is not deterministic. The tests seed the generator in the same way for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers.engine import (
    Client,
    Mask,
    Request,
    Volume,
    bar_in_a_box,
    bbox,
    disc,
    lasso,
    point,
    prompts_for,
    reset,
    run,
    scribble,
    set_mask,
    set_official_image,
    shape_of,
    stroke,
    torso,
    undo,
)
from helpers.shapes import ball
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import numpy as np
import pytest
import torch

from nninteractive_ws import bricks, masks
from nninteractive_ws.client import image_source
from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.model_loader import LoadedModel
from nninteractive_ws.engine.model_registry import MODEL_FOLDER
from nninteractive_ws.engine.prompts import boxes_for
from nninteractive_ws.messages import (
    AddBbox,
    AddLasso,
    AddPoint,
    AddScribble,
    Reset,
    Run,
    SetMask,
    SetOptions,
    Undo,
)


class Official:
    """Upstream's session as its own users drive it, fed with the same requests."""

    def __init__(self, model: LoadedModel, volume: Volume, storage: str = "auto") -> None:
        self.session = nnInteractiveInferenceSession(
            device=torch.device("cpu"), torch_n_threads=model.threads, interactions_storage=storage
        )
        self.session.initialize_from_trained_model_folder(str(MODEL_FOLDER))
        # The model's weights, or those of the replacement network.
        if type(model.artifacts["network"]) is not type(self.session.network):
            self.session.network = model.artifacts["network"]
        self.session.configuration_manager = model.artifacts["configuration_manager"]
        set_official_image(self.session, volume)
        self.buffer = np.zeros(volume.shape, np.uint8)
        self.session.set_target_buffer(self.buffer)

    @classmethod
    def with_our_statistics(cls, model: LoadedModel, volume: Volume, storage: str = "auto") -> "Official":
        """Patch upstream: normalize with our statistics, and seed the generator before each plan."""
        official = cls(model, volume, storage)
        ours = image_source.statistics(volume)
        normalized = (volume.astype(np.float32) - np.float32(ours.mean)) / np.float32(ours.std)
        official.session.preprocessed_image = torch.from_numpy(normalized)[None]
        plan = official.session._plan_refinement_bboxes

        def seeded_plan(*args: Any, **kwargs: Any) -> Any:
            np.random.seed(0)
            return plan(*args, **kwargs)

        official.session._plan_refinement_bboxes = seeded_plan
        return official

    def mask_after(self, request: Request) -> Mask:
        np.random.seed(0)
        _APPLY[type(request)](self, request)
        return self.buffer > 0

    def _point(self, request: AddPoint) -> None:
        self.session.add_point_interaction(request.point, request.positive, run_prediction=request.run)

    def _bbox(self, request: AddBbox) -> None:
        self.session.add_bbox_interaction(request.box, request.positive, run_prediction=request.run)

    def _scribble(self, request: AddScribble) -> None:
        whole = self._whole(request.mask)
        self.session.add_scribble_interaction(whole, request.positive, run_prediction=request.run)

    def _lasso(self, request: AddLasso) -> None:
        whole = self._whole(request.mask)
        self.session.add_lasso_interaction(whole, request.positive, run_prediction=request.run)

    def _set_mask(self, request: SetMask) -> None:
        given = self._whole(request.mask)
        whole = given ^ (self.buffer > 0) if request.flip else given
        self.session.add_initial_seg_interaction(whole, run_prediction=request.run)

    def _run(self, request: Run) -> None:
        self.session._predict()

    def _undo(self, request: Undo) -> None:
        assert self.session.undo()

    def _reset(self, request: Reset) -> None:
        self.session.reset_interactions()

    def _set_options(self, request: SetOptions) -> None:
        self.session.set_do_autozoom(request.autozoom)

    def _whole(self, bits: Any) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        mask = np.zeros(self.buffer.shape, bool)
        masks.apply(masks.unpack(bits, shape_of(mask)), mask)
        return mask.astype(np.uint8)


_APPLY: dict[type, Callable[[Official, Any], None]] = {
    AddPoint: Official._point,
    AddBbox: Official._bbox,
    AddScribble: Official._scribble,
    AddLasso: Official._lasso,
    SetMask: Official._set_mask,
    Run: Official._run,
    Undo: Official._undo,
    Reset: Official._reset,
    SetOptions: Official._set_options,
}


@dataclass
class Seen:
    """Counts of events, to detect an empty comparison."""

    predictions: int = 0
    passes: int = 0
    refinements: int = 0
    zoomed_out: int = 0
    refined: int = 0
    voxels: int = 0


def compare(
    client: Client,
    requests: list[Request],
    same: Official | None = None,
    near: Official | None = None,
) -> Seen:
    """Send every request to all sessions, and compare the masks after each."""
    seen = Seen()
    for n, request in enumerate(requests):
        done = client.send(request)
        ours = client.mask() if "a" in client.journals else None
        where = f"after request {n}, {request}"
        if same is not None:
            theirs = same.mask_after(request)
            if ours is not None:
                assert np.array_equal(ours, theirs), f"{int((ours ^ theirs).sum())} voxels differ {where}"
        if near is not None:
            theirs = near.mask_after(request)
            if ours is not None:
                assert_near(ours, theirs, where)
        refinements = [p for p in client.progress("refining") if p.done]  # 0: it has waited for the image, and starts
        seen.predictions += done.timings.passes > 0
        seen.passes += done.timings.passes
        seen.refinements += len(refinements)
        seen.zoomed_out += done.timings.passes - len(refinements) > 1
        seen.refined += len(refinements) > 0
        seen.voxels += done.voxels
    return seen


def assert_near(ours: Mask, theirs: Mask, where: str) -> None:
    different, union = int((ours ^ theirs).sum()), int((ours | theirs).sum())
    assert different <= max(20, 0.005 * union), f"{different} of {union} voxels differ {where}"


@pytest.fixture(autouse=True)
def _short_zoom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides zoom out to 1.5 instead of 4 at most, which takes upstream many seconds a step on two cores."""
    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.5)


def some_late(model: LoadedModel, device: DeviceScheduler, volume: Volume) -> Client:
    """A client whose last bricks arrive in any order while the first prompts wait."""
    client = Client(model, device)
    client.announce(volume)
    order = [int(i) for i in np.random.default_rng(7).permutation(len(bricks.Grid(shape_of(volume))))]
    early = len(order) // 2
    for i in order[:early]:
        client.send_bricks([i])
    client.send_missing_late(order[early:])
    return client


# ---- the network of the embedded model ----------------------------------------------------------------------


def options(autozoom: bool) -> SetOptions:
    return SetOptions(id=1, autozoom=autozoom)


def few_passes(shape: tuple[int, int, int]) -> list[Request]:
    """Return prompts of every kind, few of them with many passes, each of which takes a third of a second."""
    i, j, k = shape
    middle = (i // 2, j // 2, k // 2)
    return [
        options(False),
        point(middle),
        point((i // 4, j // 2, k // 3), positive=False),
        bbox([(i // 3, i // 2 + 3), (j // 3, j // 2 + 3), (k // 2, k // 2 + 1)]),
        scribble(stroke(shape, (i // 3, j // 3, k // 2), (i // 2, j // 2, k // 2))),
        undo(),
        point((i // 2, j // 3, k // 2)),
        lasso(disc(shape, middle, min(i, j) / 6), run=False),
        point((i // 2 + 5, j // 2, k // 2), run=False),
        run(),
        bbox([(i // 8, i // 4), (j // 2, j // 2 + 1), (0, k // 2)], positive=False),
        options(True),
        lasso(disc(shape, (i // 4, j // 4, k // 2), 5, axis=0), positive=False),
        scribble(stroke(shape, (0.05 * i, j // 2, k // 2), (0.9 * i, j // 2 + 2, k // 2))),
        set_mask(ball(shape, middle, min(shape) / 4)),
        point((i // 2, j // 2 + 4, k // 2)),
        reset(),
        scribble(stroke(shape, middle, (i // 2, j // 3, k // 2)), positive=True),
        scribble(stroke(shape, (0, 0, 0), (0, j // 4, k // 4)), positive=False),
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        pytest.param((130, 110, 101), 2.2, id="larger than the patch", marks=pytest.mark.slow),
        pytest.param((40, 33, 27), 6.0, id="smaller than the patch"),
        pytest.param((90, 80, 5), (4.0, 4.0, 20.0), id="thin", marks=pytest.mark.slow),
    ],
)
def test_embedded_model(demo_model, device, shape, spacing):
    volume = torso(shape, spacing=spacing)
    client = some_late(demo_model, device, volume)
    same = Official.with_our_statistics(demo_model, volume)
    # Unpatched, it is compared only once here, because each side takes half a minute, and with the quick network below.
    near = Official(demo_model, volume) if max(shape) > 96 else None
    seen = compare(client, few_passes(shape), same, near)
    assert seen.predictions >= 12
    assert seen.voxels > 0
    if max(shape) + 96 // 3 > 96:
        assert seen.refined >= 1


# ---- a network that fills whole patches ----------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("shape", "spacing", "seed"),
    [
        pytest.param((90, 84, 80), 3.0, 1, id="larger than the patch", marks=pytest.mark.slow),
        pytest.param((40, 33, 27), 6.0, 2, id="smaller than the patch"),
        pytest.param((90, 80, 5), (4.0, 4.0, 20.0), 3, id="thin", marks=pytest.mark.slow),
        pytest.param((88, 88, 30), (2.5, 2.5, 8.0), 4, id="anisotropic", marks=pytest.mark.slow),
        pytest.param((97, 51, 33), (3.0, 5.0, 8.0), 5, id="odd"),
    ],
)
def test_quick_network(quick_model, device, shape, spacing, seed):
    volume = torso(shape, spacing=spacing)
    client = some_late(quick_model, device, volume)
    same = Official.with_our_statistics(quick_model, volume)
    near = Official(quick_model, volume)
    seen = compare(client, prompts_for(shape, seed), same, near)
    assert seen.predictions >= 12
    assert seen.voxels > 0
    if max(shape) > 72:
        assert seen.refined >= 3
        assert seen.zoomed_out >= 1


@pytest.mark.slow
def test_zooming_out_in_two_steps(quick_model, device, monkeypatch):
    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 2)
    volume = bar_in_a_box()
    client = some_late(quick_model, device, volume)
    seen = compare(
        client, [point((78, 30, 28)), point((60, 56, 46))], Official.with_our_statistics(quick_model, volume)
    )
    assert seen.passes - seen.refinements >= 4
    assert seen.refined >= 1


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_compressed_interactions(quick_model, device, monkeypatch):
    """Upstream compresses the interactions of large images. Here, it compresses those of a small one."""
    monkeypatch.setattr(nnInteractiveInferenceSession, "AUTO_TENSOR_MAX_VOXELS", 0)
    volume = torso((60, 88, 40), spacing=3.0)
    client = some_late(quick_model, device, volume)
    official = Official.with_our_statistics(quick_model, volume)
    seen = compare(client, prompts_for(shape_of(volume), 6), official)
    assert official.session._interactions_storage_resolved == "blosc2"
    assert client.session._upstream._interactions_storage_resolved == "blosc2"
    assert seen.refined >= 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", pytest.param("float32", marks=pytest.mark.slow)])
def test_types_of_voxels(quick_model, device, dtype):
    hounsfield = torso((50, 40, 30), spacing=5.0).astype(np.float64)
    volume = (np.clip((hounsfield + 200) / 2, 0, 255) if dtype == "uint8" else hounsfield / 7).astype(dtype)
    client = Client(quick_model, device).set_image(volume)
    same, near = Official.with_our_statistics(quick_model, volume), Official(quick_model, volume)
    compare(client, prompts_for(shape_of(volume), 7)[:8], same, near)


@pytest.mark.slow
def test_faded_prompts_are_renormalized(quick_model, device):
    """After about a hundred prompts, upstream rescales all of them, before they overflow float16."""
    volume = torso((50, 40, 30), spacing=5.0)
    client = Client(quick_model, device).set_image(volume)
    official = Official.with_our_statistics(quick_model, volume)
    rng = np.random.default_rng(8)
    for n in range(112):
        i, j, k = (int(x) for x in rng.integers((5, 5, 5), (45, 35, 25)))
        request = point((i, j, k), positive=n % 4 != 3, run=False)
        client.send(request)
        official.mask_after(request)
    assert official.session.current_interaction_intensity < official.session._fp16_max_value / 2
    # The undo makes our session write all prompts again.
    seen = compare(client, [run(), point((25, 20, 15)), undo(), point((20, 20, 15))], official)
    assert seen.voxels > 0


# ---- intended differences ------------------------------------------------------------------------------------


@pytest.fixture
def both(quick_model, device):
    volume = torso((60, 50, 40), spacing=4.0)
    return Client(quick_model, device).set_image(volume), Official.with_our_statistics(quick_model, volume)


def test_a_reset_discards_pending_prompts(both):
    """Upstream's reset keeps them in its queue, so the next prediction is centered at a removed prompt."""
    client, official = both
    for request in (point((30, 25, 20), run=False), reset()):
        client.send(request)
        official.mask_after(request)
    assert official.session.new_interaction_centers == [[30, 25, 20]]
    assert client.send(run()).timings.passes == 0
    # The next prompt is the last one of both queues, so they agree again.
    compare(client, [point((20, 25, 20))], official)


def test_set_mask_discards_pending_prompts(both):
    """As with a reset."""
    client, official = both
    for request in (point((30, 25, 20), run=False), set_mask(ball((60, 50, 40), (30, 25, 20), 9))):
        client.send(request)
        official.mask_after(request)
    assert official.session.new_interaction_centers == [[30, 25, 20]]
    assert client.send(run()).timings.passes == 0
    compare(client, [point((20, 25, 20))], official)


def test_a_3d_box_becomes_three_slices_for_a_model_of_2d_boxes(both):
    """Upstream refuses it. The three slices through its center are equivalent."""
    client, official = both
    box = bbox([(10, 40), (12, 30), (8, 33)])
    with pytest.raises(ValueError, match="3D"):
        official.mask_after(box)
    *first, last = (AddBbox(id=1, segment="a", box=b.pairs, run=False) for b in boxes_for(box, False))
    assert [b.box for b in (*first, last)] == [
        ((25, 26), (12, 30), (8, 33)),
        ((10, 40), (12, 30), (20, 21)),
        ((10, 40), (21, 22), (8, 33)),
    ]
    for part in first:
        official.mask_after(part)
    theirs = official.mask_after(bbox(last.box))
    assert np.array_equal(client.mask_after(box), theirs)
    assert theirs.any()


def test_undo_reverts_more_than_one_step(both):
    """Upstream can revert only one step."""
    client, official = both
    for request in (point((30, 25, 20)), point((20, 25, 20), positive=False), undo()):
        client.send(request)
        official.mask_after(request)
    assert not official.session.undo()
    assert not client.mask_after(undo()).any()
