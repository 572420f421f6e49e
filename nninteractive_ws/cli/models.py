"""``nninteractive-ws models``."""

import json
from types import ModuleType
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.table import Table
import typer

from nninteractive_ws.cli.console import fail, stderr

app = typer.Typer()


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    offline: Annotated[bool, typer.Option(help="Do not ask Hugging Face for the list of official models.")] = False,
) -> None:
    """List the models there are, and download official ones.

    The list tells names, licences, folders, what has been downloaded, and which is the default of `serve`.

    Examples:

        nninteractive-ws models
        nninteractive-ws models download nnInteractive_v1.0
    """
    if context.invoked_subcommand is not None:
        return
    catalogue = _catalogue()
    try:
        entries = catalogue.list_models(refresh=not offline)
    except catalogue.ModelNotFound as error:
        stderr.print(f"[yellow]{escape(str(error))}[/]\nThese are known here:", soft_wrap=True)
        entries = catalogue.list_models()
    if as_json:
        content = [
            {
                "name": e.name,
                "title": e.title,
                "license": e.license,
                "folder": str(e.folder) if e.folder else None,
                "default": e.default,
            }
            for e in entries
        ]
        print(json.dumps(content, indent=2))
        return
    table = Table("name", "what", "licence", "folder")
    for e in entries:
        name = f"{e.name} (default)" if e.default else e.name
        table.add_row(name, e.title, e.license, str(e.folder or "not downloaded"))
    Console().print(table)


@app.command()
def download(name: Annotated[str, typer.Argument(help="The name of an official model.")]) -> None:
    """Download an official model; its licence is printed. NAME is one that `models` lists."""
    catalogue = _catalogue()
    try:
        found, folder = catalogue.find_model(name)
    except catalogue.ModelNotFound as e:
        fail(e)
    words = f"{found} is in {folder}; its licence: {catalogue.read_license(folder)}"
    stderr.print(escape(words), soft_wrap=True)


def _catalogue() -> ModuleType:
    """Imported when it is needed: it takes seconds."""
    try:
        from nninteractive_ws.engine import catalogue
    except ModuleNotFoundError as e:
        fail(f"models needs the package {e.name}: pip install 'nninteractive-ws[server]'")
    return catalogue
