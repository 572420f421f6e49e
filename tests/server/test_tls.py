"""TLS of the server, with a certificate chain: a root, an intermediate, and the server's."""

from collections.abc import Iterator
from dataclasses import dataclass
import datetime
from pathlib import Path
import ssl
import time
from typing import Any
import urllib.request

from helpers.end_to_end import ServerProcess, phantom, server_process
import numpy as np
import pytest
import trustme

import nninteractive_ws as nni
from nninteractive_ws import errors
from nninteractive_ws.client import events
from nninteractive_ws.server.access import add_user


@dataclass
class Certificates:
    """Files of a certificate with its chain, of its key, and of the authority."""

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


def polled_until(session: nni.PolledSession, happened: list[Any], kind: type) -> Any:
    until = time.monotonic() + 60
    while not (found := [e for e in happened if isinstance(e, kind)]):
        assert time.monotonic() < until
        happened += session.poll()
        time.sleep(0.002)
    return found[0]


@pytest.mark.slow
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
    polled._core.add_point("a", (30, 30, 28))
    while not any(isinstance(e, events.Done) and e.result.segment for e in happened):
        happened += polled.poll()
        time.sleep(0.002)
    assert np.array_equal(polled._core.segments["a"].mask, expected)
    polled.close()


def test_a_wrong_token_over_tls(secure: ServerProcess, certificates: Certificates, token: str) -> None:
    with pytest.raises(errors.Unauthorized):
        nni.connect(secure.address, token=token + "x", ca=certificates.ca)


def test_plain_http_over_tls(secure: ServerProcess, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    with urllib.request.urlopen(f"{secure.address.replace('wss', 'https')}/healthz", context=context) as answer:
        assert answer.status == 200
