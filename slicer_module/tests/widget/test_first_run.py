"""The instructions of the first run, and the server's version."""

import socket

from NNInteractiveWSLib import firstRun, packages
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

    def create(consents=lambda address: True):
        made.append(Module(Logic, consents=consents))
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


def test_a_prompt_without_a_server_asks_nothing_and_is_no_error(make, port, add_volume, wait_until):
    asked = []
    module = make(lambda address: asked.append(address) or True)
    volume = add_volume(np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
    module.ui.volumeSelector.setCurrentNode(volume)
    for known, message in (
        (False, "is looking for a server"),
        (True, "there is no server yet. Choose a server first."),
    ):
        if known:
            wait_until(lambda: isShown(module), within=5)
        assert not module.logic.addPoint((5.0, 5.0, 5.0))
        module.panel.refresh()
        assert message in module.ui.statusLabel.text
        assert module.ui.statusLabel.styleSheet == ""
        assert module.logic.session is None
    assert asked == []
    module.ui.serverComboBox.lineEdit().text = f"ws://127.0.0.1:{port}"
    module.panel.server.use()
    assert module.logic.addPoint((5.0, 5.0, 5.0)), "the user entered this address"
    assert asked == [f"ws://127.0.0.1:{port}"]
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
        assert again.logic.connect(), "the server that was found is not used"
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


@pytest.mark.parametrize(
    ("client", "advice"),
    [
        (
            "0.0.9",
            "is newer than this module's client, version 0.0.9, so run slicer.util.pip_install([\"nninteractive-ws==",
        ),
        ("12.0.0rc1", "is older than this module's client, version 12.0.0rc1, so update the server."),
    ],
)
def test_different_versions_are_noted(make, server, wait_until, monkeypatch, client, advice):
    monkeypatch.setattr("NNInteractiveWSLib.widget.version", lambda name: client)
    module = make()
    module.logic.setServer(server.address)
    assert module.logic.connect()
    wait_until(lambda: module.logic.server is not None)
    module.panel.refresh()
    text = module.ui.modelLabel.text
    assert f"{module.logic.server.server_version}. The server {advice}" in text


@pytest.mark.parametrize(
    ("server", "advice"),
    [
        ("nninteractive-ws 0.1.0", None),
        ("nninteractive-ws 0.1.0.0", None),
        ("nninteractive-ws 0.0.10", "so update the server."),
        ("nninteractive-ws 0.1.0rc1", "so update the server."),
        ("nninteractive-ws 0.1.10", 'pip_install(["nninteractive-ws==0.1.10"])'),
        ("nninteractive-ws 0.2.0", "so update the module."),
        ("another-server 7.0", None),
        ("nninteractive-ws from-a-branch", None),
        ("nninteractive-ws", None),
        ("", None),
    ],
)
def test_advice_on_versions(server, advice):
    notice = packages.updateNotice(server, "0.1.0")
    assert notice is None if advice is None else advice in notice
