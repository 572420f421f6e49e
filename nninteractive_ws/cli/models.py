"""``nninteractive-ws models``."""

import json
from typing import Annotated

from rich.console import Console
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
    from nninteractive_ws.engine.catalogue import ModelNotFound, list_models

    try:
        entries = list_models(refresh=not offline)
    except ModelNotFound as error:
        stderr.print(f"[yellow]{error}[/]\nThese are known here:", soft_wrap=True)
        entries = list_models()
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
    from nninteractive_ws.engine.catalogue import ModelNotFound, find_model, read_license

    try:
        found, folder = find_model(name)
    except ModelNotFound as e:
        fail(e)
    stderr.print(f"{found} is in {folder}; its licence: {read_license(folder)}", soft_wrap=True)
