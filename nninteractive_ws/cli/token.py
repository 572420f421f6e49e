"""``nninteractive-ws token``."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape
import typer

from nninteractive_ws.cli.console import fail, stderr
from nninteractive_ws.cli.server_options import TOKEN_VARIABLE


def token(
    file: Annotated[Path, typer.Option(help="Token file; created if it does not exist.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the user.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the user and the token from the file.")] = False,
    list_users: Annotated[bool, typer.Option("--list", help="Print the names of all users in the file.")] = False,
) -> None:
    """Create or revoke the access token of a user.

    Examples:

        nninteractive-ws token alice --file tokens
        nninteractive-ws token alice --remove --file tokens
        nninteractive-ws token --list --file tokens

    A new token is printed once. The file stores only its digest. A running server reloads a changed file by itself.
    """
    from nninteractive_ws.server.access import AccessError, add_user, insecure_permissions, remove_user, users

    if list_users == (name is not None) or (list_users and remove):
        raise typer.BadParameter("Expected a NAME, a NAME with --remove, or --list alone.")
    try:
        if name is None:
            for user in users(file):
                print(user)
        elif remove:
            remove_user(file, name)
            _print_status(f"{name} can no longer connect to servers that use {file}. Open connections are not closed.")
        else:
            print(add_user(file, name))
            _print_status(
                f"This is the token of {name}. It is shown only once, because {file} stores only its digest. Clients "
                f"read it from the environment variable {TOKEN_VARIABLE}, or take it as connect(..., token=...) in "
                "Python."
            )
        if (warning := insecure_permissions(file)) is not None:
            stderr.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    except AccessError as e:
        fail(e)
    except OSError as e:
        if not file.parent.is_dir():
            fail(f"The folder {file.parent} does not exist. Create it, or choose another token file.")
        reason = f"The token file {file} cannot be written ({e.strerror})." if e.strerror else e
        fail(f"{reason} Choose another file, or correct the permissions of its folder.")


def _print_status(message: str) -> None:
    stderr.print(escape(message), soft_wrap=True)
