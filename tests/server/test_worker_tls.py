"""The certificate of the connections of workers, with Python's own TLS on both ends."""

import socket
import ssl
import threading
from typing import Any

import pytest

from nninteractive_ws.server.worker_tls import WorkerCertificate, make_certificate


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """Return the version of TLS after a handshake. Raises what the client raises."""
    left, right = socket.socketpair()
    failure: list[Any] = []

    def serve() -> None:
        try:
            server.wrap_socket(left, server_side=True).close()
        except OSError as e:  # the client refuses
            failure.append(e)
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname="any.name.example") as connection:
            return connection.version()
    finally:
        right.close()
        thread.join()


def trusting(certificate: WorkerCertificate) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=certificate.der)
    context.check_hostname = False
    return context


def test_a_worker_that_trusts_the_certificate_connects() -> None:
    made = make_certificate()
    assert shake_hands(made.server_context(), trusting(made)) == "TLSv1.3"


def test_a_worker_refuses_another_certificate() -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(make_certificate().server_context(), trusting(make_certificate()))


def test_older_versions_of_tls_are_refused() -> None:
    made = make_certificate()
    old = trusting(made)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(made.server_context(), old)


def test_certificates_are_not_repeated() -> None:
    assert make_certificate().der != make_certificate().der
