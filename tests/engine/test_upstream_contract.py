"""Assumptions of the engine about private parts of nnInteractive 2.6.

A release that changes one of them fails here. In that case, read the changes, adapt ``engine/upstream.py``, and check
with ``test_parity.py`` that the masks are the same, before you allow the version.
"""

from importlib.metadata import version
import inspect
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

from helpers.engine import (
    Client,
    bar_in_a_box,
    bbox,
    lasso,
    point,
    scribble,
    set_official_image,
    shape_of,
    stroke,
)
from helpers.shapes import ball
from nnInteractive import model_management
import nnInteractive.inference.inference_session as upstream_module
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnInteractive.interaction.point import PointInteraction_stub
from nnInteractive.utils import bboxes
import numpy as np
import pytest
import torch

from nninteractive_ws.engine.upstream import UpstreamSession, _PointOnDevice
from nninteractive_ws.geometry import Box

ADVICE = (
    "nnInteractive changed a private seam that nninteractive_ws/engine relies on. Read its release, adapt "
    "engine/upstream.py, and run tests/test_parity.py; only then allow the version in pyproject.toml."
)


def test_the_upstream_version_is_the_tested_one():
    installed = version("nnInteractive")
    assert installed.startswith("2.6."), f"nnInteractive {installed} is installed, 2.6 is supported. {ADVICE}"
    assert installed == nnInteractiveInferenceSession.INFERENCE_SESSION_VERSION


# ---- signatures -------------------------------------------------------------------------------------------------

SIGNATURES = {
    # overridden by UpstreamSession
    "_new_interactions_array": "(self, shape, compression_nthreads)",
    "_interactions_inplace_maximum": "(self, channel_idx, int_slicer, new_values)",
    "_compute_prev_seg_positive_bbox": "(self)",
    "_record_interactions_region": "(self, channel, spatial_slicer, current=None)",
    "_predict": "(self, force_full_refine=False)",
    "_build_network_input": "(self, prediction_center, zoom_out_factor)",
    "_detect_change_at_border": (
        "(self, pred, prev_pred, abs_pxl_change_threshold=1500, rel_pxl_change_threshold=0.2, "
        "min_pxl_change_threshold=100)"
    ),
    "_plan_refinement_bboxes": "(self, pred, scaled_bbox, force_full_refine)",
    "_refine_coarse_with_local_cache": "(self, bboxes_ordered, prev_seg_channel, coarse_pred, coarse_bbox)",
    "_paste_prediction_to_target_buffer": "(self, prediction, bbox, record_undo=True)",
    # called by it
    "__init__": (
        "(self, device=device(type='cuda'), use_torch_compile=False, verbose=False, torch_n_threads=8, "
        "do_autozoom=True, interactions_storage='auto', enable_undo=True)"
    ),
    "_reset_session": "(self)",
    "_initialize_interactions": "(self, image_torch)",
    "_nonzero_spatial_bbox": "(tensor, sum_dtype=torch.float32)",
    "_get_prev_seg_channel": "(self)",
    "_generic_add_patch_from_image": "(self, image, offset=None)",
    "initialize_from_loaded_artifacts": "(self, artifacts)",
    # called by models, prompts and the session
    "_load_model_artifacts_from_disk": (
        "(self, model_training_output_dir, use_fold=None, checkpoint_name='checkpoint_final.pth')"
    ),
    "warmup": "(self)",
    "set_do_autozoom": "(self, do_autozoom)",
    "add_point_interaction": (
        "(self, coordinates, include_interaction, run_prediction=True, override_capability_checks=False)"
    ),
    "add_bbox_interaction": (
        "(self, bbox_coords, include_interaction, run_prediction=True, override_capability_checks=False)"
    ),
    "add_scribble_interaction": (
        "(self, scribble_image, include_interaction, run_prediction=True, override_capability_checks=False, "
        "interaction_bbox=None)"
    ),
    "add_lasso_interaction": (
        "(self, lasso_image, include_interaction, run_prediction=True, override_capability_checks=False, "
        "interaction_bbox=None)"
    ),
}


def signature_of(function: Any) -> str:
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_of_methods_are_unchanged(name):
    found = getattr(nnInteractiveInferenceSession, name, None)
    assert found is not None, f"{name} is gone. {ADVICE}"
    assert signature_of(found) == SIGNATURES[name], ADVICE


def test_every_override_has_a_tested_signature():
    inherited = set(dir(nnInteractiveInferenceSession)) - {"__module__", "__doc__"}
    assert inherited & set(vars(UpstreamSession)) <= set(SIGNATURES)


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("get_model_root_dir", "()"),
        ("get_local_model_dir", "(model_id, model_root=None)"),
        ("ensure_model_available", "(model_id, model_root=None, manifest=None)"),
        ("load_model_manifest", "(model_root=None)"),
        ("_load_cached_manifest", "(model_root)"),
        ("_validate_and_normalize_manifest", "(manifest)"),
    ],
)
def test_signatures_of_registry_functions_are_unchanged(name, signature):
    assert signature_of(getattr(model_management, name)) == signature, ADVICE
    assert model_management.MODEL_PREFIX == "nnInteractive_"


def test_signatures_of_point_interactions_are_unchanged():
    assert signature_of(PointInteraction_stub) == "(point_radius, use_distance_transform=False)", ADVICE
    assert signature_of(PointInteraction_stub.place_point) == (
        "(self, position, interaction_map, binarize=False, intensity_scale=1.0, channel_idx=None, before_write=None)"
    ), ADVICE


def test_prints_go_to_the_log(capsys, quick_model):
    """The engine replaces the name ``print`` in upstream's module."""
    for function in (nnInteractiveInferenceSession.__init__, nnInteractiveInferenceSession._predict):
        assert "print" in inspect.unwrap(function).__code__.co_names, ADVICE
    assert upstream_module.print is not print
    nnInteractiveInferenceSession(device=torch.device("cpu"), torch_n_threads=quick_model.threads)
    assert capsys.readouterr().out == ""


# ---- artifacts of a model ---------------------------------------------------------------------------------------


def test_sessions_share_only_known_artifacts(demo_model):
    assert set(demo_model.artifacts) == {
        "capability_content",
        "point_interaction",
        "preferred_scribble_thickness",
        "interaction_decay",
        "pad_mode_data",
        "network",
        "plans_manager",
        "configuration_manager",
        "dataset_json",
        "trainer_name",
        "label_manager",
        "license",
    }, ADVICE
    assert isinstance(demo_model.artifacts["point_interaction"], PointInteraction_stub)
    assert demo_model.artifacts["point_interaction"].use_distance_transform is True
    assert len(demo_model.artifacts["configuration_manager"].patch_size) == 3


def test_a_session_has_the_used_attributes(session):
    for name in (
        "device", "do_autozoom", "interactions", "interactions_storage", "preprocessed_image", "original_image_shape",
        "point_interaction", "configuration_manager", "supported_interactions", "supports_initial_label",
        "preferred_scribble_thickness", "license", "num_interaction_channels", "new_interaction_centers",
        "new_interaction_zoom_out_factors", "current_interaction_intensity", "_dirty_channels", "network",
        "MAX_AUTOZOOM_FACTOR", "AUTO_TENSOR_MAX_VOXELS",
    ):  # fmt: skip
        assert hasattr(session, name), f"{name} is gone. {ADVICE}"
    assert session.supported_interactions.keys() == {"scribble", "lasso", "points", "bbox2d", "bbox3d"}
    assert session.point_interaction.point_radius == 4
    assert session.interactions.dtype == torch.float16
    assert tuple(session.interactions.shape) == (session.num_interaction_channels, *SHAPE)
    assert session.preprocessed_image.dtype == torch.float32
    assert tuple(session.preprocessed_image.shape) == (1, *SHAPE)
    assert tuple(session.original_image_shape) == (1, *SHAPE)


# ---- effects of a prompt ----------------------------------------------------------------------------------------

SHAPE = (84, 72, 66)


class Witness(nnInteractiveInferenceSession):
    """Upstream's session, with a record of the calls since :meth:`begin`."""

    def begin(self) -> None:
        self.calls: list[str] = []
        self.recorded: list[tuple[int, tuple[slice, ...]]] = []
        self.inputs: list[tuple[int, ...]] = []
        self.boxes: list[Any] = []
        self.results: list[tuple[Any, Any]] = []

    def watch(self, network: Any) -> None:
        def counted(x: torch.Tensor) -> torch.Tensor:
            self.calls.append("network")
            self.inputs.append(tuple(x.shape))
            assert x.is_contiguous()
            return network(x)

        self.network = counted
        self.begin()

    def _record_interactions_region(self, channel: int, spatial_slicer: Any, current: Any = None) -> None:
        self.recorded.append((channel, tuple(spatial_slicer)))
        super()._record_interactions_region(channel, spatial_slicer, current)

    def _build_network_input(self, prediction_center: Any, zoom_out_factor: float) -> Any:
        self.calls.append("input")
        made = super()._build_network_input(prediction_center, zoom_out_factor)
        patch, scaled, box, previous = made
        sizes = [round(p * zoom_out_factor) for p in self.configuration_manager.patch_size]
        assert scaled == sizes
        assert box == [[c - p // 2, c + p // 2 + p % 2] for c, p in zip(prediction_center, sizes, strict=True)], ADVICE
        assert tuple(previous.shape) == tuple(patch.shape[1:]) == tuple(self.configuration_manager.patch_size)
        return made

    def _detect_change_at_border(self, pred: Any, prev_pred: Any, *args: Any, **kwargs: Any) -> bool:
        self.calls.append("border")
        assert tuple(pred.shape) == tuple(self.configuration_manager.patch_size)
        assert set(pred.unique().tolist()) <= {0, 1}
        return super()._detect_change_at_border(pred, prev_pred, *args, **kwargs)

    def _plan_refinement_bboxes(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("plan")
        state = np.random.get_state()
        np.random.seed(0)
        try:
            return super()._plan_refinement_bboxes(*args, **kwargs)
        finally:
            np.random.set_state(state)

    def _refine_coarse_with_local_cache(self, bboxes_ordered: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append("refine")
        self.boxes = list(bboxes_ordered)
        super()._refine_coarse_with_local_cache(bboxes_ordered, *args, **kwargs)

    def _paste_prediction_to_target_buffer(self, prediction: Any, bbox: Any, record_undo: bool = True) -> None:
        self.calls.append("result")
        self.results.append((prediction.clone(), bbox))
        super()._paste_prediction_to_target_buffer(prediction, bbox, record_undo)


@pytest.fixture
def session(quick_model, monkeypatch) -> Witness:
    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.5)
    made = Witness(device=torch.device("cpu"), torch_n_threads=quick_model.threads, enable_undo=False)
    made.initialize_from_loaded_artifacts(quick_model.artifacts)
    made.watch(quick_model.artifacts["network"])
    set_official_image(made, bar_in_a_box())
    made.set_target_buffer(np.zeros(SHAPE, np.uint8))
    return made


LONG = stroke(SHAPE, (4, 30, 28), (78, 30, 28)).astype(np.uint8)
STEPS = {
    "point": lambda s: s.add_point_interaction((42, 32, 26), True),
    "point at the border": lambda s: s.add_point_interaction((0, 71, 65), False),
    "point without prediction": lambda s: s.add_point_interaction((60, 56, 46), True, run_prediction=False),
    "box": lambda s: s.add_bbox_interaction([[20, 60], [20, 40], [28, 29]], True),
    "scribble": lambda s: s.add_scribble_interaction(LONG, True),
    "scribble in a crop": lambda s: s.add_scribble_interaction(
        LONG[4:30, 20:40, 20:40].copy(), False, interaction_bbox=[[4, 30], [20, 40], [20, 40]]
    ),
    "lasso": lambda s: s.add_lasso_interaction(ball(SHAPE, (60, 56, 46), 8).astype(np.uint8), True),
    "mask": lambda s: s.add_initial_seg_interaction(ball(SHAPE, (42, 30, 28), 8).astype(np.uint8), True),
}


def as_numpy(interactions: Any) -> "np.ndarray[Any, Any]":
    """A copy of the channels, dense or compressed."""
    return interactions.numpy().copy() if isinstance(interactions, torch.Tensor) else interactions[:]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("storage", ["tensor", pytest.param("blosc2", marks=pytest.mark.slow)])
def test_every_write_to_the_interactions_is_announced(session, step, storage):
    """The engine clears only announced regions."""
    if storage == "blosc2":
        session.interactions_storage = "blosc2"
        session._initialize_interactions(session.preprocessed_image)
    before = as_numpy(session.interactions)
    STEPS[step](session)
    changed = as_numpy(session.interactions) != before
    assert changed.any()
    for channel, slices in session.recorded:
        changed[(channel, *slices)] = False
    assert not changed.any(), ADVICE


@pytest.mark.slow
@pytest.mark.parametrize("step", [s for s in STEPS if "without" not in s])
def test_all_results_are_pasted_by_one_method(session, step):
    """The target buffer equals the pasted results, in their order, and so does the previous segmentation."""
    STEPS[step](session)
    mask = ball(SHAPE, (42, 30, 28), 8) if step == "mask" else np.zeros(SHAPE, bool)
    for prediction, pairs in session.results:
        box = Box.from_pairs(pairs)
        inside = box.clip(SHAPE)
        assert inside is not None
        mask[inside.slices] = prediction[inside.relative_to(box).slices].numpy() > 0.5
    assert np.array_equal(session.target_buffer > 0, mask), ADVICE
    channel = session.interactions[session._get_prev_seg_channel()].numpy()
    assert np.array_equal(channel, mask), ADVICE


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_the_network_runs_once_per_view(session, step):
    """First, coarse views with an input, a pass and a search of the border each. Then, a pass for each box."""
    STEPS[step](session)
    if "without" in step:
        assert session.calls == []
        return
    appearance = session.calls.count("input")
    order = ["input", "network", "border"] * appearance
    if session.boxes:
        order += ["plan", "refine"] + ["network"] * len(session.boxes) + ["result"] * len(session.boxes)
    else:
        order += ["result"]
    assert session.calls == order, ADVICE
    patch = tuple(session.configuration_manager.patch_size)
    assert set(session.inputs) == {(1, 1 + session.num_interaction_channels, *patch)}
    assert all(Box.from_pairs(b).shape == patch for b in session.boxes)


def test_these_steps_zoom_out_and_refine(session):
    STEPS["point"](session)
    assert session.calls.count("input") > 1
    assert len(session.boxes) > 1


@pytest.mark.slow
def test_only_the_refinement_plan_is_random(session):
    state = np.random.get_state()[1].copy()
    for step in STEPS.values():
        step(session)
    assert np.array_equal(np.random.get_state()[1], state), ADVICE
    assert "random" in bboxes.random_sampling_fallback.__code__.co_names


def test_pending_prompts_are_in_two_lists(session):
    assert (session.new_interaction_centers, session.new_interaction_zoom_out_factors) == ([], [])
    STEPS["point without prediction"](session)
    session.add_bbox_interaction([[10, 70], [20, 30], [28, 29]], True, run_prediction=False)
    assert session.new_interaction_centers == [[60, 56, 46], [40, 25, 28]]
    patch = session.configuration_manager.patch_size[0]
    assert session.new_interaction_zoom_out_factors == [1, (60 + patch // 3) / patch]
    session._predict()
    assert (session.new_interaction_centers, session.new_interaction_zoom_out_factors) == ([], [])


def test_each_prompt_grows_the_next_one(session):
    assert session.current_interaction_intensity == 1.0
    STEPS["point without prediction"](session)
    assert session.current_interaction_intensity == 1 / session.interaction_decay
    session._predict()
    assert session.current_interaction_intensity == 1 / session.interaction_decay, "predictions do not"
    STEPS["mask"](session)
    assert session.current_interaction_intensity == 1.0, "a mask starts anew"


def test_the_image_is_normalized_in_this_order(session):
    volume = bar_in_a_box().astype(np.float32)
    expected = torch.from_numpy(volume.copy())[None]
    mean, std = expected.mean(), expected.std()
    expected -= mean
    expected /= std
    assert torch.equal(session.preprocessed_image, expected), ADVICE
    by_numpy = (volume - np.float32(mean.item())) / np.float32(std.item())
    assert np.array_equal(session.preprocessed_image[0].numpy(), by_numpy), ADVICE


def test_the_memory_layout_of_the_network_output_is_free():
    """The engine optimizes it for upstream's argmax."""
    logits = torch.rand(1, 2, 9, 8, 7)
    laid_out = logits.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(laid_out[0].argmax(0), logits[0].argmax(0))
    ties = torch.zeros(1, 2, 4, 4, 4)
    assert torch.equal(ties[0].argmax(0), (ties[0, 1] > ties[0, 0]).long()), "a tie is background"


@pytest.mark.parametrize("at", [(0, 0, 0), (42, 36, 33), (83, 71, 65), (2, 70, 33)])
def test_a_point_on_the_device_equals_upstreams_point(at):
    """The variant for GPU memory, tested in host memory: the same ball, with an announced box around it."""
    theirs, ours = torch.rand(3, *SHAPE).half(), torch.zeros(3, *SHAPE, dtype=torch.float16)
    ours[:] = theirs
    announced: list[Any] = []
    PointInteraction_stub(4, True).place_point(at, theirs, channel_idx=1, intensity_scale=1.3)
    _PointOnDevice(4, True).place_point(
        at, ours, channel_idx=1, intensity_scale=1.3, before_write=lambda where, current: announced.append(where)
    )
    assert torch.equal(ours, theirs)
    ((channel, *slices),) = announced
    assert channel == 1
    assert all(s.start >= 0 and s.stop <= n for s, n in zip(slices, SHAPE, strict=True))


def test_clear_removes_all_prompts(quick_model, device, monkeypatch):
    """When another segment is selected, the engine zeroes all voxels that prompts had written."""
    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.5)
    volume = bar_in_a_box()
    client = Client(quick_model, device).set_image(volume)
    upstream = client.session._upstream
    client.send_all(
        [
            scribble(LONG > 0),
            point((20, 30, 28), positive=False),
            bbox([(20, 60), (20, 40), (28, 29)]),
            lasso(ball(SHAPE, (60, 56, 46), 8), positive=False),
        ]
    )
    assert upstream.interactions.any()
    upstream.clear()
    assert not upstream.interactions.any()
    assert tuple(upstream.interactions.shape[1:]) == shape_of(volume)


def test_our_sessions_never_start_upstreams_threads(quick_model, device):
    """Upstream's ``__del__`` would join them during garbage collection, on any thread."""
    client = Client(quick_model, device).set_image(bar_in_a_box())
    client.send(point((42, 32, 26)))
    assert not client.session._upstream.executor._threads, ADVICE


def test_the_model_folder_of_the_package_is_one_that_upstream_loads(demo_model):
    from nninteractive_ws.engine.model_registry import MODEL_FOLDER

    session = nnInteractiveInferenceSession(device=torch.device("cpu"), torch_n_threads=demo_model.threads)
    session.initialize_from_trained_model_folder(str(MODEL_FOLDER))
    assert session.license == demo_model.description.license
    assert Path(MODEL_FOLDER, "LICENSE").is_file()


# ---- imports ----------------------------------------------------------------------------------------------------

SERVE_A_PROMPT = """
import json, sys
import nninteractive_ws.engine.worker
from nninteractive_ws.engine.inference_session import DEFERRED
at_start = sorted(set(DEFERRED) & set(sys.modules))

from helpers.engine import Client, bar_in_a_box, point
import torch
from nninteractive_ws.engine.deferred_imports import _DeferredModule, _DeferredName
from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.model_loader import load_model
from nninteractive_ws.engine.model_registry import DEMO, MODEL_FOLDER

scheduler = DeviceScheduler("cpu")
client = Client(load_model(DEMO, MODEL_FOLDER, torch.device("cpu")), scheduler).set_image(bar_in_a_box())
client.send(point((42, 32, 26)))
scheduler.close()
at_end = sorted(set(DEFERRED) & set(sys.modules))

referring = {
    name.partition(".")[0]
    for name, module in sys.modules.items()
    if any(isinstance(value, (_DeferredModule, _DeferredName)) for value in vars(module).values())
}
print(json.dumps([at_start, at_end, sorted(referring)]))
"""


def test_serving_a_prompt_imports_nothing_that_is_deferred():
    """Only libraries for training refer to deferred modules, not torch itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SERVE_A_PROMPT], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    at_start, at_end, referring = json.loads(done.stdout.splitlines()[-1])
    assert (at_start, at_end) == ([], []), ADVICE
    assert set(referring) <= {"nnInteractive", "nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl_utils"}, ADVICE
