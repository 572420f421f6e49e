"""Options, markers and fixtures for all tests."""

import os
from pathlib import Path
import signal
import sys

from helpers.programs import find_program
from helpers.unit import NOT_UNIT_FIXTURES, may_have_unit_tests
from hypothesis import HealthCheck, settings
import pytest

# Several tests and servers run at once, so idle threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell without job control starts background processes with Ctrl-C ignored, which child processes inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline and no check of the generation speed, because the machine may be busy.
settings.register_profile("full", deadline=None, suppress_health_check=[HealthCheck.too_slow])
#: A quarter of the examples, without --slow.
settings.register_profile("quick", settings.get_profile("full"), max_examples=25)

#: Markers of tests that need a program, and its path if it is installed.
PROGRAMS = {
    "nginx": find_program("nginx"),
    "sshd": find_program("sshd") if sys.platform == "linux" and find_program("ssh") else None,
    "slurm": find_program("slurmd") if all(map(find_program, ("slurmctld", "munged", "srun"))) else None,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run slow tests too, and property tests with all examples")
    parser.addoption("--release", action="store_true", help="run the slowest tests too")
    parser.addoption("--unit", action="store_true", help="run only tests that start no process and need no torch")


def pytest_configure(config: pytest.Config) -> None:
    profile = settings.get_profile("full" if config.getoption("--slow") else "quick")
    settings.register_profile("chosen", profile, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("chosen")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--unit") and collection_path.match("test_*.py"):
        return not may_have_unit_tests(collection_path) or None
    return None


@pytest.hookimpl(tryfirst=True)  # before -m selects by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--unit"):
        items[:] = [i for i in items if not NOT_UNIT_FIXTURES.intersection(getattr(i, "fixturenames", ()))]
    for item in items:
        if config.getoption("--slow") or config.getoption("--release"):
            # Property tests are part of "--slow -m slow", because they have more examples there.
            if getattr(getattr(item, "function", None), "is_hypothesis_test", False):
                item.add_marker("slow")
        elif item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))
        if item.get_closest_marker("release") and not config.getoption("--release"):
            item.add_marker(pytest.mark.skip(reason="release: runs with --release"))
        for marker, program in PROGRAMS.items():
            if program is None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker} is not installed"))


# torch and the engine are imported in the fixtures, so that the tests of the client run without them.


@pytest.fixture(scope="session")
def demo_model():
    """The embedded model on the CPU, loaded once. Its masks are not tested, because it may be trained again."""
    import torch

    from nninteractive_ws.engine.model_loader import load_model
    from nninteractive_ws.engine.model_registry import DEMO, MODEL_FOLDER

    return load_model(DEMO, MODEL_FOLDER, torch.device("cpu"))


@pytest.fixture(scope="session")
def quick_model(demo_model):
    """The embedded model with a fast, deterministic network."""
    from helpers.engine import quick

    return quick(demo_model)


@pytest.fixture(scope="session")
def device():
    """The device thread, which runs the networks."""
    from nninteractive_ws.engine.device_scheduler import DeviceScheduler

    thread = DeviceScheduler("cpu")
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def server():
    """The address of a real server with the embedded model, on loopback, for all tests of a run."""
    from nninteractive_ws.server.local_server import local_server

    arguments = ("--model", "demo", "--log-level", "warning", "--allow-host", "gpu-box", "--no-page")
    with local_server(*arguments) as address:
        yield address


@pytest.fixture(params=["Blocking", "Polled"], ids=str.lower)
def driver(request):
    """Each of the two drivers of the client."""
    from helpers import drivers

    return getattr(drivers, request.param)


@pytest.fixture
def back_at_once(monkeypatch):
    """Disable the back-off for a client that loses many connections."""
    from nninteractive_ws.client import reconnect

    monkeypatch.setattr(reconnect, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(reconnect, "LONGEST_DELAY_S", 0.1)
