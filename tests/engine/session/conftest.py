"""Fixtures for tests of a session on the worker.

A "twin" in them is a second session without the detour under test. It must have the same masks, bit for bit.
"""

from collections.abc import Callable

from helpers.engine import Client, Hooked, bar_in_a_box, with_network
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
import pytest


@pytest.fixture(autouse=True)
def _short_zoom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit zooming out, which takes upstream seconds a step."""
    monkeypatch.setattr(nnInteractiveInferenceSession, "MAX_AUTOZOOM_FACTOR", 1.5)


@pytest.fixture(scope="module")
def volume():
    return bar_in_a_box()


@pytest.fixture
def make_client(quick_model, device, volume) -> Callable[[], Client]:
    """Return a function that creates sessions with the image."""
    return lambda: Client(quick_model, device).set_image(volume)


@pytest.fixture
def client(make_client) -> Client:
    return make_client()


@pytest.fixture
def hooked_client(quick_model, device, volume) -> Client:
    """A client whose ``hook.restart(f)`` calls f(n) before the n-th pass."""
    hook = Hooked(quick_model.artifacts["network"])
    client = Client(with_network(quick_model, hook), device).set_image(volume)
    client.hook = hook  # type: ignore[attr-defined]
    return client
