"""``nninteractive-ws worker``."""

import contextlib
import os
from pathlib import Path
import signal
import subprocess
import time
from typing import Annotated

import typer

from nninteractive_ws.cli.console import fail, stderr

#: Delay before the worker is started again. It doubles while the worker does not stay.
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
#: A worker that ran for this long was connected, and starts again after the first delay.
_STEADY_S = 60.0
END_TIMEOUT_S = 3.0


def worker(
    server: Annotated[str, typer.Argument(help="Address for workers of a server, as wss://HOST:PORT.")],
    token_file: Annotated[
        Path, typer.Option(help="A copy of the server's --worker-token-file.", exists=True, dir_okay=False)
    ],
    model: Annotated[str, typer.Option(help="Name of the server's model, or its folder on this machine.")] = "demo",
    device: Annotated[str, typer.Option(help="Device for inference: auto, cpu, cuda, cuda:1, ...")] = "auto",
    memory: Annotated[
        float | None,
        typer.Option(
            help="Gigabytes of host memory for sessions. Default: 80 % of the free memory.", min=0.001, max=1e9
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network for the GPU (torch.compile).")
    ] = False,
) -> None:
    """Join a server that was started elsewhere, and compute for it.

    Example:

        nninteractive-ws worker wss://gateway:1529 --token-file worker-token

    It runs until Ctrl-C. The worker is started again if it ends, or if the server cannot be reached.
    """
    try:
        from nninteractive_ws import worker_protocol
        from nninteractive_ws.engine.model_registry import ModelNotFound, find_model
        from nninteractive_ws.processes import end_process, own_process_group, python_module
        from nninteractive_ws.server.access import AccessError
        from nninteractive_ws.server.launchers import ENVIRONMENT, REMOTE_ARGUMENTS
        from nninteractive_ws.server.worker_token import read_worker_token
    except ModuleNotFoundError as e:
        fail(f"worker needs the package {e.name}. Install it with: pip install 'nninteractive-ws[server]'")

    try:
        token = read_worker_token(token_file)
        name, folder = find_model(model)
    except (AccessError, ModelNotFound) as e:
        fail(e)
    arguments = ["--gateway", server, "--model-name", name, "--model-folder", str(folder), "--device", device]
    arguments += ["--compile"] if compiled else []
    arguments += [] if memory is None else ["--memory", str(int(memory * 1e9))]
    command = python_module("nninteractive_ws.engine.worker", *arguments, *REMOTE_ARGUMENTS)
    credentials = worker_protocol.encode_credentials(token.token, token.der)
    delay = FIRST_DELAY_S
    while True:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**ENVIRONMENT, **os.environ}, **own_process_group()
        )
        try:
            terminated = _supervise(process, credentials)
        finally:
            end_process(process, END_TIMEOUT_S)
        if terminated:
            return
        if time.monotonic() - started > _STEADY_S:
            delay = FIRST_DELAY_S
        stderr.print(f"The worker ended with status {process.returncode}. It starts again in {delay:.0f} s.")
        time.sleep(delay)
        delay = min(2 * delay, LONGEST_DELAY_S)


def _supervise(process: "subprocess.Popen[bytes]", credentials: bytes) -> bool:
    """Give a worker its credentials, and wait until it ends. Return whether this process received SIGTERM.

    The signal is passed on, and the worker ends once the server has moved its sessions.
    """
    terminated = False

    def terminate(*_: object) -> None:
        nonlocal terminated
        terminated = True
        process.terminate()

    assert process.stdin is not None
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        # The pipe stays open. The worker ends when it closes, which it does when this process ends for any reason.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(credentials)
            process.stdin.flush()
        process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    return terminated
