"""Settings of a gateway, as the command line sets them."""

from dataclasses import dataclass
from pathlib import Path
import ssl

from nninteractive_ws.eviction import IDLE_S


@dataclass(frozen=True)
class Settings:
    """Settings of a gateway.

    ``worker``: arguments of the worker processes, one process for each of ``devices``. ``port`` 0 selects a free port.
    ``official_port``: a further port, which serves the same clients; None: there is none. ``linger``: seconds a
    session is kept without a connection. ``idle``: seconds after which an unused session may be evicted. ``origins``:
    origins of the web pages that may use the server. ``allowed_hosts``: further DNS names of a server without tokens.
    ``log_arguments``: arguments for the log of other processes.
    """

    worker: tuple[str, ...]
    model_name: str
    devices: tuple[str, ...] = ("auto",)
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
    log_arguments: tuple[str, ...] = ()
