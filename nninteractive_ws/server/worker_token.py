"""The files with which workers join a server by themselves.

One has a token and the server's certificate. Each machine of a worker needs a copy. The other has the certificate's
key, and stays with the server, so that no worker can pass itself off as the server.
"""

from dataclasses import dataclass
from pathlib import Path
import re
import ssl

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.server.access import AccessError, insecure_permissions, new_token
from nninteractive_ws.server.worker_tls import WorkerCertificate, make_certificate

_HEADER = "# Workers with this file join the server, and receive the images of its users. Keep it secret.\n"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n.+?\n-----END CERTIFICATE-----\n", re.DOTALL)
_TOKEN = re.compile(r"^token (\S+)$", re.MULTILINE)


class BadWorkerToken(AccessError):
    """A worker token file that cannot be read or written, or is none."""


@dataclass(frozen=True)
class WorkerToken:
    """The file of the workers. ``certificate``: PEM."""

    token: str
    certificate: str

    @property
    def der(self) -> bytes:
        """The certificate, DER."""
        return ssl.PEM_cert_to_DER_cert(self.certificate)


def read_worker_token(path: Path) -> WorkerToken:
    """Read the file of the workers. Raises BadWorkerToken."""
    text = _read(path)
    token, certificate = _TOKEN.search(text), _CERTIFICATE.search(text)
    if token is None or certificate is None:
        raise BadWorkerToken(
            f"The file {path} is no worker token file. Start the server with --worker-token-file and the name of a "
            "file that does not exist. It creates the file, and the workers need a copy."
        )
    return WorkerToken(token[1], certificate[0])


def serve_worker_token(path: Path) -> tuple[str, WorkerCertificate]:
    """Return the server's token and certificate. If there is no file, both files are created, for their owner alone.

    Raises BadWorkerToken.
    """
    if not path.exists():
        made = make_certificate()
        # The key comes first, because the other file makes both valid.
        _write(key_path(path), made.key.decode())
        _write(path, f"{_HEADER}token {new_token()}\n{made.certificate.decode()}")
    for each in (path, key_path(path)):
        if each.exists() and (warning := insecure_permissions(each)) is not None:
            raise BadWorkerToken(warning)
    found, key = read_worker_token(path), _read(key_path(path))
    return found.token, WorkerCertificate(found.certificate.encode(), key.encode())


def key_path(path: Path) -> Path:
    """Return the path of the key that belongs to the file of the workers."""
    return path.with_name(f"{path.name}.key")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise BadWorkerToken(f"The worker token file {path} cannot be read ({reason}).") from e


def _write(path: Path, text: str) -> None:
    try:
        with atomic_write(path, private=True) as new:
            new.write_text(text)
    except OSError as e:
        raise BadWorkerToken(f"The worker token file {path} cannot be written ({e.strerror or e}).") from e
