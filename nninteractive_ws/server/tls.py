"""The server's TLS: its certificate and key."""

from pathlib import Path
import ssl
from typing import NoReturn

from nninteractive_ws.server.access import AccessError

# OpenSSL's reasons for a key that does not match the certificate, of the same type or of another.
_KEY_MISMATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


class BadCertificate(AccessError):
    """A certificate or key that the server cannot use for TLS."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS context of a server, for TLS 1.2 and newer. Raises BadCertificate.

    ``cert``: the server's certificate and the intermediate certificates, in this order. Both files are PEM.
    """
    for path in (cert, key):
        try:
            path.open("rb").close()
        except OSError as e:
            raise BadCertificate(f"The file {path} cannot be read: {e.strerror or e}.") from e

    def no_password() -> NoReturn:  # otherwise OpenSSL asks on the terminal, and there may be none
        raise BadCertificate(f"The key in {key} is encrypted. Decrypt it: openssl pkey -in {key} -out plain-key.pem")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=no_password)
    except ssl.SSLError as e:
        if e.reason in _KEY_MISMATCH:
            raise BadCertificate(f"The key in {key} does not match the certificate in {cert}.") from e
        raise BadCertificate(
            f"The files {cert} and {key} are not a certificate and its key in PEM format ({e.reason or e})."
        ) from e
    return context
