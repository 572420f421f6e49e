"""TLS between this gateway and workers on other machines, with a certificate that only they trust."""

from dataclasses import dataclass
import datetime
from pathlib import Path
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_VALID_FOR = datetime.timedelta(days=3650)
# Clocks of a cluster may differ.
_CLOCK_TOLERANCE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class WorkerCertificate:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes

    @property
    def der(self) -> bytes:
        """The certificate, DER."""
        return ssl.PEM_cert_to_DER_cert(self.certificate.decode())

    def server_context(self) -> ssl.SSLContext:
        """Return the gateway's TLS context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Python loads keys from files only. Nobody else may read the folder.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "certificate.pem")
            path.write_bytes(self.key + self.certificate)
            context.load_cert_chain(path)
        return context


def make_certificate() -> WorkerCertificate:
    """Make a new certificate. It is the only one that workers trust, so its names do not matter."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nninteractive-ws workers")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_TOLERANCE)
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return WorkerCertificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
