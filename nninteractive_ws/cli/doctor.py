"""``nninteractive-ws doctor``."""

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
import typer

from nninteractive_ws.cli.console import stderr
from nninteractive_ws.cli.server_options import TOKEN_VARIABLE, Ca
from nninteractive_ws.client.address import DEFAULT_PORT, parse_address
from nninteractive_ws.errors import BadAddress
from nninteractive_ws.redaction import redact

if TYPE_CHECKING:  # its imports would slow down --help
    from nninteractive_ws.doctor.results import StepResult

_LABELS = {
    "ssh": "ssh",
    "websocket": "WebSocket, token",
    "http_api": "HTTP API",
    "prompt": "one prompt",
    "first_mask": "first mask (estimate)",
}
_STYLES = {"ok": "", "warning": "yellow", "failed": "bold red"}


def doctor(
    url: Annotated[
        str, typer.Argument(help="Address of the server: host, host:port, ws://, wss://, https:// or ssh://.")
    ] = f"127.0.0.1:{DEFAULT_PORT}",
    ca: Ca = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document instead of a table.")] = False,
) -> None:
    """Check each step of a connection to a server, and measure throughput.

    The steps are DNS lookup, TCP connection, TLS, identification of the server (this one, that of another system, or a
    proxy), token, session, an upload of 8 MB of synthetic image, and a prompt in it. The first failed step ends the
    list with a remedy, and the exit status is 1. The check never evicts another session, and closes its own.

    Examples:

        nninteractive-ws doctor
        nninteractive-ws doctor gpu-box:1528
        nninteractive-ws doctor wss://gpu-box:1528 --ca cert.pem
        nninteractive-ws doctor ssh://user@gpu-box --json

    Without an address, a server on this machine is checked. The token for the server is read from the environment
    variable NNINTERACTIVE_WS_TOKEN.
    """
    results = asyncio.run(_examine(url, ca))
    failed = next((f for f in results if f.status == "failed"), None)
    if as_json:
        print(json.dumps(_document(url, results, failed), indent=2))
    else:
        Console().print(_table(results))
    if failed is not None:
        raise typer.Exit(1)


async def _examine(url: str, ca: Path | None) -> "list[StepResult]":
    from nninteractive_ws.doctor.checks import Doctor

    with stderr.status("checking") as status:

        def on_status(message: str) -> None:
            status.update(Text(message))

        doctor = Doctor(url, token=os.environ.get(TOKEN_VARIABLE), ca=ca, on_status=on_status)
        return [result async for result in doctor.run()]


def _table(results: "list[StepResult]") -> Table:
    table = Table("step", "found", "seconds")
    for f in results:
        table.add_row(_LABELS.get(f.step, f.step), Text(f.found, _STYLES[f.status]), f"{f.seconds:.3f}")
    return table


def _document(url: str, results: "list[StepResult]", failed: "StepResult | None") -> dict[str, Any]:
    return {
        "address": _address(url),
        "ok": failed is None,
        "failed": None if failed is None else failed.step,
        "code": None if failed is None else failed.code,
        "steps": [
            {
                "step": f.step,
                "status": f.status,
                "code": f.code,
                "found": f.found,
                "seconds": round(f.seconds, 6),
                "data": f.data,
            }
            for f in results
        ],
    }


def _address(url: str) -> str | None:
    """Return a redacted address, or None for an invalid one, which may contain a password anywhere."""
    try:
        parse_address(url)
    except BadAddress:
        return None
    return redact(url)
