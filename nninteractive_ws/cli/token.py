"""``nninteractive-ws token``."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape
import typer

from nninteractive_ws.cli.console import fail, stderr
from nninteractive_ws.cli.segment import TOKEN_VARIABLE


def token(
    file: Annotated[Path, typer.Option(help="The token file; it is made where there is none.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Whose token it is.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the user out of the file.")] = False,
    list_users: Annotated[bool, typer.Option("--list", help="Print the names in the file.")] = False,
) -> None:
    """Make a token for a user of a server, and print it; or take one back.

    Examples:

        nninteractive-ws token alice --file tokens
        nninteractive-ws token alice --remove --file tokens
        nninteractive-ws token --list --file tokens

    A server that runs looks at the file by itself. The file holds no tokens, only what is needed to know one.
    """
    from nninteractive_ws.server.access import AccessError, add_user, insecure_permissions, remove_user, users

    if list_users == (name is not None) or (list_users and remove):
        raise typer.BadParameter("give a NAME, or a NAME and --remove, or --list alone")
    try:
        if name is None:
            for user in users(file):
                print(user)
        elif remove:
            remove_user(file, name)
            _say(f"{name} can no longer connect to servers that use {file}; connections that are open stay.")
        else:
            print(add_user(file, name))
            _say(
                f"That is the token of {name}, shown this once: {file} has only its digest. Clients take it from the "
                f"environment variable {TOKEN_VARIABLE}, in Python from connect(..., token=...)."
            )
        if (warning := insecure_permissions(file)) is not None:
            stderr.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    except FileNotFoundError:
        fail(f"there is no folder {file.parent}; create it, or give the token file another place.")
    except (AccessError, OSError) as e:
        fail(e)


def _say(words: str) -> None:
    stderr.print(escape(words), soft_wrap=True)
