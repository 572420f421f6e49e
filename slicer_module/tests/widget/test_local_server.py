"""The server on this computer: its process, and its button and command in the Configuration tab."""

import importlib
import os
from pathlib import Path
import shlex
import sys

import fakes
from NNInteractiveWSLib import localServer
from NNInteractiveWSLib.localServer import CannotStart, LocalServer
from NNInteractiveWSLib.logic import Logic
from NNInteractiveWSLib.serverForm import userConsents
import numpy as np
from panel_harness import Module
import pytest
import qt
import slicer

REAL = f"{shlex.quote(sys.executable)} -P -m nninteractive_ws serve --model demo"
ADDRESS = "ws://127.0.0.1:9"
#: Commands of a shell script that listens at once, and ends when its standard input closes.
LISTEN = f"echo listening on {ADDRESS}; exec cat > /dev/null"


@pytest.fixture
def panel(application):
    """The panel with the real question for consent."""
    made = Module(Logic, consents=userConsents)
    yield made
    made.close()


@pytest.fixture
def script(tmp_path):
    """Write a shell script as a program in a folder whose name has a space. Return its path."""

    def write(text, name="program"):
        folder = tmp_path / "my programs"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


def start(panel, command):
    panel.ui.localServerCommandLineEdit.text = str(command)
    panel.ui.localServerButton.click()


def isAlive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def descendants(pid):
    """The IDs of all processes that a process has started, directly or indirectly."""
    children = [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    return [*children, *(d for child in children for d in descendants(child))]


def servers():
    """The IDs of the processes of all servers that this process has started, also of those for other tests."""
    found = descendants(os.getpid())
    return {p for p in found if b"nninteractive_ws" in Path(f"/proc/{p}/cmdline").read_bytes()}


# ---- a real server ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_server_starts_without_a_question_and_stops(panel, add_volume, wait_until):
    volume = add_volume(np.random.default_rng(0).integers(0, 99, (40, 30, 20)).astype(np.int16))
    panel.ui.volumeSelector.setCurrentNode(volume)
    before = servers()
    start(panel, REAL)
    assert panel.ui.localServerButton.text == "Stop the server"
    assert "Starting" in panel.ui.testResultLabel.text
    wait_until(lambda: panel.logic.session is not None)
    address = panel.ui.serverComboBox.currentText
    assert address in panel.ui.testResultLabel.text
    wait_until(lambda: panel.logic.server is not None)
    assert panel.logic.addPoint((5.0, 5.0, 5.0))
    wait_until(lambda: panel.logic.canUndo and not panel.logic.busy)
    assert fakes.ctkMessageBox.asked == []
    running = servers() - before
    assert len(running) > 1, "the worker is missing"
    panel.ui.localServerButton.click()
    assert panel.ui.localServerButton.text == "Start a server here"
    panel.panel.refresh()
    assert panel.ui.statusLabel.text == "Choose a prompt to begin.", "the status is that of the ended session"
    assert panel.ui.serverComboBox.currentText == "ws://127.0.0.1:1528"
    assert panel.ui.serverComboBox.findText(address) == -1
    wait_until(lambda: not any(isAlive(pid) for pid in running), within=20)


@pytest.mark.slow
def test_a_real_server_ends_with_the_module(application, wait_until):
    module = application.createModule(importlib.import_module("NNInteractiveWS"))
    before = servers()
    module.ui.localServerCommandLineEdit.text = REAL
    module.ui.localServerButton.click()
    wait_until(lambda: module.logic.server is not None)
    running = servers() - before
    assert len(running) > 1, "the worker is missing"
    application.unloadModule("NNInteractiveWS")
    wait_until(lambda: not any(isAlive(pid) for pid in running), within=20)


def test_a_wrong_option_is_reported(panel, wait_until):
    start(panel, f"{shlex.quote(sys.executable)} -P -m nninteractive_ws serve --no-such-option")
    wait_until(lambda: panel.ui.localServerButton.text == "Start a server here")
    message = panel.ui.testResultLabel.text
    assert message.startswith("The server has ended with status 2. Its last messages:")
    assert "No such option: --no-such-option" in message
    assert "color" in panel.ui.testResultLabel.styleSheet


# ---- the end of the process -------------------------------------------------------------------------------


def withPid(path, commands):
    """Commands of a shell script that writes its process ID, and then does something."""
    return f"echo $$ > {shlex.quote(str(path))}; {commands}"


@pytest.mark.parametrize("end", ["button", "close"])
def test_the_process_ends_with_its_standard_input(panel, script, wait_until, tmp_path, end):
    start(panel, script(withPid(tmp_path / "pid", LISTEN)))
    wait_until(lambda: panel.ui.serverComboBox.currentText == ADDRESS)
    pid = int((tmp_path / "pid").read_text())
    assert isAlive(pid)
    if end == "button":
        panel.ui.localServerButton.click()
    else:
        panel.panel.server.close()
    wait_until(lambda: not isAlive(pid), within=5)


def test_a_program_that_does_not_end_by_itself_is_killed(panel, script, wait_until, tmp_path, monkeypatch):
    monkeypatch.setattr(localServer, "_END_TIMEOUT_MS", 200)
    pid_file = tmp_path / "pid"
    start(panel, script(withPid(pid_file, "exec sleep 1000")))
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip())
    panel.ui.localServerButton.click()
    assert panel.ui.testResultLabel.text == ""
    wait_until(lambda: not isAlive(int(pid_file.read_text())), within=5)


@pytest.mark.parametrize(("number", "reason"), [(9, "crashed or was killed"), (None, "ended with status 7")])
def test_a_server_that_ends_later_is_reported(panel, script, wait_until, tmp_path, number, reason):
    end = "exit 7" if number is None else f"kill -{number} $$"
    panel.ui.serverComboBox.setEditText("ws://gpu-box")
    panel.panel.server.use()
    start(panel, script(f"echo listening on {ADDRESS}; sleep 0.5; echo out of luck >&2; {end}"))
    wait_until(lambda: panel.ui.serverComboBox.currentText == ADDRESS)
    wait_until(lambda: panel.ui.localServerButton.text == "Start a server here")
    assert reason in panel.ui.testResultLabel.text
    assert "out of luck" in panel.ui.testResultLabel.text
    assert panel.ui.serverComboBox.currentText == "ws://gpu-box"
    assert panel.logic._controller.server["address"] == "ws://gpu-box"


# ---- consent and settings ---------------------------------------------------------------------------------


def test_only_an_own_server_on_loopback_needs_no_consent(panel, script, wait_until):
    for address in ("ssh://gpu-box", "ws://gpu-box:9", "ws://127.0.0.1.example.org:9"):
        fakes.ctkMessageBox.answers.append(qt.QMessageBox.No)
        start(panel, script(f"echo listening on {address}; exec cat > /dev/null"))
        wait_until(lambda: panel.ui.serverComboBox.currentText == address)  # noqa: B023
        assert address in fakes.ctkMessageBox.asked[-1]
        assert panel.logic.session is None
        panel.ui.localServerButton.click()
    asked = len(fakes.ctkMessageBox.asked)
    for address in ("ws://localhost:9", "ws://[::1]:9", "ws://0.0.0.0:9"):
        start(panel, script(f"echo listening on {address}; exec cat > /dev/null"))
        wait_until(lambda: panel.logic.session is not None)
        assert panel.ui.serverComboBox.currentText == address
        panel.ui.localServerButton.click()
        assert panel.logic.session is None
    assert len(fakes.ctkMessageBox.asked) == asked
    fakes.ctkMessageBox.answers.append(qt.QMessageBox.No)
    panel.ui.serverComboBox.setEditText("ws://localhost:9")
    panel.panel.server.use()
    assert not panel.logic.connect(), "the consent outlived the server"


def test_the_command_is_stored_and_the_address_is_not(panel, script, wait_until):
    command = script(LISTEN)
    start(panel, command)
    wait_until(lambda: panel.ui.serverComboBox.currentText == ADDRESS)
    panel.ui.tokenLineEdit.text = "secret"
    panel.panel.server.use()
    again = Module(Logic)
    assert again.ui.localServerCommandLineEdit.text == str(command)
    assert again.ui.serverComboBox.findText(ADDRESS) == -1
    again.close()
    assert qt.QSettings().value("NNInteractiveWS/agreedServers") is None


# ---- commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["no-such-program", "~/no/such/program --flag", '""', "~nobody-at-all/x", "/", "x" * 5000]
)
def test_a_missing_program_is_explained(panel, command):
    start(panel, command)
    message = panel.ui.installationLabel.text
    assert "was not found" in message
    assert "GB" in message
    assert "Command" in message
    assert panel.ui.testResultLabel.text == ""
    assert panel.ui.localServerButton.text == "Start a server here"


@pytest.mark.parametrize("command", ["nninteractive-ws 'serve", 'x "y', "program \\"])
def test_an_incomplete_command(panel, command):
    start(panel, command)
    assert f"The command {command} is incomplete" in panel.ui.testResultLabel.text


def test_a_file_that_is_no_program(panel, tmp_path, wait_until):
    file = tmp_path / "notes"
    file.write_text("not a program")
    file.chmod(0o755)
    start(panel, file)
    wait_until(lambda: panel.ui.localServerButton.text == "Start a server here")
    assert panel.ui.testResultLabel.text.startswith("The server could not be started: ")


def run(command, wait_until):
    """Run a command, and return the lines that it printed."""
    lines, ended = [], []
    server = LocalServer(lines.append, None, lambda message, address: ended.append(message))
    server.start(command)
    wait_until(lambda: ended)
    assert not server.isRunning
    return lines


def test_arguments_and_environment(application, script, wait_until, monkeypatch):
    program = script('for a in "$@"; do echo "$a"; done; echo $MINE', "nninteractive-ws")
    monkeypatch.setattr(
        slicer.util, "startupEnvironment", lambda: {"PATH": f"{program.parent}:/bin:/usr/bin", "MINE": "of startup"}
    )
    monkeypatch.setenv("MINE", "of Slicer")
    added = ["serve", "--port", "0", "--end-with-stdin", "of startup"]
    assert run("", wait_until) == added
    assert run("  nninteractive-ws ", wait_until) == added
    assert run(str(program), wait_until) == added, "a path with a space"
    assert run(f"{shlex.quote(str(program))} serve --model 'a b'", wait_until) == [
        *("serve", "--model", "a b", "--port", "0", "--end-with-stdin", "of startup")
    ]
    monkeypatch.setenv("HOME", str(program.parent))
    assert run("~/nninteractive-ws -x", wait_until)[:2] == ["-x", "serve"]


def test_backslashes_separate_folders_on_windows(monkeypatch):
    monkeypatch.setattr(localServer.os, "name", "nt")
    words = localServer._split(r'C:\env\Scripts\nninteractive-ws.exe serve --model "C:\my models\a"')
    monkeypatch.undo()
    assert words == [r"C:\env\Scripts\nninteractive-ws.exe", "serve", "--model", r"C:\my models\a"]


def test_the_path_variable_of_windows(script, monkeypatch):
    program = script("exit 0", "mine")
    assert localServer._parse("mine", {"Path": str(program.parent)})[0] == str(program)
    with pytest.raises(CannotStart):
        localServer._parse("mine", {"Path": "/nowhere"})


def test_progress_before_the_server_listens(panel, script, wait_until):
    start(panel, script(r"printf 'downloading 10 %%\rdownloading 20 %%\r'; exec cat > /dev/null"))
    wait_until(lambda: "downloading 20 %" in panel.ui.testResultLabel.text)
    assert panel.ui.testResultLabel.text.startswith("Starting a server on this computer")
