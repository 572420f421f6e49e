"""Commands that start workers: here, through ssh, or through a scheduler such as Slurm's srun."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
import secrets
import shlex
import sys
from typing import Protocol

from nninteractive_ws.processes import python_module

_WORKER = "nninteractive_ws.engine.worker"

# glibc's malloc gives every thread its own arena, which keeps freed memory. With a thread for each session, memory
# would grow by hundreds of megabytes as sessions open and close.
# PYTHONSAFEPATH keeps the working folder off sys.path in processes that a worker starts, such as torch.compile's.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "PYTHONSAFEPATH": "1"}

#: Arguments of workers on other machines. A scheduler asks them to end before it ends them.
REMOTE_ARGUMENTS = ("--drain",)

# ssh ends within 15 seconds if the other machine is gone, and at once if it cannot forward the port. It asks nothing.
_SSH_OPTIONS = (
    *("-T", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
# Ports of another machine from which one is drawn for its end of the tunnel. If it is taken, the next attempt draws
# another.
_SSH_PORTS = range(20_000, 60_000)


@dataclass(frozen=True)
class Endpoints:
    """The addresses at which workers connect: on this machine, and from others, with the certificate (DER) to trust."""

    local_port: int
    remote_host: str = ""
    remote_port: int = 0
    certificate: bytes = b""


@dataclass(frozen=True)
class WorkerCommand:
    """A command that starts a worker. ``certificate``: the one that it has to trust; empty: no TLS."""

    arguments: list[str]
    certificate: bytes = b""


def _share_arguments(workers: int, on_device: int) -> tuple[str, ...]:
    """Return the arguments with which a worker takes its share of the memory of its machine and of its device."""
    return "--workers", str(workers), "--workers-on-device", str(on_device)


class Launcher(Protocol):
    """Makes the command that starts a worker. ``name``: for logs and metrics."""

    @property
    def name(self) -> str: ...

    @property
    def is_local(self) -> bool:
        """Whether the workers are on this machine."""
        ...

    def command(self, endpoints: Endpoints, worker: Sequence[str]) -> WorkerCommand:
        """Return the command. ``worker``: the arguments of the worker."""
        ...


@dataclass(frozen=True)
class LocalLauncher:
    """Starts workers on this machine, on one device.

    ``workers``, ``on_device``: highest number of workers on this machine, and of those on the device.
    ``arguments``: further ones of these workers.
    """

    device: str
    workers: int = 1
    on_device: int = 1
    arguments: tuple[str, ...] = ()
    is_local = True

    @property
    def name(self) -> str:
        return self.device

    def command(self, endpoints: Endpoints, worker: Sequence[str]) -> WorkerCommand:
        gateway = f"ws://127.0.0.1:{endpoints.local_port}"
        shares = _share_arguments(self.workers, self.on_device)
        return WorkerCommand(
            python_module(_WORKER, "--gateway", gateway, "--device", self.device, *shares, *self.arguments, *worker)
        )


@dataclass(frozen=True)
class SshLauncher:
    """Starts workers on another machine, through ssh. They connect through the same ssh.

    ``arguments``: those of ssh, of which the last is the destination. ``python``: the interpreter on that machine.
    ``workers``: highest number of workers on that machine. They choose the same device.
    """

    arguments: tuple[str, ...]
    python: str
    workers: int = 1
    is_local = False

    @property
    def name(self) -> str:
        return f"ssh {self.arguments[-1]}"

    def command(self, endpoints: Endpoints, worker: Sequence[str]) -> WorkerCommand:
        port = secrets.choice(_SSH_PORTS)
        program, *options, destination = self.arguments
        tunnel = ["-R", f"127.0.0.1:{port}:127.0.0.1:{endpoints.local_port}"]
        gateway = f"ws://127.0.0.1:{port}"
        shares = _share_arguments(self.workers, self.workers)
        remote = python_module(_WORKER, "--gateway", gateway, *REMOTE_ARGUMENTS, *shares, *worker, python=self.python)
        settings = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        # The other machine's shell parses the command.
        command = shlex.join(["env", *settings, *remote])
        return WorkerCommand([program, *_SSH_OPTIONS, *tunnel, *options, "--", destination, command])


@dataclass(frozen=True)
class CommandLauncher:
    """Starts workers with a command that runs its arguments elsewhere, such as srun.

    ``arguments``: the command, in which ``{host}`` and ``{port}`` stand for the gateway's end. ``python``: the
    interpreter on the other machine.
    """

    arguments: tuple[str, ...]
    python: str
    is_local = False

    @property
    def name(self) -> str:
        for argument in self.arguments:
            if argument.startswith("nninteractive_ws."):  # a module of this package
                return argument.rpartition(".")[2]
        return PurePath(self.arguments[0]).name

    def command(self, endpoints: Endpoints, worker: Sequence[str]) -> WorkerCommand:
        host, port = endpoints.remote_host, str(endpoints.remote_port)
        prefix = [part.replace("{host}", host).replace("{port}", port) for part in self.arguments]
        gateway = f"wss://{f'[{host}]' if ':' in host else host}:{port}"
        return WorkerCommand(
            [*prefix, *python_module(_WORKER, "--gateway", gateway, *REMOTE_ARGUMENTS, *worker, python=self.python)],
            endpoints.certificate,
        )


def parse_launch(text: str, python: str = sys.executable) -> SshLauncher | CommandLauncher:
    """Return the launcher for a command. ``python``: the interpreter on the other machine.

    Raises ValueError with a sentence.
    """
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as e:
        raise ValueError(f"The command {text} cannot be parsed: {e}.") from e
    if not arguments:
        raise ValueError("The command is empty. Expected a command such as 'ssh gpu-box' or 'srun --gres=gpu:1'.")
    if PurePath(arguments[0]).name != "ssh":
        return CommandLauncher(arguments, python)
    if len(arguments) < 2 or arguments[-1].startswith("-"):
        raise ValueError(f"The command {text} names no machine. Expected one at the end, such as 'ssh user@gpu-box'.")
    return SshLauncher(arguments, python)
