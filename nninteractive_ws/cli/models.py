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
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    offline: Annotated[
        bool, typer.Option(help="No download of the list of official models from Hugging Face.")
    ] = False,
) -> None:
    """List models, and download official ones.

    The list has names, licenses and folders of the models, whether they are downloaded, and the default of `serve`.

    Examples:

        nninteractive-ws models
        nninteractive-ws models download nnInteractive_v1.0
    """
    if context.invoked_subcommand is not None:
        return
    model_registry = _import_model_registry()
    try:
        entries = model_registry.list_models(refresh=not offline)
    except model_registry.ModelNotFound as error:
        stderr.print(f"[yellow]{escape(str(error))}[/]\nThe list has only locally known models.", soft_wrap=True)
        entries = model_registry.list_models()
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
    table = Table("name", "title", "license", "folder")
    for e in entries:
        name = f"{e.name} (default)" if e.default else e.name
        table.add_row(name, e.title, e.license, str(e.folder or "not downloaded"))
    Console().print(table)


@app.command()
def download(name: Annotated[str, typer.Argument(help="Name of an official model.")]) -> None:
    """Download an official model, and print its license. The command `models` lists the names."""
    model_registry = _import_model_registry()
    try:
        found, folder = model_registry.find_model(name)
    except model_registry.ModelNotFound as e:
        fail(e)
    message = f"{found} is in {folder}. License: {model_registry.read_license(folder)}"
    stderr.print(escape(message), soft_wrap=True)


def _import_model_registry() -> ModuleType:
    """Import the model registry on demand, because that takes seconds."""
    try:
        from nninteractive_ws.engine import model_registry
    except ModuleNotFoundError as e:
        fail(f"models needs the package {e.name}. Install it with: pip install 'nninteractive-ws[server]'")
    return model_registry
