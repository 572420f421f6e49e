"""The installation of a server on this computer: real environments, with packages that the tests build."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile

import fakes
from NNInteractiveWSLib import installServer, packages, serverInstallation
from NNInteractiveWSLib.logic import Logic
from panel_harness import Module
import pytest
import qt
import slicer

ADDRESS = "ws://127.0.0.1:9"
#: A server that listens at once, and ends when its standard input closes.
SERVER = f"""
import sys

def main():
    print("listening on {ADDRESS}", flush=True)
    sys.stdin.read()
"""
SCRIPTS = "[console_scripts]\nnninteractive-ws=their_server:main\n"
#: A build backend that never ends, and writes its process ID.
ENDLESS = """
import os, time

def build_wheel(*args, **kwargs):
    with open({path!r}, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)

prepare_metadata_for_build_wheel = build_wheel
"""


def makeWheel(folder, name, metadata="", files=None):
    """Build a wheel with the version 0.1.0. Return its path."""
    path = folder / f"{name}-0.1.0-py3-none-any.whl"
    info = f"{name}-0.1.0.dist-info"
    contents = {
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in contents.items():
            wheel.writestr(file, text)
    return path


def makeServerWheel(folder, dependency="some_network"):
    """A wheel like that of this project, whose extra has one dependency."""
    return makeWheel(
        folder,
        "nninteractive_ws",
        f"Provides-Extra: server\nRequires-Dist: {dependency}; extra == 'server'\n",
        {
            "their_server.py": SERVER,
            "nninteractive_ws-0.1.0.dist-info/entry_points.txt": SCRIPTS,
        },
    )


def makeEndlessPackage(folder, pidFile):
    """A source package whose build never ends."""
    source = folder / "endless-0.1.0"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (source / "backend.py").write_text(ENDLESS.format(path=str(pidFile)))
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: endless\nVersion: 0.1.0\n")
    with tarfile.open(folder / "endless-0.1.0.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    shutil.rmtree(source)


@pytest.fixture
def bin(tmp_path):
    """The only folder of programs: a suitable Python, and the program by which an NVIDIA GPU is recognized."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder / "python3", f'exec "{sys._base_executable}" "$@"')
    program(folder / "nvidia-smi", "exit 0")
    return folder


def program(path, commands):
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)


@pytest.fixture
def wheels(tmp_path, bin, monkeypatch):
    """The folder from which pip takes packages, and the environment of programs without an index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    makeWheel(folder, "some_network", files={"some_network.py": ""})
    environment = {
        "PATH": str(bin),
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
    }
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: dict(environment))
    setOrigin(monkeypatch, None)
    return folder


def setOrigin(monkeypatch, reference):
    """Let the client be installed from a direct reference, or from an index."""
    text = None if reference is None else json.dumps(reference)
    monkeypatch.setattr(packages, "distribution", lambda name: types.SimpleNamespace(read_text=lambda file: text))


@pytest.fixture
def panel(application, wheels):
    made = Module(Logic, consents=lambda address: True)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path):
    """The folder of the server, whose path has a space."""
    return tmp_path / "my programs" / "server"


def install(panel, folder):
    panel.ui.localServerButton.click()
    assert isShown(panel)
    panel.ui.installationFolderPathLineEdit.currentPath = str(folder)
    panel.ui.installServerButton.click()


def isShown(panel):
    frame = panel.ui.installationFrame
    return frame.isVisibleTo(frame.parent())


def progress(panel):
    return panel.ui.installationProgressLabel.text


def isAlive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


# ---- installations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["index", "direct reference"])
def test_a_server_is_installed_and_started(panel, wheels, folder, wait_until, monkeypatch, origin, tmp_path):
    if origin == "index":
        makeServerWheel(wheels)
    else:
        setOrigin(monkeypatch, {"url": makeServerWheel(tmp_path).as_uri(), "archive_info": {}})
    install(panel, folder)
    lines = set()
    assert panel.ui.dismissInstallationButton.text == "Cancel"
    wait_until(lambda: lines.add(progress(panel)) or not isShown(panel))
    assert any("some-network" in line or "some_network" in line for line in lines), "no progress was shown"
    server = folder / "bin" / "nninteractive-ws"
    assert panel.ui.localServerCommandLineEdit.text == str(server)
    wait_until(lambda: panel.ui.serverComboBox.currentText == ADDRESS)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("lib")) == [
        *("bin", "include", "pyvenv.cfg")
    ]
    freeze = [folder / "bin" / "python", "-m", "pip", "list", "--format", "freeze"]
    assert "some_network==0.1.0" in subprocess.check_output(freeze, text=True).replace("-", "_")
    panel.ui.localServerButton.click()
    again = Module(Logic)
    again.ui.localServerButton.click()
    wait_until(lambda: again.ui.serverComboBox.currentText == ADDRESS)
    assert not isShown(again)
    again.close()


def test_a_failure_of_pip_is_reported(panel, folder, wait_until):
    install(panel, folder)
    wait_until(lambda: panel.ui.installServerButton.enabled)
    assert "its folder was removed. Its last messages:" in progress(panel)
    assert "No matching distribution found for nninteractive-ws[server]" in progress(panel).splitlines()[-1]
    assert "color" in panel.ui.installationProgressLabel.styleSheet
    assert not folder.exists()
    assert panel.ui.localServerCommandLineEdit.text == "nninteractive-ws"
    panel.ui.dismissInstallationButton.click()
    assert not isShown(panel)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["button", "close", "kill"])
def test_an_unfinished_installation_leaves_nothing(panel, wheels, folder, wait_until, tmp_path, end):
    makeEndlessPackage(wheels, tmp_path / "pid")
    makeServerWheel(wheels, "endless")
    install(panel, folder)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert isAlive(pid)
    if end == "button":
        panel.ui.dismissInstallationButton.click()
        assert progress(panel) == "Canceling..."
        wait_until(lambda: panel.ui.installServerButton.enabled)
        assert progress(panel) == "The installation was canceled, and its folder was removed."
    elif end == "close":
        panel.panel.server.close()
        wait_until(lambda: not folder.exists(), within=20)
    else:
        panel.panel.server._installation._installation._process._process.kill()
        wait_until(lambda: panel.ui.installServerButton.enabled)
        assert f"Delete the folder {folder}." in progress(panel)
        os.kill(pid, 9)
        return
    assert not isAlive(pid)
    assert not folder.exists()


@pytest.mark.slow
def test_the_folder_of_an_unfinished_installation_is_replaced(panel, wheels, folder, wait_until):
    makeServerWheel(wheels)
    folder.mkdir(parents=True)
    (folder / installServer.MARKER).touch()
    (folder / "rest").touch()
    install(panel, folder)
    wait_until(lambda: not isShown(panel))
    assert (folder / "bin" / "nninteractive-ws").exists()
    assert not (folder / "rest").exists()


# ---- requirements -----------------------------------------------------------------------------------------


def test_unsuitable_pythons_are_skipped(panel, bin, folder, wait_until):
    program(bin / "python3.12", "echo command not found; exit 127")
    program(bin / "python3.13", f"exit {installServer.TOO_OLD}")
    (bin / "python3.11").write_bytes(b"no program")
    (bin / "python3.11").chmod(0o755)
    install(panel, folder)
    wait_until(lambda: panel.ui.installServerButton.enabled)
    assert "No matching distribution" in progress(panel), "it did not use python3"
    assert "command not found" not in progress(panel)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (installServer.TOO_OLD, "No Python 3.11 or newer was found"),
        (installServer.WITHOUT_VENV, "sudo apt install python3-venv"),
        (None, "No Python 3.11 or newer was found"),
    ],
)
def test_without_a_suitable_python(panel, bin, folder, wait_until, status, message):
    if status is None:
        (bin / "python3").unlink()
    else:
        program(bin / "python3", f"exit {status}")
    install(panel, folder)
    wait_until(lambda: panel.ui.installServerButton.enabled)
    assert message in progress(panel)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("", 1),
        ("sys.version_info = (3, 10, 9)", installServer.TOO_OLD),
        ("sys.modules['venv'] = None", installServer.WITHOUT_VENV),
        ("sys.modules['ensurepip'] = None", installServer.WITHOUT_VENV),
    ],
)
def test_what_the_program_requires_of_python(tmp_path, change, status):
    """It gets a folder that is not empty, so that it installs nothing."""
    (tmp_path / "file").touch()
    run = f"runpy.run_path({installServer.__file__!r}, run_name='__main__')"
    command = [sys.executable, "-c", f"import runpy, sys\n{change}\n{run}", str(tmp_path), "a-requirement"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith(installServer.STARTED) == (status == 1)


def test_folders_that_cannot_be_used(panel, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, "is not empty"),
        (tmp_path / "file", "cannot be used"),
        (tmp_path / "file" / "below", f"cannot write to {tmp_path / 'file'}"),
        ("relative", "full path"),
        ("", "full path"),
        ("/" + "x" * 5000, "cannot be used"),
    ):
        install(panel, path)
        assert message in progress(panel), path
        assert panel.ui.installServerButton.enabled
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=9.8e9))
    install(panel, tmp_path / "new" / "one")
    assert f"{tmp_path} has 9.8 GB of free space. The installation needs 9.9 GB" in progress(panel)


@pytest.mark.parametrize("withGpu", [True, False])
def test_the_build_of_torch_and_its_size(panel, bin, folder, wait_until, withGpu):
    if not withGpu:
        (bin / "nvidia-smi").unlink()
    program(bin / "python3.12", f'echo {installServer.STARTED}; shift 2; for a in "$@"; do echo "$a"; done; exit 1')
    install(panel, folder)
    text = panel.ui.installationLabel.text
    assert ("about 3.3 GB" in text) == withGpu
    assert ("No NVIDIA GPU was found" in text) != withGpu
    wait_until(lambda: panel.ui.installServerButton.enabled)
    requirement = f"nninteractive-ws[server]{packages.needed()[0].removeprefix('nninteractive-ws')}"
    arguments = progress(panel).splitlines()[1:]
    assert arguments[0] == str(folder)
    assert packages.Requirement(arguments[1]) == packages.Requirement(requirement)
    assert arguments[2:] == ([] if withGpu else ["https://download.pytorch.org/whl/cpu"])


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"url": "file:///home/me/checkout", "dir_info": {"editable": True}}, "file:///home/me/checkout"),
        ({"url": "https://example.org/a.whl", "archive_info": {}}, "https://example.org/a.whl"),
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "git+https://example.org/r.git@abc123",
        ),
    ],
)
def test_a_client_from_elsewhere_determines_the_servers_origin(monkeypatch, reference, expected):
    setOrigin(monkeypatch, reference)
    requirement = packages.Requirement(packages.serverRequirement())
    assert (requirement.name, requirement.extras, requirement.url) == ("nninteractive-ws", {"server"}, expected)


def test_nothing_is_installed_unasked(panel, tmp_path):
    """The guide says what it does, and where. A folder can be chosen."""
    panel.ui.localServerButton.click()
    assert isShown(panel)
    assert panel.ui.installationFolderPathLineEdit.currentPath == str(serverInstallation.DEFAULT_FOLDER)
    assert panel.ui.installationFolderPathLineEdit.filters == fakes.ctkPathLineEdit.Dirs
    panel.ui.dismissInstallationButton.click()
    assert not isShown(panel)
    assert not panel.panel.server._installation._installation.isRunning
    assert qt.QSettings().value("NNInteractiveWS/localServerCommand") == "nninteractive-ws"
