"""The options of the commands that use a server."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nninteractive_ws.client.tokens import checked_token
from nninteractive_ws.server.local_server import ServerOptions

#: Environment variable of the token. It is not an option, because other users of the machine can read those.
TOKEN_VARIABLE = "NNINTERACTIVE_WS_TOKEN"

Server = Annotated[
    str | None,
    typer.Option(
        help="Address of the server, such as gpu-box or ssh://user@gpu-box. Default: a server on this machine."
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="Command that starts a server at an ssh:// address if none is running, and stops it afterwards; such as "
        "'nninteractive-ws serve'.",
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Model of the server that is started on this machine, see `serve --help`.")
]
Ca = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Trusted CA certificates (PEM) for a wss:// address. Default: those of the system."
    ),
]


def server_options(server: str | None, ca: Path | None, start: str | None, model: str | None) -> ServerOptions:
    """Return the options of a command, with the token from the environment. Raises Unauthorized for an invalid one."""
    return ServerOptions(server, checked_token(os.environ.get(TOKEN_VARIABLE)), ca, start, model)
