"""``nninteractive-ws doctor``: can this server be used from here, and if not, what is wrong."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
import os
from pathlib import Path
import statistics
import time
from typing import Annotated

from rich.console import Console
from rich.table import Table
import typer
from websockets.exceptions import ConnectionClosed

from nninteractive_ws import protocol
from nninteractive_ws.cli.segment import TOKEN_VARIABLE, Ca
from nninteractive_ws.client.address import DEFAULT_PORT, Address, explain, parse_address, trust
from nninteractive_ws.client.aio import aconnect
from nninteractive_ws.client.dial import dial, open_tunnel
from nninteractive_ws.client.reconnect import OPEN_WITHIN_S, why_closed
from nninteractive_ws.client.tunnel import Tunnel
from nninteractive_ws.errors import ConnectionFailed, Error

_PINGS = 5


@dataclass
class Finding:
    """One step: what was looked at, what was found, how long it took; and whether all is well."""

    step: str
    found: str
    seconds: float
    fine: bool = True


def doctor(
    url: Annotated[str, typer.Argument(help="The address of a server.")] = f"127.0.0.1:{DEFAULT_PORT}",
    ca: Ca = None,
) -> None:
    """Say in words whether a server can be used from here: address, connection, version, model, latency.

    The first step that fails ends the list, with what to do; the exit status is then 1. A token for the server
    is taken from the environment variable NNINTERACTIVE_WS_TOKEN.
    """
    findings = asyncio.run(_examine(url, ca))
    table = Table("step", "found", "seconds")
    for f in findings:
        table.add_row(f.step, f.found if f.fine else f"[bold red]{f.found}[/]", f"{f.seconds:.3f}")
    Console().print(table)
    if not all(f.fine for f in findings):
        raise typer.Exit(1)


async def _examine(url: str, ca: Path | None) -> list[Finding]:
    findings: list[Finding] = []
    step, started = "address", time.monotonic()
    tunnel: Tunnel | None = None
    try:
        address = parse_address(url)
        findings.append(Finding(step, str(address), time.monotonic() - started))
        if address.ssh is not None:
            step, started, tunnel = "ssh", time.monotonic(), Tunnel(address.ssh)
            findings.append(Finding(step, await _open(tunnel), time.monotonic() - started))
            address = tunnel.local
        steps: dict[str, Callable[[Address, Path | None], Awaitable[str]]] = {
            "name and connection": _reach,
            "round trip": _round_trip,
            "session": _session,
        }
        for name, look in steps.items():
            step, started = name, time.monotonic()
            findings.append(Finding(step, await look(address, ca), time.monotonic() - started))
    except Error as e:
        explained: Error = e
        if tunnel is not None and step != "ssh" and isinstance(e, ConnectionFailed):
            explained = tunnel.explain(e)
        findings.append(Finding(step, str(explained), time.monotonic() - started, fine=False))
    finally:
        if tunnel is not None:
            tunnel.close()
    return findings


async def _open(tunnel: Tunnel) -> str:
    await open_tunnel(tunnel)
    return f"lets {tunnel.target.host} be reached, and forwards a port to {tunnel.target.server_port} there"


async def _reach(address: Address, _ca: Path | None) -> str:
    try:
        async with asyncio.timeout(OPEN_WITHIN_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except OSError as e:
        raise explain(e, address) from e
    peer = writer.get_extra_info("peername")
    writer.close()
    await writer.wait_closed()
    return f"{peer[0]} port {peer[1]} accepts connections"


async def _round_trip(address: Address, ca: Path | None) -> str:
    websocket = await dial(address, token=os.environ.get(TOKEN_VARIABLE), trusting=trust(address, ca))
    try:
        times = [await (await websocket.ping()) for _ in range(_PINGS)]
    except ConnectionClosed as e:
        raise why_closed(e.rcvd, e.sent, e.__cause__) from e
    finally:
        await websocket.close()
    secure = ", encrypted" if address.secure else ""
    return f"WebSocket{secure}; {1000 * statistics.median(times):.1f} ms (median of {_PINGS})"


async def _session(address: Address, ca: Path | None) -> str:
    async with await aconnect(address.url, token=os.environ.get(TOKEN_VARIABLE), ca=ca, reconnect_for=0) as session:
        server = session.server
    model = server.model
    return (
        f"{server.server}, protocol {protocol.PROTOCOL_VERSION}, model {model.name} (licence {model.license}) on "
        f"{server.device}, patch {' x '.join(map(str, model.patch_size))}, prompts: {', '.join(model.prompts)}"
    )
