"""Commands that start workers."""

from dataclasses import replace
import shlex
import subprocess
import sys

import pytest

from nninteractive_ws.server.launchers import Endpoints, LocalLauncher, parse_launch

ENDPOINTS = Endpoints(local_port=4711, remote_host="login1", remote_port=1529, certificate=b"der")
WORKER = ["--model-name", "a name with blanks; and 'quotes'"]


def test_a_local_worker_connects_on_loopback() -> None:
    command = LocalLauncher("cuda:1", 3, 2, ("--model-folder", "m")).command(ENDPOINTS, WORKER)
    assert command.certificate == b""
    assert command.arguments[:4] == [sys.executable, "-P", "-m", "nninteractive_ws.engine.worker"]
    assert command.arguments[4:] == [
        "--gateway", "ws://127.0.0.1:4711", "--device", "cuda:1", "--workers", "3", "--workers-on-device", "2",
        "--model-folder", "m", *WORKER,
    ]  # fmt: skip
    assert "--drain" not in command.arguments


@pytest.mark.parametrize(
    ("host", "address"), [("login1", "wss://login1:1529"), ("2001:db8::1", "wss://[2001:db8::1]:1529")]
)
def test_a_command_runs_the_worker_elsewhere(host: str, address: str) -> None:
    launcher = parse_launch("srun --gres=gpu:1 --comment '{host} {port}'")
    assert launcher.name == "srun"
    endpoints = Endpoints(4711, host, 1529, b"der")
    command = launcher.command(endpoints, WORKER)
    assert command.certificate == b"der"
    assert command.arguments[:4] == ["srun", "--gres=gpu:1", "--comment", f"{host} 1529"]
    assert command.arguments[4] == sys.executable
    assert command.arguments[8:] == ["--gateway", address, "--drain", *WORKER]


def test_a_module_is_named_by_its_last_part() -> None:
    assert parse_launch("python -m nninteractive_ws.launch_ray --gpus 1").name == "launch_ray"


def test_ssh_forwards_the_port_and_quotes_the_command() -> None:
    launcher = replace(parse_launch("ssh -p 2222 user@gpu1"), workers=2)
    assert launcher.name == "ssh user@gpu1"
    command = launcher.command(ENDPOINTS, WORKER)
    *options, destination, remote = command.arguments
    assert (options[0], options[-1], destination) == ("ssh", "--", "user@gpu1")
    assert options[-3:-1] == ["-p", "2222"]
    tunnel = options[options.index("-R") + 1]
    port = int(tunnel.split(":")[1])
    assert tunnel == f"127.0.0.1:{port}:127.0.0.1:4711"
    # A shell on the other machine sees the same arguments.
    found = subprocess.run(["sh", "-c", f"printf '%s\\n' {remote}"], capture_output=True, text=True, check=True)
    words = found.stdout.splitlines()
    assert words[:3] == ["env", "MALLOC_ARENA_MAX=2", "PYTHONSAFEPATH=1"]
    assert words[words.index("--gateway") :] == [
        "--gateway", f"ws://127.0.0.1:{port}", "--drain", "--workers", "2", "--workers-on-device", "2", *WORKER
    ]  # fmt: skip
    assert command.certificate == b"", "ssh encrypts the connection"


def test_the_python_of_other_machines() -> None:
    for text in ("ssh gpu1", "srun"):
        command = parse_launch(text, "/opt/nn/bin/python").command(ENDPOINTS, [])
        assert "/opt/nn/bin/python -P -m nninteractive_ws.engine.worker" in " ".join(command.arguments)


def test_two_workers_on_one_machine_use_different_ports() -> None:
    launcher = parse_launch("ssh gpu1")
    assert len({shlex.join(launcher.command(ENDPOINTS, []).arguments) for _ in range(8)}) > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("srun 'open", "cannot be parsed"),
        ("ssh", "names no machine"),
        ("/usr/bin/ssh -N", "names no machine"),
    ],
)
def test_commands_that_cannot_work_are_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_launch(text)
