"""Zoomed-out views equal upstream's bit for bit, for any position and content."""

from collections.abc import Callable
from types import SimpleNamespace

from helpers.engine import Client, bbox, lasso, point, scribble, set_mask, stroke, torso
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import numpy as np
import pytest
import torch

from nninteractive_ws.engine.device_scheduler import DeviceScheduler
from nninteractive_ws.engine.model_loader import LoadedModel
from nninteractive_ws.engine.upstream import UpstreamSession

SHAPE = (110, 90, 70)
# Powers of 1.5, as in autozoom, and sizes without a common divisor with the patch.
ZOOMS = (1.01, 1.37, 1.5, 2.25)


@pytest.fixture(scope="module")
def upstream(quick_model: LoadedModel, device: DeviceScheduler) -> UpstreamSession:
    """A session with a previous segmentation, and prompts of every kind and polarity, the older ones faded."""
    client = Client(quick_model, device).set_image(torso(SHAPE))
    ellipsoid = sum(
        ((g - c) / r) ** 2 for g, c, r in zip(np.ogrid[:110, :90, :70], (60, 40, 30), (30, 25, 20), strict=True)
    )
    client.send(set_mask(ellipsoid < 1))
    for positive in (True, False):
        edge = 10 if positive else 60
        client.send(point((edge, edge, 2), positive, run=False))
        client.send(scribble(stroke(SHAPE, (edge, 20, 20), (edge + 20, 60, 20)), positive, run=False))
        client.send(bbox(((edge, edge + 30), (10, 60), (40, 41)), positive, run=False))
        client.send(lasso(stroke(SHAPE, (20, edge, 50), (90, edge, 50)), positive, run=False))
    session = client.session._upstream
    session.hooks = SimpleNamespace(wait_for_estimate=lambda box: False, wait_for_image=lambda box, refinements: None)
    assert {channel for channel, _ in session._written} == set(range(session.num_interaction_channels))
    return session


@pytest.mark.slow
@pytest.mark.parametrize("zoom", ZOOMS)
@pytest.mark.parametrize("center", [(55, 45, 35), (0, 0, 0), (-30, 45, 100)])
def test_a_view_equals_upstreams(upstream: UpstreamSession, zoom: float, center: tuple[int, int, int]) -> None:
    built, sizes, box, previous = upstream._build_network_input(center, zoom)
    expected = nnInteractiveInferenceSession._build_network_input(upstream, center, zoom)
    assert (sizes, box) == (expected[1], expected[2])
    assert built.dtype == expected[0].dtype
    assert torch.equal(built, expected[0])
    assert previous.dtype == expected[3].dtype
    assert torch.equal(previous, expected[3])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(
    upstream: UpstreamSession, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for zoom in (1.37, 1.5):
        built = upstream._build_network_input((50, 50, 30), zoom)[0]
        assert torch.equal(built, nnInteractiveInferenceSession._build_network_input(upstream, (50, 50, 30), zoom)[0])


def test_regions_without_prompts_are_not_read(
    quick_model: LoadedModel, device: DeviceScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(quick_model, device).set_image(torso(SHAPE))
    client.send(point((20, 20, 20), run=False))
    upstream = client.session._upstream
    upstream.hooks = SimpleNamespace(wait_for_estimate=lambda box: False, wait_for_image=lambda box, refinements: None)
    read: list[int] = []
    into: Callable[..., None] = upstream._interactions_region_into

    def counting(channels: tuple[int, int], valid: list[list[int]], dst: torch.Tensor) -> None:
        read.append(dst.numel())
        into(channels, valid, dst)

    monkeypatch.setattr(upstream, "_interactions_region_into", counting)
    upstream._build_network_input((30, 30, 30), 4.0)
    assert 0 < sum(read) <= 9**3
