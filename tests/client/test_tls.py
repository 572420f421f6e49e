"""wss:// with both drivers and with the commands. The tests create their own certificate authority."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
import os
from pathlib import Path
import socket
import ssl
import subprocess
import sys
import time
from typing import Any

from helpers.drivers import Driver, mask, states
from helpers.end_to_end import phantom
from helpers.fast_server import quick_server
from helpers.fault_proxy import fault_proxy
from helpers.threads import run_in_thread
import numpy as np
import pytest
import SimpleITK as sitk
import trustme

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.client.address import parse_address
from nninteractive_ws.client.tls import ssl_context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of a private authority, as in a hospital."""
    path = tmp_path_factory.mktemp("ca") / "hospital.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def server(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server that speaks TLS."""
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    for n, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(str(folder / "cert.pem"), append=n > 0)
    with quick_server("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")) as server:
        assert server.address.startswith("wss://")
        yield server.address


@contextmanager
def listening(certificate: trustme.LeafCert) -> Iterator[int]:
    """Start a listener that completes TLS handshakes and then stays silent. Yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(4096)
                except OSError:
                    pass  # the client refused it

        with run_in_thread(work):
            yield listener.getsockname()[1]


def refuse_blocking(address: str, **options: Any) -> errors.Error:
    with pytest.raises(errors.Error) as caught:
        nni.connect(address, **options)
    return caught.value


def refuse_polled(address: str, **options: Any) -> errors.Error:
    session = nni.PolledSession(address, **options)
    end, received = time.monotonic() + 30, []
    while not session.closed:
        assert time.monotonic() < end
        received += session.poll()
        time.sleep(0.001)
    received += session.poll()
    failed, closed = received[-2:]
    assert isinstance(failed, events.Failed)
    assert closed == events.Connection("closed", reason=str(failed.error))
    return failed.error


Refuse = Callable[..., errors.Error]
both = pytest.mark.parametrize("refuse", [refuse_blocking, refuse_polled], ids=["blocking", "polled"])


# ---- sessions -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_session(driver: type[Driver], server: str, ca: Path) -> None:
    session = driver(server, ca=ca)
    session.set_image(phantom())()
    session.ask("add_point", (30, 30, 28))()
    assert mask(session).any()
    session.close()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_names_and_addresses(driver: type[Driver], server: str, ca: Path, host: str) -> None:
    driver(server.replace("wss://127.0.0.1", f"https://{host}"), ca=str(ca)).close()


def test_a_connection_is_restored(driver: type[Driver], server: str, ca: Path) -> None:
    with fault_proxy(server) as network:
        session = driver(network.address.replace("ws://", "wss://"), ca=ca)
        noise = np.random.default_rng(0).integers(-1000, 1000, (160, 130, 130), np.int16)
        session.set_image(noise)()
        session.ask("add_point", (30, 30, 28))()
        network.cut()
        session.ask("add_point", (40, 30, 28))()
        session.until(lambda: states(session) == ["open", "lost", "open"])
        assert len(session.core.segment("a").steps) == 2
        session.until(lambda: all_there(session))
        session.close()


def all_there(session: Driver) -> bool:
    received = [e for e in session.events if isinstance(e, events.ImageProgress)]
    return received[-1].present == received[-1].total


# ---- untrusted servers --------------------------------------------------------------------------------------


@both
def test_another_name(refuse: Refuse, authority: trustme.CA, ca: Path) -> None:
    with listening(authority.issue_cert("gpu-box.example")) as port:
        error = refuse(f"wss://localhost:{port}", ca=ca)
    assert type(error) is errors.Untrusted
    assert 'is not valid for the name "localhost". Connect by a name' in str(error)
    with listening(authority.issue_cert("gpu-box.example")) as port:
        error = refuse(f"wss://127.0.0.1:{port}", ca=ca)
    assert type(error) is errors.Untrusted
    assert 'is not valid for the name "127.0.0.1"' in str(error)


@both
def test_dates(refuse: Refuse, authority: trustme.CA, ca: Path) -> None:
    now, day = datetime.now(UTC), timedelta(days=1)
    with listening(authority.issue_cert("localhost", not_before=now - 9 * day, not_after=now - day)) as port:
        error = refuse(f"wss://localhost:{port}", ca=ca)
    assert type(error) is errors.Untrusted
    assert "has expired. Ask the server's administrator to renew it" in str(error)
    with listening(authority.issue_cert("localhost", not_before=now + day, not_after=now + 9 * day)) as port:
        error = refuse(f"wss://localhost:{port}", ca=ca)
    assert type(error) is errors.Untrusted
    assert "is not valid yet. Check the date and time" in str(error)


@both
def test_an_unknown_authority(refuse: Refuse, authority: trustme.CA, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    for options in ({}, {"ca": other}):
        with listening(authority.issue_cert("localhost")) as port:
            error = refuse(f"wss://localhost:{port}", **options)
        assert type(error) is errors.Untrusted
        assert "not issued by an authority that is trusted here" in str(error)
        assert "--ca FILE" in str(error)


@both
def test_the_servers_own_certificate_may_be_trusted(refuse: Refuse, authority: trustme.CA, tmp_path: Path) -> None:
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    with listening(issued) as port:
        error = refuse(f"wss://localhost:{port}", ca=tmp_path / "server.pem")
    assert type(error) is errors.ConnectionFailed, "TLS was agreed on, but the listener hangs up then"
    assert "is not an nninteractive-ws server" in str(error)


@pytest.mark.slow
@both
def test_a_side_without_tls(refuse: Refuse, server: str, ca: Path) -> None:
    error = refuse(server.replace("wss://", "ws://"))
    assert type(error) is errors.ConnectionFailed
    assert "write wss:// in the address" in str(error)
    with quick_server() as plain:
        error = refuse(plain.address.replace("ws://", "wss://"), ca=ca)
    assert type(error) is errors.ConnectionFailed
    assert str(error).startswith(f"The TLS handshake with {plain.address.removeprefix('ws://')} failed.")
    assert "write ws:// instead of wss://" in str(error)


def test_an_invalid_certificate_file(tmp_path: Path, ca: Path) -> None:
    address = parse_address("wss://box")
    (tmp_path / "empty.pem").write_text("")
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem", tmp_path):
        with pytest.raises(errors.Untrusted, match=r"certificates .* cannot be read as PEM"):
            ssl_context(address, path)
        with pytest.raises(errors.Untrusted):
            nni.PolledSession("wss://box", ca=path)
    assert ssl_context(address, None) is not None
    assert ssl_context(parse_address("box"), None) is None
    with pytest.raises(errors.BadAddress, match=r"is not encrypted\. Use wss://"):
        nni.connect("box", ca=ca)


def test_verification_is_never_weakened(ca: Path) -> None:
    for given in (None, ca):
        context = ssl_context(parse_address("wss://box"), given)
        assert context is not None
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


# ---- the commands -------------------------------------------------------------------------------------------


def command(*message: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nninteractive_ws", *map(str, message)],
        capture_output=True, text=True, timeout=100, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


@pytest.mark.slow
def test_doctor(server: str, ca: Path) -> None:
    done = command("doctor", server, "--ca", ca)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TLSv1.3, certificate issued by" in done.stdout
    done = command("doctor", server)
    assert done.returncode == 1
    message = " ".join(done.stdout.replace("│", " ").split())
    assert "not issued by an authority that is trusted here" in message


@pytest.mark.slow
def test_segment(server: str, ca: Path, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(phantom()), str(tmp_path / "image.nrrd"))
    message = (
        "segment",
        tmp_path / "image.nrrd",
        "--point",
        "30,30,28",
        "-o",
        tmp_path / "out.nrrd",
        "--server",
        server,
    )
    done = command(*message)
    assert done.returncode == 1
    assert "--ca FILE" in done.stderr
    done = command(*message, "--ca", ca)
    assert done.returncode == 0, done.stderr
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nrrd"))).any()
