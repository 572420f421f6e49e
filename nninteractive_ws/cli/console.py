"""Console output and exit statuses of the commands."""

from collections.abc import Iterable
from pathlib import Path
import tempfile
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
import typer

from nninteractive_ws.files.reason import reason

#: Console for everything but results, which go to standard output.
stderr = Console(stderr=True, highlight=False)


def fail(error: object) -> NoReturn:
    """Print an error, and end the command with exit status 1."""
    stderr.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(1)


def print_notes(notes: Iterable[str], image: str = "") -> None:
    """Print what was unusual in an image. ``image``: its name, if a command has several."""
    for note in notes:
        text = f"{image}: {note}" if image else note
        stderr.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)


def make_output_folder(folder: Path) -> None:
    """Create the output folder of a command. End the command if no file can be written in it, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        fail(
            f"No files can be written in the output folder {folder} ({reason(e)}). Choose another folder with "
            "--output, or correct its permissions."
        )
