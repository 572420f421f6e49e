"""Console output and exit statuses of the commands."""

from typing import NoReturn

from rich.console import Console
from rich.markup import escape
import typer

#: Console for everything but results, which go to standard output.
stderr = Console(stderr=True, highlight=False)
#: Exit status after Ctrl-C.
INTERRUPTED = 130


def fail(error: object) -> NoReturn:
    """Print an error, and end the command with exit status 1."""
    stderr.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(1)
