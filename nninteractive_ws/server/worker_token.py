"""The file with which workers join a server by themselves: a token, and the certificate of the server."""

from dataclasses import dataclass
from pathlib import Path
import re

from nninteractive_ws.atomic_files import atomic_write
from nninteractive_ws.server.access import AccessError, insecure_permissions, new_token
from nninteractive_ws.server.worker_tls import WorkerCertificate, make_certificate

_HEADER = (
    "# Workers with this file join the server, and receive the images of its users. Keep it secret.\n"
    "# It has a token, the server's certificate, and the certificate's key.\n"
)
_BLOCK = r"-----BEGIN {0}-----\n.+?\n-----END {0}-----\n"


class BadWorkerToken(AccessError):
    """A worker token file that cannot be read or written, or is none."""


@dataclass(frozen=True)
class WorkerToken:
    """The contents of the file."""

    token: str
    certificate: WorkerCertificate


def read_worker_token(path: Path) -> WorkerToken:
    """Read a file of :func:`create_worker_token`. Raises BadWorkerToken."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise BadWorkerToken(
            f"The worker token file {path} cannot be read ({getattr(e, 'strerror', None) or e})."
        ) from e
    token = re.search(r"^token (\S+)$", text, re.MULTILINE)
    blocks = [re.search(_BLOCK.format(name), text, re.DOTALL) for name in ("CERTIFICATE", "PRIVATE KEY")]
    certificate, key = blocks
    if token is None or certificate is None or key is None:
        raise BadWorkerToken(
            f"The file {path} is no worker token file. Start the server with --worker-token-file and the name of a "
            "file that does not exist. It creates the file, and the workers need a copy."
        )
    return WorkerToken(token[1], WorkerCertificate(certificate[0].encode(), key[0].encode()))


def create_worker_token(path: Path) -> WorkerToken:
    """Read a file, or create it, for its owner alone. Raises BadWorkerToken."""
    if not path.exists():
        made = make_certificate()
        text = f"{_HEADER}token {new_token()}\n{made.certificate.decode()}{made.key.decode()}"
        try:
            with atomic_write(path, private=True) as new:
                new.write_text(text)
        except OSError as e:
            raise BadWorkerToken(f"The worker token file {path} cannot be written ({e.strerror or e}).") from e
    if (warning := insecure_permissions(path)) is not None:
        raise BadWorkerToken(warning)
    return read_worker_token(path)
