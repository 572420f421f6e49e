"""``nninteractive-ws serve``."""

import contextlib
from pathlib import Path
import re
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
    device: Annotated[
        str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1, ...; several as cuda:0,cuda:1.")
    ] = "auto",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Let in only who has a token of this file; see the command token.", exists=True, dir_okay=False
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Speak TLS with this certificate (PEM, with those above it).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The key of --tls-cert (PEM).")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen elsewhere than on loopback although there are no tokens.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="The origin of a web page that may use the server; may be repeated.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further DNS name of a server without tokens; may be repeated.",
        ),
    ] = None,
    max_sessions: Annotated[
        int, typer.Option(help="How many sessions there may be, those that wait for their client included.", min=1)
    ] = 16,
    max_sessions_per_user: Annotated[
        int | None, typer.Option(help="How many of them one user may have; default: all.", min=1)
    ] = None,
    linger: Annotated[
        float, typer.Option(help="Seconds a session is kept after its connection was lost.", min=0)
    ] = 600.0,
    memory: Annotated[
        float | None,
        typer.Option(
            help="Gigabytes of this machine's memory for the sessions of each worker; default: 80 % of what is free, "
            "divided by the number of workers.",
            min=0.001,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the network for the GPU (torch.compile): a slower start, then faster prompts."
        ),
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning, error or critical.")] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
) -> None:
    """Serve nnInteractive to clients, until Ctrl-C.

    Examples:

        nninteractive-ws serve
        nninteractive-ws serve --model nnInteractive_v1.0 --device cuda:0,cuda:1
        nninteractive-ws serve --host 0.0.0.0 --token-file tokens \\
            --tls-cert cert.pem --tls-key key.pem

    The first is for this machine and for whoever comes through ssh. It listens at once, tells clients that the model
    is loading until it is there, and computes on the GPU where there is one.
    """
    try:
        from nninteractive_ws.engine.catalogue import ModelNotFound, find_model, read_license
        from nninteractive_ws.server.access import AccessError, check_listening, tls_context
        from nninteractive_ws.server.gateway import Settings
        from nninteractive_ws.server.logs import configure_logging, write_to_stderr
        from nninteractive_ws.server.run import run_gateway
        from nninteractive_ws.server.workers import WorkerFailed
    except ModuleNotFoundError as e:
        fail(f"serving needs the package {e.name}: pip install 'nninteractive-ws[server]'")

    if (tls_cert is None) != (tls_key is None):
        fail("--tls-cert and --tls-key belong together: give both.")
    for name in allow_host or ():
        if not re.fullmatch(r"[\w.-]+", name):
            fail(f'--allow-host takes a name such as gpu-box.example.org, without scheme and port, not "{name}".')
    try:
        configure_logging("gateway", log_level, log_json)
    except ValueError as e:
        fail(e)
    try:
        warning = check_listening(host, token_file is not None, tls_cert is not None, insecure)
        if warning:
            stderr.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
        name, folder = find_model(model)
        stderr.print(f"model [bold]{name}[/] ({folder}), licence: {read_license(folder)}", soft_wrap=True)
        worker = ["--model-name", name, "--model-folder", str(folder), "--log-level", log_level]
        worker += ["--log-json"] if log_json else []
        worker += ["--compile"] if compiled else []
        worker += [] if memory is None else ["--memory", str(int(memory * 1e9))]
        settings = Settings(
            worker=tuple(worker),
            model_name=name,
            devices=tuple(part.strip() for part in device.split(",")),
            host=host,
            port=port,
            max_sessions=max_sessions,
            max_sessions_per_user=max_sessions_per_user or max_sessions,
            linger=linger,
            token_file=token_file,
            tls=None if tls_cert is None or tls_key is None else tls_context(tls_cert, tls_key),
            origins=tuple(allow_origin or ()),
            allowed_hosts=tuple(allow_host or ()),
        )
        run_gateway(settings, end_with_stdin)
    except (ModelNotFound, WorkerFailed, AccessError) as e:
        # If nobody reads standard error, printing to it would block forever.
        with stderr.capture() as captured, contextlib.suppress(typer.Exit):
            fail(e)
        write_to_stderr(captured.get())
        raise typer.Exit(1) from e
    except OSError as e:
        fail(
            f"cannot listen at {host}:{port}: {e.strerror or e}. Is another server running? --port 0 takes a free port."
        )
