"""TLS between real clients and servers, with a chain of certificates made here: an authority, one below, a server's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import datetime
import os
from pathlib import Path
import ssl
import subprocess
import sys
import threading
import time
from typing import Any
import urllib.request

from chain_helpers import ServerProcess, phantom, run, server_process
import numpy as np
import pytest
import trustme
from websockets.sync.server import serve

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.server.access import add_user, tls_context


@dataclass
class Certificates:
    """Files of a certificate with those between it and the authority's, of its key, and of the authority."""

    cert: Path
    key: Path
    ca: Path

    @classmethod
    def make(cls, folder: Path, *names: str, expired: bool = False) -> "Certificates":
        root = trustme.CA()
        between = root.create_child_ca()
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        dates = {"not_before": yesterday - datetime.timedelta(days=9), "not_after": yesterday} if expired else {}
        issued = between.issue_cert(*names, **dates)
        made = cls(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
        made.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(made.key))
        root.cert_pem.write_to_path(str(made.ca))
        return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("tls"), "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def token(certificates: Certificates) -> str:
    return add_user(certificates.ca.parent / "tokens", "anna")


@pytest.fixture(scope="module")
def secure(certificates: Certificates, token: str) -> Iterator[ServerProcess]:
    files = ["--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)]
    with server_process(*files, "--token-file", str(certificates.ca.parent / "tokens")) as server:
        assert server.address.startswith("wss://")
        yield server


@contextmanager
def listener(certificates: Certificates) -> Iterator[str]:
    """A WebSocket server that nobody is to talk to."""

    def never(_: Any) -> None:
        raise AssertionError("a client came through")

    with serve(never, "127.0.0.1", 0, ssl=tls_context(certificates.cert, certificates.key)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"wss://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def polled_until(session: nni.PolledSession, happened: list[Any], kind: type) -> Any:
    until = time.monotonic() + 60
    while not (found := [e for e in happened if isinstance(e, kind)]):
        assert time.monotonic() < until
        happened += session.poll()
        time.sleep(0.002)
    return found[0]


def refusal(address: str, ca: Path | None) -> str:
    """What both drivers say to a certificate that is not to be trusted."""
    with pytest.raises(errors.Untrusted) as refused:
        run(nni.aconnect(address, ca=ca))
    session = nni.PolledSession(address, ca=ca)
    failed = polled_until(session, [], events.Failed)
    assert session.closed
    assert type(failed.error) is errors.Untrusted
    assert str(failed.error) == str(refused.value)
    return str(refused.value)


def test_prompts_over_tls(secure: ServerProcess, certificates: Certificates, token: str) -> None:
    with nni.connect(secure.address, token=token, ca=certificates.ca) as session:
        session.set_image(phantom())
        session.segment("a").add_point((30, 30, 28))
        expected = session.segment("a").mask.copy()
    assert expected.any()
    polled = nni.PolledSession(secure.address.replace("127.0.0.1", "localhost"), token=token, ca=certificates.ca)
    polled.set_image(phantom())
    happened: list[Any] = []
    polled_until(polled, happened, events.ImageProgress)
    polled.core.add_point("a", (30, 30, 28))
    while not any(isinstance(e, events.Done) and e.result.segment for e in happened):
        happened += polled.poll()
        time.sleep(0.002)
    assert np.array_equal(polled.core.segments["a"].mask, expected)
    polled.close()


def test_a_wrong_token_over_tls(secure: ServerProcess, certificates: Certificates, token: str) -> None:
    with pytest.raises(errors.Unauthorized):
        nni.connect(secure.address, token=token + "x", ca=certificates.ca)


def test_plain_http_over_tls(secure: ServerProcess, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    with urllib.request.urlopen(f"{secure.address.replace('wss', 'https')}/healthz", context=context) as answer:
        assert answer.status == 200


def test_the_doctor_over_tls(secure: ServerProcess, certificates: Certificates, token: str) -> None:
    command = [sys.executable, "-m", "nninteractive_ws", "doctor", secure.address]
    environment = {**os.environ, "COLUMNS": "200", "NNINTERACTIVE_WS_TOKEN": token}
    trusting = [*command, "--ca", str(certificates.ca)]
    done = subprocess.run(trusting, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stdout
    assert "encrypted" in done.stdout
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert refused.returncode == 1
    assert "--ca" in refused.stdout


def test_an_authority_that_nobody_knows(secure: ServerProcess) -> None:
    assert "--ca" in refusal(secure.address, None)


def test_another_authority(secure: ServerProcess, tmp_path: Path) -> None:
    refusal(secure.address, Certificates.make(tmp_path, "127.0.0.1").ca)


def test_a_wrong_name(tmp_path: Path) -> None:
    made = Certificates.make(tmp_path, "gpu-box.example.org")
    with listener(made) as address:
        assert "127.0.0.1" in refusal(address, made.ca)


def test_an_expired_one(tmp_path: Path) -> None:
    made = Certificates.make(tmp_path, "127.0.0.1", expired=True)
    with listener(made) as address:
        assert "expired" in refusal(address, made.ca)


def test_tls_on_one_side_only(secure: ServerProcess, server: str, certificates: Certificates) -> None:
    with pytest.raises(errors.ConnectionFailed, match="wss://"):
        nni.connect(secure.address.replace("wss://", "ws://"))
    plain = server.replace("ws://", "wss://")
    with pytest.raises(errors.ConnectionFailed, match="speak TLS at this port"):
        nni.connect(plain, ca=certificates.ca)
    failed = polled_until(nni.PolledSession(plain, ca=certificates.ca), [], events.Failed)
    assert "speak TLS at this port" in str(failed.error)
