"""Options of ``serve`` about its workers, turned into settings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
import itertools
import math
from pathlib import Path
import re
import socket
import sys

import typer

from nninteractive_ws.server.launchers import CommandLauncher, Launcher, LocalLauncher, SshLauncher, parse_launch
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
    # Without --launch, a server with a token file starts no workers. They join by themselves.
    places = options.launch or (options.devices if options.token_file is None else ())
    low, high = parse_range(options.workers) or (len(places), len(places))
    places = list(itertools.islice(itertools.cycle(places), high))
    launchers = _ssh_and_commands(options, places) if options.launch else _local(places, local_arguments)
    idle_end_s = math.inf if options.idle_end is None else options.idle_end * _MINUTE_S
    token, certificate = ("", None) if options.token_file is None else serve_worker_token(options.token_file)
    settings = PoolSettings(launchers, min(low, high), idle_end_s, token)
    if certificate is None and any(isinstance(launcher, CommandLauncher) for launcher in launchers):
        certificate = make_certificate()
    if certificate is None:
        return settings, None
    return settings, RemoteWorkers(options.host or socket.gethostname(), options.port, certificate)


def _local(devices: Sequence[str], arguments: tuple[str, ...]) -> list[Launcher]:
    on_device = Counter(devices)
    return [LocalLauncher(device, len(devices), on_device[device], arguments) for device in devices]


def _ssh_and_commands(options: WorkerOptions, texts: Sequence[str]) -> list[Launcher]:
    try:
        launchers = [parse_launch(text, options.python or sys.executable) for text in texts]
    except ValueError as e:
        raise typer.BadParameter(str(e), param_hint="'--launch'") from e
    on_machine = Counter(launcher.name for launcher in launchers)
    return [
        replace(launcher, workers=on_machine[launcher.name]) if isinstance(launcher, SshLauncher) else launcher
        for launcher in launchers
    ]
