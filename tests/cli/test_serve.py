"""Options of ``serve`` that are checked before the start, and errors if it cannot start."""

from pathlib import Path
import subprocess

import pytest
import typer

from nninteractive_ws.cli.serve import _devices
from nninteractive_ws.processes import python_module


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("auto", ("auto",)),
        ("cpu", ("cpu",)),
        ("cuda", ("cuda",)),
        ("cuda:0, cuda:12", ("cuda:0", "cuda:12")),
        ("mps", ("mps",)),
        ("xpu:1", ("xpu:1",)),
    ],
)
def test_devices(text: str, names: tuple[str, ...]) -> None:
    assert _devices(text) == names


@pytest.mark.parametrize("text", ["gpu", "", "cuda:", "cuda:-1", "CUDA", "nvidia", "0", "cpu:0", "meta", "cuda:0,gpu"])
def test_an_invalid_device_name_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"Expected auto, cpu, cuda .*, cuda:0, cuda:1, \.\.\., mps"):
        _devices(text)


def serve(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = python_module("nninteractive_ws", "serve", *map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_unknown_device_ends_the_command_immediately() -> None:
    done = serve("--device", "gpu", "--port", "0", "--model", "demo")
    assert done.returncode == 2
    assert "There is no device" in done.stderr
    assert done.stdout == ""


def test_a_model_that_is_a_file_is_not_reported_as_a_port_in_use(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    done = serve("--port", "0", "--model", tmp_path / "model")
    assert done.returncode == 1
    assert "is a file. Expected the folder of a model" in done.stderr
    assert "server" not in done.stderr
    assert "listen" not in done.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_of_another_machine_is_refused(host: str) -> None:
    done = serve("--port", "0", "--model", "demo", "--insecure", "--host", host)
    assert done.returncode == 1
    assert f"Cannot listen on {host}:0" in done.stderr
    assert "Check --host" in done.stderr
    assert "other server" not in done.stderr
