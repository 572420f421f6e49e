"""``nninteractive-ws doctor``: can this server be used from here, how well, and if not, what is wrong."""

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
from nninteractive_ws.cli.segment import TOKEN_VARIABLE, Ca
from nninteractive_ws.client.address import DEFAULT_PORT, parse_address
from nninteractive_ws.errors import BadAddress
from nninteractive_ws.redaction import redact

if TYPE_CHECKING:  # it brings what --help does not need
    from nninteractive_ws.client.finding import Finding

_LABELS = {
    "ssh": "ssh",
    "websocket": "WebSocket, token",
    "prompt": "one prompt",
    "first_mask": "first mask (estimate)",
}
_STYLES = {"ok": "", "warning": "yellow", "failed": "bold red"}


def doctor(
    url: Annotated[
        str, typer.Argument(help="The address of a server: host, host:port, ws://, wss://, https:// or ssh://.")
    ] = f"127.0.0.1:{DEFAULT_PORT}",
    ca: Ca = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
) -> None:
    """Say in words whether a server can be used from here, and how fast.

    It looks up the name, connects, agrees on encryption, sees who answers (ours, another system's server, a proxy),
    tries the token, opens a session, sends 8 MB of made-up image and segments a ball in it. The first step that
    fails ends the list, with what to do; the exit status is then 1. Nobody's session is given up for it, and its own
    is gone afterwards.

    Examples:

        nninteractive-ws doctor
        nninteractive-ws doctor gpu-box:1528
        nninteractive-ws doctor wss://gpu-box:1528 --ca cert.pem
        nninteractive-ws doctor ssh://user@gpu-box --json

    Without an address it looks at a server on this machine. A token for the server is taken from the environment
    variable NNINTERACTIVE_WS_TOKEN.
    """
    findings = asyncio.run(_examine(url, ca))
    failed = next((f for f in findings if f.status == "failed"), None)
    if as_json:
        print(json.dumps(_document(url, findings, failed), indent=2))
    else:
        Console().print(_table(findings))
    if failed is not None:
        raise typer.Exit(1)


async def _examine(url: str, ca: Path | None) -> "list[Finding]":
    from nninteractive_ws.client.checkup import Checkup

    with stderr.status("looking") as status:

        def say(words: str) -> None:
            status.update(Text(words))

        checkup = Checkup(url, token=os.environ.get(TOKEN_VARIABLE), ca=ca, say=say)
        return [finding async for finding in checkup.run()]


def _table(findings: "list[Finding]") -> Table:
    table = Table("step", "found", "seconds")
    for f in findings:
        table.add_row(_LABELS.get(f.step, f.step), Text(f.found, _STYLES[f.status]), f"{f.seconds:.3f}")
    return table


def _document(url: str, findings: "list[Finding]", failed: "Finding | None") -> dict[str, Any]:
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
            for f in findings
        ],
    }


def _address(url: str) -> str | None:
    """An address as it was given. An invalid one may hold a password anywhere, and is left out."""
    try:
        parse_address(url)
    except BadAddress:
        return None
    return redact(url)
