"""ssh:// addresses, with a real sshd on loopback and its own keys."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from typing import Any

from helpers.end_to_end import health, listens, phantom, run, wait_until
from helpers.http import free_port
from helpers.sshd import Sshd, sshd_in_path
from helpers.threads import run_in_thread
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import psutil
import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.client.address import SshTarget, parse_address
from nninteractive_ws.client.tunnel import Tunnel


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with sshd_in_path(tmp_path) as running:
        yield running


def ssh_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "-N" in p.cmdline()]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


# ---- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ssh://gpu-box", SshTarget("gpu-box")),
        ("ssh://anna@gpu-box", SshTarget("anna@gpu-box")),
        ("ssh://anna@gpu-box:2222", SshTarget("anna@gpu-box", 2222)),
        ("ssh://anna@gpu-box:2222/1600", SshTarget("anna@gpu-box", 2222, 1600)),
        ("ssh://gpu-box/1600/", SshTarget("gpu-box", None, 1600)),
        ("ssh://[::1]:22", SshTarget("::1", 22)),
        ("ssh://Anna@GPU-Box:22", SshTarget("Anna@GPU-Box", 22)),  # the case counts in ~/.ssh/config
        ("SSH://gpu_box-2.lab.example", SshTarget("gpu_box-2.lab.example")),
        ("ssh://anna.b+c@lab.example@gpu-box", SshTarget("anna.b+c@lab.example@gpu-box")),
        ("ssh://müller@größe.example", SshTarget("müller@größe.example")),
    ],
)
def test_addresses(text: str, target: SshTarget) -> None:
    address = parse_address(text)
    assert address.ssh == target
    assert parse_address(str(address)).ssh == target


@pytest.mark.parametrize(
    "text",
    ["ssh://", "ssh://-oProxyCommand=touch", "ssh://-l@host", "ssh://a b", "ssh://a@-b", "ssh://host/abc",
     "ssh://host/70000", "ssh://anna:secret@host", "ssh://host:0", "ssh://host*", "ssh://!host", "ssh://ho?st",
     "ssh://%h", "ssh://%r@host", "ssh://a'b@host", 'ssh://a"b', "ssh://a;b", "ssh://a\\b", "ssh://`id`@host",
     "ssh://$(id)", "ssh://a&b", "ssh://a|b", "ssh://{a,b}", "ssh://a>b", "ssh://host,other", "ssh://~host",
     "ssh://[fe80::1%eth0]", "ssh://[fe80::1%25eth0]", "ssh://host:2²", "ssh://host/١٥٢٨", "ssh://host?secret",
     "ssh://host#secret", "ssh://a\nb", "ssh://a\0b", "ssh://a@b@c@host", "ssh://.", "ssh://nws_secret@host",
     "ssh://host\u200b", "ssh://\udc80", "SSH://host;id", "ssh://host:22;id", "ssh://:22", "ssh://user@:22"],
)  # fmt: skip
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(errors.BadAddress) as refused:
        parse_address(text)
    assert "secret" not in str(refused.value)


def test_a_server_is_only_started_through_ssh() -> None:
    with pytest.raises(errors.BadAddress, match="through ssh"):
        nni.connect("127.0.0.1:1", start="nninteractive-ws serve")


# ---- connections ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sshd
def test_prompts_through_ssh_which_is_killed(sshd: Sshd, server: str) -> None:
    received: list[Any] = []
    address = f"ssh://gpu-box/{port_of(server)}"
    with nni.connect(address, on={"connection": received.append}) as session:
        session.set_image(phantom())
        segment = session.segment("a")
        segment.add_point((30, 30, 28))
        first = segment.mask.copy()
        (ssh,) = ssh_processes()
        assert "secret" not in " ".join(ssh.cmdline())
        ssh.kill()
        segment.add_point((40, 30, 28), positive=False)
        segment.undo()
        assert np.array_equal(segment.mask, first)
        assert [e.state for e in received] == ["open", "lost", "open"]
        assert received[-1].welcome.resumed
        (again,) = ssh_processes()
        assert again.pid != ssh.pid
    assert ssh_processes() == []


@pytest.mark.slow
@pytest.mark.sshd
def test_the_polled_driver_through_ssh(sshd: Sshd, server: str) -> None:
    session = nni.PolledSession(f"ssh://gpu-box/{port_of(server)}")
    session.set_image(phantom())
    happened: list[Any] = []
    asked = False
    until = time.monotonic() + 60
    while not any(isinstance(e, events.Done) and e.result.segment for e in happened):
        assert time.monotonic() < until
        happened += session.poll()
        if not asked and any(isinstance(e, events.ImageProgress) for e in happened):
            asked = bool(session._core.add_point("a", (30, 30, 28)))
            ssh_processes()[0].send_signal(signal.SIGTERM)
        time.sleep(0.005)
    assert session._core.segments["a"].mask.any()
    session.close()
    wait_until(lambda: not ssh_processes(), 10)


@pytest.mark.slow
@pytest.mark.sshd
def test_a_server_is_started_and_ended(sshd: Sshd) -> None:
    port = free_port()
    command = f"{sys.executable} -m nninteractive_ws serve --model demo --log-level critical"
    with nni.connect(f"ssh://gpu-box/{port}", start=command) as session:
        assert health(f"ws://127.0.0.1:{port}")["model"] == "demo"
        session.set_image(phantom())
        assert session.segment("a").add_point((30, 30, 28)).voxels
    wait_until(lambda: not listens(port), 20)


@pytest.mark.slow
@pytest.mark.sshd
def test_the_commands_through_ssh(sshd: Sshd, server: str, tmp_path: Path) -> None:
    def doctor(address: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "nninteractive_ws", "doctor", address]
        environment = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        return done.returncode, " ".join(done.stdout.split())

    status, output = doctor(f"ssh://gpu-box/{port_of(server)}")
    assert status == 0, output
    assert "connected to gpu-box, forwarding to port" in output
    assert "model demo" in output
    port = free_port()
    status, output = doctor(f"ssh://gpu-box/{port}")
    assert status == 1
    assert f"nothing listens at port {port} there" in output
    image = tmp_path / "image.nrrd"
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(phantom()), str(image))
    command = [sys.executable, "-m", "nninteractive_ws", "segment", str(image), "--point", "28,30,30"]
    command += ["-o", str(tmp_path / "mask.nrrd"), "--server", f"ssh://gpu-box/{port}"]
    command += ["--start", f"{sys.executable} -m nninteractive_ws serve --model demo --log-level critical"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nrrd"))).any()


@pytest.mark.sshd
def test_a_server_start_that_fails(sshd: Sshd) -> None:
    with pytest.raises(
        errors.ConnectionFailed, match=r"could not be started on gpu-box \(status 127\).*no-such-command"
    ):
        nni.connect(f"ssh://gpu-box/{free_port()}", start="no-such-command serve")
    assert ssh_processes() == []


# ---- error messages ---------------------------------------------------------------------------------------


def refusal(address: str) -> errors.ConnectionFailed:
    """Return the error of the asyncio driver, after a check that the polled one gives the same."""
    with pytest.raises(errors.ConnectionFailed) as refused:
        run(nni.aconnect(address))
    polled = nni.PolledSession(address)
    happened: list[Any] = []
    wait_until(lambda: happened.extend(polled.poll()) or polled.closed, 30)
    (failed,) = [e for e in happened if isinstance(e, events.Failed)]
    assert type(failed.error) is type(refused.value)
    assert str(failed.error) == str(refused.value)
    assert ssh_processes() == []
    return refused.value


@pytest.mark.sshd
def test_no_server_behind_ssh(sshd: Sshd) -> None:
    port = free_port()
    assert f"nothing listens at port {port} there" in str(refusal(f"ssh://gpu-box/{port}"))


@pytest.mark.sshd
def test_an_unknown_host_key(sshd: Sshd, server: str) -> None:
    sshd.client(known="nobody")
    refused = refusal(f"ssh://gpu-box/{port_of(server)}")
    assert isinstance(refused, errors.Untrusted)
    assert "Run `ssh gpu-box` once" in str(refused)


@pytest.mark.sshd
def test_permission_denied(sshd: Sshd, server: str) -> None:
    sshd.client(key="stranger_key")
    assert "does not let you in" in str(refusal(f"ssh://gpu-box/{port_of(server)}"))


@pytest.mark.sshd
def test_no_ssh_server(sshd: Sshd) -> None:
    assert "No ssh server listens at 127.0.0.1" in str(refusal(f"ssh://127.0.0.1:{free_port()}"))


@pytest.mark.sshd
def test_an_unknown_name(sshd: Sshd) -> None:
    assert "not known to ssh" in str(refusal("ssh://no-such-machine.invalid"))


def test_no_ssh_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no ssh on this machine" in str(refusal("ssh://gpu-box"))


# ---- other users of the machine -----------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a short path, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def opened(target: SshTarget) -> Tunnel:
    tunnel = Tunnel(target)
    wait_until(tunnel.ready, 20)
    return tunnel


@pytest.mark.sshd
def test_no_other_user_can_enter_the_tunnel(sshd: Sshd, server: str, temporary: Path) -> None:
    tunnel = opened(SshTarget("gpu-box", None, port_of(server)))
    (folder,) = temporary.iterdir()
    made = Path(str(tunnel.local.unix_socket))
    assert made.parent == folder
    assert made.is_socket()
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, os.geteuid())
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    for process in (psutil.Process(), *ssh_processes()):
        assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    tunnel.close()
    assert list(temporary.iterdir()) == []
    with pytest.raises(errors.ConnectionFailed, match="closed"):
        _ = tunnel.local


class Recorder:
    """A server that records the Authorization header and the client process of every request."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []

    def note(self, connection: ServerConnection, request: Request) -> Response:
        _, port = connection.remote_address
        sent_by = {c.laddr.port: c.pid for c in psutil.net_connections("tcp4") if c.laddr and c.pid}
        self.seen.append((psutil.Process(sent_by[port]).name(), request.headers.get("Authorization")))
        return connection.respond(404, "nothing here")

    @contextmanager
    def serving(self) -> Iterator[int]:
        with (
            serve(lambda _: None, "127.0.0.1", 0, process_request=self.note) as listening,
            run_in_thread(listening.serve_forever, listening.shutdown),
        ):
            yield listening.socket.getsockname()[1]


@pytest.mark.slow
@pytest.mark.sshd
def test_a_token_is_sent_only_through_ssh(sshd: Sshd, temporary: Path) -> None:
    recorder = Recorder()
    with recorder.serving() as port:
        address = f"ssh://gpu-box/{port}"
        with pytest.raises(errors.ConnectionFailed, match="HTTP 404"):
            run(nni.aconnect(address, token="nws_secret"))
        polled = nni.PolledSession(address, token="nws_secret")
        wait_until(lambda: polled.poll() is not None and polled.closed, 30)
        command = [sys.executable, "-m", "nninteractive_ws", "doctor", address, "--json"]
        environment = {**os.environ, "NNINTERACTIVE_WS_TOKEN": "nws_secret"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert "HTTP 404" in done.stdout
    assert {name for name, _ in recorder.seen} == {"sshd"}
    assert [token for _, token in recorder.seen if token] == ["Bearer nws_secret"] * 3
    assert list(temporary.iterdir()) == []


@pytest.mark.sshd
def test_a_new_socket_where_temporary_files_were_deleted(sshd: Sshd, server: str, temporary: Path) -> None:
    tunnel = opened(SshTarget("gpu-box", None, port_of(server)))
    before = Path(str(tunnel.local.unix_socket))
    before.unlink()
    wait_until(tunnel.ready, 20)
    assert tunnel.local.unix_socket != str(before)
    assert [Path(str(tunnel.local.unix_socket)).parent] == list(temporary.iterdir())
    tunnel.close()


@pytest.mark.sshd
def test_a_killed_ssh_leaves_no_files(sshd: Sshd, server: str, temporary: Path) -> None:
    tunnel = opened(SshTarget("gpu-box", None, port_of(server)))
    (ssh,) = ssh_processes()
    ssh.kill()
    wait_until(lambda: not tunnel.ready(), 20)
    wait_until(tunnel.ready, 20)
    assert len(list(temporary.iterdir())) == 1
    tunnel.close()
    assert list(temporary.iterdir()) == []


@pytest.mark.sshd
def test_a_socket_that_cannot_be_created(sshd: Sshd, server: str, temporary: Path) -> None:
    front = sshd.folder / "bin" / "ssh"
    # Create a folder at the path of the socket before ssh does.
    lines = front.read_text().splitlines()
    lines.insert(1, 'for word; do case $word in /*/socket:*) mkdir "${word%%:*}" ;; esac; done')
    front.write_text("\n".join(lines) + "\n")
    assert "TMPDIR" in str(refusal(f"ssh://gpu-box/{port_of(server)}"))
    assert list(temporary.iterdir()) == []


@pytest.mark.sshd
@pytest.mark.parametrize("name", ["x" * 90, "a:b", "%h", "${HOME}", "ä b"])
def test_an_unsuitable_temporary_folder_is_skipped(
    sshd: Sshd, server: str, temporary: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    odd = temporary / name
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    tunnel = opened(SshTarget("gpu-box", None, port_of(server)))
    assert Path(str(tunnel.local.unix_socket)).parent.parent == Path("/tmp")
    tunnel.close()


@pytest.mark.sshd
def test_no_suitable_temporary_folder(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nninteractive_ws.client.tunnel._MAX_SOCKET_PATH", 5)
    assert "Set the environment variable TMPDIR" in str(refusal("ssh://gpu-box"))


@pytest.mark.sshd
def test_without_unix_sockets_another_listener_gets_nothing(
    sshd: Sshd, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where another program may take the chosen port."""
    monkeypatch.setattr("nninteractive_ws.client.tunnel._UNIX_SOCKETS", False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.setblocking(False)
        chosen = iter([taken.getsockname()[1]])
        real = socket.create_server

        class Taken:
            def __enter__(self) -> socket.socket:
                return taken

            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(
            "nninteractive_ws.client.tunnel.socket.create_server",
            lambda where: Taken() if next(chosen, None) else real(where),
        )
        tunnel = opened(SshTarget("gpu-box", None, port_of(server)))
        assert tunnel.local.port != taken.getsockname()[1]
        assert health(f"ws://127.0.0.1:{tunnel.local.port}")["model"] == "demo"
        with pytest.raises(BlockingIOError):
            taken.accept()
        tunnel.close()


@pytest.mark.slow
@pytest.mark.sshd
def test_without_unix_sockets_both_drivers_work(sshd: Sshd, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nninteractive_ws.client.tunnel._UNIX_SOCKETS", False)
    with nni.connect(f"ssh://gpu-box/{port_of(server)}") as session:
        session.set_image(phantom())
        assert session.segment("a").add_point((30, 30, 28)).voxels
    port = free_port()
    assert f"nothing listens at port {port} there" in str(refusal(f"ssh://gpu-box/{port}"))
    sshd.client(key="stranger_key")
    assert "does not let you in" in str(refusal(f"ssh://gpu-box/{port_of(server)}"))


# ---- no shell -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.text(min_size=1), st.text(), st.text())
def test_no_character_of_a_shell_reaches_ssh(host: str, user: str, rest: str) -> None:
    for text in (f"ssh://{host}", f"ssh://{user}@{host}", f"ssh://{user}@{host}{rest}", f"ssh://{host}:{rest}"):
        try:
            target = parse_address(text).ssh
        except errors.BadAddress:
            continue
        assert target is not None
        assert re.fullmatch(r"[\w.@:+-]+", target.host)
        assert not target.host.startswith("-")
        assert "@-" not in target.host


@pytest.mark.sshd
@pytest.mark.parametrize("where", ["host", "user"])
@pytest.mark.parametrize(
    "expected", ["$(touch {})", "`touch {}`", ";touch {}", "|touch {}", "'\"&touch {}", "\n touch {}"]
)
def test_a_proxy_command_receives_no_shell_commands(sshd: Sshd, tmp_path: Path, where: str, expected: str) -> None:
    """Many configurations pass host and user to a shell."""
    configuration = (sshd.folder / "client").read_text()
    (sshd.folder / "client").write_text(f"{configuration}Host *\n  ProxyCommand true %h %r\n")
    made = tmp_path / "made"
    message = expected.format(made).replace(" ", "${IFS}").replace("/", "${HOME%%[!/]*}")
    text = f"ssh://{message}" if where == "host" else f"ssh://{message}@gpu-box"
    with pytest.raises(errors.BadAddress):
        nni.connect(text)
    assert not made.exists()
