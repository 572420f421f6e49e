"""What all tests share."""

import os
import signal

from hypothesis import HealthCheck, settings
import pytest

# Several tests run at once, beside the servers they start: a thread that waits for work leaves the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What a shell without job control starts in the background ignores Ctrl-C, and so would the commands that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline and no health check of the speed of generating: a busy machine is not a failed test.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


# torch and the engine are imported inside: without them, the tests of the client still run.


@pytest.fixture(scope="session")
def demo_model():
    """The embedded model on the CPU, loaded once. What it answers is not tested: it may be trained again."""
    import torch

    from nninteractive_ws.engine.catalogue import DEMO, MODEL_FOLDER
    from nninteractive_ws.engine.models import load_model

    return load_model(DEMO, MODEL_FOLDER, torch.device("cpu"))


@pytest.fixture(scope="session")
def quick_model(demo_model):
    """The embedded model with a network that takes milliseconds and has habits of its own."""
    from engine_helpers import quick

    return quick(demo_model)


@pytest.fixture(scope="session")
def device():
    """The one thread that runs networks."""
    from nninteractive_ws.engine.device import DeviceThread

    thread = DeviceThread("cpu")
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def server():
    """The address of a real server with the embedded model, on loopback, for all tests of a run."""
    from nninteractive_ws.server.local import local_server

    with local_server("--model", "demo", "--log-level", "warning", "--allow-host", "gpu-box") as address:
        yield address


@pytest.fixture(params=["Blocking", "Polled"], ids=str.lower)
def driver(request):
    """Each of the two drivers of the client."""
    import driver_helpers

    return getattr(driver_helpers, request.param)


@pytest.fixture
def back_at_once(monkeypatch):
    """A client that is cut off again and again would wait longer and longer."""
    from nninteractive_ws.client import reconnect

    monkeypatch.setattr(reconnect, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(reconnect, "LONGEST_DELAY_S", 0.1)
