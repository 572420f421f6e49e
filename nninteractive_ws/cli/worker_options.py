"""Options of ``serve`` about its workers, turned into settings."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
import re
import socket
import sys

import typer

from nninteractive_ws.server.launchers import CommandLauncher, Launcher, LocalLauncher, parse_launch
from nninteractive_ws.server.pool import PoolSettings
from nninteractive_ws.server.settings import RemoteWorkers
from nninteractive_ws.server.worker_tls import make_certificate
from nninteractive_ws.server.worker_token import serve_worker_token

#: Seconds in a minute, the unit of --idle-end.
_MINUTE_S = 60.0


@dataclass(frozen=True)
class WorkerOptions:
    """The options, as given."""

    devices: tuple[str, ...]
    launch: Sequence[str]
    host: str | None
    port: int
    token_file: Path | None
    workers: str | None
    idle_end: float | None
    python: str | None


def check_worker_options(options: WorkerOptions) -> None:
    """Raise a usage error for invalid options."""
    parse_range(options.workers)
    if options.launch and options.devices != ("auto",):
        raise typer.BadParameter("Workers of --launch choose their device themselves.", param_hint="'--device'")
    if options.idle_end is not None and options.workers is None:
        raise typer.BadParameter("Expected --workers with it, such as --workers 0..4.", param_hint="'--idle-end'")


def parse_range(text: str | None) -> tuple[int, int] | None:
    """Parse MIN..MAX, or a number. Raises a usage error."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if low > high or high == 0:
        raise typer.BadParameter(
            f'Expected a number or a range such as 0..4, found "{text}".', param_hint="'--workers'"
        )
    return low, high


def pool_settings(
    options: WorkerOptions, local_arguments: tuple[str, ...]
) -> tuple[PoolSettings, RemoteWorkers | None]:
    """Return which workers there are, and where those on other machines connect.

    ``local_arguments``: arguments of workers on this machine. Raises AccessError or typer.BadParameter.
    """
    launchers = _launchers(options, local_arguments)
    low, high = parse_range(options.workers) or (len(launchers), len(launchers))
    launchers = [launchers[n % len(launchers)] for n in range(high)] if launchers else []
    idle_end_s = math.inf if options.idle_end is None else options.idle_end * _MINUTE_S
    token, certificate = ("", None) if options.token_file is None else serve_worker_token(options.token_file)
    settings = PoolSettings(launchers, min(low, high), idle_end_s, token)
    if certificate is None and any(isinstance(launcher, CommandLauncher) for launcher in launchers):
        certificate = make_certificate()
    if certificate is None:
        return settings, None
    return settings, RemoteWorkers(options.host or socket.gethostname(), options.port, certificate)


def _launchers(options: WorkerOptions, local_arguments: tuple[str, ...]) -> list[Launcher]:
    if options.launch:
        try:
            return [parse_launch(text, options.python or sys.executable) for text in options.launch]
        except ValueError as e:
            raise typer.BadParameter(str(e), param_hint="'--launch'") from e
    if options.token_file is not None:
        return []  # all workers join by themselves
    return [
        LocalLauncher(device, (*local_arguments, "--workers", str(len(options.devices)))) for device in options.devices
    ]
