"""Run a gateway in this process until a signal or the end of standard input ends it."""

import asyncio
import logging
import signal

from nninteractive_ws.processes import end_signals, wait_until_stdin_closes
from nninteractive_ws.server.admission import raise_descriptor_limit
from nninteractive_ws.server.gateway import Gateway
from nninteractive_ws.server.local_server import LISTENING
from nninteractive_ws.server.settings import Settings
from nninteractive_ws.server.web_page import MISSING_PAGE

_log = logging.getLogger(__name__)


def run_gateway(settings: Settings, end_with_stdin: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, or with ``end_with_stdin`` until standard input closes.

    Raises KeyboardInterrupt after SIGINT, CannotListen, WorkerStartupError if no model loads, and BadTokenFile.
    """
    raise_descriptor_limit()
    if asyncio.run(_run(settings, end_with_stdin)) == signal.SIGINT:
        raise KeyboardInterrupt


async def _run(settings: Settings, end_with_stdin: bool) -> int | None:
    """Return the number of the signal that ended the gateway, if one did."""
    ended_by: int | None = None

    def end(number: int) -> None:
        nonlocal ended_by
        ended_by = number
        serving.cancel()

    gateway = Gateway(settings)
    serving = asyncio.ensure_future(gateway.run(lambda port: _announce(settings, port, gateway.has_page)))
    parent = asyncio.ensure_future(wait_until_stdin_closes()) if end_with_stdin else None
    if parent is not None:
        parent.add_done_callback(lambda _: serving.cancel())
    try:
        with end_signals(end):
            await serving
    except asyncio.CancelledError:
        _log.info("stopped")
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # asyncio.run turned a SIGINT from before end_signals into this, and makes it a KeyboardInterrupt
    finally:
        if parent is not None:
            parent.cancel()
    return ended_by


def _announce(settings: Settings, port: int, has_page: bool) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"{LISTENING}{'wss' if settings.tls else 'ws'}://{host}:{port}", flush=True)
    scheme = "https" if settings.tls else "http"
    if has_page:
        _log.info("the web page is at %s://%s:%s/", scheme, host, port)
    elif settings.page is not None:
        _log.info("%s", MISSING_PAGE)
    address = f"{scheme}://{host}:{settings.official_port or port}"
    _log.info("clients of nnInteractive's own server, such as napari's plug-in, use %s", address)
