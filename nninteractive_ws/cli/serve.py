"""``nninteractive-ws serve``."""

from collections.abc import Sequence
import contextlib
from enum import StrEnum
from pathlib import Path
import re
from typing import Annotated

import typer

from nninteractive_ws.cli.console import fail, stderr
from nninteractive_ws.client.address import DEFAULT_PORT
from nninteractive_ws.interrupts import INTERRUPTED


class LogLevel(StrEnum):
    """Levels of the log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of an official model (downloaded on first use), model folder, or 'demo' for the small embedded "
            "model. Default: nnInteractive's default model if it has been downloaded, else 'demo'."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. The default accepts connections from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 selects a free one.", min=0, max=65535)
    ] = DEFAULT_PORT,
    official_port: Annotated[
        int | None,
        typer.Option(
            help="Another port, for clients of nnInteractive's own server, which expect it at 1527. They can also use "
            "--port.",
            min=1,
            max=65535,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device for inference: auto, cpu, cuda, cuda:1, ...; several as cuda:0,cuda:1.")
    ] = "auto",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Accept only clients with a token from this file, see `token --help`.", exists=True, dir_okay=False
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="TLS certificate (PEM), followed by its intermediate certificates.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of --tls-cert (PEM).")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a --host other than loopback without tokens.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may use the server; may be repeated.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Additional DNS name of a server without tokens; may be repeated.",
        ),
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Do not serve the web page.")] = False,
    max_sessions: Annotated[
        int, typer.Option(help="Maximum number of sessions, including disconnected ones.", min=1)
    ] = 16,
    max_sessions_per_user: Annotated[
        int | None, typer.Option(help="Maximum number of sessions per user. Default: --max-sessions.", min=1)
    ] = None,
    linger: Annotated[
        float, typer.Option(help="Seconds for which a session is kept after its connection is lost.", min=0)
    ] = 600.0,
    memory: Annotated[
        float | None,
        typer.Option(
            help="Gigabytes of host memory for the sessions of each worker. Default: 80 % of the free memory, divided "
            "by the highest number of workers that this server starts on the machine.",
            min=0.001,
            max=1e9,
        ),
    ] = None,
    launch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COMMAND",
            help="Start workers with this command, such as 'srun --gres=gpu:1' or 'ssh gpu-box', instead of on this "
            "machine; may be repeated. {host} and {port} are replaced by the address at which workers connect.",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="MIN..MAX",
            help="Number of workers, or a range: more are started when many sessions are in use, and none while nobody "
            "uses the server if MIN is 0. Default: one for each --device or --launch.",
        ),
    ] = None,
    idle_end: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", help="End a worker beyond MIN after this time without use. Default: never.", min=0.01
        ),
    ] = None,
    worker_host: Annotated[
        str | None,
        typer.Option(
            help="Address at which workers on other machines connect. Default: the name of this machine.",
        ),
    ] = None,
    worker_port: Annotated[
        int, typer.Option(help="Port at which they connect; 0 selects a free one.", min=0, max=65535)
    ] = 0,
    worker_token_file: Annotated[
        Path | None,
        typer.Option(
            help="Accept workers that were started elsewhere with `nninteractive-ws worker` and a copy of this file, "
            "which is created if it does not exist.",
            dir_okay=False,
        ),
    ] = None,
    worker_python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Python with this package on the machines of --launch. Default: the path of the server's Python.",
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the network for the GPU (torch.compile): slower start, faster prompts."
        ),
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Lowest level that is logged.", case_sensitive=False)] = (
        LogLevel.INFO
    ),
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line.")] = False,
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
) -> None:
    """Serve nnInteractive to clients until Ctrl-C.

    Examples:

        nninteractive-ws serve
        nninteractive-ws serve --model nnInteractive_v1.0 --device cuda:0,cuda:1
        nninteractive-ws serve --launch 'srun --gres=gpu:1' --workers 0..4 --idle-end 15
        nninteractive-ws serve --host 0.0.0.0 --token-file tokens \\
            --tls-cert cert.pem --tls-key key.pem

    The first example serves this machine, and clients that connect through SSH. The server listens at once. It notifies
    clients while the model is loading. Inference runs on a GPU if there is one. To segment in a browser, open the
    server's address.
    """
    devices = _devices(device)
    _check_options(tls_cert, tls_key, allow_host or (), max_sessions, max_sessions_per_user)
    try:
        from nninteractive_ws.cli.worker_options import WorkerOptions, check_worker_options, pool_settings
        from nninteractive_ws.engine.model_registry import ModelNotFound, find_model, read_license
        from nninteractive_ws.logs import configure_logging, write_to_stderr
        from nninteractive_ws.server.access import AccessError, check_bind_address
        from nninteractive_ws.server.admission import CannotListen
        from nninteractive_ws.server.pool import WorkerStartupError
        from nninteractive_ws.server.run import run_gateway
        from nninteractive_ws.server.settings import Settings
        from nninteractive_ws.server.tls import tls_context
        from nninteractive_ws.server.web_page import PAGE_FOLDER
    except ModuleNotFoundError as e:
        fail(f"serve needs the package {e.name}. Install it with: pip install 'nninteractive-ws[server]'")

    worker_options = WorkerOptions(
        devices, launch or (), worker_host, worker_port, worker_token_file, workers, idle_end, worker_python
    )
    check_worker_options(worker_options)
    configure_logging("gateway", log_level, log_json)
    try:
        warning = check_bind_address(host, token_file is not None, tls_cert is not None, insecure)
        if warning:
            stderr.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
        name, folder = find_model(model)
        stderr.print(f"model [bold]{name}[/] ({folder}), license: {read_license(folder)}", soft_wrap=True)
        log_arguments = ["--log-level", log_level, *(["--log-json"] if log_json else [])]
        worker = ["--model-name", name, *log_arguments]
        if model is not None and Path(model).expanduser().is_dir():
            worker += ["--model-folder", str(folder)]
        worker += ["--compile"] if compiled else []
        worker += [] if memory is None else ["--memory", str(int(memory * 1e9))]
        pool, remote_workers = pool_settings(worker_options, ("--model-folder", str(folder)))
        settings = Settings(
            pool=pool,
            remote_workers=remote_workers,
            worker=tuple(worker),
            model_name=name,
            host=host,
            port=port,
            official_port=official_port,
            max_sessions=max_sessions,
            max_sessions_per_user=max_sessions_per_user or max_sessions,
            linger=linger,
            token_file=token_file,
            tls=None if tls_cert is None or tls_key is None else tls_context(tls_cert, tls_key),
            origins=tuple(allow_origin or ()),
            allowed_hosts=tuple(allow_host or ()),
            page=None if no_page else PAGE_FOLDER,
            log_arguments=tuple(log_arguments),
        )
        run_gateway(settings, end_with_stdin)
    except KeyboardInterrupt:
        write_to_stderr("Stopped.\n")
        raise typer.Exit(INTERRUPTED) from None
    except (ModelNotFound, WorkerStartupError, AccessError, CannotListen, OSError) as e:
        # If nobody reads standard error, printing to it would block forever.
        with stderr.capture() as captured, contextlib.suppress(typer.Exit):
            fail(e)
        write_to_stderr(captured.get())
        raise typer.Exit(1) from e


def _devices(text: str) -> tuple[str, ...]:
    """Return the names of devices. Whether this machine has them is known once torch is imported, by the worker."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", name):
            raise typer.BadParameter(
                f'There is no device "{name}". Expected auto, cpu, cuda (the first NVIDIA or AMD GPU), cuda:0, cuda:1, '
                "..., mps (Apple) or xpu (Intel), or several such as cuda:0,cuda:1.",
                param_hint="'--device'",
            )
    return names


def _check_options(
    tls_cert: Path | None,
    tls_key: Path | None,
    allowed_hosts: Sequence[str],
    max_sessions: int,
    max_sessions_per_user: int | None,
) -> None:
    """Raise a usage error for invalid combinations of options."""
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("Expected both or neither of them.", param_hint="'--tls-cert' and '--tls-key'")
    for name in allowed_hosts:
        if not re.fullmatch(r"[\w.-]+", name):
            raise typer.BadParameter(
                f'Expected a DNS name such as gpu-box.example.org, without scheme and port, found "{name}".',
                param_hint="'--allow-host'",
            )
    if max_sessions_per_user is not None and max_sessions_per_user > max_sessions:
        raise typer.BadParameter(
            f"Expected at most --max-sessions, which is {max_sessions}, found {max_sessions_per_user}.",
            param_hint="'--max-sessions-per-user'",
        )
