"""Running a gateway in this process until a signal ends it."""

import asyncio
import logging
import signal
import sys

from nninteractive_ws.server.admission import raise_descriptor_limit
from nninteractive_ws.server.gateway import Gateway, Settings
from nninteractive_ws.server.local import LISTENING

_log = logging.getLogger(__name__)


def run_gateway(settings: Settings, end_with_stdin: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, or until standard input closes.

    Raises OSError where the port is taken, WorkerFailed where no model loads, BadTokenFile.
    """
    raise_descriptor_limit()
    asyncio.run(_run(settings, end_with_stdin))


async def _run(settings: Settings, end_with_stdin: bool) -> None:
    gateway = Gateway(settings)
    serving = asyncio.ensure_future(gateway.run(lambda port: _announce(settings, port)))
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, serving.cancel)
    parent = asyncio.ensure_future(_until_stdin_closes(serving)) if end_with_stdin else None
    try:
        await serving
    except asyncio.CancelledError:
        _log.info("stopped")
    finally:
        if parent is not None:
            parent.cancel()


async def _until_stdin_closes(serving: "asyncio.Future[None]") -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    serving.cancel()


def _announce(settings: Settings, port: int) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"{LISTENING}{'wss' if settings.tls else 'ws'}://{host}:{port}", flush=True)
