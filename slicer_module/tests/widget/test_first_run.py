"""The instructions of the first run, and the server's version."""

import socket

from NNInteractiveWSLib import firstRun
from NNInteractiveWSLib.logic import Logic
import numpy as np
from panel_harness import Module
import pytest
import qt


@pytest.fixture(autouse=True)
def port(monkeypatch):
    """A free port as the default port, and short intervals between the probes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
    monkeypatch.setattr(firstRun, "DEFAULT_PORT", number)
    monkeypatch.setattr(firstRun, "_PROBE_INTERVAL_S", 0.05)
    return number


@pytest.fixture
def make(application):
    """Create a panel, and open it."""
    made = []

    def create():
        made.append(Module(Logic, consents=lambda address: True))
        made[-1].panel.enter()
        return made[-1]

    yield create
    for module in made:
        module.close()


def isShown(module):
    return module.ui.firstRunFrame.isVisibleTo(module.root)


def probes(module, wait_until):
    """Wait until the result of a probe is known."""
    wait_until(lambda: module.panel._firstRun._found is not None, within=5)
    module.panel.poll()


def test_the_three_ways_are_shown(make, wait_until):
    module = make()
    wait_until(lambda: isShown(module), within=5)
    text = module.ui.firstRunLabel.text
    for way in ("Start a server here", "ssh://user@gpu-box", "administrator"):
        assert way in text
    assert module.ui.statusLabel.styleSheet == ""
    module.ui.chooseServerButton.click()
    assert module.ui.tabWidget.currentIndex == 1
    assert not isShown(module), "it hides the form"
    module.ui.tabWidget.setCurrentIndex(0)
    assert isShown(module)


def test_a_prompt_without_a_server_is_no_error(make, port, add_volume, wait_until):
    module = make()
    wait_until(lambda: isShown(module), within=5)
    module.logic.setServer(f"ws://127.0.0.1:{port}")
    volume = add_volume(np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
    module.ui.volumeSelector.setCurrentNode(volume)
    assert module.logic.addPoint((5.0, 5.0, 5.0))
    wait_until(lambda: module.logic.session is None and not module.logic.busy, within=20)
    module.panel.refresh()
    assert module.ui.statusLabel.styleSheet == ""
    assert module.ui.statusLabel.text == "Nothing was sent, because there is no server yet. Choose a server first."
    module.logic.addPoint((500.0, 5.0, 5.0))
    module.panel.refresh()
    assert "outside the volume" in module.ui.statusLabel.text, "other errors are still shown"
    assert "color" in module.ui.statusLabel.styleSheet


def test_a_server_at_the_default_address(make, port, wait_until):
    module = make()
    wait_until(lambda: isShown(module), within=5)
    with socket.create_server(("127.0.0.1", port)):
        wait_until(lambda: not isShown(module), within=5)
        again = make()
        probes(again, wait_until)
        assert not isShown(again)
    third = make()
    wait_until(lambda: isShown(third), within=5)


@pytest.mark.parametrize("entered", ["ws://gpu-box", "ssh://user@gpu-box"])
def test_a_server_that_the_user_entered(make, wait_until, entered):
    module = make()
    wait_until(lambda: isShown(module), within=5)
    module.ui.serverComboBox.setEditText(entered)
    module.panel.server.use()
    module.panel.refresh()
    assert not isShown(module)
    again = make()
    probes(again, wait_until)
    assert not isShown(again)


def test_a_server_that_was_used(make, server, wait_until):
    module = make()
    wait_until(lambda: isShown(module), within=5)
    module.logic.setServer(server.address)
    assert module.logic.connect()
    wait_until(lambda: not isShown(module))
    assert qt.QSettings().value("NNInteractiveWS/servers") is None
    again = make()
    again.panel.poll()
    assert again.panel._firstRun._probe is None, "there is nothing to find out"
    assert not isShown(again)


def test_a_module_that_is_not_open_does_not_probe(application):
    module = Module(Logic)
    module.panel.poll()
    assert module.panel._firstRun._probe is None
    module.close()


# ---- the server's version ---------------------------------------------------------------------------------


def test_the_version_of_the_server(make, server, wait_until):
    module = make()
    module.logic.setServer(server.address)
    assert module.logic.connect()
    wait_until(lambda: module.logic.server is not None)
    module.panel.refresh()
    assert module.ui.modelLabel.text.endswith(f", {module.logic.server.server_version}")
    module.logic.disconnect()
    module.panel.refresh()
    assert module.logic.serverVersion in module.ui.modelLabel.text, "it is kept like the model"
    module.logic.setServer("ws://gpu-box")
    module.panel.refresh()
    assert module.ui.modelLabel.text == "No model loaded"


@pytest.mark.parametrize("client", ["0.0.9", "12.0.0rc1"])
def test_different_versions_are_noted(make, server, wait_until, monkeypatch, client):
    monkeypatch.setattr("NNInteractiveWSLib.widget.version", lambda name: client)
    module = make()
    module.logic.setServer(server.address)
    assert module.logic.connect()
    wait_until(lambda: module.logic.server is not None)
    module.panel.refresh()
    text = module.ui.modelLabel.text
    assert f"{module.logic.server.server_version}. This module uses nninteractive-ws {client}." in text
