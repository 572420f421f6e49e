"""Running a gateway in this process until a signal ends it."""

import asyncio
import logging
import signal
import sys

from nninteractive_ws.server.gateway import Gateway, Settings
from nninteractive_ws.server.local import LISTENING

_log = logging.getLogger(__name__)


def run_gateway(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises OSError where the port is taken, WorkerFailed where no model loads."""
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    serving = asyncio.ensure_future(Gateway(settings).run(lambda port: _announce(settings.host, port)))
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        _log.info("stopped")


def _announce(host: str, port: int) -> None:
    print(f"{LISTENING}ws://{host}:{port}", flush=True)
    sys.stdout.flush()
