"""The Docker image without building it: its health check, and the consistency of its files."""

from collections.abc import Iterator
import json
from pathlib import Path
import re
import socket
import subprocess
import sys

from helpers.end_to_end import server_process, wait_until
import pytest
import trustme
import yaml

from tools.docs_hooks import command as command_of

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def check_health(port: int | str) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "docker" / "healthcheck.py"), str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_server_with_a_loaded_model_is_healthy(server: str) -> None:
    wait_until(lambda: check_health(server.rpartition(":")[2])[0] == 0)
    _, output = check_health(server.rpartition(":")[2])
    assert json.loads(output[-1])["model"] == "demo"


@pytest.fixture
def secure_port(tmp_path: Path) -> Iterator[str]:
    trustme.CA().issue_cert("gpu-box").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    files = ["--tls-cert", str(tmp_path / "both.pem"), "--tls-key", str(tmp_path / "both.pem")]
    with server_process(*files) as process:
        yield process.address.rpartition(":")[2]


def test_a_tls_server_is_healthy_once_the_model_is_loaded(secure_port: str) -> None:
    status, output = check_health(secure_port)
    assert status == (0 if json.loads(output[-1])["status"] == "ready" else 1)
    assert len(output) == 2  # after an attempt with plain HTTP


def test_an_idle_server_is_healthy() -> None:
    with server_process("--workers", "0..1") as process:
        status, output = check_health(process.address.rpartition(":")[2])
    assert (status, json.loads(output[-1])["status"]) == (0, "idle")


def test_the_kubernetes_manifest_fits_the_commands_and_itself() -> None:
    documents = list(yaml.safe_load_all((ROOT / "docker" / "kubernetes.yaml").read_text()))
    gateway, service, worker = (document["spec"] for document in documents)
    for deployment, name in ((gateway, "gateway"), (worker, "worker")):
        (container,) = deployment["template"]["spec"]["containers"]
        assert (container["name"], deployment["template"]["spec"]["securityContext"]["runAsUser"]) == (name, 10001)
        assert deployment["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
        command, *arguments = container["args"]
        known = {option for parameter in command_of(command).params for option in parameter.opts}
        assert {argument.partition("=")[0] for argument in arguments if argument.startswith("--")} <= known
    assert service["selector"] == gateway["selector"]["matchLabels"]
    host, port = worker["template"]["spec"]["containers"][0]["args"][1].removeprefix("wss://").split(":")
    assert host == documents[1]["metadata"]["name"]
    assert f"--worker-port={port}" in gateway["template"]["spec"]["containers"][0]["args"]
    assert int(port) in [entry["port"] for entry in service["ports"]]


def test_a_closed_port_is_unhealthy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listening
        status, output = check_health(taken.getsockname()[1])
    assert status == 1
    assert all("ConnectionRefusedError" in line for line in output)


def test_the_files_copied_by_the_dockerfile_exist_and_are_not_ignored() -> None:
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    copied = {source for line in lines for source in line.split()[:-1]}
    assert "nninteractive_ws" in copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied


def test_compose_uses_valid_options_and_defined_secrets() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    service = compose["services"]["server"]
    serve, *options = service["command"]
    helped = subprocess.run(
        [sys.executable, "-m", "nninteractive_ws", serve, "--help"], capture_output=True, text=True, check=True
    )
    for option in options:
        assert re.search(rf"(^|\s){option.partition('=')[0]}\b", helped.stdout)
    secrets = set(re.findall(r"/run/secrets/(\S+)", " ".join(options)))
    assert secrets == set(service["secrets"]) == set(compose["secrets"])
    assert {volume.partition(":")[0] for volume in service["volumes"]} == set(compose["volumes"])
    assert {volume.partition(":")[2] for volume in service["volumes"]} == set(
        re.findall(r"^VOLUME (\S+)", DOCKERFILE, re.M)
    )
