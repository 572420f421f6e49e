"""Settings of a gateway, as the command line sets them."""

from dataclasses import dataclass
from pathlib import Path
import ssl

from nninteractive_ws.eviction import IDLE_S
from nninteractive_ws.server.pool import PoolSettings
from nninteractive_ws.server.web_page import PAGE_FOLDER
from nninteractive_ws.server.worker_tls import WorkerCertificate


@dataclass(frozen=True)
class RemoteWorkers:
    """The address at which workers on other machines connect. ``port`` 0 selects a free port."""

    host: str
    port: int
    certificate: WorkerCertificate


@dataclass(frozen=True)
class Settings:
    """Settings of a gateway.

    ``worker``: arguments of all workers. ``pool``: which workers there are. ``remote_workers``: where those on other
    machines connect; None: there are none. ``port`` 0 selects a free port.
    ``official_port``: a further port, which serves the same clients; None: there is none. ``linger``: seconds a
    session is kept without a connection. ``idle``: seconds after which an unused session may be evicted. ``origins``:
    origins of the web pages that may use the server. ``allowed_hosts``: further DNS names of a server without tokens.
    ``page``: folder of the built web page, which may be missing; None: serve no page. ``log_arguments``: arguments for
    the log of other processes.
    """

    worker: tuple[str, ...]
    model_name: str
    pool: PoolSettings
    remote_workers: RemoteWorkers | None = None
    host: str = "127.0.0.1"
    port: int = 1528
    official_port: int | None = None
    max_sessions: int = 16
    max_sessions_per_user: int = 16
    linger: float = 600.0
    idle: float = IDLE_S
    token_file: Path | None = None
    tls: ssl.SSLContext | None = None
    origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    page: Path | None = PAGE_FOLDER
    log_arguments: tuple[str, ...] = ()
