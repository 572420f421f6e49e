"""``nninteractive-ws serve``."""

import logging
from typing import Annotated

import typer

from nninteractive_ws.cli.console import fail, stderr
from nninteractive_ws.client.address import DEFAULT_PORT


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="An official model by name (downloaded on first use), a model folder, or 'demo' for the small "
            "embedded one. Default: nnInteractive's default model where it has been downloaded, else 'demo'."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; the default is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port to listen at; 0 takes a free one.", min=0, max=65535)
    ] = DEFAULT_PORT,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, ...")] = "auto",
    max_sessions: Annotated[int, typer.Option(help="How many clients may be connected at once.", min=1)] = 16,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve nnInteractive to clients, until Ctrl-C."""
    try:
        from nninteractive_ws.engine.catalogue import ModelNotFound, find_model, read_license
    except ModuleNotFoundError as e:
        fail(f"serving needs the package {e.name}: pip install 'nninteractive-ws\\[server]'")
    from nninteractive_ws.server.gateway import Settings
    from nninteractive_ws.server.run import run_gateway
    from nninteractive_ws.server.workers import WorkerFailed

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s gateway %(levelname)s %(name)s: %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    try:
        name, folder = find_model(model)
        stderr.print(f"model [bold]{name}[/] ({folder}), licence: {read_license(folder)}", soft_wrap=True)
        worker = (
            "--model-name",
            name,
            "--model-folder",
            str(folder),
            "--device",
            device,
            "--log-level",
            log_level.upper(),
        )
        run_gateway(Settings(worker, name, host, port, max_sessions))
    except (ModelNotFound, WorkerFailed) as e:
        fail(e)
    except OSError as e:
        fail(
            f"cannot listen at {host}:{port}: {e.strerror or e}. Is another server running? --port 0 takes a free port."
        )
