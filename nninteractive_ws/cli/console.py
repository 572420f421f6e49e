"""What commands say and how they end."""

from typing import NoReturn

from rich.console import Console
from rich.markup import escape
import typer

#: Results go to standard output, everything else here.
stderr = Console(stderr=True, highlight=False)
#: The exit status of a command that Ctrl-C ended.
INTERRUPTED = 130


def fail(error: object) -> NoReturn:
    """End the command with an error in words, and exit status 1."""
    stderr.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(1)
